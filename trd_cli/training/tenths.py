"""Tenths of a response: the parts by which figures of its positions are reported."""

from __future__ import annotations

import numpy as np

TENTHS = 10


def tenth_of(place_N: np.ndarray, length_N: np.ndarray | int) -> np.ndarray:
    """Return the tenth, from 0, of each place, also from 0, in a response of so many tokens."""
    return place_N.astype(np.int64) * TENTHS // length_N
