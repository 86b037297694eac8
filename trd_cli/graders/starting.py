"""Start and end the processes of a sandbox.

A sandbox is forked from a parent that has loaded what every sandbox needs, so that no row pays for a start of Python. A
parent never meets a program, an input or a result: it gets a description of the sandbox and the descriptors of its
pipes, forks, and waits for the next message. Each process that grades has one parent, which ends with it and is started
again if something else ended it. With bubblewrap a sandbox is a program of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

Level = Literal["namespaces", "bwrap", "limits"]
_INSIDE = Path(__file__).parent / "inside"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/alternatives", "/nix/store")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Verdicts must not depend on the order of a set of strings.
    "PYTHONHASHSEED": "0",
}
_FILE_SIZE, _PROCESSES = 256 << 20, 64
_PARENT_SECONDS = 60.0


class SandboxError(Exception):
    """The sandbox itself failed: a row graded in it is an `error`."""


@dataclass(frozen=True)
class Limits:
    """The limits of each process in a sandbox: `memory` in bytes of address space, `seconds` of CPU time."""

    memory: int
    seconds: int


@dataclass(frozen=True)
class Process:
    """A process whose number stays its own until `end` is called."""

    pid: int
    end: Callable[[], None]


def start(level: Level, limits: Limits, root: str, descriptors: Sequence[int]) -> Process:
    """Return a new sandbox that works in the empty directory `root`; raises SandboxError.

    `descriptors` are those that it reads from and writes to, then optionally the two of another sandbox that it asks.
    """
    if level == "bwrap":
        return _run_bwrap(limits, root, descriptors)
    try:
        parent, pid = _fork(_options(level, limits, root), descriptors)
    except _ParentGone as failure:
        raise SandboxError(str(failure)) from None
    return Process(pid, partial(parent.end, pid))


def _run_bwrap(limits: Limits, root: str, descriptors: Sequence[int]) -> Process:
    source, target, *other = descriptors
    options = _options("bwrap", limits, root) | {"other": other}
    process = subprocess.Popen(
        [*_bwrap(), *_python(), json.dumps(options)],
        stdin=source,
        stdout=target,
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

    return Process(process.pid, end)


class _ParentGone(Exception):
    """The parent has ended or does not answer."""


class _Parent:
    """A parent of sandboxes (`inside/jail.py`)."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                _python(),
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        self._channel, self._lock = ours, threading.Lock()
        ours.settimeout(_PARENT_SECONDS)

    def fork(self, options: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        """Return the number of a new sandbox; raises _ParentGone."""
        answer = self._exchange(options, descriptors)
        if not answer.isdigit():
            raise _ParentGone("the sandboxes' parent does not answer")
        return int(answer)

    def end(self, child: int) -> None:
        """End a process that was forked and wait until it has ended; if the parent is gone, so are its children."""
        with suppress(_ParentGone):
            self._exchange({"end": child})

    def _exchange(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> bytes:
        data, answer = json.dumps(message).encode() + b"\n", b""
        try:
            with self._lock:
                # The descriptors travel with the first byte.
                sent = socket.send_fds(self._channel, [data], list(descriptors))
                self._channel.sendall(data[sent:])
                while not answer.endswith(b"\n"):
                    part = self._channel.recv(100)
                    if not part:
                        raise _ParentGone("the sandboxes' parent has ended")
                    answer += part
        except OSError as error:
            raise _ParentGone(f"the sandboxes' parent does not answer ({error})") from None
        return answer.strip()

    def close(self) -> None:
        """End the parent."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


_parents: dict[int, _Parent] = {}


def _fork(options: Mapping[str, Any], descriptors: Sequence[int]) -> tuple[_Parent, int]:
    """Return this process's parent of sandboxes and the number of a new sandbox.

    Raises _ParentGone if a freshly started parent is gone too.
    """
    parent = _parents.get(os.getpid())
    if parent is not None:
        try:
            return parent, parent.fork(options, descriptors)
        except _ParentGone:
            parent.close()
    # A parent of the process that this one was forked from is not ours.
    _parents.clear()
    parent = _parents[os.getpid()] = _Parent()
    return parent, parent.fork(options, descriptors)


@cache
def _visible() -> tuple[str, ...]:
    """Return the paths a program may read, none below another: the system's libraries and the Python installation."""
    wanted = [*_SYSTEM, sys.base_prefix, sys.prefix, *_site()]
    there = [path for path in dict.fromkeys(wanted) if os.path.lexists(path)]
    return tuple(path for path in there if not any(path != other and path.startswith(f"{other}/") for other in there))


@cache
def _site() -> tuple[str, ...]:
    """Return the directories of installed packages: solutions import some of them, such as numpy."""
    found = [*site.getsitepackages(), *(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))]
    return tuple(path for path in dict.fromkeys(found) if os.path.isdir(path))


@cache
def _work() -> str:
    """Return the empty directory in which programs work where the file system is closed.

    It is `/tmp`, or a directory beside the installation if that lies in `/tmp`.
    """
    return "/tmp/work" if any(path.startswith("/tmp/") for path in _visible()) else "/tmp"


def _options(level: Level, limits: Limits, root: str) -> dict[str, Any]:
    work = root if level == "limits" else _work()
    return {
        "level": level,
        "root": work if level == "bwrap" else root,
        "work": work,
        "shown": _visible(),
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
    visible = [*_visible(), str(_INSIDE)]
    binds = [word for path in visible for word in ("--ro-bind", path, path)]
    closed = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    # The empty directory is mounted before the visible paths, which may lie below it.
    empty = ["--size", str(_FILE_SIZE), "--tmpfs", "/tmp", "--dir", _work(), "--dev", "/dev", "--proc", "/proc"]
    sealed = ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", _work(), "--"]
    return [shutil.which("bwrap") or "bwrap", *closed, *empty, *binds, *sealed]
