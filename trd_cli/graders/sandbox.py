"""Run an unread program in a process and keep it inside.

Levels, the strongest first (`inside/jail.py` has the mechanics):

namespaces  Linux, needs no other software. No network; a file system of the Python installation (read-only) and an
            empty /tmp (an empty /tmp/work if the installation lies in /tmp); no view of other processes; no user rights
            but those of nobody if trd runs as root. All processes of the sandbox end together.
bwrap       The same by bubblewrap, if that is installed and the kernel permits it.
limits      The rest, for macOS and containers that forbid namespaces: a session and an empty directory of its own, an
            environment without the user's variables, limits on memory, CPU, file size, processes and open files. The
            program can reach the user's files and the network.

At every level the program gets inputs only; expected results stay outside, in the process that compares. Not covered:
faults of the kernel, side channels, the memory of many processes together (each has its own limit), and the number of
processes with `limits` or as root with `bwrap`. A program in `limits` may also look into the user's other processes,
and one that kills its watcher can leave processes behind.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from trd_cli.errors import InputError, flag
from trd_cli.graders.inside import codec
from trd_cli.graders.starting import Level, Limits, SandboxError, start

LEVELS: tuple[Level, ...] = get_args(Level)
MAX_REPLY = 512 << 20
# The types of a runner's replies besides values. The runner sends no others.
_TYPES = {"raised": str, "stdout": str, "fault": str, "late": bool, "flooded": bool, "status": int}
_NO_TIME = codec.Clock(None, 0.0)
_START_SECONDS = 30.0


class Ended(Exception):
    """The program ended the process that ran it."""


class OutOfTime(Exception):
    """No reply came in time."""


class Flooded(Exception):
    """A reply has more than `MAX_REPLY` bytes."""


class Sandbox:
    """A runner (`inside/runner.py`) in a sandbox; use as a context manager, which ends all its processes."""

    def __init__(self, level: Level, limits: Limits, asked: Sandbox | None = None) -> None:
        """Prepare a sandbox; its test programs call the program in `asked`, which then answers nobody else."""
        self._level, self._limits, self._asked = level, limits, asked
        self._runner: int | None = None

    def __enter__(self) -> Sandbox:
        self._root = tempfile.mkdtemp(prefix="trd-sandbox-")
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self._root, ignore_errors=True)
            raise
        try:
            # A slow start is not the program's fault: its time begins after this.
            reply = self.ask({"load": "", "prelude": False}, _START_SECONDS)
        except (Ended, OutOfTime) as failure:
            self.__exit__()
            raise SandboxError(f"the sandbox ({self._level}) did not start: {failure}") from None
        except BaseException:
            self.__exit__()
            raise
        # Only this first reply can be trusted: the program may forge later ones.
        if "refused" in reply:
            self.__exit__()
            raise SandboxError(f"the sandbox ({self._level}) could not be closed: {reply['refused']}")
        self._runner = _last_descendant(self._pid)
        return self

    def _start(self) -> None:
        other = self._asked.hand_over() if self._asked else ()
        (theirs_in, self._to), (self._from, theirs_out) = os.pipe(), os.pipe()
        self._buffer = bytearray()
        try:
            self._process = start(self._level, self._limits, self._root, (theirs_in, theirs_out, *other))
        except BaseException:
            self._close_pipes()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._pid = self._process.pid
        self._set_blocking(False)

    def clock(self, seconds: float) -> codec.Clock:
        """Return a clock of the process that runs the program, from now.

        If that process mostly waits for another sandbox, the clock is the ordinary one.
        """
        return codec.Clock(None if self._asked else self._runner, seconds)

    def hand_over(self) -> tuple[int, int]:
        """Return the descriptors to read from and to write to, for use by another process."""
        self._set_blocking(True)
        return self._from, self._to

    def _set_blocking(self, blocking: bool) -> None:
        for descriptor in (self._to, self._from):
            os.set_blocking(descriptor, blocking)

    def _close_pipes(self) -> None:
        for descriptor in (self._to, self._from):
            os.close(descriptor)

    def __exit__(self, *exception: object) -> None:
        for process in _descendants(self._pid) if self._level == "limits" else ():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        self._process.end()
        self._close_pipes()
        shutil.rmtree(self._root, ignore_errors=True)

    def ask(self, request: Any, seconds: float) -> dict[str, Any]:
        """Return the reply to one request; raises Ended, OutOfTime, Flooded. For `seconds` see `inside.codec.Clock`."""
        clock = self.clock(seconds)
        self._send(codec.dumps(request), clock)
        return self._reply(clock)

    def call(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> Any:
        """Return the value of a function call in the loaded program.

        Raises RuntimeError with the program's exception, else as `ask`. The program has `seconds` for the call, and as
        many again and ten more for sending its value. (A program that forges the message between the two gains that
        time.)
        """
        self.ask({"target": target, "args": args, "kwargs": kwargs}, seconds)
        return _value(self._reply(self.clock(seconds + 10)))

    def calls(self, target: str, inputs: Sequence[Any], seconds: Sequence[float]) -> Iterator[Any]:
        """Yield the value of a function of the loaded program for each of its inputs, as `call` returns it.

        The program receives inputs ahead of the values taken, as long as the inputs have the same limit.
        """
        start = 0
        while start < len(inputs):
            limit, end = seconds[start], start + 1
            while end < len(inputs) and seconds[end] == limit:
                end += 1
            request = {"calls": target, "inputs": list(inputs[start:end])}
            self._send(codec.dumps(request), self.clock(limit + 10))
            for _ in range(start, end):
                reply = self._reply_at_hand()
                if reply is None:
                    reply = self._reply(self.clock(limit))
                yield _value(reply)
            start = end

    def _reply_at_hand(self) -> dict[str, Any] | None:
        """Return the next reply if all of it has arrived, else None."""
        there = len(self._buffer)
        if there < codec.HEADER or there < codec.HEADER + codec.length(self._buffer[: codec.HEADER]):
            return None
        # The reply is here, so no time is needed.
        return self._reply(_NO_TIME)

    def _reply(self, clock: codec.Clock) -> dict[str, Any]:
        size = codec.length(self._receive(codec.HEADER, clock))
        if size > MAX_REPLY:
            raise Flooded(f"more than {MAX_REPLY >> 20} MiB came back")
        try:
            reply = codec.loads(self._receive(size, clock))
        except ValueError as error:
            raise Ended(f"it wrote into the grader's pipe ({error})") from None
        if not isinstance(reply, dict) or any(type(reply[k]) is not kind for k, kind in _TYPES.items() if k in reply):
            raise Ended("it wrote into the grader's pipe")
        return reply

    def _send(self, data: bytes, clock: codec.Clock) -> None:
        view, descriptor = memoryview(data), self._to
        while view:
            _wait([], [descriptor], clock)
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Ended("the program ended its process") from None

    def _receive(self, size: int, clock: codec.Clock) -> bytes:
        while len(self._buffer) < size:
            _wait([self._from], [], clock)
            try:
                part = os.read(self._from, 1 << 20)
            except BlockingIOError:
                continue
            if not part:
                raise Ended("the program ended its process")
            self._buffer += part
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data


def _value(reply: dict[str, Any]) -> Any:
    if "value" not in reply:
        raise RuntimeError(str(reply.get("raised", "no value")))
    return reply["value"]


def _wait(readable: list[int], writable: list[int], clock: codec.Clock) -> None:
    while (left := clock.left()) > 0:
        if any(select.select(readable, writable, [], left)):
            return
    raise OutOfTime("out of time")


def _last_descendant(pid: int) -> int | None:
    """Return the process at the end of a line of only children; None if that cannot be read (not Linux)."""
    try:
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
    except (OSError, ValueError):
        return None
    return pid


def _descendants(pid: int) -> Iterator[int]:
    """Yield all processes below `pid`, until a look finds no new one."""
    import psutil

    seen: set[int] = set()
    with suppress(psutil.Error):
        while new := [p.pid for p in psutil.Process(pid).children(recursive=True) if p.pid not in seen]:
            seen.update(new)
            yield from new


@cache
def refusal(level: Level) -> str | None:
    """Return the reason why a level is unavailable here, or None; runs a program in it to find out."""
    try:
        with Sandbox(level, Limits(4 << 30, 30)):
            return None
    except FileNotFoundError as error:
        return f"{error.filename} is not installed"
    except SandboxError as error:
        return str(error)


def choose_level(wanted: Level | Literal["auto"]) -> Level:
    """Return the level asked for, or with `auto` the strongest available.

    Raises InputError if the level asked for is unavailable.
    """
    if wanted == "auto":
        return next(level for level in LEVELS if level == "limits" or refusal(level) is None)
    reason = refusal(wanted)
    if reason is not None:
        raise InputError(
            f"{flag('sandbox')} {wanted}: {reason}",
            "a level this machine allows",
            f"leave {flag('sandbox')} out, or take another",
        )
    return wanted


def described(wanted: Level | Literal["auto"]) -> str:
    """Return the level that programs run in and, with `auto`, why no stronger one is available; see `choose_level`."""
    level = choose_level(wanted)
    if wanted != "auto":
        return level
    passed = LEVELS[: LEVELS.index(level)]
    return "; ".join([level, *(f"{stronger} is unavailable: {refusal(stronger)}" for stronger in passed)])
