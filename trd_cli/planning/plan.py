"""trd plan: find what a recipe will need and what is wrong with it, before GPU hours are spent. Loads no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from trd_cli.atomic import make_directory, write_text
from trd_cli.config.commands import PlanConfig
from trd_cli.datasets.benchmarks import Benchmark
from trd_cli.errors import InputError, UserError, counted
from trd_cli.planning.chains import chains
from trd_cli.planning.findings import Finding, grouped, of_exception, ok
from trd_cli.planning.hours import check_cost, check_devices
from trd_cli.planning.lengths import check_evaluations, check_lengths
from trd_cli.planning.memory import UNKNOWN
from trd_cli.planning.needs import check_disk, check_memory, work_of
from trd_cli.planning.pair import Planned
from trd_cli.planning.problems import check_episodes, check_overlap, check_problems, load_benchmarks, load_problems
from trd_cli.planning.refusals import check_arms, check_stages, read_models
from trd_cli.progress import Progress
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.nodes import Graph
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.rounds import problems_a_round, steps_a_round, total_steps
from trd_cli.records import Problem
from trd_cli.trajectories.stage_dir import DEFAULT_ROOT

FORMAT = "trd-plan-1"


def run(config: PlanConfig, progress: Progress) -> list[Finding]:
    """Return all findings in the order in which they were made, and write them to `--out` as JSON where asked.

    A fault of the recipe is a finding too. Raises InputError where `--out` cannot be written.
    """
    findings = list(_findings(config, progress))
    if config.out is not None:
        make_directory(Path(config.out).parent)
        value = {"format": FORMAT, "recipe": config.recipe, "findings": [f.record() for f in findings]}
        write_text(Path(config.out), json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    return findings


def check(config: PlanConfig, findings: list[Finding]) -> None:
    """Raise InputError where one of the findings is an error."""
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise InputError(f"{config.recipe} has {counted(errors, 'error')}", "none", "see the lines above")


def _findings(config: PlanConfig, progress: Progress) -> Iterator[Finding]:
    try:
        recipe = load_recipe(Path(config.recipe))
        directory = Path(config.directory) if config.directory else DEFAULT_ROOT / recipe.name
        graph = build_graph(recipe, directory)
    except UserError as raised:
        yield of_exception("error", "recipe", raised)
        return
    arms = ", ".join(recipe.arms)
    size = f"{counted(recipe.rounds, 'round')}, arms {arms}; {counted(len(graph.nodes), 'stage')}"
    yield ok("recipe", f"{recipe.name}: {recipe.setting}, {size}")
    yield from check_rounds(recipe)
    yield from _Plan(config, graph, progress).findings()


def check_rounds(recipe: Recipe) -> list[Finding]:
    """Tell the steps of each arm's rounds, and if all rounds are one training."""
    if recipe.rounds == 1 and recipe.steps_per_round is None:
        return []
    found = []
    for arm in recipe.arms:
        steps = steps_a_round(recipe, arm)
        slices = {source: problems_a_round(recipe, arm, source) for source in recipe.sources}
        if steps is None:
            continue
        bound = "" if recipe.steps_per_round else "at most "
        taken = [counted(size, source.removesuffix("s"), ",") for source, size in slices.items() if size]
        rows = f" ({', '.join(taken)})" if taken else ""
        whole = f"one training of {bound}{counted(total_steps(recipe, arm), 'step', ',')}"
        told = whole if recipe.is_continued or recipe.rounds == 1 else "each a training of its own"
        what = f"{counted(recipe.rounds, 'round')} of {bound}{counted(steps, 'step', ',')}{rows}, {told}"
        found.append(("arm", arm, ok("recipe", what)))
    return grouped(found)


class _Plan:
    """Plan one recipe. A part that cannot be read leaves out the checks that need it."""

    def __init__(self, config: PlanConfig, graph: Graph, progress: Progress) -> None:
        self._config, self._graph, self._recipe, self._progress = config, graph, graph.recipe, progress

    def findings(self) -> Iterator[Finding]:
        self._progress.note("reading the models' configurations and tokenizers")
        student, teacher, found = read_models(self._recipe)
        yield from found
        self._progress.note("reading problems and benchmarks")
        problems, found = load_problems(self._recipe, self._graph)
        yield from found
        benchmarks, found = load_benchmarks(self._graph)
        yield from found
        if problems:
            yield from check_problems(self._recipe, self._graph, problems)
        yield from check_episodes(self._recipe)
        if problems and benchmarks:
            yield from check_overlap(problems, benchmarks)
        if student is not None and teacher is not None:
            yield from check_stages(self._graph, self._graph.nodes, student, teacher, self._is_sharded(), here=False)
            yield from check_devices(self._graph)
            yield from check_arms(self._graph, student, teacher)
            yield from check_evaluations(self._graph, benchmarks, student)
            yield from self._rows(problems, benchmarks, student, teacher)

    def _is_sharded(self) -> bool:
        from trd_cli.training.sharding import is_asked_for

        return self._config.fsdp > 1 or is_asked_for()

    def _rows(
        self, problems: list[Problem], benchmarks: list[Benchmark], student: Planned, teacher: Planned
    ) -> Iterator[Finding]:
        """Yield what follows from the lengths of rows. Without problems that is memory for the longest possible."""
        self._progress.note("rendering prompts")
        try:
            found = chains(self._recipe, self._graph, problems or [UNKNOWN], student, teacher)
        except UserError as raised:
            yield of_exception("error", "recipe", raised)
            return
        todo = work_of(self._graph, found, benchmarks)
        if problems:
            yield from check_lengths(found, student, teacher)
        yield from check_memory(self._config, todo, student, teacher)
        if problems:
            yield from check_disk(self._graph, todo, student)
            yield from check_cost(self._config, self._graph, todo)
