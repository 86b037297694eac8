"""Workers on this machine: child processes, each with devices of its own and a pipe to the driver.

A worker and its own children (vLLM's, for example) end with the driver, however that ended; see `children`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from trd_cli.children import Child, end_group, pipe_to_parent
from trd_cli.engines.worker import Build, Died, Failed, Feed, Message, serve
from trd_cli.records import Request

_log = logging.getLogger(__name__)
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
        """Return a worker's variables: its GPUs, and its share of the cores."""
        variables = dict(os.environ)
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


class _Process(Child):
    """One worker's process. `said` are lines that some worker wrote before: each is shown once."""

    def __init__(self, number: int, build: Build, variables: Mapping[str, str], said: set[str]) -> None:
        self._number, self._said = number, said
        super().__init__(__name__, variables, self._show)
        with suppress(OSError):
            self.pipe.send(build)

    def _show(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            _log.warning("replica %d: %s", self._number + 1, line)


def _listen(pipe: Connection, feed: Feed) -> None:
    """Hand on what arrives; end this process and its children when the driver is gone."""
    try:
        while (requests := pipe.recv()) is not None:
            feed.add(requests)
        feed.end()
        pipe.recv()
    except (EOFError, OSError):
        end_group()


def main() -> None:
    """Work for the driver at the other end of the pipe whose descriptor is the only argument."""
    pipe = pipe_to_parent()
    build, feed = pipe.recv(), Feed()
    threading.Thread(target=_listen, args=(pipe, feed), daemon=True).start()
    for message in serve(build, feed):
        pipe.send(message)


if __name__ == "__main__":
    main()
