"""Load the questions of a benchmark by its name: a set that trd knows, or a file of the user's.

A name is `aime24`, or with options `livecodebench:from=2025-02,to=2025-04`. The case of letters, hyphens, underscores
and a few other spellings (`HumanEval-plus`, `MATH-500`, `aime2024`) do not matter. A file is a problem set (.parquet),
or JSONL, JSON, CSV or Parquet with the columns of `trd data import`; `:TASK` follows its name where no column gives the
task.

A known set is read from `$TRD_DATA/benchmarks` if that file exists, else from the Hub at a pinned commit
(`aime24:revision=main` asks for another one). Its number of questions must be right. The SHA-256 over the text,
reference answer and tests of all questions, in any order, is compared with the one that trd knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trd_cli.config.commands import ImportConfig
from trd_cli.datasets.evalplus import canonical_version
from trd_cli.datasets.importing import import_problems
from trd_cli.datasets.known_sets import GRADERS, KNOWN, OWN, SAMPLING, SPELLINGS, Known, Options, gym_tasks
from trd_cli.datasets.sources import Loaded
from trd_cli.errors import InputError, counted, flag
from trd_cli.graders import gym
from trd_cli.graders.base import graded_by
from trd_cli.hub.names import is_hub_name
from trd_cli.prompting.templates import family_of
from trd_cli.records import TASK_NAME, Problem, Sampling, Task, well_formed
from trd_cli.trajectories.problem_sets import read_problems

FILES = "FILE[:TASK]"
_FILE = re.compile(rf"(.+\.(?:jsonl|jsonl\.gz|json|csv|parquet))(?::({TASK_NAME.pattern}))?", re.IGNORECASE)


@dataclass(frozen=True)
class Benchmark:
    """Hold a benchmark's questions, all of one task, and the facts to report beside its scores.

    `problems` have `name` as their source. `source` says where they were read; `revision` is the Hub's commit or
    EvalPlus's version, None for a local file. `known` is True if `sha256` is the hash that trd knows of this set, False
    if it is another, and None if trd has no hash to compare: for a file of the user's, or an edition whose text may
    differ in details. `group` is the common name of several benchmarks whose mean is told too.
    """

    name: str
    problems: list[Problem]
    task: Task
    grader: str
    source: str
    revision: str | None
    sha256: str
    known: bool | None
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    notes: tuple[str, ...] = ()
    group: str | None = None


def load_benchmark(name: str) -> Benchmark:
    """Return the benchmark with that name, or in that file.

    Raises InputError for an unknown name (with similar ones), a wrong option, a file or Hub set that cannot be read,
    and a known set with a wrong number of questions.
    """
    file = _in_a_file(name)
    if file:
        return _from_file(name, file[1], file[2])
    canonical, known, typed = _named(name)
    loaded = known.load(canonical, {**known.options, **typed})
    _check(canonical, loaded)
    benchmark = _benchmark(canonical, loaded, known.task, known.grader, known.sampling)
    return replace(benchmark, group=_group(_canonical(name.partition(":")[0]), typed))


def check_benchmark(name: str) -> None:
    """Raise InputError for an unknown name or option; no file is read."""
    if not _in_a_file(name):
        _named(name)


def task_of(name: str) -> Task | None:
    """Return the task of a benchmark, None where its name alone does not tell; no file is read."""
    file = _in_a_file(name)
    return file[2] if file else _named(name)[1].task


def _in_a_file(name: str) -> re.Match[str] | None:
    """Return file and task where a name has them. Raises InputError for a name on the Hub."""
    if is_hub_name(name):
        raise InputError(
            f"the benchmark {name}",
            "a name that trd data list shows, or a file FILE[:TASK]",
            "make a file of it with trd data import owner/name",
        )
    return _FILE.fullmatch(name)


def _named(name: str) -> tuple[str, Known, dict[str, Any]]:
    """Return a benchmark's canonical name, its entry among the known sets, and the given options."""
    base, _, text = name.partition(":")
    key = _canonical(base)
    known = KNOWN[key]
    typed = _options(name, text, known.options)
    if "version" in typed:
        typed["version"] = canonical_version(typed["version"])
    return _with_options(key, typed), known, typed


def split_benchmarks(text: str) -> list[str]:
    """Return the names in a comma-separated list, none of an empty one; KEY=VALUE belongs to the name before it.

    So `arithmetic:n=200,seed=2` is one name. reasoning-gym becomes a name for each of its tasks.
    """
    names: list[str] = []
    for part in text.split(",") if text else ():
        if names and re.fullmatch(r"\s*\w+=[^:/]*", part):
            names[-1] += "," + part
        else:
            names.append(part)
    return [one for name in names for one in _of_each_task(name.strip())]


def _of_each_task(name: str) -> list[str]:
    if _in_a_file(name) or SPELLINGS.get(_plain(name.partition(":")[0])) != gym.NAME:
        return [name]
    _, known, typed = _named(name)
    tasks = gym_tasks({**known.options, **typed})
    return [_with_options(gym.NAME, {**typed, "tasks": task}) for task in tasks]


def _group(key: str, typed: Options) -> str | None:
    """Return the name that reasoning-gym's tasks have in common; None for another benchmark."""
    others = {name: value for name, value in typed.items() if name != "tasks"}
    return _with_options(key, others) if key == gym.NAME else None


def _with_options(key: str, options: Options) -> str:
    return ":".join(filter(None, (key, ",".join(f"{k}={v}" for k, v in options.items()))))


def _benchmark(name: str, loaded: Loaded, task: Task, grader: str, sampling: Sampling) -> Benchmark:
    sha256 = loaded.sha256()
    return Benchmark(
        name,
        [replace(problem.well_formed(), source=name) for problem in loaded.problems],
        task,
        grader,
        loaded.source,
        loaded.revision,
        sha256,
        loaded.known(sha256),
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.max_tokens,
        loaded.notes,
    )


def _check(name: str, loaded: Loaded) -> None:
    got, expected = len(loaded.problems), loaded.expected_size
    said = f"{name} from {loaded.source} has {counted(got, 'question')}"
    if expected is not None and got != expected:
        raise InputError(said, str(expected), "get the published set again")
    if len({problem.problem_id for problem in loaded.problems}) != got:
        raise InputError(f"{said}, and one of them twice", "each one once", "get the published set again")


# Names and options


def _canonical(base: str) -> str:
    plain = _plain(base)
    key = SPELLINGS.get(plain, plain)
    if key in KNOWN:
        return key
    close = get_close_matches(plain, [*KNOWN, *SPELLINGS], n=4, cutoff=0.6)
    nearest = list(dict.fromkeys(SPELLINGS.get(name, name) for name in close))
    hint = f" (closest: {', '.join(nearest)})" if nearest else ""
    raise InputError(
        f"no benchmark {base!r}", f"one of {', '.join(KNOWN)}, or a file {FILES}{hint}", "see trd data list"
    )


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


def _options(name: str, text: str, allowed: Options) -> dict[str, str]:
    values: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, mark, value = (piece.strip() for piece in part.partition("="))
        if not mark or not value or key not in allowed:
            keys = ", ".join(f"{key}=" for key in allowed)
            raise InputError(f"{name}: {part!r}", f"{keys} with a value", f"change {flag('bench')}")
        values[key] = value
    return values


def _from_file(name: str, path: str, task: str | None) -> Benchmark:
    """Return the benchmark in a user's file: a problem set, or any other file as `trd data import` reads it."""
    if well_formed(name) != name:
        raise InputError(f"the benchmark {name} is not named in UTF-8", "a name that rows can have", "rename it")
    if path.lower().endswith(".parquet") and task is None:
        loaded = Loaded(read_problems(Path(path)), path)
    else:
        loaded = _imported(path, task)
    tasks = {problem.task for problem in loaded.problems}
    if len(tasks) != 1:
        raise InputError(
            f"{path} has {' and '.join(sorted(tasks)) or 'no'} problems", "one task a benchmark", "make a file of each"
        )
    (only,) = tasks
    needs = graded_by(only)
    missing = sum(getattr(problem, needs) is None for problem in loaded.problems) if needs else 0
    if missing:
        what = "reference answer" if needs == "reference_answer" else "tests"
        note = f"{missing} of {len(loaded.problems)} questions have no {what}: they get no verdict"
        loaded = replace(loaded, notes=(*loaded.notes, note))
    return _benchmark(name, loaded, only, GRADERS.get(only, OWN), SAMPLING[family_of(only)])


def _imported(path: str, task: str | None) -> Loaded:
    try:
        imported = import_problems(ImportConfig(file=path, out="unused", task=task))
    except InputError as error:
        mend = "mend the file, or make a problem set of it with trd data import --map"
        raise InputError(error.got, error.expected, mend) from None
    left_out = imported.left_out()
    notes = (f"left out: {left_out}",) if left_out else ()
    return Loaded(imported.problems, path, notes=(*notes, *imported.remarks))
