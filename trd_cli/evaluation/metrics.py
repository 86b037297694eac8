"""avg@k, pass@k and maj@k of one model over questions, and means of other figures, with 95 % intervals.

Axes: Q questions, K samples of each. `correct_QK` holds 1.0 for correct, 0.0 for incorrect, and NaN for a sample
without a verdict (error, timeout), which enters no score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, sqrt

import numpy as np

from trd_cli.evaluation.intervals import mean_and_stderr, mean_intervals, t_interval


@dataclass(frozen=True)
class Estimate:
    """Hold a mean over `questions` questions with its 95 % interval (by the rule in `evaluation.intervals`).

    `stderr` is clustered by question: sqrt(s²/Q) of the questions' scores. It contains both the spread of difficulty
    and the sampling noise, and is NaN for one question. `stderr_within` is the part that sampling alone makes, and that
    more samples a question would shrink: sqrt(Σ_q v_q)/Q, with v_q an unbiased estimate of the variance of question q's
    score over new samples. Questions with too few samples for one count as the average of the others; NaN where all
    have too few.

    low and high cover the truth 93 to 97 times in 100 from 30 questions on (92 where successes are few and uneven).
    value ± t·stderr does so from 100 questions on; at 30 questions and a mean of 0.1 it covers as little as 89 %.
    """

    value: float
    low: float
    high: float
    stderr: float
    stderr_within: float
    questions: int


def counts(correct_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of graded and of correct samples of each question, two integer arrays (Q,)."""
    return (~np.isnan(correct_QK)).sum(axis=1), np.nansum(correct_QK, axis=1).astype(int)


def question_means(correct_QK: np.ndarray) -> np.ndarray:
    """Return the share correct of each question, shape (Q,); NaN where nothing was graded."""
    graded_Q, right_Q = counts(correct_QK)
    return np.divide(right_Q, graded_Q, out=np.full(len(correct_QK), np.nan), where=graded_Q > 0)


def sample_variances(correct_QK: np.ndarray) -> np.ndarray:
    """Return the unbiased variance of one sample, p̂(1 − p̂)·n/(n − 1), shape (Q,); NaN below two graded samples."""
    graded_Q, _ = counts(correct_QK)
    share_Q = question_means(correct_QK)
    out_Q = np.full(len(correct_QK), np.nan)
    return np.divide(share_Q * (1 - share_Q) * graded_Q, graded_Q - 1, out=out_Q, where=graded_Q > 1)


def avg_at_k(correct_QK: np.ndarray, k: int) -> Estimate:
    """Return avg@k: the mean over questions of the share correct among the first k samples, as a run of k showed it.

    A question weighs the same however many of its samples were graded; v_q = p̂(1 − p̂)/(n − 1). With fewer than k
    samples in the array there is no such run: NaN and no questions.
    """
    assert k >= 1, k
    first_Qk = correct_QK[:, :k] if k <= correct_QK.shape[1] else np.full((len(correct_QK), 1), np.nan)
    graded_Q, _ = counts(first_Qk)
    return _estimate(question_means(first_Qk), sample_variances(first_Qk) / np.maximum(graded_Q, 1), graded_Q)


def pass_at_k(correct_QK: np.ndarray, k: int) -> Estimate:
    """Return pass@k by the unbiased estimator 1 − u, u = C(n−c, k)/C(n, k) (Chen et al., arXiv 2107.03374, eq. 1).

    n is the number of graded samples of a question, c of the correct ones. A question with n < k is left out, which
    shifts the mean where errors fall on hard questions. v_q = u² − C(n−c, 2k)/C(n, 2k) for n ≥ 2k: the second term, the
    chance that two disjoint draws of k all fail, is the unbiased estimate of E[u]².
    """
    scores_Q, variances_Q = pass_scores(correct_QK, k)
    return _estimate(scores_Q, variances_Q, counts(correct_QK)[0])


def pass_scores(correct_QK: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pass@k of each question and its v_q, as in `pass_at_k`, two arrays (Q,); NaN where n is too small."""
    assert k >= 1, k
    graded_Q, right_Q = counts(correct_QK)
    scores_Q, variances_Q = np.full((2, len(correct_QK)), np.nan)
    for q, (n, c) in enumerate(zip(graded_Q.tolist(), right_Q.tolist(), strict=True)):
        if n >= k:
            scores_Q[q] = 1.0 - comb(n - c, k) / comb(n, k)
        if n >= 2 * k:
            variances_Q[q] = (1.0 - scores_Q[q]) ** 2 - comb(n - c, 2 * k) / comb(n, 2 * k)
    return scores_Q, variances_Q


def maj_at_k(correct_QK: np.ndarray, classes_QK: np.ndarray, k: int) -> Estimate:
    """Return maj@k: the chance that the most frequent of k answers is correct, over all k-subsets of graded samples.

    `classes_QK` (integers, the shape of `correct_QK`) numbers the answers of a question: equal answers, equal numbers;
    all correct samples share one. −1 is no answer: such a sample is drawn like any other but never wins, and a subset
    without any answer is wrong. Classes that tie for the first place share it evenly. A question with fewer than k
    graded samples is left out. `stderr_within` is known for k = 1 only. Up to 1000 samples a question (binomials as
    floats).
    """
    assert k >= 1, k
    assert classes_QK.shape == correct_QK.shape, (classes_QK.shape, correct_QK.shape)
    graded_QK = ~np.isnan(correct_QK)
    graded_Q = graded_QK.sum(axis=1)
    scores_Q = np.full(len(correct_QK), np.nan)
    for q in np.flatnonzero(graded_Q >= k):
        keep_K = graded_QK[q]
        scores_Q[q] = _majority_score(classes_QK[q, keep_K].tolist(), correct_QK[q, keep_K].tolist(), k)
    variances_Q = sample_variances(correct_QK) / np.maximum(graded_Q, 1) if k == 1 else np.full_like(scores_Q, np.nan)
    return _estimate(scores_Q, variances_Q, graded_Q)


def _majority_score(classes: list[int], correct: list[float], k: int) -> float:
    """Return the chance that a correct class wins; one judged both ways counts by its share of correct samples."""
    sizes = Counter(classes)
    unanswered = sizes.pop(-1, 0)
    right = Counter(c for c, verdict in zip(classes, correct, strict=True) if verdict and c != -1)
    score = 0.0
    for winner, correct_ones in right.items():
        others = tuple(sorted(size for c, size in sizes.items() if c != winner))
        score += correct_ones / sizes[winner] * majority_chances(sizes[winner], others, unanswered)[k]
    return float(score)


@lru_cache(maxsize=4096)
def majority_chances(own: int, others: tuple[int, ...], unanswered: int) -> np.ndarray:
    """Return the chance that a class of `own` samples wins the vote in a random k-subset, for k = 0 … n, shape (n +
    1,).

    Multivariate hypergeometric, without listing subsets. For each number w of own samples drawn, a dynamic programme
    over the other classes counts in `ways` the draws by (samples drawn, classes tied at w), no class above w:

        Σ_w C(own, w) · Σ_t ways_w(k − w, t)/(1 + t) / C(n, k)
    """
    n = own + sum(others) + unanswered
    total = np.zeros(n + 1)
    for w in range(1, own + 1):
        ways = np.zeros((n + 1, 1 + sum(size >= w for size in others)))
        ways[: unanswered + 1, 0] = [comb(unanswered, x) for x in range(unanswered + 1)]
        for size in others:
            before, ways = ways, np.zeros_like(ways)
            for x in range(min(size, w - 1) + 1):
                ways[x:] += comb(size, x) * before[: n + 1 - x]
            if size >= w:
                ways[w:, 1:] += comb(size, w) * before[: n + 1 - w, :-1]
        shared = ways @ (1.0 / np.arange(1, ways.shape[1] + 1))
        total[w:] += comb(own, w) * shared[: n + 1 - w]
    chances = total / [float(comb(n, k)) for k in range(n + 1)]
    chances.flags.writeable = False
    return chances


def mean_of(values_QK: np.ndarray, *, are_scores: bool) -> Estimate:
    """Return the mean over questions of each one's mean value; NaN is a sample without a value.

    Scores, which lie in [0, 1], have the interval above, other figures Student's: NaN where all questions have the same
    mean, which shows nothing of their spread.
    """
    known_Q = (~np.isnan(values_QK)).sum(axis=1)
    none_Q = np.full(len(values_QK), np.nan)
    mean_Q = np.divide(np.nansum(values_QK, axis=1), known_Q, out=none_Q.copy(), where=known_Q > 0)
    squares_Q = np.nansum((values_QK - mean_Q[:, None]) ** 2, axis=1)
    variance_Q = np.divide(squares_Q, (known_Q - 1) * known_Q, out=none_Q, where=known_Q > 1)
    return _estimate(mean_Q, variance_Q, known_Q, are_scores)


def mean_of_groups(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of some estimates, each of which weighs the same: a macro average, as over tasks.

    The groups are fixed and their questions drawn, so errors add in squares. The interval is put together from those of
    the groups, as Zou and Donner (2008) do for sums: low = mean − sqrt(Σ (value − low)²)/G. It has a width where all
    groups are at 0 or 1. NaN where a group has no score.
    """
    count = len(estimates)

    def root(parts: Iterable[float]) -> float:
        return sqrt(sum(part**2 for part in parts)) / count

    mean = sum(each.value for each in estimates) / count
    return Estimate(
        mean,
        max(0.0, mean - root(each.value - each.low for each in estimates)),
        min(1.0, mean + root(each.high - each.value for each in estimates)),
        root(each.stderr for each in estimates),
        root(each.stderr_within for each in estimates),
        sum(each.questions for each in estimates),
    )


def _estimate(scores_Q: np.ndarray, variances_Q: np.ndarray, graded_Q: np.ndarray, are_scores: bool = True) -> Estimate:
    """Return the estimate over the questions that have a score; `variances_Q` are the v_q of `Estimate`."""
    scored_Q = ~np.isnan(scores_Q)
    questions = int(scored_Q.sum())
    if questions == 0:
        return Estimate(*[float("nan")] * 5, 0)
    # Sorted, so that the order of the questions does not choose the resamples.
    scores_Q1 = np.sort(scores_Q[scored_Q])[:, None]
    mean, stderr = mean_and_stderr(scores_Q1)
    spread = ((scores_Q1 - mean) ** 2).sum(axis=0)
    if are_scores:
        low, high = mean_intervals(scores_Q1, graded_Q[scored_Q].sum(keepdims=True))
    else:
        low, high = t_interval(mean, np.where(spread > 0, spread, np.nan), np.array([questions]))
    known = variances_Q[scored_Q & ~np.isnan(variances_Q)]
    within = sqrt(float(known.mean()) / questions) if len(known) else float("nan")
    return Estimate(float(mean[0]), float(low[0]), float(high[0]), float(stderr[0]), within, questions)
