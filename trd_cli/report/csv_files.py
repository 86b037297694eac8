"""The figures of a report as CSV: plain numbers, one line a figure, nothing rounded. An empty field is unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from trd_cli.diagnosis.tables import csv_files as csv_of_diagnoses
from trd_cli.evaluation.tables import csv_text
from trd_cli.report.data import Difference, Nll, NodeCost, Refinement, ReportData, Score, Training
from trd_cli.report.rounds import curves, has_many_rounds

_WHOSE = ("node", "arm", "round", "seed")
_SPREAD = ("rows", "mean", "p05", "p25", "p50", "p75", "p95")


def csv_files(data: ReportData) -> dict[str, str | None]:
    """Return the content of every file by name, None for a file without a line."""
    made = {
        "scores.csv": records(Score, data.scores),
        "differences.csv": records(Difference, data.differences),
        "verdicts.csv": verdict_lines(data.refinements),
        "refinement.csv": refinement_lines(data.refinements),
        "nll.csv": _nll(data.refinements),
        "leaks.csv": _leaks(data.refinements),
        "training.csv": _steps(data.trainings),
        "kl_by_position.csv": position_lines(data.trainings),
        "cost.csv": records(NodeCost, data.nodes),
        "rounds.csv": _rounds(data),
        **csv_of_diagnoses(data.diagnoses),
    }
    return {name: csv_text(header, rows) if rows else None for name, (header, rows) in made.items()}


Lines = tuple[Sequence[str], list[Sequence[Any]]]


def records(kind: type, values: Iterable[Any]) -> Lines:
    names = [field.name for field in fields(kind)]
    return names, [[getattr(value, name) for name in names] for value in values]


def _whose(value: Refinement | Training) -> list[Any]:
    return [getattr(value, name) for name in _WHOSE]


def verdict_lines(refinements: Iterable[Refinement]) -> Lines:
    rows = [[*_whose(r), *pair, n] for r in refinements for pair, n in sorted(r.matrix.items())]
    return (*_WHOSE, "y_o", "y_r", "rows"), rows


def refinement_lines(refinements: Iterable[Refinement]) -> Lines:
    rows = []
    for r in refinements:
        spreads = {
            "tokens_y_o": r.lengths["y_o"],
            "tokens_y_r": r.lengths["y_r"],
            "edit_distance": r.edit_distance,
            "common_prefix": r.common_prefix,
            **{f"{name}_{side}": s for side, figures in r.episodes.items() for name, s in figures.items()},
        }
        rows += [[*_whose(r), name, *(getattr(s, key) for key in _SPREAD)] for name, s in spreads.items() if s]
    return (*_WHOSE, "figure", *_SPREAD), rows


def _nll(refinements: Iterable[Refinement]) -> Lines:
    names = [field.name for field in fields(Nll)]
    rows = [
        [*_whose(r), text, *(getattr(nll, name) for name in names)] for r in refinements for text, nll in r.nll.items()
    ]
    return (*_WHOSE, "text", *names), rows


def _leaks(refinements: Iterable[Refinement]) -> Lines:
    rows = []
    for r in refinements:
        if r.leaks is not None:
            shares: Mapping[str, float] = {
                "y_r talks": r.leaks.talks,
                "y_o talks": r.leaks.talks_before,
                **{f"copies {n} words": share for n, share in r.leaks.copies.items()},
            }
            rows += [[*_whose(r), name, share, r.leaks.rows] for name, share in shares.items()]
    return (*_WHOSE, "sign", "share", "rows"), rows


def _steps(trainings: Iterable[Training]) -> Lines:
    """Return all numbers of train.jsonl."""
    trainings = list(trainings)
    steps = (step for training in trainings for step in training.steps)
    names = list(dict.fromkeys(name for step in steps for name, v in step.items() if isinstance(v, (int, float))))
    rows = [[*_whose(t), *(step.get(name) for name in names)] for t in trainings for step in t.steps]
    return (*_WHOSE, *names), rows


def _rounds(data: ReportData) -> Lines:
    """Return the figures of every round, for runs of many."""
    found = curves(data) if has_many_rounds(data) else {}
    rows = [
        [arm, seed, of, figure, value]
        for figure, by_arm in found.items()
        for arm, seeds in by_arm.items()
        for seed, curve in seeds.items()
        for of, value in curve.items()
    ]
    return ("arm", "seed", "round", "figure", "value"), rows


def position_lines(trainings: Iterable[Training]) -> Lines:
    rows = [
        [*_whose(t), verdict, tenth, mean]
        for t in trainings
        for verdict, means in (t.kl_by_position or {}).items()
        for tenth, mean in enumerate(means, start=1)
    ]
    return (*_WHOSE, "attempt", "tenth", "mean"), rows
