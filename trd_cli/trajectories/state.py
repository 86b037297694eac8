"""How far the output of a stage is: one answer for resuming it, for the stages that read it, `trd run` and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trd_cli.errors import InputError
from trd_cli.records import Part
from trd_cli.trajectories.parts import expression
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.shards import ShardInfo, list_shards, part_of, read_table, shard_info


@dataclass(frozen=True)
class State:
    """Hold the records of a stage's directory and say how far it is: by run.json (None without one) and by its shards.

    `part` is the part that the answers are about, None for the whole. The whole of a job array is finished when all its
    parts are. Shards are listed (unless they are in `listed`) and read when an answer needs them; InputError is raised
    where one cannot be read.
    """

    directory: Path
    record: Mapping[str, Any] | None
    part: Part | None = None
    listed: tuple[Path, ...] | None = None

    @property
    def command(self) -> str | None:
        """Return the command that makes the output, None without run.json."""
        return self.record["command"] if self.record else None

    @property
    def about(self) -> About:
        """Return what the stage tells the stages after it."""
        return About.of(self.record)

    @cached_property
    def parts(self) -> tuple[State, ...]:
        """Return the state of each part of a job array; none for a set that is made whole, or for a part."""
        count = (self.record or {}).get("parts")
        if not count or self.part:
            return ()
        shards: dict[Part | None, list[Path]] = {Part(index, count): [] for index in range(1, count + 1)}
        for path in self.shards:
            shards.setdefault(part_of(path), []).append(path)
        parts = list(shards.items())[:count]
        return tuple(State(self.directory, self.record, part, tuple(paths)) for part, paths in parts)

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
        is_current = own is not None and all(own.get(key) == self.record[key] for key in ("digest", "asked"))
        return own.get("rows_expected") if is_current else None

    @property
    def rows(self) -> int:
        """Return the rows in the shards."""
        return sum(info.rows for info in self._shards.values())

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """Return the paths of the shards."""
        return tuple(list_shards(self.directory, self.part) if self.listed is None else self.listed)

    def without(self, column: str) -> int:
        """Return how many rows have no value in a column."""
        return sum(read_table(path, [column])[column].null_count for path in self.shards)

    @property
    def is_finished(self) -> bool:
        """Return True for a set with all its rows and for a checkpoint whose training has ended.

        Without run.json nothing is known to be finished.
        """
        if self.command == "distill":
            return self.about.finished
        if self.parts:
            return all(part.is_finished for part in self.parts)
        return self.expected is not None and self.rows >= self.expected

    def check(self, part: Part | None = None) -> None:
        """Raise InputError for a set that is not finished: its rows would silently be fewer than asked for.

        A set is refused too where a shard is of another set, or has the rows of another shard, as after a copy to a
        wrong name. Without run.json this last is all that can be checked. Where the set is made in as many parts as
        `part` is one of, only that part counts.
        """
        if part is not None and self.record is not None and self.record.get("parts") == part.count:
            return State(self.directory, self.record, part).check()
        self._check_doubles()
        if self.record is None:
            return
        again = f"run its trd {self.command} again"
        for path, info in self._shards.items():
            of = part_of(path)
            if info.set_digest not in (None, self.record["digest"]) or (of and of.count) != self.record.get("parts"):
                raise InputError(f"{path} is of another set", f"a shard of {self.directory}", f"{again} to mend it")
        if not self.is_finished:
            lacking = [each.part.index for each in self.parts if not each.is_finished]
            again += f" as an array of {expression(lacking)}" if lacking else ""
            of = "an unknown number of" if self.expected is None else self.expected
            raise InputError(
                f"{f'{self.part} of ' if self.part else ''}{self.directory} is unfinished: {self.rows} of {of} rows",
                "a finished set",
                f"{again} to finish it, or pass --allow-partial",
            )

    @cached_property
    def _shards(self) -> dict[Path, ShardInfo]:
        return {path: shard_info(path) for path in self.shards}

    def _check_doubles(self) -> None:
        """Raise InputError where two shards have the same rows; ids are read only where their checksums are equal."""
        by_sum: dict[tuple[int, int], Path] = {}
        for path, info in self._shards.items():
            if info.ids_sum is None or not info.rows:
                continue
            other = by_sum.setdefault((info.rows, info.ids_sum), path)
            if other == path:
                continue
            ids, other_ids = (read_table(each, ["trajectory_id"]) for each in (path, other))
            if ids.equals(other_ids):
                mend = f"run its trd {self.command} again to mend it" if self.record else "take one away"
                raise InputError(f"{path} has the rows of {other.name}", "each row once", mend)


def state_of(directory: Path) -> State:
    """Return the state of a directory; raises as `read_run_json`."""
    return State(directory, read_run_json(directory))
