"""Schedule tasks that depend on each other on the slots of a machine. Values only: no process, no clock.

A slot is a set of devices that is given to one task as a whole. The schedule is greedy and the same each time: whenever
slots are free, every task whose inputs are done and whose devices are free starts, in the tasks' order. Those that take
all that is free come after those that need a fixed number. A task without devices runs beside the others, one such task
at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

Slot = tuple[str, ...]
_NAME = re.compile(r"cpu|cuda:\d+")


def read_devices(written: object) -> tuple[str, ...] | None:
    """Return the slots of a recipe's `devices`, names with commas between; None for "auto".

    Raises ValueError that says what is expected.
    """
    if written in ("auto", None):
        return None
    if not isinstance(written, (list, tuple)) or not written or not all(isinstance(each, str) for each in written):
        raise ValueError('"auto", or slots, such as ["cuda:0", "cuda:1"] or ["cuda:0,cuda:1", "cuda:2,cuda:3"]')
    slots = tuple("".join(each.split()) for each in written)
    names = [name for slot in slots for name in slot.split(",")]
    gpus = [name for name in names if name != "cpu"]
    if not all(_NAME.fullmatch(name) for name in names):
        raise ValueError("names such as cuda:0, or cpu")
    if len(set(gpus)) < len(gpus):
        raise ValueError("each GPU once")
    if gpus and len(gpus) < len(names):
        raise ValueError("either GPUs or cpu")
    return slots


@dataclass(frozen=True)
class Task:
    """One stage to schedule: it needs `devices`, or with `takes_free` as many times that number as are free.

    The names of its devices begin with `kind`.
    """

    name: str
    inputs: tuple[str, ...] = ()
    devices: int = 1
    takes_free: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Placement:
    """A task with the slots that it holds, and how many times it has the devices it needs (0 without devices)."""

    task: Task
    slots: tuple[Slot, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(device for slot in self.slots for device in slot)

    @property
    def times(self) -> int:
        if not self.task.devices:
            return 0
        return len(self.devices) // self.task.devices if self.task.takes_free else 1


class Scheduler:
    """Choose which tasks start: call `start` at first and after each `end`."""

    def __init__(
        self, tasks: Iterable[Task], slots: Sequence[Slot], done: Collection[str] = (), apart: bool = False
    ) -> None:
        """Take tasks in order of preference. Inputs that are not among them must be in `done`.

        A task that needs more devices than there are never starts. With `apart`, tasks with devices of different kinds
        do not run at the same time.
        """
        self._waiting = {task.name: task for task in tasks}
        self._running: dict[str, Placement] = {}
        self._slots, self._done, self._apart = tuple(slots), set(done), apart

    @property
    def running(self) -> dict[str, Placement]:
        """Return the placements of the running tasks by name, in the order in which they started."""
        return dict(self._running)

    def start(self) -> list[Placement]:
        """Start all tasks that can run now, and return where."""
        started = []
        ready = [task for task in self._waiting.values() if self._done.issuperset(task.inputs)]
        for task in sorted(ready, key=lambda task: task.takes_free):  # a stable sort
            slots = self._slots_for(task)
            if slots is not None:
                del self._waiting[task.name]
                self._running[task.name] = Placement(task, slots)
                started.append(self._running[task.name])
        return started

    def end(self, name: str, well: bool = True) -> list[Task]:
        """End a running task and free its slots. Return the tasks that can never start because it did not end well."""
        del self._running[name]
        if well:
            self._done.add(name)
            return []
        lost, skipped = {name}, []
        while more := [task for task in self._waiting.values() if lost.intersection(task.inputs)]:
            skipped += more
            lost |= {task.name for task in more}
            self._waiting = {n: task for n, task in self._waiting.items() if n not in lost}
        return skipped

    def _slots_for(self, task: Task) -> tuple[Slot, ...] | None:
        """Return free slots for a task, None where they do not suffice."""
        if not task.devices:
            return () if all(each.task.devices for each in self._running.values()) else None
        running = [each for each in self._running.values() if each.task.devices]
        if self._apart and any(each.task.kind != task.kind for each in running):
            return None
        held = [slot for each in running for slot in each.slots if slot[0].startswith(task.kind)]
        free = [slot for slot in self._slots if slot[0].startswith(task.kind)]
        for slot in held:  # slots may be equal, as two of a CPU
            free.remove(slot)
        there = sum(map(len, free))
        if there < task.devices:
            return None
        return _fewest(free, there - there % task.devices if task.takes_free else task.devices)


def _fewest(free: Sequence[Slot], devices: int) -> tuple[Slot, ...]:
    """Return few slots with so many devices, in their order: the smallest that suffices alone, or the largest."""
    alone = [slot for slot in free if len(slot) >= devices]
    if alone:
        return (min(alone, key=len),)
    taken: list[int] = []
    for index in sorted(range(len(free)), key=lambda index: -len(free[index])):
        taken.append(index)
        if sum(len(free[each]) for each in taken) >= devices:
            break
    return tuple(free[index] for index in sorted(taken))


@dataclass(frozen=True)
class Span:
    """A task on its devices from `begin` to `end`, in seconds since the first began."""

    placement: Placement
    begin: float
    end: float


def simulate(
    tasks: Iterable[Task], slots: Sequence[Slot], seconds: Callable[[Placement], float], done: Collection[str] = ()
) -> list[Span]:
    """Return when each task would run if it took so many seconds where it is placed, in the order of their starts."""
    scheduler = Scheduler(tasks, slots, done)
    now, spans = 0.0, []
    ends: dict[str, float] = {}
    while True:
        for placement in scheduler.start():
            ends[placement.task.name] = now + seconds(placement)
            spans.append(Span(placement, now, ends[placement.task.name]))
        if not ends:
            return spans
        first = min(ends, key=ends.__getitem__)
        now = ends.pop(first)
        scheduler.end(first)
