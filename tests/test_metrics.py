"""avg@k, pass@k, maj@k, their intervals, and paired differences."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from math import comb, isnan, sqrt

import numpy as np
import pytest

from trd_cli.evaluation.intervals import difference_intervals, mean_intervals, t_quantile
from trd_cli.evaluation.metrics import Estimate, avg_at_k, maj_at_k, pass_at_k, question_means
from trd_cli.evaluation.paired import PairedDifference, needed_samples, paired_difference, sign_flip_p_values

NAN = float("nan")


def grades(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=float)


def drawn(seed: int, questions: int, samples: int) -> np.ndarray:
    """Return grades of questions of all difficulties."""
    random = np.random.default_rng(seed)
    return (random.random((questions, samples)) < random.random((questions, 1))).astype(float)


def answered(seed: int, questions: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return grades and answer classes with ties, samples without an answer, and samples without a verdict."""
    random = np.random.default_rng(seed)
    classes = random.integers(-1, 3, (questions, samples))
    correct = (classes == random.integers(0, 3, (questions, 1))).astype(float)
    correct[random.random((questions, samples)) < 0.1] = NAN
    return correct, classes


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def bounds(estimate: Estimate | PairedDifference) -> tuple[float, float]:
    return estimate.low, estimate.high


# avg@k


def test_avg_is_the_mean_over_questions_of_the_share_correct() -> None:
    estimate = avg_at_k(grades([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]), 4)
    assert estimate.value == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    assert estimate.questions == 3


def test_avg_at_k_is_taken_over_the_first_k_samples() -> None:
    correct_QK = grades([1, 0, 1, 1], [0, NAN, 1, 1])
    assert avg_at_k(correct_QK, 1).value == 0.5
    assert avg_at_k(correct_QK, 2).value == pytest.approx((0.5 + 0.0) / 2)
    assert avg_at_k(correct_QK, 3) == avg_at_k(correct_QK[:, :3], 3)
    assert avg_at_k(correct_QK, 5).questions == 0


def test_samples_without_a_verdict_enter_no_score() -> None:
    correct_QK = grades([1, NAN, 0, NAN], [1, 1, NAN, 1], [NAN, NAN, NAN, NAN])
    np.testing.assert_allclose(question_means(correct_QK), [0.5, 1.0, NAN])
    estimate = avg_at_k(correct_QK, 4)
    assert (estimate.value, estimate.questions) == (pytest.approx(0.75), 2)


def test_a_question_weighs_the_same_however_many_of_its_samples_are_graded() -> None:
    assert avg_at_k(grades([1, NAN, NAN, NAN], [0, 0, 0, 0]), 4).value == pytest.approx(0.5)


def test_nothing_graded_gives_nan_and_no_questions() -> None:
    none = grades([NAN, NAN])
    for estimate in (avg_at_k(none, 2), pass_at_k(none, 1), maj_at_k(none, np.zeros((1, 2), int), 1)):
        numbers = (estimate.value, *bounds(estimate), estimate.stderr, estimate.stderr_within)
        assert all(isnan(x) for x in numbers)
        assert estimate.questions == 0


def test_both_standard_errors_by_hand() -> None:
    estimate = avg_at_k(grades([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]), 4)
    # Scores 1/2, 1/4, 1: mean 7/12, deviations −1/12, −4/12, 5/12; s² = (42/144)/2.
    assert estimate.stderr == pytest.approx(sqrt(42 / 144 / 2 / 3))
    # p̂(1 − p̂)/(n − 1) of each question: 1/12, 1/16, 0.
    assert estimate.stderr_within == pytest.approx(sqrt(1 / 12 + 1 / 16) / 3)


def test_the_noise_within_questions_is_unknown_with_one_sample_of_each() -> None:
    estimate = avg_at_k(grades([1], [0], [1]), 1)
    assert isnan(estimate.stderr_within)
    assert estimate.stderr == pytest.approx(sqrt(1 / 3 / 3))


def test_a_question_with_one_graded_sample_counts_as_the_average_of_the_others_in_the_noise() -> None:
    some = avg_at_k(grades([1, 0, 1, 0], [1, 1, 1, 0], [1, NAN, NAN, NAN]), 4)
    assert some.stderr_within == pytest.approx(sqrt((1 / 12 + 1 / 16) / 2 / 3))


def test_the_noise_within_questions_is_unbiased() -> None:
    random = np.random.default_rng(20)
    rates_Q1 = random.random((8, 1))
    runs = [avg_at_k((random.random((8, 4)) < rates_Q1).astype(float), 4) for _ in range(3000)]
    truth = float((rates_Q1 * (1 - rates_Q1) / 4).sum()) / 8**2
    assert np.mean([run.stderr_within**2 for run in runs]) == pytest.approx(truth, rel=0.03)
    assert np.var([run.value for run in runs]) == pytest.approx(truth, rel=0.1)


# pass@k


@pytest.mark.parametrize(
    ("right", "k", "expected"),
    [(0, 1, 0.0), (1, 1, 0.25), (1, 2, 1 - 3 / 6), (2, 2, 1 - 1 / 6), (1, 4, 1.0), (3, 2, 1.0)],
)
def test_pass_at_k_by_hand_on_four_samples(right: int, k: int, expected: float) -> None:
    samples = [1.0] * right + [0.0] * (4 - right)
    assert pass_at_k(grades(samples, samples), k).value == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_pass_at_k_equals_the_mean_over_all_subsets_of_k_samples(k: int) -> None:
    correct_QK = drawn(3, 7, 6)
    brute = np.mean([np.mean([max(subset) for subset in combinations(row, k)]) for row in correct_QK])
    assert pass_at_k(correct_QK, k).value == pytest.approx(brute)


def test_pass_at_one_is_avg_with_its_interval_and_its_standard_errors() -> None:
    correct_QK = drawn(4, 40, 5)
    assert pass_at_k(correct_QK, 1).__dict__ == pytest.approx(avg_at_k(correct_QK, 5).__dict__)


def test_pass_at_k_never_falls_with_k() -> None:
    correct_QK = drawn(12, 15, 9)
    values = [pass_at_k(correct_QK, k).value for k in range(1, 10)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(correct_QK.max(axis=1).mean())


def test_pass_at_k_takes_the_number_of_graded_samples_as_n() -> None:
    assert pass_at_k(grades([1, 0, NAN, NAN]), 1).value == pytest.approx(0.5)
    assert pass_at_k(grades([1, 0, 0, NAN]), 2).value == pytest.approx(1 - comb(2, 2) / comb(3, 2))


def test_a_question_with_fewer_than_k_graded_samples_changes_nothing_in_pass_at_k() -> None:
    whole = [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]] * 6
    short = [[1.0, NAN, NAN, NAN]] * 12
    assert pass_at_k(grades(*whole, *short), 2) == pass_at_k(grades(*whole), 2)
    assert pass_at_k(grades(*whole), 5).questions == 0


def test_the_noise_of_pass_at_k_is_unbiased_and_unknown_below_two_k_samples() -> None:
    random = np.random.default_rng(21)
    rates_Q1 = np.array([[0.1], [0.3], [0.6]])
    runs = [pass_at_k((random.random((3, 6)) < rates_Q1).astype(float), 3) for _ in range(6000)]
    assert np.mean([run.stderr_within**2 for run in runs]) == pytest.approx(
        np.var([run.value for run in runs]), rel=0.08
    )
    assert isnan(pass_at_k(drawn(4, 5, 5), 3).stderr_within)


# maj@k


def brute_majority(correct: np.ndarray, classes: np.ndarray, k: int) -> float:
    """Return the mean, over all k-subsets of the graded samples, of the share of tied winners that are correct."""
    graded = [(c, int(a)) for c, a in zip(correct, classes, strict=True) if not isnan(c)]
    scores = []
    for subset in combinations(graded, k):
        votes = Counter(a for _, a in subset if a != -1)
        winners = [a for a in votes if votes[a] == max(votes.values())]
        rightful = {a for c, a in graded if c == 1.0}
        scores.append(sum(a in rightful for a in winners) / len(winners) if winners else 0.0)
    return float(np.mean(scores))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 8])
def test_maj_at_k_equals_the_mean_over_all_subsets_of_k_samples(k: int) -> None:
    correct_QK, classes_QK = answered(13, 40, 8)
    rows = [q for q in range(40) if (~np.isnan(correct_QK[q])).sum() >= k]
    brute = [brute_majority(correct_QK[q], classes_QK[q], k) for q in rows]
    estimate = maj_at_k(correct_QK, classes_QK, k)
    assert (estimate.value, estimate.questions) == (pytest.approx(np.mean(brute)), len(rows))
    for q, expected in zip(rows, brute, strict=True):
        assert maj_at_k(correct_QK[[q]], classes_QK[[q]], k).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("correct", "classes", "k", "expected"),
    [
        ([1, 1, 0], [0, 0, 1], 3, 1.0),
        ([1, 0], [0, 1], 2, 0.5),  # a tie of two
        ([1, 0, 0], [0, 1, 2], 3, 1 / 3),  # a tie of three
        ([1, 0, 0], [0, -1, -1], 3, 1.0),  # no answer never wins
        ([0, 0, 0], [-1, -1, -1], 2, 0.0),
        ([1, 0, 0], [0, -1, -1], 1, 1 / 3),  # a draw without an answer is wrong
        # Pairs of {r, r, w, none}: rr 1, rw ½ (two), r-none 1 (two), w-none 0.
        ([1, 1, 0, 0], [0, 0, 1, -1], 2, (1 + 2 * 0.5 + 2 * 1 + 0) / 6),
    ],
)
def test_maj_at_k_by_hand(correct: list[float], classes: list[int], k: int, expected: float) -> None:
    assert maj_at_k(grades(correct), np.array([classes]), k).value == pytest.approx(expected)


def test_maj_at_one_is_pass_at_one_with_its_interval_and_its_standard_errors() -> None:
    correct_QK, classes_QK = answered(14, 60, 7)
    same = pass_at_k(correct_QK, 1).__dict__
    assert maj_at_k(correct_QK, classes_QK, 1).__dict__ == pytest.approx(same)


def test_maj_at_n_is_the_vote_over_all_samples() -> None:
    classes = np.array([[3] * 30 + [1] * 20 + [7] * 14, [1] * 30 + [3] * 20 + [7] * 14])
    assert maj_at_k((classes == 3).astype(float), classes, 64).value == pytest.approx(0.5)


def test_the_numbers_of_the_classes_do_not_matter_in_maj_at_k() -> None:
    correct_QK, classes_QK = answered(15, 30, 6)
    renamed = np.where(classes_QK >= 0, 90 - 7 * classes_QK, -1)
    assert maj_at_k(correct_QK, renamed, 4).__dict__ == pytest.approx(
        maj_at_k(correct_QK, classes_QK, 4).__dict__, nan_ok=True
    )


def test_a_class_that_was_judged_both_ways_counts_by_its_share_of_correct_samples() -> None:
    assert maj_at_k(grades([1, 0, 0]), np.array([[0, 0, 1]]), 3).value == pytest.approx(0.5)


# Intervals


@pytest.mark.parametrize(
    ("freedom", "expected"),
    # Published tables of Student's t, two-sided 5 %.
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (29, 2.0452), (99, 1.9842)],
)
def test_the_t_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.0013 if freedom == 3 else 0.0002)


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
    estimate = avg_at_k(grades(*[[1.0]] * right, *[[0.0]] * (of - right)), 1)
    assert estimate.value == pytest.approx(right / of)
    assert bounds(estimate) == (pytest.approx(low, abs=1e-7), pytest.approx(high, abs=1e-7))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("questions", [1, 5, 200])
def test_the_interval_has_a_width_where_all_or_none_are_correct(value: float, questions: int) -> None:
    estimate = avg_at_k(np.full((questions, 4), value), 4)
    assert estimate.low <= value <= estimate.high
    assert 0.01 < width(estimate) < 0.9


def test_the_interval_lies_within_zero_and_one_and_contains_the_mean() -> None:
    random = np.random.default_rng(5)
    for seed in range(60):
        samples = int(random.integers(1, 8))
        estimate = avg_at_k(drawn(seed, int(random.integers(1, 60)), samples), samples)
        assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0


def test_the_bootstrap_interval_is_that_of_expanded_percentiles() -> None:
    scores = np.sort(question_means(drawn(16, 40, 8)))
    resampled = np.random.default_rng(1).choice(scores, size=(200_000, 40)).mean(axis=1)
    # t at 39 degrees is 2.0227; times sqrt(40/39) 2.0485; Φ(−2.0485) = 0.02026.
    expected = np.quantile(resampled, (0.02026, 1 - 0.02026))
    assert bounds(avg_at_k(drawn(16, 40, 8), 8)) == pytest.approx(tuple(expected), abs=0.004)


def test_samples_that_all_repeat_their_question_narrow_nothing() -> None:
    once = drawn(6, 40, 1)
    repeated = avg_at_k(np.repeat(once, 8, axis=1), 8)
    assert bounds(repeated) == bounds(avg_at_k(once, 1))
    assert repeated.stderr == avg_at_k(once, 1).stderr
    assert repeated.stderr_within == 0.0


def test_questions_that_are_all_alike_get_the_width_of_independent_samples() -> None:
    alike = avg_at_k(np.tile([1.0, 0.0], (40, 4)), 8)
    samples = avg_at_k(np.tile([1.0, 0.0], 160)[:, None], 1)
    assert alike.stderr == 0.0
    assert 1.0 <= width(alike) / width(samples) < 1.04
    noisy = (np.random.default_rng(7).random((40, 8)) < 0.5).astype(float)
    assert width(samples) <= width(avg_at_k(noisy, 8)) < 0.7 * width(avg_at_k(noisy, 1))


def test_a_single_question_never_counts_as_more_than_one() -> None:
    estimate = avg_at_k(grades([1, 0, 1, 0, 1, 0, 1, 0]), 8)
    assert width(estimate) > 0.8
    assert isnan(estimate.stderr)


def test_the_interval_of_the_failures_mirrors_that_of_the_successes() -> None:
    correct_QK = drawn(17, 50, 6)
    right, wrong = avg_at_k(correct_QK, 6), avg_at_k(1 - correct_QK, 6)
    assert (wrong.low, wrong.high) == pytest.approx((1 - right.high, 1 - right.low))


def test_the_order_of_questions_and_of_samples_does_not_matter() -> None:
    random = np.random.default_rng(18)
    correct_QK, classes_QK = answered(19, 50, 6)
    order_Q, order_K = random.permutation(50), random.permutation(6)
    moved_QK, moved_classes_QK = correct_QK[order_Q][:, order_K], classes_QK[order_Q][:, order_K]
    for there, back in (
        (avg_at_k(correct_QK, 6), avg_at_k(moved_QK, 6)),
        (pass_at_k(correct_QK, 3), pass_at_k(moved_QK, 3)),
        (maj_at_k(correct_QK, classes_QK, 3), maj_at_k(moved_QK, moved_classes_QK, 3)),
    ):
        assert there.__dict__ == pytest.approx(back.__dict__, nan_ok=True)
    other_QK, _ = answered(22, 50, 6)
    here = paired_difference(correct_QK, other_QK)
    again = paired_difference(moved_QK, other_QK[order_Q])
    assert (*bounds(here), here.p_value) == pytest.approx((*bounds(again), again.p_value))
    assert sorted(order_Q[list(again.gained)]) == list(here.gained)


def test_pools_side_by_side_get_the_intervals_they_get_alone() -> None:
    scores_QP = np.column_stack([np.sort(question_means(drawn(seed, 60, 8))) for seed in range(5)])
    low_P, high_P = mean_intervals(scores_QP, np.full(5, 480))
    alone = [avg_at_k(drawn(seed, 60, 8), 8) for seed in range(5)]
    assert list(zip(low_P, high_P, strict=True)) == [pytest.approx(bounds(one)) for one in alone]


# Paired differences


def test_equal_sides_have_no_difference_and_an_interval_around_it() -> None:
    same = paired_difference(drawn(23, 30, 4), drawn(23, 30, 4))
    assert (same.value, same.stderr, same.p_value) == (0.0, 0.0, 1.0)
    assert (same.gained, same.lost, same.questions) == ((), (), 30)
    assert (same.needed_questions, same.needed_samples) == (None, None)
    # No move seen in 30 questions excludes no more than a true difference of some points.
    assert same.high == -same.low == pytest.approx(t_quantile(29) * sqrt(2 / 32 / 32))


def test_a_paired_difference_by_hand() -> None:
    a = grades([0, 0], [1, 0], [1, 1], [0, 0], [NAN, NAN], [1, 1])
    b = grades([1, 1], [1, 0], [1, 0], [1, NAN], [1, 1], [NAN, NAN])
    seen = paired_difference(a, b)
    # Differences 1, 0, −½, 1 of the four questions graded on both sides; s² = (2.25 − 4·0.375²)/3.
    assert seen.value == pytest.approx(1.5 / 4)
    assert seen.stderr == pytest.approx(sqrt((2.25 - 4 * 0.375**2) / 3 / 4))
    assert (seen.gained, seen.lost, seen.questions) == ((0, 3), (2,), 4)
    # Of the 8 sign patterns of (1, ½, 1), |sum| ≥ 1.5 in the four where both ones agree.
    assert seen.p_value == 0.5
    assert seen.low <= seen.value <= seen.high


def test_swapping_the_sides_turns_the_sign_and_keeps_the_rest() -> None:
    a, b = drawn(9, 45, 5), drawn(24, 45, 3)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.value == pytest.approx(-back.value)
    assert bounds(there) == pytest.approx((-back.high, -back.low))
    assert (there.p_value, there.stderr) == (back.p_value, pytest.approx(back.stderr))
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.needed_questions == back.needed_questions
    assert there.needed_samples == back.needed_samples


@pytest.mark.parametrize(("gained", "lost"), [(8, 2), (9, 1), (5, 5), (7, 4), (3, 0), (14, 2), (20, 7), (30, 12)])
def test_the_p_value_of_single_samples_is_the_exact_mcnemar_test(gained: int, lost: int) -> None:
    a = np.array([0.0] * gained + [1.0] * lost + [1.0] * 20)[:, None]
    b = np.array([1.0] * gained + [0.0] * lost + [1.0] * 20)[:, None]
    moved = gained + lost
    at_least = sum(comb(moved, i) for i in range(max(gained, lost), moved + 1)) / 2**moved
    exact = min(1.0, 2 * at_least)
    error = 4 * sqrt(exact * (1 - exact) / 20_000) + 1e-4 if moved > 16 else 1e-12
    assert paired_difference(a, b).p_value == pytest.approx(exact, abs=error)


def test_the_pattern_seen_counts_among_the_random_ones() -> None:
    assert sign_flip_p_values(np.ones((60, 1)), draws=199)[0] == pytest.approx(1 / 200)


def test_few_moved_questions_have_their_sign_patterns_listed() -> None:
    differences = np.random.default_rng(25).integers(-4, 5, 9) / 4
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=9)]
    exact = np.mean([total >= abs(differences.sum()) - 1e-9 for total in sums])
    assert sign_flip_p_values(differences[:, None])[0] == pytest.approx(exact)


def test_few_moved_questions_get_bonett_and_prices_interval() -> None:
    # 30 pairs, 3 gained, 1 lost: (4 − 2)/32 ± t·sqrt((6/32 − (2/32)²)/32), t = 2.04523 at 29 degrees.
    differences = np.array([1.0] * 3 + [-1.0] + [0.0] * 26)[:, None]
    low, high = difference_intervals(differences)
    half = 2.04523 * sqrt((6 / 32 - (2 / 32) ** 2) / 32)
    assert (low[0], high[0]) == (pytest.approx(0.0625 - half, abs=1e-5), pytest.approx(0.0625 + half, abs=1e-5))


@pytest.mark.parametrize("gain", [0.25, 1.0])
def test_questions_that_all_gain_alike_leave_the_interval_a_width(gain: float) -> None:
    seen = paired_difference(np.zeros((40, 4)), np.repeat([[1.0] * int(4 * gain) + [0.0] * int(4 - 4 * gain)], 40, 0))
    assert (seen.value, seen.stderr) == (gain, 0.0)
    assert seen.low < 0.95 * gain


def test_sides_without_a_common_question_give_nan() -> None:
    seen = paired_difference(grades([NAN], [1]), grades([1], [NAN]))
    assert all(isnan(x) for x in (seen.value, *bounds(seen), seen.stderr, seen.p_value))
    assert (seen.questions, seen.needed_questions, seen.needed_samples) == (0, None, None)


def test_a_single_common_question_is_no_evidence() -> None:
    seen = paired_difference(grades([0, 0]), grades([1, 1]))
    assert (seen.value, seen.p_value) == (1.0, 1.0)
    assert seen.low < 0.0
    assert (seen.needed_questions, seen.needed_samples) == (None, None)


def test_the_same_seed_gives_the_same_answer() -> None:
    a, b = drawn(11, 60, 4), drawn(26, 60, 4)
    assert paired_difference(a, b, seed=1) == paired_difference(a, b, seed=1)
    assert bounds(paired_difference(a, b, seed=1)) != bounds(paired_difference(a, b, seed=2))
    assert avg_at_k(a, 4) == avg_at_k(a, 4)


def test_the_needed_questions_by_hand() -> None:
    a = grades(*[[0.0]] * 8, *[[1.0]] * 2, *[[0.0]] * 30)
    b = grades(*[[1.0]] * 8, *[[0.0]] * 2, *[[0.0]] * 30)
    # d = 0.15, s² = (10 − 40·0.0225)/39 = 0.23333; (1.95996 + 0.84162)² = 7.84888; times s²/d²: 81.4.
    seen = paired_difference(a, b)
    assert seen.needed_questions == 82
    assert seen.needed_samples is None, "one sample a question shows no noise within questions"


def test_six_questions_at_least_must_move() -> None:
    seen = paired_difference(np.zeros((4, 2)), np.ones((4, 2)))
    assert seen.needed_questions == 6
    half = paired_difference(np.zeros((8, 1)), np.array([[1.0], [0.0]] * 4))
    assert half.needed_questions == 12


def test_the_needed_samples_by_hand() -> None:
    # W = 0.4; s² = 0.06 of which 0.05 is sampling; 100·0.05²/7.84888 = 0.031852.
    # 0.4/(0.031852 − 0.01) = 18.3.
    assert needed_samples(0.05, 0.06, 100, one=0.4, within=0.05) == 19
    # With 0.04 between questions no number of samples is enough: 0.031852 < 0.04.
    assert needed_samples(0.05, 0.06, 100, one=0.4, within=0.02) is None
    assert needed_samples(0.0, 0.06, 100, one=0.4, within=0.05) is None


def test_the_noise_within_questions_must_be_seen_on_both_sides() -> None:
    a, b = drawn(27, 30, 4), drawn(28, 30, 1)
    assert paired_difference(a, b).needed_samples is None
    assert paired_difference(a, b).needed_questions is not None
