"""How far the output of a stage is: one answer for resuming it, for the stages that read it, `trd run` and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trd_cli.errors import InputError
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.shards import ShardInfo, list_shards, read_table, shard_info


@dataclass(frozen=True)
class State:
    """Hold the records of a stage's directory and say how far it is: by run.json (None without one) and by its shards.

    Shards are read when an answer needs them; InputError is raised where one cannot be read.
    """

    directory: Path
    record: Mapping[str, Any] | None

    @property
    def command(self) -> str | None:
        """Return the command that makes the output, None without run.json."""
        return self.record["command"] if self.record else None

    @property
    def about(self) -> About:
        """Return what the stage tells the stages after it."""
        return About.of(self.record)

    @property
    def expected(self) -> int | None:
        """Return the rows of the finished set, None where they have not been counted yet."""
        return self.record.get("rows_expected") if self.record else None

    @property
    def rows(self) -> int:
        """Return the rows in the shards."""
        return sum(info.rows for info in self._shards.values())

    def without(self, column: str) -> int:
        """Return how many rows have no value in a column."""
        return sum(read_table(path, [column])[column].null_count for path in self._shards)

    @property
    def is_finished(self) -> bool:
        """Return True for a set with all its rows and for a checkpoint whose training has ended.

        Without run.json nothing is known to be finished.
        """
        if self.command == "distill":
            return self.about.finished
        return self.expected is not None and self.rows >= self.expected

    def check(self) -> None:
        """Raise InputError for a set that is not finished: its rows would silently be fewer than asked for.

        A set is refused too where a shard is of another set, or has the rows of another shard, as after a copy to a
        wrong name. Without run.json this last is all that can be checked.
        """
        self._check_doubles()
        if self.record is None:
            return
        again = f"run its trd {self.command} again"
        for path, info in self._shards.items():
            if info.set_digest not in (None, self.record["digest"]):
                raise InputError(f"{path} is of another set", f"a shard of {self.directory}", f"{again} to mend it")
        if not self.is_finished:
            of = "an unknown number of" if self.expected is None else self.expected
            raise InputError(
                f"{self.directory} is unfinished: {self.rows} of {of} rows",
                "a finished set",
                f"{again} to finish it, or pass --allow-partial",
            )

    @cached_property
    def _shards(self) -> dict[Path, ShardInfo]:
        return {path: shard_info(path) for path in list_shards(self.directory)}

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
