"""One cell of the study: a student distilled from both teachers by g_γ, with its figures of every update.

Axes: M = 8 micro-batches, N = 64 trajectories of one, half of them of each task, D parameters of the output layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor, nn

from trd_cli.lab.estimators import Spread, spread, surrogate
from trd_cli.lab.walks import TASKS, Policy, Walks, reinforce, seeded_policy, walk

MICRO_BATCHES, TRAJECTORIES = 8, 64
_TEACHER_BATCH = 256
_RATE, _CLIP = 3e-3, 1.0
# Walks whose ends are the error of a finished policy.
_JUDGED = 2048
# The first and the last of so many parts of the updates are the start and the end.
_PARTS = 10


@dataclass(frozen=True)
class Cell:
    """Hold the figures of one γ and seed: of each update, and of the student and the teachers in the end.

    `variance` and `squared_norm` are of the output layer's gradient; `error` is the mean distance of the ends of an
    update's walks from their targets, and `end_error` that of the finished student's.
    """

    gamma: float
    seed: int
    variance: tuple[float, ...]
    squared_norm: tuple[float, ...]
    error: tuple[float, ...]
    end_error: float
    teacher_error: float

    def figures(self) -> dict[str, float]:
        """Return the figures of the study's table: medians over all updates and over a tenth of them, and the error."""
        ratios = [variance / norm for variance, norm in zip(self.variance, self.squared_norm, strict=True)]
        tenth = -(-len(ratios) // _PARTS)
        return {
            "variance_start": median(self.variance[:tenth]),
            "variance": median(self.variance),
            "variance_end": median(self.variance[-tenth:]),
            "ratio_start": median(ratios[:tenth]),
            "ratio": median(ratios),
            "ratio_end": median(ratios[-tenth:]),
            "end_error": self.end_error,
        }


def shown(gamma: float) -> str:
    """Return a γ as a text that no other γ has."""
    return str(gamma).removesuffix(".0")


def teachers_of(seed: int, updates: int) -> tuple[Policy, ...]:
    """Return a teacher of each task, trained alone."""
    return tuple(reinforce(task, 2 * seed + number, updates, _TEACHER_BATCH) for number, task in enumerate(TASKS))


def distil(gamma: float, seed: int, updates: int, teachers: Sequence[Policy]) -> Cell:
    """Train a student along its own walks by g_γ and measure it. Students of a seed begin with the same weights."""
    student, random = seeded_policy(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=_RATE)
    spreads: list[Spread] = []
    errors: list[float] = []
    for _ in range(updates):
        optimizer.zero_grad()
        gradients_MD: list[Tensor] = []
        together = walk(student, TASKS * (MICRO_BATCHES * TRAJECTORIES // len(TASKS)), random)
        for walks in together.split(TRAJECTORIES):
            loss = surrogate(walks.logprobs(student), teacher_logprobs(teachers, walks), gamma)
            gradients_MD.append(_accumulate(loss / MICRO_BATCHES, student) * MICRO_BATCHES)
        spreads.append(spread(torch.stack(gradients_MD)))
        errors.append(together.error())
        nn.utils.clip_grad_norm_(student.parameters(), _CLIP)
        optimizer.step()
    judged = walk(student, TASKS * (_JUDGED // len(TASKS)), random)
    return Cell(
        gamma,
        seed,
        tuple(each.variance for each in spreads),
        tuple(each.squared_norm for each in spreads),
        tuple(errors),
        judged.error(),
        fmean(walk(teacher, [task] * _JUDGED, random).error() for teacher, task in zip(teachers, TASKS, strict=True)),
    )


@torch.no_grad()
def teacher_logprobs(teachers: Sequence[Policy], walks: Walks) -> Tensor:
    """Return the log-probabilities (N, T) of the actions under each walk's teacher; walks alternate between tasks."""
    logprobs_NT = torch.empty_like(walks.actions)
    for number, teacher in enumerate(teachers):
        own = slice(number, None, len(teachers))
        logprobs_NT[own] = teacher(walks.features[own]).log_prob(walks.actions[own])
    return logprobs_NT


def _accumulate(loss: Tensor, student: Policy) -> Tensor:
    """Add the gradient of a loss to that of the student, and return its part in the output layer, shape (D,)."""
    parameters = list(student.parameters())
    of_output = {id(each) for each in student.output.parameters()}
    parts = []
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if id(parameter) in of_output:
            parts.append(gradient.flatten())
    return torch.cat(parts)
