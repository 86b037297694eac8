"""Figures from the logs of a run: each node's cost in rows, tokens, time and memory, and the course of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.report.data import Nll, NodeCost, Refinement, Training
from trd_cli.report.layouts import Session, Step
from trd_cli.report.run_directory import Node, Run
from trd_cli.training import LOG
from trd_cli.training.tenths import TENTHS
from trd_cli.trajectories.episode_columns import OF_LENGTH, written_tokens
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.shards import PROBLEM_SCHEMA, read_table, shard_info
from trd_cli.trajectories.stage_dir import SESSIONS


def cost_of(node: Node) -> NodeCost:
    """Return a node's cost so far. Rows and tokens come from its shards; a figure in no log or shard is None."""
    # A verify node fills in another's set, whose sessions are not its own.
    own = node.stage != "verify"
    steps, sessions = (node.records(LOG, Step), node.records(SESSIONS, Session) if own else [])
    if node.stage == "distill":
        work = [(step["response_tokens"], step["seconds"]) for step in steps]
        rows, tokens = _sum(step["trajectories"] for step in steps), _sum(t for t, _ in work)
    else:
        logged = ((session.get("tokens"), session.get("at_work")) for session in sessions)
        work = [each for each in logged if None not in each]
        rows, tokens = _in_shards(node)
    work_tokens, work_seconds = (_sum(column) for column in (zip(*work, strict=True) if work else ((), ())))
    times = (node.status.get("seconds"), work_seconds, _sum(filter(None, (s.get("seconds") for s in sessions))))
    in_training = [int(step["peak_memory_gib"] * 2**30) for step in steps]
    memory = [*in_training, *filter(None, [node.status.get("peak_rss_bytes")])]
    return NodeCost(
        *(node.name, node.stage, node.arm, node.round, node.seed, node.state),
        rows=rows,
        tokens=tokens,
        seconds=max(filter(None, times), default=None),
        tokens_per_second=work_tokens / work_seconds if work_tokens and work_seconds else None,
        peak_bytes=max(memory, default=None),
        at_work=work_seconds,
        devices=", ".join(node.status.get("devices") or ()) or None,
        warm=bool(node.status.get("warm") and not node.status.get("starts_worker")),
    )


def _sum(numbers: Iterable[float]) -> float | None:
    values = list(numbers)
    return sum(values) if values else None


def _in_shards(node: Node) -> tuple[int | None, int | None]:
    """Return rows and response tokens that models wrote. A verify node has the rows that it graded, and no tokens."""
    shards = node.shards()
    if not shards:
        problems = node.path / PROBLEMS_FILE
        return (shard_info(problems, PROBLEM_SCHEMA).rows if problems.is_file() else None), None
    rows = sum(shard_info(path).rows for path in shards)
    if node.stage == "verify":
        return rows, None
    lengths = (written_tokens(read_table(path, list(OF_LENGTH))) for path in shards)
    return rows, sum(pc.sum(each).as_py() or 0 for each in lengths)


def training_of(node: Node) -> Training | None:
    """Return a training as far as it has come, or None if no step is logged.

    Raises InputError for a line of train.jsonl with another layout.
    """
    steps = node.records(LOG, Step)
    if not steps:
        return None
    return Training(node.name, node.arm or "", node.round, node.seed, steps, kl_by_position(steps))


def kl_by_position(steps: Iterable[Mapping[str, Any]]) -> dict[str, list[float | None]] | None:
    """Return by verdict the mean divergence in each tenth of the response, or None if no step has logged it.

    The mean is over all positions of all steps.
    """
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


def with_training_nll(run: Run, refinement: Refinement, trainings: Sequence[Training]) -> Refinement:
    """Add the student's NLL of y_r, taken from the first step of a training along all of y_r.

    In a round of a longer training that is the round's first. Later steps do not count: the student has been updated.
    Trainings along a subset do not count: its rows are unlike the others.
    """
    for training in trainings:
        node, first = run.nodes[training.node], training.steps[0]
        along = {each.name for each in run.sources(node, "refine")}
        record = read_run_json(node.path)
        config, before = (record or {}).get("config", {}), About.of(record).steps_before or 0
        begins = first["step"] == before + 1
        if along == {refinement.node} and _is_plain(config) and begins and "student_nll" in first:
            rows = first["trajectories"]
            source = f"first step of {training.node}, {rows:,} of {refinement.rows:,} rows"
            nll = Nll(first["student_nll"], first["response_tokens"], rows, source)
            return replace(refinement, nll={**refinement.nll, "y_r": nll})
    return refinement


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Return True if a training is along all tokens of all refined rows and scores them as they were sampled."""
    along_all = config.get("subset") == "all" and config.get("where") is None
    along_all &= config.get("train_on", "all") == "all" and config.get("max_response_tokens") is None
    return along_all and config.get("stage") in (None, "refined") and config.get("temperature") == 1.0
