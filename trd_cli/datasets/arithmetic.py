"""Make arithmetic word problems with worked solutions from a seed alone.

A problem is a chain of `level` steps on one person's things: an opening, one story a step, one question. Level 1 adds
or subtracts, so that a very small model can solve it; levels 2 and 3 also multiply and divide. Every value on the way
is a whole number from 2 to 60, so that plurals are right. Not covered: fractions, negative numbers, units, distractors,
steps that do not depend on the one before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import perm
from typing import Any, Literal

from trd_cli.errors import InputError
from trd_cli.records import Problem, content_hash
from trd_cli.trajectories.id_set import IdSet

Operation = Literal["+", "-", "*", "/"]
Place = Literal["first", "middle", "last"]

OPERATIONS: dict[int, tuple[Operation, ...]] = {1: ("+", "-"), 2: ("+", "-", "*", "/"), 3: ("+", "-", "*", "/")}
LEVELS = tuple(OPERATIONS)
_SMALLEST, _LARGEST = 2, 60
# fmt: off
_NAMES = (
    "Ava", "Ben", "Carla", "Dan", "Elif", "Femi", "Grace", "Hiro", "Ines", "Jonas", "Kofi", "Lena", "Mira", "Noah", "Olga",
    "Priya", "Quinn", "Rosa", "Sam", "Tara", "Uma", "Viktor", "Wen", "Yara", "Zoe", "Amir", "Bella", "Chen", "Dina", "Emil",
)
_THINGS = (
    "pens", "apples", "stickers", "marbles", "books", "cards", "coins", "shells", "buttons", "stamps", "balloons", "beads",
    "crayons", "tickets", "pencils", "keys", "ribbons", "badges", "magnets", "postcards", "lemons", "cups", "candles", "nuts",
)
# fmt: on


@dataclass(frozen=True)
class _Shape:
    """Hold one step's texts. A "first" shape replaces the opening; no step can follow a "last" one.

    Placeholders: {A} the main person, {B} another one, {t} the things, {v} the value before, {k} the step's own number,
    {r} the result; {then} and {now} are empty in the first step.
    """

    operation: Operation
    place: Place
    story: str
    question: str
    work: str


_NOW = "How many {t} does {A} have now?"
_ALL = "How many {t} does {A} have in all?"
_LEFT = "How many {t} does {A} have left?"
_SUM = "so {A} has {v} + {k} = {r} {t}."
_DIFFERENCE = "so {A} has {v} - {k} = {r} {t} left."
_PRODUCT = "so {A} has {k} * {v} = {r} {t}."

_SHAPES = (
    _Shape("+", "middle", "{then}{B} gives {A} {k} more {t}.", _NOW, "{B} gives {A} {k} more, " + _SUM),
    _Shape("+", "middle", "{then}{A} buys {k} more {t}.", _NOW, "{A} buys {k} more, " + _SUM),
    _Shape("+", "middle", "{then}{A} finds {k} more {t}.", _ALL, "{A} finds {k} more, " + _SUM),
    _Shape(
        "+",
        "first",
        "{A} has {v} {t} at home and {k} {t} at school.",
        _ALL,
        "{A} has {v} {t} at home and {k} at school, " + _SUM,
    ),
    _Shape("+", "first", "{A} has {v} old {t} and {k} new {t}.", _ALL, "{A} has {v} old {t} and {k} new ones, " + _SUM),
    _Shape(
        "+",
        "last",
        "{B} has {k} {t}.",
        "How many {t} do {A} and {B} have together{now}?",
        "{B} has {k} {t}, so {A} and {B} have {v} + {k} = {r} {t} together.",
    ),
    _Shape("-", "middle", "{then}{A} gives {k} {t} to {B}.", _LEFT, "{A} gives away {k}, " + _DIFFERENCE),
    _Shape("-", "middle", "{then}{A} loses {k} {t}.", _LEFT, "{A} loses {k}, " + _DIFFERENCE),
    _Shape("-", "middle", "{then}{A} sells {k} {t}.", _LEFT, "{A} sells {k}, " + _DIFFERENCE),
    _Shape(
        "-",
        "last",
        "{B} has {k} fewer {t} than {A} has{now}.",
        "How many {t} does {B} have?",
        "{B} has {k} fewer than {A}, so {B} has {v} - {k} = {r} {t}.",
    ),
    _Shape(
        "-",
        "last",
        "{B} has {k} {t}.",
        "How many more {t} does {A} have{now} than {B}?",
        "{B} has {k}, so {A} has {v} - {k} = {r} {t} more than {B}.",
    ),
    _Shape(
        "*",
        "first",
        "{A} has {k} boxes with {v} {t} in each box.",
        _ALL,
        "There are {k} boxes with {v} {t} each, " + _PRODUCT,
    ),
    _Shape(
        "*",
        "first",
        "{A} fills {k} bags and puts {v} {t} into each bag.",
        _ALL,
        "{A} fills {k} bags with {v} {t} each, " + _PRODUCT,
    ),
    _Shape(
        "*",
        "first",
        "{A} collects {v} {t} a day for {k} days.",
        _ALL,
        "{A} collects {v} {t} on each of {k} days, " + _PRODUCT,
    ),
    _Shape(
        "*",
        "middle",
        "{then}{A} collects more {t} and ends up with {k} times as many {t} as before.",
        _NOW,
        "{A} ends up with {k} times as many, " + _PRODUCT,
    ),
    _Shape(
        "*",
        "last",
        "{B} has {k} times as many {t} as {A} has{now}.",
        "How many {t} does {B} have?",
        "{B} has {k} times as many as {A}, so {B} has {k} * {v} = {r} {t}.",
    ),
    _Shape(
        "/",
        "middle",
        "{then}{A} splits all the {t} into {k} equal piles and keeps only one pile.",
        _LEFT,
        "{A} keeps one of {k} equal piles, so {A} has {v} / {k} = {r} {t} left.",
    ),
    _Shape(
        "/",
        "last",
        "{then}{A} packs all the {t} into {k} boxes, the same number in each box.",
        "How many {t} are in each box?",
        "{A} packs them into {k} boxes, so each box has {v} / {k} = {r} {t}.",
    ),
    _Shape(
        "/",
        "last",
        "{then}{A} shares all the {t} equally among {k} friends.",
        "How many {t} does each friend get?",
        "{k} friends share them equally, so each friend gets {v} / {k} = {r} {t}.",
    ),
    _Shape(
        "/",
        "last",
        "{then}{A} lays all the {t} out in {k} equal rows.",
        "How many {t} are in each row?",
        "{A} makes {k} equal rows, so each row has {v} / {k} = {r} {t}.",
    ),
    _Shape(
        "/",
        "last",
        "{then}{A} gives away all the {t} in {k} days, the same number each day.",
        "How many {t} does {A} give away each day?",
        "{A} takes {k} days, so {A} gives away {v} / {k} = {r} {t} each day.",
    ),
    _Shape(
        "/",
        "last",
        "{then}{A} puts all the {t} into bags of {k}.",
        "How many bags does {A} fill?",
        "Each bag takes {k}, so {A} fills {v} / {k} = {r} bags.",
    ),
    _Shape(
        "/",
        "last",
        "{then}{A} has {k} times as many {t} as {B}.",
        "How many {t} does {B} have?",
        "{A} has {k} times as many as {B}, so {B} has {v} / {k} = {r} {t}.",
    ),
)


def make_arithmetic(n: int, seed: int, level: int) -> list[Problem]:
    """Return the problems of `draw_arithmetic`."""
    return list(draw_arithmetic(n, seed, level))


def draw_arithmetic(n: int, seed: int, level: int) -> Iterator[Problem]:
    """Return `n` distinct problems of `level` steps (1 to 3), the same ones for the same seed and level.

    The first n of a larger set are the smaller set. Two seeds draw independently from the same space (`capacity`), so
    their sets are disjoint only by chance: two sets of 1000 share about 0.4 problems at level 1, practically none
    above. Raises InputError for another level, for n < 1, and for n above the capacity. (Drawing would slow down close
    to the capacity, but even the smallest one exceeds memory.)
    """
    _check(n, level)
    return _distinct(n, seed, level)


def _distinct(n: int, seed: int, level: int) -> Iterator[Problem]:
    # A text seed goes through SHA-512, so neighbouring seeds and levels draw unrelated problems.
    rng = random.Random(f"{seed}/{level}")
    drawn = IdSet()
    while len(drawn) < n:
        problem = _draw(rng, level)
        if problem is not None and drawn.add(problem.problem):
            yield problem


def capacity(level: int) -> int:
    """Return the number of distinct problems with `level` steps."""
    return sum(_variants(chain) for chain in _chains(level, ()))


def _check(n: int, level: int) -> None:
    if level not in LEVELS:
        raise InputError(f"arithmetic level {level}", "1, 2 or 3 (steps a problem)", "change the level")
    if n < 1:
        raise InputError(f"{n} arithmetic problems", "at least 1", "change n")
    if n > (most := capacity(level)):
        raise InputError(
            f"{n} arithmetic problems of level {level}", f"at most {most}", "ask for fewer, or raise the level"
        )


def _candidates(level: int, chain: Sequence[_Shape]) -> list[_Shape]:
    """Return the shapes that may come next in a chain; no shape comes twice."""
    places = {"middle"} | ({"first"} if not chain else set()) | ({"last"} if len(chain) == level - 1 else set())
    allowed = (shape for shape in _SHAPES if shape.operation in OPERATIONS[level])
    return [shape for shape in allowed if shape.place in places and shape not in chain]


def _chains(level: int, chain: tuple[_Shape, ...]) -> Iterator[tuple[_Shape, ...]]:
    if len(chain) == level:
        yield chain
        return
    for shape in _candidates(level, chain):
        yield from _chains(level, (*chain, shape))


def _variants(chain: Sequence[_Shape]) -> int:
    """Return the number of one chain's texts: ordered people × things × the numbers that keep values in bounds."""
    people = perm(len(_NAMES), 1 + sum("{B}" in shape.story for shape in chain))
    operations = tuple(shape.operation for shape in chain)
    return people * len(_THINGS) * sum(_ways(v, operations) for v in range(_SMALLEST, _LARGEST + 1))


@cache
def _ways(value: int, operations: tuple[Operation, ...]) -> int:
    if not operations:
        return 1
    head, *tail = operations
    return sum(_ways(_apply(head, value, k), tuple(tail)) for k in _operands(head, value))


@cache
def _operands(operation: Operation, value: int) -> tuple[int, ...]:
    """Return the numbers that a step may use on `value`, so that the result is whole and within bounds."""
    bounds = {"+": range(2, 31), "-": range(2, 31), "*": range(2, 11), "/": range(2, 11)}[operation]
    exact = (k for k in bounds if operation != "/" or value % k == 0)
    return tuple(k for k in exact if _SMALLEST <= _apply(operation, value, k) <= _LARGEST)


def _apply(operation: Operation, value: int, k: int) -> int:
    return {"+": value + k, "-": value - k, "*": value * k, "/": value // k}[operation]


def _pick(rng: random.Random, items: Sequence[Any]) -> Any:
    # Python promises only for random() that its numbers stay the same in future versions.
    return items[int(rng.random() * len(items))]


def _draw(rng: random.Random, level: int) -> Problem | None:
    """Return one random problem, or None if no shape or no number fits on the way."""
    chain: list[_Shape] = []
    for _ in range(level):
        operation = _pick(rng, OPERATIONS[level])
        fitting = [shape for shape in _candidates(level, chain) if shape.operation == operation]
        if not fitting:
            return None
        chain.append(_pick(rng, fitting))
    starts = [v for v in range(_SMALLEST, _LARGEST + 1) if _operands(chain[0].operation, v)]
    values, operands = [_pick(rng, starts)], []
    for shape in chain:
        fits = _operands(shape.operation, values[-1])
        if not fits:
            return None
        operands.append(_pick(rng, fits))
        values.append(_apply(shape.operation, values[-1], operands[-1]))
    return _tell(rng, chain, values, operands)


def _tell(rng: random.Random, chain: Sequence[_Shape], values: Sequence[int], operands: Sequence[int]) -> Problem:
    """Return the problem of a chain; `values` has one entry more than `operands`, which has one a step."""
    names, things = list(_NAMES), _pick(rng, _THINGS)
    main = names.pop(int(rng.random() * len(names)))
    stories, works = [], []
    if chain[0].place != "first":
        stories.append(f"{main} has {values[0]} {things}.")
        works.append(f"{main} starts with {values[0]} {things}.")
    for i, shape in enumerate(chain):
        words = {"A": main, "t": things, "v": values[i], "k": operands[i], "r": values[i + 1]}
        words |= {"then": ("", "Then ", "After that, ")[i], "now": " now" if i else ""}
        if "{B}" in shape.story:
            words["B"] = names.pop(int(rng.random() * len(names)))
        stories.append(shape.story.format_map(words))
        works.append(shape.work.format_map(words))
    text = " ".join([*stories, chain[-1].question.format_map(words)])
    return Problem(
        problem_id=f"arithmetic-{content_hash(text, 16)}",
        source="arithmetic",
        task="math",
        problem=text,
        reference_answer=str(values[-1]),
        reference_solution=" ".join([*works, f"The answer is \\boxed{{{values[-1]}}}."]),
    )
