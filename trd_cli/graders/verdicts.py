"""Fill the verdict columns of shards, for verify and eval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from trd_cli.errors import InputError, counted
from trd_cli.graders import episodes
from trd_cli.graders.base import Grade, Question
from trd_cli.graders.math import NOT_ONE_ANSWER
from trd_cli.graders.options import Grader, GraderOptions, no_grader
from trd_cli.graders.pool import GraderPool
from trd_cli.graders.thinking import Prompts, tails
from trd_cli.progress import Progress
from trd_cli.records import Verdict, well_formed
from trd_cli.redaction import visible
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.run_json import renderer_of
from trd_cli.trajectories.shards import OF_A_VERDICT, read_table, shard_info, write_table
from trd_cli.worlds.workers import Limits, Workers

_SETTLED = ("correct", "incorrect")
# Columns that decide which grader a row has, and those that decide whether it has to be graded.
OF_A_GRADER = ("task", "tests", "environment")
_KNOWN = (*OF_A_VERDICT, *OF_A_GRADER, "problem_id", "error")
# Columns of a question, and those that grading reads.
_ASKED = ("task", "problem", "response", "reference_answer", "tests", "model", "ids_exact", "finish_reason")
_READ = (*_ASKED, *episodes.READ, "prompt_token_ids", "error")
_ROWS_AT_ONCE = 32
# Problems that a remark names.
_NAMED = 10

# The columns of a shard's verdicts by name, a value a row.
Verdicts = dict[str, list[str | None]]


@dataclass(frozen=True)
class Differing:
    """A row on which the second method disagrees, for a person to look at."""

    trajectory_id: str
    task: str
    reference: str | None
    answer: str | None
    verdict: str
    second_verdict: str


@dataclass
class Audit:
    """Results of grading a sample with a second method: rows it agreed on, rows it could not judge, and the others."""

    agreed: int = 0
    untold: int = 0
    differing: list[Differing] = field(default_factory=list)

    def summary(self) -> str:
        """Return one line for people."""
        told = self.agreed + len(self.differing)
        share = f"{self.agreed / told:.1%}" if told else "nothing to compare"
        ids = f": {', '.join(row.trajectory_id for row in self.differing[:10])}" if self.differing else ""
        return (
            f"audit of {counted(told + self.untold, 'row')}: the second method agrees on {self.agreed} of {told} ({share}), "
            f"cannot tell {self.untold}, disagrees on {len(self.differing)}{ids}"
        )


def lines(rows: Sequence[Differing]) -> str:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


@dataclass
class WorkedReferences:
    """Count the rows, and the problems, whose reference is not one answer; `first` names the first problems."""

    rows: int = 0
    problems: IdSet = field(default_factory=IdSet)
    first: list[str] = field(default_factory=list)

    def add(self, problem_id: str) -> None:
        self.rows += 1
        if self.problems.add(problem_id) and len(self.first) < _NAMED:
            self.first.append(problem_id)

    def summary(self) -> str:
        """Return one line for people."""
        names = ", ".join(self.first) + (", …" if len(self.problems) > len(self.first) else "")
        return (
            f"{counted(self.rows, 'row')} graded as error: the reference of the problem is not one answer "
            f"({counted(len(self.problems), 'problem')}: {names}): give its final answer alone, in a box or after ####"
        )


class ShardGrader:
    """Grade whole shards, one in memory at a time. Only the columns of verdicts are made anew.

    `counts` holds the verdicts of all rows seen, `changes` the (old, new) verdicts of rows that were graded again.

    `regrade` decides about rows that have a verdict. "none" refuses those of another grader or of other options,
    "stale" grades only those again, "unsettled" also those that ended as error or timeout, and "all" grades every row
    again. A share `audit` of the rows, chosen by their ids, is graded by a second method too.

    Rows of a task that has no grader get no verdict; `without_grader` counts them by task.
    """

    def __init__(
        self,
        options: GraderOptions,
        progress: Progress,
        regrade: Literal["none", "stale", "unsettled", "all"] = "none",
        audit: float = 0.0,
    ) -> None:
        self._options, self._progress, self._regrade, self._share = options, progress, regrade, audit
        self._pool = GraderPool(options)
        self._open = ExitStack()
        self._worlds: Workers | None = None
        self._prompts = Prompts()
        # The model whose chat template made the prompts, where it is not the one that wrote the row.
        self._renderer: str | None = None
        self._said_sandbox = False
        self._refusals: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.changes: Counter[tuple[str, str]] = Counter()
        self.audit = Audit()
        self.worked_references = WorkedReferences()
        self.without_grader: Counter[str] = Counter()

    def __enter__(self) -> ShardGrader:
        self._open.enter_context(self._pool)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.__exit__(*exception)

    def fill(self, source: Path, target: Path) -> None:
        """Write `source` with all its verdicts to `target`, which may be `source`; write nothing if none is missing."""
        self._renderer = renderer_of(source.parent)
        known = read_table(source, list(_KNOWN))
        verdicts = {name: known[name].to_pylist() for name in OF_A_VERDICT}
        owed = self._owed(known, verdicts, source)
        if owed or self._share or source != target:
            table = read_table(source)
            self._grade(table, owed, verdicts)
            if self._share:
                self._check(table, verdicts)
            if owed or source != target:
                write_table(target, _with(table, verdicts), shard_info(source).set_digest)
        self.counts.update(verdict for verdict in verdicts["verdict"] if verdict is not None)
        details = zip(known["problem_id"].to_pylist(), verdicts["verdict_detail"], strict=True)
        for problem_id in (problem_id for problem_id, detail in details if detail == NOT_ONE_ANSWER):
            self.worked_references.add(problem_id)
        self._progress.result(target)

    def check_all_graded(self) -> None:
        """Raise InputError if some of the rows are of a task that has no grader."""
        if self.without_grader:
            raise no_grader(self.without_grader, "row")

    def _owed(self, table: pa.Table, verdicts: Verdicts, path: Path) -> list[int]:
        """Return the places of the rows that still have to be graded.

        Raises InputError for a verdict of another grader if `regrade` is "none".
        """
        owed = []
        old = zip(verdicts["verdict"], verdicts["grader"], verdicts["grader_version"], strict=True)
        for i, ((verdict, *by), now, error) in enumerate(
            zip(old, self._graders(table), table["error"].to_pylist(), strict=True)
        ):
            if now is None:
                self.without_grader[table["task"][i].as_py()] += 1
                continue
            is_stale = verdict is not None and tuple(by) != (now.name, now.version)
            if is_stale and self._regrade == "none":
                raise InputError(
                    f"{path} was graded by {' '.join(map(str, by))}",
                    f"{now.name} {now.version}",
                    "pass --regrade to grade it again",
                )
            is_unsettled = verdict not in _SETTLED and error is None and self._regrade == "unsettled"
            if verdict is None or is_stale or is_unsettled or self._regrade == "all":
                owed.append(i)
        return owed

    def _graders(self, table: pa.Table) -> Iterator[Grader | None]:
        """Yield each row's grader."""
        return graders_of(table, self._options)

    def _grade(self, table: pa.Table, owed: Sequence[int], verdicts: Verdicts) -> None:
        """Grade the rows at these places and put the results into `verdicts`."""
        rows = table.select(_READ).take(pa.array(owed, pa.int64()))
        graders = list(self._graders(rows))
        self._say_sandbox(graders)
        for i, by, grade in zip(owed, graders, self._grades(rows, graders), strict=True):
            self._progress.advance(1)
            if verdicts["verdict"][i] is not None:
                self.changes[verdicts["verdict"][i], grade.verdict] += 1
            answer = grade.extracted_answer and well_formed(grade.extracted_answer)
            detail = grade.detail and visible(well_formed(grade.detail))
            for name, value in zip(OF_A_VERDICT, (grade.verdict, answer, by.name, by.version, detail), strict=True):
                verdicts[name][i] = value

    def _grades(self, rows: pa.Table, graders: Sequence[Grader]) -> Iterator[Grade]:
        """Yield the grade of each row, in order."""
        errors = rows["error"].to_pylist()
        played, others = _parted(graders, [i for i, error in enumerate(errors) if error is None])
        of_episodes = episodes.grades(rows.take(played))
        by_pool = self._pool.grade(self._questions(rows.take(others)))
        for grader, error in zip(graders, errors, strict=True):
            if error is not None:
                yield Grade("error", detail=f"no response: {error}")
            else:
                yield next(of_episodes if grader.is_environment else by_pool)

    def _say_sandbox(self, graders: Sequence[Grader]) -> None:
        if not self._said_sandbox and any(grader.in_sandbox for grader in graders):
            self._said_sandbox = True
            self._progress.note(f"programs run in the sandbox: {self._pool.sandbox_described}")

    def _check(self, table: pa.Table, verdicts: Verdicts) -> None:
        ids, graders = table["trajectory_id"].to_pylist(), list(self._graders(table))
        sampled = [
            i
            for i, (verdict, grader) in enumerate(zip(verdicts["verdict"], graders, strict=True))
            if verdict in _SETTLED and grader is not None and self._is_sampled(ids[i])
        ]
        played, others = _parted(graders, sampled)
        seconds = dict(zip(played.to_pylist(), self._played_again(table.select(_READ).take(played)), strict=True))
        by_pool = self._pool.second_opinions(self._questions(table.select(_READ).take(others)))
        seconds |= zip(others.to_pylist(), by_pool, strict=True)
        for i in sampled:
            verdict, second = verdicts["verdict"][i], seconds[i]
            if second is None:
                self.audit.untold += 1
            elif second == verdict:
                self.audit.agreed += 1
            else:
                task, reference = table["task"][i].as_py(), table["reference_answer"][i].as_py()
                answer = verdicts["extracted_answer"][i]
                self.audit.differing.append(Differing(ids[i], task, reference, answer, verdict, second))

    def _played_again(self, rows: pa.Table) -> list[Verdict | None]:
        if not rows.num_rows:
            return []
        if self._worlds is None:
            limits = Limits(memory=self._options.code.memory)
            self._worlds = self._open.enter_context(Workers(self._options.workers, limits))
        for reason in sorted(episodes.refusals(rows) - self._refusals):
            self._progress.note(f"not played again: {reason}")
            self._refusals.add(reason)
        return episodes.second_opinions(rows, self._worlds)

    def _is_sampled(self, trajectory_id: str) -> bool:
        return int(trajectory_id[:8], 16) < self._share * 16**8

    def _questions(self, rows: pa.Table) -> Iterator[Question]:
        """Yield the questions of rows with the columns `_READ`, few at a time as Python objects."""
        for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
            columns = (batch[name].to_pylist() for name in _ASKED)
            for row in zip(*columns, tails(batch["prompt_token_ids"]), strict=True):
                task, problem, response, reference, tests, model, exact, finish_reason, tail = row
                opens = self._prompts.open_thinking(self._renderer or model, tail, response or "", exact, finish_reason)
                yield Question(task, response or "", reference, tests, opens, problem)


def graders_of(table: pa.Table, options: GraderOptions) -> Iterator[Grader | None]:
    """Yield the grader of each row of a table with the columns `OF_A_GRADER`."""
    versions = pc.struct_field(table["environment"], "version").to_pylist()
    for task, tests, version in zip(table["task"].to_pylist(), table["tests"], versions, strict=True):
        yield options.grader(task, tests.as_py() if task == "code" else None, version or "")


def _parted(graders: Sequence[Grader | None], places: Iterable[int]) -> tuple[pa.Array, pa.Array]:
    """Return which of these places are graded by their environments, and which by the pool."""
    parts: tuple[list[int], list[int]] = ([], [])
    for i in places:
        parts[not graders[i].is_environment].append(i)
    return pa.array(parts[0], pa.int64()), pa.array(parts[1], pa.int64())


def _with(table: pa.Table, verdicts: Verdicts) -> pa.Table:
    """Return the table with these verdicts; all other columns are the same memory."""
    for name in OF_A_VERDICT:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(verdicts[name], pa.string()))
    return table
