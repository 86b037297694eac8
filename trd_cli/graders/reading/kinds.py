"""The kinds of value that reading finds in an answer and that comparing compares."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from trd_cli.graders.reading.units import Unit


@dataclass(frozen=True)
class Scalar:
    """An expression in plain LaTeX and the things beside it: a unit, a percent sign, a count such as a million."""

    latex: str
    unit: Unit | None = None
    percent: bool = False
    times: Fraction = Fraction(1)


@dataclass(frozen=True)
class Phrase:
    """Words, or words and expressions, in order; `bare` if they were written as letters of mathematics."""

    parts: tuple[str, ...]
    bare: bool = False


@dataclass(frozen=True)
class Choice:
    """The letter of a multiple choice and the text beside it."""

    letter: str
    beside: str = ""


@dataclass(frozen=True)
class Numeral:
    """Digits and the base they are written in."""

    digits: str
    base: str


@dataclass(frozen=True)
class Ratio:
    """The parts of a ratio `3:4`, a time of day or a score."""

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
    """Rows of expressions and their source text; `bars` is true for a determinant."""

    rows: tuple[tuple[Reading, ...], ...]
    latex: str
    bars: bool = False


@dataclass(frozen=True)
class Other:
    """A text that is left to math-verify unread: a union of intervals or a set-builder."""

    latex: str


Value = Scalar | Phrase | Choice | Numeral | Ratio | Items | Relation | Matrix | Other
# The possible meanings of a text, the likeliest first.
Reading = tuple[Value, ...]
ELLIPSIS: Reading = (Phrase(("…",)),)
