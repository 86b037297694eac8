"""Subsets as filters over a row and its parent.

`correct` and `incorrect` read a row's own verdict. The other four compare a refined row with its rollout:

    repaired    incorrect → correct        broken        correct → incorrect
    kept        correct → correct          unrepaired    incorrect → incorrect

A verdict that is missing, `error` or `timeout` belongs to none of them.
"""

from __future__ import annotations

import re
import signal
from difflib import get_close_matches

import polars as pl

from trd_cli.errors import InputError, first_line, flag

# Polars is imported here alone. It puts a handler of its own before Python's, after which the kernel resumes the call
# that was interrupted: an endless wait, as for a grader, would ignore Ctrl-C.
signal.siginterrupt(signal.SIGINT, True)

SUBSETS: dict[str, str] = {
    "all": "TRUE",
    "correct": "verdict = 'correct'",
    "incorrect": "verdict = 'incorrect'",
    "repaired": "parent_verdict = 'incorrect' AND verdict = 'correct'",
    "broken": "parent_verdict = 'correct' AND verdict = 'incorrect'",
    "kept": "parent_verdict = 'correct' AND verdict = 'correct'",
    "unrepaired": "parent_verdict = 'incorrect' AND verdict = 'incorrect'",
}


_NO_COLUMN = re.compile(r'unable to find column "(\w+)"')
# `parent_id` is a column of the row itself.
_PARENT_COLUMN = re.compile(r"\bparent_(?!id\b)")


def needs_parents(subset: str, where: str | None) -> bool:
    """Return whether the filter reads a parent's column."""
    return any(_PARENT_COLUMN.search(text) for text in (SUBSETS[subset], where or ""))


def columns_read(subset: str, where: str | None) -> tuple[list[str], list[str]] | None:
    """Return the columns that the filter reads of a row and, without `parent_`, of its parent; None for all columns."""
    filters = [pl.sql_expr(text) for text in (SUBSETS[subset], where) if text is not None]
    if any(each.meta.has_multiple_outputs() for each in filters):
        return None
    names = list(dict.fromkeys(name for each in filters for name in each.meta.root_names()))
    parents = [name for name in names if _PARENT_COLUMN.match(name)]
    return [name for name in names if name not in parents], [name.removeprefix("parent_") for name in parents]


def select(rows: pl.DataFrame, subset: str, where: str | None) -> pl.DataFrame:
    """Return the rows that are in `subset` and satisfy `where`.

    `rows` has the columns of trajectories, and `parent_` columns where the filter reads them. Raises InputError when
    `where` is not a Polars SQL expression over those columns that gives a boolean.
    """
    chosen = rows.filter(pl.sql_expr(SUBSETS[subset]))
    if where is None:
        return chosen
    try:
        return chosen.filter(pl.sql_expr(where))
    except pl.exceptions.PolarsError as error:
        reason = first_line(error).partition("; valid columns")[0]
        close = [name for word in _NO_COLUMN.findall(reason) for name in get_close_matches(word, rows.columns)]
        raise InputError(
            f"{flag('where')} {where!r}: {reason}",
            "a Polars SQL condition over " + ", ".join(close or rows.columns),
            "mend the expression",
        ) from None
