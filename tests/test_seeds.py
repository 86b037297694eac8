"""Means and differences over seeds and questions: a hierarchical bootstrap with both levels crossed."""

from __future__ import annotations

from math import atan, pi, sqrt

import numpy as np
import pytest

from trd_cli.evaluation.intervals import t_tails
from trd_cli.evaluation.metrics import avg_at_k, question_means
from trd_cli.evaluation.paired import paired_difference
from trd_cli.evaluation.seeds import crossed_means, crossed_p_value, difference_over_seeds, mean_over_seeds


def drawn(seed: int, seeds: int, questions: int, of_seeds: float = 0.05, k: int = 4) -> np.ndarray:
    """Return scores (S, Q) of k samples: questions of all difficulties, and seeds that differ by `of_seeds`."""
    random = np.random.default_rng(seed)
    chance = random.uniform(0.1, 0.9, questions) + random.normal(0, of_seeds, (seeds, 1))
    return random.binomial(k, np.clip(chance, 0, 1)) / k


def naive(scores_SQ: np.ndarray, draws: int) -> np.ndarray:
    """Resample in plain loops: seeds whose means are moved apart by the factor of the module, and questions."""
    factors = {2: 12.7062 * sqrt(2) / 1.95996, 3: 4.30265 * sqrt(3 / 2) / 1.95996, 5: 2.77645 * sqrt(5 / 4) / 1.95996}
    random, (seeds, questions) = np.random.default_rng(99), scores_SQ.shape
    centre = scores_SQ.mean()
    moved = [row + (factors[seeds] - 1) * (row.mean() - centre) for row in scores_SQ]
    found = []
    for _ in range(draws):
        columns = random.integers(0, questions, questions)
        found.append(np.mean([moved[s][columns].mean() for s in random.integers(0, seeds, seeds)]))
    return np.array(found)


@pytest.mark.parametrize(("seeds", "questions"), [(2, 8), (3, 31), (5, 60)])
def test_resampled_means_are_those_of_plain_loops(seeds: int, questions: int) -> None:
    scores_SQ = drawn(seeds, seeds, questions)
    ours, theirs = crossed_means([scores_SQ], 8000, 0), naive(scores_SQ, 8000)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=4 * theirs.std() / sqrt(8000))
    assert ours.std() == pytest.approx(theirs.std(), rel=0.04)
    levels = (0.05, 0.5, 0.95)
    assert np.quantile(ours, levels) == pytest.approx(np.quantile(theirs, levels), abs=0.1 * theirs.std())


def test_two_seeds_that_disagree_say_nothing_of_a_third() -> None:
    """By hand: both seeds have no spread over questions, and means of 0 and 1. Student's t for one degree of freedom is
    12.706, so they are moved 12.706·√2/1.95996 = 9.168 times as far from 0.5.
    """
    means_B = crossed_means([np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])], 4000, 0)
    values, counts = np.unique(np.round(means_B, 3), return_counts=True)
    assert values.tolist() == [-4.084, 0.5, 5.084]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    found = mean_over_seeds(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), samples=2)
    assert (found.value, found.low, found.high, found.seeds, found.questions) == (0.5, 0.0, 1.0, 2, 3)
    assert found.deviation == pytest.approx(0.7071, abs=1e-4)


def test_a_difference_by_hand() -> None:
    """Seeds gain 0.1, 0.2 and 0.3 on each of 40 questions. The widest resample, once in 27, has one seed alone:
    4.30265·√1.5/1.95996 = 2.689 times as far from 0.2 as that seed is.
    """
    a_SQ = np.zeros((1, 40))
    found = difference_over_seeds(a_SQ, np.repeat([[0.1], [0.2], [0.3]], 40, axis=1), False)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 - 0.2689, 0.2 + 0.2689), abs=1e-4)
    assert (found.gained, found.lost, found.questions) == (40, 0, 40)
    # Questions do not differ, so it is the t-test of three seeds: t = 0.2/(0.1/√3) = √12, p = 1 − √12/√(2 + 12).
    assert found.p_value == pytest.approx(1 - sqrt(12 / 14), abs=1e-6)


def test_two_seeds_alone_never_make_a_small_p_value() -> None:
    """By hand: with one degree of freedom p = 1 − 2/π·atan(t), here t = 0.3/0.01 = 30."""
    two_SQ = np.repeat([[0.29], [0.31]], 400, axis=1)
    found = difference_over_seeds(np.zeros((1, 400)), two_SQ, False)
    assert found.p_value == pytest.approx(1 - 2 / pi * atan(30), abs=1e-6)


def test_a_p_value_counts_the_variance_of_seeds_and_that_of_questions() -> None:
    """By hand: seeds of 0.19, 0.2, 0.21 and questions of 0 and 0.4 in turn. At the p-value the square of the mean is
    the sum of both variances, each times the square of t at its own degrees of freedom.
    """
    questions_Q = np.tile([-0.2, 0.2], 20)
    scores_SQ = np.array([[0.19], [0.2], [0.21]]) + questions_Q
    of_seeds, of_questions = 0.01**2 / 3, 0.04 * 40 / 39 / 40
    p_value = difference_over_seeds(np.zeros((1, 40)), scores_SQ, False).p_value
    t_2 = (1 - p_value) * sqrt(2 / (1 - (1 - p_value) ** 2))
    t_39 = sqrt((0.04 - of_seeds * t_2**2) / of_questions)
    assert t_tails(t_39, 39) == pytest.approx(p_value, rel=1e-3)


def test_the_sides_of_a_difference_may_have_seeds_of_their_own() -> None:
    """By hand: two seeds against three without spread over questions are the two seeds alone."""
    a_SQ, b_SQ = np.repeat([[0.1], [0.12]], 30, axis=1), np.full((3, 30), 0.5)
    found = difference_over_seeds(a_SQ, b_SQ, False)
    assert found.p_value == pytest.approx(1 - 2 / pi * atan(0.39 / 0.01), abs=1e-6)


def test_one_seed_has_the_interval_over_questions() -> None:
    correct_QK = (np.random.default_rng(5).uniform(size=(50, 4)) < 0.6).astype(float)
    alone, estimate = mean_over_seeds(question_means(correct_QK)[None, :], samples=4), avg_at_k(correct_QK, 4)
    assert (alone.value, alone.low, alone.high) == (estimate.value, estimate.low, estimate.high)
    assert np.isnan(alone.deviation)
    others_QK = (np.random.default_rng(6).uniform(size=(50, 4)) < 0.7).astype(float)
    found = difference_over_seeds(question_means(correct_QK)[None, :], question_means(others_QK)[None, :], True)
    paired = paired_difference(correct_QK, others_QK)
    assert (found.low, found.high, found.p_value) == (paired.low, paired.high, paired.p_value)
    assert found.value == pytest.approx(paired.value)
    assert (found.gained, found.lost) == (len(paired.gained), len(paired.lost))


def test_identical_seeds_add_nothing_to_the_interval_over_questions() -> None:
    row_Q = drawn(7, 1, 200)
    one, five = mean_over_seeds(row_Q, samples=4), mean_over_seeds(np.repeat(row_Q, 5, axis=0), samples=4)
    assert (five.value, five.deviation) == pytest.approx((one.value, 0.0), abs=1e-12)
    assert (five.low, five.high) == pytest.approx((one.low, one.high), abs=0.003)


def test_seeds_that_lie_apart_widen_the_interval_and_no_seeds_narrow_it() -> None:
    alike, apart = drawn(8, 5, 200, of_seeds=0.0), drawn(8, 5, 200, of_seeds=0.15)
    over_questions = mean_over_seeds(apart.mean(axis=0)[None, :], samples=20)
    together, close = mean_over_seeds(apart, samples=20), mean_over_seeds(alike, samples=20)
    assert together.high - together.low > 2 * (over_questions.high - over_questions.low)
    assert together.high - together.low > 2 * (close.high - close.low)
    lucky = np.ones((3, 12))
    assert mean_over_seeds(lucky, samples=3).low < 0.8, "twelve right answers are not certainty, whatever the seeds"


def test_neither_the_order_of_seeds_nor_that_of_questions_counts() -> None:
    a_SQ, b_SQ = drawn(9, 3, 40), drawn(10, 3, 40)
    random = np.random.default_rng(0)
    seeds, questions = random.permutation(3), random.permutation(40)
    mixed = difference_over_seeds(a_SQ[seeds][:, questions], b_SQ[seeds][:, questions], True)
    straight = difference_over_seeds(a_SQ, b_SQ, True)
    for key in ("value", "low", "high", "p_value"):
        assert getattr(mixed, key) == pytest.approx(getattr(straight, key), abs=1e-9)


def test_pairing_seeds_takes_out_what_they_share() -> None:
    """Both arms of a seed learned from the same rollouts, and so are good or bad together."""
    shared = np.random.default_rng(3).normal(0, 0.1, (5, 1))
    a_SQ, b_SQ = np.clip(drawn(11, 5, 300, 0.0) + shared, 0, 1), np.clip(drawn(12, 5, 300, 0.0) + shared, 0, 1)
    paired, apart = (difference_over_seeds(a_SQ, b_SQ, is_paired) for is_paired in (True, False))
    assert paired.value == apart.value
    assert apart.high - apart.low > 1.5 * (paired.high - paired.low)


def test_questions_without_a_score_in_some_seed_are_left_out() -> None:
    scores_SQ = np.array([[0.0, 1.0, np.nan, 1.0], [1.0, 1.0, 1.0, 0.0]])
    found = mean_over_seeds(scores_SQ, samples=2)
    assert (found.value, found.questions) == (pytest.approx(4 / 6), 3)
    nothing = mean_over_seeds(np.full((2, 3), np.nan), samples=2)
    assert np.isnan(nothing.value)
    assert nothing.questions == 0
    assert difference_over_seeds(np.full((1, 3), np.nan), np.ones((2, 3)), False).questions == 0


@pytest.mark.parametrize(("seeds", "questions", "apart"), [(3, 60, 0.05), (5, 60, 0.0)])
def test_intervals_cover(seeds: int, questions: int, apart: float) -> None:
    """Count over 150 comparisons without a true difference; 0.05 more than 5 % is three standard errors."""
    worlds = 150
    found = [difference_over_seeds(*no_difference(w, seeds, questions, apart), False, 600, w) for w in range(worlds)]
    assert sum(d.low <= 0 <= d.high for d in found) / worlds >= 0.9


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_p_value_that_survives_a_correction_for_many_tests_is_as_rare_as_it_says(seeds: int) -> None:
    """Count over 200 comparisons of seeds that lie apart, without a true difference."""
    p_values = [crossed_p_value([b - a]) for a, b in (no_difference(w, seeds, 60, 0.1) for w in range(200))]
    assert sum(p <= 0.05 for p in p_values) <= 20
    assert sum(p <= 0.002 for p in p_values) <= 3


def no_difference(world: int, seeds: int, questions: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of a base model and of seeds whose true means differ from it by chance alone."""
    random = np.random.default_rng(world)
    chance_Q = random.uniform(0.2, 0.8, questions)
    moved = np.clip(chance_Q + random.normal(0, apart, (seeds, 1)), 0, 1)
    return random.binomial(4, chance_Q[None]) / 4, random.binomial(4, moved) / 4
