"""A table of figures for a page, a terminal or Markdown, and how its cells show numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trd_cli.evaluation.tables import NOTHING


@dataclass(frozen=True)
class Table:
    """A table as shown, all cells text. `numeric` are the indices of the columns aligned right."""

    name: str
    section: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int]
    note: str = ""


def table_of(
    name: str, title: str, words: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]], note: str = ""
) -> Table:
    """Return a table whose first columns hold `words`, all others `numbers`. Its name begins with its section's."""
    columns = (*words, *numbers)
    numeric = frozenset(range(len(words), len(columns)))
    section = name.partition("-")[0]
    return Table(name, section, title, columns, tuple(map(tuple, rows)), numeric, note)


def plain(value: object) -> str:
    """Return a value as text."""
    return NOTHING if value is None else str(value)


def count(value: float | None) -> str:
    """Return a whole number in groups of three digits."""
    return NOTHING if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits."""
    return NOTHING if value is None else f"{value:.{digits}g}"
