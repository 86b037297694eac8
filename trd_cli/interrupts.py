"""Signals that ask a command to stop: Ctrl-C, a scheduler's SIGTERM, the SIGHUP of a closed terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return SIGTERM, and SIGINT and SIGHUP where they are not ignored.

    nohup ignores SIGHUP, and a shell ignores SIGINT for its background jobs: then they are not meant for the command.
    """
    heard = (n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN)
    return signal.SIGTERM, *heard


def raise_when_told() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as SIGINT does."""
    for number in stop_signals():
        if number != signal.SIGINT:
            signal.signal(number, _interrupt)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let no signal interrupt the block. One that came meanwhile raises KeyboardInterrupt at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda n, _: came.append(n)) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    # A closed terminal sends several, some schedulers one after SIGTERM: they must not interrupt the last writes.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt
