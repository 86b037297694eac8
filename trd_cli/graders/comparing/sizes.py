"""How large a constant is, from its parts, so that no large number is worked out."""

from __future__ import annotations

from math import log2
from typing import Any

# More bits than this are not worked out.
_MOST_BITS = 200_000


def is_huge(value: Any) -> bool:
    """Return whether a constant holds a power or a factorial with more digits than can be worked out."""
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
    """Return about the binary logarithm of a constant, from its parts, so that no large number is worked out."""
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
