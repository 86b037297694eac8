"""Run the stages of a recipe that are not done, or show them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trd_cli.atomic import has_text_name, write_text
from trd_cli.config.commands import RunConfig
from trd_cli.config.generating import EngineOptions
from trd_cli.errors import InputError, counted
from trd_cli.progress import RunProgress
from trd_cli.recipes.devices import check_fits, machine_of, with_cluster
from trd_cli.recipes.done import Status, done_nodes, forget, is_done, sweep
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.nodes import BASE_EVAL, FORMAT, GRAPH_FILE, Graph, Node
from trd_cli.recipes.previews import first_prompts, stage_lines
from trd_cli.recipes.processes import end_left_behind, locked
from trd_cli.recipes.runner import Follower, Runner
from trd_cli.recipes.warm import Memory, warm_nodes
from trd_cli.trajectories.stage_dir import DEFAULT_ROOT

# Raises InputError if one of these nodes of the recipe at this path would refuse its models or options.
Check = Callable[[str, Graph, Sequence[Node]], None]
# Returns what goes along with a run; it may say something to a person by the last argument.
Follow = Callable[[RunConfig, Graph, Callable[[str], None]], Sequence[Follower]]


def _nobody(config: RunConfig, graph: Graph, note: Callable[[str], None]) -> Sequence[Follower]:
    return ()


def run(config: RunConfig, progress: RunProgress, check: Check, memory_of: Memory, follow: Follow = _nobody) -> Path:
    """Run what is missing and return the run directory.

    Models and options are checked before anything is generated with them. `memory_of` estimates the memory of stages.
    `follow` returns what goes along with the run.
    Raises UserError when stages failed, after all others have run.
    """
    graph, chosen, again = _planned(config)
    missing = [node for node in chosen if node.name in again or not is_done(graph, node)]
    check(config.recipe, graph, missing)
    machine = machine_of(graph.recipe)
    if graph.recipe.ray is not None and any(isinstance(node.config, EngineOptions) for node in missing):
        machine = with_cluster(machine, graph.recipe.ray)
    check_fits(graph, missing, machine)
    directory = graph.directory
    with locked(directory):
        _write(directory / "recipe.toml", graph.recipe.as_toml())
        _write(directory / GRAPH_FILE, _json(graph.record()))
        status = Status(directory)
        end_left_behind(directory, progress.note)
        sweep(directory)
        forget(graph, again, status)
        Runner(graph, chosen, machine, status, progress, memory_of, follow(config, graph, progress.note)).run()
    return directory


def dry_run(config: RunConfig) -> list[str]:
    """Return lines on the state of each stage and the first prompt of each kind. Nothing is written."""
    graph, chosen, again = _planned(config)
    there = done_nodes(graph, graph.nodes)
    done = there - again
    names = {node.name for node in chosen}
    states = {}
    for node in graph.nodes:
        is_asked_for = node.name in names
        state = "done" if node.name in done else "run" if is_asked_for else "left out"
        states[node.name] = "again" if is_asked_for and node.name in again & there else state
    lines = [f"{counted(len(graph.nodes), 'stage')} in {graph.directory}: {len(done)} done, {len(names - done)} to run"]
    warm = warm_nodes(graph.recipe, [node for node in chosen if node.name not in done])
    lines += stage_lines(graph, states, warm)
    for title, text in first_prompts(graph, chosen, done):
        lines += ["", f"── {title}", text]
    return lines


def _planned(config: RunConfig) -> tuple[Graph, list[Node], set[str]]:
    """Return the graph, the nodes to run, and the names of those to do again."""
    recipe = load_recipe(Path(config.recipe))
    graph = build_graph(recipe, Path(config.out) if config.out else DEFAULT_ROOT / recipe.name)
    chosen = graph.chosen(config.only, config.until)
    again = _again(graph, config, chosen)
    _check_directory(graph.directory)
    return graph, chosen, again


def _again(graph: Graph, config: RunConfig, chosen: Sequence[Node]) -> set[str]:
    """Return the names of the nodes that --from does again: those of its stage, and all that are made from them."""
    if config.from_stage is None:
        return set()
    starts = [
        node.name for node in chosen if node.stage == config.from_stage and not (config.only and node.name == BASE_EVAL)
    ]
    if not starts:
        raise InputError(
            f"--from {config.from_stage}",
            "one of " + ", ".join(dict.fromkeys(node.stage for node in chosen)),
            "name a stage that is to run",
        )
    again = graph.made_from(starts)
    others = {graph[name].arm for name in again} - {None, *config.only}
    if config.only and others:
        raise InputError(
            f"--from {config.from_stage} with --only {' --only '.join(config.only)}: others are made from the same rows",
            "all arms whose rows would change (also " + ", ".join(sorted(others)) + ")",
            "name them too, or leave --only out",
        )
    return again


def _check_directory(directory: Path) -> None:
    """Raise InputError for a directory that holds other files, or whose path is not UTF-8, as records are."""
    if not has_text_name(directory):
        raise InputError(f"the path of {directory.resolve()} is not UTF-8", "one that is", "give another --out")
    if directory.is_dir() and not (directory / GRAPH_FILE).is_file():
        others = [path.name for path in directory.iterdir() if not _may_be_left(path.name)]
        if others:
            raise InputError(
                f"{directory} holds other files ({others[0]}) and no graph.json",
                f"a run directory ({FORMAT}), or a new or empty one",
                "give another --out",
            )
    elif directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file", "a directory", "give another --out")


def _may_be_left(name: str) -> bool:
    """Return True for a file that a run may leave when it is killed at its very start."""
    of_a_write = name.endswith(".tmp") and name.startswith((".recipe.toml.", ".graph.json."))
    return name in (".lock", "recipe.toml") or of_a_write


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file unless it holds that text already: a run that has nothing to do changes nothing."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
