"""The problems of a recipe: enough of them, with the references and answers that its stages read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from trd_cli.config.base import errors_allowed
from trd_cli.config.commands import ImportConfig, MakeConfig
from trd_cli.config.generating import RefineConfig
from trd_cli.config.training import DistillConfig
from trd_cli.datasets.arithmetic import make_arithmetic
from trd_cli.datasets.importing import check_answers, import_problems
from trd_cli.errors import InputError, PromptError, counted
from trd_cli.generation import templates_for
from trd_cli.planning.findings import Finding, error, of_exception, ok, out_of_reach, per_cent, warning
from trd_cli.recipes.nodes import Graph
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.records import Problem
from trd_cli.trajectories.selection import SUBSETS
from trd_cli.trajectories.shards import read_problems


def load_problems(recipe: Recipe, graph: Graph) -> tuple[list[Problem], list[Finding]]:
    """The whole problem set: that of the run directory where it is there, else as the recipe makes it (a Hub set is
    fetched).

    A set that the Hub does not give is a warning, anything else that cannot be read an error; the list is then empty.
    """
    made = next((graph.path(node) / PROBLEMS_FILE for node in graph.nodes if node.stage == "problems"), None)
    (kind, value), *_ = recipe.problems.items()
    try:
        if made is not None and made.is_file():
            problems = read_problems(made)
        elif kind == "file":
            problems = read_problems(Path(value))
        elif kind == "make":
            config = MakeConfig.parse({**value, "out": PROBLEMS_FILE})
            problems = make_arithmetic(config.n, config.seed, config.level)
        else:
            config = ImportConfig.parse({**value, "out": PROBLEMS_FILE})
            imported = import_problems(config)
            check_answers(imported, config)
            problems = imported.problems
    except InputError as raised:
        level = "warning" if out_of_reach(raised) else "error"
        return [], [of_exception(level, "problems", raised, "the problems could not be read: ")]
    return problems, []


def check_problems(recipe: Recipe, graph: Graph, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Their number against the rounds, and what rows lack that a stage reads."""
    tasks = sorted({problem.task for problem in problems})
    a_round = recipe.problems_per_round
    needed = recipe.rounds * (a_round or 0)
    if needed > len(problems):
        yield error(
            "problems",
            f"{counted(recipe.rounds, 'round')} of {counted(a_round, 'problem')} need {needed}, and there are {len(problems)}",
            f"lower problems_per_round to {len(problems) // recipe.rounds}, or take more problems",
        )
    else:
        told = f", {a_round} of them a round" if a_round else ""
        again = ", all in each round" if recipe.rounds > 1 and not a_round else ""
        yield ok("problems", f"{counted(len(problems), 'problem', ',')} ({', '.join(tasks)}){told}{again}")
    if recipe.setting == "opsd":
        yield from _references(graph, problems)
    yield from _answers(graph, problems)


def _references(graph: Graph, problems: Sequence[Problem]) -> Iterator[Finding]:
    """What the teacher of opsd is shown, in refining and in contexts that are rendered for training."""
    for field, max_errors in _shown(graph).items():
        missing = sum(not getattr(problem, field) for problem in problems)
        what = f"{missing:,} of {len(problems):,} problems have no {field}, which opsd shows the teacher"
        change = 'take a set that has it (trd data import --map), filter it, or use setting = "opd"'
        if not missing:
            yield ok("problems", f"every problem has a {field}")
        elif missing == len(problems) or missing > errors_allowed(max_errors, len(problems)):
            yield error("problems", what, change)
        else:
            yield warning("problems", f"{what}: their rows end as errors", change)


def _shown(graph: Graph) -> dict[str, float]:
    """Fields of a problem that some stage needs, and how many rows may lack them before it fails (see --max-errors)."""
    shown: dict[str, float] = {}
    for node in graph.nodes:
        config = node.config
        if isinstance(config, RefineConfig):
            try:
                templates = templates_for("refine-opsd", ("math", "code"), config.prompt).values()
            except PromptError:
                continue  # told with the lengths
            names = [
                name
                for template in templates
                for name in ("reference_solution", "reference_answer")
                if name in template.placeholders
            ]
            if names:
                field = "reference_solution" if "reference_solution" in names else names[0]
                shown[field] = min(shown.get(field, config.max_errors), config.max_errors)
        elif isinstance(config, DistillConfig) and config.teacher_context == "vanilla":
            # Training leaves rows without one out, however many.
            shown.setdefault("reference_solution", math.inf)
    return shown


def _answers(graph: Graph, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Verdicts need an answer or tests; an arm that filters by verdict needs verdicts."""
    ungraded = sum(not (problem.reference_answer if problem.task == "math" else problem.tests) for problem in problems)
    if not ungraded:
        return
    reading = sorted(
        {
            f"{node.arm}"
            for node in graph.nodes
            if isinstance(node.config, DistillConfig)
            and ("verdict" in SUBSETS[node.config.subset] or "verdict" in (node.config.where or ""))
        }
    )
    what = f"{ungraded:,} of {len(problems):,} problems ({per_cent(ungraded / len(problems))}) have nothing to grade by"
    change = "take a set with reference_answer (math) or tests (code)"
    if reading and ungraded == len(problems):
        yield error("problems", f"{what}, and the subsets of {', '.join(reading)} are by verdict", change)
    else:
        told = f": they are in no subset of {', '.join(reading)}" if reading else ""
        yield warning("problems", what + told, change)
