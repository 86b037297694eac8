"""Run chosen stages of a graph: each in its process, once its inputs are done and its devices are free."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from trd_cli.errors import UserError, counted
from trd_cli.interrupts import held_back
from trd_cli.progress import NodeState, RunProgress
from trd_cli.recipes.checkpoints import words_of_training
from trd_cli.recipes.devices import Machine, shown, tasks_of, words_of
from trd_cli.recipes.done import Status, Verdicts, begin, done_nodes, drop_states, is_whole
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.processes import stop_all
from trd_cli.recipes.slots import Placement, Scheduler
from trd_cli.recipes.warm import Memory, Workers

_TICK = 0.05  # seconds between two looks at the processes
_SHOW = 0.5  # seconds between two looks at the progress of a running stage
_SAVE = 5.0  # seconds between two records of one


class Follower(Protocol):
    """Something that goes along with a run, as what tells a tracker of its figures. It never delays a stage."""

    def follow(self, has_changed: bool) -> None:
        """Do what is due; `has_changed` if a stage has ended since the last call."""
        ...

    def end(self) -> None:
        """Do the rest: no stage runs any more."""
        ...

    def stop(self) -> None:
        """End now."""
        ...


class Runner:
    """The runner of chosen nodes on a machine. A node that fails stops only those that are made from it."""

    def __init__(
        self,
        graph: Graph,
        chosen: Sequence[Node],
        machine: Machine,
        status: Status,
        progress: RunProgress,
        memory_of: Memory,
        followers: Sequence[Follower] = (),
    ) -> None:
        self._graph, self._chosen, self._machine = graph, chosen, machine
        self._status, self._progress, self._followers = status, progress, followers
        self._workers = Workers(graph, progress.note, memory_of)
        self._running: list[_Stage] = []
        self._shown: dict[str, NodeState] = {}

    def run(self) -> None:
        """Run what is missing. Raises UserError if stages failed, after all others have run."""
        done = done_nodes(self._graph, self._chosen)
        for node in self._chosen:
            is_there = node.name in done
            if is_there and self._status.of(node.name).get("state") != "done":
                self._status.set(node.name, state="done", digest=node.digest)
            self._show(node, "done" if is_there else "waiting")
        waiting = [node for node in self._chosen if node.name not in done]
        tasks = tasks_of(self._graph, waiting, self._machine)
        scheduler = Scheduler(tasks, self._machine.slots, done, self._machine.apart)
        self._workers.expect(waiting)
        try:
            self._start(scheduler)
            while self._running:
                self._workers.wait(_TICK)
                if has_ended := self._watch(scheduler):
                    self._start(scheduler)
                for follower in self._followers:
                    follower.follow(has_ended)
            for follower in self._followers:
                follower.end()
        except KeyboardInterrupt:
            self._stop()
            raise
        except BaseException:  # such as a record that cannot be written: no stage goes on unwatched
            stop_all([stage.process for stage in self._running])
            raise
        finally:
            self._workers.close()
            self._progress.end()
            for follower in self._followers:
                follower.stop()
        self._conclude(waiting)

    def _start(self, scheduler: Scheduler) -> None:
        for placement in scheduler.start():
            self._workers.prepare(self._graph[placement.task.name], placement)
            with held_back():  # a stage that has started is among those that are stopped
                stage = _Stage(self._graph, placement, self._machine, self._status, self._workers)
                self._running.append(stage)
            self._show(stage.node, "running", stage=stage)
            if stage.process.elsewhere:
                others = counted(self._graph.recipe.nodes - 1, "other machine")
                self._progress.note(f"{stage.node.name} waits for {others}; start there: {stage.process.elsewhere}")
        done = {name for name, each in self._shown.items() if each.state == "done"}
        drop_states(self._graph, done, done | {stage.node.name for stage in self._running})

    def _watch(self, scheduler: Scheduler) -> bool:
        """Show and record the progress of all stages. Return True if one of them has ended."""
        ended = []
        for stage in self._running:
            if (code := stage.process.poll()) is None:
                if stage.is_due("show", _SHOW):
                    self._show(stage.node, "running", stage=stage)
                if stage.is_due("save", _SAVE):
                    stage.record("running")
            else:
                ended.append((stage, code))
        for stage, code in ended:
            self._end(stage, code, scheduler)
        return bool(ended)

    def _end(self, stage: _Stage, code: int, scheduler: Scheduler) -> None:
        node, seconds = stage.node, stage.process.seconds
        well = stage.end(code)
        self._running.remove(stage)
        if well:
            self._show(node, "done", stage=stage)
        else:
            reason = stage.process.log.failure() if code else "it ended well, but its output is not whole"
            self._show(node, "failed", f"{reason} (exit code {code})", seconds)
        stage.process.close()
        lost = [self._graph[task.name] for task in scheduler.end(node.name, well)]
        self._workers.skip(lost)
        for skipped in lost:
            self._status.set(skipped.name, state="skipped", digest=skipped.digest)
            self._show(skipped, "skipped", "without its input")

    def _stop(self) -> None:
        """Stop all stages after Ctrl-C; a second one ends them at once."""
        if self._running:
            names = ", ".join(stage.node.name for stage in self._running)
            self._progress.note(
                f"stopping {names}; once more to end {'it' if len(self._running) == 1 else 'them'} at once"
            )
        try:
            stop_all([stage.process for stage in self._running])
        finally:
            for stage in self._running:
                stage.record("waiting")
                stage.process.close()

    def _show(self, node: Node, state: str, text: str = "", seconds: float = 0.0, stage: _Stage | None = None) -> None:
        before = self._shown.get(node.name)
        rows, total = (before.rows, before.total) if before else (None, None)
        devices = before.devices if before else ""
        if stage is not None:
            seconds, devices = stage.process.seconds, stage.devices
            if (work := stage.process.log.progress()) is not None:
                # A last piece of work that cannot be counted leaves the rows of the one before it.
                rows, total = (work.done, work.total) if work.total is not None else (rows, total)
                text = work.pace() if state == "running" else text
        rows = total if state == "done" else rows
        self._shown[node.name] = NodeState(node.name, state, rows, total, text, seconds, devices)
        self._progress.show(list(self._shown.values()), node.name)

    def _conclude(self, waiting: Sequence[Node]) -> None:
        states = {node.name: self._shown[node.name].state for node in waiting}
        failed = [node for node in waiting if states[node.name] == "failed"]
        if failed:
            named = ", ".join(f"{node.name} ({self._graph.directory / node.log})" for node in failed)
            skipped = sum(state == "skipped" for state in states.values())
            raise UserError(
                f"{len(failed)} of {counted(len(waiting), 'stage')} failed, {skipped} skipped for it: {named}",
                "all to end well",
                "see the logs, mend it, and run the same command again",
            )
        count, total = len(self._chosen), len(self._graph.nodes)
        which = f"all {total} stages" if count == total else f"the {count} stages asked for, of {total},"
        self._progress.note(f"{self._graph.directory}: {which} are done")


class _Stage:
    """A node while it runs: its process, its devices and its record."""

    def __init__(self, graph: Graph, placement: Placement, machine: Machine, status: Status, workers: Workers) -> None:
        """Start the node's process on the slots of its placement."""
        self.node = graph[placement.task.name]
        self._graph, self._status = graph, status
        # With one slot a stage has what it would have alone.
        self.devices = shown(placement.slots) if machine.has_several else ""
        self._spent = _spent(self.node, status)
        begin(graph, self.node)
        self._verdicts = Verdicts(graph.path(self.node)) if self.node.stage == "verify" else None
        more = ["--regrade"] if self._verdicts is not None and self._verdicts.begin(self.node) else []
        status.set(
            self.node.name,
            state="running",
            digest=self.node.digest,
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            exit_code=None,
            devices=list(placement.devices) if machine.has_several else None,
            replicas=placement.times if placement.task.takes_free else None,
        )
        more += [*words_of(machine, self.node, placement), *words_of_training(graph, self.node)]
        self.process = workers.start(self.node, placement, more)
        status.set(self.node.name, warm=self.process.is_warm or None, starts_worker=self.process.starts_worker or None)
        self._last: dict[str, float] = {}

    def is_due(self, what: str, seconds: float) -> bool:
        """Return True if so many seconds have passed since it last did."""
        if self.process.seconds - self._last.get(what, 0.0) <= seconds:
            return False
        self._last[what] = self.process.seconds
        return True

    def end(self, code: int) -> bool:
        """Record the end of the process. Return True if the output is whole."""
        well = code == 0 and is_whole(self._graph, self.node)
        if well and self._verdicts is not None:
            self._verdicts.end(self.node)
        self.record("done" if well else "failed")
        return well

    def record(self, state: str) -> None:
        peak = max(self.process.peak, self._status.of(self.node.name).get("peak_rss_bytes", 0) if self._spent else 0)
        self._status.set(
            self.node.name,
            state=state,
            seconds=round(self._spent + self.process.seconds, 3),
            peak_rss_bytes=peak,
            exit_code=self.process.exit_code,
        )


def _spent(node: Node, status: Status) -> float:
    """Return the seconds that earlier, interrupted runs spent on a node."""
    before = status.of(node.name)
    if before.get("digest") != node.digest or before.get("state") == "done":
        return 0.0
    return before.get("seconds", 0.0)
