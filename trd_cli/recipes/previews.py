"""Show the stages of a graph and the first prompt of each, for `trd run --dry-run`.

Nothing is generated, trained or written.
A stage whose inputs exist shows it by its own --dry-run, offline. For any other the template is filled with the first
problem, and a text in ⟨⟩ stands for what does not exist yet; the model's chat template is then not applied.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.commands import ImportConfig, MakeConfig
from trd_cli.config.generating import RefineConfig
from trd_cli.config.training import DistillConfig
from trd_cli.hub.fetching import local_path
from trd_cli.prompting.rendering import template_for, values_of
from trd_cli.prompting.templates import Template
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.processes import command_of
from trd_cli.recipes.recipe import Source
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.records import EPISODE, Problem
from trd_cli.worlds.spec import Spec

_ATTEMPT = "⟨the student's attempt y_o⟩"
_WITH_PROMPTS = ("sample", "refine", "distill", "eval")
_SECONDS = 600
_ROUND = re.compile(r"round-(\d+)/")
_ALIKE = 4  # stages of rounds that are alike share a line from this number on


def stage_lines(graph: Graph, states: Mapping[str, str], warm: Collection[str]) -> list[str]:
    """Return a line for each stage: its state, its output, its inputs, and if it runs in a process that stays.

    Stages of rounds that are alike share a line.
    """
    groups: dict[tuple[Any, ...], list[Node]] = {}
    for node in graph.nodes:
        names = (_any_round(name, node) for name in (node.name, *node.inputs))
        groups.setdefault((states[node.name], node.name in warm, *names), []).append(node)
    rows = []
    for (state, is_warm, name, *inputs), nodes in groups.items():
        if len(nodes) < _ALIKE:
            rows += [(state, node.name, node.out, node.inputs, is_warm) for node in nodes]
        else:
            rounds = f"N = {nodes[0].round} … {nodes[-1].round}"
            rows.append((state, f"{name}, {rounds}", f"{len(nodes)} stages", inputs, is_warm))
    width = max(len(name) for _, name, *_ in rows)
    return [
        f"  {state:<8} {name:<{width}}  {out}"
        + (f"  ← {', '.join(inputs)}" if inputs else "")
        + ("  (warm)" if is_warm else "")
        for state, name, out, inputs, is_warm in rows
    ]


def _any_round(name: str, node: Node) -> str:
    """Return a name with N in place of the node's round, and N-1 in place of the round before."""

    def letter(found: re.Match[str]) -> str:
        before = (node.round or 0) - int(found[1])
        return f"round-{f'(N-{before})' if before else 'N'}/"

    return _ROUND.sub(letter, name) if node.round is not None else name


def first_prompts(graph: Graph, chosen: Sequence[Node], done: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield a title and a text for each kind of prompt that the chosen nodes use."""
    shown: set[tuple[Any, ...]] = set()
    for node in chosen:
        kind = _kind(node)
        if node.stage not in _WITH_PROMPTS or kind in shown:
            continue
        shown.add(kind)
        here = all(name in done for name in node.inputs)
        text, reason = _its_own(graph, node) if here else (None, "its inputs are not there yet")
        if text is not None:
            yield f"{node.name}, by its own --dry-run", text
        else:
            yield f"{node.name}, from its template ({reason})", _from_templates(graph, node, done)


def _kind(node: Node) -> tuple[Any, ...]:
    """Return what tells one kind of prompt from another: the stage, and what the teacher reads."""
    config = node.config
    if isinstance(config, RefineConfig):
        return (node.stage, node.source, config.mode)
    if not isinstance(config, DistillConfig):
        return (node.stage, node.source)
    return (node.stage, config.along(), config.teacher_context_kind(), config.prompt)


def _its_own(graph: Graph, node: Node) -> tuple[str | None, str]:
    """Return what the stage's --dry-run prints, or None and the reason why it prints nothing."""
    words = command_of(graph, node, ["--dry-run"])
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    words = [sys.executable, *words[words.index("trd_cli") - 1 :]]  # without a launcher
    try:
        ended = subprocess.run(
            words,
            env=offline,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None, f"its --dry-run took more than {_SECONDS} s"
    lines = ended.stderr.strip().splitlines()
    if ended.returncode:
        # Nothing needs mending for a dry run: only the first part of the error is shown.
        said = lines[-1].partition("; expected ")[0] if lines else f"exit code {ended.returncode}"
        return None, f"its --dry-run says: {said}"
    return "\n".join(lines), ""


def _from_templates(graph: Graph, node: Node, done: Collection[str]) -> str:
    source = node.source or graph.recipe.sources[0]
    problem = _first_question(node) if node.stage == "eval" else _first_problem(graph, done, source)

    def prompt_of(config: Config) -> str:
        return _filled(template_for(config, graph.recipe.setting, problem.task), problem)

    if not isinstance(node.config, DistillConfig):
        return prompt_of(node.config)
    made = (graph[name] for name in graph.needed_by([node.name]))
    before = {each.stage: each.config for each in made if each.source == source}
    teachers = before["refine"] if node.config.takes_stored_prompt() else node.config
    return f"student reads:\n{prompt_of(before['sample'])}\n\nteacher reads:\n{prompt_of(teachers)}"


def _filled(template: Template, problem: Problem) -> str:
    values = values_of(problem, _ATTEMPT)
    messages = template.render({name: text or f"⟨no {name.replace('_', ' ')}⟩" for name, text in values.items()})
    return "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in messages)


def _first_question(node: Node) -> Problem:
    """Return a stand-in for the first question of the first benchmark, which is not read."""
    from trd_cli.datasets.benchmarks import split_benchmarks, task_of

    if not node.config.bench:
        return _first_episode(node.config.env[0])
    first, *_ = split_benchmarks(node.config.bench)
    return Problem("", "", task_of(first) or "math", f"⟨the first question of {first}⟩")


def _first_episode(env: str) -> Problem:
    """Return a stand-in for the first episode of an environment, which is not played."""
    name = Spec.parse(env).name
    return Problem("", name, EPISODE, f"⟨what {name} shows first⟩", None, "⟨the oracle's commands⟩")


def _first_problem(graph: Graph, done: Collection[str], source: Source) -> Problem:
    """Return the first problem of the recipe's set, from its file or made in memory, or a stand-in."""
    from trd_cli.trajectories.problem_sets import read_problems

    if source == "episodes":
        return _first_episode(graph.recipe.episodes.env)
    (kind, value), *_ = graph.recipe.problems.items()
    if kind == "file":
        return read_problems(local_path(value))[0]
    if "problems" in done:
        return read_problems(graph.path(graph["problems"]) / PROBLEMS_FILE)[0]
    if kind == "make":
        from trd_cli.datasets.make import drawn

        return next(drawn(MakeConfig.parse({**value, "out": "-"})))
    from trd_cli.datasets.importing import import_problems
    from trd_cli.datasets.presets import PRESETS

    options = ImportConfig.parse({**value, "out": "-"})
    if Path(options.file).is_file():
        return import_problems(options).problems[0]
    task = options.task or (PRESETS[options.preset].task if options.preset else "math")
    return Problem("", "", task, "⟨the problem⟩", "⟨the reference answer⟩", "⟨the reference solution⟩")
