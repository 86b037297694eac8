"""The protocol of a tracker, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

# The columns and the rows of a table.
Lines = tuple[Sequence[str], Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class Point:
    """Figures that belong to one optimiser step of a training, counted over all rounds. A table is a figure too."""

    step: int
    values: Mapping[str, float]
    tables: Mapping[str, Lines] = field(default_factory=dict)

    @property
    def keys(self) -> frozenset[str]:
        """Return the names of all figures."""
        return frozenset((*self.values, *self.tables))


@dataclass(frozen=True)
class Place:
    """The tracker's run that an arm's figures of one seed go to.

    `files` are the names of the files that earlier points are in, as `Tracker.log` has returned them.
    """

    project: str
    group: str
    name: str
    id: str
    config: Mapping[str, Any]
    directory: Path
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Batch:
    """Points with the numbers that they have in their tracker's run, in ascending order.

    The first `doubtful` may be there already: a process that sent them ended before it could tell.
    """

    points: Sequence[tuple[int, Point]]
    doubtful: int = 0


@dataclass(frozen=True)
class Tracked:
    """An arm and seed, or the base model, and its stages: names → digests, in the graph's order."""

    name: str
    digest: str
    config: Mapping[str, Any]
    nodes: Mapping[str, str]


@dataclass(frozen=True)
class Order:
    """A look at a run directory: send what is new. `is_last` is True for the last look of a `trd run`."""

    directory: Path
    tracker: str
    project: str
    tracked: Sequence[Tracked]
    is_last: bool


@dataclass(frozen=True)
class Answer:
    """Tell what became of an order: in one line why figures stay behind, None if none does.

    `is_late` is True if the tracker is to be asked again at the end of the run alone.
    """

    failure: str | None = None
    is_late: bool = False


class Tracker(Protocol):
    """A tracker. `is_late` is True for one that is given all points at the end of `trd run` alone."""

    is_late: bool

    def log(self, place: Place, batch: Batch) -> Sequence[str]:
        """Log the points that are not there yet; return the names of files that hold them, none if a server does.

        The points are kept when it returns. Raises any exception if they are not.
        """
        ...
