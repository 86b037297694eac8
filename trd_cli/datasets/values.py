"""Turn the cells of a file into text: numbers as they were meant, bytes decoded, lists joined, empty cells as None.

A program may have taken a backslash for the start of an escape (`\\f` of `\\frac`, `\\t` of `\\text`). Such a backslash
is put back in texts of mathematics if the letters after it can only be the rest of a LaTeX command.

Not covered: a backslash that became white space before letters that are also a word or a name (`\\to`, `\\nu`, `\\ne`).
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Mapping
from datetime import datetime, time
from decimal import Decimal
from typing import Any

from trd_cli.records import well_formed

# What tables of pandas and SQL write in empty cells.
_NOTHING = {"nan", "null", "<na>", "nat"}
# These may also mean that there is no solution.
_PERHAPS_NOTHING = {"none", "n/a", "na", "-"}

# Numbers whose first digit stands between 10^-6 and 10^400 are written without a power of ten.
_LONGEST_ZEROS, _LONGEST = 6, 400

_WRITTEN_OUT = re.compile(r"\s*(?:\{\s*['\"]|\[\s*(?:\{\s*)?['\"])")
_COMMAND = re.compile(r"(?<!\\)\\(?=[a-zA-Z]{2})(?!u[0-9a-fA-F]{4})")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")
_DOLLARS = re.compile(r"\$([^$]+)\$")

# The letters that are left of commands, by the control character that the backslash and the first letter became. Some
# short rests are words too, so those count in answers but not in prose.
_RESTS = {
    "\a": r"lpha|pprox|ngle|rccos|rcsin|rctan|st|symp|leph|rray",
    "\b": r"oxed|egin|eta|inom|igg?[lrm]?|ar|mod|ullet|ot|oldsymbol|f|m|ecause|ackslash",
    "\f": r"rac|orall|box|lat|rown",
    "\n": r"abla|otin",
    "\r": r"ight(?:arrow)?|angle|floor|ceil|vert|brace|m(?=\s*\{)",
    "\t": r"ext(?:bf|it|rm|tt|sf|normal|up)?(?=\s*\{)|imes|heta|frac|binom|ilde|herefore|riangle",
    "\v": r"ec|arphi|arepsilon|artheta|ee|dots|arnothing",
}
_SHORT_RESTS = {
    "\n": r"eq|mid|leq|geq|parallel",
    "\r": r"ho",
    "\t": r"anh|an(?=\s*(?:[\\({^\d]|[a-z](?![a-z])))|au|o(?=\s*(?:\\|[-+]?\d))",
}
_LETTERS = dict(zip("\a\b\f\n\r\t\v", "abfnrtv", strict=True))


def _escaped(*tables: dict[str, str]) -> re.Pattern[str]:
    rests = [(character, rest) for table in tables for character, rest in table.items()]
    return re.compile("|".join(f"{character}(?=(?:{rest})(?![a-zA-Z]))" for character, rest in rests))


_ESCAPED_IN_PROSE, _ESCAPED = _escaped(_RESTS), _escaped(_RESTS, _SHORT_RESTS)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class RowFault(ValueError):
    """Report a value that cannot be understood; its row is left out with this reason."""


class Structured(ValueError):
    """Report an object or a list, `value`, where one value is needed."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"a {type(value).__name__} where one value is needed")
        self.value = value


class Written(float):
    """A float that remembers its digits: `written` is the number as the file has it."""

    written: str

    def __new__(cls, text: str) -> Written:
        number = super().__new__(cls, text)
        number.written = text
        return number


class Clash(tuple):
    """The different values that one row has under one name."""


def filled(value: Any, doubtful: bool = True) -> bool:
    """Return True if a cell holds something; without `doubtful`, a word such as `None` or `n/a` does not count."""
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return False
    if isinstance(value, list | dict):
        return bool(value)
    if isinstance(value, str):
        word = value.strip().casefold()
        return bool(word) and word not in _NOTHING and (doubtful or word not in _PERHAPS_NOTHING)
    return bool(value.strip()) if isinstance(value, bytes) else True


def text_of(value: Any) -> str | None:
    """Return a cell as text, or None if it holds nothing (see `filled`).

    25.0 becomes "25" and 1e-07 "10^{-7}"; a date loses a time of midnight. Raises Structured for an object or a list,
    and RowFault for bytes that are not UTF-8.
    """
    if not filled(value):
        return None
    if isinstance(value, list | dict | tuple):
        raise Structured(value)
    if isinstance(value, bytes):
        return text_of(_decoded(value))
    if isinstance(value, float | Decimal):
        return number(value)
    if isinstance(value, datetime) and value.time() == time.min:
        value = value.date()
    # Half of a surrogate pair is legal in JSON but cannot be written as UTF-8.
    return well_formed(str(value))


def answer_of(value: Any) -> str | None:
    """Return a reference answer as text: a list is joined as the grader reads it, `1, 2` or `(1, 2), (3, 4)`.

    A text that spells a list of texts (`["1", "2"]`, `['1']`) counts as that list. All else is as in `text_of`. Raises
    Structured for an object or a list that holds one, even if it is spelled as text.
    """
    value = _decoded(value) if isinstance(value, bytes) else value
    inside = opened(value, latex=True)
    if isinstance(inside, Mapping) or (isinstance(inside, list) and any(isinstance(i, Mapping) for i in inside)):
        raise Structured(inside)
    is_list = isinstance(inside, list) and (inside is value or all(isinstance(item, str) for item in inside))
    if not is_list:
        return text_of(value)
    parts = [part for part in map(_part, inside) if part is not None]
    if len(parts) < 2:
        return parts[0] if parts else None
    return ", ".join(_GROUPED.sub(_ungrouped, _DOLLARS.sub(r"\1", part)) for part in parts)


def _part(item: Any) -> str | None:
    if not isinstance(item, list):
        return text_of(item)
    inner = answer_of(item)
    return inner if inner is None or len(item) < 2 else f"({inner})"


def _ungrouped(grouped: re.Match[str]) -> str:
    return grouped[0].replace(",", "")


def opened(value: Any, latex: bool = False) -> Any:
    """Return the object or list that a text spells, in JSON or as a Python literal; return any other value unchanged.

    With `latex`, a backslash before two letters begins a LaTeX command and is no escape.
    """
    if not isinstance(value, str) or not _WRITTEN_OUT.match(value):
        return value
    text = _COMMAND.sub(r"\\\g<0>", value.strip()) if latex else value.strip()
    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings(action="ignore"):
                found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, Mapping | list) else value
    return value


def number(value: float | Decimal) -> str:
    """Return a number in mathematical notation, without rounding: `5` for 5.0, `0.1`, `2.5 \\times 10^{-9}`."""
    if not math.isfinite(value) and not isinstance(value, Written):
        return str(value)
    exact = Decimal(value.written if isinstance(value, Written) else str(value))
    power = exact.adjusted()
    if not exact:
        return "0"
    if -_LONGEST_ZEROS <= power <= _LONGEST:
        return f"{exact.to_integral_value() if exact == exact.to_integral_value() else exact:f}"
    first, *rest = "".join(map(str, exact.as_tuple().digits)).rstrip("0")
    digits = ".".join(filter(None, (first, "".join(rest))))
    sign = "-" if exact < 0 else ""
    return f"{sign}10^{{{power}}}" if digits == "1" else rf"{sign}{digits} \times 10^{{{power}}}"


def mended(text: str, prose: bool) -> str:
    """Return `text` with each backslash put back that must have become a control character.

    In `prose`, letters after a tab or a line end that could also be a word are left alone.
    """
    pattern = _ESCAPED_IN_PROSE if prose else _ESCAPED
    return pattern.sub(lambda found: "\\" + _LETTERS[found[0]], text)


def control_character(text: str) -> str | None:
    """Return the first control character of `text`, as in `U+0008`, or None; tabs and line ends do not count."""
    found = _CONTROL.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def _decoded(value: bytes) -> str:
    try:
        return value.decode("utf-8-sig").rstrip("\0")
    except UnicodeDecodeError:
        raise RowFault(f"{_shown(value)} is bytes that are not UTF-8") from None


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
