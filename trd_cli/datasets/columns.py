"""Find a value in a row: in a column by its name, or by a path of names and list indexes into a column's content.

`reward_model.ground_truth` and `messages.0.content` are paths. They lead through objects, lists, and text that holds
JSON or a Python literal. A column whose own name is the whole path wins. A name that no column has also finds a column
that differs only in case, in outer spaces, or in spaces or hyphens for underscores: ` Ground Truth ` is ground_truth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from trd_cli.datasets.values import Clash, RowFault, filled, opened

Names = str | tuple[str, ...]


@dataclass(frozen=True)
class From:
    """Describe the origin of a field: `make` is called with one value for each of `columns`, None where a row has none.

    A tuple in `columns` lists alternative names, and the first filled one counts. A file in which no row has the first
    column is refused, unless `optional`.
    """

    columns: tuple[Names, ...]
    make: Callable[..., Any] = lambda value: value
    optional: bool = False

    def __call__(self, row: Mapping[str, Any]) -> Any:
        """Return the field's value for a row."""
        return self.make(*(first_filled(row, names) for names in self.columns))

    def first(self) -> tuple[str, ...]:
        """Return the alternative names of the first column, one of which a file must have."""
        first = self.columns[0]
        return (first,) if isinstance(first, str) else first

    def all(self) -> tuple[str, ...]:
        """Return all names that a value may come from."""
        return tuple(name for names in self.columns for name in ((names,) if isinstance(names, str) else names))


def first_filled(row: Mapping[str, Any], names: Names) -> Any:
    """Return the first value that holds something.

    A word that may mean nothing (`None`, `n/a`) is returned only if no other value holds anything.
    """
    if isinstance(names, str):
        names = (names,)
    given = [value for name in names for _, value in filled_in(row, name)]
    return next((value for value in given if filled(value, doubtful=False)), next(iter(given), None))


def found(row: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Yield each value that a row has under a column or path, in any spelling, with the row's own name for it."""
    left: int | None = None
    for column, rest in _splits(tuple(row), name):
        if left is not None and len(rest) > left:
            return
        value = _inside(row[column], rest)
        if value is not _ABSENT:
            left = len(rest)
            yield ".".join((str(column), *rest)), value


def filled_in(row: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Yield those of `found` that hold something.

    Raises RowFault where the row has one of them twice with different values.
    """
    for column, value in found(row, name):
        if isinstance(value, Clash):
            given = " and ".join(repr(item)[:40] for item in value)
            raise RowFault(f"{column!r} occurs twice, with {given}")
        if filled(value):
            yield column, value


def has(row: Mapping[str, Any], name: str) -> bool:
    """Return True if the row has the column or path `name`, even if it holds nothing."""
    return next(found(row, name), None) is not None


def paths(value: Any, name: str, most: int = 8) -> list[str]:
    """Return the paths to at most `most` single values inside `value`, which stands under `name`."""
    inside = list(islice(_paths(value, name), most + 1))
    return [*inside[:most], "…"] if len(inside) > most else inside


_ABSENT = object()


@lru_cache(maxsize=1024)
def _splits(columns: tuple[str, ...], name: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the columns that `name` may begin with, the longest first, each with the remaining steps of the path."""
    parts = name.split(".")
    return tuple(
        (column, tuple(parts[length:]))
        for length in range(len(parts), 0, -1)
        for column in _spellings(columns, ".".join(parts[:length]))
    )


def _spellings(names: Iterable[str], name: str) -> list[str]:
    exact = [other for other in names if other == name]
    return exact + [other for other in names if other != name and _plain(other) == _plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", str(name).strip("\ufeff \t\r\n").casefold())


def _inside(value: Any, steps: tuple[str, ...]) -> Any:
    if not steps:
        return value
    value = opened(value)
    if isinstance(value, list):
        index = int(steps[0]) if re.fullmatch(r"-?\d{1,9}", steps[0]) else len(value)
        return _inside(value[index], steps[1:]) if -len(value) <= index < len(value) else _ABSENT
    if isinstance(value, Mapping):
        items = (_inside(value[key], rest) for key, rest in _splits(tuple(value), ".".join(steps)))
        return next((item for item in items if item is not _ABSENT), _ABSENT)
    return _ABSENT


def _paths(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, f"{name}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, f"{name}.{index}")
    else:
        yield name
