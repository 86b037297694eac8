"""From rows to tensors in which teacher and student score the same response tokens at the same places.

Axes: B rows, L padded length (one for each side), N response tokens of all rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Example:
    """One trajectory to train on: two contexts, one response."""

    trajectory_id: str
    student_prompt: Sequence[int]
    teacher_prompt: Sequence[int]
    response: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.student_prompt), len(self.teacher_prompt)) + len(self.response)


@dataclass(frozen=True)
class Side:
    """What one model reads: ids (B, L), int64, padded on the right, and the flat places (N,) that predict the response."""

    ids_BL: torch.Tensor
    places_N: torch.Tensor

    def to(self, device: torch.device) -> Side:
        return Side(self.ids_BL.to(device), self.places_N.to(device))


@dataclass(frozen=True)
class Batch:
    """Aligned on N: position n of both sides predicts `response_N[n]`, with weight `weights_N[n]`."""

    student: Side
    teacher: Side
    response_N: torch.Tensor
    weights_N: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.student.to(device),
            self.teacher.to(device),
            self.response_N.to(device),
            self.weights_N.to(device),
        )


def collate(examples: Sequence[Example], trajectories: int) -> Batch:
    """One micro-batch of a step over `trajectories` rows.

    Each response token weighs 1 / (its response's length · trajectories): the mean over tokens, then over rows, whatever
    way a step is cut into micro-batches.
    """
    weights = [1.0 / (len(e.response) * trajectories) for e in examples for _ in e.response]
    return Batch(
        _side([e.student_prompt for e in examples], [e.response for e in examples]),
        _side([e.teacher_prompt for e in examples], [e.response for e in examples]),
        torch.tensor([i for e in examples for i in e.response]),
        torch.tensor(weights),
    )


def _side(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Side:
    # The last response token predicts nothing that is trained on, so it is not read.
    rows = [[*p, *r[:-1]] for p, r in zip(prompts, responses, strict=True)]
    longest = max(map(len, rows))
    # Padding stands on the right, where causal attention never looks: its id is of no matter and no mask is needed.
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    places = [
        i * longest + len(prompt) - 1 + t
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        for t in range(len(response))
    ]
    return Side(ids, torch.tensor(places))


def steps(examples: Sequence[Example], batch_size: int, epochs: int, seed: int) -> Iterator[list[Example]]:
    """The rows of each optimiser step: shuffled anew every epoch, the last step of an epoch may be smaller."""
    for epoch in range(epochs):
        order = list(examples)
        random.Random(f"{seed}-{epoch}").shuffle(order)
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


def micro_batches(step: Sequence[Example], size: int) -> Iterator[Batch]:
    """A step's rows in micro-batches of rows of similar length."""
    ordered = sorted(step, key=lambda e: e.length)
    for start in range(0, len(ordered), size):
        yield collate(ordered[start : start + size], len(step))
