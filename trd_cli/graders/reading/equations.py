"""Which side of an equation is a name and which a value."""

from __future__ import annotations

import re

from trd_cli.graders.reading.kinds import Relation
from trd_cli.graders.reading.notation import TEXT


def is_label(side: str) -> bool:
    """Return whether the left side of an equation only names what the right side is:

    `x`, `f(2)`, `\\text{Area}`, `|AB|`, `(x,y)`.
    """
    side = side.strip()
    if TEXT.search(side) or re.match(r"m?\s?\\(?:angle|triangle|overline|vec|overrightarrow)", side):
        return True
    if re.fullmatch(r"[A-Z]{2,3}|\|[A-Z]{2}\||[a-z]{4,}|[A-Z][a-z]+", side):
        return True
    # Lengths, areas and the like in proportion to each other.
    piece = r"(?:[A-Z]{1,3}|[A-Z]\s?_\s?(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\w|\\[A-Za-z]+))"
    if re.fullmatch(rf"\\frac\{{{piece}\}}\{{{piece}\}}|{piece}\s?[:/]\s?{piece}", side):
        return True
    name = r"(?:\\[A-Za-z]+|[A-Za-z])(?:\s?_\s?(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\w|\\[A-Za-z]+))?'*(?:\^\{\\(?:circ|prime|star)\})?(?:\^\{-1\})?"
    return bool(
        re.fullmatch(
            rf"{name}(?:\s?\([^()]*(?:\([^()]*\))?[^()]*\))?|\((?:{name}\s?,\s?)+{name}\)|\\frac\{{d.*\}}\{{d.*\}}",
            side,
        )
    )


def label_and_value(value: Relation) -> tuple[str, str]:
    """Return the first and the last side of an equation, turned round where only the right one is a label (`5 = x`)."""
    first, last = value.sides[0], value.sides[-1]
    if (
        len(value.sides) == 2
        and not is_label(first)
        and re.fullmatch(r"[A-Za-z]|\\[a-z]+", last)
        and last not in ("\\pi", "e", "i")
    ):
        return last, first
    return first, last


def spelling(name: str) -> str:
    """Return a name without spaces and braces."""
    return re.sub(r"[\s{}]", "", name)
