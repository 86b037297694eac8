"""Align two episodes by their actions, so that y_o and y_r can be shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Literal

Change = Literal["kept", "changed", "added", "removed"]


@dataclass(frozen=True, slots=True)
class Step:
    """Hold the places of two turns that belong together; None where one of the episodes has no such turn."""

    before: int | None
    after: int | None
    change: Change


def align(before: Sequence[str], after: Sequence[str]) -> list[Step]:
    """Return the steps of two lists of actions, which name each place of both once and in order.

    Where one stretch of actions stands for another, its first action stands for the other's first, and so on.
    """
    steps: list[Step] = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        for old, new in zip_longest(range(a, b), range(c, d)):
            steps.append(Step(old, new, _change(kind == "equal", old, new)))
    return steps


def _change(is_equal: bool, before: int | None, after: int | None) -> Change:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    return "kept" if is_equal else "changed"
