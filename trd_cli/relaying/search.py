"""Search responses for the trigger: the first place where the teacher would turn back and the student would not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trd_cli import keeper
from trd_cli.config.diagnosing import ScoringOptions
from trd_cli.config.generating import EngineOptions
from trd_cli.engines.border import matched
from trd_cli.models import ModelRef
from trd_cli.relaying.phases import Found, Search
from trd_cli.relaying.response import Trigger
from trd_cli.training.batches import Example

if TYPE_CHECKING:
    from trd_cli.diagnosis.scoring import PositionFigures


def scoring_of(options: EngineOptions) -> ScoringOptions:
    """Return the options with which models score that generate by `options`; their dtype is settled."""
    from trd_cli.diagnosis.scoring import dtype_of

    scoring = ScoringOptions(
        # There are no scores in float16.
        dtype="auto" if options.dtype == "float16" else options.dtype,
        device=options.device,
        replicas=options.replicas,
        ray=options.ray,
    )
    return scoring.model_copy(update={"dtype": dtype_of(scoring)})


def search_with(
    student: ModelRef,
    teacher: ModelRef,
    scoring: ScoringOptions,
    onset_ids: Sequence[int],
    note: Callable[[str], None],
) -> Search:
    """Return the search with both models; each call loads them, in as many replicas as asked for, and frees them."""

    def search(rows: Iterable[tuple[Example, int]]) -> Iterator[tuple[str, Found]]:
        from trd_cli.diagnosis.engine import Question, ScoringBackend

        backend = ScoringBackend(student, teacher, scoring, tuple(onset_ids))
        places: dict[str, int] = {}

        def questions() -> Iterator[Question]:
            for example, place in rows:
                places[example.trajectory_id] = place
                yield Question(example.trajectory_id, example)

        if (at := keeper.current()) is not None:
            at.rest()
        note(f"loading {backend.described}")
        engine = backend.start(note)
        try:
            for answer in matched(questions(), engine.generate, note):
                place = places.pop(answer.request_id)
                yield answer.request_id, answer.error or _first(answer.figures, place)
        finally:
            engine.close()

    return search


def _first(figures: PositionFigures, place: int) -> Trigger | None:
    """Return the first trigger at or after a place, or None."""
    found = place + np.flatnonzero(figures.trigger[place:])
    if not len(found):
        return None
    at = int(found[0])
    return Trigger(at, int(figures.teacher_top[at]), float(figures.teacher_top_logprob[at]))
