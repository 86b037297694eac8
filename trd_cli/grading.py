"""Filling the verdict columns of shards: what verify and eval share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

from trd_cli.errors import InputError
from trd_cli.graders.base import Grade, Question
from trd_cli.graders.pool import GraderOptions, GraderPool
from trd_cli.records import Trajectory
from trd_cli.reporting import Report
from trd_cli.shards import read_rows, write_shard


class ShardGrader:
    """Grades whole shards; `counts` has the verdicts of all rows seen, `changed` those that another verdict had before.

    `regrade` says what becomes of rows that have a verdict: "none" refuses those of another grader or of other options, "stale"
    grades just those again, "all" grades every row again.
    """

    def __init__(
        self, options: GraderOptions, report: Report, regrade: Literal["none", "stale", "all"] = "none"
    ) -> None:
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
        todo = [i for i, row in enumerate(rows) if self._is_owed(row, source)]
        for i, row in zip(todo, self._grade([rows[i] for i in todo]), strict=True):
            self.changed += rows[i].verdict is not None and rows[i].verdict != row.verdict
            rows[i] = row
        self.counts.update(row.verdict for row in rows)
        if todo or source != target:
            write_shard(target, rows)
        self._report.result(target)

    def _is_owed(self, row: Trajectory, path: Path) -> bool:
        """Whether a row is to be graded; raises InputError where another grader has done so and that is not to be undone."""
        if row.verdict is None or self._regrade == "all":
            return True
        stale = (row.grader, row.grader_version) != (self._options.name, self._options.version)
        if stale and self._regrade == "none":
            raise InputError(
                f"{path} was graded by {row.grader} {row.grader_version}",
                f"{self._options.name} {self._options.version}",
                "pass --regrade to grade it again",
            )
        return stale

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
