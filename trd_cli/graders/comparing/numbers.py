"""Read rational numbers and decimals with their digits, and compare them.

Exact values are compared exactly. A decimal stands for the values that round to it, from six digits and six places on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

# From this many digits and places on a decimal stands for the values that round to it.
LEAST_DIGITS = 6
_OF_A_FLOAT = 16
_INTEGER = r"[+-]?\s?\d{1,2000}"
_DECIMAL = re.compile(r"([+-]?)\s?(\d{0,2000})\.(\d{0,2000})")
_WHOLE = re.compile(_INTEGER)
_QUOTIENT = re.compile(
    rf"([+-]?)\s?(?:\\frac\{{\s?({_INTEGER})\s?\}}\{{\s?({_INTEGER})\s?\}}|(\d{{1,2000}})\s?/\s?(\d{{1,2000}}))"
)
_MIXED = re.compile(r"([+-]?)\s?(\d{1,300})\s?(?:\\frac\{(\d{1,300})\}\{(\d{1,300})\}|\s(\d{1,300})/(\d{1,300}))")
_SCIENTIFIC = re.compile(r"(.{1,80}?)\s?(?:\\times|\\cdot)\s?10\^\{([+-]?\d{1,4})\}")
_POWER_OF_TEN = re.compile(r"([+-]?)10\^\{([+-]?\d{1,4})\}")
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s?\{?(\d+)\}?|\((\d+)\))")
_DOTTED = re.compile(r"(\d*)\.(\d*)\\dot\{?(\d)\}?(\d*)\\dot\{?(\d)\}?")
_TRAILING = re.compile(r"(\d*)\.(\d+)\s?\\ldots")


@dataclass(frozen=True)
class Digits:
    """The digits of a decimal: significant ones without final zeros, and places after the point of its mantissa."""

    significant: int
    places: int


@dataclass(frozen=True)
class Number:
    """A rational number and, if it was a decimal, the digits it was written with."""

    value: Fraction
    digits: Digits | None = None


def number(latex: str) -> Number | None:
    """Return a plain rational number, or None for any other text.

    Plain are `5`, `-0.25`, `1\\frac{1}{2}`, `2/3` and `1.5\\times10^{6}`.
    """
    text = latex.strip()
    while len(text) > 2 and text[0] in "({" and text[-1] in ")}" and text[1:-1].count(text[0]) == 0:
        text = text[1:-1].strip()
    if _WHOLE.fullmatch(text):
        return Number(Fraction(int(text.replace(" ", ""))))
    if match := _DECIMAL.fullmatch(text):
        whole, places = match[2], match[3]
        if not whole and not places:
            return None
        value = Fraction(int((whole + places) or "0"), 10 ** len(places))
        kept = places.rstrip("0")
        digits = Digits(len((whole + kept).lstrip("0")), len(kept)) if kept else None
        return Number(-value if match[1] == "-" else value, digits)
    if match := _QUOTIENT.fullmatch(text):
        top, bottom = (match[2], match[3]) if match[2] else (match[4], match[5])
        if not int(bottom.replace(" ", "")):
            return None
        value = Fraction(int(top.replace(" ", "")), int(bottom.replace(" ", "")))
        return Number(-value if match[1] == "-" else value)
    if match := _MIXED.fullmatch(text):
        top, bottom = (match[3], match[4]) if match[3] else (match[5], match[6])
        if not int(bottom):
            return None
        value = int(match[2]) + Fraction(int(top), int(bottom))
        return Number(-value if match[1] == "-" else value)
    if match := _POWER_OF_TEN.fullmatch(text):
        value = Fraction(10) ** int(match[2])
        return Number(-value if match[1] == "-" else value)
    if match := _SCIENTIFIC.fullmatch(text):
        mantissa = number(match[1])
        if mantissa is None or "10^" in match[1]:
            return None
        return Number(mantissa.value * Fraction(10) ** int(match[2]), mantissa.digits)
    return None


def with_fractions(latex: str) -> tuple[str, Digits | None]:
    """Return the text with repeating and other decimals as fractions, and the digits of its shortest decimal."""
    least: list[Digits] = []

    def decimal(match: re.Match[str]) -> str:
        found = number(match[0])
        if found is None:
            return match[0]
        if found.digits:
            least.append(found.digits)
        return _fraction(found.value)

    if "." not in latex:
        return latex, None
    if "\\" in latex or "(" in latex:
        latex = _DOTTED.sub(lambda m: _repeated(m[1], m[2], m[3] + m[4] + m[5]), latex)
        latex = _REPEATING.sub(lambda m: _repeated(m[1], m[2], m[3] or m[4]), latex)
        latex = _TRAILING.sub(_continued, latex)
    latex = re.sub(r"(?<![\d.])\d*\.\d+(?![\d.])|(?<![\d.])\d+\.(?![\d.])", decimal, latex)
    return latex, min(least, key=lambda d: d.significant) if least else None


def _fraction(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _repeated(whole: str, head: str, period: str) -> str:
    shift = 10 ** len(head)
    value = Fraction(int((whole + head) or "0"), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))
    return _fraction(value)


def _continued(match: re.Match[str]) -> str:
    """Return `0.333…` as a fraction if its last digits repeat one period at least twice, else the decimal alone."""
    whole, places = match[1], match[2]
    for length in range(1, len(places) // 2 + 1):
        period = places[-length:]
        if places.endswith(period * (3 if length == 1 and len(places) > 2 else 2)):
            head = places
            while head.endswith(period):
                head = head[:-length]
            return _repeated(whole, head, period)
    return f"{whole}.{places}"


def agree(exact: Fraction, decimal: Fraction, digits: Digits) -> bool:
    """Return whether a value rounds to a decimal of so many digits; a decimal of few digits stands for itself alone."""
    if exact == decimal:
        return True
    if not decimal or digits.significant < LEAST_DIGITS or digits.places < LEAST_DIGITS:
        return False
    step = _last_place(decimal, digits)
    return 2 * abs(exact - decimal) <= step or (
        digits.significant >= 12 and abs(exact - decimal) * 10**10 <= abs(decimal)
    )


def _last_place(decimal: Fraction, digits: Digits) -> Fraction:
    """Return one unit of a decimal's last digit."""
    magnitude = 0
    value = abs(decimal)
    while value >= 10**magnitude * 10:
        magnitude += 1
    while value < Fraction(10) ** magnitude:
        magnitude -= 1
    return Fraction(10) ** (magnitude - digits.significant + 1)


def same_number(one: Number, other: Number, places: int | None = None) -> bool:
    """Return whether two rational numbers are the same: exactly, or by `agree` if one is a decimal.

    With `places`, decimals are the same if they round to the same number at that many places.
    """
    if one.value == other.value:
        return True
    if places is not None and (one.digits or other.digits):
        return round(one.value, places) == round(other.value, places)
    shorter = min((n for n in (one, other) if n.digits), key=lambda n: n.digits.significant, default=None)
    if shorter is None or shorter.digits is None:
        return False
    longer = other if shorter is one else one
    if longer.digits and longer.digits.significant >= _OF_A_FLOAT:
        # A program prints 0.1 + 0.2 with as many digits, the last one wrong.
        return abs(one.value - other.value) * 10**15 <= abs(one.value)
    return agree(longer.value, shorter.value, shorter.digits)
