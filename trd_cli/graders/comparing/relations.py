"""Compare equations, inequalities and sets."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from trd_cli.errors import first_line
from trd_cli.graders.comparing import numbers, parsing, ranges, values
from trd_cli.graders.comparing.expressions import Expressions
from trd_cli.graders.reading import read
from trd_cli.graders.reading.framing import is_label, label_and_value, spelling
from trd_cli.graders.reading.kinds import Choice, Other, Phrase, Relation, Scalar, Value
from trd_cli.graders.reading.notation import TEXT


class Relations(Expressions):
    """Compare statements and the values that they stand for."""

    def _relations(self, gold: Value, found: Value) -> bool:
        """Compare equations and inequalities with each other, with the value that they give a name, and with intervals.

        Refuses values under two names, an inequality for a number, and a strict inequality for one that is not strict.
        """
        for one, other in ((gold, found), (found, gold)):
            if isinstance(one, Relation) and one.relations[0] in ("\\in", "\\equiv") and len(one.sides) == 2:
                if isinstance(other, Relation) and other.relations == one.relations:
                    return self.texts(one.sides[1], other.sides[1]) and self._names(one.sides[0], other.sides[0])
                if not isinstance(other, Relation) or other.relations[0] not in ("\\in", "\\equiv"):
                    pair = (read(one.sides[1]), (other,))
                    return self.readings(*(pair if one is gold else reversed(pair)))
        if isinstance(gold, Relation) and isinstance(found, Relation):
            return self._two_relations(gold, found)
        relation, other = (gold, found) if isinstance(gold, Relation) else (found, gold)
        assert isinstance(relation, Relation)
        if set(relation.relations) != {"="}:
            return self._range_of(relation, other)
        value = _stands_for(relation, is_reference=relation is gold)
        if value is None:
            return False
        return self.readings(read(value), (other,)) if relation is gold else self.readings((other,), read(value))

    def _names(self, one: str, other: str) -> bool:
        return one == other or self.readings(read(one), read(other))

    def _two_relations(self, gold: Relation, found: Relation) -> bool:
        if set(gold.relations) == {"="} and set(found.relations) == {"="}:
            (name, value), (other, of_other) = label_and_value(gold), label_and_value(found)
            labels = is_label(name), is_label(other)
            same_name = spelling(name) == spelling(other)
            in_words = TEXT.search(name) is not None, TEXT.search(other) is not None
            comparable = all(labels) and (same_name or in_words[0] != in_words[1])
            if comparable and self.texts(value, of_other):
                return True
            return bool(len(gold.sides) == len(found.sides) and self._equations(gold.sides, found.sides))
        if "=" in gold.relations or "=" in found.relations or "\\neq" in gold.relations + found.relations:
            return (
                gold.relations == found.relations
                and all(self.texts(a, b) for a, b in zip(gold.sides, found.sides, strict=True))
            ) or self._turned(gold, found)
        here, there = ranges.range_of(gold), ranges.range_of(found)
        if here is not None and there is not None:
            return here[0] == there[0] and self._same_set(here[1], there[1])
        return self._inequalities(gold, found)

    def _turned(self, gold: Relation, found: Relation) -> bool:
        """Compare two sides that have been exchanged (`3 \\neq x`)."""
        return (
            gold.relations == found.relations == ("\\neq",)
            and self.texts(gold.sides[0], found.sides[1])
            and self.texts(gold.sides[1], found.sides[0])
        )

    def _equations(self, gold: tuple[str, ...], found: tuple[str, ...]) -> bool:
        """Compare equations in the same variables; one may be a multiple of the other."""
        if len(gold) != 2:
            return all(self.texts(a, b) for a, b in zip(gold, found, strict=True))
        if all(self._expressions(a, b) for a, b in zip(gold, found, strict=True)):
            return True
        return self._multiple(gold, found, positive=False)

    def _multiple(self, gold: tuple[str, ...], found: tuple[str, ...], positive: bool) -> bool:
        parsed = [parsing.parse(side) for side in (*gold, *found)]
        if None in parsed:
            return False
        try:
            left, right = parsed[0].value - parsed[1].value, parsed[2].value - parsed[3].value
            names = {symbol.name for symbol in left.free_symbols}
            if not names or names != {symbol.name for symbol in right.free_symbols}:
                return False
            quotient = ranges.constant_quotient(left, right)
        except MemoryError:
            raise
        except Exception:
            return False
        return quotient is not None and (not positive or quotient > 0)

    def _inequalities(self, gold: Relation, found: Relation) -> bool:
        """Compare single inequalities in several variables.

        Refuses another direction, and a strict inequality for one that is not strict.
        """
        if len(gold.sides) != 2 or len(found.sides) != 2:
            return gold.relations == found.relations and all(
                self.texts(a, b) for a, b in zip(gold.sides, found.sides, strict=True)
            )
        a, b = ranges.upwards(gold), ranges.upwards(found)
        return a is not None and b is not None and a[1] == b[1] and self._multiple(a[0], b[0], positive=True)

    def _range_of(self, relation: Relation, other: Value) -> bool:
        """Compare an inequality in one variable with an interval or a set."""
        if isinstance(other, (Scalar, Phrase, Choice)):
            return False
        here, there = ranges.range_of(relation), ranges.set_of(other)
        return here is not None and there is not None and self._same_set(here[1], there)

    def _sets(self, gold: Value, found: Value) -> bool:
        """Compare unions, differences and number sets as sets of real numbers."""
        here, there = ranges.set_of(gold), ranges.set_of(found)
        if here is None and there is None and isinstance(gold, Other) and isinstance(found, Other):
            return ranges.same_pieces(gold.latex, found.latex)
        return here is not None and there is not None and self._same_set(here, there)

    def _same_set(self, here: Any, there: Any) -> bool:
        from sympy import Interval

        if here == there:
            return True
        try:
            if isinstance(here, Interval) and isinstance(there, Interval):
                if (here.left_open, here.right_open) != (there.left_open, there.right_open):
                    return False
                return all(
                    values.same_value(parsing.Parsed(a, None), parsing.Parsed(b, None), self._places)
                    for a, b in ((here.start, there.start), (here.end, there.end))
                )
            difference = here.symmetric_difference(there)
            if difference.is_empty is not None:
                return bool(difference.is_empty)
        except MemoryError:
            raise
        except Exception as error:
            self.fault = f"cannot be compared: {type(error).__name__}: {first_line(error)}"[:300]
            return False
        return self._verified(here, there)


def _stands_for(relation: Relation, is_reference: bool) -> str | None:
    """Return the side that an equation only names or derives; None for an equation that is a statement."""
    name, value = label_and_value(relation)
    if is_label(name) or len(relation.sides) > 2:
        return value
    number = parsing.parse(value)
    constant = number is not None and not getattr(number.value, "free_symbols", True)
    left = parsing.parse(name)
    if left is not None and not getattr(left.value, "free_symbols", True):
        return value if constant else None
    if is_reference or not constant or numbers.number(value) == numbers.Number(Fraction(0)):
        return None
    return value
