"""Runs of many rounds: their figures as curves over the rounds, and the rounds that are shown in detail.

From MANY rounds on, a report shows curves, and details of the first and the last round of each arm alone. Its size then
depends on the arms, not on the rounds. The CSV files hold the figures of every round.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

from trd_cli.report.data import ALL_SEEDS, Leaks, Nll, NodeCost, Refinement, ReportData, Seed, Spread, Training

MANY = 4
# Rounds that a table of curves has columns for.
COLUMNS = 6
# The verdicts of y_o and y_r that each change stands for, named as the subsets of `trd distill`.
CHANGES = {
    "repaired": ("incorrect", "correct"),
    "kept": ("correct", "correct"),
    "broken": ("correct", "incorrect"),
    "unrepaired": ("incorrect", "incorrect"),
}
NLL_OF = "nats a token of "
_SEED = re.compile(r"\bseed-\d+/")
# Figures of a training, by their keys in train.jsonl.
_OF_TRAINING = {
    "loss": "loss",
    "divergence_p50": "divergence, median",
    "divergence_p95": "divergence, 95 %",
    "grad_norm": "gradient norm",
    "top1_agreement": "top-1 agreement",
    "student_nll": "nats a token of the trained rows, student",
    "teacher_nll": "nats a token of the trained rows, teacher",
}
Value = TypeVar("Value", bound=Any)
# By figure, arm and seed: round → value.
Curves = dict[str, dict[str, dict[Seed, dict[int, float]]]]


def are_many(values: Iterable[Any]) -> bool:
    """Return True if the values are of so many rounds that curves show them."""
    return len({value.round for value in values} - {None}) >= MANY


def has_many_rounds(data: ReportData) -> bool:
    """Return True if the report has figures of many rounds."""
    return are_many((*data.scores, *data.refinements, *data.trainings))


def _whose(value: Any) -> list[Hashable]:
    return [(value.arm, value.seed)]


def ends(values: Iterable[Value], groups: Callable[[Value], Iterable[Hashable]] = _whose) -> tuple[Value, ...]:
    """Return the values of the first and the last round of each group that they belong to, and those of no round.

    The groups are arms and seeds unless `groups` names others.
    """
    values = list(values)
    rounds: dict[Hashable, set[int]] = {}
    for value in values:
        if value.round is not None:
            for group in groups(value):
                rounds.setdefault(group, set()).add(value.round)
    found = {group: {min(numbers), max(numbers)} for group, numbers in rounds.items()}
    return tuple(v for v in values if v.round is None or any(v.round in found[group] for group in groups(v)))


def details(data: ReportData) -> ReportData:
    """Return the figures to show in detail: all of them, or of many rounds the first and the last of each arm.

    Refinements of several seeds are then put together.
    """
    if not has_many_rounds(data):
        return data
    return replace(
        data,
        scores=ends(data.scores),
        refinements=tuple(_pooled(ends(data.refinements, lambda r: [(arm, r.seed) for arm in _arms(r)]))),
        trainings=ends(data.trainings),
    )


def tested(values: Sequence[Value]) -> tuple[Value, ...]:
    """Return the values to compare: all of them, or of many rounds those of the first and the last of each arm."""
    return ends(values) if are_many(values) else tuple(values)


def evenly(numbers: Sequence[int], count: int = COLUMNS) -> list[int]:
    """Return `count` of the numbers: the first, the last, and others as evenly between as can be."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (count - 1))] for i in range(count)]


def _arms(refinement: Refinement) -> tuple[str | None, ...]:
    return refinement.arms or (refinement.arm,)


# Seeds together


def _pooled(refinements: Iterable[Refinement]) -> Iterator[Refinement]:
    """Yield one refinement for those that differ in their seed alone."""
    groups: dict[str, list[Refinement]] = {}
    for each in refinements:
        groups.setdefault(_SEED.sub("", each.node), []).append(each)
    for name, group in groups.items():
        yield group[0] if len(group) == 1 else _together(f"{name}, all seeds", group)


def _together(name: str, group: Sequence[Refinement]) -> Refinement:
    matrix: Counter[tuple[str, str]] = Counter()
    for each in group:
        matrix.update(each.matrix)
    return replace(
        group[0],
        node=name,
        seed=ALL_SEEDS,
        rows=sum(each.rows for each in group),
        errors=sum(each.errors for each in group),
        matrix=dict(matrix),
        lengths={side: _spread(each.lengths[side] for each in group) for side in group[0].lengths},
        edit_distance=_spread(each.edit_distance for each in group),
        common_prefix=_spread(each.common_prefix for each in group),
        nll={text: _nll(group, text) for text in dict.fromkeys(text for each in group for text in each.nll)},
        leaks=_leaks([each.leaks for each in group if each.leaks is not None]),
        episodes={
            side: {name: _spread(each.episodes.get(side, {}).get(name) for each in group) for name in figures}
            for side, figures in group[0].episodes.items()
        },
    )


def _spread(spreads: Iterable[Spread | None]) -> Spread | None:
    return Spread.of(list(chain.from_iterable(spread.values for spread in spreads if spread is not None)))


def _nll(group: Iterable[Refinement], text: str) -> Nll:
    known = [each.nll[text] for each in group if text in each.nll]
    tokens = sum(nll.tokens for nll in known)
    sources = "; ".join(dict.fromkeys(nll.source for nll in known))
    return Nll(sum(nll.value * nll.tokens for nll in known) / tokens, tokens, sum(nll.rows for nll in known), sources)


def _leaks(group: Sequence[Leaks]) -> Leaks | None:
    rows = sum(leaks.rows for leaks in group)
    if not rows:
        return None

    def share(of: Callable[[Leaks], float]) -> float:
        return sum(of(leaks) * leaks.rows for leaks in group) / rows

    copies = {n: share(lambda leaks, n=n: leaks.copies[n]) for n in group[0].copies}
    return Leaks(rows, share(lambda leaks: leaks.talks), share(lambda leaks: leaks.talks_before), copies)


# Curves


def curves(data: ReportData) -> Curves:
    """Return the figures of refinement, training and cost by round. Scores have curves of their own (`report.scores`).

    A set of the first round that several arms share is in the curve of each. Where an arm refines episodes beside
    problems, the figures of episodes have names of their own. Shares are parts of 1, lengths tokens,
    NLL, loss and divergence nats; figures of a training are means over the round's steps, weighted by trajectories.
    """
    found: Curves = {}

    def add(figures: Mapping[str, float | None], arm: str, seed: Seed, of: int) -> None:
        for figure, value in figures.items():
            if value is not None:
                found.setdefault(figure, {}).setdefault(arm, {}).setdefault(seed, {})[of] = value

    for r in sorted(data.refinements, key=lambda each: each.round or 0):
        for arm in _arms(r):
            if arm is not None and r.round is not None:
                add(
                    {name + _of_which(r): value for name, value in figures_of_refinement(r).items()},
                    arm,
                    r.seed,
                    r.round,
                )
    for t in sorted(data.trainings, key=lambda each: each.round or 0):
        if t.round is not None:
            add(_of_training(t), t.arm, t.seed, t.round)
    for (arm, seed, of), nodes in _rounds_of(data).items():
        add(
            {"seconds": total(n.seconds for n in nodes), "seconds at work": total(n.at_work for n in nodes)},
            arm,
            seed,
            of,
        )
    return found


def _of_which(r: Refinement) -> str:
    """Return the end of the names of a set's figures, for the second set of a round."""
    return " (episodes)" if "/episodes/" in r.node else ""


def figures_of_refinement(r: Refinement) -> dict[str, float | None]:
    shares = {name: r.matrix.get(pair, 0) / r.rows for name, pair in CHANGES.items()} if r.rows else {}
    spreads = {
        "tokens of y_o": r.lengths["y_o"],
        "tokens of y_r": r.lengths["y_r"],
        "edit distance": r.edit_distance,
        "common prefix": r.common_prefix,
        **r.of_episodes(),
    }
    found = {
        **shares,
        **({"other verdicts": 1 - sum(shares.values())} if shares else {}),
        **{name: spread.mean for name, spread in spreads.items() if spread is not None},
        **{NLL_OF + text: nll.value for text, nll in r.nll.items()},
    }
    if r.leaks is not None:
        found["y_r talks of a reference"] = r.leaks.talks
        found |= {f"y_r copies {n} words of y*": share for n, share in r.leaks.copies.items()}
    return found


def _of_training(t: Training) -> dict[str, float | None]:
    return {figure: t.mean(key, "all") for key, figure in _OF_TRAINING.items()}


def _rounds_of(data: ReportData) -> dict[tuple[str, Seed, int], list[NodeCost]]:
    """Return by arm, seed and round the stages that the arm's round consists of, shared ones among them."""
    own: dict[tuple[str, Seed, int], list[NodeCost]] = {}
    shared: dict[tuple[str, Seed, int], list[NodeCost]] = {}
    for node in data.nodes:
        if node.round is not None and node.seconds is not None:
            if node.arm is None:
                shared.setdefault((_run(node.name), node.seed, node.round), []).append(node)
            else:
                own.setdefault((node.arm, node.seed, node.round), []).append(node)
    return {
        (arm, seed, of): [*shared.get((_run(nodes[0].name), seed, of), ()), *nodes]
        for (arm, seed, of), nodes in sorted(own.items(), key=lambda item: item[0][2])
    }


def _run(node: str) -> str:
    """Return what stands before a node's seed: the run's name in a report on two."""
    return node[: found.start()] if (found := _SEED.search(node)) else ""


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum of the known values, or None if none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
