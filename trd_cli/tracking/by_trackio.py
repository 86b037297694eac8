"""Trackio. The package is loaded when the tracker is made.

It logs to a local database, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say. A point's step is the optimiser's.
trackio knows a run by its name. It does not raise errors, so what it has written is read back from the database. Of
points that are sent elsewhere it keeps those that do not arrive, and sends them the next time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trd_cli.errors import UserError
from trd_cli.tracking.base import Batch, Place, Point

_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
_OWN_KEYS = {"step", "timestamp"}


class Trackio:
    """Log to trackio."""

    is_late = False

    def __init__(self) -> None:
        """Raise ImportError if the package, or one that it needs, is not installed."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self._trackio, self._storage = trackio, SQLiteStorage
        self._is_local = not any(os.environ.get(name) for name in _ELSEWHERE)

    def log(self, place: Place, batch: Batch) -> Sequence[str]:
        """Log the points; of the doubtful ones those that the local database has are left out."""
        there = self._there(place)
        doubtful = [point for _, point in batch.points[: batch.doubtful]]
        points = [point for point in doubtful if _mark(point) not in there]
        points += [point for _, point in batch.points[batch.doubtful :]]
        run = self._trackio.init(
            project=place.project,
            name=place.name,
            group=place.group,
            config=dict(place.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        try:
            for point in points:
                tables = {name: self._table(*lines) for name, lines in point.tables.items()}
                run.log({**point.values, **tables}, step=point.step)
        finally:
            self._trackio.finish()
        if self._is_local and Counter(map(_mark, points)) - (self._there(place) - there):
            raise UserError("trackio has not kept all figures", "a database that it can write", "see logs/")
        return ()

    def _there(self, place: Place) -> Counter[tuple[int, frozenset[str]]]:
        """Return the step and the names of the figures of each row in the local database."""
        if not self._is_local:
            return Counter()
        rows = self._storage.get_logs(place.project, place.name)
        return Counter((row["step"], frozenset(row.keys() - _OWN_KEYS)) for row in rows)

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
        return self._trackio.Table(columns=list(columns), data=[list(row) for row in rows])


def _mark(point: Point) -> tuple[int, frozenset[str]]:
    return point.step, point.keys
