"""Reading trajectory sets in tests."""

from __future__ import annotations

from pathlib import Path

from trd_cli.records import Trajectory
from trd_cli.shards import iter_rows, list_shards


def rows_of(directory: Path) -> list[Trajectory]:
    """All rows of a set, in stored order."""
    return list(iter_rows(list_shards(directory)))


def by_id(directory: Path) -> dict[str, Trajectory]:
    """The rows of a set by their ids; fails when one is there twice."""
    rows = rows_of(directory)
    assert len({row.trajectory_id for row in rows}) == len(rows), "a row is there twice"
    return {row.trajectory_id: row for row in rows}
