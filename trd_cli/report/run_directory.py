"""A run directory as `trd run` leaves it, finished or not: its nodes, their progress, and their files.

Reads graph.json ({format, name, recipe, nodes: [{name, stage, arm, arms, round, seed, out, inputs, digest, argv}]}) and
status.json ({node: {state, seconds, peak_rss_bytes, exit_code, …}}). Writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trd_cli.errors import InputError
from trd_cli.evaluation.results import FILE as RESULTS
from trd_cli.recipes.nodes import FORMAT, GRAPH_FILE, STATUS_FILE
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.report.layouts import Entry, Graph, Statuses, checked
from trd_cli.training import LOG
from trd_cli.trajectories.run_json import NAME as RUN_JSON
from trd_cli.trajectories.shards import check_whole, list_shards
from trd_cli.trajectories.state import State, state_of

_FILES = {"problems": PROBLEMS_FILE, "eval": RESULTS, "distill": LOG}
# The most names that a line on several has.
NAMED = 3
# Stages whose rows run.json counts. A verify node's are another's.
_COUNTED = ("sample", "refine", "eval")


@dataclass(frozen=True)
class Node:
    """One node of the graph, with its record in status.json ({} if it has none). `path` is absolute."""

    name: str
    stage: str
    arm: str | None
    arms: tuple[str, ...]
    round: int | None
    seed: int | None
    path: Path
    inputs: tuple[str, ...]
    status: Mapping[str, Any]

    @property
    def state(self) -> str:
        return self.status.get("state", "waiting")

    def shards(self) -> list[Path]:
        """Return the shards written so far."""
        return list_shards(self.path) if self.path.is_dir() else []

    def records(self, name: str, layout: type[BaseModel]) -> list[dict[str, Any]]:
        """Return the finished lines of a JSON-lines file in the node's directory, [] if there is no such file.

        Raises InputError for a line with another layout.
        """
        try:
            lines = (self.path / name).read_text(encoding="utf-8").splitlines(keepends=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for number, line in enumerate(lines, start=1):
            if line.endswith("}\n"):
                found.append(_parsed(line))
                checked(layout, found[-1], f"{self.path / name}, line {number}")
        return found


@dataclass(frozen=True)
class Run:
    """A run directory: `nodes` by name, in the graph's order."""

    name: str
    recipe: Mapping[str, Any]
    nodes: Mapping[str, Node]

    def of_stage(self, *stages: str) -> Iterator[Node]:
        return (node for node in self.nodes.values() if node.stage in stages)

    def sources(self, node: Node, stage: str) -> list[Node]:
        """Return the nodes of `stage` whose rows a node reads, directly or behind verify nodes.

        Nodes that only made the model it uses do not count.
        """
        found: dict[str, Node] = {}
        for name in node.inputs:
            if name in self.nodes:
                above = self.nodes[name]
                behind = self.sources(above, stage) if above.stage == "verify" else []
                near = [above] if above.stage == stage else behind
                found |= {each.name: each for each in near}
        return list(found.values())


def read_run(directory: Path) -> Run:
    """Read graph.json and status.json of a run. Raises InputError if the directory holds no run of this format."""
    graph = _read_json(directory / GRAPH_FILE)
    if not isinstance(graph, dict) or graph.get("format") != FORMAT:
        raise InputError(
            f"{directory} is not a run directory" + ("" if graph is None else f" of format {FORMAT}"),
            "the directory of a trd run, with its graph.json",
            "check the path, or start the run first",
        )
    known = checked(Graph, graph, directory / GRAPH_FILE)
    status = checked(Statuses, _read_json(directory / STATUS_FILE) or {}, directory / STATUS_FILE).root
    nodes = {entry.name: _node(directory, entry, status.get(entry.name, {})) for entry in known.nodes}
    return Run(known.name, known.recipe or {}, nodes)


def _node(directory: Path, entry: Entry, record: Mapping[str, Any]) -> Node:
    if record.get("digest") not in (None, entry.digest):
        record = {}  # An earlier recipe wrote it.
    return Node(
        *(entry.name, entry.stage, entry.arm, tuple(entry.arms), entry.round, entry.seed),
        path=(directory / entry.out).resolve(),
        inputs=tuple(entry.inputs),
        status=record,
    )


def _parsed(line: str) -> Any:
    """Return the value of a line, or None if it is not JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _read_json(path: Path) -> Any:
    """Return a file's content, or None if there is no such file. Raises InputError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        raise InputError(f"{path} cannot be read as JSON", "a file of trd run", "run trd run again") from None


def some(names: Sequence[str]) -> str:
    """Return the first NAMED names, and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def lacking(node: Node) -> str | None:
    """Describe what is missing from a finished node's output, or return None if nothing is or the node is not finished.

    Raises InputError if a shard or run.json cannot be read or is damaged.
    """
    if node.state != "done":
        return None
    if not node.path.is_dir():
        return f"done, but {node.path} is gone"
    file = _FILES.get(node.stage)
    if file and not (node.path / file).is_file() and not _has_no_step(node):
        return f"done, but {node.path / file} is gone"
    if node.stage == "problems":
        return None
    if node.stage != "distill" and not node.shards():
        return f"done, but the shards of {node.path} are gone"
    state = state_of(node.path)
    if state.record is None:
        return f"done, but {node.path / RUN_JSON} is gone"
    return _too_few(node, state)


def _has_no_step(node: Node) -> bool:
    """Return True for a training that took no step, as a round that finds no row does, and so has no log."""
    return node.stage == "distill" and state_of(node.path).about.steps == 0


def _too_few(node: Node, state: State) -> str | None:
    """Describe how many rows, or steps of a training, are missing from the number in run.json, if it has one."""
    steps = state.about.steps
    if node.stage in _COUNTED and state.expected is not None:
        for path in node.shards():
            check_whole(path)
        return None if state.is_finished else f"done, but only {state.rows} of {state.expected} rows are there"
    if node.stage == "distill" and steps:
        there = len((node.path / LOG).read_text(encoding="utf-8").splitlines())
        return f"done, but {LOG} has only {there} of {steps} steps" if there < steps else None
    return None
