"""The processes of a run: one for each stage, with its log, its events and its peak memory, and the locks around them.

.lock                  held by trd run itself: one at a time in a directory
.stages/NODE.lock      held by a stage that runs. It outlives a trd run that is killed; the next one waits for its end,
                       or ends it, before it starts any other
.stages/NODE.events    facts that the stage tells (see `progress`)

Memory is the larger of the kernel's peak of the stage's own process and of the sum over its process tree, taken once a
second; pages that processes share count for each of them. Not covered: GPU memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from trd_cli.atomic import make_directory
from trd_cli.errors import ResumeRefused
from trd_cli.locks import flock, hold, holder, sign, signature, take
from trd_cli.progress import EVENTS_VARIABLE, PARENT_VARIABLE, Work
from trd_cli.recipes.nodes import NODES, Graph, Node
from trd_cli.recipes.recipe import Recipe
from trd_cli.redaction import scrubbed

_STAGES = ".stages"
_LOOK = 1.0  # seconds between two looks at the memory of a stage's processes
_TAIL = 8192
# Seconds that a stage has to end its step and to write what it has finished, once it must stop.
_PATIENCE = 600.0
_GRACE = 5.0  # seconds for a stage that ends by itself
_PORTS = 29600  # the first of those at which machines meet
_JOINED_WITHIN = 24 * 3600  # seconds, for a person who starts the other machines


def command_of(graph: Graph, node: Node, more: Sequence[str] = ()) -> list[str]:
    """Return the command line of a node with absolute paths, by torchrun if the recipe asks for several processes.

    In a Slurm job srun starts it on all machines that the recipe asks for.
    """
    root = graph.directory.resolve()
    words = [str(root / word) if word.startswith(f"{NODES}/") else word for word in node.argv]
    by_slurm = ["srun", "--nodes", str(graph.recipe.nodes), "--ntasks-per-node", "1"] if _in_slurm() else []
    launcher = _torchrun(graph.recipe, node)
    return [*(by_slurm if _on_several(graph, node) else []), sys.executable, *launcher, "-m", "trd_cli", *words, *more]


def _torchrun(recipe: Recipe, node: Node) -> list[str]:
    if node.stage != "distill" or recipe.processes * recipe.nodes == 1:
        return []
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(recipe.processes)]
    if recipe.nodes == 1:
        return [*torchrun, "--standalone"]
    # The same words on every machine: the one that they name lets the others meet.
    port = _PORTS + zlib.crc32(node.name.encode()) % 1000
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{platform.node()}:{port}", "--rdzv-id", node.name]
    return [*torchrun, "--nnodes", str(recipe.nodes), *meeting, "--rdzv-conf", f"join_timeout={_JOINED_WITHIN}"]


def _on_several(graph: Graph, node: Node) -> bool:
    return node.stage == "distill" and graph.recipe.nodes > 1


def _in_slurm() -> bool:
    return "SLURM_JOB_ID" in os.environ


class StageProcess:
    """A node's command in a process and a session of its own. Standard error is appended to the node's log."""

    def __init__(self, graph: Graph, node: Node, environment: Mapping[str, str], more: Sequence[str] = ()) -> None:
        """Start the process, with more variables and words. It holds its lock for as long as it lives."""
        words = command_of(graph, node, more)
        # The command that a person must start on the other machines, if any.
        self.elsewhere = shlex.join(words) if _on_several(graph, node) and not _in_slurm() else None
        self.log = graph.directory / node.log
        self.log.parent.mkdir(exist_ok=True)
        self.peak, self.exit_code = 0, None
        self._work: Work | None = None
        self._error: str | None = None
        self._began, self._looked = time.monotonic(), 0.0
        stages = graph.directory.resolve() / _STAGES
        stages.mkdir(exist_ok=True)
        self._events, self._heard = stages / f"{self.log.stem}.events", 0
        self._events.write_bytes(b"")
        # The log is read back as UTF-8, whatever the user's terminal has.
        told = {"PYTHONIOENCODING": "utf-8", EVENTS_VARIABLE: str(self._events)}
        # The processes of a launcher are not children of this one, and the launcher itself would not notice its death.
        launched = bool(_torchrun(graph.recipe, node))
        self._ends_with_run = sys.platform.startswith("linux") and not launched
        if self._ends_with_run:
            told[PARENT_VARIABLE] = str(os.getpid())
        self._lock = open(stages / f"{self.log.stem}.lock", "a+", encoding="utf-8")  # noqa: SIM115
        take(self._lock)
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
                env=os.environ | environment | told,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,
            )
        sign(self._lock, self._process.pid, {"node": node.name, "ends_with_run": self._ends_with_run})

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

    def tell_to_stop(self) -> None:
        """Ask the stage to end as soon as it has written what it has finished."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the stage and its processes at once."""
        if self.poll() is None:
            _kill_tree(self._process.pid)
            while self.poll() is None:
                time.sleep(0.02)

    def close(self) -> None:
        """Remove the files of a stage that has ended. A lock that a process of it still holds stays."""
        self._events.unlink(missing_ok=True)
        self._lock.close()
        with open(self._lock.name, "a", encoding="utf-8") as lock:
            if flock(lock) is not False:
                os.unlink(lock.name)

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


def stop_all(processes: Sequence[StageProcess]) -> None:
    """Stop stages; wait until each has written what it has finished. A second Ctrl-C, or ten minutes, kill them."""
    for process in processes:
        process.tell_to_stop()
    until = time.monotonic() + _PATIENCE
    try:
        while None in [process.poll() for process in processes] and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()


def end_left_behind(directory: Path, note: Callable[[str], None]) -> None:
    """End the stages that a killed run has left behind, each once it has written what it has finished."""
    with contextlib.ExitStack() as stack:
        paths = sorted((directory / _STAGES).glob("*"))
        locks = [stack.enter_context(open(p, "a+", encoding="utf-8")) for p in paths if p.suffix == ".lock"]
        left = [lock for lock in locks if not take(lock)]
        for lock in left:
            name = signature(lock).get("node", "a stage")
            note(f"waiting for the end of {name}, which an earlier run has left behind")
            _tell_to_stop(lock)
        if not _all_taken(left, _PATIENCE):
            for lock in left:
                if not take(lock) and (process := holder(lock)) is not None:
                    _kill_tree(process.pid)
            if not _all_taken(left, _GRACE):
                raise ResumeRefused(
                    "a stage of an earlier trd run does not end", "none", "end its processes, then run again"
                )
        for path in paths:
            path.unlink()


def _tell_to_stop(lock: IO[str]) -> None:
    """Stop the stage that holds a lock, unless the death of its run does."""
    import psutil

    process = holder(lock)
    if process is not None and not signature(lock).get("ends_with_run"):
        with contextlib.suppress(psutil.Error):
            process.terminate()


def _all_taken(locks: Sequence[IO[str]], seconds: float) -> bool:
    """Take locks as soon as they are free; return False if one is still held after so many seconds."""
    until = time.monotonic() + seconds
    while locks := [lock for lock in locks if not take(lock)]:
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
