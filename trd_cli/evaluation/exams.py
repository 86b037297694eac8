"""The exams of an evaluation: benchmarks of questions, and episodes in environments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import SamplingOptions
from trd_cli.datasets.benchmarks import Benchmark, load_benchmark, split_benchmarks
from trd_cli.datasets.known_sets import SAMPLING
from trd_cli.episodes.sampling import EpisodeAsker, EpisodeSet
from trd_cli.errors import InputError, counted
from trd_cli.evaluation.tables import sampling_text
from trd_cli.graders.base import graded_by
from trd_cli.graders.options import GraderOptions, no_grader
from trd_cli.graders.pool import GraderPool
from trd_cli.planned import Asker, Backend
from trd_cli.prompting.rendering import Rendering
from trd_cli.prompting.templates import Template
from trd_cli.records import EPISODE, Part, Problem, Task, content_hash
from trd_cli.trajectories.run_json import Asked
from trd_cli.worlds.spec import Spec
from trd_cli.worlds.workers import Workers

_OF_THE_BENCHMARK = ("temperature", "top_p", "top_k", "max_tokens")


@dataclass(frozen=True)
class Exam:
    """Hold one benchmark as a command evaluates it: the questions it takes, and how it samples.

    `whole` is how many questions the benchmark has, also those that are not taken.
    """

    benchmark: Benchmark
    problems: Sequence[Problem] | EpisodeSet
    whole: int
    sampling: SamplingOptions

    @property
    def name(self) -> str:
        return self.benchmark.name

    def asked(self) -> Asked:
        """Return what scoring needs later."""
        benchmark, questions = self.benchmark, self.ids()
        return Asked(
            *(benchmark.task, benchmark.source, benchmark.revision, benchmark.sha256, benchmark.known),
            sampling=self.sampling.model_dump(mode="json"),
            limit=len(questions) if len(questions) < self.whole else None,
            questions=questions,
            group=benchmark.group,
        )

    def ids(self) -> list[str]:
        """Return the ids of the questions in their order."""
        return [problem.problem_id for problem in self.problems]

    def of_part(self, part: Part | None) -> Iterator[Problem]:
        """Yield the questions that belong to a part of a job array, or all for None."""
        return (problem for problem in self.problems if part is None or part.owns(problem.problem_id))

    def count(self, part: Part | None) -> int:
        """Return how many questions `of_part` yields."""
        return sum(part is None or part.owns(name) for name in self.ids())

    def recall(self, shards: Iterable[Path], retry_errors: bool) -> None:
        """Take what is costly to make of the questions from the rows that are there."""

    def asker(self, templates: Mapping[Task, Template], rendering: Rendering, backend: Backend) -> Asker:
        """Return what plans the rows of this exam."""
        return Asker(templates, rendering, backend)

    def remarks(self, samples: int, max_length: int) -> Iterator[str]:
        """Yield the facts that matter before the first sample of a model that takes `max_length` tokens."""
        sampling = sampling_text(self.sampling.model_dump())
        yield f"{counted(len(self.problems), 'question')} × {samples}, {sampling}"
        if self.sampling.max_tokens > max_length:
            yield f"prompt and response end where the model's {max_length} tokens do"
        if self.benchmark.known is False:
            yield f"other questions than trd knows by this name (SHA-256 {self.benchmark.sha256[:12]})"
        yield from self.benchmark.notes


@dataclass(frozen=True)
class EpisodeExam(Exam):
    """Hold the episodes of one --env. They are made when they are first read, which a part does with its own alone."""

    problems: EpisodeSet
    config: EvalConfig

    def ids(self) -> list[str]:
        return self.problems.names()

    def of_part(self, part: Part | None) -> Iterator[Problem]:
        return (replace(problem, source=self.name) for problem in self.problems.of_part(part))

    def recall(self, shards: Iterable[Path], retry_errors: bool) -> None:
        self.problems.recall(shards, retry_errors)

    def asker(self, templates: Mapping[Task, Template], rendering: Rendering, backend: Backend) -> Asker:
        return EpisodeAsker(templates, rendering, backend, self.problems, self.config.max_turns, self.config.part)

    def remarks(self, samples: int, max_length: int) -> Iterator[str]:
        turns, sampling = counted(self.config.max_turns, "turn"), sampling_text(self.sampling.model_dump())
        yield f"{counted(len(self.problems), 'episode')} × {samples} of at most {turns}; a turn: {sampling}"


def exams_of(config: EvalConfig, workers: Workers | None, note: Callable[[str], None]) -> dict[str, Exam]:
    """Return the exams by their names, which are the sources of their rows: two exams never share a row.

    `workers` run the environments of --env. `note` gets a line for a person while episodes are made.
    """
    benchmarks = [load_benchmark(name) for name in split_benchmarks(config.bench or "")]
    exams = [Exam(b, b.problems[: config.limit], len(b.problems), _sampling(config, b)) for b in benchmarks]
    exams += [_of_episodes(config, text, workers, note) for text in config.env]
    names = [exam.name for exam in exams]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        option = "--bench" if twice in names[: len(benchmarks)] else "--env"
        raise InputError(f"{option} has {twice} twice", "each benchmark once", "leave one out")
    _check_gradable(config, benchmarks)
    return dict(zip(names, exams, strict=True))


def _of_episodes(config: EvalConfig, text: str, workers: Workers, note: Callable[[str], None]) -> EpisodeExam:
    spec = Spec.parse(text)
    if config.n is not None:
        spec = replace(spec, n=config.n)
    episodes = EpisodeSet.of(spec, workers, note)
    version = episodes.environments[0].version
    # The environment and the seed make the episode, so that none has to be made to tell it.
    sha256 = content_hash([asdict(each) for each in episodes.environments], 64)
    sampling = SAMPLING[EPISODE]
    benchmark = Benchmark(
        *(spec.label(), [], EPISODE, "environment", f"{spec.name} {version}", version, sha256),
        known=None,
        **asdict(sampling),
    )
    taken = episodes.slice(0, config.limit)
    return EpisodeExam(benchmark, taken, len(episodes), _sampling(config, benchmark), config)


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
