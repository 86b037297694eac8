"""Print the progress of a command: results to standard output if it is a pipe, all else to standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from trd_cli import streams
from trd_cli.errors import counted, first_line
from trd_cli.progress import NodeState, Work, clock, tell_run
from trd_cli.redaction import visible

_INTERVAL = 10.0
_EVENT_INTERVAL = 0.5


def _say(command: str, text: str) -> None:
    # While a bar is live, rich has standard error redirected: the line goes above the bar.
    print(f"trd {command}: {visible(text)}", file=sys.stderr, flush=True)


class ConsoleProgress:
    """Show progress as a live bar on a terminal, and as a line every ten seconds at most in a pipe or a log."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._piped = not sys.stdout.isatty()
        self._live = sys.stderr.isatty() and not self._piped and sys.stdin.isatty()
        self._broken = False
        self._bar = None
        self._what = ""
        self._rates: Callable[[], Sequence[float]] = tuple

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        self.end()
        self._what, self._total, self._done = what, total, done
        self._rows = self._tokens = self._turns = 0
        self._began = self._said = time.monotonic()
        self._tell()
        if self._live:
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, completed=done, rate="")
        elif total is not None:
            self.note(counted(total, "row") + (f", {done} done before" if done else ""))

    def advance(self, rows: int = 1, tokens: int = 0, turns: int = 0) -> None:
        if self._total is None and not self._rows:
            self._began = self._said = time.monotonic()  # waiting for the first input is not work
        self._rows += rows
        self._tokens += tokens
        self._turns += turns
        if time.monotonic() - self._told > _EVENT_INTERVAL:
            self._tell()
        if self._bar is not None:
            self._bar.update(self._task, advance=rows, rate=self._work().rate())
        elif time.monotonic() - self._said > _INTERVAL:
            self._said = time.monotonic()
            self.note(self._line())

    def replicas(self, rates: Callable[[], Sequence[float]]) -> None:
        self._rates = rates

    def end(self) -> None:
        if self._what:
            self._tell()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._what and self._rows:
            self.note(self._line())
        self._what = ""

    def note(self, text: str) -> None:
        _say(self._command, text)

    def result(self, path: Path) -> None:
        if not self._piped or self._broken:
            return
        failure = streams.hand_over(path)
        if failure is not None:
            # Hours of work must not be lost because a reader is gone or its disk is full.
            self._broken = True
            gone = isinstance(failure, BrokenPipeError)
            why = (
                "the next command in the pipe has ended"
                if gone
                else f"standard output: {failure.strerror or first_line(failure)}"
            )
            self.note(f"{why}; going on, so that the work is kept")

    def _work(self) -> Work:
        seconds = time.monotonic() - self._began
        done = (self._done, self._rows, self._tokens, seconds, self._rates(), self._turns)
        return Work(self._what, self._total, *done)

    def _tell(self) -> None:
        self._told = time.monotonic()
        tell_run(work=asdict(self._work()))

    def _line(self) -> str:
        work = self._work()
        rows = counted(work.done, "row") if work.total is None else f"{work.done}/{work.total}"
        return f"{work.what} {rows} · {work.pace()}"


class _Remarks(logging.Handler):
    """Show warnings of this package that belong to no stage as notes of the command."""

    def __init__(self, command: str) -> None:
        super().__init__(logging.WARNING)
        self._command = command

    def emit(self, record: logging.LogRecord) -> None:
        _say(self._command, record.getMessage())


def show_remarks(command: str) -> None:
    """Print the warnings that the package gives through `logging`."""
    logger = logging.getLogger("trd_cli")
    logger.handlers, logger.propagate = [_Remarks(command)], False


def print_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), hidden: Sequence[str] = ()
) -> None:
    """Print a table on standard output.

    A terminal gets titles and no `hidden` columns; a pipe gets all columns, tab-separated, and no titles.
    """
    with streams.printing():
        if sys.stdout.isatty():
            _print_for_people(titles, rows, right, hidden)
        else:
            for row in rows:
                print("\t".join(row))


def _print_for_people(
    titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], hidden: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    shown = [i for i, title in enumerate(titles) if title not in hidden]
    for i in shown:
        # An id that is cut cannot be looked up.
        table.add_column(titles[i], overflow="fold", justify="right" if titles[i] in right else "left")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in shown))
    Console().print(table)


class RunTable:
    """Show all stages of a run: as a live table on a terminal, elsewhere as a line for each change.

    Elsewhere a line on the progress of each running stage follows every ten seconds at most.
    """

    def __init__(self) -> None:
        self._live = None
        self._wants_live = sys.stderr.isatty() and sys.stdout.isatty() and sys.stdin.isatty()
        self._said: dict[str, tuple[str, str]] = {}
        self._said_at: dict[str, float] = {}

    def show(self, states: Sequence[NodeState], changed: str) -> None:
        if self._wants_live:
            self._draw(states)
            return
        node = next(state for state in states if state.name == changed)
        before = self._said.get(changed, ("", ""))
        if node.state != before[0]:
            self._said[changed], self._said_at[changed] = (node.state, node.text), time.monotonic()
            if node.state not in ("waiting", "done") or before[0] == "running":
                self.note(_sentence(node))
        elif node.text != before[1] and time.monotonic() - self._said_at[changed] > _INTERVAL:
            self._said[changed], self._said_at[changed] = (node.state, node.text), time.monotonic()
            self.note(_sentence(node))

    def note(self, text: str) -> None:
        _say("run", text)

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, states: Sequence[NodeState]) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        self._live.update(_table(states, self._live.console.height), refresh=True)


def _sentence(node: NodeState) -> str:
    rows = f"{node.rows}/{node.total} · " if node.state == "running" and node.total is not None else ""
    took = f"in {clock(node.seconds)}" if node.state in ("done", "failed") else ""
    place = f"on {node.devices}" if node.devices and node.state == "running" else ""
    return " ".join(filter(None, (f"{node.name}: {node.state}", took, place, (rows + node.text).rstrip(" ·"))))


def _table(states: Sequence[NodeState], height: int):
    """Return a table of the stages no higher than the terminal."""
    from rich.table import Table
    from rich.text import Text

    done = sum(state.state == "done" for state in states)
    table = Table(box=None, title=Text(f"{done} of {counted(len(states), 'stage')} done"), title_justify="left")
    has_slots = any(state.devices for state in states)
    for name in ("stage", "state", *(["devices"] * has_slots), "rows", "time", ""):
        table.add_column(name, justify="right" if name in ("rows", "time") else "left", no_wrap=True)
    for node in _foremost(states, max(height - 5, 3)):
        rows = "" if node.total is None else f"{node.rows}/{node.total}"
        took = clock(node.seconds) if node.seconds else ""
        place = [node.devices if node.state == "running" else ""] * has_slots
        state = Text(node.state, style=_COLOURS.get(node.state, ""))
        table.add_row(node.name, state, *place, rows, took, Text(node.text))
    return table


def _foremost(states: Sequence[NodeState], room: int) -> list[NodeState]:
    """Return as many states as there is room for: running ones before failed, waiting, skipped and done ones."""
    order = list(_COLOURS)
    # Of those done the last ones stay, of those that wait the first.
    ranked = sorted(
        range(len(states)), key=lambda i: (order.index(states[i].state), -i if states[i].state == "done" else i)
    )
    return [states[index] for index in sorted(ranked[:room])]


# In the order in which stages are shown where there is no room for all.
_COLOURS = {"running": "cyan", "failed": "red", "waiting": "dim", "skipped": "yellow", "done": "green"}


def _bar():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
