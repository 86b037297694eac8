"""The problems of a recipe: their number, the references and answers that stages read, overlap with benchmarks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from trd_cli.config.base import errors_allowed
from trd_cli.config.commands import EvalConfig, ImportConfig, MakeConfig, OverlapConfig
from trd_cli.config.generating import RefineConfig
from trd_cli.config.grading import VerifyConfig
from trd_cli.config.training import DistillConfig
from trd_cli.datasets.benchmarks import Benchmark, load_benchmark, split_benchmarks
from trd_cli.datasets.importing import check_answers, import_problems
from trd_cli.datasets.make import drawn
from trd_cli.datasets.ngrams import SIZES, QuestionIndex
from trd_cli.errors import InputError, PromptError, counted
from trd_cli.graders.base import graded_by
from trd_cli.graders.options import GraderOptions, no_grader
from trd_cli.hub.fetching import local_path
from trd_cli.planning.findings import Finding, error, of_exception, ok, out_of_reach, per_cent, warning
from trd_cli.prompting.rendering import templates_for
from trd_cli.prompting.templates import Template
from trd_cli.recipes.nodes import Graph
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.rounds import problems_a_round, sampling_of
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.records import Problem, Task
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.selection import SUBSETS
from trd_cli.worlds.registry import version_of
from trd_cli.worlds.spec import Spec


def load_problems(recipe: Recipe, graph: Graph) -> tuple[list[Problem], list[Finding]]:
    """Return the whole problem set: that of the run directory, else as the recipe makes it (a Hub set is fetched).

    The list is empty for a set that cannot be read: an error, or a warning where the Hub did not give it. A recipe of
    episodes alone has none.
    """
    if recipe.problems is None:
        return [], []
    made = next((graph.path(node) / PROBLEMS_FILE for node in graph.nodes if node.stage == "problems"), None)
    (kind, value), *_ = recipe.problems.items()
    try:
        if made is not None and made.is_file():
            problems = read_problems(made)
        elif kind == "file":
            problems = read_problems(local_path(value))
        elif kind == "make":
            config = MakeConfig.parse({**value, "out": PROBLEMS_FILE})
            problems = list(drawn(config))
        else:
            config = ImportConfig.parse({**value, "out": PROBLEMS_FILE})
            imported = import_problems(config)
            check_answers(imported, config)
            problems = imported.problems
    except InputError as raised:
        level = "warning" if out_of_reach(raised) else "error"
        return [], [of_exception(level, "problems", raised, "the problems could not be read: ")]
    return problems, []


def check_episodes(recipe: Recipe) -> Iterator[Finding]:
    """Tell the number of episodes; how long they will be is not known."""
    if recipe.episodes is None:
        return
    spec = Spec.parse(recipe.episodes.env)
    try:
        version_of(spec.name)
    except InputError as raised:
        yield of_exception("warning", "problems", raised, "the episodes cannot be played on this machine: ")
    sampling = sampling_of(recipe, source="episodes")
    a_round = max((problems_a_round(recipe, arm, "episodes") or 0 for arm in recipe.arms), default=0)
    told = f", {a_round} of them a round" if a_round else ""
    turns = f"at most {counted(sampling.max_turns, 'turn')} of {counted(sampling.max_tokens, 'token')}"
    beside = "; lengths, hours and disk are those of the problems alone" if recipe.problems is not None else ""
    yield ok("problems", f"{counted(spec.n, 'episode', ',')} of {spec.name}{told}, {turns}{beside}")


def check_problems(recipe: Recipe, graph: Graph, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Check the number of problems against the rounds, and that rows have what the stages read."""
    tasks = sorted({problem.task for problem in problems})
    a_round = max((problems_a_round(recipe, arm, "problems") or 0 for arm in recipe.arms), default=0)
    needed = recipe.rounds * a_round
    if needed > len(problems):
        by_steps = recipe.steps_per_round is not None
        lower = "steps_per_round" if by_steps else f"problems_per_round to {len(problems) // recipe.rounds}"
        yield error(
            "problems",
            f"{counted(recipe.rounds, 'round')} of {counted(a_round, 'problem')} need {needed}, and there are {len(problems)}",
            f"lower {lower}, or take more problems",
        )
    else:
        told = f", {a_round} of them a round" if a_round else ""
        again = ", all in each round" if recipe.rounds > 1 and not a_round else ""
        yield ok("problems", f"{counted(len(problems), 'problem', ',')} ({', '.join(tasks)}){told}{again}")
    if recipe.setting == "opsd":
        yield from _references(graph, problems, tasks)
    yield from _answers(graph, problems)
    yield from _graders(graph, Counter(problem.task for problem in problems))


def _references(graph: Graph, problems: Sequence[Problem], tasks: Sequence[Task]) -> Iterator[Finding]:
    """Check what the teacher of opsd reads, in refining and in contexts that are rendered for training."""
    for needed, (templates, max_errors) in _shown(graph, tasks).items():
        missing = sum(templates[problem.task].lacks(problem) is not None for problem in problems)
        what = f"{missing:,} of {len(problems):,} problems have no {needed}, which opsd shows the teacher"
        change = 'take a set that has it (trd data import --map), filter it, or use setting = "opd"'
        if not missing:
            yield ok("problems", f"every problem has a {needed}")
        elif missing == len(problems) or missing > errors_allowed(max_errors, len(problems)):
            yield error("problems", what, change)
        else:
            yield warning("problems", f"{what}: their rows end as errors", change)


def _shown(graph: Graph, tasks: Sequence[Task]) -> dict[str, tuple[Mapping[Task, Template], float]]:
    """Return what some stage shows of a problem, by its name: the templates, and the least --max-errors of a stage."""
    shown: dict[str, tuple[Mapping[Task, Template], float]] = {}
    for node in graph.nodes:
        config = node.config
        if not isinstance(config, (RefineConfig, DistillConfig)):
            continue
        try:
            templates = templates_for(config, graph.recipe.setting, tasks)
        except PromptError:
            continue  # `_rows` of the plan reports it
        # Training leaves rows without a reference out, however many they are.
        most = config.max_errors if isinstance(config, RefineConfig) else math.inf
        names = dict.fromkeys(" or ".join(template.needed) for template in templates.values() if template.needed)
        if names:
            name = ", ".join(names)
            shown[name] = templates, min(most, shown[name][1] if name in shown else most)
    return shown


def _answers(graph: Graph, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Check that problems can be graded, as arms that filter by verdict need."""
    needs = {problem.task: graded_by(problem.task) for problem in problems}
    ungraded = sum(not getattr(problem, column) for problem in problems if (column := needs[problem.task]))
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


def _graders(graph: Graph, tasks: Mapping[Task, int]) -> Iterator[Finding]:
    """Check that trd verify has a grader for each task."""
    configs = {node.config.grader: node.config for node in graph.nodes if isinstance(node.config, VerifyConfig)}
    for config in configs.values():
        try:
            options = GraderOptions.of(config)
            without = {task: count for task, count in tasks.items() if options.grader(task, None) is None}
            if without:
                yield of_exception("error", "problems", no_grader(without, "problem"))
        except InputError as raised:
            yield of_exception("error", "problems", raised)


def load_benchmarks(graph: Graph) -> tuple[list[Benchmark], list[Finding]]:
    """Return the benchmarks that can be loaded, each once.

    One that the network does not give is a warning, any other failure an error.
    """
    configs = [node.config for node in graph.nodes if isinstance(node.config, EvalConfig)]
    names = dict.fromkeys(name for config in configs for name in split_benchmarks(config.bench or ""))
    loaded: list[Benchmark] = []
    found: list[Finding] = []
    for name in names:
        try:
            loaded.append(load_benchmark(name))
        except InputError as raised:
            level = "warning" if out_of_reach(raised) else "error"
            found.append(of_exception(level, "benchmarks", raised, f"{name} cannot be loaded: "))
    return loaded, found


def check_overlap(problems: Sequence[Problem], benchmarks: Sequence[Benchmark]) -> Iterator[Finding]:
    """Count problems that share a 13-word run with a question, as trd data overlap does. A copy is an error."""
    questions = [problem for each in benchmarks for problem in each.problems]
    index = QuestionIndex(
        [question.problem for question in questions], [each.name for each in benchmarks for _ in each.problems]
    )
    shared = [(p, s) for p in problems if (s := index.shared(p.problem)) is not None]
    common = OverlapConfig.model_fields["common"].default
    boilerplate = index.boilerplate(((p.problem, s) for p, s in shared), common)
    rows: dict[str, set[str]] = {each.name: set() for each in benchmarks}
    equal: dict[str, set[str]] = {each.name: set() for each in benchmarks}
    for problem, what in shared:
        for overlap in index.overlaps(what, boilerplate):
            name = index.benchmarks[overlap.question]
            if overlap.equal:
                equal[name].add(problem.problem_id)
            if overlap.hit[SIZES[1]]:
                rows[name].add(problem.problem_id)
    for each in benchmarks:
        yield _overlap(each, len(problems), len(rows[each.name]), len(equal[each.name]))


def _overlap(benchmark: Benchmark, problems: int, rows: int, equal: int) -> Finding:
    told = f"{benchmark.name}: {counted(len(benchmark.problems), 'question')}"
    if not rows:
        return ok("benchmarks", f"{told}, no training problem overlaps with them")
    change = f"leave them out: trd data overlap TRAIN.parquet {benchmark.name} --drop CLEAN.parquet"
    what = f"{told}, {counted(rows, 'training problem', ',')} ({per_cent(rows / problems)}) overlap with them"
    if equal:
        return error("benchmarks", f"{what}, {equal:,} word by word", change)
    return warning("benchmarks", what, change)
