"""The protocol of an environment, and the values that pass between it, its worker and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class WorldError(Exception):
    """An environment that cannot be made or reset as asked; the message is for people: "GOT" or "GOT; expected …"."""


@dataclass(frozen=True, slots=True)
class Step:
    """Hold an environment's answer to an action.

    `valid` is False where it does not know the action or cannot take it now. After `done` no further action comes.
    """

    text: str
    valid: bool = True
    done: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Hold the reward of an episode so far, a finite number, and whether its goal is reached."""

    reward: float
    solved: bool


class World(Protocol):
    """An environment: it plays one episode after the other.

    The same seed and the same actions must give the same texts and scores in every process: an episode is played again
    when a worker is lost, when its actions are refined, and when it is audited. An environment may also have a method
    `oracle()` that returns the commands from the present state to the goal, or None where it knows none.
    """

    def reset(self, seed: int) -> str:
        """Begin the episode of that seed and return what the player reads first: the goal and the first sight."""

    def step(self, action: str) -> Step:
        """Take an action, one line of text."""

    def score(self) -> Score:
        """Return the score at this point of the episode."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Hold what an episode has come to: the environment's last text, and the score so far."""

    text: str
    valid: bool
    done: bool
    solved: bool
    reward: float


@dataclass(frozen=True, slots=True)
class Oracle:
    """Hold the commands from the present state to the goal, or None where the environment knows none."""

    commands: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Tell why an episode cannot go on: its environment hung, crashed, raised or took too much memory.

    `refused` is True if the environment cannot be made as it is named, and so no episode of it.
    """

    message: str
    refused: bool = False


Result = Observation | Oracle | Failure
