"""What a node of a run took: rows and tokens from its files, time and memory from its logs."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow.compute as pc

from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.report.data import NodeCost
from trd_cli.report.layouts import Session, Step
from trd_cli.report.run_files import Node
from trd_cli.training import LOG
from trd_cli.trajectories.shards import PROBLEM_SCHEMA, read_table, shard_info
from trd_cli.trajectories.stage_dir import SESSIONS


def cost_of(node: Node) -> NodeCost:
    """Rows and tokens are those that are there by now; a figure that nothing tells is None."""
    # A verify node fills in another's set, whose sessions are not its own.
    own = node.stage != "verify"
    steps, sessions = (node.records(LOG, Step), node.records(SESSIONS, Session) if own else [])
    if node.stage == "distill":
        work = [(step["response_tokens"], step["seconds"]) for step in steps]
        rows, tokens = _sum(step["trajectories"] for step in steps), _sum(t for t, _ in work)
    else:
        told = ((session.get("tokens"), session.get("at_work")) for session in sessions)
        work = [each for each in told if None not in each]
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
    )


def _sum(numbers: Iterable[float]) -> float | None:
    values = list(numbers)
    return sum(values) if values else None


def _in_shards(node: Node) -> tuple[int | None, int | None]:
    """Rows and response tokens; a verify node's are those it graded, of which it made no token."""
    tables = [read_table(path, ["response_token_ids"]) for path in node.shards()]
    if not tables:
        problems = node.path / PROBLEMS_FILE
        return (shard_info(problems, PROBLEM_SCHEMA).rows if problems.is_file() else None), None
    rows = sum(table.num_rows for table in tables)
    if node.stage == "verify":
        return rows, None
    return rows, sum(pc.sum(pc.list_value_length(t["response_token_ids"])).as_py() or 0 for t in tables)
