"""The benchmarks of a recipe: whether they can be loaded, and which training problems overlap with their questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trd_cli.config.commands import EvalConfig, OverlapConfig
from trd_cli.datasets.benchmarks import Benchmark, load_benchmark, split_benchmarks
from trd_cli.datasets.ngrams import SIZES, QuestionIndex
from trd_cli.errors import InputError, counted
from trd_cli.planning.findings import Finding, error, of_exception, ok, out_of_reach, per_cent, warning
from trd_cli.recipes.nodes import Graph
from trd_cli.records import Problem


def load_benchmarks(graph: Graph) -> tuple[list[Benchmark], list[Finding]]:
    """Those that can be loaded, each once.

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
    """Problems that share a 13-word run with a question, as trd data overlap finds them;

    a copy of a question is an error.
    """
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
