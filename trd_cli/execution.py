"""Running the nodes of a graph: what is done, one process a stage with its log and its peak memory.

    status.json   {node: {"state", "digest", "started", "seconds", "peak_rss_bytes", "exit_code"}}, for people and reports.
                  Outputs decide what is done; the record only adds what an output cannot say: that the stage ended with an
                  error, that verdicts were made with other options, that they are being made again

Memory is the larger of the kernel's peak of the stage's own process and of what its whole process tree held when looked at, once
a second; pages that processes share count for each of them. GPU memory is not looked at.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trd_cli.errors import InputError
from trd_cli.inputs import check_complete
from trd_cli.locks import PATIENCE, kill_tree
from trd_cli.nodes import NODES, Graph, Node
from trd_cli.run_dir import read_run_json, write_text
from trd_cli.scores import FILE as RESULTS
from trd_cli.shards import list_shards, read_table

# The process that a stage ends with; read by the command line when it starts.
PARENT_VARIABLE = "TRD_RUN_PID"
_LOOK = 1.0  # seconds between two looks at the memory of a stage's processes
_REMOVED = ".removed-"
_TAIL = 8192
_PROGRESS = re.compile(r"^trd [\w -]+: (?P<what>\S.*?) (?P<done>\d+)/(?P<total>\d+) · (?P<rest>.*)$")
_TOTAL = re.compile(r"^trd [\w -]+: (?P<total>\d+) rows(?:, (?P<done>\d+) done before)?$")


class Status:
    """status.json of a run directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "status.json"
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self.records: dict[str, dict[str, Any]] = found if isinstance(found, dict) else {}

    def of(self, name: str) -> dict[str, Any]:
        return self.records.get(name, {})

    def set(self, name: str, **values: Any) -> None:
        """Change some values of a node's record; None takes one out."""
        changed = {k: v for k, v in {**self.of(name), **values}.items() if v is not None}
        if changed != self.records.get(name):
            self.records[name] = changed
            self._write()

    def drop(self, names: Sequence[str]) -> None:
        kept = {name: record for name, record in self.records.items() if name not in names}
        if kept != self.records:
            self.records = kept
            self._write()

    def _write(self) -> None:
        write_text(self._path, json.dumps(self.records, indent=1) + "\n")


def is_done(graph: Graph, node: Node, status: Status) -> bool:
    """Whether a node's output is whole, and nothing is recorded that makes it worthless."""
    record = status.of(node.name)
    other = record.get("digest", node.digest) != node.digest
    if record.get("again") or (node.stage == "verify" and other):
        return False
    if record.get("state") == "failed" and not other:
        return False
    return is_whole(graph.path(node), node.stage)


def is_whole(path: Path, stage: str) -> bool:
    """Whether a stage's output says itself that nothing is missing. A file that cannot be read is missing."""
    try:
        if stage == "problems":
            return (path / "problems.parquet").is_file()
        if stage == "eval":
            return (path / RESULTS).is_file()
        run = read_run_json(path)
        if run is None:
            return False
        if stage == "distill":
            return bool(run["about"].get("finished"))
        check_complete([path])
        return stage != "verify" or _is_graded(path)
    except InputError:
        return False


def _is_graded(directory: Path) -> bool:
    return all(read_table(shard, ["verdict"])["verdict"].null_count == 0 for shard in list_shards(directory))


def forget(graph: Graph, names: set[str], status: Status) -> None:
    """Remove the outputs of these nodes, what is made from others first, so that a crash leaves none without its inputs.

    Verdicts are not removed where their set stays: they are recorded as to be made again.
    """
    gone = {graph[name].out for name in names if graph[name].stage != "verify"}
    for node in reversed([n for n in graph.nodes if n.name in names]):
        if node.stage == "verify" and node.out not in gone:
            status.set(node.name, state="waiting", again=True, digest=node.digest)
            continue
        status.drop([node.name])
        path = graph.path(node)
        if node.stage != "verify" and path.exists():
            # Renamed first: half a set is nothing that a stage could go on from.
            path.rename(path.with_name(f"{_REMOVED}{path.name}-{time.time_ns()}"))
    sweep(graph.directory)


def sweep(directory: Path) -> None:
    """Delete what was taken out of the way, by this run or by one that was killed."""
    for path in (directory / NODES).glob(f"{_REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)


def command_of(graph: Graph, node: Node, more: Sequence[str] = ()) -> list[str]:
    """The command line of a node, with absolute paths; training is launched by torchrun where the recipe asks for processes."""
    root = graph.directory.resolve()
    words = [str(root / word) if word.startswith(f"{NODES}/") else word for word in node.argv]
    program = ["-m", "trd_cli"]
    if node.stage == "distill" and graph.recipe.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        program = [*launcher, str(graph.recipe.processes), *program]
    return [sys.executable, *program, *words, *more]


class StageProcess:
    """A node's command in a process and a session of its own; standard error goes to its log, which grows from run to run."""

    def __init__(self, graph: Graph, node: Node, lock: IO[str], more: Sequence[str] = ()) -> None:
        """`lock` (from `stage_lock`) is inherited, so that it is held for as long as the stage lives."""
        words = command_of(graph, node, more)
        self.log = graph.directory / node.log
        self.log.parent.mkdir(exist_ok=True)
        self.peak, self.exit_code = 0, None
        self._began, self._looked = time.monotonic(), 0.0
        environment = dict(os.environ)
        # A launcher's processes are not children of this one, and the launcher itself would not hear.
        launched = node.stage == "distill" and graph.recipe.processes > 1
        self._ends_with_run = sys.platform.startswith("linux") and not launched
        if self._ends_with_run:
            environment[PARENT_VARIABLE] = str(os.getpid())
        with open(self.log, "ab") as log:
            log.write(f"$ trd {shlex.join(words[words.index('trd_cli') + 1 :])}\n".encode())
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
        self._say_who(lock, node)

    def _say_who(self, lock: IO[str], node: Node) -> None:
        import psutil

        with contextlib.suppress(psutil.Error):
            created = psutil.Process(self._process.pid).create_time()
            lock.seek(0)
            lock.truncate()
            who = {"node": node.name, "pid": self._process.pid, "created": created}
            lock.write(json.dumps(who | {"ends_with_run": self._ends_with_run}))
            lock.flush()

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
        """Tell it to stop and wait until it has written what it has finished; a second Ctrl-C, or ten minutes, end it."""
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
        """The last line of what this invocation wrote to its log."""
        return next((line for line in reversed(_tail(self.log, self._start)) if line.strip()), "")

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
