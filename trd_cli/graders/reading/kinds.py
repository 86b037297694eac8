"""What an answer can be: the values that reading finds and comparing compares."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from trd_cli.graders.reading.units import Unit


@dataclass(frozen=True)
class Scalar:
    """An expression in plain LaTeX with what stands beside it: a unit, a percent sign, a count such as a million."""

    latex: str
    unit: Unit | None = None
    percent: bool = False
    times: Fraction = Fraction(1)


@dataclass(frozen=True)
class Phrase:
    """Words, or words and expressions, in order; `bare` where they stand as letters of mathematics."""

    parts: tuple[str, ...]
    bare: bool = False


@dataclass(frozen=True)
class Choice:
    """The letter of a multiple choice and what is written beside it."""

    letter: str
    beside: str = ""


@dataclass(frozen=True)
class Numeral:
    """Digits with the base that they are written in."""

    digits: str
    base: str


@dataclass(frozen=True)
class Ratio:
    """The parts of `3:4`, of a time of day or of a score."""

    parts: tuple[str, ...]
    unit: Unit | None = None


@dataclass(frozen=True)
class Items:
    """Several values: a `list` without brackets, a `set`, a `tuple`, an `interval`, or a sum with an ellipsis.

    `brackets` are those of a tuple or an interval. An ellipsis is the phrase `("…",)`.
    """

    kind: str
    items: tuple[Reading, ...]
    brackets: str = ""


@dataclass(frozen=True)
class Relation:
    """Sides and the relations between them: `=`, `<`, `\\le`, `\\in`, …"""

    sides: tuple[str, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of expressions, and the text they were read from; `bars` for a determinant."""

    rows: tuple[tuple[Reading, ...], ...]
    latex: str
    bars: bool = False


@dataclass(frozen=True)
class Other:
    """What is left to math-verify as it is: unions of intervals, set-builders."""

    latex: str


Value = Scalar | Phrase | Choice | Numeral | Ratio | Items | Relation | Matrix | Other
# What a text can mean, the likeliest first.
Reading = tuple[Value, ...]
ELLIPSIS: Reading = (Phrase(("…",)),)
