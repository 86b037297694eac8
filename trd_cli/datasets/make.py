"""trd data: make or import a problem set, and list the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from trd_cli.atomic import make_directory
from trd_cli.config.commands import ImportConfig, MakeConfig
from trd_cli.datasets.arithmetic import draw_arithmetic
from trd_cli.datasets.benchmarks import FILES
from trd_cli.datasets.gym import draw_gym, tasks_named
from trd_cli.datasets.importing import check_answers, import_problems
from trd_cli.datasets.known_sets import GRADERS, KNOWN, OWN, Known
from trd_cli.errors import counted
from trd_cli.progress import Progress
from trd_cli.records import Problem, Sampling
from trd_cli.trajectories.shards import PROBLEM_SCHEMA, shard_info, write_problems


def make(config: MakeConfig, progress: Progress) -> None:
    """Write a generated problem set."""
    write_problems(Path(config.out), drawn(config, progress.note))
    progress.note(f"{counted(shard_info(Path(config.out), PROBLEM_SCHEMA).rows, 'problem')} in {config.out}")
    progress.result(Path(config.out))


def drawn(config: MakeConfig, remark: Callable[[str], None] = lambda _: None) -> Iterator[Problem]:
    """Yield the problems of a generated set; `remark` gets lines for people on those that there are too few of."""
    if config.kind == "arithmetic":
        return draw_arithmetic(config.n, config.seed, config.level)
    return draw_gym(tasks_named(config.task_names()), config.n, config.seed, remark)


def import_(config: ImportConfig, progress: Progress) -> None:
    """Write an imported problem set."""
    make_directory(Path(config.out).parent)
    imported = import_problems(config, scratch=Path(config.out).parent)
    check_answers(imported, config)
    write_problems(Path(config.out), imported.problems)
    progress.note(f"{counted(len(imported.problems), 'problem')} in {config.out}")
    if left_out := imported.left_out():
        first = f", the first: {imported.unreadable[0]}" if imported.unreadable else ""
        progress.note(f"left out: {left_out}{first}")
    for remark in (*imported.remarks, *imported.ungraded()):
        progress.note(remark)
    progress.result(Path(config.out))


@dataclass(frozen=True)
class Listed:
    """One line of `trd data list`; the names of its fields are the titles of the columns."""

    name: str
    questions: str
    task: str
    grader: str
    source: str
    revision: str
    sampling: str
    options: str

    def cells(self) -> tuple[str, ...]:
        return astuple(self)


def list_() -> list[Listed]:
    """Return every benchmark as it would be read now, and a line for users' files, without the network."""
    grader = f"{GRADERS['math']}, {GRADERS['code']}"
    own = Listed(
        FILES, "all", "math, code, your own", f"{grader}, {OWN}", "JSONL, JSON, CSV, Parquet", "", "as its task", ""
    )
    return [*(_listed(name, known) for name, known in KNOWN.items()), own]


def _listed(name: str, known: Known) -> Listed:
    source, revision = known.where()
    options = ",".join(f"{key}={value}" for key, value in known.options.items())
    sampling = _sampling(known.sampling)
    return Listed(name, str(known.size), known.task, known.grader, source, revision, sampling, options)


def _sampling(s: Sampling) -> str:
    return f"T={s.temperature} top_p={s.top_p} top_k={s.top_k} max_tokens={s.max_tokens}"
