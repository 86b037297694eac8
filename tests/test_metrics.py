"""avg@k, pass@k, their intervals, and paired differences."""

from __future__ import annotations

from itertools import combinations
from math import comb, isnan

import numpy as np
import pytest

from trd_cli.core.metrics import (
    Estimate,
    avg_at_k,
    mean_with_interval,
    paired_difference,
    pass_at_k,
    question_means,
)

NAN = float("nan")


def grades(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=float)


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def test_avg_is_the_mean_over_questions_of_the_share_correct() -> None:
    estimate = avg_at_k(grades([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]))
    assert estimate.value == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    assert estimate.questions == 3


def test_samples_without_a_verdict_enter_no_score() -> None:
    correct_QK = grades([1, NAN, 0, NAN], [1, 1, NAN, 1], [NAN, NAN, NAN, NAN])
    np.testing.assert_allclose(question_means(correct_QK), [0.5, 1.0, NAN])
    estimate = avg_at_k(correct_QK)
    assert (estimate.value, estimate.questions) == (pytest.approx(0.75), 2)


def test_a_question_weighs_the_same_however_many_of_its_samples_are_graded() -> None:
    assert avg_at_k(grades([1, NAN, NAN, NAN], [0, 0, 0, 0])).value == pytest.approx(0.5)


def test_nothing_graded_gives_nan_and_no_questions() -> None:
    for estimate in (avg_at_k(grades([NAN, NAN])), pass_at_k(grades([NAN, NAN]), 1)):
        assert all(isnan(x) for x in (estimate.value, estimate.low, estimate.high))
        assert estimate.questions == 0


@pytest.mark.parametrize(
    ("right", "k", "expected"),
    [
        (0, 1, 0.0),
        (1, 1, 0.25),
        (1, 2, 1 - 3 / 6),
        (2, 2, 1 - 1 / 6),
        (1, 4, 1.0),
        (3, 2, 1.0),
    ],
)
def test_pass_at_k_by_hand_on_four_samples(right: int, k: int, expected: float) -> None:
    samples = [1.0] * right + [0.0] * (4 - right)
    assert pass_at_k(grades(samples, samples), k).value == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_pass_at_k_equals_the_mean_over_all_subsets_of_k_samples(k: int) -> None:
    correct_QK = (np.random.default_rng(3).random((7, 6)) < 0.3).astype(float)
    brute = np.mean([np.mean([max(subset) for subset in combinations(row, k)]) for row in correct_QK])
    assert pass_at_k(correct_QK, k).value == pytest.approx(brute)


def test_pass_at_one_is_avg() -> None:
    correct_QK = (np.random.default_rng(4).random((9, 5)) < 0.5).astype(float)
    assert pass_at_k(correct_QK, 1).value == pytest.approx(avg_at_k(correct_QK).value)


def test_pass_at_k_takes_the_number_of_graded_samples_as_n() -> None:
    assert pass_at_k(grades([1, 0, NAN, NAN]), 1).value == pytest.approx(0.5)
    assert pass_at_k(grades([1, 0, 0, NAN]), 2).value == pytest.approx(1 - comb(2, 2) / comb(3, 2))


def test_a_question_with_fewer_than_k_graded_samples_changes_nothing_in_pass_at_k() -> None:
    whole = [[1.0, 0.0, 1.0, 0.0]] * 12
    short = [[1.0, NAN, NAN, NAN]] * 12
    assert pass_at_k(grades(*whole, *short), 2) == pass_at_k(grades(*whole), 2)
    assert pass_at_k(grades(*whole), 5).questions == 0


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # Wilson's score interval at z = 1.959964, worked out by hand from its closed form.
        (10, 100, 0.05522914, 0.17436566),
        (50, 100, 0.40383153, 0.59616847),
        (1, 10, 0.01787621, 0.40415003),
        (0, 10, 0.0, 0.27753279),
        (10, 10, 0.72246721, 1.0),
    ],
)
def test_one_sample_a_question_gives_wilsons_interval(right: int, of: int, low: float, high: float) -> None:
    estimate = avg_at_k(grades(*[[1.0]] * right, *[[0.0]] * (of - right)))
    assert estimate.value == pytest.approx(right / of)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-7), pytest.approx(high, abs=1e-7))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("questions", [1, 5, 200])
def test_the_interval_has_a_width_where_all_or_none_are_correct(value: float, questions: int) -> None:
    estimate = avg_at_k(np.full((questions, 4), value))
    assert estimate.low <= value <= estimate.high
    assert 0.01 < width(estimate) < 0.9


def test_the_interval_lies_within_zero_and_one_and_contains_the_mean() -> None:
    random = np.random.default_rng(5)
    for _ in range(200):
        shape = (random.integers(1, 30), random.integers(1, 8))
        correct_QK = (random.random(shape) < random.random((shape[0], 1))).astype(float)
        estimate = avg_at_k(correct_QK)
        assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0


def test_samples_that_all_repeat_their_question_narrow_nothing() -> None:
    once = (np.random.default_rng(6).random((40, 1)) < 0.4).astype(float)
    repeated = np.repeat(once, 8, axis=1)
    assert avg_at_k(repeated) == avg_at_k(once)


def test_independent_samples_narrow_the_interval_to_that_of_all_samples() -> None:
    alike = np.tile([1.0, 0.0], (40, 4))
    estimate, plain = avg_at_k(alike), avg_at_k(alike.reshape(-1, 1))
    assert (estimate.low, estimate.high) == (pytest.approx(plain.low), pytest.approx(plain.high))
    drawn = (np.random.default_rng(7).random((40, 8)) < 0.5).astype(float)
    assert width(plain) <= width(avg_at_k(drawn)) < 0.7 * width(avg_at_k(drawn[:, :1]))


def test_a_single_question_never_counts_as_more_than_one() -> None:
    assert width(avg_at_k(grades([1, 0, 1, 0, 1, 0, 1, 0]))) > 0.8


@pytest.mark.parametrize("questions", [30, 100])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("spread", ["alike", "easy and hard", "all or nothing"])
def test_the_interval_covers_the_truth_about_95_times_in_100(
    questions: int, samples: int, spread: str
) -> None:
    draw_rates = {
        "alike": lambda r: np.full((questions, 1), 0.35),
        "easy and hard": lambda r: r.beta(0.7, 1.3, size=(questions, 1)),
        "all or nothing": lambda r: (r.random((questions, 1)) < 0.35).astype(float),
    }[spread]
    random = np.random.default_rng(8)
    runs, covered = 2000, 0
    for _ in range(runs):
        rates_Q1 = draw_rates(random)
        estimate = avg_at_k((random.random((questions, samples)) < rates_Q1).astype(float))
        covered += estimate.low <= 0.35 <= estimate.high
    assert 0.92 <= covered / runs <= 0.98


def test_mean_with_interval_leaves_out_questions_without_a_score() -> None:
    assert mean_with_interval(np.array([0.5, NAN, 1.0]), 8) == mean_with_interval(np.array([0.5, 1.0]), 8)


def test_equal_scores_have_no_difference_and_p_one() -> None:
    scores = np.array([0.0, 0.25, 1.0, 0.5])
    same = paired_difference(scores, scores)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert (same.gained, same.lost) == (0, 0)


def test_a_paired_difference_by_hand() -> None:
    a, b = np.array([0.0, 0.5, 1.0, 0.0, NAN, 1.0]), np.array([1.0, 0.5, 0.5, 1.0, 1.0, NAN])
    seen = paired_difference(a, b)
    # Differences 1, 0, −½, 1 of the four questions scored on both sides.
    assert seen.value == pytest.approx(1.5 / 4)
    assert (seen.gained, seen.lost) == (2, 1)
    # Of the 8 sign patterns of (1, ½, 1), |sum| ≥ 1.5 in the four where both ones agree.
    assert seen.p_value == pytest.approx(0.5, abs=0.02)
    assert seen.low <= seen.value <= seen.high


def test_swapping_the_sides_turns_the_sign_and_keeps_the_rest() -> None:
    random = np.random.default_rng(9)
    a, b = random.random(25), random.random(25) + 0.1
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert there.p_value == back.p_value
    assert (there.gained, there.lost) == (back.lost, back.gained)


@pytest.mark.parametrize(("gained", "lost"), [(8, 2), (9, 1), (5, 5), (7, 4), (3, 0)])
def test_the_p_value_of_single_samples_is_the_exact_mcnemar_test(gained: int, lost: int) -> None:
    a = np.array([0.0] * gained + [1.0] * lost + [1.0] * 20)
    b = np.array([1.0] * gained + [0.0] * lost + [1.0] * 20)
    moved = gained + lost
    at_least = sum(comb(moved, i) for i in range(max(gained, lost), moved + 1)) / 2**moved
    exact = min(1.0, 2 * at_least)
    error = 4 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4
    assert paired_difference(a, b).p_value == pytest.approx(exact, abs=error)


def test_a_paired_interval_covers_the_true_difference_about_95_times_in_100() -> None:
    random = np.random.default_rng(10)
    runs, covered = 300, 0
    for _ in range(runs):
        rates = random.random(60) * 0.8
        a, b = (random.random(60) < rates), (random.random(60) < rates + 0.15)
        seen = paired_difference(a.astype(float), b.astype(float), draws=1000)
        covered += seen.low <= 0.15 <= seen.high
    assert 0.90 <= covered / runs <= 0.99


def test_sides_without_a_common_question_give_nan() -> None:
    seen = paired_difference(np.array([NAN, 1.0]), np.array([1.0, NAN]))
    assert isnan(seen.value)
    assert isnan(seen.p_value)


def test_the_same_seed_gives_the_same_answer() -> None:
    a, b = np.random.default_rng(11).random((2, 30))
    assert paired_difference(a, b, seed=1) == paired_difference(a, b, seed=1)
    assert paired_difference(a, b, seed=1) != paired_difference(a, b, seed=2)
