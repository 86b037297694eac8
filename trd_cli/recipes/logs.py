"""The log of a stage and the events that it tells, as the run reads them.

logs/NODE.log          `$ trd …` and what the command wrote to standard error, again for each time it was started
.stages/NODE.events    facts that the stage tells (see `progress`)
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from trd_cli.progress import EVENTS_VARIABLE, Work
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.redaction import scrubbed

_STAGES = ".stages"
_TAIL = 8192


def directory_of_stages(run: Path) -> Path:
    """Return the absolute path of the directory for the files of stages that run."""
    return run.resolve() / _STAGES


class StageLog:
    """The log and the events of a stage."""

    def __init__(self, graph: Graph, node: Node, words: Sequence[str]) -> None:
        """Make both for a command, by its words after `trd`."""
        self.path = graph.directory.resolve() / node.log
        self.path.parent.mkdir(exist_ok=True)
        self._events = directory_of_stages(graph.directory) / f"{self.path.stem}.events"
        self._events.parent.mkdir(exist_ok=True)
        self._line = os.fsencode(f"$ trd {scrubbed(shlex.join(words))}\n")
        self.begin()

    def begin(self) -> None:
        """Write the first line of the command, and forget what it told when it was started before."""
        self._events.write_bytes(b"")
        self._heard = 0
        self._work: Work | None = None
        self._error: str | None = None
        with open(self.path, "ab") as log:
            log.write(self._line)
            self._start = log.tell()

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables of a stage that writes both."""
        # The log is read back as UTF-8, whatever the user's terminal has.
        return {"PYTHONIOENCODING": "utf-8", EVENTS_VARIABLE: str(self._events)}

    def progress(self) -> Work | None:
        """Return the piece of work that the stage is at, or None before it has begun one."""
        self._listen()
        return self._work

    def failure(self) -> str:
        """Return the error that ended the stage, or the last line of its log if there was none, as after a kill."""
        self._listen()
        return self._error or next((line for line in reversed(_tail(self.path, self._start)) if line.strip()), "")

    def close(self) -> None:
        """Remove the events of a stage that has ended."""
        self._events.unlink(missing_ok=True)

    def _listen(self) -> None:
        """Take in the events since the last call."""
        with open(self._events, "rb") as file:
            file.seek(self._heard)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    return
                self._heard += len(line)
                with contextlib.suppress(ValueError, TypeError):  # a full disk cut it off
                    event = json.loads(line)
                    self._error = event.get("error", self._error)
                    self._work = Work(**event["work"]) if "work" in event else self._work


def _tail(log: Path, start: int) -> list[str]:
    """Return the last lines of a log after its first `start` bytes."""
    with open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL))
        return file.read().decode("utf-8", "replace").splitlines()
