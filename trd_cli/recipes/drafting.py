"""Draft a recipe for the models and problems that a user names, with values that suit their size.

SmolLM2-135M gets numbers with which a run takes minutes on two cores, and prompts of its own beside the recipe. Any
other student gets the paper's adapter and learning rate (arXiv 2606.08432), and responses as long as a quarter of its
context. Not covered: how much memory or time a machine has, which `trd plan` tells of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_cli.config.starting import InitConfig
from trd_cli.datasets.benchmarks import split_benchmarks
from trd_cli.datasets.known_sets import SAMPLING
from trd_cli.datasets.presets import PRESETS
from trd_cli.errors import InputError, ModelError, flag
from trd_cli.graders import gym
from trd_cli.hub.names import HubName, is_hub_name
from trd_cli.models import EMBEDDED, resolve_model
from trd_cli.prompting.templates import small_prompts_dir
from trd_cli.recipes.commented import Draft
from trd_cli.recipes.tasks import tasks_of_problems

_ARITHMETIC = "arithmetic"
# Questions of other seeds than the problems.
_BENCHES = {"math": "math500", "code": "humaneval+", gym.NAME: f"{gym.NAME}:n=50,seed=2"}
_LONGEST = 16384
_FEW, _MANY, _IMPORTED = 64, 1000, 2000
_HEAD = "trd run runs this recipe, and trd plan tells what it needs. In each section any option of the command of its name may stand: the name of its flag, with _ for -."
_SLOW = "The model is published in bfloat16, which many CPUs compute several times slower than float32."
_ALONG = {
    "trd": "Along y_r, the attempts as the teacher has rewritten them.",
    "fkl": "For comparison: along y_o, the student's own attempts.",
}


@dataclass(frozen=True)
class Drafted:
    """Hold the text of a recipe, its name, and files beside it by their names."""

    name: str
    recipe: str
    beside: Mapping[str, str]


def draft(config: InitConfig) -> Drafted:
    """Return the recipe that the options ask for.

    Raises InputError for problems that are neither known nor there.
    """
    return _Drafter(config).drafted()


class _Drafter:
    def __init__(self, config: InitConfig) -> None:
        self._config = config
        self._is_small = config.student == EMBEDDED
        self._is_arithmetic = config.problems == _ARITHMETIC
        # These prompts are for word problems.
        self._has_prompts = self._is_small and self._is_arithmetic

    def drafted(self) -> Drafted:
        config = self._config
        name = _name_of(Path(config.directory))
        models = {"student": _lasting(config.student)}
        if config.teacher:
            models["teacher"] = _lasting(config.teacher)
        problems = self._problems()
        sections = problems | {"sample": self._sample(), "refine": self._refine(), "distill": self._distill()}
        if bench := self._bench(problems):
            sections["eval"] = self._eval(bench)
        top = {"name": name, "setting": config.setting, **models, "rounds": 1, "seeds": [0], "reference_arm": "trd"}
        # A model this small repairs some attempts, and learns from these.
        arms = {"trd": {"method": "trd", "subset": "repaired" if self._is_small else "all"}, "fkl": {"method": "fkl"}}
        remarks = {"": _HEAD, **{f"arms.{arm}": text for arm, text in _ALONG.items()}}
        remarks |= {"sample": _SLOW} if self._is_small else {}
        return Drafted(name, Draft(top, sections, arms, remarks).text(), self._prompts())

    def _problems(self) -> dict[str, dict[str, Any]]:
        """Return the section of the problems. Raises InputError for a name that stands for none."""
        config, named = self._config, self._config.problems
        generated = {_ARITHMETIC: {"level": 1}, gym.NAME: {}}
        if is_hub_name(named):
            return {"problems": {"file": _on_the_hub(named, config.preset)}}
        if named in generated:
            n = _FEW if self._is_small else _MANY
            if config.preset:
                raise InputError(f"{flag('preset')} with {named}", "a file to import", f"leave {flag('preset')} out")
            return {"problems.make": {"kind": named, "n": n, "seed": 1, **generated[named]}}
        place, preset = Path(named), config.preset
        if named in PRESETS:
            home = PRESETS[named].home
            if home is None:
                raise InputError(
                    f"{flag('problems')} {named}, a preset of files without a home on the Hub that trd knows",
                    "its file, or a Hub dataset",
                    f"give {flag('problems')} FILE {flag('preset')} {named}",
                )
            named, preset = home, named
        elif place.suffix == ".parquet" and preset is None:
            return {"problems": {"file": _there(place)}}
        elif place.suffix in (".jsonl", ".json", ".csv", ".parquet"):
            named = _there(place)
        elif "/" not in named:
            known = ", ".join((_ARITHMETIC, gym.NAME, *(name for name, each in PRESETS.items() if each.home)))
            raise InputError(
                f"{flag('problems')} {named}",
                f"a file, a Hub dataset owner/name, {known}",
                f"change {flag('problems')}",
            )
        given = {"preset": preset} if preset else {}
        return {"problems.import": {"file": named, **given, "limit": _IMPORTED, "shuffle_seed": 0}}

    def _bench(self, problems: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Return the benchmarks that are named, or those for the tasks of the problems, or None."""
        if self._config.bench:
            return ",".join(map(_lasting_bench, split_benchmarks(self._config.bench)))
        if self._is_arithmetic:
            return f"{_ARITHMETIC}:n={100 if self._is_small else 200},seed=2"
        ((name, table),) = problems.items()
        if name == "problems":
            tasks = tasks_of_problems(table)
        elif name == "problems.make":
            tasks = {table["kind"]}
        else:
            tasks = {PRESETS[table["preset"]].task if "preset" in table else "math"}
        return ",".join(_BENCHES[task] for task in sorted(tasks) if task in _BENCHES) or None

    def _longest(self) -> int:
        """Return the most tokens of a response: the refinement prompt has an attempt and a reference in it too."""
        longest = SAMPLING[_ARITHMETIC].max_tokens if self._is_arithmetic else _LONGEST
        try:
            context = resolve_model(self._config.student, weights=False).known_length()
        except ModelError:  # trd plan says so
            context = None
        return min(longest, context // 4) if context else longest

    def _sample(self) -> dict[str, Any]:
        return {"n": 1, **self._generating(64)}

    def _refine(self) -> dict[str, Any]:
        table = self._generating(48)
        if self._has_prompts and self._config.setting == "opsd":
            return table | {"prompt": "refine.jinja", "temperature": 0.0}
        table.pop("prompt", None)
        return table | ({"max_tokens": 128} if self._has_prompts else {})

    def _eval(self, bench: str) -> dict[str, Any]:
        table = {"bench": bench, "k": 1 if self._is_small else 4, **self._generating(48)}
        if self._is_small:
            return table | {"temperature": 0.0}
        return {key: value for key, value in table.items() if key != "max_tokens"}

    def _generating(self, few_tokens: int) -> dict[str, Any]:
        """Return what sampling, refinement and evaluation have in common."""
        table: dict[str, Any] = {"engine": self._config.engine}
        if self._is_small:
            table |= {"dtype": "float32", "batch_size": 64}
        if self._has_prompts:
            return table | {"prompt": "student.jinja", "max_tokens": few_tokens}
        return table | {"max_tokens": self._longest()}

    def _distill(self) -> dict[str, Any]:
        weights = {"teacher_weights": "initial"} if self._config.setting == "opsd" else {}
        if self._is_small:
            return weights | {"learning_rate": 1e-4, "batch_size": 4, "epochs": 1, "dtype": "float32"}
        adapter = {"lora": True, "learning_rate": 5e-6, "batch_size": 32, "epochs": 1}
        return weights | adapter | {"gradient_checkpointing": True}

    def _prompts(self) -> dict[str, str]:
        """Return the templates that the recipe names, by the names of their files."""
        if not self._has_prompts:
            return {}
        names = ("student.jinja", *(("refine.jinja",) if self._config.setting == "opsd" else ()))
        return {name: (small_prompts_dir() / name).read_text(encoding="utf-8") for name in names}


def _name_of(directory: Path) -> str:
    """Return a name for the run of a directory's recipe."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", directory.resolve().name).strip("-.+_") or "recipe"


def _lasting(model: str) -> str:
    """Return a name that means the model from any working directory."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _lasting_bench(name: str) -> str:
    file, colon, options = name.partition(":")
    return f"{Path(file).resolve()}{colon}{options}" if Path(file).is_file() else name


def _on_the_hub(name: str, preset: str | None) -> str:
    """Return the name of a problem set on the Hub; raises InputError for one of something else, or with a preset."""
    if preset is not None or not HubName.parse(name).is_file:
        given = f" {flag('preset')} {preset}" if preset else ""
        raise InputError(
            f"{flag('problems')} {name}{given}",
            "a Parquet file of trd data alone",
            f"name that file, or give {flag('problems')} owner/name to import a dataset",
        )
    return name


def _there(file: Path) -> str:
    """Return the absolute path of a file of problems; raises InputError where there is none."""
    if not file.is_file():
        raise InputError(f"no such file: {file}", "a file of problems", f"check {flag('problems')}")
    return str(file.resolve())
