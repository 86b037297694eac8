"""The shortening: y_r against the y_o it was made from, and a warning where training along y_r may teach little.

A pair counts as collapsed if y_r is

- short: it has at most SHORT of y_o's tokens,
- certain: the teacher's negative log-likelihood of y_r is at most CERTAIN nats a token (perplexity 1.22), and
- far: the student's is at least FAR nats a token above the teacher's, and above the student's of y_o.

The student is then pushed hard towards few tokens that the teacher hardly weighs. The warning comes where at least
MANY of the pairs are such. The bounds are ours, and chosen by hand.

Memory: some 150 bytes a row with a response.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trd_cli.diagnosis.sums import Means, Shares
from trd_cli.trajectories.selection import pl

SHORT, CERTAIN, FAR, MANY = 0.5, 0.2, 0.5, 0.1
_VALUES = ("tokens", "onset_words", "student_nll", "teacher_nll")
_SCHEMA = {"id": pl.String, "parent": pl.String, "is_y_r": pl.Boolean, **dict.fromkeys(_VALUES, pl.Float64)}


@dataclass(frozen=True, slots=True)
class Paired:
    """A figure of the pairs: its mean over y_o and over y_r, and the mean difference y_r − y_o with a t interval."""

    figure: str
    y_o: float
    y_r: float
    difference: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Shortening:
    """The figures of the pairs, and the share of the collapsed ones with Wilson's interval."""

    figures: tuple[Paired, ...]
    collapsed: float
    low: float
    high: float
    pairs: int

    @property
    def warning(self) -> str | None:
        """Return one line if too many pairs have collapsed."""
        if self.collapsed < MANY:
            return None
        return (
            f"{100 * self.collapsed:.0f} % of {self.pairs:,} pairs have a y_r that is short (at most {SHORT:g} of y_o), certain (the "
            f"teacher's NLL is at most {CERTAIN:g} nats a token) and far from the student (at least {FAR:g} nats a token more): training along "
            "it may collapse the student's answers"
        )


class Pairs:
    """The rows that may be in a pair. `add` all, then read `shortening`."""

    def __init__(self) -> None:
        self._parts = [pl.DataFrame(schema=_SCHEMA)]

    def add(self, columns: dict[str, object]) -> None:
        """Add rows by the columns of _SCHEMA; those without a token are left out."""
        self._parts.append(pl.DataFrame(columns, schema=_SCHEMA).filter(pl.col("tokens") > 0))

    def shortening(self) -> Shortening | None:
        """Return the figures of all pairs, None if there is no pair. A y_o of several y_r is in as many pairs."""
        rows = pl.concat(self._parts)
        before = rows.filter(~pl.col("is_y_r")).unique("id", keep="first")
        both = rows.filter("is_y_r").join(before, left_on="parent", right_on="id", suffix="_o")
        if both.is_empty():
            return None
        after, of_y_o = ({name: both[name + end].to_numpy() for name in _VALUES} for end in ("", "_o"))
        collapsed_N = (
            (after["tokens"] <= SHORT * of_y_o["tokens"])
            & (after["teacher_nll"] <= CERTAIN)
            & (after["student_nll"] >= after["teacher_nll"] + FAR)
            & (after["student_nll"] > of_y_o["student_nll"])
        )
        shares = Shares(1)
        shares.add(np.zeros(len(both), np.int64), collapsed_N)
        figures = (_paired(name, of_y_o[name], after[name]) for name in _VALUES)
        return Shortening(
            tuple(f for f in figures if f), *(float(each[0]) for each in shares.estimates()[:3]), len(both)
        )


def _paired(name: str, before_N: np.ndarray, after_N: np.ndarray) -> Paired | None:
    known_N = np.isfinite(before_N) & np.isfinite(after_N)
    if not known_N.any():
        return None
    means = Means(3, {"tokens": 1024.0, "onset_words": 8.0}.get(name, 1.0), least=-np.inf)
    for cell, value_N in enumerate((before_N, after_N, after_N - before_N)):
        means.add(np.full(known_N.sum(), cell), value_N[known_N])
    value_C, low_C, high_C, count_C = means.estimates()
    ends = (None if np.isnan(each[2]) else float(each[2]) for each in (low_C, high_C))
    return Paired(name, *map(float, value_C), *ends, int(count_C[0]))
