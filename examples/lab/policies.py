"""What each model is trained to say next: exact probabilities of the next token, for any beginning of a response.

The expert knows the route. After a right beginning it goes on right. After a wrong one it turns back with a share, the
same at each token, and else goes on consistently, as a teacher does that reads an answer that has gone wrong. The
novice is a writer with faults: it names a place with a large digit, not always the largest, and its sums may slip.
It does not know when it is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal

from world import LETTERS, TURN, World

END = "<end>"
# Shares of turning back that a prompt can ask for, by the end of its template's name, and the share where nothing asks.
SHARES = {"q0": 0.0, "q10": 0.1, "q30": 0.3, "q60": 0.6, "q100": 1.0}
SHARE = 0.0
Next = dict[str, float]
# The most tokens of a response.
MOST = 40


@dataclass(frozen=True, slots=True)
class Writing:
    """A beginning of a response, read token by token; what is before the last `!` counts no more.

    `written` is the number of tokens since then. `place`, `seen` and `total` tell where the walk stands, `right` that a
    right answer begins so, `shape` that places and sums take turns after a letter.
    """

    world: World
    written: int = 0
    place: int = -1
    seen: int = 0
    total: int = 0
    right: bool = True
    shape: bool = True

    def after(self, token: str) -> Writing:
        """Return the state after one more token."""
        if token == TURN:
            return Writing(self.world)
        if not self.written:
            return self._begun(token)
        place = LETTERS.find(token[0].upper() if token[0].islower() != self._at_sum else "-") if len(token) == 2 else -1
        if not self.shape or not 0 <= place < self.world.places:
            return Writing(self.world, self.written + 1, self.place, self.seen, self.total, False, False)
        if not self._at_sum:
            return self._at(place, int(token[1]))
        right = self.right and token == self.sum()
        return Writing(self.world, self.written + 1, self.place, self.seen, int(token[1]), right)

    @property
    def _at_sum(self) -> bool:
        return self.written > 0 and self.written % 2 == 0

    def _begun(self, token: str) -> Writing:
        place = LETTERS.find(token)
        shape = 0 <= place < self.world.places
        # The walk has not come to its first place yet.
        return Writing(self.world, 1, place - 1, right=shape and place == self.world.route, shape=shape)

    def _at(self, place: int, seen: int) -> Writing:
        world = self.world
        right = self.right and place == (self.place + 1) % world.places and seen == world.digits[place]
        return Writing(world, self.written + 1, place, seen, self.total, right and self.written <= 2 * world.depth)

    def sum(self, off: int = 0) -> str:
        """Return the sum that is due after a place, or one that is off by so much."""
        return f"{LETTERS[self.place]}{(self.total + self.seen + off) % 10}"

    @property
    def due(self) -> Literal["route", "place", "sum", "end"]:
        """Return what comes next in a consistent response."""
        if not self.written:
            return "route"
        if not self.shape or self.written > 2 * self.world.depth:
            return "end"
        return "sum" if self._at_sum else "place"

    def walk(self) -> str:
        """Return the next place."""
        return self.world.shown((self.place + 1) % self.world.places)


@dataclass(frozen=True)
class Expert:
    """Turn back after a wrong beginning with the share `turns`."""

    turns: float = SHARE

    def next(self, state: Writing) -> Next:
        if state.due == "route":
            return {LETTERS[state.world.route]: 1.0}
        found = {state.sum(): 1.0} if state.due == "sum" else {END: 1.0}
        if state.due == "place":
            found = {state.walk(): 1.0}
        return found if state.right else _scaled(found, {TURN: self.turns})


@dataclass(frozen=True)
class Novice:
    """Name any place: for each digit less than another, `sharp` tells how much less likely, for each place to the
    right `tilt`, as exponents; slip in a sum with the chance `slips`.
    """

    sharp: float
    tilt: float = 0.0
    slips: float = 0.0
    turns: float = 0.0
    # Chances of a wrong digit at a place, of a token out of order, and of an early end: faults of attempts in prompts.
    misreads: float = 0.0
    strays: float = 0.0
    stops: float = 0.0

    def next(self, state: Writing) -> Next:
        if state.due == "route":
            return self.routes(state.world)
        found = {END: 1.0}
        if state.due == "place":
            found = {state.walk(): 1.0}
        if state.due == "sum":
            found = {
                state.sum(off): share for off, share in ((0, 1 - self.slips), (1, self.slips / 2), (-1, self.slips / 2))
            }
        return _scaled(found, {TURN: self.turns, END: self.stops})

    def routes(self, world: World) -> Next:
        """Return the chance of each route."""
        weights = [exp(self.sharp * digit - self.tilt * place) for place, digit in enumerate(world.digits)]
        return {LETTERS[place]: weight / sum(weights) for place, weight in enumerate(weights)}


def _scaled(found: Next, others: Next) -> Next:
    """Return chances of what else may come, and for the rest those of `found`; without those that are 0."""
    left = 1 - sum(others.values())
    scaled = {token: share * left + others.get(token, 0.0) for token, share in found.items()}
    return {token: share for token, share in (others | scaled).items() if share > 0}


Policy = Expert | Novice
_STRAYS = (*LETTERS, *"0123456789", TURN)


def write(policy: Policy, world: World, draws: random.Random, most: int = MOST) -> list[str]:
    """Draw a response, of at most so many tokens."""
    state, written = Writing(world), []
    strays, misreads = (policy.strays, policy.misreads) if isinstance(policy, Novice) else (0.0, 0.0)
    while len(written) < most:
        shares = policy.next(state)
        (token,) = draws.choices(list(shares), list(shares.values()))
        if strays and draws.random() < strays:
            token = draws.choice((*_STRAYS, f"{draws.choice(LETTERS + LETTERS.lower())}{draws.randrange(10)}"))
        if misreads and token[0].islower() and draws.random() < misreads:
            token = f"{token[0]}{draws.choice(world.digits)}"
        if token == END:
            return written
        written.append(token)
        state = state.after(token)
    return written


def targets(policy: Policy, world: World, response: Sequence[str]) -> list[Next]:
    """Return the probabilities of the next token at each place of a response, and after its end."""
    state, found = Writing(world), []
    for token in response:
        found.append(policy.next(state))
        state = state.after(token)
    return [*found, policy.next(state)]


def any_novice(draws: random.Random) -> Novice:
    """Draw a writer with faults of any kind and strength, so that whoever reads such attempts has seen them all."""
    return Novice(
        sharp=draws.choice((0.0, 0.3, 0.6, 1.0, 3.0)),
        tilt=draws.choice((-0.2, 0.0, 0.2)),
        slips=draws.choice((0.0, 0.05, 0.15, 0.4)),
        turns=draws.choice((0.0, 0.02, 0.1, 0.3)),
        misreads=draws.choice((0.0, 0.0, 0.05, 0.3)),
        strays=draws.choice((0.0, 0.0, 0.01, 0.1)),
        stops=draws.choice((0.0, 0.0, 0.05)),
    )
