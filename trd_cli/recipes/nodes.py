"""The nodes of a run and what they are made from: choosing some of them, and the record that reports read."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trd_cli.config.base import Config, RunStage
from trd_cli.errors import InputError
from trd_cli.recipes.recipe import Recipe
from trd_cli.redaction import without_secrets

FORMAT = "trd-graph-1"
GRAPH_FILE = "graph.json"
STATUS_FILE = "status.json"
NODES = "nodes"
# The order of the stages in a round, by the last part of a node's name.
ORDER = ("problems", "sample", "verify-rollouts", "refine", "verify-refined", "distill", "eval")
BASE = "base"
BASE_EVAL = f"{BASE}/eval"


@dataclass(frozen=True)
class Node:
    """One command. `argv` are the words after `trd`, `out` and other nodes' outputs in them relative to the run
    directory.

    `out` of a verify node is the set that it fills in. `arm` is None where the node belongs to no arm alone, `round`
    and `seed` where it belongs to none. `arms` are those that need it.
    """

    name: str
    stage: RunStage
    argv: tuple[str, ...]
    inputs: tuple[str, ...]
    out: str
    digest: str
    arm: str | None = None
    arms: tuple[str, ...] = ()
    round: int | None = None
    seed: int | None = None
    config: Config = field(default_factory=Config, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """The stage, with verify told apart by what is verified: an entry of ORDER."""
        return self.name.rpartition("/")[2]

    @property
    def log(self) -> str:
        """Its log file, relative to the run directory."""
        return f"logs/{self.name.replace('/', '_')}.log"

    def record(self) -> dict[str, Any]:
        """Return the node without keys, as graph.json holds it."""
        names = ("name", "stage", "arm", "arms", "round", "seed", "out", "inputs", "digest", "argv")
        return without_secrets({name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Graph:
    """All nodes of a recipe, each after its inputs."""

    recipe: Recipe
    directory: Path
    nodes: tuple[Node, ...]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    def path(self, node: Node) -> Path:
        """Where the node's output is."""
        return self.directory / node.out

    def needed_by(self, names: Iterable[str]) -> set[str]:
        """These nodes and all that they come from."""
        found: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self[name].inputs
        return found

    def made_from(self, names: Iterable[str]) -> set[str]:
        """These nodes and all that come of them."""
        found = set(names)
        for node in self.nodes:  # each comes after its inputs
            if found & set(node.inputs):
                found.add(node.name)
        return found

    def chosen(self, only: Collection[str] = (), until: str | None = None) -> list[Node]:
        """The nodes of some arms (none named: all; nodes of no arm that nobody reads are always in), up to a stage."""
        for arm in only:
            if arm not in self.recipe.arms:
                raise InputError(f"--only {arm}", "one of " + ", ".join(self.recipe.arms), "name an arm of the recipe")
        ends = [n.name for n in self.nodes if n.stage in ("distill", "eval") and (not only or n.arm in only)]
        ends += [n.name for n in self.nodes if n.name == BASE_EVAL]
        names = self.needed_by(ends)
        last = max((i for i, kind in enumerate(ORDER) if kind.startswith(until or "")), default=len(ORDER))
        kept: dict[str, Node] = {}
        for node in self.nodes:
            whole = all(name in kept for name in node.inputs)
            if node.name in names and ORDER.index(node.kind) <= last and whole:
                kept[node.name] = node
        return list(kept.values())

    def record(self) -> dict[str, Any]:
        """The graph as graph.json holds it."""
        return {
            "format": FORMAT,
            "name": self.recipe.name,
            "recipe": self.recipe.record(),
            "nodes": [node.record() for node in self.nodes],
        }
