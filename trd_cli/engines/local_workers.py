"""Workers on this machine: child processes, each with devices of its own and a pipe to the driver.

A worker is the leader of a process group, in which its own children are too (vLLM's, for example). The whole group is
killed when the worker dies, when the driver lets it go, and by the worker itself when the pipe to its driver breaks,
however that ended. Ctrl-C in a terminal reaches the driver alone.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import trd_cli
from trd_cli.engines.worker import Build, Died, Failed, Feed, Message, serve
from trd_cli.records import Request

_log = logging.getLogger(__name__)
_LAST_LINES, _LONGEST_LINE = 20, 300
# Seconds: for an idle engine to free its memory, and for a process whose pipe has broken to say its last words.
_PATIENCE, _LAST_WORDS = 10.0, 1.0
# Messages of one worker that are read before the other workers have their turn.
_IN_A_ROW = 64


class LocalWorkers:
    """Start, feed and end the worker processes; see `replicas.Transport`."""

    def __init__(self, build: Build, count: int, gpus: Sequence[Sequence[str]] = ()) -> None:
        """Prepare for `count` workers; `gpus` names the GPUs of each, and is empty without any."""
        self._build, self._count, self._gpus = build, count, gpus
        self._processes: dict[int, _Process] = {}
        self._said: set[str] = set()

    def start(self, number: int) -> None:
        self._processes[number] = _Process(number, self._build, self._environment(number), self._said)

    def _environment(self, number: int) -> Mapping[str, str]:
        """Return a worker's variables: its GPUs, its share of the cores, and where this package lies."""
        variables = dict(os.environ)
        path = (str(Path(trd_cli.__file__).parents[1]), variables.get("PYTHONPATH", ""))
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        if self._gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus[number])
        variables.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // self._count)))
        return variables

    def send(self, number: int, requests: Sequence[Request]) -> None:
        with suppress(OSError):  # a dead worker is reported by `arrived`
            self._processes[number].pipe.send(requests)

    def arrived(self, seconds: float) -> list[tuple[int, Message]]:
        numbers = {process.pipe: number for number, process in self._processes.items()}
        found: list[tuple[int, Message]] = []
        for pipe in wait(list(numbers), seconds):
            found += [(numbers[pipe], message) for message in self._read(numbers[pipe])]
        return found

    def _read(self, number: int) -> Iterator[Message]:
        """Yield messages of a worker that has some; end its process after the last."""
        pipe = self._processes[number].pipe
        try:
            for _ in range(_IN_A_ROW):
                yield (message := pipe.recv())
                if isinstance(message, Failed):
                    self._processes.pop(number).end()
                    return
                if not pipe.poll():
                    return
        except (EOFError, OSError):
            yield Died(self._processes.pop(number).end(_LAST_WORDS))

    def close(self, at_once: bool) -> None:
        for process in self._processes.values():
            if not at_once:
                with suppress(OSError):
                    process.pipe.send(None)
        until = time.monotonic() + (0.0 if at_once else _PATIENCE)
        for number in list(self._processes):
            self._processes.pop(number).end(max(0.0, until - time.monotonic()))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Process:
    """One worker's process. `said` are lines that some worker wrote before: each is shown once."""

    def __init__(self, number: int, build: Build, variables: Mapping[str, str], said: set[str]) -> None:
        self.pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self._number, self._said = number, said
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        with suppress(OSError):
            self.pipe.send(build)

    def _read(self) -> None:
        with self._process.stdout as lines:
            for raw in lines:
                line = raw.decode(errors="replace").strip()
                if line and line not in self._said:
                    self._said.add(line)
                    _log.warning("replica %d: %s", self._number + 1, line[:_LONGEST_LINE])
                self._last.append(line)

    def end(self, patience: float = 0.0) -> str:
        """Wait for the process so many seconds, kill its group, and return how it ended, with its last line."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._reader.join(_LAST_WORDS)
        self.pipe.close()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        last = next((line for line in reversed(self._last) if line), "")
        return f"{how}: {last[:_LONGEST_LINE]}" if last else how


def _listen(pipe: Connection, feed: Feed) -> None:
    """Hand on what arrives; end this process and its children when the driver is gone."""
    try:
        while (requests := pipe.recv()) is not None:
            feed.add(requests)
        feed.end()
        pipe.recv()
    except (EOFError, OSError):
        os.killpg(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Work for the driver at the other end of the pipe whose descriptor is the only argument."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    os.set_inheritable(pipe.fileno(), False)
    # A process that the engine forks must not keep the pipe open when this one has died.
    os.register_at_fork(after_in_child=pipe.close)
    build, feed = pipe.recv(), Feed()
    threading.Thread(target=_listen, args=(pipe, feed), daemon=True).start()
    for message in serve(build, feed):
        pipe.send(message)


if __name__ == "__main__":
    main()
