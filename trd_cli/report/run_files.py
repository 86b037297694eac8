"""A run directory as `trd run` leaves it, finished or not: its nodes, how far each is, and where its files are.

Reads graph.json ({format, name, recipe, nodes: [{name, stage, arm, arms, round, seed, out, inputs, digest, argv}]}) and
status.json ({node: {state, seconds, peak_rss_bytes, exit_code, …}}). Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trd_cli.errors import InputError
from trd_cli.recipes.nodes import FORMAT, GRAPH_FILE, STATUS_FILE
from trd_cli.report.layouts import Entry, Graph, Statuses, checked
from trd_cli.trajectories.shards import list_shards


@dataclass(frozen=True)
class Node:
    """One node of the graph, with its record in status.json ({} where it has none). `path` is absolute."""

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
        """The shards that are there by now."""
        return list_shards(self.path) if self.path.is_dir() else []

    def records(self, name: str, layout: type[BaseModel]) -> list[dict[str, Any]]:
        """The lines of a JSON-lines file in the node's directory; a line that is being written is not read.

        Raises InputError for a line that is not of the layout.
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
class RunFiles:
    """A run directory: `nodes` by name, in the graph's order."""

    name: str
    recipe: Mapping[str, Any]
    nodes: Mapping[str, Node]

    def of_stage(self, *stages: str) -> Iterator[Node]:
        return (node for node in self.nodes.values() if node.stage in stages)

    def sources(self, node: Node, stage: str) -> list[Node]:
        """The nodes of `stage` whose rows a node reads, verified or not; not those behind a model that it uses."""
        found: dict[str, Node] = {}
        for name in node.inputs:
            if name in self.nodes:
                above = self.nodes[name]
                behind = self.sources(above, stage) if above.stage == "verify" else []
                near = [above] if above.stage == stage else behind
                found |= {each.name: each for each in near}
        return list(found.values())


def read_run(directory: Path) -> RunFiles:
    """Raises InputError where there is no run of this layout."""
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
    return RunFiles(known.name, known.recipe or {}, nodes)


def _node(directory: Path, entry: Entry, record: Mapping[str, Any]) -> Node:
    if record.get("digest") not in (None, entry.digest):
        record = {}  # of an earlier recipe
    return Node(
        *(entry.name, entry.stage, entry.arm, tuple(entry.arms), entry.round, entry.seed),
        path=(directory / entry.out).resolve(),
        inputs=tuple(entry.inputs),
        status=record,
    )


def _parsed(line: str) -> Any:
    """The value of a line, or None where it is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _read_json(path: Path) -> Any:
    """The file's content, or None where it is not there; InputError where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        raise InputError(f"{path} cannot be read as JSON", "a file of trd run", "run trd run again") from None
