"""Scores of a run: each evaluation's own, those of an arm's seeds together, and those by round of training.

Of seeds together, avg@k and pass@k are the means of the seeds' own. Their intervals are over seeds and questions, by
the hierarchical bootstrap of `evaluation.seeds`.

Not covered for seeds together: maj@k; benchmarks whose questions differ between seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from trd_cli.evaluation.metrics import pass_scores, question_means
from trd_cli.evaluation.results import correct_matrix
from trd_cli.evaluation.seeds import mean_over_seeds
from trd_cli.evaluation.tables import KINDS
from trd_cli.report.data import ALL_SEEDS, BASE, Evaluation, ReportData, Score, Seed

_SHARES = ("truncated", "no_answer", "error", "timeout")
_SHOWN_KEYS = ("value", "low", "high", "questions")
# By arm, seed and benchmark: number of rounds trained → score.
Curves = dict[tuple[str, Seed, str], dict[int, Score]]


def scores_of(evaluation: Evaluation) -> Iterator[Score]:
    """Yield avg@k, pass@k, for mathematics maj@k, and for EvalPlus's sets the base tests' scores, from results.json."""
    k = evaluation.results["k"]
    for name, bench in evaluation.results["benchmarks"].items():
        for score in (f"{kind}@{k}" for kind in KINDS):
            # A vote of one sample is that sample.
            if score in bench["scores"] and score != "maj@1":
                shown = {key: bench["scores"][score][key] for key in _SHOWN_KEYS}
                whose = (evaluation.arm, evaluation.round, evaluation.seed)
                yield Score(*whose, benchmark=name, score=score, **shown, **_shares(bench))


def pooled(evaluations: Iterable[Evaluation], seeds: Collection[Seed]) -> list[Evaluation]:
    """Return one evaluation with the samples of each seed for each arm and round that has several seeds.

    Its benchmarks have `seeds`, the samples by seed, in place of `samples`. Arms and rounds that lack one of the run's
    `seeds` are left out, and so are benchmarks that differ between seeds.
    """
    groups: dict[tuple[str, int | None], list[Evaluation]] = {}
    for each in evaluations:
        if each.arm != BASE:
            groups.setdefault((each.arm, each.round), []).append(each)
    return [
        Evaluation(group[0].node, arm, number, ALL_SEEDS, _together(group))
        for (arm, number), group in groups.items()
        if len(group) > 1 and {each.seed for each in group} == set(seeds)
    ]


def pooled_scores(pools: Iterable[Evaluation]) -> Iterator[Score]:
    """Yield avg@k, and pass@k for k > 1, of each pooled evaluation, k as of a single seed."""
    for pool in pools:
        for name, bench in pool.results["benchmarks"].items():
            by_seed = correct_by_seed(bench)
            k, marks = len(by_seed[0][0]), len(by_seed) * len(by_seed[0][0])
            found = {f"avg@{k}": by_question(by_seed)}
            if k > 1:
                found[f"pass@{k}"] = np.array([pass_scores(correct_QK, k)[0] for correct_QK in by_seed])
            for score, scores_SQ in found.items():
                mean = mean_over_seeds(scores_SQ, marks)
                value = (_known(mean.value), _known(mean.low), _known(mean.high), mean.questions)
                yield Score(pool.arm, pool.round, ALL_SEEDS, name, score, *value, **_shares(bench))


def correct_by_seed(bench: Mapping[str, Any]) -> list[np.ndarray]:
    """Return correct_QK of each seed of a pooled benchmark, or of the one evaluation that a benchmark is of."""
    return [correct_matrix(samples) for samples in bench.get("seeds", {None: bench.get("samples")}).values()]


def by_question(by_seed: Iterable[np.ndarray]) -> np.ndarray:
    """Return the share correct of each question for each seed, shape (S, Q); NaN where nothing was graded."""
    return np.array([question_means(correct_QK) for correct_QK in by_seed])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def curves_of(data: ReportData) -> Curves:
    """Return avg@k by round for each arm, seed and benchmark. Every curve begins at 0 with its run's base model."""
    averages = [s for s in data.scores if s.score.startswith("avg@")]
    starts = {(_run(s.arm), s.benchmark): s for s in averages if s.round is None}
    found: Curves = {}
    for s in averages:
        if s.round is not None:
            found.setdefault((s.arm, s.seed, s.benchmark), {})[s.round + 1] = s
    for (arm, _, benchmark), curve in found.items():
        if (_run(arm), benchmark) in starts:
            curve[0] = starts[_run(arm), benchmark]
    return found


def are_several(curves: Curves) -> bool:
    """Return True if some arm was evaluated after a second round; with one round the tables of scores say it all."""
    return any(max(curve) > 1 for curve in curves.values())


def _run(arm: str) -> str:
    """Return the name of the run that an arm belongs to, "" in a report on one run."""
    return arm.rpartition("/")[0]


def _shares(bench: Mapping[str, Any]) -> dict[str, float]:
    return {key: bench[key] for key in _SHARES}


def _together(group: Sequence[Evaluation]) -> dict[str, Any]:
    k = min(each.results["k"] for each in group)
    first = group[0].results["benchmarks"]
    benchmarks = {
        name: _one(k, {each.seed: each.results["benchmarks"][name] for each in group})
        for name, bench in first.items()
        if all(_alike(bench, each.results["benchmarks"].get(name)) for each in group)
    }
    return {"k": k * len(group), "benchmarks": benchmarks}


def _alike(a: Mapping[str, Any], b: Mapping[str, Any] | None) -> bool:
    return b is not None and a["sha256"] == b["sha256"] and list(a["samples"]) == list(b["samples"])


def _one(k: int, benches: Mapping[Seed, Mapping[str, Any]]) -> dict[str, Any]:
    first, *_ = benches.values()
    seeds = {seed: {name: marks[:k] for name, marks in b["samples"].items()} for seed, b in benches.items()}
    shares = {key: fmean(bench[key] for bench in benches.values()) for key in _SHARES}
    return {"sha256": first["sha256"], "questions": list(first["samples"]), "seeds": seeds, **shares}
