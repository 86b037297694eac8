"""Find rows of many shards by their ids; in memory are the ids, in some 40 bytes each, and one shard's columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import read_table, rows_in


class Lookup:
    """Hold where the rows of some shards are. Of two rows with one id the first one counts."""

    def __init__(self, shards: Sequence[Path], columns: Sequence[str]) -> None:
        """Read the ids of the shards. `columns` are those of the rows to find; others are None."""
        self._shards, self._columns = shards, list(columns)
        names = [np.array(_ids(path), np.bytes_) for path in shards]
        joined = np.concatenate([np.array([], np.bytes_), *names])
        order = np.argsort(joined, kind="stable")
        self._names, self._order = joined[order], order
        # The number of a shard's first row among all.
        self._starts = np.cumsum([0, *map(len, names)])
        self._held: tuple[int, pa.Table] | None = None

    def rows(self, ids: Iterable[str]) -> dict[str, Trajectory]:
        """Return the rows with these ids by their id, without those that are in no shard."""
        sought: defaultdict[int, list[int]] = defaultdict(list)
        for shard, row in filter(None, map(self._place, dict.fromkeys(ids))):
            sought[shard].append(row)
        found: dict[str, Trajectory] = {}
        for shard, places in sorted(sought.items()):
            table = self._table(shard).take(pa.array(places, pa.int64()))
            found.update((row.trajectory_id, row) for row in rows_in(table))
        return found

    def _place(self, name: str) -> tuple[int, int] | None:
        """Return the number of the shard of a row, and that of the row in it."""
        if not len(self._names):
            return None
        sought = name.encode()
        at = int(np.searchsorted(self._names, np.array(sought, np.bytes_)))
        if at == len(self._names) or self._names[at] != sought:
            return None
        number = self._order[at]
        shard = int(np.searchsorted(self._starts, number, "right")) - 1
        return shard, int(number - self._starts[shard])

    def _table(self, shard: int) -> pa.Table:
        """Return a shard's columns. Rows that are asked for together mostly lie together: the last shard is kept."""
        if self._held is None or self._held[0] != shard:
            self._held = None
            self._held = shard, read_table(self._shards[shard], self._columns)
        return self._held[1]


def _ids(path: Path) -> list[bytes]:
    return [name.encode() for name in read_table(path, ["trajectory_id"])["trajectory_id"].to_pylist()]
