"""Recipes: one TOML file that says what is run. Read with everything it extends, and checked against the stages' own options.

    extends = "base.toml"          another recipe or a list of them; tables are merged key by key, the nearer file wins
    name = "…"                     default: the file's stem (a name is not inherited)
    setting, student, teacher, rounds, problems_per_round, seeds, processes, reference_arm
    [problems]                     one of: file = "set.parquet", make = {kind = …}, import = {file = …}
    [sample] [refine] [verify] [distill] [eval]
                                   options of these commands; without [eval] nothing is evaluated
    [arms.NAME]                    options of trd distill that this arm has of its own; sample = {…} and refine = {…} give it
                                   rollouts and refined rows of its own too

Files are looked for in the directory of the recipe that names them, then in the working directory. Not covered: whether models, data sets and benchmarks can be reached.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trd_cli.config import METHODS, DistillConfig, MakeConfig, Positive
from trd_cli.core.selection import needs_parents
from trd_cli.errors import UserError
from trd_cli.recipe_checks import FILLED, SOURCES, STANDING, Checker, closest
from trd_cli.recipe_files import Table, read_recipe

_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_OF_AN_ARM = ("sample", "refine")


class Recipe(BaseModel):
    """A recipe after `extends`, checked. Sections hold what was written, not the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    setting: Literal["opd", "opsd"]
    student: str
    teacher: str | None = None
    rounds: Positive = 1
    problems_per_round: Positive | None = None
    seeds: tuple[int, ...] = (0,)
    processes: Positive = 1
    reference_arm: str | None = None
    problems: Table
    sample: Table = {}
    refine: Table = {}
    verify: Table = {}
    distill: Table = {}
    eval: Table | None = None
    arms: dict[str, Table]

    def sampling(self, arm: str) -> Table:
        """Options of trd sample for this arm's rollouts."""
        return self.sample | self.arms[arm].get("sample", {})

    def refining(self, arm: str) -> Table:
        """Options of trd refine for this arm's refined rows."""
        return self.refine | self.arms[arm].get("refine", {})

    def training(self, arm: str) -> Table:
        """Options of trd distill for this arm, but for those that the graph fills in."""
        own = {key: value for key, value in self.arms[arm].items() if key not in _OF_AN_ARM}
        return self.distill | own | {"setting": self.setting}

    def along(self, arm: str) -> str:
        """What an arm trains along: "refined" (y_r) or "rollout" (y_o)."""
        return DistillConfig.parse(self.training(arm)).stage or "refined"

    def as_toml(self) -> str:
        """The recipe as a file that needs no other one."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def load_recipe(path: Path) -> Recipe:
    """Read a recipe with all it extends. Raises InputError that names the file and the key."""
    path = Path(path)
    values, origins = read_recipe(path, ())
    values.setdefault("name", path.stem)
    return _Check(path, origins).recipe(values)


class _Check(Checker):
    """Checks one recipe; every complaint names the file that the key is from."""

    def recipe(self, values: Table) -> Recipe:
        self._top(values)
        try:
            recipe = Recipe(**values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            self.invalid("", str(first["loc"][0]), key, first)
        self._models(recipe)
        recipe = recipe.model_copy(update={"eval": self._evaluation(recipe.eval)})
        self._problems(recipe)
        for name in ("sample", "refine", "verify", "eval"):
            if getattr(recipe, name) is not None:
                self.section(name, getattr(recipe, name), name)
        self._arms(recipe)
        return recipe

    def _top(self, values: Table) -> None:
        for key in values:
            if key not in Recipe.model_fields:
                self.unknown("", key, Recipe.model_fields, {})
        for key in ("setting", "student", "problems", "arms"):
            if key not in values:
                what = f"[{key}]" if key in ("problems", "arms") else key
                self.fail(key, f"no {what}", what, f"add {what}, or what this recipe extends")

    def _models(self, recipe: Recipe) -> None:
        if recipe.setting == "opd" and recipe.teacher is None:
            self.fail("setting", 'setting = "opd" without teacher', "a stronger model", "add teacher = MODEL")
        if recipe.setting == "opsd" and recipe.teacher is not None:
            self.fail(
                "teacher",
                f'teacher = {recipe.teacher!r} with setting = "opsd"',
                "the student itself as its teacher",
                "leave teacher out; teacher_weights in [distill] says which of its weights",
            )
        if not recipe.seeds or len(set(recipe.seeds)) < len(recipe.seeds):
            self.fail("seeds", f"seeds = {list(recipe.seeds)}", "one or more, all different", "change seeds")

    def _evaluation(self, table: Table | None) -> Table | None:
        """`bench` may be a list in a recipe; on the command line it is one word."""
        if table and isinstance(table.get("bench"), list):
            return table | {"bench": ",".join(str(item) for item in table["bench"])}
        return table

    def _problems(self, recipe: Recipe) -> None:
        table, kinds = recipe.problems, ("file", *SOURCES)
        for key in table:
            if key not in kinds:
                self.unknown("problems", key, kinds, {})
        if len(table) != 1:
            got = " and ".join(table) if table else "nothing"
            self.fail("problems", f"[problems] with {got}", "one of file, make, import", "keep one of them")
        (kind, value), *_ = table.items()
        if kind == "file":
            if not isinstance(value, str):
                self.fail("problems.file", f"[problems] file = {value!r}", "a Parquet file", "change it")
            return
        if not isinstance(value, dict):
            self.fail(f"problems.{kind}", f"[problems] {kind} = {value!r}", "a table", "change it")
        self.section(kind, value, f"problems.{kind}")
        needed = recipe.rounds * (recipe.problems_per_round or 0)
        if kind == "make" and needed > (there := MakeConfig.parse(value | STANDING["make"]).n):
            self.fail(
                "problems_per_round",
                f"{recipe.rounds} rounds of {recipe.problems_per_round} problems, {there} made",
                f"at least {needed}",
                "make more, or take fewer a round",
            )

    def _arms(self, recipe: Recipe) -> None:
        if not recipe.arms:
            self.fail("arms", "no arm", "at least one [arms.NAME]", "add one, with method = …")
        configs: dict[str, Table] = {}
        for name in recipe.arms:
            configs[name] = self._arm(recipe, name)
            twin = next(
                (other for other in configs if other != name and configs[other] == configs[name]), None
            )
            if twin is not None:
                self.fail(
                    f"arms.{name}",
                    f"arms {twin} and {name} are the same",
                    "arms that differ",
                    "leave one out",
                )
        if recipe.reference_arm is not None and recipe.reference_arm not in recipe.arms:
            self.fail(
                "reference_arm",
                f"reference_arm = {recipe.reference_arm!r}",
                "one of " + ", ".join(recipe.arms),
                closest(recipe.reference_arm, recipe.arms) or "change it",
            )

    def _arm(self, recipe: Recipe, name: str) -> Table:
        """Check one arm; gives all that decides what it is."""
        where = f"arms.{name}"
        if not _ARM_NAME.fullmatch(name) or name == "base":
            self.fail(
                where,
                f"[arms.{name}]",
                "a name of letters, digits, '.', '+' and '-' (base is the starting model)",
                "rename it",
            )
        arm = recipe.arms[name]
        for section in _OF_AN_ARM:
            own = arm.get(section, {})
            if not isinstance(own, dict):
                self.fail(f"{where}.{section}", f"[{where}] {section} = {own!r}", "a table", "change it")
            self.section(section, own, f"{where}.{section}")
        for key in recipe.distill:
            if key in FILLED["distill"] or key not in DistillConfig.model_fields:
                self.unknown("distill", key, DistillConfig.model_fields, FILLED["distill"])
        own = {key: value for key, value in arm.items() if key not in _OF_AN_ARM}
        for key in own:
            if key in FILLED["distill"] or key not in DistillConfig.model_fields:
                self.unknown(where, key, (*DistillConfig.model_fields, *_OF_AN_ARM), FILLED["distill"])
        table = recipe.distill | own
        inherited = [key for key in recipe.distill if key not in own]
        try:
            config = DistillConfig(**table, setting=recipe.setting)
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            self.invalid("distill" if key in inherited else where, key, key, first)
        except UserError as error:
            self.fail(where, f"[{where}] {error.got}", error.expected, error.mend)
        self._fits(recipe, where, config)
        along = config.stage or "refined"
        return {
            "sample": recipe.sampling(name),
            "refine": recipe.refining(name) if along == "refined" else {},
            "distill": config.model_dump(mode="json", exclude={"method"}),
        }

    def _fits(self, recipe: Recipe, where: str, config: DistillConfig) -> None:
        """What a command would find out hours later."""
        theirs = METHODS.get(config.method, {}).get("setting", recipe.setting)
        if theirs != recipe.setting:
            self.fail(
                f"{where}.method",
                f'[{where}] method = {config.method!r} with setting = "{recipe.setting}"',
                f'setting = "{theirs}", for which it is made',
                "change one of them",
            )
        if recipe.setting == "opd" and config.teacher_weights != "round":
            self.fail(
                f"{where}.teacher_weights",
                f'[{where}] teacher_weights = {config.teacher_weights!r} with setting = "opd"',
                'setting = "opsd", where the student is its own teacher',
                "leave it out",
            )
        if config.stage == "rollout" and needs_parents(config.subset, config.where):
            reads = f"subset = {config.subset!r}" if config.subset != "all" else f"where = {config.where!r}"
            self.fail(
                where,
                f"[{where}] {reads} along y_o, which has no parents",
                "a subset of the rollouts' own verdicts (all, correct, incorrect)",
                'change it, or train along y_r with stage = "refined"',
            )
