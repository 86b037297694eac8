"""A small deterministic text world that needs no package: rooms in a row, and a lamp in one of them.

Its faults are for tests: at one seed (`at_seed`) and turn (`at_turn`, 0 for the reset) it can hang, crash, raise or eat
memory.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trd_cli.worlds.base import Score, Step, WorldError

VERSION = "1"
_COLOURS = ("red", "green", "blue", "white", "black", "brown", "grey", "pink")
_MOVES = {"go east": 1, "go west": -1}


def _hang() -> None:
    while True:
        time.sleep(60)


def _eat() -> None:
    held = []
    while True:
        held.append(bytearray(64 << 20))


def _raise() -> None:
    raise RuntimeError("the scripted environment raises here")


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: Mapping[str, Callable[[], None]] = {
    "none": lambda: None,
    "hang": _hang,
    "crash": _crash,
    "raise": _raise,
    "memory": _eat,
}


@dataclass(frozen=True)
class Settings:
    """Hold the options of the world: `rooms` from 2 to 1000; `at_seed` -1 stands for every seed."""

    rooms: int = 4
    fault: str = "none"
    at_seed: int = -1
    at_turn: int = 0


class Rooms:
    """The world. The player starts in one room, the lamp lies in another; taking it reaches the goal.

    Half of the reward is earned by entering the lamp's room for the first time.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.fault not in FAULTS:
            raise WorldError(f"fault={settings.fault}; expected one of {', '.join(FAULTS)}")
        if not 2 <= settings.rooms <= 1000:
            raise WorldError(f"rooms={settings.rooms}; expected a number from 2 to 1000")
        self._settings = settings

    def reset(self, seed: int) -> str:
        draw = random.Random(seed)
        rooms = self._settings.rooms
        self._place, self._lamp = draw.sample(range(rooms), 2)
        self._colours = [draw.choice(_COLOURS) for _ in range(rooms)]
        self._seed, self._turn = seed, 0
        self._has_found = self._has_lamp = False
        self._fail_if_due()
        commands = "go east, go west, look, take lamp"
        return f"{rooms} rooms lie in a row. Find the lamp and take it. Commands: {commands}.\n\n{self._sight()}"

    def step(self, action: str) -> Step:
        self._turn += 1
        self._fail_if_due()
        if action in _MOVES:
            return self._move(_MOVES[action])
        if action == "look":
            return Step(self._sight())
        if action == "take lamp" and self._place == self._lamp:
            self._has_lamp = True
            return Step("You take the lamp. You have reached the goal.", done=True)
        if action == "take lamp":
            return Step("There is no lamp here.", valid=False)
        return Step("That is no command here.", valid=False)

    def score(self) -> Score:
        return Score(self._has_found / 2 + self._has_lamp / 2, self._has_lamp)

    def oracle(self) -> list[str]:
        """Return the shortest way to the lamp, and its taking."""
        way = self._lamp - self._place
        moves = ["go east" if way > 0 else "go west"] * abs(way)
        return [] if self._has_lamp else [*moves, "take lamp"]

    def _move(self, by: int) -> Step:
        if not 0 <= self._place + by < self._settings.rooms:
            return Step("There is a wall.", valid=False)
        self._place += by
        self._has_found |= self._place == self._lamp
        return Step(self._sight())

    def _sight(self) -> str:
        exits = [
            name
            for name, there in (("west", self._place > 0), ("east", self._place < self._settings.rooms - 1))
            if there
        ]
        lamp = " A lamp lies here." if self._place == self._lamp else ""
        return f"You are in a {self._colours[self._place]} room.{lamp} Exits: {', '.join(exits)}."

    def _fail_if_due(self) -> None:
        is_due = self._settings.at_seed in (-1, self._seed) and self._turn == self._settings.at_turn
        if is_due:
            FAULTS[self._settings.fault]()


def make(**options: int | str) -> Rooms:
    """Return the world with these `Settings`."""
    return Rooms(Settings(**options))
