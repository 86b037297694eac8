"""Load a recipe: read one TOML file with everything it extends, and check it against the options of the stages.

    extends = "base.toml"          another recipe or a list of them; tables are merged key by key, the nearer file wins;
                                   false in place of a table removes an inherited one (arms.rkl = false, eval = false)
    name = "…"                     default: the file's stem (a name is not inherited)
    setting, student, teacher, rounds, problems_per_round, steps_per_round, continue, evaluate, seeds, processes, nodes,
    devices, ray, warm, reference_arm
    [problems]                     one of: file = "set.parquet", make = {kind = …}, import = {file = …}
    [episodes]                     beside problems or in place of them: env = "textworld:n=20", per_round, and options
                                   of its rows alone: sample = {…}, refine = {…}
    [sample] [refine] [verify] [distill] [eval]
                                   options of these commands; without [eval] nothing is evaluated
    [arms.NAME]                    options of trd distill for this arm alone; sample = {…} and refine = {…} give it
                                   rollouts and refined rows of its own too

Files are looked for in the directory of the recipe that names them, then in the working directory. Not covered: models,
data sets and benchmarks that cannot be reached.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from trd_cli.config.base import Config
from trd_cli.config.generating import RefineConfig
from trd_cli.config.training import METHODS, DistillConfig
from trd_cli.datasets.benchmarks import check_benchmark, split_benchmarks
from trd_cli.errors import InputError, PromptError, UserError, counted
from trd_cli.prompting.rendering import templates_for
from trd_cli.recipes.recipe import OF_AN_ARM, Recipe, Source, Table, read_recipe
from trd_cli.recipes.rounds import known_problems, problems_a_round, share_of, total_steps
from trd_cli.recipes.sections import FILLED, SOURCES, Checker, closest
from trd_cli.trajectories.selection import needs_parents
from trd_cli.trajectories.sets import check_filter
from trd_cli.worlds.spec import Spec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe with all it extends. Raises InputError that names the file and the key."""
    path = Path(path)
    values, origins = read_recipe(path, ())
    if "name" not in values and path.is_fifo():
        raise InputError(f"the recipe from {path} has no name", "one, which a pipe does not give it", 'add name = "…"')
    values.setdefault("name", path.stem)
    return _Check(path, origins).recipe(values)


class _Check(Checker):
    """Check one recipe. Every InputError names the file that the key is from."""

    def recipe(self, values: Table) -> Recipe:
        self._top(values)
        try:
            recipe = Recipe(**values)
        except ValidationError as error:
            first = error.errors()[0]
            parts = [str(part) for part in first["loc"]]
            if len(parts) > 2 or (parts[0] == "episodes" and len(parts) > 1):  # a table of an arm, or of episodes
                self.invalid(".".join(parts[:-1]), parts[-1], first)
            self.invalid("", parts[0], first, ".".join(parts))
        self._names(recipe)
        self._models(recipe)
        recipe = recipe.model_copy(update={"eval": self._evaluation(recipe.eval)})
        self._problems(recipe)
        self._episodes(recipe)
        self._rows(recipe)
        for name in ("verify", "eval"):
            if getattr(recipe, name) is not None:
                self._rendered(self.section(name, getattr(recipe, name), name), recipe.setting, name)
        self._arms(recipe)
        self._rounds(recipe)
        return recipe

    def _top(self, values: Table) -> None:
        for key in values:
            if key not in Recipe.top_keys():
                self.unknown("", key, ("extends", *Recipe.top_keys()), {})
        for key in ("setting", "student", "problems", "arms"):
            if key not in values and not (key == "problems" and "episodes" in values):
                what = f"[{key}]" if key in ("problems", "arms") else key
                self.fail(key, f"no {what}", what, f"add {what}, or what this recipe extends")

    def _names(self, recipe: Recipe) -> None:
        """Check the names of the run and of its arms, which are names of files too."""
        expected = "letters, digits, '.', '+', '_' and '-', the first a letter or a digit"
        if "base" in recipe.arms:
            self.fail("arms.base", "[arms.base]", "another name: base is the starting model", "rename it")
        if len(recipe.sources) > 1 and "episodes" in recipe.arms:
            self.fail("arms.episodes", "[arms.episodes]", "another name: episodes is a set of each round", "rename it")
        if not _NAME.fullmatch(recipe.name):
            self.fail("name", f"name = {recipe.name!r}", expected, "rename it")
        for arm in recipe.arms:
            if not _NAME.fullmatch(arm):
                self.fail(f"arms.{arm}", f"[arms.{arm}]", expected, "rename it")

    def _rendered(self, config: Config, setting: str, where: str) -> None:
        """Check a stage's templates and its filter before anything is run."""
        try:
            templates_for(config, setting)
        except PromptError as error:
            self.fail(f"{where}.prompt", f"[{where}] {error.got}", error.expected, "change prompt, or mend the file")
        condition = getattr(config, "where", None)
        if condition is None:
            return
        try:
            check_filter(condition)
        except InputError as error:
            self.refuse(where, error)

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
        """Return the section with `bench`, which a recipe may give as a list, joined to the one word of the command."""
        if table is None:
            return None
        bench, env = table.get("bench"), table.get("env") or ()
        for spec in [env] if isinstance(env, str) else env:
            self._environment(spec, "eval")
        if bench in (None, "", []) and env:
            return {key: value for key, value in table.items() if key != "bench"}
        if bench in (None, "", []):
            self.fail("eval.bench", "[eval] without a benchmark", 'bench = "NAME"', "add one, or leave [eval] out")
        joined = ",".join(map(str, bench)) if isinstance(bench, list) else str(bench)
        for name in split_benchmarks(joined):
            try:
                check_benchmark(name)
            except InputError as error:
                self.refuse("eval", error)
        return table | {"bench": joined}

    def _environment(self, spec: str, where: str) -> None:
        try:
            Spec.parse(spec)
        except InputError as error:
            self.refuse(where, error)

    def _episodes(self, recipe: Recipe) -> None:
        if recipe.episodes is None:
            return
        self._environment(recipe.episodes.env, "episodes")
        if recipe.episodes.per_round is not None and recipe.steps_per_round is not None:
            self.fail(
                "episodes.per_round",
                f"[episodes] per_round with steps_per_round = {recipe.steps_per_round}",
                "one of them: as many episodes as the steps need, or as many steps as the episodes give",
                "leave one out",
            )

    def _rows(self, recipe: Recipe, arm: str | None = None) -> None:
        """Check the options of trd sample and trd refine for each source, those of an arm where one is given."""
        for source in recipe.sources:
            is_played = source == "episodes"
            env = {"env": recipe.episodes.env} if is_played else None
            for name, table, filled_in in (
                ("sample", recipe.sampling(arm, source), env),
                ("refine", recipe.refining(arm, source), None),
            ):
                inner = f"arms.{arm}" if arm else "episodes" if is_played and getattr(recipe.episodes, name) else ""
                where = f"{inner}.{name}".lstrip(".")
                self._rendered(self.section(name, table, where, filled_in), recipe.setting, where)

    def _problems(self, recipe: Recipe) -> None:
        if recipe.problems is None:
            return
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
            if Path(value).suffix in (".jsonl", ".json", ".csv"):
                self.fail(
                    "problems.file",
                    f"[problems] file = {value!r}",
                    "a Parquet file of trd data",
                    f"write import.file = {value!r}, or import it first",
                )
        elif not isinstance(value, dict):
            self.fail(f"problems.{kind}", f"[problems] {kind} = {value!r}", "a table", "change it")
        else:
            self.section(kind, value, f"problems.{kind}")

    def _rounds(self, recipe: Recipe) -> None:
        """Check how many problems and steps the rounds have. Arms and problems have been checked."""
        if recipe.steps_per_round is not None and recipe.problems_per_round is not None:
            self.fail(
                "steps_per_round",
                f"steps_per_round = {recipe.steps_per_round} with problems_per_round = {recipe.problems_per_round}",
                "one of them: as many problems as the steps need, or as many steps as the problems give",
                "leave one out",
            )
        if recipe.continues and recipe.rounds == 1:
            self.fail(
                "continue",
                "continue = true with rounds = 1",
                "an earlier round that a later one continues",
                "raise rounds, or leave continue out",
            )
        for arm in recipe.arms:
            if recipe.steps_per_round is not None:
                self._shares(recipe, arm)
            for source in recipe.sources:
                self._slices(recipe, arm, source)
            self._steps(recipe, arm)

    def _shares(self, recipe: Recipe, arm: str) -> None:
        """Check that the steps of an arm tell how many rows of each source they take."""
        where = f"arms.{arm}" if "mix" in recipe.arms[arm].distill else "distill"
        if len(recipe.sources) > 1 and not recipe.training(arm).get("mix"):
            self.fail(
                "steps_per_round",
                f"steps_per_round = {recipe.steps_per_round} with problems and episodes, and arm {arm} without mix",
                "mix = { NAME = SHARE, … } in [distill], from which the rows of each follow",
                "add it, or leave steps_per_round out",
            )
        for source in recipe.sources:
            if not share_of(recipe, arm, source):
                self.fail(
                    f"{where}.mix",
                    f"[{where}] mix, which has no share for {source}",
                    f"a share for each, or no {source}",
                    f"change mix, or leave [{source}] out",
                )

    def _slices(self, recipe: Recipe, arm: str, source: Source) -> None:
        """Check that there are problems, or episodes, for all rounds of an arm."""
        a_round, there = problems_a_round(recipe, arm, source), _problems_there(recipe, source)
        needed = recipe.rounds * (a_round or 0)
        if there is None or needed <= there:
            return
        by_steps, one = recipe.steps_per_round is not None, source.removesuffix("s")
        self.fail(
            "steps_per_round" if by_steps else "problems_per_round" if source == "problems" else "episodes.per_round",
            f"{counted(recipe.rounds, 'round')} of {counted(a_round, one)}"
            + (f" ({counted(recipe.steps_per_round, 'step')} of arm {arm})" if by_steps else "")
            + f", and there are {there}",
            f"at least {counted(needed, one)}",
            f"take more {source}, or fewer {'steps ' if by_steps else ''}a round",
        )

    def _steps(self, recipe: Recipe, arm: str) -> None:
        """Check that an arm's steps are given once, and that they are known where its rounds are one training."""
        if recipe.steps_per_round is not None and recipe.training(arm).get("epochs", 1) != 1:
            where = f"arms.{arm}" if "epochs" in recipe.arms[arm].distill else "distill"
            self.fail(
                f"{where}.epochs",
                f"[{where}] epochs with steps_per_round = {recipe.steps_per_round}",
                "one of them: steps_per_round takes as many passes over the rows as its steps need",
                "leave epochs or steps_per_round out",
            )
        if recipe.is_continued and "import" in (recipe.problems or {}) and total_steps(recipe, arm) is None:
            self.fail(
                "rounds",
                f"{counted(recipe.rounds, 'round')} of problems that are counted when they are imported, and one training over all rounds",
                "problems_per_round or steps_per_round, from which its number of steps follows",
                "add one of them, or continue = false for a training of its own in each round",
            )

    def _arms(self, recipe: Recipe) -> None:
        if not recipe.arms:
            self.fail("arms", "no arm", "at least one [arms.NAME]", "add one, with method = …")
        for name in recipe.arms:
            self._arm(recipe, name)
        if recipe.reference_arm is not None and recipe.reference_arm not in recipe.arms:
            self.fail(
                "reference_arm",
                f"reference_arm = {recipe.reference_arm!r}",
                "one of " + ", ".join(recipe.arms),
                closest(recipe.reference_arm, recipe.arms) or "change it",
            )

    def _arm(self, recipe: Recipe, name: str) -> None:
        """Check one arm by itself; the graph shows if two arms are the same."""
        where = f"arms.{name}"
        arm = recipe.arms[name]
        # Options that exclude each other may come one from the arm and one from what it inherits.
        self._rows(recipe, name)
        for key in recipe.distill:
            if key in FILLED["distill"] or key not in DistillConfig.model_fields:
                self.unknown("distill", key, DistillConfig.model_fields, FILLED["distill"])
        for key in arm.distill:
            if key in FILLED["distill"] or key not in DistillConfig.model_fields:
                self.unknown(where, key, (*DistillConfig.model_fields, *OF_AN_ARM), FILLED["distill"])
        try:
            config = DistillConfig(**recipe.training(name))
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            is_inherited = key in recipe.distill and key not in arm.distill
            self.invalid("distill" if is_inherited else where, key, first)
        except UserError as error:
            self.refuse(where, error)
        self._rendered(config, recipe.setting, where)
        self._fits(recipe, where, config)
        for source in recipe.sources:
            self._refined(recipe, name, source, config)

    def _refined(self, recipe: Recipe, name: str, source: Source, config: DistillConfig) -> None:
        """Check that the rows which an arm refines are such as it trains along."""
        where, arm = f"arms.{name}", recipe.arms[name]
        refined = RefineConfig.parse({**recipe.refining(name, source), "setting": recipe.setting})
        if config.along() == "refined" and source == "episodes" and refined.mode != "rewrite":
            self.fail(
                f"{where}.refine" if "mode" in arm.refine else "refine.mode",
                f'[{where}] along episodes that are refined with mode = "{refined.mode}"',
                'mode = "rewrite"',
                'put mode = "rewrite" into [episodes] refine, or leave [episodes] out',
            )
        if config.method == "relay" and refined.mode != "relay":
            self.fail(
                f"{where}.refine" if arm.refine else where,
                f'[{where}] method = "relay" along rows that are refined with mode = "{refined.mode}"',
                'rows of mode = "relay"',
                'add refine = { mode = "relay" } to the arm',
            )
        if config.along() == "refined" and needs_parents(refined.subset, refined.where):
            self.fail(
                f"{where}.refine.subset" if "subset" in arm.refine else "refine.subset",
                f"[refine] {_reads(refined)} of rollouts, which have no parents",
                "a subset of the rollouts' own verdicts (all, correct, incorrect)",
                "change it; [arms.NAME] subset chooses among the refined rows",
            )

    def _fits(self, recipe: Recipe, where: str, config: DistillConfig) -> None:
        """Refuse combinations of options that a command would refuse hours later."""
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
        if config.along() == "rollout" and needs_parents(config.subset, config.where):
            self.fail(
                where,
                f"[{where}] {_reads(config)} along y_o, which has no parents",
                "a subset of the rollouts' own verdicts (all, correct, incorrect)",
                'change it, or train along y_r with stage = "refined"',
            )


def _reads(config: DistillConfig | RefineConfig) -> str:
    """Return the filter that reads parents, as a recipe writes it."""
    return f"where = {config.where!r}" if config.subset == "all" else f"subset = {config.subset!r}"


def _problems_there(recipe: Recipe, source: Source) -> int | None:
    """Return the number of problems or episodes, or None if it cannot be known yet."""
    try:
        return known_problems(recipe, source)
    except InputError:
        return None
