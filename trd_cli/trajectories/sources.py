"""Choose the rows of trajectory sets from which a command makes its own: those in its subset and its part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.errors import InputError
from trd_cli.records import Kind, Trajectory
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.sets import InputSet, check_complete, iter_selected
from trd_cli.trajectories.shards import check_whole, list_shards, may_hold, read_table

_NAMES = ("trajectory_id", "problem_id", "stage")


@dataclass(frozen=True)
class Sources:
    """The way from sets to the rows to take; with `kind` those of another one are refused."""

    options: RefineConfig | SampleConfig
    kind: Kind | None = None

    def check(self, sets: Sequence[InputSet]) -> None:
        """Raise InputError for sets that are not finished, or where shards with rows of this part are not given."""
        part = self.options.part
        if part is not None:
            given = {path.resolve() for each in sets for path in each.shards}
            for directory in dict.fromkeys(each.directory for each in sets):
                for path in list_shards(directory):
                    if may_hold(path, part) and path.resolve() not in given:
                        raise InputError(
                            f"{part} of {directory} without its {path.name}",
                            "all shards that have rows of the part",
                            "name the directory",
                        )
        if not self.options.allow_partial:
            check_complete((s.directory for s in sets), part)

    def ids(
        self,
        sets: Iterable[InputSet],
        takes: Callable[[Trajectory], bool] = lambda row: True,
        columns: Sequence[str] = (),
    ) -> IdSet:
        """Return the ids of the rows that `takes` takes, which reads some `columns` of them.

        Raises DamagedFile for any byte that has changed: before hours of work rather than after them.
        """
        sets = list(self._of_part(sets))
        for path in (path for each in sets for path in each.shards):
            check_whole(path)
        return IdSet(row.trajectory_id for row in self.rows(sets, (*_NAMES, *columns)) if takes(row))

    def rows(self, sets: Iterable[InputSet], columns: Sequence[str]) -> Iterator[Trajectory]:
        """Yield the rows in the subset and the part; columns that are not asked for are None.

        Raises InputError for a row of another kind.
        """
        options, wanted = self.options, list(dict.fromkeys([*_NAMES, *columns]))
        for each in self._of_part(sets):
            for row in iter_selected([each], options.subset, options.where, options.parents, wanted):
                if row.stage != (self.kind or row.stage):
                    raise InputError(
                        f"{each.directory} holds {row.stage} rows", f"{self.kind}s", "give the set that trd sample made"
                    )
                if options.owns(row.problem_id):
                    yield row

    def _of_part(self, sets: Iterable[InputSet]) -> Iterator[InputSet]:
        """Yield the sets with the shards that may have rows of the part to make."""
        for each in sets:
            yield replace(each, shards=tuple(path for path in each.shards if may_hold(path, self.options.part)))


def asked_of(sets: Iterable[InputSet]) -> list[Any]:
    """Return what was asked of each set: one that has grown asks every task of an array for more."""
    return [each.record.get("asked", each.record.get("rows_expected")) for each in sets]


def count_orphans(shards: Iterable[Path], parents: IdSet, n: int | None = None) -> int:
    """Count the rows of shards that come from other rows than `parents`, or have a sample index from `n` on."""
    columns = ["parent_id", "sample_index"]
    tables = (read_table(path, columns) for path in shards)
    rows = (row for table in tables for row in zip(*(table[c].to_pylist() for c in columns), strict=True))
    return sum(parent not in parents or (n is not None and index >= n) for parent, index in rows)
