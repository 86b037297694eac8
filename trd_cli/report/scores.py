"""Scores of a run: each evaluation's own, those of an arm's seeds together, and those by round of training.

Seeds are put together by joining their samples, question by question. avg@k of the whole is the mean of the seeds'
avg@k. Its interval is over questions, as everywhere: it holds for these students, not for those that other seeds would
give. How far the seeds lie apart is shown beside it.

Not covered for seeds together: pass@k and maj@k, which describe one student; benchmarks whose questions differ between
seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from trd_cli.evaluation.metrics import avg_at_k
from trd_cli.evaluation.results import correct_matrix
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
    """Return one evaluation with the samples of all seeds for each arm and round that has several seeds.

    Arms and rounds that lack one of the run's `seeds` are left out, and so are benchmarks that differ between seeds.
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


def pooled_scores(evaluations: Sequence[Evaluation], pools: Iterable[Evaluation]) -> Iterator[Score]:
    """Yield avg@k over all samples of each pooled evaluation; its name has the k of a single seed."""
    for pool in pools:
        k = min(e.results["k"] for e in evaluations if (e.arm, e.round) == (pool.arm, pool.round))
        for name, bench in pool.results["benchmarks"].items():
            estimate = avg_at_k(correct_matrix(bench["samples"]), pool.results["k"])
            value = (estimate.value, estimate.low, estimate.high, estimate.questions)
            yield Score(pool.arm, pool.round, ALL_SEEDS, name, f"avg@{k}", *value, **_shares(bench))


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
    first, *others = (each.results["benchmarks"] for each in group)
    benchmarks = {
        name: _one(k, [bench, *(other[name] for other in others)])
        for name, bench in first.items()
        if all(name in other and _alike(bench, other[name]) for other in others)
    }
    return {"k": k * len(group), "benchmarks": benchmarks}


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a["sha256"] == b["sha256"] and list(a["samples"]) == list(b["samples"])


def _one(k: int, benches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    samples = {name: "".join(bench["samples"][name][:k] for bench in benches) for name in benches[0]["samples"]}
    shares = {key: fmean(bench[key] for bench in benches) for key in _SHARES}
    return {"sha256": benches[0]["sha256"], "samples": samples, **shares}
