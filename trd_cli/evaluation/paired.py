"""Two models on the same questions: their paired difference, its p-value, and the questions or samples it would need.

Axes as in `evaluation.metrics`: Q questions, K samples of each; P pools, separate sets of questions computed side by
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isnan, nan

import numpy as np

from trd_cli.evaluation.intervals import Z_95, difference_intervals, mean_and_stderr
from trd_cli.evaluation.metrics import question_means, sample_variances

# The 80 % point of the normal distribution: power 0.8.
Z_POWER = 0.8416212335729143
# Up to this many moved questions all sign patterns are listed.
LISTED = 16
# With fewer moved questions the sign-flip test never reaches p ≤ 0.05: 2/2⁵ > 0.05.
LEAST_MOVED = 6
# Means this close are equal but for rounding.
SAME = 1e-12
_CHUNK = 1000


@dataclass(frozen=True)
class PairedDifference:
    """Hold the mean over `questions` questions of (share correct of B − share correct of A), with a 95 % interval.

    `stderr` is sqrt(s²/Q) of the differences and `p_value` two-sided (`sign_flip_p_values`). `gained` and `lost` are
    the indices of the questions where B is better and worse. `paired_difference` explains the needed numbers.
    """

    value: float
    low: float
    high: float
    stderr: float
    p_value: float
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    questions: int
    needed_questions: int | None
    needed_samples: int | None


def paired_difference(
    correct_a_QK: np.ndarray, correct_b_QK: np.ndarray, draws: int = 20_000, seed: int = 0
) -> PairedDifference:
    """Return B − A over the questions graded on both sides; row q of both is the same question, K may differ.

    `needed_questions` (at these samples a question) and `needed_samples` (of each question, on each side, at these
    questions) would show a true difference as large as the one seen at p < 0.05 in 80 of 100 repetitions:

        Q ≥ (1.96 + 0.84)² · s²/d²     and     k ≥ W/(Q·d²/(1.96 + 0.84)² − (s² − w))

    d is the mean and s² the variance of the differences, W the mean over questions of both sides' variance of one
    sample, and w the part of s² that sampling makes: the same, each variance divided by the question's number of
    samples. This is the normal approximation, with at least as many questions as let 6 move, without which the test
    cannot reject.

    Both are None where d is 0 or only one question is common. `needed_samples` is None too where the questions differ
    too much for any number of samples, or where a side has one sample of each question and so shows no variance within
    questions. A difference picked because it was large is larger than the truth, and both numbers are then too small.

    The interval covers 93 to 97 times in 100 where 20 or more questions moved, 93 to 100 where fewer did
    (tests/test_coverage.py).
    """
    assert len(correct_a_QK) == len(correct_b_QK), (len(correct_a_QK), len(correct_b_QK))
    difference_Q = question_means(correct_b_QK) - question_means(correct_a_QK)
    both_Q = ~np.isnan(difference_Q)
    questions = int(both_Q.sum())
    if questions == 0:
        return PairedDifference(nan, nan, nan, nan, nan, (), (), 0, None, None)
    gained, lost = (tuple(np.flatnonzero(side).tolist()) for side in (difference_Q > 0, difference_Q < 0))
    # Sorted: neither the order of the questions nor which side is A may choose the resamples and sign patterns.
    sorted_Q1 = np.sort(difference_Q[both_Q])[:, None]
    by_size_Q1 = sorted_Q1[np.argsort(np.abs(sorted_Q1[:, 0]), kind="stable")]
    mean, stderr = mean_and_stderr(sorted_Q1)
    low, high = difference_intervals(sorted_Q1, draws, seed)
    value, variance = float(mean[0]), float(stderr[0]) ** 2 * questions
    sampling = [_sampling_variance(side_QK[both_Q]) for side_QK in (correct_a_QK, correct_b_QK)]
    return PairedDifference(
        value,
        float(low[0]),
        float(high[0]),
        float(stderr[0]),
        float(sign_flip_p_values(by_size_Q1, draws, seed)[0]),
        gained,
        lost,
        questions,
        needed_questions(value, variance, (len(gained) + len(lost)) / questions),
        needed_samples(value, variance, questions, sum(one for one, _ in sampling), sum(w for _, w in sampling)),
    )


def sign_flip_p_values(differences_QP: np.ndarray, draws: int = 20_000, seed: int = 0) -> np.ndarray:
    """Return two-sided permutation p-values, shape (P,).

    Under the null the sign of each question's difference is a coin flip. The value is the share of sign patterns whose
    sum is at least as far from 0 as the one seen: of all patterns where at most LISTED questions moved in any pool,
    else of `draws` random ones and the seen one. It never rejects a true null too often, and where few questions moved
    too rarely (below 3 in 100 with fewer than 30). With one sample a question it is the exact McNemar test. Questions
    are taken as independent.
    """
    sizes_QP = np.abs(differences_QP)
    sizes_MP = sizes_QP[sizes_QP.any(axis=1)]
    seen_P = np.abs(differences_QP.sum(axis=0)) - 1e-9
    moved = len(sizes_MP)
    if moved <= LISTED:
        patterns = np.arange(2**moved)[:, None] >> np.arange(moved) & 1
        return (np.abs((2.0 * patterns - 1.0) @ sizes_MP) >= seen_P).mean(axis=0)
    random = np.random.default_rng(seed)
    extreme_P = np.ones(sizes_QP.shape[1])
    for start in range(0, draws, _CHUNK):
        patterns = random.integers(0, 2, size=(min(_CHUNK, draws - start), moved), dtype=np.int8)
        extreme_P += (np.abs((2.0 * patterns - 1.0) @ sizes_MP) >= seen_P).sum(axis=0)
    return extreme_P / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure, in the order given.

    With m values, the i-th smallest (from 0) becomes the largest of (m − j)·p_(j) over j ≤ i, at most 1. Rejecting
    those up to 0.05 then keeps the chance of any false rejection among the m at 5 %, however they depend on each other
    (Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6). A NaN
    stays one and is not counted.
    """
    order = sorted((i for i, p in enumerate(p_values) if not isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def needed_questions(value: float, variance: float, moved_share: float) -> int | None:
    """Return the questions for 80 % power at two-sided 5 %, as in `paired_difference`; None where unknown."""
    if abs(value) < SAME or isnan(variance):
        return None
    return max(ceil((Z_95 + Z_POWER) ** 2 * variance / value**2 - 1e-9), ceil(LEAST_MOVED / moved_share - 1e-9))


def needed_samples(value: float, variance: float, questions: int, one: float, within: float) -> int | None:
    """Return the samples a question for 80 % power at two-sided 5 %; `one` is W, `within` w of `paired_difference`."""
    if abs(value) < SAME or isnan(variance) or isnan(one):
        return None
    between = max(variance - within, 0.0)
    room = questions * value**2 / (Z_95 + Z_POWER) ** 2 - between
    return max(1, ceil(one / room - 1e-9)) if room > 0 else None


def _sampling_variance(correct_QK: np.ndarray) -> tuple[float, float]:
    """Return the mean variances, over questions, of one sample and of a question's mean; NaN where none has two
    samples.
    """
    one_Q = sample_variances(correct_QK)
    known_Q = ~np.isnan(one_Q)
    if not known_Q.any():
        return nan, nan
    one = float(one_Q[known_Q].mean())
    graded_Q = (~np.isnan(correct_QK)).sum(axis=1)
    # A question with a single graded sample has the typical variance of one sample.
    return one, float((np.where(known_Q, one_Q, one) / graded_Q).mean())
