"""The progress of a stage and of a run. The command line prints it; a library user may stay silent.

A stage also tells its progress to the trd run that started it: one JSON object a line, in the file that TRD_EVENTS
names. It holds "work", the fields of a `Work`, or "error", the line that the command ends with.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trd_cli.errors import counted

# What `trd run` tells a stage: where its events go, and which process it ends with.
EVENTS_VARIABLE, PARENT_VARIABLE = "TRD_EVENTS", "TRD_RUN_PID"


class Progress(Protocol):
    """Progress, remarks and finished shards of a stage."""

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        """Begin a piece of work of `total` rows (None if unknown), of which `done` were finished earlier."""
        ...

    def advance(self, rows: int = 1, tokens: int = 0, turns: int = 0) -> None:
        """Count rows that are finished, so many response tokens, and turns of episodes."""
        ...

    def replicas(self, rates: Callable[[], Sequence[float]]) -> None:
        """Show also the tokens a second of each replica, which `rates` returns."""
        ...

    def end(self) -> None:
        """End the piece of work."""
        ...

    def note(self, text: str) -> None:
        """Show one line to a person."""
        ...

    def result(self, path: Path) -> None:
        """Hand on a finished shard, checkpoint or result file, which the next command in a pipe reads."""
        ...


class SilentProgress:
    """Progress that shows nothing. It collects finished paths in `results` and remarks in `notes`."""

    def __init__(self) -> None:
        self.results: list[Path] = []
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, done: int = 0) -> None: ...

    def advance(self, rows: int = 1, tokens: int = 0, turns: int = 0) -> None: ...

    def replicas(self, rates: Callable[[], Sequence[float]]) -> None: ...

    def end(self) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def result(self, path: Path) -> None:
        self.results.append(path)


class WithoutResults:
    """Another progress without its results, for a stage whose output is not its shards."""

    def __init__(self, progress: Progress) -> None:
        self.start, self.advance, self.end, self.note = (progress.start, progress.advance, progress.end, progress.note)
        self.replicas = progress.replicas

    def result(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Work:
    """A piece of work: `before` of `total` rows (None if unknown) were finished earlier, and `rows` since its start.

    `tokens` are the response tokens of these rows, `turns` those of episodes, `seconds` the time since the start,
    `replicas` the tokens a second of each replica, where there are several.
    """

    what: str
    total: int | None
    before: int
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    replicas: Sequence[float] = ()
    turns: int = 0

    @property
    def done(self) -> int:
        return self.before + self.rows

    def rate(self) -> str:
        """Return rows, turns and tokens a second in words."""
        seconds = max(self.seconds, 1e-6)
        per_row = f"{self.rows / seconds:.1f} rows/s"
        if self.turns:
            per_row += f" · {counted(self.turns, 'turn')}, {self.turns / seconds:.1f}/s"
        return f"{per_row} · {self.tokens / seconds:.0f} tok/s{self._by_replica()}" if self.tokens else per_row

    def _by_replica(self) -> str:
        rates = ", ".join(f"{number} {rate:.0f}" for number, rate in enumerate(self.replicas, 1))
        return f" (replica {rates} tok/s)" if rates else ""

    def pace(self) -> str:
        """Return the rate and the time left, or the time taken, in words; "" before the first row or turn."""
        if not self.rows and not self.turns:
            return ""
        if self.total is None or not self.rows:
            return self.rate()
        left = (self.total - self.done) * self.seconds / self.rows
        return f"{self.rate()} · " + (
            f"{clock(left)} left" if self.done < self.total else f"took {clock(self.seconds)}"
        )


def clock(seconds: float) -> str:
    """Return a time as `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def tell_run(**event: Any) -> None:
    """Append an event to the file of the trd run that started this process, if one did.

    It is a file and no inherited descriptor, because torchrun closes those. An event that cannot be written is dropped:
    the work of the stage counts more.
    """
    if path := os.environ.get(EVENTS_VARIABLE):
        with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
            file.write(json.dumps(event).encode() + b"\n")


@dataclass(frozen=True)
class NodeState:
    """The state of a stage of a run: done, running, waiting, failed or skipped; and its rows, if it counts any.

    `devices` names those that the stage has of several.
    """

    name: str
    state: str
    rows: int | None = None
    total: int | None = None
    text: str = ""
    seconds: float = 0.0
    devices: str = ""


class RunProgress(Protocol):
    """The progress of `trd run`: the states of all stages."""

    def show(self, states: Sequence[NodeState], changed: str) -> None:
        """Show all stages in order; `changed` is the name of the one whose state is new."""
        ...

    def end(self) -> None:
        """Stop showing states: no stage runs any more."""
        ...

    def note(self, text: str) -> None:
        """Show one line to a person."""
        ...
