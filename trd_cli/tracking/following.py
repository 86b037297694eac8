"""Follow a run: start a process that sends figures, again and again while stages end, and never wait for it.

A tracker that fails is told of once. What is missing is sent at the next look, or by the next `trd run`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from trd_cli.children import Child
from trd_cli.config.commands import RunConfig
from trd_cli.recipes.nodes import BASE, BASE_EVAL, Graph, Node
from trd_cli.redaction import scrubbed
from trd_cli.tracking.base import Answer, Order, Tracked

LOG = "logs/tracker-{}.log"
# Seconds between two looks, and how many times as long as the last one took: a look costs time that stages need too.
_APART, _SHARE = 10.0, 5.0
# Seconds from a look that failed to the next.
_AFTER_FAILURE = 300.0
# Seconds that a run waits at its end for a tracker.
_PATIENCE = 120.0


def followers(config: RunConfig, graph: Graph, note: Callable[[str], None]) -> list[Follower]:
    """Return one follower for each tracker that was asked for."""
    chosen = tuple(tracked_of(graph, config.only)) if config.tracker else ()
    return [
        Follower(Order(graph.directory.resolve(), name, config.tracker_project, chosen, False), note)
        for name in dict.fromkeys(config.tracker)
    ]


def tracked_of(graph: Graph, only: Sequence[str] = ()) -> Iterator[Tracked]:
    """Yield the base model and each arm and seed (of all arms, or of those in `only`) with all their stages."""
    arms = [node for node in graph.nodes if node.stage in ("distill", "eval") and (not only or node.arm in only)]
    groups: dict[tuple[str | None, int | None], list[Node]] = {}
    for node in [*(each for each in graph.nodes if each.name == BASE_EVAL), *(n for n in arms if n.arm is not None)]:
        groups.setdefault((node.arm, node.seed), []).append(node)
    for (arm, seed), ends in groups.items():
        needed = graph.needed_by(node.name for node in ends)
        nodes = [node for node in graph.nodes if node.name in needed]
        name = BASE if arm is None else f"{arm}/seed-{seed}"
        yield Tracked(name, ends[0].digest, _about(graph, arm, seed, nodes), {n.name: n.digest for n in nodes})


def _about(graph: Graph, arm: str | None, seed: int | None, nodes: Sequence[Node]) -> dict[str, Any]:
    """Return what a tracker shows as configuration: the recipe, the first round's options, and where files are."""
    options: dict[str, Any] = {}
    for node in nodes:
        options.setdefault(node.kind, node.config.record())
    return {
        "arm": arm or BASE,
        "seed": seed,
        "recipe": graph.recipe.record(),
        "options": options,
        "run_directory": str(graph.directory.resolve()),
        "nodes": {node.name: str(graph.path(node).resolve()) for node in nodes},
    }


class Follower:
    """The looks of one tracker at a run, each in a process of its own."""

    def __init__(self, order: Order, note: Callable[[str], None]) -> None:
        self._order, self._note = order, note
        self._child: Child | None = None
        self._log = order.directory / LOG.format(order.tracker)
        self._is_due, self._is_late, self._has_failed = True, False, False
        self._is_at_tracker, self._began, self._not_before = False, 0.0, 0.0

    def follow(self, has_changed: bool) -> None:
        """Send what is new if it is time to; `has_changed` if a stage has ended since the last call."""
        self._is_due |= has_changed and not self._is_late
        while self._child is not None and self._child.pipe.poll():
            self._hear()
        if self._child is None and self._is_due and time.monotonic() >= self._not_before:
            self._look(is_last=False)

    def end(self) -> None:
        """Send the rest, and wait for it, but for the tracker two minutes at most."""
        self._await()
        self._look(is_last=True)
        self._await()

    def stop(self) -> None:
        """End the process now. What it was sending is sent by the next run."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _look(self, is_last: bool) -> None:
        self._is_due, self._is_at_tracker, self._began = False, False, time.monotonic()
        self._log.parent.mkdir(exist_ok=True)
        try:
            self._child = Child("trd_cli.tracking.sending", os.environ, self._write)
            self._child.pipe.send(replace(self._order, is_last=is_last))
        except OSError as error:
            self._tell(str(error))

    def _await(self) -> None:
        while self._child is not None:
            if self._child.pipe.poll(_PATIENCE if self._is_at_tracker else None):
                self._hear()
            else:
                self._tell(f"it does not answer for {_PATIENCE:.0f} seconds")
                self.stop()

    def _hear(self) -> None:
        """Take what the process says. One that has answered, or has died, is ended."""
        try:
            answer = self._child.pipe.recv()
        except (EOFError, OSError):
            child, self._child = self._child, None
            answer = Answer(child.end())
        if not isinstance(answer, Answer):
            self._is_at_tracker = answer
            return
        self.stop()  # a tracker keeps all that it was given before there is an answer
        if answer.failure is not None:
            self._tell(answer.failure)
        self._is_late |= answer.is_late
        now, apart = time.monotonic(), _APART if answer.failure is None else _AFTER_FAILURE
        self._not_before = now + max(apart, _SHARE * (now - self._began))

    def _tell(self, failure: str) -> None:
        """Say once that figures are missing; the log has every failure."""
        self._write(failure)
        if not self._has_failed:
            log = self._log.relative_to(self._order.directory)
            self._note(
                f"tracker {self._order.tracker} lacks figures: {scrubbed(failure)}; the run goes on, and the same command "
                f"sends them again ({log})"
            )
        self._has_failed = True

    def _write(self, line: str) -> None:
        try:
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(scrubbed(line) + "\n")
        except OSError:
            pass  # a full disk stops the stages, not this
