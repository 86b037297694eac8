"""A world in which a wrong first step is a dead end: problems from a seed, worked answers, verdicts on responses.

A problem shows digits, each at a place with a letter, behind the number of steps: `6a4b7c3d8e1f0`. An answer first
commits to a route: the letter of the place with the largest digit, which only the whole problem tells. Then it walks
from that place to the next ones, round the end. At each it copies the place with its digit, and writes its
letter as a capital with the sum so far modulo ten: `Dd8D8e1E9f0F9`. A step can be checked from the one
before it. An answer on a wrong route goes on as consistently as a right one, to no use. `!` turns back: what follows
the last `!` counts.

    python examples/lab/world.py make --n 600 --seed 1 --places 10 --depth 6 --out held-out.parquet

Problems of two seeds may be equal; `--apart-from FILE` (repeatable) leaves out those of another set. With `--near-ties`
at least three places hold the largest digit less one. For trd, the task is `routes`, and the grader
`examples.lab.world:grade` from the root of a checkout.
"""

from __future__ import annotations

import argparse
import random
import re
import string
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trd_cli.records import Problem

TASK, TURN = "routes", "!"
LETTERS = string.ascii_uppercase[:12]
PLACES, DEPTHS = range(5, 13), range(1, 10)
_TEXT = re.compile(r"([1-9])((?:[a-l]\d)+)", re.ASCII)
_TIES, _TRIES = 3, 100


@dataclass(frozen=True)
class World:
    """One problem: the digit of each place, and the number of steps."""

    digits: tuple[int, ...]
    depth: int

    @classmethod
    def parse(cls, text: str) -> World:
        """Read a problem's text. Raises ValueError for another one."""
        found = _TEXT.fullmatch(text.strip())
        if found is None or found[2][::2] != LETTERS[: len(found[2]) // 2].lower():
            raise ValueError(f"{text!r} is no problem of this world")
        return cls(tuple(map(int, found[2][1::2])), int(found[1]))

    def __str__(self) -> str:
        return f"{self.depth}" + "".join(map(self.shown, range(self.places)))

    def shown(self, place: int) -> str:
        """Return a place as the problem shows it: its letter and its digit."""
        return f"{LETTERS[place].lower()}{self.digits[place]}"

    @property
    def places(self) -> int:
        return len(self.digits)

    @property
    def route(self) -> int:
        """Return the place of the largest digit, the first of several."""
        return self.digits.index(max(self.digits))

    def walk(self, start: int) -> str:
        """Return a consistent answer that starts at a place."""
        written, total = [], 0
        for step in range(self.depth):
            place = (start + step) % self.places
            total = (total + self.digits[place]) % 10
            written.append(f"{self.shown(place)}{LETTERS[place]}{total}")
        return LETTERS[start] + "".join(written)

    @property
    def solution(self) -> str:
        """Return the right answer."""
        return self.walk(self.route)


def grade(problem: str, reference_answer: str | None, response: str) -> bool | str:
    """Return True for a right answer, else what is wrong with the part after the last `!`.

    The problem's text alone decides. Raises ValueError for a problem of another world.
    """
    world = World.parse(problem)
    answer = response.strip().rpartition(TURN)[2]
    if answer == world.solution:
        return True
    if answer[:1] != LETTERS[world.route]:
        return "wrong route" if answer and answer[0] in LETTERS else "no route"
    for at, right in enumerate(world.solution):
        if answer[at : at + 1] != right:
            return f"{'slip' if answer[at:] else 'end'} at step {max(0, at - 1) // 4 + 1}"
    return "too long"


def draw_world(draws: random.Random, places: int, depth: int, near_ties: bool = False) -> World:
    """Draw a problem whose largest digit is at one place alone."""
    while True:
        digits = [draws.randrange(10) for _ in range(places)]
        if near_ties:
            largest = draws.randrange(4, 10)
            chosen = draws.sample(range(places), _TIES + 1)
            digits = [draws.randrange(largest) for _ in digits]
            for place in chosen:
                digits[place] = largest - 1
            digits[chosen[0]] = largest
        if digits.count(max(digits)) == 1:
            return World(tuple(digits), depth)


def draw_problems(options: argparse.Namespace, known: Iterable[str] = ()) -> Iterator[Problem]:
    """Yield different problems in trd's form, none of which has a text in `known`.

    Raises InputError where so many different ones are hard to find.
    """
    from trd_cli.errors import InputError
    from trd_cli.records import Problem, content_hash

    draws, seen, tries = random.Random(f"{TASK} {options.seed}"), set(known), 0
    for left in range(options.n, 0, -1):
        while str(world := draw_world(draws, options.places, options.depth, options.near_ties)) in seen:
            tries += 1
            if tries > _TRIES * options.n:
                raise InputError(f"{left} problems too few", "as many different ones", "ask for fewer, or more places")
        seen.add(str(world))
        yield Problem(
            problem_id=content_hash([TASK, str(world)]),
            source=TASK,
            task=TASK,
            problem=str(world),
            reference_answer=LETTERS[world.route],
            reference_solution=world.solution,
        )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    make = parser.add_subparsers(dest="command", required=True).add_parser("make", help="Write a problem set.")
    make.add_argument("--n", type=int, required=True, help="Number of problems.")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--places", type=int, default=10, choices=PLACES, metavar="N", help="Routes that there are.")
    make.add_argument("--depth", type=int, default=6, choices=DEPTHS, metavar="N", help="Steps of an answer.")
    make.add_argument("--near-ties", action="store_true", help="Many digits are the largest less one.")
    make.add_argument(
        "--apart-from", type=Path, action="append", default=[], metavar="FILE", help="Leave its problems out."
    )
    make.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Write the problem set that the arguments ask for, and print its path."""
    options = _options(arguments)
    import pyarrow.parquet as pq

    from trd_cli.atomic import make_directory
    from trd_cli.errors import TrdError
    from trd_cli.trajectories.shards import write_problems

    known = [
        text for file in options.apart_from for text in pq.read_table(file, columns=["problem"])["problem"].to_pylist()
    ]
    try:
        make_directory(options.out.parent)
        write_problems(options.out, draw_problems(options, known))
    except TrdError as error:
        sys.exit(f"Error: {error}")
    print(options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
