"""Several seeds of an arm as one: the samples of all of them together, question by question.

avg@k of the whole is the mean of the seeds' avg@k. Its interval is over questions, as everywhere: it holds for these
students, not for those that other seeds would give; how far the seeds are from each other is seen beside it.

Not covered: pass@k and maj@k, which are of one student each; benchmarks that the seeds were not all asked with the same
questions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from trd_cli.evaluation.metrics import avg_at_k
from trd_cli.evaluation.results import correct_matrix
from trd_cli.report.data import ALL_SEEDS, BASE, Evaluation, Score, Seed

SHARES = ("truncated", "no_answer", "error", "timeout")


def pooled(evaluations: Iterable[Evaluation], seeds: Collection[Seed]) -> list[Evaluation]:
    """For each arm and round of which all `seeds` of the run are evaluated, where they are several, one evaluation of
    all their samples; only benchmarks that all were asked alike."""
    groups: dict[tuple[str, int | None], list[Evaluation]] = {}
    for each in evaluations:
        if each.arm != BASE:
            groups.setdefault((each.arm, each.round), []).append(each)
    return [
        Evaluation(group[0].node, arm, number, ALL_SEEDS, _together(group))
        for (arm, number), group in groups.items()
        if len(group) > 1 and {each.seed for each in group} == set(seeds)
    ]


def pooled_scores(pool: Evaluation, k: int) -> Iterator[Score]:
    """avg@k over all samples of a pooled evaluation; `k` is that of each of its seeds."""
    for name, bench in pool.results["benchmarks"].items():
        estimate = avg_at_k(correct_matrix(bench["samples"]), pool.results["k"])
        ends = {key: bench[key] for key in SHARES}
        value = (estimate.value, estimate.low, estimate.high, estimate.questions)
        yield Score(pool.arm, pool.round, ALL_SEEDS, name, f"avg@{k}", *value, **ends)


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
    shares = {key: fmean(bench[key] for bench in benches) for key in SHARES}
    return {"sha256": benches[0]["sha256"], "samples": samples, **shares}
