"""Paired differences between the arms of a run, to its base model and between two runs, corrected for their number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Any

from trd_cli.evaluation.paired import PairedDifference, holm, paired_difference
from trd_cli.evaluation.results import correct_matrix
from trd_cli.evaluation.seeds import DifferenceOverSeeds, difference_over_seeds
from trd_cli.report.data import ALL_SEEDS, BASE, Difference, Evaluation, ReportData, Seed
from trd_cli.report.rounds import tested
from trd_cli.report.run_directory import NAMED, some
from trd_cli.report.scores import by_question, correct_by_seed, pooled

Found = tuple[list[Difference], tuple[str, ...]]


def within_run(evaluations: Sequence[Evaluation], reference_arm: str | None) -> Found:
    """Compare every arm with the base model, and with the reference arm of the same round and seed.

    Of many rounds the first and the last of each arm are compared: among more tests the correction would hide a
    difference. `evaluations` may hold pooled ones (`scores.pooled`). The second value names the pairs that cannot be
    compared.
    """
    found: list[Difference] = []
    notes: dict[str, None] = {}
    for against in dict.fromkeys(filter(None, (BASE, reference_arm))):
        for one in tested(evaluations):
            if one.arm in (BASE, against):
                continue
            other = _counterpart(one, evaluations, against)
            if other is not None:
                found += _differences(other, one, one.arm, against, f"to {against}", notes)
    return found, tuple(notes)


def between_runs(a: tuple[ReportData, str], b: tuple[ReportData, str]) -> Found:
    """Compute B − A for every arm, round and seed that both have. Arms are named with their run.

    Of many common rounds the first and the last of each arm are compared. A base model that both share is left out: it
    has no difference, and its test would weaken all others.
    """
    (data_a, name_a), (data_b, name_b) = a, b
    there, here = ({(e.arm, e.round, e.seed): e for e in _with_pools(data)} for data in (data_a, data_b))
    found: list[Difference] = []
    notes = _in_one_alone(there.values(), here, f"{name_a}/{{}}: {name_b} has no such evaluation")
    notes |= _in_one_alone(here.values(), there, f"{name_b}/{{}}: {name_a} has no such evaluation")
    for one in tested([each for key, each in here.items() if key in there]):
        other = there[one.arm, one.round, one.seed]
        names = f"{name_b}/{one.arm}", f"{name_a}/{one.arm}"
        if one.arm == BASE and one.results["model_revision"] == other.results["model_revision"]:
            notes[f"{names[0]} against {names[1]}: not compared, they are the same model"] = None
            continue
        found += _differences(other, one, *names, f"between {name_b} and {name_a}", notes)
    return found, tuple(notes)


def _in_one_alone(
    evaluations: Iterable[Evaluation], others: Collection[tuple[str, int | None, Seed]], text: str
) -> dict[str, None]:
    """Return a line for each evaluation that has no counterpart, or one for many.

    Pooled ones get none: their seeds have theirs.
    """
    alone = [e.node for e in evaluations if (e.arm, e.round, e.seed) not in others and e.seed != ALL_SEEDS]
    return {text.replace("{}", each): None for each in ([some(alone)] if len(alone) > NAMED else alone)}


def _with_pools(data: ReportData) -> list[Evaluation]:
    return [*data.evaluations, *pooled(data.evaluations, {node.seed for node in data.nodes} - {None})]


def corrected(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    """Return the differences with `p_holm` filled in, each corrected over its family."""
    differences = list(differences)
    families: dict[str, list[int]] = defaultdict(list)
    for i, difference in enumerate(differences):
        families[difference.family].append(i)
    for members in families.values():
        p_values = [differences[i].p_value for i in members]
        for i, p in zip(members, holm([nan if p is None else p for p in p_values]), strict=True):
            differences[i] = replace(differences[i], p_holm=_known(p))
    return tuple(differences)


def _counterpart(one: Evaluation, evaluations: Sequence[Evaluation], arm: str) -> Evaluation | None:
    """Return the evaluation of `arm` with the same seed and round. For the base model the round does not count."""
    same_arm = [e for e in evaluations if e.arm == arm]
    if arm == BASE:
        return next((e for e in same_arm if e.seed == one.seed), same_arm[0] if same_arm else None)
    return next((e for e in same_arm if (e.round, e.seed) == (one.round, one.seed)), None)


def _differences(
    a: Evaluation, b: Evaluation, arm: str, against: str, family: str, notes: dict[str, None]
) -> Iterator[Difference]:
    """Yield B − A on every benchmark of the same content in both. Others are named in `notes`."""
    for name in {**a.results["benchmarks"], **b.results["benchmarks"]}:
        sides = [each.results["benchmarks"].get(name) for each in (a, b)]
        why_not = _why_not(*sides)
        if why_not:
            notes[f"{arm} against {against} on {name}: not compared, {why_not}"] = None
            continue
        are_several = ALL_SEEDS in (a.seed, b.seed)
        # Each seed gives as many samples on both sides, so that both have the same sampling noise.
        k = min(a.results["k"], b.results["k"])
        found = _over_seeds(*sides) if are_several else _of_one_seed(*sides, k)
        of_all = ", all seeds together" if are_several else ""
        whose = (arm, b.round, b.seed, name, against, family + of_all, b.results["k"] if are_several else k)
        yield Difference(*whose, **found, p_holm=None)


def _of_one_seed(a: Mapping[str, Any], b: Mapping[str, Any], k: int) -> dict[str, float | None]:
    """Return the figures of a difference between the first k samples of two evaluations."""
    d = paired_difference(*(correct_matrix(side["samples"])[:, :k] for side in (a, b)))
    return _figures(d) | {"gained": len(d.gained), "lost": len(d.lost)}


def _over_seeds(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the figures of a difference of which a side has several seeds; those of both sides are paired if alike."""
    are_paired = list(a.get("seeds", ())) == list(b.get("seeds", ()))
    d = difference_over_seeds(*(by_question(correct_by_seed(side)) for side in (a, b)), are_paired)
    return _figures(d) | {"gained": d.gained, "lost": d.lost}


def _figures(d: PairedDifference | DifferenceOverSeeds) -> dict[str, float | None]:
    return {key: _known(getattr(d, key)) for key in ("value", "low", "high", "p_value")} | {"questions": d.questions}


def _why_not(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> str | None:
    """Return the reason why two results on a benchmark cannot be compared, or None."""
    if a is None or b is None:
        return "only one of them was evaluated on it"
    if a["sha256"] != b["sha256"]:
        return "its content differs"
    return None if _asked(a) == _asked(b) else "they were asked other questions"


def _asked(bench: Mapping[str, Any]) -> list[str]:
    return list(bench["questions"])


def _known(value: float) -> float | None:
    return None if isnan(value) else value
