"""Do 95 % intervals cover the truth 95 times in 100, and does the paired test reject 5 true nulls in 100?

The pools are simulated, with Q questions and k samples each. A question's chance of a correct answer is drawn from
Beta(mean·s, (1 − mean)·s): s = 4 is a moderate spread of difficulty, s = 1 and s = 0.5 a strong one (most questions
nearly always right or nearly always wrong). The bounds are 93 and 97 %, with two Monte-Carlo standard errors granted.

Where these bounds do not hold, the bound that holds is asserted:

- one sample a question, 30 questions, mean 0.1: 97.4 % (Wilson's interval on a lattice; the others stay
  within 93 and 97 %);
- 30 questions, mean 0.1, strong spread: from 92 % on. There are some five effective successes, and a pool
  that drew no easy question cannot know that there are any. value ± t·stderr covers from 89 % on with a mean
  of 0.1, and from 92 % on with 0.8;
- differences where fewer than 20 questions moved: 93 to 100 %, too wide rather than too narrow;
- the sign-flip test where fewer than 30 questions moved: it rejects a true null less often than 3 times in
  100.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from itertools import product
from math import comb, exp, lgamma, sqrt
from typing import NamedTuple

import numpy as np
import pytest

from trd_cli.evaluation.intervals import difference_intervals, mean_and_stderr, mean_intervals, t_quantile
from trd_cli.evaluation.metrics import avg_at_k, maj_at_k, pass_at_k
from trd_cli.evaluation.paired import needed_questions, paired_difference, sign_flip_p_values

# TRD_FULL=1 adds 500 questions.
QUESTIONS = (30, 100, 164, *[500] * ("TRD_FULL" in os.environ))
MEANS, SPREADS = (0.1, 0.5, 0.8), (4.0, 1.0, 0.5)
MEAN_POOLS, PAIRED_POOLS, DRAWS, SIGNS = 4000, 2000, 1000, 499


class Paired(NamedTuple):
    """Results of one cell: questions moved on average, nulls rejected, coverage under the null and of a gain."""

    moved: float
    rejected: float
    null_covered: float
    gain_covered: float


def margin(share: float, pools: int) -> float:
    """Return two Monte-Carlo standard errors."""
    return 2 * sqrt(share * (1 - share) / pools)


def within(share: float, low: float, high: float, pools: int) -> bool:
    return low - margin(low, pools) <= share <= high + margin(high, pools)


def rates(random: np.random.Generator, mean: float, spread: float, shape: tuple[int, int]) -> np.ndarray:
    return random.beta(mean * spread, (1 - mean) * spread, size=shape)


def failing(mean: float, spread: float, power: float) -> float:
    """Return E[(1 − p)^power] for p ~ Beta(mean·spread, (1 − mean)·spread)."""
    a, b = mean * spread, (1 - mean) * spread
    return exp(lgamma(b + power) - lgamma(b) + lgamma(a + b) - lgamma(a + b + power))


def coverage(low_P: np.ndarray, high_P: np.ndarray, truth: float) -> float:
    return float(((low_P <= truth + 1e-12) & (truth - 1e-12 <= high_P)).mean())


@cache
def mean_coverage(questions: int, k: int, mean: float, spread: float) -> tuple[float, float]:
    """Return the coverage of avg@k's interval and of value ± t·stderr."""
    random = np.random.default_rng([questions, k, int(10 * mean), int(10 * spread)])
    scores_QP = random.binomial(k, rates(random, mean, spread, (questions, MEAN_POOLS))) / k
    interval = mean_intervals(scores_QP, np.full(MEAN_POOLS, questions * k), DRAWS)
    value_P, stderr_P = mean_and_stderr(scores_QP)
    half_P = t_quantile(questions - 1) * stderr_P
    return coverage(*interval, mean), coverage(value_P - half_P, value_P + half_P, mean)


@cache
def paired_coverage(questions: int, k: int, mean: float, spread: float) -> Paired:
    """Simulate A, which solves a question with chance p, and B, with p too (null) or with 1 − (1 − p)^1.5 (gain)."""
    random = np.random.default_rng([questions, k, int(10 * mean), int(10 * spread), 1])
    rates_QP = rates(random, mean, spread, (questions, PAIRED_POOLS))
    a_QP, same_QP, better_QP = (random.binomial(k, p) / k for p in (rates_QP, rates_QP, 1 - (1 - rates_QP) ** 1.5))
    null_QP, gain_QP = same_QP - a_QP, better_QP - a_QP
    gain = 1 - failing(mean, spread, 1.5) - mean
    return Paired(
        float(np.count_nonzero(null_QP, axis=0).mean()),
        float((sign_flip_p_values(null_QP, SIGNS) <= 0.05).mean()),
        coverage(*difference_intervals(null_QP, DRAWS), 0.0),
        coverage(*difference_intervals(gain_QP, DRAWS), gain),
    )


def paired_cells(questions: int, k: int) -> Iterator[tuple[tuple[float, float], Paired]]:
    for mean, spread in product(MEANS, (4.0, 1.0) if questions < 500 else (1.0,)):
        yield (mean, spread), paired_coverage(questions, k, mean, spread)


@pytest.mark.parametrize("questions", QUESTIONS)
@pytest.mark.parametrize("mean", MEANS)
def test_one_sample_a_question_covers_as_often_as_the_binomial_says(questions: int, mean: float) -> None:
    covered = wald = 0.0
    for right in range(questions + 1):
        chance = comb(questions, right) * mean**right * (1 - mean) ** (questions - right)
        estimate = avg_at_k((np.arange(questions) < right).astype(float)[:, None], 1)
        covered += chance * (estimate.low <= mean <= estimate.high)
        wald += chance * (abs(estimate.value - mean) <= t_quantile(questions - 1) * estimate.stderr)
    assert 0.93 <= covered <= (0.975 if (questions, mean) == (30, 0.1) else 0.97)
    assert 0.93 <= wald <= 0.97


@pytest.mark.parametrize("questions", QUESTIONS)
@pytest.mark.parametrize("k", [4, 16])
def test_the_interval_of_avg_at_k_covers_the_truth(questions: int, k: int) -> None:
    outside = {}
    for mean, spread in product(MEANS, SPREADS):
        covered, _ = mean_coverage(questions, k, mean, spread)
        least = 0.92 if questions == 30 and mean == 0.1 and spread < 4 else 0.93
        if not within(covered, least, 0.97, MEAN_POOLS):
            outside[mean, spread] = covered
    assert outside == {}


@pytest.mark.parametrize("questions", QUESTIONS)
@pytest.mark.parametrize("k", [4, 16])
def test_the_standard_error_of_avg_at_k_covers_the_truth(questions: int, k: int) -> None:
    outside = {}
    for mean, spread in product(MEANS, SPREADS):
        _, covered = mean_coverage(questions, k, mean, spread)
        least = {0.1: 0.89, 0.5: 0.93, 0.8: 0.92}[mean] if questions == 30 else 0.93
        if not within(covered, least, 0.97, MEAN_POOLS):
            outside[mean, spread] = covered
    assert outside == {}


@pytest.mark.parametrize("questions", [30, 164])
def test_the_interval_covers_where_all_questions_are_equally_hard(questions: int) -> None:
    """In half the pools there is less variance than samples make, and Wilson's interval replaces the other."""
    random = np.random.default_rng(questions)
    scores_QP = random.binomial(8, 0.35, (questions, MEAN_POOLS)) / 8
    interval = mean_intervals(scores_QP, np.full(MEAN_POOLS, 8 * questions), DRAWS)
    assert within(coverage(*interval, 0.35), 0.93, 0.97, MEAN_POOLS)


@pytest.mark.parametrize("questions", [30, 100])
@pytest.mark.parametrize("mean", [0.3, 0.5])
@pytest.mark.parametrize("spread", [4.0, 1.0])
def test_the_interval_of_pass_at_4_of_16_covers_the_truth(questions: int, mean: float, spread: float) -> None:
    random = np.random.default_rng([questions, int(10 * mean), int(spread)])
    right_QP = random.binomial(16, rates(random, mean, spread, (questions, MEAN_POOLS)))
    score_of = np.array([pass_at_k((np.arange(16) < c).astype(float)[None], 4).value for c in range(17)])
    interval = mean_intervals(score_of[right_QP], np.full(MEAN_POOLS, 16 * questions), DRAWS)
    assert within(coverage(*interval, 1 - failing(mean, spread, 4)), 0.93, 0.97, MEAN_POOLS)


def test_the_interval_of_maj_at_3_of_9_covers_the_truth() -> None:
    """Two answers: the majority of three is right with chance 3p² − 2p³."""
    random = np.random.default_rng(33)
    right_QP = random.binomial(9, rates(random, 0.5, 2.0, (60, MEAN_POOLS)))
    rows = [(np.arange(9) < c).astype(float)[None] for c in range(10)]
    score_of = np.array([maj_at_k(row, 1 - row.astype(int), 3).value for row in rows])
    interval = mean_intervals(score_of[right_QP], np.full(MEAN_POOLS, 9 * 60), DRAWS)
    # p is uniform: 3·E[p²] − 2·E[p³] = 1 − 1/2.
    assert within(coverage(*interval, 0.5), 0.93, 0.97, MEAN_POOLS)


@pytest.mark.parametrize("questions", QUESTIONS)
@pytest.mark.parametrize("k", [1, 4, 16])
def test_the_paired_test_rejects_a_true_null_about_5_times_in_100(questions: int, k: int) -> None:
    outside = {}
    for cell, seen in paired_cells(questions, k):
        least, most = (0.03, 0.07) if seen.moved >= 30 else (0.0, 0.05)
        if not within(seen.rejected, least, most, PAIRED_POOLS):
            outside[cell] = seen
    assert outside == {}


@pytest.mark.parametrize("questions", QUESTIONS)
@pytest.mark.parametrize("k", [1, 4, 16])
def test_the_interval_of_a_difference_covers_the_truth(questions: int, k: int) -> None:
    outside = {}
    for cell, seen in paired_cells(questions, k):
        most = 0.97 if seen.moved >= 20 else 1.0
        if not all(within(c, 0.93, most, PAIRED_POOLS) for c in (seen.null_covered, seen.gain_covered)):
            outside[cell] = seen
    assert outside == {}


def pilot(samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return A, B and the chances of both: 100 questions whose shares correct are exactly their chances, in tenths."""
    random = np.random.default_rng(40)
    rates_a_Q = random.integers(0, 9, 100) / 10
    rates_b_Q = rates_a_Q + random.choice([-1, 0, 1, 2], 100) * (rates_a_Q > 0) / 10
    a_QK, b_QK = (
        (np.arange(samples) < np.round(samples * rates)[:, None]).astype(float) for rates in (rates_a_Q, rates_b_Q)
    )
    return a_QK, b_QK, rates_a_Q, rates_b_Q


def power(rates_a_Q: np.ndarray, rates_b_Q: np.ndarray, questions: int, samples: int) -> float:
    """Return the share of new comparisons, over questions like these, that the sign-flip test finds significant."""
    random = np.random.default_rng(41)
    drawn_QP = random.integers(0, len(rates_a_Q), (questions, PAIRED_POOLS))
    b_QP, a_QP = (random.binomial(samples, rates[drawn_QP]) / samples for rates in (rates_b_Q, rates_a_Q))
    return float((sign_flip_p_values(b_QP - a_QP, SIGNS) <= 0.05).mean())


def test_the_needed_samples_give_80_percent_power_at_these_questions() -> None:
    a_QK, b_QK, rates_a_Q, rates_b_Q = pilot(samples=1000)
    needed = paired_difference(a_QK, b_QK, draws=100).needed_samples
    assert 2 <= needed <= 50
    assert 0.76 <= power(rates_a_Q, rates_b_Q, 100, needed) <= 0.85


def test_the_needed_questions_give_80_percent_power_at_these_samples() -> None:
    _, _, rates_a_Q, rates_b_Q = pilot(samples=10)
    noise = rates_a_Q * (1 - rates_a_Q) + rates_b_Q * (1 - rates_b_Q)
    difference = rates_b_Q - rates_a_Q
    needed = needed_questions(float(difference.mean()), float(difference.var() + noise.mean() / 4), 0.9)
    assert 100 <= needed <= 1000
    assert 0.76 <= power(rates_a_Q, rates_b_Q, needed, 4) <= 0.84
