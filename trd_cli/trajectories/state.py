"""Tell how far the output of a stage is: one answer for resuming it, for stages that read it, `trd run` and reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_cli.errors import DamagedFile, InputError, counted
from trd_cli.records import Part
from trd_cli.trajectories.parts import again
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.shards import (
    ShardInfo,
    is_named_for,
    list_shards,
    misplaced,
    part_of,
    read_table,
    schema_of,
    shard_info,
)


@dataclass(frozen=True)
class State:
    """Hold the records of a stage's directory and say how far it is: by run.json (None without one) and by its shards.

    `part` is the part that the answers are about, None for the whole. The whole of a job array is finished when all its
    parts are. Shards are listed (unless they are in `listed`) and read when an answer needs them; InputError is raised
    where one cannot be read. `whole` is the array that a part's state was asked of: it knows copies in other parts.
    """

    directory: Path
    record: Mapping[str, Any] | None
    part: Part | None = None
    listed: tuple[Path, ...] | None = None
    whole: State | None = None

    @property
    def command(self) -> str | None:
        """Return the command that makes the output, None where no record tells it."""
        return self._shared.get("command")

    @property
    def about(self) -> About:
        """Return what the stage tells the stages after it."""
        return About.of(self.record)

    @cached_property
    def parts(self) -> tuple[State, ...]:
        """Return the state of each part of a job array; none for a set that is made whole, or for a part.

        Without run.json their records and the names of their shards tell them.
        """
        count = self._shared.get("parts")
        if not count or self.part:
            return ()
        shards: dict[Part | None, list[Path]] = {Part(index, count): [] for index in range(1, count + 1)}
        for path in self.shards:
            shards.setdefault(part_of(path), []).append(path)
        parts = list(shards.items())[:count]
        return tuple(State(self.directory, self._shared, part, tuple(paths), self) for part, paths in parts)

    @cached_property
    def _shared(self) -> Mapping[str, Any]:
        """Return run.json or, without it, what the parts of an array have in common; {} where that is nothing."""
        if self.record is not None:
            return self.record
        counts = {part and part.count for part in map(part_of, self.shards)}
        count = counts.pop() if len(counts) == 1 else None
        if count is None:
            return {}
        records = [record for index in range(count) if (record := _own(self.directory, Part(index + 1, count)))]
        found = {key: {record[key] for record in records} for key in ("command", "digest", "asked")}
        return {"parts": count, **{key: values.pop() for key, values in found.items() if len(values) == 1}}

    @cached_property
    def expected(self) -> int | None:
        """Return the rows of the finished output, None where they have not been counted yet.

        Those of a part count from the start of its task, if that was asked for the same as the array is now.
        """
        if self.parts:
            counts = [part.expected for part in self.parts]
            return None if None in counts else sum(counts)
        if self.part is None:
            return self.record.get("rows_expected") if self.record else None
        own = read_run_json(self.directory, self.part)
        is_current = own is not None and all(own.get(key) == self.record.get(key) for key in ("digest", "asked"))
        return own.get("rows_expected") if is_current else None

    @property
    def rows(self) -> int:
        """Return the rows in the shards."""
        for found in self._shards.values():
            if isinstance(found, InputError):
                raise found
        return sum(info.rows for info in self._shards.values())

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """Return the paths of the shards."""
        return tuple(list_shards(self.directory, self.part) if self.listed is None else self.listed)

    def without(self, column: str) -> int:
        """Return how many rows have no value in a column."""
        return sum(read_table(path, [column], self._schema)[column].null_count for path in self.shards)

    @property
    def is_finished(self) -> bool:
        """Return True for a set with all its rows and for a checkpoint whose training has ended.

        Without run.json nothing is known to be finished.
        """
        if self.record is None:
            return False
        if self.command == "distill":
            return self.about.finished
        if self.parts:
            return all(part.is_finished for part in self.parts)
        return self.expected is not None and self.rows >= self.expected

    def check(self, part: Part | None = None) -> None:
        """Raise InputError for a set that is not finished: its rows would silently be fewer than asked for.

        A set is refused too for its `faults`. Where the set is made in as many parts as `part` is one of, only that
        part counts.
        """
        if part is not None and self.record is not None and self.record.get("parts") == part.count:
            return State(self.directory, self.record, part).check()
        for fault in self.faults.values():
            raise fault
        if self.record is None or self.is_finished:
            return
        lacking = [each.part.index for each in self.parts if not each.is_finished]
        of = "an unknown number of rows" if self.expected is None else counted(self.expected, "row")
        raise InputError(
            f"{f'{self.part} of ' if self.part else ''}{self.directory} is unfinished: {self.rows} of {of}",
            "a finished set",
            f"{again(self.command, self.part, *lacking)} to finish it, or pass --allow-partial",
        )

    @cached_property
    def faults(self) -> dict[Path, InputError]:
        """Return what is wrong with shards: damage, a shard of another set, the rows of another shard as after a copy.

        Without run.json and parts nothing tells which set is meant.
        """
        if self.whole is not None:
            return {path: self.whole.faults[path] for path in self.shards if path in self.whole.faults}
        found = {path: self._stranger(path, info) for path, info in self._shards.items()}
        strange = {path: fault for path, fault in found.items() if fault is not None}
        return strange | dict(self._doubles([path for path in self._shards if path not in strange]))

    def _stranger(self, path: Path, info: ShardInfo | InputError) -> InputError | None:
        """Return the fault of a shard that cannot be read, or is of another set."""
        if isinstance(info, InputError):
            return info
        if not self._shared:
            return None
        if not is_named_for(path, self._shared.get("parts")):
            return misplaced(path)
        if None in (info.set_digest, ours := self._shared.get("digest")) or info.set_digest == ours:
            return None
        mend = f"{again(self.command, part_of(path))} to mend it"
        return InputError(f"{path} is of another set", f"a shard of {self.directory}", mend)

    @cached_property
    def _shards(self) -> dict[Path, ShardInfo | InputError]:
        return {path: _info(path, self._schema) for path in self.shards}

    @property
    def _schema(self) -> pa.Schema | None:
        return schema_of(self.command)

    def _doubles(self, shards: Sequence[Path]) -> Iterator[tuple[Path, InputError]]:
        """Yield the shards that have the rows of another one; ids are read only where their checksums are equal."""
        by_sum: dict[tuple[int, int], Path] = {}
        for path in shards:
            info = self._shards[path]
            if info.ids_sum is None or not info.rows:
                continue
            other = by_sum.setdefault((info.rows, info.ids_sum), path)
            if other != path:
                yield from self._compared(other, path)

    def _compared(self, first: Path, second: Path) -> Iterator[tuple[Path, InputError]]:
        """Yield the one of two shards that is a copy of the other: the one under the name of a part not its own."""
        tables = {path: _ids(path, self._schema) for path in (first, second)}
        if broken := [(path, table) for path, table in tables.items() if isinstance(table, InputError)]:
            yield from broken
        elif tables[first].equals(tables[second]):
            problem, of = tables[first]["problem_id"][0].as_py(), part_of(first)
            wrong, right = (second, first) if of is None or of.owns(problem) else (first, second)
            mend = f"{again(self.command, part_of(wrong))} to mend it" if self.command else "take one away"
            yield wrong, InputError(f"{wrong} has the rows of {right.name}", "each row once", mend)


def _info(path: Path, schema: pa.Schema | None) -> ShardInfo | InputError:
    try:
        return shard_info(path, schema)
    except InputError as error:
        return error


def _ids(path: Path, schema: pa.Schema | None) -> pa.Table | InputError:
    try:
        return read_table(path, ["trajectory_id", "problem_id"], schema)
    except InputError as error:
        return error


def _own(directory: Path, part: Part) -> dict[str, Any] | None:
    """Return the record of a part, None where it is not there or is damaged."""
    try:
        return read_run_json(directory, part)
    except DamagedFile:
        return None


def state_of(directory: Path) -> State:
    """Return the state of a directory; raises as `read_run_json`."""
    return State(directory, read_run_json(directory))
