"""Read inequalities and unions of intervals as sets of real numbers."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from trd_cli.graders.comparing import parsing
from trd_cli.graders.reading import read
from trd_cli.graders.reading.brackets import split
from trd_cli.graders.reading.kinds import Items, Other, Reading, Relation, Scalar, Value


@lru_cache(maxsize=64)
def range_of(relation: Relation) -> tuple[str, Any] | None:
    """Return the variable and the set of real numbers that inequalities in it allow; None for other relations."""
    from sympy import Ge, Gt, Le, Lt, Ne, S, Symbol

    if not set(relation.relations) <= {"<", ">", "\\le", "\\ge", "\\neq"}:
        return None
    parsed = [parsing.parse(side) for side in relation.sides]
    if None in parsed:
        return None
    try:
        sides = [each.value for each in parsed]
        symbols = {symbol for side in sides for symbol in side.free_symbols}
        if len(symbols) > 1 or any(re.fullmatch(r"[fghy]\s?\([a-z]\)", side) for side in relation.sides):
            return _named_range(relation)
        if len(symbols) != 1:
            return None
        variable = Symbol("x", real=True)
        sides = [side.subs(dict.fromkeys(symbols, variable)) for side in sides]
        allowed = S.Reals
        for sign, a, b in zip(relation.relations, sides, sides[1:], strict=False):
            compared = {"<": Lt, ">": Gt, "\\le": Le, "\\ge": Ge, "\\neq": Ne}[sign](a, b)
            allowed = allowed.intersect(compared.as_set())
        return next(iter(symbols)).name, allowed
    except MemoryError:
        raise
    except Exception:
        return None


def _named_range(relation: Relation) -> tuple[str, Any] | None:
    """Return the interval between bounds that contain variables themselves: `a < x \\le b`, `x > a`."""
    from sympy import Interval, oo

    signs = relation.relations
    middle = [n for n, side in enumerate(relation.sides) if re.fullmatch(r"[xyztnkmr]|[fghy]\s?\([a-z]\)", side)]
    if len(middle) != 1 or not (set(signs) <= {"<", "\\le"} or set(signs) <= {">", "\\ge"}):
        return None
    sides, place = list(relation.sides), middle[0]
    bounds = [parsing.parse(side) for side in sides]
    if signs[0] in (">", "\\ge"):
        bounds, signs, place = bounds[::-1], signs[::-1], len(sides) - 1 - place
    low = bounds[place - 1] if place else None
    high = bounds[place + 1] if place + 1 < len(bounds) else None
    return relation.sides[middle[0]], Interval(
        low.value if low else -oo,
        high.value if high else oo,
        bool(place and signs[place - 1] in ("<", ">")),
        bool(high and signs[place] in ("<", ">")),
    )


def set_of(value: Value) -> Any:
    """Return the set of real numbers that an answer describes, or None."""
    from sympy import FiniteSet, Interval, Set

    try:
        if isinstance(value, Relation):
            found = range_of(value)
            return found[1] if found else None
        if (
            isinstance(value, Items)
            and value.kind in ("interval", "tuple")
            and len(value.items) == 2
            and value.brackets
        ):
            ends = [_expression(item) for item in value.items]
            if None in ends:
                return None
            return Interval(ends[0].value, ends[1].value, value.brackets[0] == "(", value.brackets[1] == ")")
        if isinstance(value, Items) and value.kind == "list":
            return _either(value)
        if isinstance(value, Items) and value.kind == "set":
            elements = [_expression(item) for item in value.items]
            return None if None in elements else FiniteSet(*(element.value for element in elements))
        if isinstance(value, Other):
            return _union(value.latex)
    except MemoryError:
        raise
    except Exception:
        return None
    return None if not isinstance(value, Set) else value


def _union(latex: str) -> Any:
    """Return the set that results from unions, intersections and differences of intervals and sets."""
    from sympy import Interval, S, oo

    pieces, signs = split(latex, re.compile(r"\s?\\(?:cup|cap|setminus)(?![A-Za-z])\s?"))
    found = None
    for sign, piece in zip(["", *signs], pieces, strict=True):
        piece = piece.strip()
        named = {
            "\\mathbb{R}": S.Reals,
            "\\emptyset": S.EmptySet,
            "\\mathbb{R}^{+}": Interval.open(0, oo),
            "\\mathbb{R}^{-}": Interval.open(-oo, 0),
            "\\mathbb{Z}^{+}": S.Naturals,
            "\\mathbb{Z}": S.Integers,
            "\\mathbb{N}": S.Naturals,
            "\\mathbb{Q}": S.Rationals,
            "\\mathbb{C}": S.Complexes,
        }.get(piece.replace(" ", ""))
        if named is None:
            inside = [item for item in (set_of(value) for value in read(piece)) if item is not None]
            if not inside:
                return None
            named = inside[0]
        if found is None:
            found = named
        elif "cup" in sign:
            found = found.union(named)
        elif "cap" in sign:
            found = found.intersect(named)
        else:
            found = found - named
    return found


def upwards(relation: Relation) -> tuple[tuple[str, str], str] | None:
    """Return the sides of an inequality with the smaller one first and `<` or `\\le`; None for other relations."""
    small, large = relation.sides
    sign = relation.relations[0]
    if sign in ("<", "\\le"):
        return (small, large), "<" if sign == "<" else "\\le"
    if sign in (">", "\\ge"):
        return (large, small), "<" if sign == ">" else "\\le"
    return None


def constant_quotient(left: Any, right: Any) -> Any:
    """Return the first expression divided by the second if that is a number other than 0, else None."""
    from sympy import Rational, fraction, together

    left, right = (fraction(together(side))[0] for side in (left, right))
    quotients = []
    names = sorted({symbol.name for symbol in left.free_symbols})
    for number in range(3):
        at = {name: Rational(313 + 577 * number + 211 * n * n + 101 * n, 331) for n, name in enumerate(names)}
        x, y = (side.subs({symbol: at[symbol.name] for symbol in side.free_symbols}).doit() for side in (left, right))
        if not (x.is_Rational and y.is_Rational):
            x, y = x.evalf(50), y.evalf(50)
        if not (x.is_real and y.is_real) or not x or not y:
            return None
        quotients.append(x / y)
    first = quotients[0]
    return first if all(abs(q - first) <= abs(first) * Rational(1, 10**35) for q in quotients) else None


def _either(items: Items) -> Any:
    """Return the values that one or another of several inequalities allows.

    If that is every real number, return the values that all of them allow.
    """
    from sympy import Intersection, S, Union

    parts = [range_of(item[0]) if item and isinstance(item[0], Relation) else None for item in items.items]
    if None in parts or len({part[0] for part in parts}) != 1:
        return None
    either = Union(*(part[1] for part in parts))
    return Intersection(*(part[1] for part in parts)) if either == S.Reals else either


def same_pieces(one: str, other: str) -> bool:
    """Return whether two unions, or two intersections, of sets named by letters have the same parts in any order."""
    (pieces, signs), (others, of_other) = (split(text, _OPERATION) for text in (one, other))
    return (
        len({*signs, *of_other}) == 1
        and "\\setminus" not in signs
        and sorted(map(str.strip, pieces)) == sorted(map(str.strip, others))
    )


_OPERATION = re.compile(r"\\(?:cup|cap|setminus)(?![A-Za-z])")


def _expression(item: Reading) -> Any:
    """Return the parsed expression of an interval's end or a set's element."""
    latex = next((value.latex for value in item if isinstance(value, Scalar) and value.unit is None), None)
    return None if latex is None else parsing.parse(latex)
