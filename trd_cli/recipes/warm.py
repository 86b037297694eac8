"""Warm stages: which stages of a run are carried out by workers, and how long each worker stays.

A worker is for stages of one kind on the same devices. It stays as long as another stage of the kind waits, unless a
stage needs its memory.
"""

from __future__ import annotations

import contextlib
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trd_cli.interrupts import held_back
from trd_cli.recipes.devices import environment_of
from trd_cli.recipes.logs import StageLog
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.processes import StageProcess, starts_several, words_after_trd
from trd_cli.recipes.recipe import WARM_KINDS, Recipe
from trd_cli.recipes.slots import Placement
from trd_cli.recipes.workers import PATIENCE, Worker

# A kind with fewer stages to run gains nothing.
_FEWEST = 2
# Estimates the bytes of the stages of a graph, by the names of their nodes; those that it does not know are left out.
Memory = Callable[[Graph], Mapping[str, int]]
# Bytes of a process before it loads a model.
_PROCESS = 2**29


def warm_nodes(recipe: Recipe, waiting: Sequence[Node]) -> set[str]:
    """Return the names of the nodes that would run in workers if all those that wait are run."""
    able = [node for node in waiting if node.stage in recipe.warm_kinds and _is_alone(recipe, node)]
    counts = Counter(node.stage for node in able)
    return {node.name for node in able if counts[node.stage] >= _FEWEST}


def _is_alone(recipe: Recipe, node: Node) -> bool:
    """Return True for a node whose command is one process that holds all it works with."""
    by_ray = recipe.ray is not None and node.stage in ("sample", "refine", "eval")
    is_single = str(getattr(node.config, "replicas", 1)) == "1" and not starts_several(recipe, node)
    # vllm reads the variable of that option once a process.
    return is_single and not by_ray and not getattr(node.config, "batch_invariant", False)


class WarmStage:
    """A node's command in a worker. One that is killed is run again once, in another worker."""

    is_warm, elsewhere = True, None

    def __init__(self, workers: Workers, graph: Graph, node: Node, placement: Placement, more: Sequence[str]):
        """Begin the stage in a worker that has nothing to do, or in a new one."""
        words = words_after_trd(graph, node, more)
        self._workers, self._node = workers, node
        self.log = StageLog(graph, node, words)
        self._placement = placement
        variables = {**environment_of(placement), **self.log.variables}
        self._order = {"argv": words, "log": str(self.log.path), "environment": variables}
        self.exit_code: int | None = None
        self._peak, self._began, self._is_told, self._tries = 0, time.monotonic(), False, 0
        self._begin()

    def _begin(self) -> None:
        self._tries += 1
        self.worker = self._workers.take(self._node, self._placement, self.log)
        self.worker.begin(self._node, self._order)

    @property
    def starts_worker(self) -> bool:
        """Return True if the stage is the first of its worker, which it waits for."""
        return self.worker.stages == 1

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def peak(self) -> int:
        return max(self._peak, self.worker.peak)

    def poll(self) -> int | None:
        """Return the exit code of the command, negative for a signal that ended its worker, or None while it runs."""
        if self.exit_code is not None:
            return self.exit_code
        code = self.worker.poll()  # first, because a worker may answer and end
        answer = self.worker.answer()
        if answer is not None:
            self.exit_code = answer["exit_code"]
            self._peak = max(self.peak, answer["peak"])
        elif code is not None and code < 0 and self._tries == 1 and not self._is_told:
            self._again(-code)
        else:
            self.exit_code = code
        return self.exit_code

    def _again(self, number: int) -> None:
        self._peak = self.peak
        self._workers.note(
            f"{self._node.name}: signal {signal.Signals(number).name} ended its worker; it goes on in a new one"
        )
        with held_back():  # a worker that has started is among those that are stopped
            self._workers.bury(self.worker)
            self.log.begin()
            self._begin()

    def tell_to_stop(self) -> None:
        """Ask the stage to end as soon as it has written what it has finished; its worker ends too."""
        self._is_told = True
        if self.poll() is None:
            self.worker.tell_to_stop()

    def kill(self) -> None:
        """End the stage and its worker at once."""
        self._is_told = True
        if self.poll() is None:
            self.worker.kill()
            self.poll()

    def close(self) -> None:
        """Remove the events of a stage that has ended, and give its worker back."""
        self.log.close()
        if self.exit_code:  # the worker ends too
            self.worker.let_go()
        self._workers.give_back(self.worker)


class Workers:
    """The workers of a run, each for stages of one kind on the same devices."""

    def __init__(self, graph: Graph, note: Callable[[str], None], memory_of: Memory) -> None:
        self.note = note
        self._graph, self._memory_of = graph, memory_of
        self._room = 0
        self._needs: Mapping[str, int] = {}
        self._warm: set[str] = set()
        self._waiting: dict[str, str] = {}
        self._workers: list[Worker] = []

    def expect(self, nodes: Sequence[Node]) -> None:
        """Choose those of the nodes that run in workers; all of them wait to be started or skipped."""
        self._warm = warm_nodes(self._graph.recipe, nodes)
        self._waiting = {node.name: node.stage for node in nodes}
        if self._warm and self._graph.recipe.warm == "auto":
            self._room, self._needs = _memory_here(), self._memory_of(self._graph)

    def prepare(self, node: Node, placement: Placement) -> None:
        """Make room for a node that is about to start; it may take as long as idle workers take to rest or to end."""
        del self._waiting[node.name]
        if placement.task.kind == "cuda":
            self._clear(node, placement)
        elif self._room:
            self._make_room(node, placement)

    def start(self, node: Node, placement: Placement, more: Sequence[str]) -> StageProcess | WarmStage:
        """Start a stage that was prepared, in a worker where that is worth it."""
        if node.name in self._warm:
            return WarmStage(self, self._graph, node, placement, more)
        return StageProcess(self._graph, node, environment_of(placement), more)

    def _clear(self, node: Node, placement: Placement) -> None:
        """Let the workers that the node cannot have leave its devices."""
        for worker in self._workers:
            is_there = not set(placement.devices).isdisjoint(worker.devices)
            if worker.is_idle and is_there and not worker.is_free_for(node, placement):
                worker.rest()

    def _make_room(self, node: Node, placement: Placement) -> None:
        """End idle workers until those that stay and the node fit into the memory: first what is needed last."""
        while self._needed(node, placement) > self._room:
            idle = [each for each in self._workers if each.is_idle and not each.is_free_for(node, placement)]
            if not idle:
                return
            worker = max(idle, key=lambda each: self._next_use(each.stage))
            worker.let_go()
            worker.wait()
            self._reap()

    def _needed(self, node: Node, placement: Placement) -> int:
        """Return the bytes of a node and of all workers but the one that may take it."""
        free = next((each for each in self._workers if each.is_free_for(node, placement)), None)
        own = max(self._bytes(node), free.needs if free else 0)
        return own + sum(each.needs for each in self._workers if each is not free)

    def _bytes(self, node: Node) -> int:
        return _PROCESS + self._needs.get(node.name, 0)

    def _next_use(self, stage: str) -> int:
        """Return the place of the first waiting node of a kind."""
        kinds = list(self._waiting.values())
        return kinds.index(stage) if stage in kinds else len(kinds)

    def wait(self, seconds: float) -> None:
        """Wait until a stage in a worker has ended, and no longer than so many seconds."""
        select.select([worker.process.stdout for worker in self._workers if not worker.is_idle], [], [], seconds)

    def skip(self, nodes: Sequence[Node]) -> None:
        """Wait no longer for nodes that cannot be started."""
        for node in nodes:
            del self._waiting[node.name]
        self._let_go()

    def take(self, node: Node, placement: Placement, log: StageLog) -> Worker:
        """Return a worker for a stage: one that has nothing to do, else a new one."""
        for worker in self._workers:
            if worker.is_free_for(node, placement):
                break
        else:
            worker = Worker(self._graph, node, placement, log)
            self._workers.append(worker)
        worker.is_idle = False
        worker.needs = max(worker.needs, self._bytes(node))
        return worker

    def give_back(self, worker: Worker) -> None:
        """Keep a worker whose stage has ended for as long as a stage waits for it."""
        worker.is_idle = True
        self._let_go()

    def bury(self, worker: Worker) -> None:
        """Remove what a worker that was killed has left."""
        worker.end_what_is_left()
        self._workers.remove(worker)
        worker.close()

    def close(self) -> None:
        """End all workers. One that does not end in time, once it has nothing to do, is killed."""
        for worker in self._workers:
            worker.let_go()
        until = time.monotonic() + PATIENCE
        try:
            while self._reap() and time.monotonic() < until:
                time.sleep(0.02)
        finally:
            for worker in self._workers:
                worker.kill()
            self._reap()

    def _let_go(self) -> None:
        """Let the workers end that no stage waits for."""
        for kind in WARM_KINDS:
            idle = [worker for worker in self._workers if worker.is_idle and worker.stage == kind]
            for worker in idle[list(self._waiting.values()).count(kind) :]:
                worker.let_go()
        self._reap()

    def _reap(self) -> bool:
        """Remove workers that have ended. Return True if others are left."""
        for worker in [each for each in self._workers if each.is_idle or each.is_leaving]:
            if worker.poll() is not None:
                self._workers.remove(worker)
                worker.close()
        return bool(self._workers)


def _memory_here() -> int:
    """Return the bytes of memory of this machine, or those that its container may use."""
    import psutil

    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max" in it
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
