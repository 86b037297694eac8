"""trd eval: sample k attempts at every question of some benchmarks, or episode, grade them, and score with intervals.

The samples stay as trajectory shards, so another grader or a smaller k needs no model: see `rescore`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from trd_cli.atomic import make_directory, write_text
from trd_cli.config.commands import EvalConfig
from trd_cli.episodes.contexts import check_turns
from trd_cli.episodes.driver import EpisodeFiller, workers_of
from trd_cli.episodes.sampling import Player
from trd_cli.errors import InputError, ResumeRefused, counted
from trd_cli.evaluation.exams import Exam, exams_of
from trd_cli.evaluation.results import FILE, Classify, build_results, results_text
from trd_cli.evaluation.samples import read_samples, samples_there
from trd_cli.evaluation.tables import results_csv, results_markdown
from trd_cli.generation import Outcome, ShardFiller
from trd_cli.graders.options import GraderOptions
from trd_cli.graders.pool import GraderPool
from trd_cli.graders.sandbox import described
from trd_cli.graders.verdicts import ShardGrader
from trd_cli.locks import awaited
from trd_cli.planned import Asker, Backend, preview
from trd_cli.progress import Progress, WithoutResults
from trd_cli.prompting.rendering import Rendering, templates_for
from trd_cli.records import EPISODE, Trajectory, content_hash
from trd_cli.trajectories.parts import verdicts_held
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.shards import list_shards, read_table
from trd_cli.trajectories.stage_dir import StageDir
from trd_cli.trajectories.state import state_of
from trd_cli.worlds.workers import Workers


def run(config: EvalConfig, backend: Backend, progress: Progress) -> dict[str, Any] | None:
    """Generate and grade what is missing, write the results, and return them.

    `results.json` (its layout: `trd_cli.evaluation.results`), `results.md` and `results.csv` are written anew each
    time. None is returned for a dry run, and for a part of a job array before all parts are complete.
    """
    with workers_of(config) if config.env else nullcontext() as workers:
        return _evaluate(config, exams_of(config, workers, progress.note), backend, workers, progress)


def _evaluate(
    config: EvalConfig, exams: Mapping[str, Exam], backend: Backend, workers: Workers | None, progress: Progress
) -> dict[str, Any] | None:
    templates = templates_for(config, tasks=(exam.benchmark.task for exam in exams.values()))
    rendering = Rendering().with_options(config)
    if unread := rendering.unread(backend.tokenizer):
        progress.note(unread)
    if workers is not None:
        check_turns(backend.tokenizer, rendering)
    total = config.samples * sum(exam.count(config.part) for exam in exams.values())
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
    if stage_dir.path.is_dir():
        for exam in exams.values():
            exam.recall(stage_dir.shards(), config.retry_errors)
    askers = {name: exam.asker(templates, rendering, backend) for name, exam in exams.items()}
    for name, exam in exams.items():
        askers[name].check_fit(exam.problems)
    planned = _planned(config, exams, askers)
    for line in _remarks(config, exams, backend):
        progress.note(line)
    if config.dry_run:
        first = next(planned, None)
        turns = config.max_turns if first and first.task == EPISODE else None
        progress.note(preview(first, total, stage_dir.path, turns=turns) if first else "no question is in this part")
        return None
    with stage_dir:
        filling = (stage_dir, backend, config, WithoutResults(progress), total)
        play = Player(backend, rendering, config.max_turns).play
        filler = ShardFiller(*filling) if workers is None else _Filler(*filling, workers, play)
        _generate(config, stage_dir, filler, planned, total)
        if summary := filler.summary():
            progress.note(summary)
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


def _remarks(config: EvalConfig, exams: Mapping[str, Exam], backend: Backend) -> list[str]:
    """Return the facts that matter before the first sample."""
    lines = [
        f"{name}: {line}" for name, exam in exams.items() for line in exam.remarks(config.samples, backend.max_length)
    ]
    if any(exam.benchmark.task == "code" for exam in exams.values()):
        # Resolved now: a level that this machine lacks must not fail after hours of sampling.
        lines.append(f"programs will run in the sandbox: {described(config.sandbox)}")
    return lines


def _planned(config: EvalConfig, exams: Mapping[str, Exam], askers: Mapping[str, Asker]) -> Iterator[Trajectory]:
    """Yield the planned rows, those of questions before those of episodes."""
    for name, exam in exams.items():
        for problem in exam.of_part(config.part):
            yield from askers[name].rows(problem, askers[name].prompt(problem), config.samples, exam.sampling)


class _Filler(EpisodeFiller):
    """Fill a directory with episodes, and with the attempts at questions that are planned before them."""

    def _make(self, rows: Iterable[Trajectory]) -> None:
        for is_episode, group in groupby(rows, lambda row: row.task == EPISODE):
            make = super()._make if is_episode else partial(ShardFiller._make, self)
            make(group)


def _generate(
    config: EvalConfig, stage_dir: StageDir, filling: ShardFiller, planned: Iterable[Trajectory], total: int
) -> None:
    """Fill the directory with `total` rows; the engine starts once for all benchmarks."""
    with filling as filler:
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
        progress.note(f"{counted(changed, 'verdict')} changed")
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
