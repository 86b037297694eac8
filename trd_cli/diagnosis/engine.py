"""The scorer as an engine: it takes examples and answers with figures, in this process or on replicas.

What drives engines (`engines.replicas`, the workers, `generation.ShardFiller`) then drives it too: rows in flight, dead
workers, shards and resuming are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trd_cli.config.diagnosing import ScoringOptions
from trd_cli.config.generating import EngineOptions
from trd_cli.diagnosis.files import RowFigures, summary, write_figures
from trd_cli.diagnosis.scoring import PositionFigures, Scorer
from trd_cli.engines.base import Engine
from trd_cli.engines.border import matched
from trd_cli.engines.starting import manner, start_replicas
from trd_cli.engines.worker import Build
from trd_cli.freeing import free_unreferenced
from trd_cli.generation import ShardFiller
from trd_cli.models import ModelRef
from trd_cli.records import Completion, token_array
from trd_cli.training.batches import Example

# The engine whose devices, versions and limits are the scorer's.
_ENGINE = "transformers"


@dataclass(frozen=True, slots=True)
class Question:
    """Ask for the figures of an example, in place of a `Request`."""

    request_id: str
    example: Example


@dataclass(frozen=True, slots=True)
class Answer(Completion):
    """Answer a question; `token_ids` is the response that was scored."""

    figures: PositionFigures | None = None


class ScoringEngine:
    """Serve `engines.base.Engine` with questions in place of requests."""

    name = _ENGINE

    def __init__(self, scorer: Scorer, version: str) -> None:
        self._scorer, self.version = scorer, version
        self.rows_at_once = scorer.rows_at_once

    def generate(self, questions: Iterable[Question | None]) -> Iterator[Answer]:
        """Yield the answers of a group of questions, then those of the next one."""
        source, has_ended = iter(questions), False
        while not has_ended:
            group: list[Question] = []
            while len(group) < self.rows_at_once:
                question = next(source, self)
                has_ended = question is self
                if has_ended or question is None:
                    break
                group.append(question)
            yield from self._answers(group)

    def _answers(self, group: Sequence[Question]) -> Iterator[Answer]:
        try:
            found = self._scorer.score([question.example for question in group])
        except torch.OutOfMemoryError:
            if len(group) > 1:
                for question in group:
                    yield from self._answers([question])
            else:
                yield Answer(group[0].request_id, error=f"out of memory with {group[0].example.length} tokens")
            return
        for question, figures in zip(group, found, strict=True):
            if figures.is_finite:
                yield Answer(question.request_id, token_ids=token_array(figures.response_ids), figures=figures)
            else:
                yield Answer(question.request_id, error="a model's probabilities are not finite")

    def close(self) -> None:
        del self._scorer
        free_unreferenced()


@dataclass(frozen=True)
class ScorerBuild:
    """Hold what a worker needs to build the scorer; see `engines.worker.Build`."""

    student: Build
    teacher: Build
    options: ScoringOptions
    onset_ids: tuple[int, ...]

    @property
    def engine(self) -> str:
        return self.student.engine

    @property
    def version(self) -> str:
        return self.student.version

    def start(self) -> Engine:
        """Load both models. Raises UserError, as `Build.resolved` does."""
        scorer = Scorer(self.student.resolved(), self.teacher.resolved(), self.options, self.onset_ids)
        return ScoringEngine(scorer, self.version)


@dataclass(frozen=True)
class ScoringBackend:
    """Represent the two models that are not loaded yet; `start(note)` loads them. See `generation.Backend`."""

    student: ModelRef
    teacher: ModelRef
    options: ScoringOptions
    onset_ids: tuple[int, ...]

    @property
    def described(self) -> str:
        """Return both models in words."""
        both = self.student.name + ("" if self.student.path == self.teacher.path else f" and {self.teacher.name}")
        how = manner(self.engine_options)
        return both + (f", {how}" if how else "")

    def start(self, note: Callable[[str], None]) -> Engine:
        """Load the models in this process, or in as many workers as the options ask for."""
        return start_replicas(_ENGINE, self.engine_options, self._build) or self._build().start()

    def _build(self) -> ScorerBuild:
        student, teacher = (Build.of(_ENGINE, model, self.engine_options) for model in (self.student, self.teacher))
        return ScorerBuild(student, teacher, self.options, self.onset_ids)

    @property
    def engine_options(self) -> EngineOptions:
        """Return the options of an engine that ask for the same devices and replicas."""
        options = self.options
        return EngineOptions(device=options.device, replicas=options.replicas, ray=options.ray)


class FigureFiller(ShardFiller):
    """Fill the directory of a diagnosis with the figures of planned rows."""

    def _has_ended(self, row: RowFigures) -> bool:
        return row.error is not None

    def _request(self, row: RowFigures) -> Question:
        return Question(row.trajectory_id, row.example)

    def _answers(self, requests: Iterable[Question]) -> Iterator[Answer]:
        return matched(requests, self._engine.generate, self._progress.note)

    def _finished(self, row: RowFigures, completion: Answer) -> RowFigures:
        if completion.error is not None:
            return replace(row, example=None, error=completion.error)
        figures = completion.figures
        return RowFigures(row.values | summary(figures), positions=figures)

    def _write(self, path: Path, rows: Sequence[RowFigures]) -> Sequence[RowFigures]:
        write_figures(path, rows, self._stage_dir.digest)
        return rows
