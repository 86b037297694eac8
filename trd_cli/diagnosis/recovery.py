"""The recovery rate: how often a model that goes on from a wrong attempt ends right, by cut and by perplexity.

The accuracy of a group of prefixes is the mean over problems of the share of their graded continuations that are right,
with a 95 % interval over problems (`evaluation.intervals`). Quartiles are of the teacher's perplexity of the prefix,
among the prefixes of the same cut: 1 has those that surprise the teacher least. A verdict of error or timeout counts as
ungraded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trd_cli.evaluation.intervals import mean_intervals

By = Literal["teacher", "student"]
QUARTILES = (1, 2, 3, 4)
_SCORES = {"correct": 1.0, "incorrect": 0.0}


@dataclass(frozen=True)
class Prefix:
    """Hold where a wrong row is cut: `tokens` of its response are kept, as near to the share `cut` as a line break is.

    `teacher_perplexity` is exp(−mean log-probability of these tokens under the teacher).
    """

    trajectory_id: str
    problem_id: str
    cut: float
    tokens: int
    teacher_perplexity: float


@dataclass(frozen=True)
class Recovery:
    """Hold the accuracy of the continuations of a group of prefixes; a `cut` or `quartile` of None is all of them.

    `value`, `low` and `high` are None where nothing is graded. `graded` and `ungraded` count continuations.
    """

    by: By
    cut: float | None
    quartile: int | None
    value: float | None
    low: float | None
    high: float | None
    prefixes: int
    problems: int
    graded: int
    ungraded: int


@dataclass(frozen=True)
class Continued:
    """Hold the verdict of a continuation of the first `tokens` tokens of a row; None before it is graded."""

    parent_id: str
    tokens: int
    verdict: str | None


def rates(by: By, prefixes: Sequence[Prefix], rows: Iterable[Continued]) -> list[Recovery]:
    """Return the figures of each cut and quartile, of each alone, and of all; groups without a prefix are left out."""
    verdicts: defaultdict[tuple[str, int], list[str | None]] = defaultdict(list)
    for row in rows:
        verdicts[row.parent_id, row.tokens].append(row.verdict)
    places = quartiles(prefixes)
    cuts = sorted({prefix.cut for prefix in prefixes})
    groups = [(cut, quartile) for cut in (*cuts, None) for quartile in (*QUARTILES, None)]
    found = ((cut, quartile, _group(prefixes, places, cut, quartile)) for cut, quartile in groups)
    return [_rate(by, cut, quartile, group, verdicts) for cut, quartile, group in found if group]


def quartiles(prefixes: Sequence[Prefix]) -> list[int]:
    """Return the quartile of each prefix, 1 to 4, among those of its cut."""
    found = [0] * len(prefixes)
    for cut in {prefix.cut for prefix in prefixes}:
        of_cut = [i for i, prefix in enumerate(prefixes) if prefix.cut == cut]
        of_cut.sort(key=lambda i: (prefixes[i].teacher_perplexity, prefixes[i].trajectory_id))
        for rank, i in enumerate(of_cut):
            found[i] = 1 + 4 * rank // len(of_cut)
    return found


def _group(
    prefixes: Sequence[Prefix], places: Sequence[int], cut: float | None, quartile: int | None
) -> dict[tuple[str, int], str]:
    """Return the prefixes of a group, each once, with their problems."""
    return {
        (prefix.trajectory_id, prefix.tokens): prefix.problem_id
        for prefix, place in zip(prefixes, places, strict=True)
        if cut in (None, prefix.cut) and quartile in (None, place)
    }


def _rate(
    by: By,
    cut: float | None,
    quartile: int | None,
    group: Mapping[tuple[str, int], str],
    verdicts: Mapping[tuple[str, int], Sequence[str | None]],
) -> Recovery:
    scores: defaultdict[str, list[float]] = defaultdict(list)
    total = 0
    for prefix, problem in group.items():
        of_prefix = verdicts.get(prefix, [])
        total += len(of_prefix)
        scores[problem] += [_SCORES[verdict] for verdict in of_prefix if verdict in _SCORES]
    means_Q1 = np.array(sorted(np.mean(each) for each in scores.values() if each))[:, None]
    graded = sum(map(len, scores.values()))
    value = low = high = None
    if graded:
        value = float(means_Q1.mean())
        low, high = (float(bound_P[0]) for bound_P in mean_intervals(means_Q1, np.array([graded])))
    return Recovery(by, cut, quartile, value, low, high, len(group), len(means_Q1), graded, total - graded)
