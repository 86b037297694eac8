"""Means, shares and quantiles over rows that come in parts. No order and no cut into parts changes a digit of them.

Axes: C cells (the groups of rows with a figure of their own), N values with the number of their cell each.

Sums of floats depend on their order. So means are formed of sums of whole numbers: a value counts in multiples of
2^-24 of its `unit`, and so does its square. Quantiles are read from a histogram. None of these holds a value a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

import numpy as np

from trd_cli.evaluation.intervals import t_interval, wilson

_STEPS = 2.0**24
# Log-ratios, in nats: a quantile is the middle of a bin, and one beyond the ends is the end.
_WIDTH, _REACH = 0.01, 30.0

# Value, low and high end, number of rows, each an array (C,); NaN where unknown.
Estimates = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def perplexity(nll: float) -> float:
    """Return exp of a negative log-likelihood a token, at most that of 700 nats: of 710 it is no float."""
    return exp(min(nll, 700.0))


class Means:
    """The means of one figure, with t intervals over rows. Its values should be near 1 in `unit`, a power of two.

    No value is below `least` or above `most`, nor is the end of an interval.
    The squares of a million rows must not exceed 2^39 units together. A value that is not finite is left out.
    """

    def __init__(self, cells: int, unit: float = 1.0, least: float = 0.0, most: float = np.inf) -> None:
        self._unit, self._least, self._most = unit, least, most
        self._count_C, self._sum_C, self._squares_C = (np.zeros(cells, np.int64) for _ in range(3))

    def add(self, cell_N: np.ndarray, value_N: np.ndarray) -> None:
        """Add a value to a cell each."""
        known_N = np.isfinite(value_N)
        cell_N, value_N = cell_N[known_N], value_N[known_N].astype(np.float64) / self._unit
        np.add.at(self._count_C, cell_N, 1)
        np.add.at(self._sum_C, cell_N, np.rint(value_N * _STEPS).astype(np.int64))
        np.add.at(self._squares_C, cell_N, np.rint(value_N**2 * _STEPS).astype(np.int64))

    def estimates(self) -> Estimates:
        """Return mean, interval and number of rows by cell."""
        count_C = np.maximum(self._count_C, 1)
        mean_C = self._sum_C / _STEPS / count_C
        spread_C = np.maximum(self._squares_C / _STEPS - count_C * mean_C**2, 0.0)
        low_C, high_C = t_interval(mean_C, spread_C, self._count_C)
        low_C, high_C = (np.clip(end_C, self._least / self._unit, self._most / self._unit) for end_C in (low_C, high_C))
        known_C = self._count_C > 0
        ends = (np.where(known_C, each, np.nan) * self._unit for each in (mean_C, low_C, high_C))
        return *ends, self._count_C.copy()


class Shares:
    """The shares of rows of which something is true, with Wilson's intervals."""

    def __init__(self, cells: int) -> None:
        self._count_C, self._true_C = np.zeros(cells, np.int64), np.zeros(cells, np.int64)

    def add(self, cell_N: np.ndarray, is_true_N: np.ndarray) -> None:
        """Add a row to a cell each."""
        np.add.at(self._count_C, cell_N, 1)
        np.add.at(self._true_C, cell_N[is_true_N], 1)

    def estimates(self) -> Estimates:
        """Return share, interval and number of rows by cell."""
        count_C = np.maximum(self._count_C, 1)
        share_C = self._true_C / count_C
        low_C, high_C = wilson(share_C, count_C)
        known_C = self._count_C > 0
        return *(np.where(known_C, each, np.nan) for each in (share_C, low_C, high_C)), self._count_C.copy()


class Quantiles:
    """The quantiles of log-ratios, to half of 0.01 nats. They are of positions, and have no interval.

    A ratio of two float16 is itself off by at most 0.008 nats from 8 nats on, and 0.016 from 16 on.
    """

    def __init__(self, cells: int) -> None:
        self._bins = round(2 * _REACH / _WIDTH) + 1
        self._counts_CB = np.zeros((cells, self._bins), np.int64)

    def add(self, cell_N: np.ndarray, value_N: np.ndarray) -> None:
        """Add a value to a cell each. One that is not finite is left out."""
        known_N = np.isfinite(value_N)
        bin_N = np.rint((np.clip(value_N[known_N], -_REACH, _REACH) + _REACH) / _WIDTH).astype(np.int64)
        np.add.at(self._counts_CB.reshape(-1), cell_N[known_N] * self._bins + bin_N, 1)

    def counts(self) -> np.ndarray:
        """Return the number of values by cell."""
        return self._counts_CB.sum(axis=1)

    def quantiles(self, levels: Sequence[float]) -> np.ndarray:
        """Return the values of rank level · (n − 1), rounded, shape (levels, C); NaN for a cell without a value."""
        below_CB, count_C = self._counts_CB.cumsum(axis=1), self.counts()
        found = []
        for level in levels:
            rank_C = np.rint(level * np.maximum(count_C - 1, 0))
            bin_C = (below_CB <= rank_C[:, None]).sum(axis=1)
            found.append(np.where(count_C > 0, np.round(bin_C * _WIDTH - _REACH, 2), np.nan))
        return np.array(found)
