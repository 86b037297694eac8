"""Mix the rows of several tasks: which class of --mix a row is of, and the order in which the classes take turns.

Each next row of a training is of the class that is furthest behind its share. So a class is never a whole row beyond
its share of the rows so far, and shares that a step cannot meet are met exactly over steps. The rows of a class come in
a random order, all of them before one comes again.
"""

from __future__ import annotations

import itertools
import math
import random
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from trd_cli.errors import InputError, flag


class Classes:
    """Tell the class of each row from its task and its source. Without shares there is no class."""

    def __init__(self, shares: Mapping[str, float], held: Collection[tuple[str, str]], needs_all: bool = True) -> None:
        """`held` are tasks and sources of all rows.

        Raises InputError for a name that no row has, unless not all are needed, and for rows of two names.
        """
        tasks, sources = ({pair[i] for pair in held} for i in range(2))
        self.names = tuple(shares)
        self._by_task = {name for name in shares if name in tasks}
        self._by_source = {name for name in shares if name in sources - tasks}
        for name in shares if needs_all else ():
            if name not in self._by_task | self._by_source:
                raise InputError(
                    f"{flag('mix')} {name}, which is neither task nor source of a row",
                    "one of " + ", ".join(sorted(tasks | sources)),
                    f"change {flag('mix')}, or give the set that has such rows",
                )
        for task, source in sorted(held):
            if task in self._by_task and source in self._by_source:
                raise InputError(
                    f"{flag('mix')} {task} and {source}, which are task and source of the same rows",
                    "one share for each row",
                    "leave one out",
                )

    def __bool__(self) -> bool:
        return bool(self.names)

    def of(self, task: str, source: str) -> str | None:
        """Return the name in --mix that a row goes by, or None where there is none."""
        if task in self._by_task:
            return task
        return source if source in self._by_source else None


@dataclass(frozen=True)
class Mixed:
    """Hold the numbers of the rows of each class, and each class's share. Classes without rows are left out.

    The shares of the others are then as large, in proportion.
    """

    shares: Mapping[str, float]
    rows: Mapping[str, Sequence[int]]

    def passes(self, seed: int, first: int = 0) -> Iterator[array[int]]:
        """Yield the numbers of the rows of one pass after another without end, from pass `first` on.

        A pass takes as many rows as there are. The classes go on from one pass to the next where they were.
        """
        names = sorted(name for name in self.shares if len(self.rows.get(name, ())))
        size = sum(len(self.rows[name]) for name in names)
        chosen = {name: _in_random_order(self.rows[name], f"{seed}-{name}") for name in names}
        numbers = (next(chosen[name]) for name in turns({name: self.shares[name] for name in names}))
        numbers = itertools.islice(numbers, first * size, None)
        while True:
            yield array("q", itertools.islice(numbers, size))


def turns(shares: Mapping[str, float]) -> Iterator[str]:
    """Yield the name whose turn it is, without end; each has its share of every beginning, but for less than one.

    Shares are as they are written in decimal, and may come to a little more or less than 1.
    """
    exact = {name: Fraction(str(share)) for name, share in sorted(shares.items())}
    unit = math.lcm(*(share.denominator for share in exact.values()))
    gains = {name: int(share * unit) for name, share in exact.items()}
    behind, whole = dict.fromkeys(gains, 0), sum(gains.values())
    while True:
        for name, gain in gains.items():
            behind[name] += gain
        turn = max(behind, key=behind.__getitem__)
        behind[turn] -= whole
        yield turn


def _in_random_order(numbers: Sequence[int], seed: str) -> Iterator[int]:
    """Yield all numbers again and again, in another order each time."""
    for time in itertools.count():
        order = array("q", numbers)
        random.Random(f"{seed}-{time}").shuffle(order)
        yield from order
