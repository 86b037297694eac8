"""Workers on a Ray cluster: one actor a replica, on any node that has the devices for it.

Ray starts no actor again and repeats no call: the driver counts deaths and replaces workers itself. Each node needs
this package in the same version, and the model under the same name: a path on shared storage, or a Hub name.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.placement import number_of, too_few
from trd_cli.engines.worker import Build, Died, Failed, Feed, Message, serve
from trd_cli.errors import EngineError, counted, first_line, flag
from trd_cli.records import Request

_LONGEST_REASON = 300
_HERE = "auto"
# Seconds: for a cluster to answer, for a removed node to be missed by it, and for an idle engine to free its memory.
_ANSWER, _UNPLACED, _PATIENCE = 10.0, 30.0, 10.0
# Messages of one worker that are read before the other workers have their turn.
_IN_A_ROW = 64


class Placed:
    """Report that an actor has a place on a node, before it loads anything."""


class Actor:
    """The worker in an actor: `run` yields its messages while `add` and `end` are called beside it."""

    def __init__(self) -> None:
        self._feed = Feed()

    def add(self, requests: Sequence[Request]) -> None:
        self._feed.add(requests)

    def end(self) -> None:
        self._feed.end()

    def run(self, build: Build) -> Iterator[Placed | Message]:
        yield Placed()
        yield from serve(build, self._feed)


@dataclass
class _Worker:
    actor: Any
    messages: Any
    asked: float
    is_placed: bool = False


class RayWorkers:
    """Start, feed and end the actors; see `replicas.Transport`. `count` is the number of replicas."""

    def __init__(self, build: Build, options: EngineOptions, gpus_each: int) -> None:
        """Connect to the cluster that the options name, unless this process is connected.

        Raises EngineError if there is no cluster, or if it has too few devices.
        """
        self._is_ours = _connect(options.ray)
        self._build = build
        self._workers: dict[int, _Worker] = {}
        gpus = int(self._total("GPU")) if gpus_each else 0
        self._needs = ("GPU", gpus_each) if gpus else ("CPU", 1)
        self.count = number_of(options, gpus // gpus_each if gpus else 1)
        try:
            self._check_room(gpus, gpus_each, options)
        except EngineError:
            self.close(at_once=True)
            raise

    def _check_room(self, gpus: int, each: int, options: EngineOptions) -> None:
        if self._build.engine == "vllm" and not gpus:
            raise EngineError(
                f"{flag('ray')} {options.ray} has no GPU", "a cluster with GPUs for vllm", f"change {flag('ray')}"
            )
        if gpus and self.count * each > gpus:
            raise too_few(options, self.count, each, f"{counted(gpus, 'GPU')} in the cluster")

    @staticmethod
    def _total(resource: str) -> float:
        import ray

        return ray.cluster_resources().get(resource, 0)

    def start(self, number: int) -> None:
        import ray

        kind, each = self._needs
        devices = {"num_gpus": each, "num_cpus": 1} if kind == "GPU" else {"num_cpus": 1}
        # One thread runs the engine, another takes requests.
        actor = ray.remote(Actor).options(**devices, max_restarts=0, max_task_retries=0, max_concurrency=2).remote()
        messages = actor.run.options(num_returns="streaming").remote(self._build)
        self._workers[number] = _Worker(actor, messages, time.monotonic())

    def send(self, number: int, requests: Sequence[Request]) -> None:
        self._workers[number].actor.add.remote(requests)

    def arrived(self, seconds: float) -> list[tuple[int, Message]]:
        import ray

        numbers = {worker.messages: number for number, worker in self._workers.items()}
        if not numbers:
            return []
        ready, _ = ray.wait(list(numbers), timeout=seconds)
        found = [(numbers[messages], each) for messages in ready for each in self._read(numbers[messages])]
        return found or self._unplaced()

    def _read(self, number: int) -> Iterator[Message]:
        """Yield messages of a worker that has some; forget the worker if its actor is gone."""
        import ray

        worker = self._workers[number]
        try:
            for _ in range(_IN_A_ROW):
                message = ray.get(next(worker.messages))
                if isinstance(message, Placed):
                    worker.is_placed = True
                else:
                    yield message
                if isinstance(message, Failed):
                    self._drop(number)
                    return
                if not ray.wait([worker.messages], timeout=0)[0]:
                    return
        except StopIteration:
            reason = "ended"
        except ray.exceptions.RayError as error:
            reason = f"died: {_reason(error)}"
        self._drop(number)
        yield Died(reason)

    def _unplaced(self) -> list[tuple[int, Message]]:
        """Give up the workers that wait for a place in a cluster which has too few devices for all, as after a loss."""
        kind, each = self._needs
        waiting = [n for n, worker in self._workers.items() if not worker.is_placed]
        late = [n for n in waiting if time.monotonic() - self._workers[n].asked > _UNPLACED]
        if not late or len(self._workers) * each <= self._total(kind):
            return []
        self._drop(late[-1])
        return [(late[-1], Died(f"found no node with {counted(each, kind)}"))]

    def _drop(self, number: int) -> None:
        import ray

        worker = self._workers.pop(number, None)
        if worker is not None:
            with suppress(Exception):  # the actor is gone, or the cluster
                ray.kill(worker.actor)

    def close(self, at_once: bool) -> None:
        import ray

        if not at_once:
            ends = [worker.actor.end.remote() for worker in self._workers.values()]
            with suppress(ray.exceptions.RayError):
                ray.wait(ends, num_returns=len(ends), timeout=_PATIENCE)
            until = time.monotonic() + _PATIENCE
            while any(worker.is_placed for worker in self._workers.values()) and time.monotonic() < until:
                self.arrived(0.1)
        for number in list(self._workers):
            self._drop(number)
        if self._is_ours:
            ray.shutdown()


def count_gpus(address: str) -> tuple[int, int]:
    """Return the number of GPUs of a cluster, and of those on this machine. Raises EngineError without a cluster."""
    import ray

    is_ours = _connect(address)
    gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]}
    here = gpus.get(ray.get_runtime_context().get_node_id(), 0)
    if is_ours:
        ray.shutdown()
    return sum(gpus.values()), here


def _connect(address: str) -> bool:
    """Connect this process to the cluster; return False if it is connected already."""
    import ray

    if ray.is_initialized():
        return False
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_answers(address)
        # Output of workers would get between the paths on standard output.
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of any type: an address may be malformed, unreachable or of another version
        where = "on this machine" if address == _HERE else f"at {address}"
        raise EngineError(
            f"no Ray cluster {where}: {first_line(error).partition('. ')[0]}",
            "one that runs on this machine (auto), or its HOST:PORT",
            "start one by `ray start --head`, and run this command on a node of it",
        ) from None
    finally:
        # Ray lets SIGTERM end the process without a word; the command keeps its rows first.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return True


def _check_answers(address: str) -> None:
    """Raise OSError or ValueError for an address where nothing listens: Ray itself would try for minutes."""
    if address != _HERE:
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


def _reason(error: Exception) -> str:
    """Return the last line of Ray's message, which tells why an actor died."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:_LONGEST_REASON]
