"""Read a problem set without holding it: its problems come in batches, and 16 bytes of each id tell them apart."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trd_cli.errors import InputError, counted
from trd_cli.records import Part, Problem, Task, content_hash, sequence_hash
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.shards import PROBLEM_SCHEMA, check_whole, iter_tables

_AT_ONCE = 4096


@dataclass(frozen=True)
class ProblemSet:
    """Represent the problems of a file from number `start` to before number `stop`, or those of a part of them.

    `digest` is of the ids and texts of all problems of the file, whatever their order.
    """

    path: Path
    digest: str
    start: int
    stop: int
    part: Part | None = None

    @classmethod
    def open(cls, path: Path) -> ProblemSet:
        """Read a problem set once; raises InputError when there is no problem or two share an id."""
        check_whole(path, PROBLEM_SCHEMA)
        seen, keys = IdSet(), _Keys()
        for table in iter_tables(path, ["problem_id", "problem"], PROBLEM_SCHEMA):
            for name, text in zip(*(table[column].to_pylist() for column in ("problem_id", "problem")), strict=True):
                if not seen.add(name):
                    raise InputError(f"{path} has two problems {name!r}", "unique problem_id", "import it again")
                keys.add(name + content_hash(text))
        if not seen:
            raise InputError(f"{path} has no problems", "at least one", "make or import a problem set with trd data")
        return cls(path, sequence_hash(keys.in_order(), 16), 0, len(seen))

    def __len__(self) -> int:
        return self.stop - self.start if self.part is None else self._owned

    @cached_property
    def _owned(self) -> int:
        return sum(table.num_rows for table in self._tables(["problem_id"]))

    def __iter__(self) -> Iterator[Problem]:
        for table in self._tables():
            yield from (Problem(**row) for row in table.to_pylist())

    def slice(self, skip: int, limit: int | None) -> ProblemSet:
        """Return `limit` problems after the first `skip`; raises InputError when none is left."""
        if skip >= len(self):
            raise InputError(
                f"--skip {skip}, and {self.path} has {counted(len(self), 'problem')}",
                "problems that are left",
                "lower --skip, or give a larger set",
            )
        start = self.start + skip
        return replace(self, start=start, stop=self.stop if limit is None else min(self.stop, start + limit))

    def of_part(self, part: Part | None) -> ProblemSet:
        """Return the problems that belong to a part of a job array, or all for None."""
        return replace(self, part=part)

    def tasks(self) -> list[Task]:
        """Return the tasks of the problems, each once, in order of appearance."""
        found = (task for table in self._tables(["task"]) for task in pc.unique(table["task"]).to_pylist())
        return list(dict.fromkeys(found))

    def ids(self) -> IdSet:
        return IdSet(name for table in self._tables(["problem_id"]) for name in table["problem_id"].to_pylist())

    def _tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        place = 0
        for table in iter_tables(self.path, columns and ["problem_id", *columns], PROBLEM_SCHEMA):
            first, place = place, place + table.num_rows
            if first >= self.stop:
                return
            if place > self.start:
                begin = max(0, self.start - first)
                kept = table.slice(begin, min(place, self.stop) - first - begin)
                yield (
                    kept
                    if self.part is None
                    else kept.filter(list(map(self.part.owns, kept["problem_id"].to_pylist())))
                )


def read_problems(path: Path) -> list[Problem]:
    """Return all problems of a problem set; raises as `ProblemSet.open`."""
    return list(ProblemSet.open(path))


class _Keys:
    """Collect texts in Arrow's layout, for sorting without an object a text."""

    def __init__(self) -> None:
        self._bytes, self._offsets = bytearray(), array("q", [0])

    def add(self, text: str) -> None:
        self._bytes += text.encode()
        self._offsets.append(len(self._bytes))

    def in_order(self) -> Iterator[str]:
        """Yield the texts sorted by their code points, which is the order of their bytes in UTF-8."""
        buffers = [None, pa.py_buffer(self._offsets), pa.py_buffer(self._bytes)]
        texts = pa.Array.from_buffers(pa.large_string(), len(self._offsets) - 1, buffers)
        order = pc.array_sort_indices(texts)
        for start in range(0, len(order), _AT_ONCE):
            yield from texts.take(order[start : start + _AT_ONCE]).to_pylist()
