"""Search responses for the trigger: the first place where the teacher would turn back and the student would not."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from trd_cli import keeper
from trd_cli.config.diagnosing import ScoringOptions
from trd_cli.config.generating import EngineOptions
from trd_cli.models import ModelRef
from trd_cli.relaying.phases import Search
from trd_cli.relaying.response import Trigger
from trd_cli.training.batches import Example

if TYPE_CHECKING:
    from trd_cli.diagnosis.scoring import PositionFigures


def search_with(student: ModelRef, teacher: ModelRef, options: EngineOptions, onset_ids: Sequence[int]) -> Search:
    """Return the search with both models, which it loads at its first row and frees after its last."""
    # Scores have no float16.
    dtype = "auto" if options.dtype == "float16" else options.dtype
    scoring = ScoringOptions(dtype=dtype, device=options.device)

    def search(rows: Iterable[tuple[Example, int]]) -> Iterator[tuple[str, Trigger | None]]:
        import torch

        from trd_cli.diagnosis.scoring import Scorer

        if (at := keeper.current()) is not None:
            at.rest()
        scorer = Scorer(student, teacher, scoring, onset_ids)
        try:
            rows = iter(rows)
            while group := list(islice(rows, scorer.rows_at_once)):
                found = scorer.score([example for example, _ in group])
                for (example, place), figures in zip(group, found, strict=True):
                    yield example.trajectory_id, _first(figures, place)
        finally:
            del scorer
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    return search


def _first(figures: PositionFigures, place: int) -> Trigger | None:
    """Return the first trigger at or after a place, or None."""
    found = place + np.flatnonzero(figures.trigger[place:])
    if not len(found):
        return None
    at = int(found[0])
    return Trigger(at, int(figures.teacher_top[at]), float(figures.teacher_top_logprob[at]))
