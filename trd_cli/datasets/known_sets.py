"""List the benchmarks that trd knows by name, each with its loader."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from trd_cli.config.generating import TURN_TOKENS
from trd_cli.datasets import evalplus, livecodebench
from trd_cli.datasets.arithmetic import make_arithmetic
from trd_cli.datasets.gym import draw_gym, tasks_named
from trd_cli.datasets.math_sets import MATH_SETS, load_math_set
from trd_cli.datasets.sources import Loaded
from trd_cli.errors import InputError, flag
from trd_cli.graders import evalplus_tasks, gym
from trd_cli.local_data import local_file
from trd_cli.records import EPISODE, Sampling, Task

# Qwen3's settings for thinking; code and other tasks end sooner, arithmetic much sooner, and a turn of an episode is a
# command.
SAMPLING: dict[str, Sampling] = {
    "math": Sampling(0.6, 0.95, 20, 38912),
    "code": Sampling(0.6, 0.95, 20, 16384),
    "task": Sampling(0.6, 0.95, 20, 16384),
    "arithmetic": Sampling(0.6, 0.95, 20, 1024),
    EPISODE: Sampling(0.6, 0.95, 20, TURN_TOKENS),
}
GRADERS: dict[str, str] = {
    "math": "math-verify",
    "code": "tests",
    "evalplus": "EvalPlus base+plus",
    "livecodebench": "stdin and call tests",
}
# In place of the names of reasoning-gym's tasks: those with short answers.
SHORT = "short"
OWN = "your own (--grader)"
Options = Mapping[str, str]


@dataclass(frozen=True)
class Known:
    """Describe a benchmark that trd knows.

    `size` is its number of questions with the default `options`; `load` takes the canonical name and every option.
    `where` returns, without the network, the source and the commit or version that would be read now.
    """

    task: Task
    size: int
    grader: str
    options: Options
    load: Callable[[str, Options], Loaded]
    where: Callable[[], tuple[str, str]]
    sampling: Sampling


def _load_arithmetic(name: str, options: Options) -> Loaded:
    wrong = next((key for key, value in options.items() if not re.fullmatch(r"-?\d+", value)), None)
    if wrong:
        raise InputError(f"{name}: {wrong}={options[wrong]}", "a whole number", f"change {flag('bench')}")
    loaded = Loaded(make_arithmetic(**{key: int(value) for key, value in options.items()}), "generated")
    # It is made from its options, so its content is always the known one.
    return replace(loaded, expected_sha256=loaded.sha256())


def _load_gym(name: str, options: Options) -> Loaded:
    wrong = next((key for key in ("n", "seed") if not re.fullmatch(r"\d+", options[key])), None)
    if wrong:
        raise InputError(f"{name}: {wrong}={options[wrong]}", "a whole number", f"change {flag('bench')}")
    notes: list[str] = []
    problems = list(draw_gym(gym_tasks(options), int(options["n"]), int(options["seed"]), notes.append))
    return Loaded(problems, "generated", f"{gym.NAME} {gym.package_version()}", notes=tuple(notes))


def gym_tasks(options: Options) -> tuple[str, ...]:
    """Return the tasks in the options of reasoning-gym, which stand between plus signs."""
    names = options["tasks"].split("+")
    return tasks_named([] if names == [SHORT] else names)


def _load_math(key: str, _: str, options: Options) -> Loaded:
    return load_math_set(key, options["revision"] or None)


def _load_evalplus(dataset: evalplus_tasks.Dataset, name: str, options: Options) -> Loaded:
    return evalplus.load_evalplus(name, dataset, options["version"])


def _load_livecodebench(name: str, options: Options) -> Loaded:
    window = {key: options[key] for key in livecodebench.WINDOW}
    return livecodebench.load_livecodebench(name, window, options["revision"] or None)


def _where(local: str, repository: str, commit: str) -> tuple[str, str]:
    found = local_file(local)
    return (str(found), "local file") if found else (f"Hub: {repository}", f"pinned {commit[:12]}")


def _where_evalplus(dataset: evalplus_tasks.Dataset) -> tuple[str, str]:
    version = evalplus_tasks.LATEST[dataset]
    return evalplus_tasks.origin(dataset, version), version


def _math(key: str) -> Known:
    known = MATH_SETS[key]
    load = partial(_load_math, key)
    where = partial(_where, f"{key}.jsonl", known.repo, known.revision)
    return Known("math", known.size, GRADERS["math"], {"revision": ""}, load, where, SAMPLING["math"])


def _evalplus(dataset: evalplus_tasks.Dataset) -> Known:
    size, options = evalplus.SIZES[dataset], {"version": evalplus_tasks.LATEST[dataset]}
    load, where = partial(_load_evalplus, dataset), partial(_where_evalplus, dataset)
    return Known("code", size, GRADERS["evalplus"], options, load, where, SAMPLING["code"])


KNOWN: dict[str, Known] = {
    **{key: _math(key) for key in MATH_SETS},
    "humaneval+": _evalplus("humaneval"),
    "mbpp+": _evalplus("mbpp"),
    "livecodebench": Known(
        "code",
        livecodebench.SIZE,
        GRADERS["livecodebench"],
        {**livecodebench.WINDOW, "revision": ""},
        _load_livecodebench,
        partial(_where, "livecodebench/test6.jsonl", livecodebench.REPOSITORY, livecodebench.REVISION),
        SAMPLING["code"],
    ),
    "arithmetic": Known(
        "math",
        200,
        GRADERS["math"],
        {"n": "200", "seed": "2", "level": "1"},
        _load_arithmetic,
        lambda: ("generated", ""),
        SAMPLING["arithmetic"],
    ),
    gym.NAME: Known(
        gym.NAME,
        50,
        "each task's own score",
        {"tasks": SHORT, "n": "50", "seed": "2"},
        _load_gym,
        lambda: ("generated", gym.NAME),
        SAMPLING["task"],
    ),
}
# Other spellings of a name, in lower case and without hyphens, underscores and spaces.
SPELLINGS: dict[str, str] = {
    "reasoninggym": "reasoning-gym",
    "aime2024": "aime24",
    "aime2025": "aime25",
    "hmmt2025": "hmmt25",
    "hmmtfeb25": "hmmt25",
    "hmmtfeb2025": "hmmt25",
    "amo": "amobench",
    "humanevalplus": "humaneval+",
    "mbppplus": "mbpp+",
    "lcb": "livecodebench",
    "livecodebenchv6": "livecodebench",
}
