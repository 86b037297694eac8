"""A table of a report, and how its cells are written. A dash stands for what is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trd_cli.evaluation.tables import NOTHING


@dataclass(frozen=True)
class Table:
    """A table as it is shown: all cells are text. `numeric` are the indices of the columns that are aligned right."""

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
    """A table whose first columns hold `words`, all others `numbers`;

    its name begins with its section's, as `scores-all`.
    """
    columns = (*words, *numbers)
    numeric = frozenset(range(len(words), len(columns)))
    section = name.partition("-")[0]
    return Table(name, section, title, columns, tuple(map(tuple, rows)), numeric, note)


class Whose:
    """The columns that tell rows apart: the arm, and round and seed where there are several."""

    def __init__(self, values: Iterable[Any]) -> None:
        values = list(values)
        self._fields = ["arm"]
        self._fields += [f for f in ("round", "seed") if len({getattr(v, f) for v in values} - {None}) > 1]
        self.columns = tuple(self._fields)

    def cells(self, value: Any) -> tuple[str, ...]:
        return tuple(plain(getattr(value, field)) for field in self._fields)


def plain(value: object) -> str:
    return NOTHING if value is None else str(value)


def count(value: float | None) -> str:
    """A whole number with thin groups of three."""
    return NOTHING if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    return NOTHING if value is None else f"{value:.{digits}g}"
