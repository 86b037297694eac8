"""What a finished node of a run should have left, and has not: a report would be silently short of it."""

from __future__ import annotations

from trd_cli.evaluation.results import FILE as RESULTS
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.report.run_files import Node
from trd_cli.training import LOG
from trd_cli.trajectories.run_json import NAME as RUN_JSON
from trd_cli.trajectories.run_json import read_run_json
from trd_cli.trajectories.shards import check_whole, shard_info

_FILES = {"problems": PROBLEMS_FILE, "eval": RESULTS, "distill": LOG}
# Stages whose rows run.json counts. A verify node's are another's.
_COUNTED = ("sample", "refine", "eval")


def lacking(node: Node) -> str | None:
    """What of the output of a node that is done is gone, in words; None where all is there, and for a node that is not
    done.

    Raises InputError where a shard or run.json cannot be read, or is damaged in any part.
    """
    if node.state != "done":
        return None
    if not node.path.is_dir():
        return f"done, but {node.path} is gone"
    file = _FILES.get(node.stage)
    if file and not (node.path / file).is_file():
        return f"done, but {node.path / file} is gone"
    if node.stage == "problems":
        return None
    if node.stage != "distill" and not node.shards():
        return f"done, but the shards of {node.path} are gone"
    run = read_run_json(node.path)
    if run is None:
        return f"done, but {node.path / RUN_JSON} is gone"
    return _too_few(node, run.get("rows_expected"), run.get("about", {}).get("steps"))


def _too_few(node: Node, rows: int | None, steps: int | None) -> str | None:
    """By what run.json says of its rows, or of a training its steps, where it says so."""
    if node.stage in _COUNTED and rows is not None:
        for path in node.shards():
            check_whole(path)
        there = sum(shard_info(path).rows for path in node.shards())
        return f"done, but only {there} of {rows} rows are there" if there < rows else None
    if node.stage == "distill" and steps is not None:
        there = len((node.path / LOG).read_text(encoding="utf-8").splitlines())
        return f"done, but {LOG} has only {there} of {steps} steps" if there < steps else None
    return None
