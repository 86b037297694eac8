"""The moves of an episode on its way. A play is a generator: it yields a move, and is sent what came of it.

    def play(row) -> Play:
        seen = yield Reset()
        completion = yield Ask(request)
        seen = yield Step(action)
        return finished_row

A play is pure: it asks no engine and steps no environment itself, so it can be read and tested without either. An error
of the engine or of the environment ends the row: the play is closed, and the driver makes the error row.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from trd_cli.records import Request, Trajectory


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the engine; its `Completion`, without an error, is sent back."""

    request: Request


@dataclass(frozen=True, slots=True)
class Reset:
    """Start the row's environment from its seed, also in the middle of a play; an `Observation` is sent back."""


@dataclass(frozen=True, slots=True)
class Step:
    """Take an action in the environment; an `Observation` is sent back."""

    action: str


@dataclass(frozen=True, slots=True)
class AskOracle:
    """Ask the environment for the commands from its present state to the goal; an `Oracle` is sent back."""


Move = Ask | Reset | Step | AskOracle
# It yields moves, is sent a Completion, an Observation or an Oracle for each, and returns the finished row.
Play = Generator[Move, Any, Trajectory]
