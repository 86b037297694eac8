"""95 % intervals for means over questions.

Axes: Q questions (the independent units), P pools: separate sets of Q questions, computed side by side.

Each interval was chosen by simulation (tests/test_coverage.py):

- The rule is a bootstrap over questions, read at Hesterberg's expanded percentiles (arXiv 1411.5279). The plain
  percentile interval is too narrow by sqrt((Q − 1)/Q) and by t against z, so both move the quantiles outwards.
- Where the bootstrap knows too little, it is Wilson's interval at the effective sample size, as for surveys (Franco,
  Little, Louis and Slud 2019): with fewer than ENOUGH effective successes or failures, or with no more variance than
  independent samples have. Its z is the t quantile, since the effective size is estimated (as in Korn and Graubard
  1998).
- Where all scores are 0 or 1, it is Wilson's interval at Q: the bootstrap is then a binomial on a lattice and adds
  nothing.

For differences the fall-back is the adjusted Wald interval of Bonett and Price (2012). The bootstrap-t interval covered
no better and was wider; BCa covered as well at more work.

Not covered: questions that depend on each other (several about one text), and how the benchmark was chosen. The
interval is for the mean over all questions like these, not only over these. Do not trust it below some five effective
successes or failures: a pool that drew no easy question cannot know that there are any. With 30 questions of very
uneven difficulty and a mean of 0.1, coverage is 92.8 %; with 20 it falls to 90 %.
"""

from __future__ import annotations

from functools import lru_cache
from math import atan, exp, lgamma, pi, sqrt, tan
from statistics import NormalDist

import numpy as np

Z_95 = 1.959963984540054
# Effective successes, failures or moved questions from which the bootstrap is trusted.
ENOUGH = 20
_CHUNK = 500


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % point of Student's t: exact for 1 and 2 degrees of freedom, infinite for 0.

    For more it is the expansion in 1/freedom of Abramowitz and Stegun 26.7.5. Its error is 0.12 % at 3 degrees and
    shrinks fast.
    """
    if freedom <= 0:
        return float("inf")
    if freedom == 1:
        return tan(pi * 0.475)
    if freedom == 2:
        return 0.95 * sqrt(2 / (1 - 0.95**2))
    z = Z_95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def t_tails(t: float, freedom: int) -> float:
    """Return the chance that Student's t lies at least as far from 0 as `t`.

    With t = sqrt(freedom)·tan θ it is the integral of cos θ to the power freedom − 1 beyond the seen angle, taken by
    Gauss and Legendre's rule, over that of all angles.
    """
    start = atan(abs(t) / sqrt(freedom))
    # Beyond 12/sqrt(freedom) more there is less than rounding.
    end = min(pi / 2, start + 12 / sqrt(freedom))
    nodes, weights = _legendre()
    angles = start + (end - start) * (nodes + 1) / 2
    beyond = float(weights @ np.cos(angles) ** (freedom - 1)) * (end - start) / 2
    return min(1.0, 2 * beyond * exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(pi))


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(80)


def wilson(
    mean_P: np.ndarray, size_P: np.ndarray | float, z: np.ndarray | float = Z_95
) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's score interval of proportions seen in `size_P` trials, two arrays (P,); it has a width at 0 and 1
    too.
    """
    shrink = 1 + z**2 / size_P
    centre = (mean_P + z**2 / (2 * size_P)) / shrink
    half = z * np.sqrt(mean_P * (1 - mean_P) / size_P + z**2 / (4 * size_P**2)) / shrink
    # At 0 and 1 one end is the mean itself, which rounding would miss by a hair.
    return np.clip(centre - half, 0.0, mean_P), np.clip(centre + half, mean_P, 1.0)


def mean_and_stderr(scores_QP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means over questions and their standard errors sqrt(s²/Q), two arrays (P,); NaN errors for one question.

    s² divides by Q − 1. With one score a question this is the standard error clustered by question (Miller, arXiv
    2411.00640).
    """
    questions, pools = scores_QP.shape
    if questions < 2:
        return scores_QP.mean(axis=0), np.full(pools, np.nan)
    return scores_QP.mean(axis=0), scores_QP.std(axis=0, ddof=1) / sqrt(questions)


def t_interval(mean_P: np.ndarray, spread_P: np.ndarray, units_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Student's intervals mean ∓ t · sqrt(spread / (n (n − 1))) of figures that have no bounds, two arrays (P,).

    `spread_P` are sums of squared deviations from the mean, of `units_P` (n) independent units. Both ends are NaN for
    fewer than two units.
    """
    free_P = units_P - 1
    quantile_P = np.array([t_quantile(int(free)) if free > 0 else np.nan for free in free_P])
    half_P = quantile_P * np.sqrt(spread_P / np.maximum(units_P * free_P, 1))
    return mean_P - half_P, mean_P + half_P


def bootstrap_means(scores_QP: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return the means of `draws` resamples of the questions, shape (draws, P); all pools share the resamples.

    Each resample comes with its mirror image (question i for question Q − 1 − i), so that for sorted scores the
    interval of 1 − score, or of −difference, is the mirrored interval. `draws` is rounded up to an even number.
    """
    questions, pools = scores_QP.shape
    random = np.random.default_rng(seed)
    half = (draws + 1) // 2
    means = np.empty((2, half, pools))
    for start in range(0, half, _CHUNK):
        rows = min(_CHUNK, half - start)
        weights = resamples(random, rows, questions) / questions
        means[0, start : start + rows] = weights @ scores_QP
        means[1, start : start + rows] = weights[:, ::-1] @ scores_QP
    return means.reshape(2 * half, pools)


def resamples(random: np.random.Generator, rows: int, units: int) -> np.ndarray:
    """Return how often each of `units` units is drawn in `rows` resamples with replacement, integers (rows, units)."""
    drawn = random.integers(0, units, size=(rows, units))
    drawn += units * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)


def expanded_percentile(scores_QP: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bootstrap interval at levels Φ(∓ t · sqrt(Q/(Q − 1))) in place of 2.5 % and 97.5 %; needs Q ≥ 2."""
    questions = len(scores_QP)
    reach = t_quantile(questions - 1) * sqrt(questions / (questions - 1))
    level = NormalDist().cdf(-reach)
    low_P, high_P = np.quantile(bootstrap_means(scores_QP, draws, seed), (level, 1 - level), axis=0)
    return low_P, high_P


def mean_intervals(
    scores_QP: np.ndarray, samples_P: np.ndarray, draws: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % intervals of the means of scores in [0, 1], two arrays (P,), by the rule at the top.

    `samples_P` counts the samples behind each pool. The effective size is the number of trials at which a plain
    proportion would have the variance seen between the questions, at least Q and at most the number of samples. Sort
    the scores, and the interval does not depend on the order of the questions.
    """
    questions = len(scores_QP)
    mean_P, stderr_P = mean_and_stderr(scores_QP)
    plain_P = np.all((scores_QP == 0) | (scores_QP == 1), axis=0) | (questions == 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        size_P = np.clip(mean_P * (1 - mean_P) / stderr_P**2, questions, np.maximum(samples_P, questions))
    size_P = np.where(plain_P, questions, size_P)
    low_P, high_P = wilson(mean_P, size_P, np.where(plain_P, Z_95, t_quantile(max(1, questions - 1))))
    events_P = size_P * np.minimum(mean_P, 1 - mean_P)
    enough_P = ~plain_P & (size_P < samples_P) & (events_P >= ENOUGH)
    if enough_P.any():
        low_P[enough_P], high_P[enough_P] = expanded_percentile(scores_QP[:, enough_P], draws, seed)
    return np.minimum(low_P, mean_P), np.maximum(high_P, mean_P)


def difference_intervals(
    differences_QP: np.ndarray, draws: int = 20_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % intervals of mean differences in [−1, 1]: expanded percentiles, or Bonett and Price's.

    Bonett and Price's holds where fewer than ENOUGH questions moved (a difference that is not 0), or fewer than that
    lie above the smallest or below the largest difference: had all gained alike, the bootstrap would have no width. It
    adds one question gained and one lost, here of the size of a typical move (root mean square; 1 where nothing moved),
    and is the Wald interval then, here with t for z.
    """
    questions = len(differences_QP)
    moved_P = np.count_nonzero(differences_QP, axis=0)
    squares_P = (differences_QP**2).sum(axis=0)
    added_P = np.where(moved_P > 0, 2 * squares_P / np.maximum(moved_P, 1), 2.0)
    centre_P = differences_QP.sum(axis=0) / (questions + 2)
    variance_P = ((squares_P + added_P) / (questions + 2) - centre_P**2) / (questions + 2)
    half_P = t_quantile(max(1, questions - 1)) * np.sqrt(variance_P)
    low_P, high_P = np.maximum(centre_P - half_P, -1.0), np.minimum(centre_P + half_P, 1.0)
    below_P = (differences_QP < differences_QP.max(axis=0)).sum(axis=0)
    above_P = (differences_QP > differences_QP.min(axis=0)).sum(axis=0)
    enough_P = np.minimum(np.minimum(below_P, above_P), moved_P) >= ENOUGH
    if enough_P.any():
        low_P[enough_P], high_P[enough_P] = expanded_percentile(differences_QP[:, enough_P], draws, seed)
    mean_P = differences_QP.mean(axis=0)
    return np.minimum(low_P, mean_P), np.maximum(high_P, mean_P)
