"""Child processes of this package's own, each with a pipe to this process.

A child is the leader of a process group, in which its own children are too. The whole group, and every process below
the child, is killed when this process lets the child go, and by the child itself when the pipe breaks, however this
process ended. Ctrl-C in a terminal
reaches this process alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import trd_cli

_LAST_LINES, _LONGEST_LINE = 20, 300
_PR_SET_CHILD_SUBREAPER = 36
# Seconds for the last lines of a process that has ended.
_LAST_WORDS = 1.0


class Child:
    """A process that runs a module of this package as a program; `pipe` leads to it."""

    def __init__(self, module: str, variables: Mapping[str, str], tell: Callable[[str], None]) -> None:
        """Start the process with these variables; a thread calls `tell` with each line that it writes."""
        self.pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**variables, "PYTHONPATH": _path_to_here(variables)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self._tell = tell
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._process.stdout as lines:
            for raw in lines:
                line = raw.decode(errors="replace").strip()[:_LONGEST_LINE]
                if line:
                    self._tell(line)
                    self._last.append(line)

    def kill(self) -> None:
        """Kill the process and all below it now; may be called from any thread."""
        if self._process.returncode is None:
            _kill_below(self._process.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, patience: float = 0.0) -> str:
        """Wait for the process so many seconds, kill its group, and return how it ended, with its last line."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self.kill()
        code = self._process.wait()
        self._reader.join(_LAST_WORDS)
        self.pipe.close()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {self._last[-1]}" if self._last else how


def _path_to_here(variables: Mapping[str, str]) -> str:
    """Return a module path that has this package."""
    return os.pathsep.join(filter(None, (str(Path(trd_cli.__file__).parents[1]), variables.get("PYTHONPATH", ""))))


def pipe_to_parent() -> Connection:
    """Return the pipe of this process, a `Child`, to the process that started it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    os.set_inheritable(pipe.fileno(), False)
    # A process that this one forks must not keep the pipe open when this one has died.
    os.register_at_fork(after_in_child=pipe.close)
    return pipe


def adopt_orphans() -> None:
    """Keep processes below this one when their parents end, on Linux, so that they are found and killed with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_group() -> None:
    """Kill this process, a `Child`, and all below it."""
    try:
        _kill_below(os.getpid())
    finally:
        os.killpg(os.getpid(), signal.SIGKILL)


def _kill_below(pid: int) -> None:
    """Kill the processes below one; those that left its group too."""
    import psutil

    with suppress(psutil.Error):
        for each in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                each.kill()
