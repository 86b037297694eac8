"""A process that runs a program nobody has read, and what keeps it in.

Levels, the strongest first (`inside/jail.py` has the mechanics):

namespaces  Linux, no other software needed: no network, a file system of the Python installation (read-only) and an empty /tmp
            (where the installation lies there, an empty /tmp/work), no sight of other processes, no user rights but
            those of nobody where trd runs as root; the process tree ends whole.
bwrap       the same by bubblewrap, where that is installed and the kernel lets it.
limits      what remains elsewhere (macOS, containers that forbid namespaces): a session and an empty directory of its own, an
            environment without the user's variables, limits on memory, CPU, file size, processes and open files. Files
            of the user and the network can be reached.

In all of them the program is told inputs only; expected results stay outside, in the process that compares. Not
covered: faults of the kernel, side channels, memory of many processes together (each has its own limit), and with
`limits` or as root with `bwrap` the number of processes. A program in `limits` may also look into the user's other
processes, and one that kills what watches it can leave processes behind.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

from trd_cli.errors import InputError
from trd_cli.graders import parents
from trd_cli.graders.inside import codec

Level = Literal["namespaces", "bwrap", "limits"]
LEVELS: tuple[Level, ...] = get_args(Level)
MAX_REPLY = 512 << 20
_INSIDE = Path(__file__).parent / "inside"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/alternatives", "/nix/store")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Verdicts must not depend on the order in which a set of strings happens to come.
    "PYTHONHASHSEED": "0",
}
# Of what a runner replies besides values; a reply of others is none of its own.
_TYPES = {"raised": str, "stdout": str, "fault": str, "late": bool, "flooded": bool, "status": int}
_NO_TIME = codec.Clock(None, 0.0)
_FILE_SIZE, _PROCESSES = 256 << 20, 64
_START_SECONDS = 30.0


class SandboxError(Exception):
    """The sandbox itself failed: a row graded in it is an `error`."""


class Ended(Exception):
    """The program ended the process that ran it."""


class OutOfTime(Exception):
    """No reply within the time given."""


class Flooded(Exception):
    """A reply of more than `MAX_REPLY` bytes."""


@dataclass(frozen=True)
class Limits:
    """Of each process in a sandbox: `memory` in bytes of address space, `seconds` of CPU."""

    memory: int
    seconds: int


class Sandbox:
    """A runner (`inside/runner.py`) in a sandbox; use as a context manager, which ends all its processes."""

    def __init__(self, level: Level, limits: Limits, asked: Sandbox | None = None) -> None:
        """Test programs that run in here ask the program in `asked`, which then answers no one else."""
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
            # A slow start is not the program's fault: its time begins only now.
            reply = self.ask({"load": "", "prelude": False}, _START_SECONDS)
        except (Ended, OutOfTime) as failure:
            self.__exit__()
            raise SandboxError(f"the sandbox ({self._level}) did not start: {failure}") from None
        except BaseException:
            self.__exit__()
            raise
        # Only now: what comes later may be the program's own invention.
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
            if self._level == "bwrap":
                self._ends = _started(self._level, self._limits, self._root, (theirs_in, theirs_out), other)
            else:
                self._ends = _forked(self._level, self._limits, self._root, (theirs_in, theirs_out, *other))
        except BaseException:
            self._close_pipes()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._pid = self._ends.pid
        self._set_blocking(False)

    def clock(self, seconds: float) -> codec.Clock:
        """The time of the process that runs the program, from now;

        of one that mostly waits for another sandbox, by the clock.
        """
        return codec.Clock(None if self._asked else self._runner, seconds)

    def hand_over(self) -> tuple[int, int]:
        """The descriptors to read from and to write to, for another process."""
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
        self._ends.end()
        self._close_pipes()
        shutil.rmtree(self._root, ignore_errors=True)

    def ask(self, request: Any, seconds: float) -> dict[str, Any]:
        """The reply to one request; raises Ended, OutOfTime, Flooded. For `seconds` see `inside.codec.Clock`."""
        clock = self.clock(seconds)
        self._send(codec.dumps(request), clock)
        return self._reply(clock)

    def call(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> Any:
        """What a function of the loaded program returns; raises RuntimeError with what it raised, else as `ask`.

        The seconds are the program's own; for sending its value there are as many again, and ten more. (A program that
        forges the message between the two gains that time.)
        """
        self.ask({"target": target, "args": args, "kwargs": kwargs}, seconds)
        reply = self._reply(self.clock(seconds + 10))
        if "value" not in reply:
            raise RuntimeError(str(reply.get("raised", "no value")))
        return reply["value"]

    def calls(self, target: str, inputs: Sequence[Any], seconds: Sequence[float]) -> Iterator[Any]:
        """Yield what a function of the loaded program returns for each of the inputs (its arguments), as `call` does.

        The program is given inputs ahead of those whose value was taken, as long as they have the same limit.
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
                if "value" not in reply:
                    raise RuntimeError(str(reply.get("raised", "no value")))
                yield reply["value"]
            start = end

    def _reply_at_hand(self) -> dict[str, Any] | None:
        """The next reply where it has come whole already."""
        there = len(self._buffer)
        if there < codec.HEADER or there < codec.HEADER + codec.length(self._buffer[: codec.HEADER]):
            return None
        # What is there is waited for no longer.
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


@dataclass(frozen=True)
class _Process:
    """A process that keeps its number until it is ended."""

    pid: int
    end: Callable[[], None]


def _forked(level: Level, limits: Limits, root: str, descriptors: Sequence[int]) -> _Process:
    """A sandbox forked from this process's parent of sandboxes."""
    try:
        parent, pid = parents.forked(_python(), _ENVIRONMENT, _options(level, limits, root), descriptors)
    except parents.ParentGone as failure:
        raise SandboxError(str(failure)) from None
    return _Process(pid, partial(parent.end, pid))


def _started(level: Level, limits: Limits, root: str, pipes: tuple[int, int], other: Sequence[int]) -> _Process:
    """A sandbox that is a program of its own."""
    options = _options(level, limits, root) | {"other": list(other)}
    process = subprocess.Popen(
        [*_bwrap(), *_python(), json.dumps(options)],
        stdin=pipes[0],
        stdout=pipes[1],
        stderr=subprocess.DEVNULL,
        env=_ENVIRONMENT,
        cwd="/",
        pass_fds=other,
        start_new_session=True,
    )

    def end() -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()

    return _Process(process.pid, end)


def _wait(readable: list[int], writable: list[int], clock: codec.Clock) -> None:
    while (left := clock.left()) > 0:
        if any(select.select(readable, writable, [], left)):
            return
    raise OutOfTime("out of time")


def _last_descendant(pid: int) -> int | None:
    """The process at the end of a line of only children; None where that cannot be read (not Linux)."""
    try:
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
    except (OSError, ValueError):
        return None
    return pid


def _descendants(pid: int) -> Iterator[int]:
    """All processes below `pid`, until a look finds none that was not there before."""
    import psutil

    seen: set[int] = set()
    with suppress(psutil.Error):
        while new := [p.pid for p in psutil.Process(pid).children(recursive=True) if p.pid not in seen]:
            seen.update(new)
            yield from new


@cache
def _shown() -> tuple[str, ...]:
    """What a program may read: the system's libraries and the Python installation, none below another."""
    wanted = [*_SYSTEM, sys.base_prefix, sys.prefix, *_site()]
    there = [path for path in dict.fromkeys(wanted) if os.path.lexists(path)]
    return tuple(path for path in there if not any(path != other and path.startswith(f"{other}/") for other in there))


@cache
def _site() -> tuple[str, ...]:
    """The directories of installed packages: a program may import what a solution commonly uses, as numpy."""
    found = [*site.getsitepackages(), *(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))]
    return tuple(path for path in dict.fromkeys(found) if os.path.isdir(path))


@cache
def _work() -> str:
    """The empty directory in which programs work where the file system is closed:

    beside an installation that lies in `/tmp`.
    """
    return "/tmp/work" if any(path.startswith("/tmp/") for path in _shown()) else "/tmp"


def _options(level: Level, limits: Limits, root: str) -> dict[str, Any]:
    work = root if level == "limits" else _work()
    return {
        "level": level,
        "root": work if level == "bwrap" else root,
        "work": work,
        "shown": _shown(),
        "site": _site(),
        "memory": limits.memory,
        "file_size": _FILE_SIZE,
        "processes": None if level == "limits" else _PROCESSES,
        "seconds": limits.seconds,
        "environment": {} if work == "/tmp" else {"HOME": work, "TMPDIR": work},
    }


def _python() -> list[str]:
    return [sys.executable, "-s", "-S", "-P", "-B", str(_INSIDE / "jail.py")]


def _bwrap() -> list[str]:
    shown = [*_shown(), str(_INSIDE)]
    binds = [word for path in shown for word in ("--ro-bind", path, path)]
    closed = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    # The empty directory comes before what is shown, which may lie below it.
    empty = ["--size", str(_FILE_SIZE), "--tmpfs", "/tmp", "--dir", _work(), "--dev", "/dev", "--proc", "/proc"]
    sealed = ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", _work(), "--"]
    return [shutil.which("bwrap") or "bwrap", *closed, *empty, *binds, *sealed]


@cache
def refusal(level: Level) -> str | None:
    """Why a level is not to be had here, or None where it is: a program is run in it to see."""
    try:
        with Sandbox(level, Limits(4 << 30, 30)):
            return None
    except FileNotFoundError as error:
        return f"{error.filename} is not installed"
    except SandboxError as error:
        return str(error)


def choose_level(wanted: Level | Literal["auto"]) -> Level:
    """The level asked for, or with `auto` the strongest there is;

    InputError where the one asked for is not to be had.
    """
    if wanted == "auto":
        return next(level for level in LEVELS if level == "limits" or refusal(level) is None)
    reason = refusal(wanted)
    if reason is not None:
        raise InputError(
            f"--sandbox {wanted}: {reason}", "a level this machine allows", "leave --sandbox out, or take another"
        )
    return wanted


def described(wanted: Level | Literal["auto"]) -> str:
    """Return the level that programs run in, in words, and with `auto` why no stronger one is to be had;

    see `choose_level`.
    """
    level = choose_level(wanted)
    if wanted != "auto":
        return level
    passed = LEVELS[: LEVELS.index(level)]
    return "; ".join([level, *(f"{stronger} is not to be had: {refusal(stronger)}" for stronger in passed)])
