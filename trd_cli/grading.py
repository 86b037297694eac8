"""Filling the verdict columns of shards: what verify and eval share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trd_cli.errors import InputError
from trd_cli.graders.base import Grade, Question
from trd_cli.graders.pool import GraderOptions, GraderPool
from trd_cli.records import Trajectory
from trd_cli.reporting import Report
from trd_cli.shards import read_rows, write_shard


class ShardGrader:
    """Grades whole shards; `counts` has the verdicts of all rows seen, `changed` those that another verdict had before."""

    def __init__(self, options: GraderOptions, report: Report, regrade: bool = False) -> None:
        self._options, self._report, self._regrade = options, report, regrade
        self._pool = GraderPool(options)
        self.counts: Counter[str] = Counter()
        self.changed = 0

    def __enter__(self) -> ShardGrader:
        self._pool.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.__exit__(*exception)

    def fill(self, source: Path, target: Path) -> None:
        """Write `source` with all its verdicts to `target` (it may be `source`); untouched when nothing is missing."""
        rows = read_rows(source)
        self._check(rows, source)
        todo = [i for i, row in enumerate(rows) if self._regrade or row.verdict is None]
        for i, row in zip(todo, self._grade([rows[i] for i in todo]), strict=True):
            self.changed += rows[i].verdict is not None and rows[i].verdict != row.verdict
            rows[i] = row
        self.counts.update(row.verdict for row in rows)
        if todo or source != target:
            write_shard(target, rows)
        self._report.result(target)

    def _check(self, rows: Sequence[Trajectory], path: Path) -> None:
        """Refuse rows that another grader, or this one with other options, has graded."""
        ours = (self._options.name, self._options.version)
        for row in rows:
            if row.grader is not None and (row.grader, row.grader_version) != ours and not self._regrade:
                raise InputError(
                    f"{path} was graded by {row.grader} {row.grader_version}",
                    f"{ours[0]} {ours[1]}",
                    "pass --regrade to grade it again",
                )

    def _grade(self, rows: list[Trajectory]) -> list[Trajectory]:
        answered = [row for row in rows if row.error is None]
        grades = iter(
            self._pool.grade([Question(r.task, r.response or "", r.reference_answer) for r in answered])
        )
        graded: list[Trajectory] = []
        for row in rows:
            grade = next(grades) if row.error is None else Grade("error", detail=f"no response: {row.error}")
            self._report.advance(1)
            graded.append(
                replace(
                    row,
                    verdict=grade.verdict,
                    extracted_answer=grade.extracted_answer,
                    verdict_detail=grade.detail,
                    grader=self._options.name,
                    grader_version=self._options.version,
                )
            )
        return graded
