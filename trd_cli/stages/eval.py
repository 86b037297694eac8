"""trd eval: sample k attempts at every question of some benchmarks, grade them, and score with intervals.

The samples stay as trajectory shards, so another grader or a smaller k needs no model: see `rescore`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from trd_cli.atomic import make_directory, write_text
from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import SamplingOptions
from trd_cli.datasets.benchmarks import Benchmark, load_benchmark, split_benchmarks
from trd_cli.errors import InputError, ResumeRefused, counted
from trd_cli.evaluation.results import FILE, Classify, build_results, results_text
from trd_cli.evaluation.samples import read_samples, samples_there
from trd_cli.evaluation.tables import results_csv, results_markdown, sampling_text
from trd_cli.generation import Outcome, ShardFiller
from trd_cli.graders.base import graded_by
from trd_cli.graders.options import GraderOptions, no_grader
from trd_cli.graders.pool import GraderPool
from trd_cli.graders.sandbox import described
from trd_cli.graders.verdicts import ShardGrader
from trd_cli.locks import awaited
from trd_cli.planned import Asker, Backend, preview
from trd_cli.progress import Progress, WithoutResults
from trd_cli.prompting.rendering import Rendering, templates_for
from trd_cli.records import Problem, Trajectory, content_hash
from trd_cli.trajectories.parts import verdicts_held
from trd_cli.trajectories.run_json import About, Asked, read_run_json
from trd_cli.trajectories.shards import list_shards, read_table
from trd_cli.trajectories.stage_dir import StageDir
from trd_cli.trajectories.state import state_of

_OF_THE_BENCHMARK = ("temperature", "top_p", "top_k", "max_tokens")


@dataclass(frozen=True)
class _Exam:
    """Hold one benchmark as this command evaluates it: the questions it takes, and how it samples."""

    benchmark: Benchmark
    problems: Sequence[Problem]
    sampling: SamplingOptions

    def asked(self) -> Asked:
        """Return what scoring needs later."""
        benchmark = self.benchmark
        return Asked(
            *(benchmark.task, benchmark.source, benchmark.revision, benchmark.sha256, benchmark.known),
            sampling=self.sampling.model_dump(mode="json"),
            limit=len(self.problems) if len(self.problems) < len(benchmark.problems) else None,
            questions=[problem.problem_id for problem in self.problems],
        )


def run(config: EvalConfig, backend: Backend, progress: Progress) -> dict[str, Any] | None:
    """Generate and grade what is missing, write the results, and return them.

    `results.json` (its layout: `trd_cli.evaluation.results`), `results.md` and `results.csv` are written anew each
    time. None is returned for a dry run, and for a part of a job array before all parts are complete.
    """
    exams = _exams(config)
    templates = templates_for(config, tasks=(p.task for exam in exams.values() for p in exam.problems))
    rendering = Rendering().with_options(config)
    if unread := rendering.unread(backend.tokenizer):
        progress.note(unread)
    asker = Asker(templates, rendering, backend)
    for exam in exams.values():
        asker.check_fit(exam.problems)
    planned = (
        row
        for exam in exams.values()
        for problem in exam.problems
        if config.owns(problem.problem_id)
        for row in asker.rows(problem, asker.prompt(problem), config.samples, exam.sampling)
    )
    own = sum(config.owns(problem.problem_id) for exam in exams.values() for problem in exam.problems)
    total = config.samples * own
    asked = {name: exam.asked() for name, exam in exams.items()}
    identity = config.identity() | {
        "questions": {name: content_hash(each.questions, 16) for name, each in asked.items()},
        "sha256": {name: each.sha256 for name, each in asked.items()},
        "sampling": {name: each.sampling for name, each in asked.items()},
        "prompt": {task: template.sha256 for task, template in templates.items()},
        **rendering.identity(),
        **backend.identity(),
    }
    stage_dir = StageDir(
        *(config.out, "eval", identity, config.record()),
        about=backend.about(benchmarks=asked),
        part=config.part,
        asked=config.deciding(),
    )
    for line in _remarks(config, exams, backend):
        progress.note(line)
    if config.dry_run:
        first = next(planned, None)
        progress.note(preview(first, total, stage_dir.path) if first else "no question is in this part")
        return None
    with stage_dir:
        _generate(config, backend, stage_dir, planned, total, progress)
        counts = _grade(config, stage_dir, "stale", progress)
        if config.part is None:
            return _score(config, stage_dir, config.samples, stage_dir.path, progress)
        # One task at a time: the last of the array finds all parts complete.
        with awaited(stage_dir.path / ".score", math.inf):
            if _is_complete(stage_dir.path):
                return _score(config, stage_dir, config.samples, stage_dir.path, progress)
    progress.note(f"{config.part} is done; the score comes when all parts are done")
    Outcome(rows=counts.total(), errors=counts["error"] + counts["timeout"]).check_errors(config.max_errors)
    return None


def _is_complete(directory: Path) -> bool:
    """Return whether all parts have all their rows, with verdicts."""
    try:
        state = state_of(directory)
        return state.is_finished and state.without("verdict") == 0
    except InputError:  # another task is at its shards, or will find the damaged one
        return False


def rescore(config: EvalConfig, progress: Progress) -> dict[str, Any] | None:
    """Score the samples of an earlier evaluation again, without a model; returns the results (None for a dry run).

    A row is graded when it has no verdict, one of another grader, or error or timeout in spite of a response. The
    questions are those that run.json names: the benchmark is not read.
    """
    directory = Path(config.rescore)
    record = read_run_json(directory)
    if record is None or record["command"] != "eval":
        raise InputError(f"{directory} holds no evaluation", "a directory of trd eval", "check --rescore")
    about = About.of(record)
    if about.benchmarks is None:
        raise InputError(
            f"{directory} does not say which questions it has",
            "a directory of this version of trd eval",
            "evaluate again into another --out",
        )
    stage_dir = StageDir(
        *(str(directory), "eval", record["identity"], record["config"], record["inputs"], about),
        parts=record.get("parts"),
    )
    k, there = _how_many(config, stage_dir)
    if config.dry_run:
        progress.note(f"would score the first {k} of {counted(there, 'sample')} of every question in {directory}")
        return None
    target = Path(config.out) if config.out else directory
    with stage_dir:
        _grade(config, stage_dir, "unsettled", progress)
        return _score(config, stage_dir, k, target, progress)


def check_errors(results: dict[str, Any], allowed: float) -> None:
    """Raise TooManyRowErrors when more samples than `allowed` ended without being graded correct or incorrect."""
    counts = Counter[str]()
    for bench in results["benchmarks"].values():
        counts.update(bench["verdicts"])
    Outcome(rows=counts.total(), errors=counts["error"] + counts["timeout"]).check_errors(allowed)


def _exams(config: EvalConfig) -> dict[str, _Exam]:
    """Return the benchmarks by their names, which are the sources of their rows: two benchmarks never share a row."""
    benchmarks = [load_benchmark(name) for name in split_benchmarks(config.bench)]
    names = [benchmark.name for benchmark in benchmarks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"--bench has {twice} twice", "each benchmark once", "leave one out")
    _check_gradable(config, benchmarks)
    return {b.name: _Exam(b, b.problems[: config.limit], _sampling(config, b)) for b in benchmarks}


def _check_gradable(config: EvalConfig, benchmarks: Sequence[Benchmark]) -> None:
    """Raise InputError for questions that no grader could grade, before the first sample."""
    options = GraderOptions.of(config)
    without = Counter(p.task for b in benchmarks for p in b.problems if options.grader(p.task, p.tests) is None)
    if without:
        raise no_grader(without, "question")
    for benchmark in benchmarks:
        column = None if benchmark.task in options.own else graded_by(benchmark.task)
        if column and all(getattr(problem, column) is None for problem in benchmark.problems):
            raise InputError(
                f"no question of {benchmark.name} has {column}",
                f"a column {column}",
                f"rename its column, or make a problem set with trd data import --map {column}=COLUMN",
            )
    if options.own:
        with GraderPool(options):
            pass  # a function that cannot be imported must not fail after hours of sampling


def _sampling(config: EvalConfig, benchmark: Benchmark) -> SamplingOptions:
    """Return the sampling options: as given, else the benchmark's own."""
    given = {name: getattr(config, name) for name in _OF_THE_BENCHMARK}
    chosen = {name: getattr(benchmark, name) if value is None else value for name, value in given.items()}
    return SamplingOptions(**chosen, seed=config.seed)


def _remarks(config: EvalConfig, exams: dict[str, _Exam], backend: Backend) -> list[str]:
    """Return the facts that matter before the first sample."""
    lines: list[str] = []
    for name, exam in exams.items():
        sampling = sampling_text(exam.sampling.model_dump())
        lines.append(f"{name}: {counted(len(exam.problems), 'question')} × {config.samples}, {sampling}")
        if exam.sampling.max_tokens > backend.max_length:
            lines.append(f"{name}: prompt and response end where the model's {backend.max_length} tokens do")
        if exam.benchmark.known is False:
            lines.append(f"{name}: other questions than trd knows by this name (SHA-256 {exam.benchmark.sha256[:12]})")
        lines += [f"{name}: {note}" for note in exam.benchmark.notes]
    if any(exam.benchmark.task == "code" for exam in exams.values()):
        # Resolved now: a level that this machine lacks must not fail after hours of sampling.
        lines.append(f"programs will run in the sandbox: {described(config.sandbox)}")
    return lines


def _generate(
    config: EvalConfig,
    backend: Backend,
    stage_dir: StageDir,
    planned: Iterable[Trajectory],
    total: int,
    progress: Progress,
) -> None:
    """Fill the directory with `total` rows; the engine starts once for all benchmarks."""
    with ShardFiller(stage_dir, backend, config, WithoutResults(progress), total) as filler:
        indices = (read_table(path, ["sample_index"])["sample_index"] for path in stage_dir.shards())
        most = 1 + max((pc.max(some).as_py() for some in indices if len(some)), default=-1)
        if most > config.samples:
            raise ResumeRefused(
                f"{stage_dir.path} has {most} samples a question, --k {config.samples} asks for fewer",
                f"--k {most} or more",
                f"score the first ones with trd eval --rescore {stage_dir.path} --k {config.samples}, or give another --out",
            )
        stage_dir.expect(total)
        filler.fill(planned)
        filler.end_of_plan()


def _how_many(config: EvalConfig, stage_dir: StageDir) -> tuple[int, int]:
    """Return the k to score again with and the samples of every question; raises InputError for a k beyond them."""
    state = stage_dir.state()
    asked = state.about.benchmarks
    there = samples_there(asked, stage_dir.shards())
    questions = sum(len(each.questions) for each in asked.values())
    k = config.k or (state.expected // questions if state.expected else max(1, there))
    if k > there:
        raise InputError(
            f"{stage_dir.path} has {there} samples of every question",
            f"{k}",
            f"generate the missing ones: run its trd eval again with --k {k} and --out {stage_dir.path}; or give a smaller --k",
        )
    return k, there


def _grade(
    config: EvalConfig, stage_dir: StageDir, regrade: Literal["stale", "unsettled"], progress: Progress
) -> Counter[str]:
    """Write verdicts into the shards, and return the verdicts of all their rows."""
    options, shards = GraderOptions.of(config), stage_dir.shards()
    # The samples are this command's own, so verdicts of another grader are replaced.
    with (
        verdicts_held(stage_dir.path, stage_dir.part),
        ShardGrader(options, WithoutResults(progress), regrade) as grader,
    ):
        progress.start("grade", sum(read_table(shard, ["verdict"]).num_rows for shard in shards))
        for shard in shards:
            grader.fill(shard, shard)
        grader.check_all_graded()
        progress.end()
    changed = sum(count for (old, new), count in grader.changes.items() if old != new)
    if changed:
        progress.note(f"{changed} verdicts changed")
    return grader.counts


def _score(config: EvalConfig, stage_dir: StageDir, k: int, target: Path, progress: Progress) -> dict[str, Any]:
    """Write the results of all parts into the directory `target`, and return them."""
    options, shards = GraderOptions.of(config), list_shards(stage_dir.path)
    results = build_results(stage_dir.state().about.benchmarks, read_samples(shards), k, _classify(options, progress))
    make_directory(target)
    if (target / FILE).is_file() and config.rescore:
        progress.note(f"replacing the results in {target}")
    for name, text in (
        ("results.md", results_markdown(results)),
        ("results.csv", results_csv(results)),
        (FILE, results_text(results)),
    ):
        write_text(target / name, text)
    progress.result(target / FILE)
    return results


def _classify(options: GraderOptions, progress: Progress) -> Classify:
    """Return a function that compares wrong answers in the graders' workers, which start with the first comparison."""

    def classify(groups: Iterable[Sequence[str]]) -> Iterator[list[int]]:
        progress.start("compare wrong answers", None)
        with GraderPool(options) as pool:
            for classes in pool.classes(groups):
                progress.advance(1)
                yield classes
        progress.end()

    return classify
