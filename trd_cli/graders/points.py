"""Compare an answer with variables with the reference by value at given points: AMO-Bench's `variable` questions.

`tests` of such a row is `{"kind": "points", "variables": ["a", "b"], "points": [[2, 3], [3, 4]]}`. Two values agree if
they differ by at most `TOLERANCE` times the larger of 1 and the reference's size; AMO-Bench rounds both to 8 decimals.
Expressions that agree at all points count as equal, whatever they do elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trd_cli.records import Verdict

TOLERANCE = 1e-8
_DIGITS = 30
_QUAD = re.compile(r"[,;]?\s*\\q?quad(?![a-zA-Z])")


@dataclass(frozen=True)
class Points:
    """The points at which two expressions are evaluated: one value for each variable at each point."""

    variables: tuple[str, ...]
    points: tuple[tuple[float, ...], ...]


def read_points(tests: str) -> Points | None:
    """Return the points in a row's `tests`, or None if it holds something else."""
    try:
        spec = json.loads(tests)
        at = Points(tuple(spec["variables"]), tuple(tuple(point) for point in spec["points"]))
    except (ValueError, TypeError, KeyError):
        return None
    fits = at.points and all(len(point) == len(at.variables) for point in at.points)
    return at if fits and spec.get("kind") == "points" else None


def read_digits(tests: str) -> int | None:
    """Return the number of places in a row's `tests`, as in `{"kind": "rounded", "digits": 4}`, or None."""
    try:
        spec = json.loads(tests)
        return int(spec["digits"]) if spec["kind"] == "rounded" else None
    except (ValueError, TypeError, KeyError):
        return None


def before_condition(answer: str) -> str:
    """Return the formula of an answer that has a condition beside it, such as `2^n, \\quad n \\ge 1`."""
    parts = _QUAD.split(answer)
    return parts[-2] if len(parts) > 1 and parts[-2].strip() else answer


def compare_at(at: Points, reference: Sequence[Any], answer: Sequence[Any]) -> tuple[Verdict, str | None]:
    """Return the verdict on two readings of math-verify and its detail; only a failure of the reference is an error."""
    expected_of, found_of = _formula(reference), _formula(answer)
    for point in at.points:
        values = dict(zip(at.variables, point, strict=True))
        where = ", ".join(f"{name} = {value}" for name, value in values.items())
        expected = _value(expected_of, values)
        if expected is None:
            return "error", f"the reference answer cannot be evaluated at {where}"
        found = _value(found_of, values)
        if found is None:
            return "incorrect", f"cannot be evaluated at {where}"
        if not abs(found - expected) <= TOLERANCE * max(1.0, abs(expected)):
            return "incorrect", f"another value at {where}"
    return "correct", None


def _formula(reading: Sequence[Any]) -> Any:
    """Return the expression that was read, of an equation the last side; None if there is none."""
    from latex2sympy2_extended.logic import And
    from sympy import Expr, FiniteSet
    from sympy.core.relational import Equality

    value = reading[0] if reading else None
    # A chain of equations is a conjunction that sorts its arguments; the written order is kept beside them.
    while isinstance(value, And):
        value = value._unsorted_args[-1]
    if isinstance(value, FiniteSet) and len(value) == 1:
        value = value.args[0]
    if isinstance(value, Equality):
        value = value.rhs
    return value if isinstance(value, Expr) else None


def _value(formula: Any, values: dict[str, float]) -> complex | None:
    """Return the value at a point, or None if variables are left over or the result is not finite."""
    if formula is None:
        return None
    try:
        here = formula.subs({symbol: values[symbol.name] for symbol in formula.free_symbols})
        value = complex(here.doit().evalf(_DIGITS))
    except MemoryError:
        raise
    except Exception:
        return None
    return value if abs(value) < float("inf") else None
