"""Figures of a training run from its train.jsonl, and what its first step tells of the rows it is trained along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trd_cli.report.data import Nll, Refinement, Training
from trd_cli.report.layouts import Step
from trd_cli.report.run_files import Node, RunFiles
from trd_cli.training import LOG
from trd_cli.trajectories.run_json import read_run_json

TENTHS = 10


def training_of(node: Node) -> Training | None:
    """The training as far as it is;

    None where no step is logged. Raises InputError for a line that is not of this layout.
    """
    steps = node.records(LOG, Step)
    if not steps:
        return None
    return Training(node.name, node.arm or "", node.round, node.seed, steps, kl_by_position(steps))


def kl_by_position(steps: Iterable[Mapping[str, Any]]) -> dict[str, list[float | None]] | None:
    """Mean divergence in each tenth of the response over all positions of all steps; None where no step has it."""
    sums: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for step in steps:
        for verdict in ("correct", "incorrect"):
            means = step.get(f"divergence_tenths_{verdict}")
            if means is None:
                continue
            of_step = step[f"positions_tenths_{verdict}"]
            total, count = sums.setdefault(verdict, [0.0] * TENTHS), counts.setdefault(verdict, [0] * TENTHS)
            for i, (mean, positions) in enumerate(zip(means, of_step, strict=True)):
                total[i] += mean * positions
                count[i] += positions
    return {
        verdict: [s / n if n else None for s, n in zip(sums[verdict], counts[verdict], strict=True)] for verdict in sums
    } or None


def with_training_nll(run: RunFiles, refinement: Refinement, trainings: Sequence[Training]) -> Refinement:
    """With the student's NLL of y_r at the first step of a training along all of it: the only step before any update.

    Not from a training along a subset, whose rows are not like the others.
    """
    for training in trainings:
        node, first = run.nodes[training.node], training.steps[0]
        along = {each.name for each in run.sources(node, "refine")}
        config = (read_run_json(node.path) or {}).get("config", {})
        if along == {refinement.node} and _is_plain(config) and first["step"] == 1 and "student_nll" in first:
            rows = first["trajectories"]
            source = f"first step of {training.node}, {rows:,} of {refinement.rows:,} rows"
            nll = Nll(first["student_nll"], first["response_tokens"], rows, source)
            return replace(refinement, nll={**refinement.nll, "y_r": nll})
    return refinement


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a training is along all refined rows and scores them as they were sampled."""
    along_all = config.get("subset") == "all" and config.get("where") is None
    return along_all and config.get("stage") in (None, "refined") and config.get("temperature") == 1.0
