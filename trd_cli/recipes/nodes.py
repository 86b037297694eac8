"""The nodes of a run, their graph, the record that reports read, and the contents that stand in digests."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trd_cli.config.base import Config, RunStage
from trd_cli.config.commands import EvalConfig, ImportConfig, MakeConfig
from trd_cli.config.grading import GraderConfig
from trd_cli.config.training import DistillConfig
from trd_cli.datasets.benchmarks import split_benchmarks
from trd_cli.errors import InputError
from trd_cli.graders.own import own_graders
from trd_cli.models import EMA, fingerprint
from trd_cli.own_code import OwnCode
from trd_cli.prompting.rendering import template_kind, templates_for
from trd_cli.prompting.templates import deciding_families
from trd_cli.recipes.recipe import Recipe, Source
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.records import Task
from trd_cli.redaction import without_secrets
from trd_cli.worlds.registry import version_of
from trd_cli.worlds.spec import Spec

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
    """One command with its `config`, which says nothing of where the output goes.

    `out` is the output directory, relative to the run directory; a verify node fills the set there in place. `arms` are
    the arms that need the node, `arm` the one that it belongs to alone. `arm`, `round` and `seed` are None for a node
    of several. `source` is what the rows that it makes or grades were sampled from, None for a node without rows.
    """

    name: str
    stage: RunStage
    config: Config = field(compare=False, repr=False)
    inputs: tuple[str, ...]
    out: str
    digest: str
    arm: str | None = None
    arms: tuple[str, ...] = ()
    round: int | None = None
    seed: int | None = None
    source: Source | None = None

    @property
    def kind(self) -> str:
        """Return the entry of ORDER: the stage, and for verify the kind of rows too."""
        return self.name.rpartition("/")[2]

    @property
    def log(self) -> str:
        """Return the path of the log file, relative to the run directory."""
        return f"logs/{self.name.replace('/', '_')}.log"

    @property
    def argv(self) -> tuple[str, ...]:
        """Return the words after `trd`, with paths of outputs relative to the run directory."""
        command, path = (self.stage,), self.out
        if self.stage == "verify":
            path = None
        if self.stage == "problems":
            command = ("data", "make" if isinstance(self.config, MakeConfig) else "import")
            path = f"{self.out}/{PROBLEMS_FILE}"
        return (*command, *self.config.model_copy(update={"out": path}).flags())

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
        """Return the path of the node's output."""
        return self.directory / node.out

    def continued(self, node: Node) -> Node | None:
        """Return the node whose training a node continues, None for a node that continues none."""
        if not isinstance(node.config, DistillConfig) or node.config.continue_from is None:
            return None
        return next(self[name] for name in node.inputs if self[name].stage == "distill")

    def needed_by(self, names: Iterable[str]) -> set[str]:
        """Return the names of these nodes and of all nodes that they are made from."""
        found: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self[name].inputs
        return found

    def made_from(self, names: Iterable[str]) -> set[str]:
        """Return the names of these nodes and of all nodes that are made from them."""
        found = set(names)
        for node in self.nodes:  # each comes after its inputs
            if found & set(node.inputs):
                found.add(node.name)
        return found

    def chosen(self, only: Collection[str] = (), until: str | None = None) -> list[Node]:
        """Return the nodes of the arms in `only` (all if empty), with all that these need, up to a stage.

        The evaluation of the starting model is always among them. Raises InputError for an arm that is not there.
        """
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
        """Return the graph without keys, as graph.json holds it."""
        return {
            "format": FORMAT,
            "name": self.recipe.name,
            "recipe": self.recipe.record(),
            "nodes": [node.record() for node in self.nodes],
        }


@dataclass(frozen=True)
class Model:
    """A model by its name in a command line, and the node that makes it, if any."""

    name: str
    node: Node | None = None


class Contents:
    """Digests of local files, templates and model directories. Each is read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._of_templates: dict[tuple[object, ...], list[str]] = {}

    def file(self, path: str) -> str:
        if path not in self._known:
            try:
                with open(path, "rb") as file:
                    self._known[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"{path}: {error.strerror}", "a file that can be read", "check the path") from None
        return self._known[path]

    def benchmark(self, name: str) -> str:
        """Return a benchmark's name; for a file, the digest in place of the file's name."""
        file, colon, options = name.partition(":")
        return f"{self.file(file)}{colon}{options}" if Path(file).is_file() else name

    def environment(self, spec: str) -> str:
        """Return a specification of episodes; with the version of code of one's own, which may change."""
        name = Spec.parse(spec).name
        return spec if OwnCode.parse(name) is None else f"{spec} {version_of(name)}"

    def model(self, model: Model) -> str | None:
        """Return the digest of the weights of a local model, or the name of any other.

        A node's model counts by the node's digest: None for it, and EMA for its averaged weights.
        """
        if model.node is not None:
            return EMA if model.name.endswith(f"/{EMA}") else None
        if not Path(model.name).is_dir():
            return model.name
        if model.name not in self._known:
            self._known[model.name] = fingerprint(Path(model.name))
        return self._known[model.name]

    def _templates(self, config: Config, setting: str, tasks: Iterable[Task]) -> list[str]:
        """Return the digests of a stage's templates, by the family of tasks."""
        stored = isinstance(config, DistillConfig) and config.takes_stored_prompt()
        families = deciding_families(tasks)
        key = (template_kind(config, setting), config.prompt, stored, families)
        if key not in self._of_templates:
            self._of_templates[key] = [each.sha256 for each in templates_for(config, setting, families).values()]
        return self._of_templates[key]

    def deciding(self, config: Config, setting: str, tasks: Iterable[Task]) -> dict[str, Any]:
        """Return the options that decide the result of a command on rows of some tasks, as JSON values.

        Templates, built in or not, count by their text, files and the user's graders by their content.
        """
        chosen = config.deciding()
        if "prompt" in chosen:
            chosen["prompt"] = self._templates(config, setting, tasks)
        if isinstance(config, EvalConfig):
            chosen["bench"] = [self.benchmark(name) for name in split_benchmarks(config.bench or "")]
        if isinstance(config, GraderConfig) and config.grader:
            graders = own_graders(config.grader).values()
            chosen["grader"] = [*config.grader, *(grader.version for grader in graders)]
        if "env" in chosen:
            chosen["env"] = [*map(self.environment, [config.env] if isinstance(config.env, str) else config.env)]
        if isinstance(config, ImportConfig) and Path(config.file).is_file():
            chosen["file"] = self.file(config.file)
        return chosen
