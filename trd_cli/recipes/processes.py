"""The processes of a run: one for each stage, with its log, its events and its peak memory, and the locks around them.

.lock     held by trd run itself: one at a time in a directory
.stage    held by the stage that runs. It outlives a trd run that is killed; the next one waits for its end, or ends it,
          before it starts any other
.events   facts that the stage tells (see `progress`)

Memory is the larger of the kernel's peak of the stage's own process and of the sum over its process tree, taken once a
second; pages that processes share count for each of them. Not covered: GPU memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from trd_cli.atomic import make_directory
from trd_cli.errors import ResumeRefused
from trd_cli.locks import hold, holder, sign, signature, take
from trd_cli.progress import EVENTS_VARIABLE, PARENT_VARIABLE, Work
from trd_cli.recipes.nodes import NODES, Graph, Node
from trd_cli.redaction import scrubbed

# The process that a stage ends with; read by the command line when it starts.
_LOOK = 1.0  # seconds between two looks at the memory of a stage's processes
_TAIL = 8192
# Seconds that a stage has to end its step and to write what it has finished, once it must stop.
_PATIENCE = 600.0
_GRACE = 5.0  # seconds for a stage that ends by itself


def command_of(graph: Graph, node: Node, more: Sequence[str] = ()) -> list[str]:
    """Return the command line of a node with absolute paths, by torchrun if the recipe asks for several processes."""
    root = graph.directory.resolve()
    words = [str(root / word) if word.startswith(f"{NODES}/") else word for word in node.argv]
    program = ["-m", "trd_cli"]
    if node.stage == "distill" and graph.recipe.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        program = [*launcher, str(graph.recipe.processes), *program]
    return [sys.executable, *program, *words, *more]


class StageProcess:
    """A node's command in a process and a session of its own. Standard error is appended to the node's log."""

    def __init__(self, graph: Graph, node: Node, lock: IO[str], more: Sequence[str] = ()) -> None:
        """Start the process. It inherits `lock` (from `stage_lock`), which is held for as long as the stage lives."""
        words = command_of(graph, node, more)
        self.log = graph.directory / node.log
        self.log.parent.mkdir(exist_ok=True)
        self.peak, self.exit_code = 0, None
        self._work: Work | None = None
        self._error: str | None = None
        self._began, self._looked = time.monotonic(), 0.0
        self._events, self._heard = graph.directory.resolve() / ".events", 0
        self._events.write_bytes(b"")
        # The log is read back as UTF-8, whatever the user's terminal has.
        environment = os.environ | {"PYTHONIOENCODING": "utf-8", EVENTS_VARIABLE: str(self._events)}
        # The processes of a launcher are not children of this one, and the launcher itself would not notice its death.
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
        """Return the exit code, negative for a signal that ended the process, or None while it runs."""
        if self.exit_code is not None:
            return self.exit_code
        try:
            pid, state, usage = os.wait4(self._process.pid, os.WNOHANG)
        except ChildProcessError:  # an interruption came between its end and the record of it
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
        """Stop the stage; wait until it has written what it has finished. A second Ctrl-C, or ten minutes, kill it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        until = time.monotonic() + _PATIENCE
        try:
            while self.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
        finally:
            if self.poll() is None:
                _kill_tree(self._process.pid)
                while self.poll() is None:
                    time.sleep(0.02)

    def progress(self) -> Work | None:
        """Return the piece of work that the stage is at, or None before it has begun one."""
        self._listen()
        return self._work

    def failure(self) -> str:
        """Return the error that ended the stage, or the last line of its log if there was none, as after a kill."""
        self._listen()
        return self._error or next((line for line in reversed(_tail(self.log, self._start)) if line.strip()), "")

    def _listen(self) -> None:
        """Take in the events since the last call."""
        with open(self._events, "rb") as file:
            file.seek(self._heard)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    return
                self._heard += len(line)
                with contextlib.suppress(ValueError, TypeError):  # a full disk cut it off
                    event = json.loads(line)
                    self._error = event.get("error", self._error)
                    self._work = Work(**event["work"]) if "work" in event else self._work


def _tail(log: Path, start: int) -> list[str]:
    """Return the last lines of a log after its first `start` bytes."""
    with open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL))
        return file.read().decode("utf-8", "replace").splitlines()


def _resident(pid: int) -> int:
    """Return the bytes of memory that a process and its descendants hold now."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory. Raises ResumeRefused while another trd run holds it."""
    make_directory(directory)
    with hold(directory / ".lock") as is_ours:
        if not is_ours:
            raise ResumeRefused(f"{directory} is in use by another trd run", "one at a time", "wait for it to end")
        yield


@contextlib.contextmanager
def stage_lock(directory: Path, note: Callable[[str], None]) -> Iterator[IO[str]]:
    """Yield the file that each stage holds while it runs. A stage that a killed run left behind is ended first."""
    with open(directory / ".stage", "a+", encoding="utf-8") as file:
        if not take(file):
            _end_left_behind(file, note)
        yield file


def _end_left_behind(file: IO[str], note: Callable[[str], None]) -> None:
    """Stop a stage, unless the death of its run does, and wait until it has written what it has finished."""
    import psutil

    left, process = signature(file), holder(file)
    note(f"waiting for the end of {left.get('node', 'a stage')}, which an earlier run has left behind")
    if process is not None and not left.get("ends_with_run"):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    if _locked_within(file, _PATIENCE):
        return
    if process is not None:
        _kill_tree(process.pid)
    if not _locked_within(file, _GRACE):
        raise ResumeRefused("a stage of an earlier trd run does not end", "none", "end its processes, then run again")


def _locked_within(file: IO[str], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not take(file):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _kill_tree(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                each.kill()
