"""Units of measurement, money and counting, with their dimensions and their sizes in base units.

Two quantities are the same if their dimensions and their values in base units agree, so that 1 h is 60 min and 5 m is
not 5 cm. A noun that the table lacks is a dimension of its own: apples are not oranges. A word that is neither
(`doubled`, `below`) is no unit, so that the reader of answers must account for it otherwise.

Not covered: temperatures are compared by name, without conversion; exchange rates.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from trd_cli.graders.reading.unit_table import (
    CASED,
    CHANGING,
    CHANGING_ENDS,
    COMPOUND,
    DERIVED,
    GENERIC,
    GLUED,
    NO_NOUNS,
    TABLE,
)


@dataclass(frozen=True)
class Unit:
    """A dimension as sorted (base, exponent) pairs, its size in base units, and the power of pi to multiply by."""

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction = Fraction(1)
    pi: int = 0


_BARE_COMPOUND = re.compile(
    r"(?:m|km|cm|mm|ft|mi|g|kg|l|L|\$|J|N|mol|kJ|W|rad|deg)(?:\^?\{?\d\}?)?/(?:s|h|hr|min|sec|cm|m|km|L|l|kg|g|mol|day|K|C|ft|in|mL|ml)(?:\^?\{?\d\}?)?"
)
_BELOW = re.compile(r"/\s?\(([^()]*)\)")
_EXPONENTS = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3, "cu.": 3, "squared": 2, "cubed": 3}
TOKEN = re.compile(r"\^\s*\{?\s*(-?\d+)\s*\}?|([*/·]|\bper\b)|([^\s*/·^\d{}]+)")


@lru_cache(maxsize=1)
def _names() -> dict[str, tuple[str, Fraction]]:
    return {
        name: (base, Fraction(size))
        for base, sizes in TABLE.items()
        for size, names in sizes.items()
        for name in names.split()
    }


def is_unit_name(word: str) -> bool:
    """Return whether the table knows a word, so that it is a unit even without a plural."""
    return word in CASED or word.lower() in _names() or word.lower() in COMPOUND or word.lower() in GENERIC


def may_stand_bare(text: str, spaced: bool) -> bool:
    """Return whether letters of mathematics after a number may be a unit.

    They may in `5 m`, `5cm` and `9.8m/s^2`, but not in `5m` or `5xy`.
    """
    compact = text.replace(" ", "")
    if _BARE_COMPOUND.fullmatch(compact):
        return True
    words = re.findall(r"[^\W\d_]+", text)
    if not spaced:
        return bool(words) and (words[0].lower() in GLUED or len(words[0]) > 3 or not words[0].isascii())
    return "^{-" in text or not (len(words) > 1 and all(len(word) == 1 for word in words))


@lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    """Return the unit that a whole text names, or None if one of its words is no unit; `units` has no dimension.

    Spaces separate words; `^2`, `/`, `per` and `square` combine them. A noun that is not in the table counts in its
    plural.
    """
    text = _BELOW.sub(lambda m: "/" + re.sub(r"[\s*·]+", "/", m[1].strip()), text)
    dimension: Counter[str] = Counter()
    factor, pi = Fraction(1), 0
    sign, exponent, last = 1, 1, None
    rest = text.strip()
    place = 0
    for match in TOKEN.finditer(rest):
        if rest[place : match.start()].strip():
            return None
        place = match.end()
        power, operator, word = match.groups()
        if power is not None:
            if last is None:
                return None
            unit, by = last
            extra = int(power) * by - by
            if abs(int(power)) > 9:
                return None
            factor *= unit.factor**extra
            pi += unit.pi * extra
            for base, count in unit.dimension:
                dimension[base] += count * extra
            last = None
        elif operator is not None:
            sign = -1 if operator != "*" and operator != "·" else 1
            last = None
        elif word.lower() in _EXPONENTS and word.lower() not in ("squared", "cubed"):
            exponent = _EXPONENTS[word.lower()]
        elif word.lower() in ("squared", "cubed"):
            if last is None:
                return None
            unit, by = last
            extra = (_EXPONENTS[word.lower()] - 1) * by
            factor *= unit.factor**extra
            for base, count in unit.dimension:
                dimension[base] += count * extra
        else:
            unit = _one(word)
            if unit is None:
                return None
            by = sign * exponent
            factor *= unit.factor**by
            pi += unit.pi * by
            for base, count in unit.dimension:
                dimension[base] += count * by
            last, exponent = (unit, by), 1
    if rest[place:].strip() or exponent != 1 or (place == 0):
        return None
    return _reduced(Unit(tuple(sorted((base, count) for base, count in dimension.items() if count)), factor, pi))


def _reduced(unit: Unit) -> Unit:
    """Return the unit with volumes, areas and derived units in terms of base units."""
    dimension = Counter(dict(unit.dimension))
    factor = unit.factor
    for name, (size, parts) in DERIVED.items():
        if count := dimension.pop(name, 0):
            factor *= size**count
            for base, power in parts.items():
                dimension[base] += power * count
    for name, size, power in (("litre", Fraction(1, 1000), 3), ("hectare", Fraction(10_000), 2)):
        if count := dimension.pop(name, 0):
            dimension["metre"] += power * count
            factor *= size**count
    return Unit(tuple(sorted((base, count) for base, count in dimension.items() if count)), factor, unit.pi)


def _one(word: str) -> Unit | None:
    """Return the unit of one word: one of the table, a compound, a generic one, or a noun in the plural."""
    if word in CASED:
        base, size = (
            _names()[word.lower()]
            if word.lower() in _names() and word != "C" and word != "T" and word != "F"
            else (CASED[word], Fraction(1))
        )
        return Unit(((base, 1),), size)
    low = word.lower()
    if low in GENERIC:
        return Unit(())
    if low in COMPOUND:
        return read_unit(COMPOUND[low])
    known = _names().get(low) or _names().get(low.rstrip("."))
    if known:
        base, size = known
        return Unit(((base, 1),), size, 1 if base == "angle" and size != 1 else 0)
    return _noun(low)


def named_thing(text: str) -> Unit | None:
    """Return the things that words after a number count as a unit of their own; None if a word may change the number.

    For words that are marked as text, among which nouns may be in the singular.
    """
    words = text.lower().split()
    if not words or not all(word.isalpha() and len(word) > 2 for word in words):
        return None
    if any(word in CHANGING or word in NO_NOUNS or word.endswith(CHANGING_ENDS) for word in words):
        return None
    return Unit(((" ".join(map(singular, words)), 1),))


def _noun(word: str) -> Unit | None:
    if word in NO_NOUNS or len(word) < 3:
        return None
    if not word.isascii():
        return Unit(((word, 1),)) if word.isalpha() else None
    if word.isalpha() and word.endswith("s") and not word.endswith("ss"):
        return Unit(((singular(word), 1),))
    return None


def singular(word: str) -> str:
    """Return an English noun in lower case without the plural's ending."""
    word = word.lower()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 2 else word
