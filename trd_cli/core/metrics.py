"""Scores over questions, with intervals.

Axes: Q questions, K samples of each. `correct_QK` holds 1.0 for correct, 0.0 for incorrect, and NaN for a sample that
has no verdict (error, timeout): those enter no score.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its 95 % interval; `questions` counts those with at least one graded sample."""

    value: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean per-question difference B − A with a 95 % bootstrap interval and a two-sided permutation p-value."""

    value: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int


def question_means(correct_QK: np.ndarray) -> np.ndarray:
    """Share correct of each question, shape (Q,); NaN where nothing was graded."""
    graded_Q = (~np.isnan(correct_QK)).sum(axis=1)
    right_Q = np.nansum(correct_QK, axis=1)
    return np.divide(right_Q, graded_Q, out=np.full(len(correct_QK), np.nan), where=graded_Q > 0)


def avg_at_k(correct_QK: np.ndarray) -> Estimate:
    """avg@k: the mean over questions of the share of correct samples."""
    return mean_with_interval(question_means(correct_QK), samples=int((~np.isnan(correct_QK)).sum()))


def pass_at_k(correct_QK: np.ndarray, k: int) -> Estimate:
    """pass@k by the unbiased estimator 1 − C(n−c, k)/C(n, k) of Chen et al. (arXiv 2107.03374, eq. 1).

    n is the number of graded samples of a question, c of the correct ones; a question with n < k has no estimate and is
    left out.
    """
    graded_Q = (~np.isnan(correct_QK)).sum(axis=1)
    right_Q = np.nansum(correct_QK, axis=1).astype(int)
    scores = [
        1.0 - comb(int(n - c), k) / comb(int(n), k) if n >= k else np.nan
        for n, c in zip(graded_Q, right_Q, strict=True)
    ]
    return mean_with_interval(np.array(scores, dtype=float), samples=int(graded_Q[graded_Q >= k].sum()))


def mean_with_interval(scores_Q: np.ndarray, samples: int) -> Estimate:
    """Mean of per-question scores in [0, 1] with Wilson's interval at the effective sample size.

    The questions are the independent units: the effective size is the n at which a plain proportion would have the
    variance seen between questions, never less than Q and never more than `samples`. Where every score is
    0 or every score is 1 there is no variance to see, and the size is Q. Wilson's interval keeps a width at 0 and 1, where a
    bootstrap has none.
    """
    scores = scores_Q[~np.isnan(scores_Q)]
    questions = len(scores)
    if questions == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    mean = float(scores.mean())
    size = float(questions)
    if 0.0 < mean < 1.0 and questions > 1:
        variance_of_mean = float(scores.var(ddof=1)) / questions
        effective = mean * (1 - mean) / variance_of_mean if variance_of_mean > 0 else np.inf
        size = float(np.clip(effective, questions, max(samples, questions)))
    centre = (mean + Z_95**2 / (2 * size)) / (1 + Z_95**2 / size)
    half = Z_95 * np.sqrt(mean * (1 - mean) / size + Z_95**2 / (4 * size**2)) / (1 + Z_95**2 / size)
    # At 0 and 1 one end is the mean itself, which rounding would miss by a hair.
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Estimate(mean, min(mean, low), max(mean, high), questions)


def paired_difference(
    scores_a_Q: np.ndarray, scores_b_Q: np.ndarray, draws: int = 20_000, seed: int = 0
) -> PairedDifference:
    """B − A over the questions both have a score for.

    p-value: under the null the sign of each question's difference is a coin flip; the share of `draws` random sign
    patterns at least as extreme as what was seen, counting the seen one. Interval: percentile bootstrap over questions.
    """
    both = ~(np.isnan(scores_a_Q) | np.isnan(scores_b_Q))
    difference = scores_b_Q[both] - scores_a_Q[both]
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    if len(difference) == 0:
        return PairedDifference(float("nan"), float("nan"), float("nan"), float("nan"), 0, 0)
    random = np.random.default_rng(seed)
    moved = difference[difference != 0]
    extreme = 1
    means = np.empty(draws)
    for start in range(0, draws, 1000):
        rows = min(1000, draws - start)
        signs = random.choice((-1.0, 1.0), size=(rows, len(moved)))
        extreme += int((np.abs(signs @ moved) >= abs(moved.sum()) - 1e-12).sum())
        means[start : start + rows] = random.choice(difference, size=(rows, len(difference))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return PairedDifference(
        float(difference.mean()), float(low), float(high), extreme / (draws + 1), gained, lost
    )
