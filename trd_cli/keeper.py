"""Keep what is expensive to make, such as an engine, from one command of a process to the next.

A process of one command keeps nothing: `current` returns None there, and everything is made and closed as usual. A
process that runs several commands, one after the other, calls `begin` first. The keeper hands a thing out and forgets
it. So a thing that fails while it is used is never handed out again: only what is put back is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


class Keeper:
    """Hold things by name, each with the function that closes it. Any thread may call it.

    A function that closes a thing finds it forgotten, so that what nothing else refers to is freed.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Callable[[], None]]] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> Any | None:
        """Hand out the thing of that name and forget it, or return None; the caller closes it or puts it back."""
        with self._lock:
            thing, _ = self._kept.pop(name, (None, None))
        return thing

    def put(self, name: str, thing: Any, close: Callable[[], None]) -> None:
        """Keep a thing for the next command; an earlier one of that name is closed."""
        with self._lock:
            close_earlier = self._kept.pop(name, (None, None))[1]
            self._kept[name] = thing, close
        if close_earlier is not None:
            close_earlier()

    def rest(self) -> None:
        """Leave the devices to other processes: what has a method `rest` frees them by it; all else is closed."""
        with self._lock:
            steps = [getattr(thing, "rest", close) for thing, close in self._kept.values()]
            self._kept = {name: kept for name, kept in self._kept.items() if hasattr(kept[0], "rest")}
        _do(steps)

    def close(self) -> None:
        """Close all that is kept, the latest first, each even if closing another raises."""
        with self._lock:
            steps = [close for _, close in self._kept.values()]
            self._kept = {}
        _do(steps)


def _do(steps: list[Callable[[], None]]) -> None:
    """Call them, the last first, each even if another raises."""
    with ExitStack() as stack:
        for step in steps:
            stack.callback(step)


_current: Keeper | None = None


def current() -> Keeper | None:
    """Return this process's keeper, or None in a process of one command."""
    return _current


def begin() -> Keeper:
    """Make this process keep things from now on, and return its keeper. A second call returns the same one."""
    global _current
    _current = _current or Keeper()
    return _current


def end() -> None:
    """Close all that is kept; from now on the process keeps nothing."""
    global _current
    keeper, _current = _current, None
    if keeper is not None:
        keeper.close()
