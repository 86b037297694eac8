"""Running a node of a graph: one process a stage, with its log and its peak memory.

Memory is the larger of the kernel's peak of the stage's own process and of what its whole process tree held when looked
at, once a second; pages that processes share count for each of them. GPU memory is not looked at.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trd_cli.locks import sign
from trd_cli.recipes.lanes import PATIENCE, kill_tree
from trd_cli.recipes.nodes import NODES, Graph, Node
from trd_cli.redaction import scrubbed

# The process that a stage ends with; read by the command line when it starts.
PARENT_VARIABLE = "TRD_RUN_PID"
_LOOK = 1.0  # seconds between two looks at the memory of a stage's processes
_TAIL = 8192
_ERROR = re.compile(r"^trd [\w-]+: error: ")
_PROGRESS = re.compile(r"^trd [\w -]+: (?P<what>\S.*?) (?P<done>\d+)/(?P<total>\d+) · (?P<rest>.*)$")
_TOTAL = re.compile(r"^trd [\w -]+: (?P<total>\d+) rows?(?:, (?P<done>\d+) done before)?$")


def command_of(graph: Graph, node: Node, more: Sequence[str] = ()) -> list[str]:
    """The command line of a node, with absolute paths;

    training is launched by torchrun where the recipe asks for processes.
    """
    root = graph.directory.resolve()
    words = [str(root / word) if word.startswith(f"{NODES}/") else word for word in node.argv]
    program = ["-m", "trd_cli"]
    if node.stage == "distill" and graph.recipe.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        program = [*launcher, str(graph.recipe.processes), *program]
    return [sys.executable, *program, *words, *more]


class StageProcess:
    """A node's command in a process and a session of its own;

    standard error goes to its log, which grows from run to run.
    """

    def __init__(self, graph: Graph, node: Node, lock: IO[str], more: Sequence[str] = ()) -> None:
        """`lock` (from `stage_lock`) is inherited, so that it is held for as long as the stage lives."""
        words = command_of(graph, node, more)
        self.log = graph.directory / node.log
        self.log.parent.mkdir(exist_ok=True)
        self.peak, self.exit_code = 0, None
        self._began, self._looked = time.monotonic(), 0.0
        # Its log is read back as UTF-8, whatever the user's terminal has.
        environment = dict(os.environ) | {"PYTHONIOENCODING": "utf-8"}
        # A launcher's processes are not children of this one, and the launcher itself would not hear.
        launched = node.stage == "distill" and graph.recipe.processes > 1
        self._ends_with_run = sys.platform.startswith("linux") and not launched
        if self._ends_with_run:
            environment[PARENT_VARIABLE] = str(os.getpid())
        with open(self.log, "ab") as log:
            typed = shlex.join(words[words.index("trd_cli") + 1 :])
            log.write(os.fsencode(f"$ trd {scrubbed(typed)}\n"))
            log.flush()
            self._start = log.tell()
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        sign(lock, self._process.pid, {"node": node.name, "ends_with_run": self._ends_with_run})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def poll(self) -> int | None:
        """The exit code, None while it runs; negative for the signal that ended it."""
        if self.exit_code is not None:
            return self.exit_code
        try:
            pid, state, usage = os.wait4(self._process.pid, os.WNOHANG)
        except ChildProcessError:  # an interruption fell between its end and the record of it
            self.exit_code = self._process.returncode = -signal.SIGTERM
            return self.exit_code
        if pid:
            self.exit_code = self._process.returncode = os.waitstatus_to_exitcode(state)
            unit = 1 if sys.platform == "darwin" else 1024
            self.peak = max(self.peak, usage.ru_maxrss * unit)
        elif self.seconds - self._looked > _LOOK:
            self._looked = self.seconds
            self.peak = max(self.peak, _resident(self._process.pid))
        return self.exit_code

    def stop(self) -> None:
        """Tell it to stop and wait until it has written what it has finished;

        a second Ctrl-C, or ten minutes, end it.
        """
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        try:
            while self.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
        finally:
            if self.poll() is None:
                kill_tree(self._process.pid)
                while self.poll() is None:
                    time.sleep(0.02)

    def last_line(self) -> str:
        """The last error that this invocation told in its log, else its last line.

        A launcher writes a report below the error.
        """
        lines = [line for line in reversed(_tail(self.log, self._start)) if line.strip()]
        return next((line for line in lines if _ERROR.match(line)), lines[0] if lines else "")

    def progress(self) -> Progress | None:
        """How far it is, by its own last word on it."""
        return progress_in(_tail(self.log, self._start))


@dataclass(frozen=True)
class Progress:
    """Rows done of `total`, and the rates and time left as the stage tells them."""

    done: int
    total: int
    rest: str = ""


def progress_in(lines: Sequence[str]) -> Progress | None:
    """The last progress line in a stage's log (see `console.ConsoleReport`), None where there is none yet."""
    for line in reversed(lines):
        if found := _PROGRESS.match(line) or _TOTAL.match(line):
            named = found.groupdict()
            return Progress(int(named["done"] or 0), int(named["total"]), named.get("rest") or "")
    return None


def _tail(log: Path, start: int) -> list[str]:
    """The last lines of a log after its first `start` bytes."""
    with open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL))
        return file.read().decode("utf-8", "replace").splitlines()


def _resident(pid: int) -> int:
    """Bytes that a process and all below it hold in memory now."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total
