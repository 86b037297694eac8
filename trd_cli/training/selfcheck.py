"""Check the loss on a user's own model and rows: what must be zero is zero, and two ways to one number agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.losses.distribution import Distribution
from trd_cli.losses.fused import fused_divergence
from trd_cli.losses.objectives import Objective
from trd_cli.models import ModelRef
from trd_cli.training.batches import Batch, Example, Weighting, collate
from trd_cli.training.launch import accelerator_for
from trd_cli.training.model import DistillStep, Teacher, head_of, logits_off, response_states
from trd_cli.training.sharding import is_sharded
from trd_cli.training.stored import Examples
from trd_cli.training.trainer import Trainer, objective_of

_ROWS, _POSITIONS, _ENTRIES = 4, 64, 4096
# 0 on a CPU; elsewhere the two passes may use kernels that round differently.
_EQUAL = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
_PADDED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Two ways may differ by this share of the largest entry: rounding of the compute dtype, summed over layers.
_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Check:
    """One figure that must not exceed its limit."""

    what: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.value <= self.limit  # False for NaN


def run_checks(config: DistillConfig, examples: Examples, student: ModelRef, teacher: ModelRef) -> list[Check]:
    """Run the checks in the dtype and with the objective of `config`.

    They use four rows of short to medium length, all on one side of the lengths at which rotary factors change.
    """
    accelerator = accelerator_for(config)
    if is_sharded(accelerator):
        raise InputError("--selfcheck with FSDP", "one process that holds the weights", "launch it without")
    trainer = Trainer(config, student, teacher, accelerator)
    step, switches = trainer.step.eval(), trainer.switches
    limits = np.array([np.inf if switch is None else switch for switch in switches])
    by_length = np.argsort(examples.read.sum(1), kind="stable")
    beyond = examples.read[by_length] > limits
    alike = by_length[(beyond == beyond[0]).all(1)]
    rows = [examples[i] for i in alike[:: max(1, len(alike) // (2 * _ROWS))][:_ROWS]]
    weighting = Weighting.of(rows, config.reduction)
    batch = collate(rows, weighting).to(accelerator.device)
    return [
        Check("head against the model's own logits", logits_off(step.student, step.compute), _LIMITS[step.compute]),
        *_same_context(step, rows, weighting, accelerator.device, switches[0]),
        *_chunked_against_dense(step, batch, objective_of(config)),
        *_splits(step, rows, weighting, accelerator.device),
    ]


class _Itself(Teacher):
    """The student as its own teacher, with its current weights."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def weights(self, student: nn.Module) -> Iterator[nn.Module]:
        yield student


def _same_context(
    step: DistillStep, rows: Sequence[Example], weighting: Weighting, device: torch.device, switch: int | None
) -> list[Check]:
    """Check that a teacher with the student's weights and context has nothing to teach, even if its padding differs.

    Rows whose objective reads no teacher are left out.
    """
    rows = [row for row in rows if step.objective.vanishes(row.correct)]
    if not rows:
        return []
    itself = DistillStep(step.student, _Itself(), step.objective, step.compute, step.temperature)
    # A further, longer row on the teacher's side shifts and pads the others, as contexts of their own would.
    same = [replace(e, teacher_prompt=e.student_prompt) for e in rows]
    longest = max(rows, key=lambda e: len(e.student_prompt))
    more = 7 if switch is None or longest.read[0] > switch else min(7, switch - longest.read[0])
    filler = replace(
        longest, teacher_prompt=[*longest.student_prompt, *longest.student_prompt[:more]], scored=[0], weights=()
    )
    found: list[Tensor] = []
    for group in (same, [*same, filler]):
        step.zero_grad()
        batch = collate(group, weighting)
        batch.weights_N[batch.row_N == len(same)] = 0.0
        loss, _ = itself(batch.to(device))
        loss.backward()
        found.append(torch.stack([loss.detach().abs().cpu(), _sampled_gradient(itself).abs().max()]))
    step.zero_grad()
    return [
        Check("teacher = student, equal contexts: loss", found[0][0].item(), _EQUAL[step.compute]),
        Check("teacher = student, equal contexts: gradient", found[0][1].item(), _EQUAL[step.compute]),
        Check("the same with a teacher padded otherwise: loss", found[1][0].item(), _PADDED[step.compute]),
    ]


def _chunked_against_dense(step: DistillStep, batch: Batch, objective: Objective) -> list[Check]:
    """Compare the loss and gradient in chunks with those over all logits at once.

    The latter are computed in float64 from the logits on, with autograd's own gradient.
    """
    correct_N = batch.correct_N[:_POSITIONS]
    with torch.no_grad(), step.teacher.weights(step.student) as teacher:
        teacher_NE = response_states(teacher, batch.teacher, step.compute)[:_POSITIONS]
        teacher_head_VE = head_of(teacher).detach()
        student_ND = response_states(step.student, batch.student, step.compute)[:_POSITIONS]
    head_VD, response_N = head_of(step.student).detach(), batch.response_N[:_POSITIONS]
    weights_N = torch.full_like(batch.weights_N[:_POSITIONS], 1 / len(response_N))
    chunked_ND, dense_ND = (student_ND.clone().requires_grad_() for _ in range(2))
    fixed = (teacher_NE, teacher_head_VE, response_N, weights_N, objective, step.temperature)
    chunked, _ = fused_divergence(chunked_ND, head_VD, *fixed, chunk=24, correct_N=correct_N)
    v = min(len(head_VD), len(teacher_head_VE))
    students_NV, teachers_NV = (
        (states_N @ head[:v].to(step.compute).T).double() / step.temperature
        for states_N, head in ((dense_ND, head_VD), (teacher_NE, teacher_head_VE))
    )
    sides = (Distribution.of_logits(x) for x in (students_NV, teachers_NV))
    scores = objective(*sides, response_N, correct_N)
    dense = (scores.value_C * weights_N).sum()
    chunked.backward()
    if objective.gradient_is_of_value:
        dense.backward()
    else:
        students_NV.backward(scores.grad_CV * weights_N[:, None])
    value = dense.detach()
    limit = _LIMITS[step.compute]
    return [
        Check("chunked against dense: value", _off(chunked.detach(), value), limit),
        Check("chunked against dense: gradient", _off(chunked_ND.grad, dense_ND.grad), limit),
    ]


def _splits(step: DistillStep, rows: Sequence[Example], weighting: Weighting, device: torch.device) -> list[Check]:
    """Compare one step's gradient for its rows in one micro-batch and for each row in its own."""

    def gradient(groups: Sequence[Sequence[Example]]) -> Tensor:
        step.zero_grad()
        for group in groups:
            step(collate(group, weighting).to(device))[0].backward()
        return _sampled_gradient(step)

    together, alone = gradient([rows]), gradient([[row] for row in rows])
    return [Check("two splits of a step: gradient", _off(alone, together), _LIMITS[step.compute])]


def _sampled_gradient(module: nn.Module) -> Tensor:
    """Return evenly spaced entries of each gradient, which tell as much as all without a second copy of them."""
    grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat([g[:: max(1, len(g) // _ENTRIES)].float().cpu() for g in grads])


def _off(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest entry."""
    largest = expected.abs().max().clamp(min=1e-12)
    return ((found.to(expected.dtype) - expected).abs().max() / largest).item()
