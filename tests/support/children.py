"""Start child processes that hear signals as if a person had started them in a terminal.

A shell starts its background jobs with SIGINT ignored, and nohup its command with SIGHUP ignored. A child ignores the
same signals as its parent, so a suite in the background would pass that on to every process it starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEARD = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

# It becomes the command, so that the command has the process id that was started.
_BECOME = """
import os, signal, sys
default, ignored, *command = sys.argv[1:]
signal.pthread_sigmask(signal.SIG_SETMASK, ())
for numbers, what in ((default, signal.SIG_DFL), (ignored, signal.SIG_IGN)):
    for number in filter(None, numbers.split(",")):
        signal.signal(int(number), what)
os.execvp(command[0], command)
"""


def start_child(
    words: Iterable[object], *, ignored: Iterable[signal.Signals] = (), **options: Any
) -> subprocess.Popen[Any]:
    """Start a command with the default handling of signals, except for those `ignored`; `options` are Popen's.

    A word that is not text is passed as bytes.
    """
    numbers = (",".join(str(int(number)) for number in each) for each in (HEARD, ignored))
    command = (word if isinstance(word, bytes) else str(word) for word in words)
    return subprocess.Popen([sys.executable, "-ISc", _BECOME, *numbers, *command], **options)


# Fork commands of trd from one process with the modules loaded: a signal hits the work and not Python's start, and a
# command of torch starts in a moment and not in seconds.
_FORKING = """
import json, os, signal, sys
{modules}
from trd_cli.cli import app

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        for number in order["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        os.environ.update(order["variables"])
        for descriptor, name in enumerate((os.devnull, order["stdout"], order["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
        app(order["args"])
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Run:
    """A command in a session of its own; `pid` names the session too. Its parent reaps it as soon as it ends."""

    def __init__(
        self,
        parent: subprocess.Popen[str],
        directory: Path,
        args: list[str],
        ignored: Iterable[signal.Signals] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.stdout, self.stderr = directory / "stdout", directory / "stderr"
        for path in (self.stdout, self.stderr):
            path.write_text("")  # without the output of the run before
        order = {"args": args, "stdout": str(self.stdout), "stderr": str(self.stderr)}
        order |= {"ignored": [int(number) for number in ignored], "variables": dict(variables or {})}
        self._parent = parent
        parent.stdin.write(json.dumps(order) + "\n")
        parent.stdin.flush()
        self.pid = int(parent.stdout.readline())

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the command alone, wait for its end, and return the exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        return int(self._parent.stdout.readline())


Start = Callable[..., Run]


@contextmanager
def forking(modules: str, directory: Path, env: Mapping[str, str] | None = None) -> Iterator[Start]:
    """Yield a function that starts a trd command from a process that has run these import lines; end what is left.

    The command has the environment `env`, or that of the tests, and the `variables` of its start; of these, none may be
    one that is read when a module is imported.
    """
    parent = start_child(
        [sys.executable, "-c", _FORKING.format(modules=modules)],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    sessions: list[int] = []

    def run(*args: object, ignored: Iterable[signal.Signals] = (), variables: Mapping[str, str] | None = None) -> Run:
        started = Run(parent, directory, [str(a) for a in args], ignored, variables)
        sessions.append(started.pid)
        return started

    yield run
    parent.stdin.close()
    parent.wait()
    for pid in (pid for session in sessions for pid in alive(session)):
        os.kill(pid, signal.SIGKILL)


def alive(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def gone(sessions: list[int], seconds: float) -> bool:
    """Return True if all processes of the sessions end within so many seconds."""
    until = time.monotonic() + seconds
    while any(alive(session) for session in sessions):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return as soon as a condition holds; fail if it does not within so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.02)
