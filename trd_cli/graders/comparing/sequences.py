"""Compare several values: lists, sets, tuples, ellipses, residues, matrices."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from trd_cli.graders.comparing import numbers
from trd_cli.graders.comparing.expressions import Expressions
from trd_cli.graders.reading import read
from trd_cli.graders.reading.framing import is_label, spelling
from trd_cli.graders.reading.kinds import ELLIPSIS, Choice, Items, Matrix, Reading, Relation, Scalar, Value


class Sequences(Expressions):
    """Compare several values at once."""

    def _items(self, gold: Value, found: Value) -> bool:
        """Compare lists and sets in any order, tuples in theirs, intervals with their brackets.

        A list without brackets may stand for a set and, in its order, for a tuple. Refuses one of several values for
        all of them, one kind of bracket for another, and a tuple for a set.
        """
        if not (isinstance(gold, Items) and isinstance(found, Items)):
            items, other, first = (gold, found, True) if isinstance(gold, Items) else (found, gold, False)
            if isinstance(items, Items) and items.kind in ("list", "set") and len(items.items) == 1:
                return any(
                    self.values(value, other) if first else self.values(other, value) for value in items.items[0]
                )
            if isinstance(items, Items) and items.kind == "list" and isinstance(other, Scalar):
                return self._letters(items, other)
            return False
        if gold.kind.startswith("sum") or found.kind.startswith("sum") or ELLIPSIS in gold.items + found.items:
            return self._ellipses(gold, found)
        if gold.kind == "modulus" or found.kind == "modulus":
            return gold.kind == found.kind and self._congruent(gold, found)
        if any(_is_inequality(item) for item in gold.items) != any(_is_inequality(item) for item in found.items):
            return self._sets(gold, found)
        kinds = {gold.kind, found.kind}
        if kinds == {"set", "list"} or kinds == {"set"} or kinds == {"list"}:
            return self._unordered(gold.items, found.items)
        if len(gold.items) != len(found.items):
            return False
        if "set" in kinds:
            return False
        if kinds != {"tuple", "list"} and gold.brackets != found.brackets and len(gold.items) == 2:
            return False
        if kinds == {"tuple", "list"} and _system(gold if gold.kind == "list" else found):
            gold, found = self._by_label(gold), self._by_label(found)
        return all(self.readings(a, b) for a, b in zip(gold.items, found.items, strict=True))

    def _unordered(self, gold: tuple[Reading, ...], found: tuple[Reading, ...]) -> bool:
        if len(gold) != len(found):
            gold, found = tuple(dict.fromkeys(gold)), tuple(dict.fromkeys(found))
        if len(gold) != len(found):
            return False
        rest = list(found)
        for item in gold:
            match = next((other for other in rest if self.readings(item, other)), None)
            if match is None:
                return False
            rest.remove(match)
        return True

    def _by_label(self, items: Items) -> Items:
        """Return the values of a system of equations in the order of its variables."""
        labels = _system(items)
        if not labels:
            return items
        return Items("tuple", tuple(read(labels[name]) for name in sorted(labels)), "()")

    def _letters(self, items: Items, other: Scalar) -> bool:
        """Compare the letters of several choices with the same letters written together (`A, C` and `AC`)."""
        letters = [value.letter for item in items.items for value in item if isinstance(value, Choice)]
        return len(letters) == len(items.items) > 1 and other.latex == "".join(sorted(letters)) and not other.unit

    def _ellipses(self, gold: Items, found: Items) -> bool:
        """Compare the terms before and after the dots.

        Refuses other last terms, and further first terms that do not continue the shorter list.
        """
        if gold.kind.startswith("sum") != found.kind.startswith("sum") or (
            gold.kind != found.kind and gold.kind.startswith("sum")
        ):
            return False
        if "tuple" in (gold.kind, found.kind) and "set" in (gold.kind, found.kind):
            return False
        if gold.items.count(ELLIPSIS) != 1 or found.items.count(ELLIPSIS) != 1:
            return len(gold.items) == len(found.items) and all(
                a == b or self.readings(a, b) for a, b in zip(gold.items, found.items, strict=True)
            )
        here, there = gold.items.index(ELLIPSIS), found.items.index(ELLIPSIS)
        last, other = gold.items[here + 1 :], found.items[there + 1 :]
        shorter = min(here, there)
        if len(last) != len(other) or shorter == 0:
            return False
        same = [
            self.readings(a, b)
            for a, b in zip((*gold.items[:shorter], *last), (*found.items[:shorter], *other), strict=True)
        ]
        longer = gold.items[:here] if here > there else found.items[:there]
        return all(same) and (here == there or _progresses(longer, shorter))

    def _congruent(self, gold: Items, found: Items) -> bool:
        """Compare residues and modulus; the residues may differ by a multiple of the modulus."""
        if not self.readings(gold.items[1], found.items[1]):
            return False
        if self.readings(gold.items[0], found.items[0]):
            return True
        numbers = [_whole(item) for item in (gold.items[0], found.items[0], gold.items[1])]
        return None not in numbers and bool(numbers[2]) and (numbers[0] - numbers[1]) % numbers[2] == 0

    def _matrices(self, gold: Value, found: Value) -> bool:
        """Compare matrices entry by entry, and a single row or column with a tuple; refuses another shape."""
        if isinstance(gold, Matrix) and isinstance(found, Matrix):
            if [len(row) for row in gold.rows] != [len(row) for row in found.rows] or gold.bars != found.bars:
                return False
            return all(
                self.readings(a, b)
                for x, y in zip(gold.rows, found.rows, strict=True)
                for a, b in zip(x, y, strict=True)
            )
        matrix, other, first = (gold, found, True) if isinstance(gold, Matrix) else (found, gold, False)
        if isinstance(other, Scalar) and isinstance(matrix, Matrix) and (matrix.bars or "\\begin" in other.latex):
            return self._expressions(matrix.latex, other.latex)
        if isinstance(matrix, Matrix) and isinstance(other, Items) and other.kind in ("tuple", "interval", "list"):
            cells = [cell for row in matrix.rows for cell in row]
            flat = len(matrix.rows) == 1 or all(len(row) == 1 for row in matrix.rows)
            if not flat or len(cells) != len(other.items) or other.brackets not in ("()", "[]", ""):
                return False
            pairs = zip(cells, other.items, strict=True)
            return all(self.readings(a, b) if first else self.readings(b, a) for a, b in pairs)
        return False


def _system(items: Items) -> dict[str, str] | None:
    """Return the right sides of equations by their variables, which must differ; None for any other list."""
    labels: dict[str, str] = {}
    for item in items.items:
        relation = item[0] if item else None
        if not isinstance(relation, Relation) or relation.relations != ("=",) or not is_label(relation.sides[0]):
            return None
        labels[spelling(relation.sides[0])] = relation.sides[1]
    return labels if len(labels) == len(items.items) else None


def _whole(item: Reading) -> int | None:
    found = numbers.number(item[0].latex) if item and isinstance(item[0], Scalar) else None
    return int(found.value) if found is not None and found.value.denominator == 1 else None


def _progresses(longer: tuple[Reading, ...], count: int) -> bool:
    """Return whether further terms continue the first ones by equal steps or equal quotients."""
    terms = [_fraction(item) for item in longer]
    if None in terms:
        return True
    if count < 2:
        return len({b - a for a, b in pairwise(terms)}) == 1
    steps = {b - a for a, b in pairwise(terms)}
    quotients = {b / a for a, b in pairwise(terms)} if all(terms) else set()
    second = {d - c for c, d in pairwise([b - a for a, b in pairwise(terms)])}
    return len(steps) == 1 or len(quotients) == 1 or (count > 2 and len(second) == 1)


def _fraction(item: Reading) -> Fraction | None:
    found = numbers.number(item[0].latex) if item and isinstance(item[0], Scalar) else None
    return found.value if found else None


def _is_inequality(item: Reading) -> bool:
    return bool(item) and isinstance(item[0], Relation) and bool({"<", ">", "\\le", "\\ge"} & {*item[0].relations})
