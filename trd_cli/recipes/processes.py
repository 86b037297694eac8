"""The processes of a run with their peak memory, and the locks around them.

.lock                  held by trd run itself: one at a time in a directory
.stages/NODE.lock      held by a process that runs a stage, or several, of which NODE is the first. It outlives a trd
                       run that is killed; the next one waits for its end, or ends it, before it starts any other

Memory is the larger of the kernel's peak of the stage's own process and of the sum over its process tree, taken once a
second; pages that processes share count for each of them. Not covered: GPU memory.
"""

from __future__ import annotations

import contextlib
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
from typing import IO, Protocol

from trd_cli.atomic import make_directory
from trd_cli.errors import ResumeRefused
from trd_cli.locks import flock, hold, holder, sign, signature, take
from trd_cli.progress import PARENT_VARIABLE
from trd_cli.recipes.logs import StageLog, directory_of_stages
from trd_cli.recipes.nodes import NODES, Graph, Node
from trd_cli.recipes.recipe import Recipe

_LOOK = 1.0  # seconds between two looks at the memory of a stage's processes
# Seconds that a stage has to end its step and to write what it has finished, once it must stop.
_PATIENCE = 600.0
_GRACE = 5.0  # seconds for a stage that ends by itself
_PORTS = 29600  # the first of those at which machines meet
_JOINED_WITHIN = 24 * 3600  # seconds, for a person who starts the other machines


def command_of(graph: Graph, node: Node, more: Sequence[str] = ()) -> list[str]:
    """Return the command line of a node with absolute paths, by torchrun if the recipe asks for several processes.

    In a Slurm job srun starts it on all machines that the recipe asks for.
    """
    by_slurm = ["srun", "--nodes", str(graph.recipe.nodes), "--ntasks-per-node", "1"] if _in_slurm() else []
    launcher = _torchrun(graph.recipe, node)
    return [
        *(by_slurm if _on_several(graph, node) else []),
        sys.executable,
        *launcher,
        "-m",
        "trd_cli",
        *words_after_trd(graph, node, more),
    ]


def words_after_trd(graph: Graph, node: Node, more: Sequence[str] = ()) -> list[str]:
    """Return the words of a node's command after `trd`, with absolute paths."""
    root = graph.directory.resolve()
    return [*(str(root / word) if word.startswith(f"{NODES}/") else word for word in node.argv), *more]


def starts_several(recipe: Recipe, node: Node) -> bool:
    """Return True for a node whose command torchrun starts, as several processes."""
    return bool(_torchrun(recipe, node))


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


class Child:
    """A process in a session of its own. It holds its lock for as long as it lives."""

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        log: StageLog,
        node: Node,
        stages: Path,
        ends_with_run: bool,
        streams: int = subprocess.DEVNULL,
    ) -> None:
        """Start the process for a first node, with more variables.

        Standard error is appended to the log; the other `streams` are the null device, or pipes.
        """
        self.peak, self.exit_code = 0, None
        self._began, self._looked = time.monotonic(), 0.0
        self._ends_with_run = ends_with_run and sys.platform.startswith("linux")
        told = {PARENT_VARIABLE: str(os.getpid())} if self._ends_with_run else {}
        self._lock = open(stages / f"{log.path.stem}.lock", "a+", encoding="utf-8")  # noqa: SIM115
        take(self._lock)
        with open(log.path, "ab") as errors:
            self.process = subprocess.Popen(
                words,
                stdin=streams,
                stdout=streams,
                stderr=errors,
                env=os.environ | environment | log.variables | told,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,
            )
        self.sign(node)

    def sign(self, node: Node) -> None:
        """Write the node that the process runs into the lock."""
        sign(self._lock, self.process.pid, {"node": node.name, "ends_with_run": self._ends_with_run})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal that ended the process, or None while it runs."""
        if self.exit_code is not None:
            return self.exit_code
        try:
            pid, state, usage = os.wait4(self.process.pid, os.WNOHANG)
        except ChildProcessError:  # an interruption came between its end and the record of it
            self.exit_code = self.process.returncode = -signal.SIGTERM
            return self.exit_code
        if pid:
            self.exit_code = self.process.returncode = os.waitstatus_to_exitcode(state)
            self._heed(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        elif self.seconds - self._looked > _LOOK:
            self._looked = self.seconds
            self.peak = max(self.peak, _resident(self.process.pid))
        return self.exit_code

    def _heed(self, peak: int) -> None:
        """Take in the kernel's peak of the process, in bytes, at its end."""
        self.peak = max(self.peak, peak)

    def tell_to_stop(self) -> None:
        """Ask the process to end as soon as it has written what it has finished."""
        if self.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the process and its own at once."""
        if self.poll() is None:
            _kill_tree(self.process.pid)
            while self.poll() is None:
                time.sleep(0.02)

    def close(self) -> None:
        """Remove the lock of a process that has ended. One that a process of it still holds stays."""
        self._lock.close()
        with open(self._lock.name, "a", encoding="utf-8") as lock:
            if flock(lock) is not False:
                os.unlink(lock.name)


class StageProcess(Child):
    """A node's command in a process of its own."""

    is_warm = starts_worker = False

    def __init__(self, graph: Graph, node: Node, environment: Mapping[str, str], more: Sequence[str] = ()) -> None:
        """Start the process, with more variables and words."""
        words = command_of(graph, node, more)
        # The command that a person must start on the other machines, if any.
        self.elsewhere = shlex.join(words) if _on_several(graph, node) and not _in_slurm() else None
        self.log = StageLog(graph, node, words_after_trd(graph, node, more))
        # The processes of a launcher are not children of this one, and the launcher itself would not notice its death.
        ends_with_run = not starts_several(graph.recipe, node)
        super().__init__(words, environment, self.log, node, directory_of_stages(graph.directory), ends_with_run)

    def close(self) -> None:
        """Remove the files of a stage that has ended, but for its log."""
        self.log.close()
        super().close()


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


class Stoppable(Protocol):
    """A stage that can be told to stop."""

    def poll(self) -> int | None: ...

    def tell_to_stop(self) -> None: ...

    def kill(self) -> None: ...


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory. Raises ResumeRefused while another trd run holds it."""
    make_directory(directory)
    with hold(directory / ".lock") as is_ours:
        if not is_ours:
            raise ResumeRefused(f"{directory} is in use by another trd run", "one at a time", "wait for it to end")
        yield


def stop_all(processes: Sequence[Stoppable]) -> None:
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
        paths = sorted(directory_of_stages(directory).glob("*"))
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
