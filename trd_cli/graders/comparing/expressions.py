"""Compare numbers, expressions and quantities; the base of all comparisons."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

from trd_cli.graders import by_math_verify
from trd_cli.graders.comparing import numbers, parsing, values
from trd_cli.graders.reading import read
from trd_cli.graders.reading.kinds import Ratio, Reading, Scalar, Value
from trd_cli.graders.reading.units import read_unit


@dataclass(frozen=True)
class Rules:
    """The comparison of decimals: to so many places, or by the digits they are written with if None."""

    places: int | None = None


class Expressions(ABC):
    """Compare numbers, expressions, quantities and ratios, and keep the last fault of a comparison."""

    def __init__(self, rules: Rules) -> None:
        self._places = rules.places
        self.fault: str | None = None

    @abstractmethod
    def values(self, gold: Value, found: Value) -> bool:
        """Compare two values by the rule for their kinds."""

    @abstractmethod
    def _sets(self, gold: Value, found: Value) -> bool:
        """Compare two answers as sets of real numbers."""

    def readings(self, gold: Reading, found: Reading) -> bool:
        """Compare each reading of the one with each of the other; refuses empty readings."""
        return any(self.values(a, b) for a, b in product(gold, found))

    def texts(self, gold: str, found: str) -> bool:
        """Compare two parts of answers, such as the sides of equations."""
        return gold == found or self.readings(read(gold), read(found))

    def _scalars(self, gold: Scalar, found: Scalar) -> bool:
        """Compare values with their units.

        A side without a unit takes the other's. Refuses two units of different dimensions. Refuses a percentage for a
        number that is neither its figure nor its hundredth.
        """
        if gold.percent != found.percent:
            if gold.unit or found.unit:
                return False
            percent, other = (gold, found) if gold.percent else (found, gold)
            if other.times != 1:
                return False
            return self._scaled(percent, other, Fraction(1)) or self._scaled(percent, other, Fraction(1, 100))
        if gold.unit is not None and found.unit is not None:
            if gold.unit.dimension != found.unit.dimension:
                return False
            factor = gold.unit.factor / found.unit.factor
            turn = gold.unit.pi - found.unit.pi
            return self._scaled(gold, found, factor, turn)
        return self._scaled(gold, found, Fraction(1))

    def _scaled(self, gold: Scalar, found: Scalar, factor: Fraction, turn: int = 0) -> bool:
        """Compare the first value times a factor and a power of pi with the second."""
        factor = factor * gold.times / found.times
        if factor == 1 and not turn:
            return self._expressions(gold.latex, found.latex)
        a, b = numbers.number(gold.latex), numbers.number(found.latex)
        if a is not None and b is not None and not turn:
            return numbers.same_number(numbers.Number(a.value * factor, a.digits), b, self._places)
        from sympy import Rational, pi

        x, y = parsing.parse(gold.latex), parsing.parse(found.latex)
        if x is None or y is None:
            return False
        try:
            scaled = x.value * Rational(factor.numerator, factor.denominator) * pi**turn
        except TypeError:
            return False
        return values.same_value(parsing.Parsed(scaled, x.digits), y, self._places) is True

    def _numbers(self, gold: str, found: str) -> bool | None:
        a, b = numbers.number(gold), numbers.number(found)
        if a is None or b is None:
            return None
        return numbers.same_number(a, b, self._places)

    def _expressions(self, gold: str, found: str) -> bool:
        """Compare two expressions: numbers by `numbers.same_number`, others by value, else as math-verify does."""
        if gold.replace(" ", "") == found.replace(" ", ""):
            return bool(gold)
        plainly = self._numbers(gold, found)
        if plainly is not None:
            return plainly
        x, y = parsing.parse(gold), parsing.parse(found)
        if x is None or y is None:
            return False
        same = values.same_value(x, y, self._places)
        return self._verified(x.value, y.value) if same is None else same

    def _verified(self, gold: Any, found: Any) -> bool:
        """Compare two SymPy objects as math-verify does."""
        same, self.fault = by_math_verify.verify(gold, found, by_math_verify.Rules(float_rounding=self._places or 6))
        return same

    def _ratios(self, gold: Value, found: Value) -> bool:
        """Compare ratios by proportion and times of day by their parts.

        A ratio of two parts also equals their quotient, and a time in the afternoon the same time on a clock of 24
        hours. Refuses a time of day (`3:05`) for another in the same proportion, and an a.m. for a p.m.
        """
        if isinstance(gold, Ratio) and isinstance(found, Ratio):
            if len(gold.parts) != len(found.parts) or (gold.unit and found.unit and gold.unit != found.unit):
                return False
            if all(self._expressions(a, b) for a, b in zip(gold.parts, found.parts, strict=True)):
                return True
            if gold.unit is None or found.unit is None:
                times = _time_of_day(gold), _time_of_day(found)
                if None not in times:
                    return times[0] == times[1]
            clocks = [
                re.fullmatch(r"[01]?\d|2\d", r.parts[0]) and re.fullmatch(r"[0-5]\d", r.parts[1]) for r in (gold, found)
            ]
            padded = any(r.parts[1].startswith("0") and len(r.parts[1]) > 1 for r in (gold, found))
            if all(clocks) or padded or gold.unit or found.unit:
                return False
            return self._proportional(gold.parts, found.parts)
        ratio, other = (gold, found) if isinstance(gold, Ratio) else (found, gold)
        if (
            isinstance(ratio, Ratio)
            and isinstance(other, Scalar)
            and len(ratio.parts) == 2
            and not ratio.unit
            and not other.unit
        ):
            if re.fullmatch(r"[0-5]\d", ratio.parts[1]) or other.percent or other.times != 1:
                return False
            return self._expressions(rf"\frac{{{ratio.parts[0]}}}{{{ratio.parts[1]}}}", other.latex)
        return False

    def _proportional(self, one: tuple[str, ...], other: tuple[str, ...]) -> bool:
        return all(
            self._expressions(f"({one[n]}) \\cdot ({other[0]})", f"({other[n]}) \\cdot ({one[0]})")
            for n in range(1, len(one))
        )


def _time_of_day(ratio: Ratio) -> tuple[int, ...] | None:
    """Return hours (0 to 23) and minutes if a ratio is a time in the afternoon, else None."""
    if len(ratio.parts) != 2 or not all(part.isdigit() for part in ratio.parts):
        return None
    hours, minutes = map(int, ratio.parts)
    if ratio.unit is None:
        return (hours, minutes) if 13 <= hours < 24 and minutes < 60 else None
    is_afternoon = ratio.unit.dimension == read_unit("pm").dimension and 1 <= hours <= 12
    return (hours % 12 + 12, minutes) if is_afternoon and minutes < 60 else None
