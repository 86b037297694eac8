"""Fill the verdict columns of shards, for verify and eval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from trd_cli.errors import InputError
from trd_cli.graders.base import Grade, Question
from trd_cli.graders.math import NOT_ONE_ANSWER
from trd_cli.graders.pool import GraderOptions, GraderPool
from trd_cli.graders.thinking import TAIL, Prompts
from trd_cli.progress import Progress
from trd_cli.records import Trajectory, well_formed
from trd_cli.trajectories.shards import read_rows, shard_info, write_shard

_SETTLED = ("correct", "incorrect")


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
            f"audit of {told + self.untold} rows: the second method agrees on {self.agreed} of {told} ({share}), "
            f"cannot tell {self.untold}, disagrees on {len(self.differing)}{ids}"
        )


def lines(rows: Sequence[Differing]) -> str:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


class ShardGrader:
    """Grade whole shards.

    `counts` holds the verdicts of all rows seen, `changes` the (old, new) verdicts of rows that were graded again, and
    `worked_references` the number of rows of each problem whose reference is not one answer.

    `regrade` decides about rows that have a verdict. "none" refuses those of another grader or of other options,
    "stale" grades only those again, "unsettled" also those that ended as error or timeout, and "all" grades every row
    again. A share `audit` of the rows, chosen by their ids, is graded by a second method too.
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
        self._prompts = Prompts()
        self._said_sandbox = False
        self.counts: Counter[str] = Counter()
        self.changes: Counter[tuple[str, str]] = Counter()
        self.audit = Audit()
        self.worked_references: Counter[str] = Counter()

    def __enter__(self) -> ShardGrader:
        self._pool.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.__exit__(*exception)

    def fill(self, source: Path, target: Path) -> None:
        """Write `source` with all its verdicts to `target`, which may be `source`; write nothing if none is missing."""
        rows = read_rows(source)
        todo = [i for i, row in enumerate(rows) if self._is_owed(row, source)]
        for i, row in zip(todo, self._grade([rows[i] for i in todo]), strict=True):
            if rows[i].verdict is not None:
                self.changes[rows[i].verdict, row.verdict] += 1
            rows[i] = row
        if self._share:
            self._check([row for row in rows if row.verdict in _SETTLED and self._is_sampled(row)])
        if todo or source != target:
            rows = write_shard(target, rows, shard_info(source).set_digest)
        self.counts.update(row.verdict for row in rows)
        self.worked_references.update(row.problem_id for row in rows if row.verdict_detail == NOT_ONE_ANSWER)
        self._progress.result(target)

    def _is_owed(self, row: Trajectory, path: Path) -> bool:
        """Return whether a row still has to be graded.

        Raises InputError for a verdict of another grader if `regrade` is "none".
        """
        if row.verdict is None or self._regrade == "all":
            return True
        name, version = self._options.grader(row.task, row.tests)
        stale = (row.grader, row.grader_version) != (name, version)
        if stale and self._regrade == "none":
            raise InputError(
                f"{path} was graded by {row.grader} {row.grader_version}",
                f"{name} {version}",
                "pass --regrade to grade it again",
            )
        unsettled = row.verdict not in _SETTLED and row.error is None
        return stale or (unsettled and self._regrade == "unsettled")

    def _grade(self, rows: list[Trajectory]) -> list[Trajectory]:
        answered = [row for row in rows if row.error is None]
        self._say_sandbox(answered)
        grades = iter(self._pool.grade(self._questions(answered)))
        graded: list[Trajectory] = []
        for row in rows:
            grade = next(grades) if row.error is None else Grade("error", detail=f"no response: {row.error}")
            self._progress.advance(1)
            name, version = self._options.grader(row.task, row.tests)
            graded.append(
                replace(
                    row,
                    verdict=grade.verdict,
                    extracted_answer=grade.extracted_answer and well_formed(grade.extracted_answer),
                    verdict_detail=grade.detail and well_formed(grade.detail),
                    grader=name,
                    grader_version=version,
                )
            )
        return graded

    def _say_sandbox(self, rows: Sequence[Trajectory]) -> None:
        if not self._said_sandbox and any(row.task == "code" for row in rows):
            self._said_sandbox = True
            self._progress.note(f"programs run in the sandbox: {self._pool.sandbox_described}")

    def _is_sampled(self, row: Trajectory) -> bool:
        return int(row.trajectory_id[:8], 16) < self._share * 16**8

    def _check(self, rows: Sequence[Trajectory]) -> None:
        for row, second in zip(rows, self._pool.second_opinions(self._questions(rows)), strict=True):
            if second is None:
                self.audit.untold += 1
            elif second == row.verdict:
                self.audit.agreed += 1
            else:
                self.audit.differing.append(
                    Differing(
                        row.trajectory_id,
                        row.task,
                        row.reference_answer,
                        row.extracted_answer,
                        str(row.verdict),
                        second,
                    )
                )

    def _questions(self, rows: Sequence[Trajectory]) -> list[Question]:
        return [
            Question(
                row.task,
                row.response or "",
                row.reference_answer,
                row.tests,
                self._prompts.open_thinking(
                    row.model, row.prompt_token_ids[-TAIL:], row.response or "", row.ids_exact, row.finish_reason
                ),
            )
            for row in rows
        ]
