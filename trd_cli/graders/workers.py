"""Processes that do one piece of work after the other and may be killed or stopped at any moment.

Each has a pipe of its own to its owner and shares nothing else with the others. If one ends, no other process waits for
it, and its owner knows which piece of work it had.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from threading import Event, Lock, Timer
from types import ModuleType
from typing import Any

_START_SECONDS = 60.0
_END_SECONDS = 2.0
# If its owner is gone, a worker goes on for this many seconds longer than the owner would have waited.
_GRACE = 5.0
# The exit code that multiprocessing reports if the server that started the process is gone.
_UNKNOWN = 255

Work = tuple[Callable[..., Any], tuple[Any, ...]]


class Died(Exception):
    """A worker's process ended before it gave a result."""


class NotStarted(Exception):
    """A worker's process is not ready for work, and never will be."""


class Expired(Exception):
    """A worker was killed because its time was over."""


class Raised(Exception):
    """The work raised an exception; the message gives its type and text."""


class Worker:
    """A process that works for one thread."""

    def __init__(self, context: ForkServerContext, prepare: Work) -> None:
        """Start a process that calls `prepare` first; it takes work once `wait_until_ready` has returned.

        Raises NotStarted if no process could be started.
        """
        # Work that need not be done again in this process; its owner keeps the list.
        self.done: list[Work] = []
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare), name="trd-grader")
        try:
            with _without_a_main_program():
                self._process.start()
        except (OSError, EOFError) as error:  # the server that starts processes has just been killed
            self._pipe.close()
            raise NotStarted(f"it could not be started ({type(error).__name__})") from None
        finally:
            theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until the process has prepared itself.

        Raises NotStarted if it has ended, cannot prepare itself, or takes more than a minute.
        """
        try:
            refusal = self._within(_START_SECONDS, self._receive)
        except (Died, Expired) as error:
            raise NotStarted(str(error)) from None
        if refusal is not None:
            raise NotStarted(refusal)

    def is_alive(self) -> bool:
        """Return whether the process can take work; False also if that is unknown."""
        return not wait([self._process.sentinel], 0)

    def ask(self, seconds: float, work: Work) -> Any:
        """Return the result of the work.

        Raises Raised, Expired after `seconds`, or Died. After the last two the worker is gone.
        """

        def exchange() -> Any:
            self._pipe.send((seconds + _GRACE, work))
            return self._receive()

        raised, result = self._within(seconds, exchange)
        if raised is not None:
            raise Raised(raised)
        return result

    def _receive(self) -> Any:
        # Waiting for the pipe alone is not enough: a grandchild may hold its other end open for a while.
        wait([self._pipe, self._process.sentinel])
        if not self._pipe.poll():
            raise EOFError
        return self._pipe.recv()

    def _within(self, seconds: float, exchange: Callable[[], Any]) -> Any:
        """Return the result of an exchange of messages; kill the process after `seconds`, which ends the exchange."""
        expired = Event()

        def end() -> None:
            expired.set()
            self.kill()

        alarm = Timer(seconds, end)
        alarm.daemon = True
        alarm.start()
        try:
            return exchange()
        except (EOFError, OSError):
            if expired.is_set():
                raise Expired(f"killed after {seconds:g} s") from None
            raise Died(f"died (exit code {self._exit_code()})") from None
        finally:
            alarm.cancel()

    def _exit_code(self) -> int | str:
        self._process.join(_END_SECONDS)
        code = self._process.exitcode
        return "unknown" if code in (None, _UNKNOWN) else code

    def kill(self) -> None:
        """End the process now; may be called from any thread."""
        if self._process.exitcode in (None, _UNKNOWN):
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let an idle process end, kill it otherwise, and wait until it has ended."""
        self._pipe.close()
        self._process.join(_END_SECONDS)
        self.kill()
        self._process.join(_END_SECONDS)


# Workers start in threads, and the main program is one for all.
_hidden = Lock()


@contextmanager
def _without_a_main_program() -> Iterator[None]:
    """Start a process inside the block that does not run this process's main program again, as that of a user may be.

    multiprocessing would run it to make its names known, which no work for a worker needs.
    """
    with _hidden:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _serve(pipe: Connection, prepare: Work) -> None:
    """Run in the worker's process: prepare, report the outcome, then do the work from the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        refusal, _ = _done(prepare)
        pipe.send(refusal)
        while refusal is None:
            seconds, work = pipe.recv()
            signal.setitimer(signal.ITIMER_REAL, seconds)
            _bound_processor(seconds)
            pipe.send(_done(work))
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (EOFError, OSError):
        pass  # the owner is gone or has let the worker go
    except BaseException:
        signal.raise_signal(signal.SIGKILL)  # no memory even for a message; nobody would read what it prints


def _bound_processor(seconds: float) -> None:
    with suppress(ValueError, OSError):
        bound = int(time.process_time() + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (bound, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _done(work: Work) -> tuple[str | None, Any]:
    """Return the exception that the work raised, as text, and the value that it returned."""
    function, arguments = work
    try:
        return None, function(*arguments)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:500], None
