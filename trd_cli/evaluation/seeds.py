"""95 % intervals and p-values of means over seeds and questions: a hierarchical bootstrap with both levels crossed.

Axes: S seeds (T on the other side of a difference), Q questions, K samples of each, B resamples. All seeds are asked
the same questions, so a resample draws S seeds and Q questions with replacement and takes the mean of the drawn seeds'
scores on the drawn questions (Owen's pigeonhole bootstrap, doi:10.1214/07-AOAS122).

A bootstrap over few units is too narrow by sqrt((S − 1)/S), and by t against z. Over questions the percentiles are
therefore expanded, as in `evaluation.intervals`. Over seeds that cannot work, since no resample of three seeds lies
beyond the lowest of them. There each seed's mean is first moved away from the mean of all seeds, by t·sqrt(S/(S − 1))/z
with t at S − 1 degrees of freedom: 9.2 times for 2 seeds, 2.7 for 3, 1.6 for 5, 1.2 for 10. The rows of a seed keep
their other differences.

What seeds and questions do together (sampling noise above all) is counted by each level, and once more by both. So the
bootstrap is conservative where little else varies: simulated coverage is 94 to 99 % (tests/test_seeds.py). The interval
is never narrower than that over questions alone, whose rule covers few right answers and answers without spread. With
one seed it is that interval, because one seed says nothing about others.

A p-value has the variances that both levels show, each with Student's t at the level of the p-value itself
(`crossed_p_value`). The bootstrap would not do: of the resamples of three seeds one in 27 is the farthest there is, so
that a p-value has no tail, and after a correction for many tests far too many would stand.

Not covered: seeds that are not drawn alike, and questions that depend on each other. Three seeds can only look alike by
chance; the t quantile allows for that on average, and no method does more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, nan, pi, sqrt, tan
from statistics import NormalDist

import numpy as np

from trd_cli.evaluation.intervals import Z_95, difference_intervals, mean_intervals, resamples, t_quantile, t_tails
from trd_cli.evaluation.paired import sign_flip_p_values

_CHUNK = 500


@dataclass(frozen=True)
class OverSeeds:
    """Hold a mean over `seeds` seeds and `questions` questions, with its 95 % interval.

    `deviation` is the standard deviation of the seeds' means, NaN for one seed.
    """

    value: float
    low: float
    high: float
    deviation: float
    seeds: int
    questions: int


@dataclass(frozen=True)
class DifferenceOverSeeds:
    """Hold the mean of B − A over seeds and questions, with a 95 % interval and a two-sided p-value.

    `gained` and `lost` count the questions on which B's mean over its seeds is above and below that of A.
    """

    value: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int
    questions: int


def mean_over_seeds(scores_SQ: np.ndarray, samples: int, draws: int = 10_000, seed: int = 0) -> OverSeeds:
    """Return the mean of scores in [0, 1] over the questions that every seed has a score for.

    `samples` is the number of samples of a question that all seeds together drew.
    """
    known_SQ = scores_SQ[:, ~np.isnan(scores_SQ).any(axis=0)]
    seeds, questions = known_SQ.shape
    if questions == 0:
        return OverSeeds(nan, nan, nan, nan, seeds, 0)
    sorted_Q1 = np.sort(known_SQ.mean(axis=0))[:, None]
    low, high = (float(end[0]) for end in mean_intervals(sorted_Q1, np.array([samples * questions])))
    value, deviation = float(known_SQ.mean()), nan
    if seeds > 1:
        deviation = float(known_SQ.mean(axis=1).std(ddof=1))
        ends = _percentiles(crossed_means([known_SQ], draws, seed), questions)
        low, high = max(0.0, min(low, ends[0])), min(1.0, max(high, ends[1]))
    return OverSeeds(value, low, high, deviation, seeds, questions)


def difference_over_seeds(
    a_SQ: np.ndarray, b_TQ: np.ndarray, are_paired: bool, draws: int = 20_000, seed: int = 0
) -> DifferenceOverSeeds:
    """Return B − A over the questions that every seed of both sides has a score for.

    `are_paired` says that row s of both is the same seed, whose difference is then one unit. A side of one row is one
    model for all seeds, as the base model is. Else the seeds of the two sides are drawn apart.

    p is that of `crossed_p_value`, and never below the sign-flip test over questions alone.
    """
    both_Q = ~(np.isnan(a_SQ).any(axis=0) | np.isnan(b_TQ).any(axis=0))
    a_SQ, b_TQ = a_SQ[:, both_Q], b_TQ[:, both_Q]
    if not both_Q.any():
        return DifferenceOverSeeds(nan, nan, nan, nan, 0, 0, 0)
    difference_Q = b_TQ.mean(axis=0) - a_SQ.mean(axis=0)
    by_value_Q1 = np.sort(difference_Q)[:, None]
    by_size_Q1 = by_value_Q1[np.argsort(np.abs(by_value_Q1[:, 0]), kind="stable")]
    low, high = (float(end[0]) for end in difference_intervals(by_value_Q1, draws, seed))
    value, p_value = float(difference_Q.mean()), float(sign_flip_p_values(by_size_Q1, draws, seed)[0])
    if max(len(a_SQ), len(b_TQ)) > 1:
        is_one = are_paired or 1 in (len(a_SQ), len(b_TQ))
        sides = [b_TQ - a_SQ] if is_one else [b_TQ, -a_SQ]
        ends = _percentiles(crossed_means(sides, draws, seed), len(difference_Q))
        low, high = max(-1.0, min(low, ends[0])), min(1.0, max(high, ends[1]))
        p_value = max(p_value, crossed_p_value(sides))
    gained, lost = (int(side.sum()) for side in (difference_Q > 1e-12, difference_Q < -1e-12))
    return DifferenceOverSeeds(value, low, high, p_value, gained, lost, len(difference_Q))


def crossed_p_value(sides: Sequence[np.ndarray]) -> float:
    """Return the two-sided p-value of a difference of 0 for the sum of the sides' means; each side is (S, Q).

    It is the level at which the square of the sum is Σ t²·s²/n over the seeds of each side and the questions, with t at
    n − 1 degrees of freedom. Where means are normal, such a test never rejects too often, however the variances relate
    (Banerjee, Sankhyā 22, 1960). It is 1 for a single question, and 1e-12 at least.
    """
    mean_Q = sum(side.mean(axis=0) for side in sides)
    if len(mean_Q) < 2:
        return 1.0
    units = [side.mean(axis=1) for side in sides if len(side) > 1] + [mean_Q]
    known = [(float(unit.var(ddof=1)) / len(unit), len(unit) - 1) for unit in units]
    square = float(mean_Q.mean()) ** 2 + 1e-24
    log_p = _root(lambda at: square - sum(v * _t_at(exp(at), free) ** 2 for v, free in known), log(1e-12), 0.0)
    return exp(log_p)


def _t_at(p_value: float, freedom: int) -> float:
    """Return the t beyond which, on both sides, Student's t lies with this chance."""
    return sqrt(freedom) * tan(_root(lambda at: p_value - t_tails(sqrt(freedom) * tan(at), freedom), 0.0, pi / 2))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function passes 0, by halving, or the nearer end if it does not."""
    for _ in range(32):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high


def crossed_means(sides: Sequence[np.ndarray], draws: int, seed: int) -> np.ndarray:
    """Return the sums over `sides` of resampled means, shape (draws,).

    Each side is (S, Q), with seeds of its own and the questions of all. The order of neither counts.
    """
    random = np.random.default_rng(seed)
    stacked = np.concatenate([_widened(side[np.argsort(side.mean(axis=1), kind="stable")]) for side in sides])
    stacked = stacked[:, np.lexsort((*stacked, stacked.sum(axis=0)))]
    questions = stacked.shape[1]
    found = np.empty(draws)
    for start in range(0, draws, _CHUNK):
        rows = min(_CHUNK, draws - start)
        of_seeds = [resamples(random, rows, len(side)) / len(side) for side in sides]
        drawn_BQ = np.concatenate(of_seeds, axis=1) @ stacked
        found[start : start + rows] = np.einsum("bq,bq->b", drawn_BQ, resamples(random, rows, questions)) / questions
    return found


def _widened(scores_SQ: np.ndarray) -> np.ndarray:
    """Return the scores with each seed's mean moved away from the mean of all (see the module)."""
    seeds = len(scores_SQ)
    if seeds < 2:
        return scores_SQ
    factor = t_quantile(seeds - 1) * sqrt(seeds / (seeds - 1)) / Z_95
    return scores_SQ + (factor - 1) * (scores_SQ.mean(axis=1, keepdims=True) - scores_SQ.mean())


def _percentiles(means_B: np.ndarray, questions: int) -> tuple[float, float]:
    """Return the bootstrap's ends at the levels that `questions` questions ask for."""
    if questions < 2:
        return float(means_B.min()), float(means_B.max())
    level = NormalDist().cdf(-t_quantile(questions - 1) * sqrt(questions / (questions - 1)))
    low, high = np.quantile(means_B, (level, 1 - level))
    return float(low), float(high)
