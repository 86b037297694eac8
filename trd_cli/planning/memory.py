"""Estimate the memory of each stage before it starts, for a run that keeps the processes of several."""

from __future__ import annotations

from dataclasses import replace

from trd_cli.errors import UserError
from trd_cli.planning.chains import chains
from trd_cli.planning.needs import need_of, work_of
from trd_cli.planning.refusals import read_models
from trd_cli.recipes.nodes import Graph
from trd_cli.records import Problem

# Stands for the problems: the longest part of a row is its response.
UNKNOWN = Problem("unknown", "unknown", "math", "")
_MANY = 1 << 30  # rows: as many are in flight as the engine takes


def memory_of(graph: Graph) -> dict[str, int]:
    """Return bytes by the names of the nodes that run a model; none where the models do not tell their sizes.

    An evaluation, whose questions are not read here, counts as the largest stage that generates with its model.
    """
    student, teacher, _ = read_models(graph.recipe)
    if student is None or teacher is None or student.shape is None or teacher.shape is None:
        return {}
    try:
        works = work_of(graph, chains(graph.recipe, graph, [UNKNOWN], student, teacher), [])
    except UserError:
        return {}
    found = {work.node.name: need_of(replace(work, rows=_MANY), student, teacher).total for work in works}
    largest = max((found[work.node.name] for work in works if work.node.stage == "sample"), default=0)
    return {node.name: largest for node in graph.nodes if node.stage == "eval"} | found
