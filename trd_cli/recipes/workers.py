"""A worker: a process that carries out one stage after another, so that each pays for no start and no imports.

See `trd_cli.warm` for what it is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from trd_cli.recipes.devices import environment_of
from trd_cli.recipes.logs import StageLog, directory_of_stages
from trd_cli.recipes.nodes import NODES, Graph, Node
from trd_cli.recipes.processes import Child
from trd_cli.recipes.slots import Placement

PATIENCE = 60.0  # seconds for a worker that has nothing to do to rest or to end


class Worker(Child):
    """A process that carries out the commands of stages, one at a time."""

    def __init__(self, graph: Graph, node: Node, placement: Placement, log: StageLog) -> None:
        """Start the process for its first stage; until that begins, standard error goes to the stage's log."""
        self.stage, self.devices, self._heard = node.stage, placement.devices, b""
        self.stages = 0
        self.environment = environment_of(placement)
        self.is_idle = self.is_leaving = self.is_resting = False
        self.needs = 0  # bytes, by the estimate
        # The last words tell a person what the process is for.
        words = [sys.executable, "-m", "trd_cli.warm", node.stage, f"{graph.directory.resolve() / NODES}/"]
        directory = directory_of_stages(graph.directory)
        super().__init__(words, self.environment, log, node, directory, ends_with_run=True, streams=subprocess.PIPE)
        os.set_blocking(self.process.stdout.fileno(), False)

    def begin(self, node: Node, order: Mapping[str, Any]) -> None:
        """Give the order for a stage."""
        self.sign(node)
        self.stages += 1
        self.peak, self.is_resting = 0, False
        self._tell(order)

    def rest(self) -> None:
        """Let the process leave its devices to others, and wait until it has; one that does not is killed."""
        if self.is_leaving:
            self.wait()  # what it holds goes with it
        if self.is_resting or self.poll() is not None:
            return
        self._tell({"rest": True})
        self.is_resting = True
        self.wait(lambda: self.answer() is not None)

    def wait(self, condition: Callable[[], bool] = lambda: False) -> None:
        """Wait for a condition, or for the end of the process, which is killed if neither comes in time."""
        until = time.monotonic() + PATIENCE
        while not condition() and self.poll() is None:
            if time.monotonic() > until:
                self.kill()
            time.sleep(0.02)

    def _tell(self, order: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has just died, which `poll` tells
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, int] | None:
        """Return the answer to the last order, or None before it has come."""
        self._heard += self.process.stdout.read() or b""
        if not self._heard.endswith(b"\n"):
            return None
        found, self._heard = json.loads(self._heard), b""
        return found

    def _heed(self, peak: int) -> None:
        """Leave the kernel's peak out: it is that of all stages."""

    def is_free_for(self, node: Node, placement: Placement) -> bool:
        """Return True if the stage can begin in this process."""
        fits = (self.stage, self.environment) == (node.stage, environment_of(placement))
        return fits and self.is_idle and not self.is_leaving and self.poll() is None

    def let_go(self) -> None:
        """Let the process end as soon as it has nothing to do."""
        self.is_leaving = True
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def end_what_is_left(self) -> None:
        """End the processes that one which has died has left behind: they may hold what its next try needs."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.let_go()
        self.process.stdout.close()
        super().close()
