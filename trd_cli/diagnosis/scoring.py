"""Score responses with student and teacher: both read a response in their own context, and every position is compared.

The figures of a position are those of `losses.positions`. In float32 each row is read by itself, since a CPU's products
round a row otherwise when others are beside it: so its figures depend on nothing but the row and the models. In
bfloat16 rows of similar length are read together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trd_cli.config.diagnosing import ScoringOptions
from trd_cli.engines.rope import switch_length
from trd_cli.engines.transformers import check_device, pick_device
from trd_cli.losses.positions import Compared, compare
from trd_cli.models import ModelRef
from trd_cli.training.batches import Example, collate, split_step
from trd_cli.training.model import DTYPES, check_logits, head_of, load, response_states


@dataclass(frozen=True, slots=True, eq=False)
class PositionFigures:
    """Figures of one response, one of each kind for each of its N tokens; see `losses.positions` for the formulas.

    Float32, but `response_ids` and `teacher_top` are int32, `overlap` is int8 (of 16), `is_onset` (the response's token
    is an onset token) and `trigger` are bool. Logarithms are natural.
    """

    response_ids: np.ndarray
    forward_kl: np.ndarray
    reverse_kl: np.ndarray
    student_logprob: np.ndarray
    teacher_logprob: np.ndarray
    student_entropy: np.ndarray
    teacher_entropy: np.ndarray
    l2: np.ndarray
    onset_mass: np.ndarray
    overlap: np.ndarray
    overlap_advantage: np.ndarray
    teacher_top: np.ndarray
    teacher_top_logprob: np.ndarray
    is_onset: np.ndarray
    trigger: np.ndarray

    def __len__(self) -> int:
        return len(self.response_ids)

    @property
    def is_finite(self) -> bool:
        """Tell whether both models gave probabilities everywhere."""
        return bool(np.isfinite(self.forward_kl).all() and np.isfinite(self.reverse_kl).all())


def dtype_of(options: ScoringOptions) -> str:
    """Return the dtype of weights and products on this machine."""
    if options.dtype != "auto":
        return options.dtype
    return "float32" if pick_device(options.device).type == "cpu" else "bfloat16"


class Scorer:
    """Hold the two networks, and score examples with them. A teacher that is the student is loaded once."""

    def __init__(self, student: ModelRef, teacher: ModelRef, options: ScoringOptions, onset_ids: Sequence[int]) -> None:
        """Raise InputError for a device that is not there, and ModelError for a model that cannot be scored with."""
        check_device(options.device)
        self._device = pick_device(options.device)
        self._dtype = DTYPES[dtype_of(options)]
        attention = options.attn_implementation
        self._student = self._loaded(student, attention)
        self._teacher = self._student if teacher.path == student.path else self._loaded(teacher, attention)
        self._switches = tuple(switch_length(m.architecture().get_text_config()) for m in (student, teacher))
        # No row fits a batch of no tokens, so that each is read alone.
        self._max_tokens = 0 if self._dtype == torch.float32 else options.max_tokens_per_batch
        # Tokens that a model has no embedding for get no probability either.
        known = min(len(head_of(m)) for m in (self._student, self._teacher))
        self._onset = np.array([i for i in sorted(onset_ids) if i < known], np.int32)
        self._onset_ids = torch.from_numpy(self._onset.astype(np.int64)).to(self._device)

    def _loaded(self, model: ModelRef, attn_implementation: str | None) -> torch.nn.Module:
        network = load(model, self._dtype, self._device, attn_implementation).eval()
        check_logits(network, model.name, self._dtype)
        return network

    @property
    def rows_at_once(self) -> int:
        """Return how many rows are worth having at hand, to read those of similar length together."""
        return 1 if not self._max_tokens else 32

    def score(self, examples: Sequence[Example]) -> list[PositionFigures]:
        """Return the figures of each example, in their order. All tokens of a response count, whatever its `scored`."""
        whole = [Example(str(i), e.student_prompt, e.teacher_prompt, e.response_ids) for i, e in enumerate(examples)]
        found: dict[str, PositionFigures] = {}
        for group in split_step(whole, self._max_tokens, switches=self._switches).groups if whole else ():
            found |= zip((e.trajectory_id for e in group), self._batch(group), strict=True)
        return [found[e.trajectory_id] for e in whole]

    @torch.no_grad()
    def _batch(self, group: Sequence[Example]) -> list[PositionFigures]:
        batch = collate(group, None).to(self._device)
        student_ND = response_states(self._student, batch.student, self._dtype)
        teacher_NE = response_states(self._teacher, batch.teacher, self._dtype)
        found = compare(
            student_ND, head_of(self._student), teacher_NE, head_of(self._teacher), batch.response_N, self._onset_ids
        )
        columns = Compared(*(column.cpu().numpy() for column in found))
        ends = np.cumsum([len(e.response_ids) for e in group])
        pieces = zip(*(np.split(column, ends[:-1]) for column in columns), strict=True)
        return [self._figures(example, Compared(*piece)) for example, piece in zip(group, pieces, strict=True)]

    def _figures(self, example: Example, of: Compared) -> PositionFigures:
        values = of._asdict() | {"teacher_top": of.teacher_top.astype(np.int32)}
        return PositionFigures(
            response_ids=example.response_ids, is_onset=np.isin(example.response_ids, self._onset), **values
        )
