"""Compare the values of two parsed expressions.

Exact values are compared exactly. A decimal stands for the values that round to it, from six digits and six places on.
Expressions with variables are compared at points: at positive ones, and at others if both sides are real there and do
not both hold roots. So `\\sqrt{1/n}` is `1/\\sqrt n`, but `\\sqrt{x^2}` is not `x`. Not covered: identities that hold
for whole numbers only.
"""

from __future__ import annotations

import random
from fractions import Fraction
from math import log2
from typing import Any

from trd_cli.graders.comparing.numbers import LEAST_DIGITS, Digits, Number, same_number
from trd_cli.graders.comparing.parsing import Parsed

_POINTS, _PRECISION = 5, 50
# Larger numbers are not computed.
_MOST_BITS = 200_000


def same_value(one: Parsed, other: Parsed, places: int | None = None) -> bool | None:
    """Return whether two expressions have the same value wherever both have one, or None if that cannot be decided."""
    from sympy import Expr, nan, zoo

    a, b = one.value, other.value
    if not isinstance(a, Expr) or not isinstance(b, Expr):
        return None
    if a == b:
        return not a.has(nan, zoo)
    if is_huge(a) or is_huge(b):
        return None
    try:
        symbols = sorted(a.free_symbols | b.free_symbols, key=lambda symbol: symbol.name)
        if not symbols:
            return _same_constant(one, other, places)
        return _same_at_points(one, other, [symbol.name for symbol in symbols])
    except MemoryError:
        raise
    except Exception:
        return None


def _same_constant(one: Parsed, other: Parsed, places: int | None) -> bool | None:
    from sympy import oo

    a, b = one.value.doit(), other.value.doit()
    if a == b:
        return True
    if a in (oo, -oo) or b in (oo, -oo):
        return False
    if a.is_Rational and b.is_Rational:
        pair = (Number(Fraction(int(v.p), int(v.q)), p.digits) for v, p in ((a, one), (b, other)))
        return same_number(*pair, places)
    x, y = a.evalf(_PRECISION), b.evalf(_PRECISION)
    if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
        return None
    digits = [p.digits for p in (one, other) if p.digits]
    if digits or (places is not None):
        return _near(x, y, one, other, places)
    if _apart(x, y, _PRECISION - 10):
        return False
    return not _apart(a.evalf(500), b.evalf(500), 450)


def _apart(x: Any, y: Any, digits: int) -> bool:
    from sympy import Rational

    return bool(abs(x - y) > max(abs(x), abs(y)) * Rational(1, 10**digits))


def _near(x: Any, y: Any, one: Parsed, other: Parsed, places: int | None) -> bool | None:
    """Compare real and imaginary parts if one of the two values is a decimal."""
    same = True
    for part in (0, 1):
        numbers = []
        for value, parsed in ((x, one), (y, other)):
            real = value.as_real_imag()[part]
            fraction = Fraction(str(real)) if real.is_number and real.is_finite else None
            if fraction is None:
                return None
            # A value that is no decimal has all its digits.
            numbers.append(Number(fraction, parsed.digits))
        if places is not None:
            same = same and round(numbers[0].value, places) == round(numbers[1].value, places)
        else:
            same = same and (same_number(*numbers) or abs(numbers[0].value - numbers[1].value) < Fraction(1, 10**40))
    return same


def _same_at_points(one: Parsed, other: Parsed, names: list[str]) -> bool | None:
    """Compare at positive points, then at points of any sign.

    Of the latter only those count at which no side takes a root or a logarithm of a negative number.
    """
    draws = random.Random(7)
    decimal = one.digits or other.digits
    rooted = [any(_has_root(p.value) for p in pair) for pair in ((one,), (other,))]
    compared = 0
    for number_of in range(_POINTS):
        # If both hold roots, their variables are quantities, which are positive.
        positive = number_of < 3 or all(rooted)
        at = {name: _draw(draws, positive) for name in names}
        x, y = _at(one.value, at), _at(other.value, at)
        if x is None or y is None:
            if positive:
                return None
            continue
        if not positive and (x[1] != y[1] or x[1]) and not _has_abs(one.value, other.value):
            continue
        if not positive and x[1] and y[1]:
            continue
        compared += 1
        if not _equal_at(x[0], y[0], bool(decimal), decimal):
            return False
    return True if compared >= 3 else None


def _has_root(value: Any) -> bool:
    from sympy import Pow, preorder_traversal

    return any(
        isinstance(p, Pow) and p.exp.is_Rational and p.exp.q > 1 and p.base.free_symbols
        for p in preorder_traversal(value)
    )


def _has_abs(a: Any, b: Any) -> bool:
    from sympy import Abs

    return a.has(Abs) != b.has(Abs)


def _draw(draws: random.Random, positive: bool) -> Any:
    from sympy import Rational

    value = Rational(draws.randrange(300, 4000), 997)
    return value if positive or draws.random() < 0.3 else -value


def _at(expression: Any, at: dict[str, Any]) -> tuple[Any, bool] | None:
    """Return the value at a point and whether it takes a root or logarithm of a negative number, or None."""
    from sympy import Pow, Product, Sum, log, nan, preorder_traversal, zoo

    if expression.has(Sum, Product):
        expression = expression.doit()
    here = expression.subs({symbol: at[symbol.name] for symbol in expression.free_symbols})
    if is_huge(here):
        return None
    value = here.doit()
    if value.has(nan, zoo):
        return None
    if not value.is_Rational:
        value = value.evalf(_PRECISION)
        if not value.is_number or not value.is_finite:
            return None
    outside = False
    for part in preorder_traversal(expression):
        if (isinstance(part, Pow) and not part.exp.is_integer and part.base.free_symbols) or isinstance(part, log):
            argument = part.args[0].subs({symbol: at[symbol.name] for symbol in part.args[0].free_symbols})
            if not argument.is_nonnegative:
                outside = True
    return value, outside


def _equal_at(x: Any, y: Any, decimal: bool, digits: Digits | None) -> bool:
    if x == y:
        return True
    if x.is_Rational and y.is_Rational and not decimal:
        return False
    if decimal:
        return digits is not None and digits.significant >= LEAST_DIGITS and not _apart(x, y, LEAST_DIGITS)
    return not _apart(x, y, _PRECISION - 12)


def is_huge(value: Any) -> bool:
    """Return whether a constant holds a power or a factorial with too many digits to compute."""
    from sympy import Pow, factorial, preorder_traversal

    for part in preorder_traversal(value):
        if isinstance(part, Pow) and part.exp.is_number and part.base.is_number and _size(part) > _MOST_BITS:
            return True
        if isinstance(part, factorial) and part.args[0].is_number and _magnitude(part.args[0]) > 10_000:
            return True
    return False


def _size(power: Any) -> float:
    """Return about how many bits a power has."""
    return _magnitude(power.exp) * max(1.0, abs(_bits(power.base)))


def _bits(value: Any) -> float:
    """Return about the binary logarithm of a constant, from its parts, without computing a large number."""
    from sympy import Add, Mul, Pow, factorial

    if isinstance(value, factorial):
        count = _magnitude(value.args[0])
        return count * log2(max(2.0, count))
    if isinstance(value, Pow):
        return _size(value) if _bits(value.base) >= 0 else -_size(value)
    if isinstance(value, (Add, Mul)):
        sizes = [_bits(part) for part in value.args]
        return sum(sizes) if isinstance(value, Mul) else max(sizes)
    if value.is_Rational:
        return abs(int(value.p)).bit_length() - int(value.q).bit_length()
    try:
        return log2(abs(complex(value.evalf(5))) or 1.0)
    except (TypeError, ValueError, OverflowError):
        return 1.0


def _magnitude(value: Any) -> float:
    bits = _bits(value)
    return float("inf") if bits > 900 else 2.0**bits
