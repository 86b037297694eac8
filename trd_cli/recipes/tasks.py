"""Tell of which tasks the rows of a recipe's nodes are, as far as this is known before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig
from trd_cli.datasets.benchmarks import split_benchmarks, task_of
from trd_cli.hub.fetching import local_path
from trd_cli.prompting.templates import OTHER
from trd_cli.recipes.recipe import Recipe, Source
from trd_cli.records import EPISODE, Task
from trd_cli.trajectories.shards import PROBLEM_SCHEMA, read_table


def tasks_of(recipe: Recipe, config: Config, source: Source | None, of_problems: frozenset[Task]) -> frozenset[Task]:
    """Return the tasks of the rows of a node that are known; mathematics and code may be there beside them.

    `source` is what the rows were sampled from, None for an evaluation, which has rows of its own, and for a training
    on all of the recipe's. `of_problems` is what `tasks_of_problems` has found.
    """
    if isinstance(config, EvalConfig):
        found = {task_of(name) for name in split_benchmarks(config.bench or "")}
        return frozenset(found - {None}) | ({EPISODE} if config.env else frozenset())
    sources = recipe.sources if source is None else (source,)
    return (of_problems if "problems" in sources else frozenset()) | (
        {EPISODE} if "episodes" in sources else frozenset()
    )


def tasks_of_problems(table: Mapping[str, Any] | None) -> frozenset[Task]:
    """Return the tasks of the table [problems] that are known. A file is read."""
    if table is None:
        return frozenset()
    (kind, value), *_ = table.items()
    if kind == "make":
        return frozenset() if value.get("kind") == "arithmetic" else frozenset({OTHER})
    if kind == "import":
        return frozenset(filter(None, [value.get("task")]))
    path = local_path(value)
    if not path.is_file():
        return frozenset()
    return frozenset(read_table(path, ["task"], PROBLEM_SCHEMA)["task"].unique().to_pylist())
