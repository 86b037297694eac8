"""What a stage tells the outside while it works. The command line prints it; a library user may stay silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """Progress, remarks and finished shards."""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """A piece of work begins: `total` rows (None where unknown), of which `done` were there before."""
        ...

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        """Rows were finished, with so many response tokens."""
        ...

    def end(self) -> None:
        """The piece of work is over."""
        ...

    def note(self, text: str) -> None:
        """One line a person should see."""
        ...

    def result(self, path: Path) -> None:
        """A finished shard, checkpoint or result file: what the next command in a pipe reads."""
        ...


class SilentProgress:
    """Says nothing; collects what was finished in `results` and what was remarked in `notes`."""

    def __init__(self) -> None:
        self.results: list[Path] = []
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, done: int = 0) -> None: ...

    def advance(self, rows: int = 1, tokens: int = 0) -> None: ...

    def end(self) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def result(self, path: Path) -> None:
        self.results.append(path)


class WithoutResults:
    """Pass progress on without results, for a stage whose shards are a means and not its output."""

    def __init__(self, progress: Progress) -> None:
        self.start, self.advance, self.end, self.note = (progress.start, progress.advance, progress.end, progress.note)

    def result(self, path: Path) -> None: ...


@dataclass(frozen=True)
class NodeState:
    """How a stage of a run stands: done, running, waiting, failed or skipped; rows where it has told them."""

    name: str
    state: str
    rows: int | None = None
    total: int | None = None
    text: str = ""
    seconds: float = 0.0


class RunProgress(Protocol):
    """What `trd run` tells: the stand of all stages, one of which has changed."""

    def show(self, states: Sequence[NodeState], changed: str) -> None:
        """All stages in order; `changed` is the name of the one that has moved."""
        ...

    def end(self) -> None:
        """No stage runs any more."""
        ...

    def note(self, text: str) -> None:
        """One line a person should see."""
        ...
