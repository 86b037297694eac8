"""A divergence from hidden states and two output heads, a chunk of tokens at a time.

Axes: N response tokens, V vocabulary, D student width, E teacher width, F figures of a position, R rows of a block.

    L = Σ_n w_n · D(π_T(·|n), π_θ(·|n))        π = softmax(h · headᵀ / temperature)

The gradient with respect to a chunk's logits is formed while they exist (for forward KL it is w_n (π_θ − π_T)),
goes at once into those of the hidden states and of the head, and overwrites the logits. So chunk × V logits are alive
for each side, whatever N (plus working copies of a few rows on a CPU, of a chunk elsewhere). The work is 8·N·D·V
floating-point operations, as in a dense forward and backward pass. TRD (arXiv 2606.08432) takes forward KL and
w_n = 1 / (|y_r| · trajectories).

Not covered: heads with a bias, and models that transform their logits (soft-capping, scaling): `model.load` refuses
them. With a temperature the loss is not multiplied by its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trd_cli.losses import CHUNK
from trd_cli.losses.distribution import Distribution
from trd_cli.losses.objectives import Objective

# On a CPU a few rows of logits are worked on at a time, so that they stay in the cache between operations.
_CPU_BLOCK = 1 << 18
_HEAD_TILE = 1 << 21
_TOP_K, _TOP_K_EVERY = 32, 8


class Figures(NamedTuple):
    """Figures of each position: (N,) each, float32, detached. Probabilities are at the loss's temperature."""

    divergence: Tensor
    clipped: Tensor
    student_nll: Tensor
    teacher_nll: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    top1_agreement: Tensor
    teacher_top32_mass: Tensor


def fused_divergence(
    student_ND: Tensor,
    student_head_VD: Tensor,
    teacher_NE: Tensor,
    teacher_head_VE: Tensor,
    response_N: Tensor,
    weights_N: Tensor,
    objective: Objective,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    correct_N: Tensor | None = None,
) -> tuple[Tensor, Figures]:
    """Return the weighted sum of the divergences (scalar, float32, or float64 for float64 states) and the figures.

    Differentiable in the student's hidden states and head. The teacher gets no gradient, and a head that wants none
    costs none. Products are taken in the dtype of `student_ND`, everything from the logits on in float32; the head's
    gradient is summed up in float32. Heads of different length are cut to the shorter one: ids beyond it are padding
    that no tokenizer makes, and get neither probability nor gradient. `response_N` is int64; `correct_N`, bool, tells
    which positions are in correct rows, for an objective that asks; `teacher_top32_mass` is measured at every eighth
    position and NaN at the others.
    """
    assert len(student_ND) == len(teacher_NE) == len(weights_N) == len(response_N)
    vocabulary = min(len(student_head_VD), len(teacher_head_VE))
    if not torch.is_grad_enabled():  # inside the function below it never is
        student_ND, student_head_VD = student_ND.detach(), student_head_VD.detach()
    loss, figures_FN = _FusedDivergence.apply(
        student_ND,
        student_head_VD,
        teacher_NE,
        teacher_head_VE,
        response_N,
        weights_N,
        _Settings(objective, temperature, vocabulary, chunk, correct_N),
    )
    return loss, Figures(*figures_FN)


class _Settings(NamedTuple):
    objective: Objective
    temperature: float
    vocabulary: int
    chunk: int
    correct_N: Tensor | None

    def of(self, at: slice) -> _Settings:
        """Return the settings of a part of the positions."""
        return self if self.correct_N is None else self._replace(correct_N=self.correct_N[at])


class _FusedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student_ND, head_VD, teacher_NE, teacher_head_VE, response_N, weights_N, settings):
        wants_states, wants_head = ctx.needs_input_grad[:2]
        dtype, exact = student_ND.dtype, torch.promote_types(student_ND.dtype, torch.float32)
        student, teacher = student_ND.detach(), teacher_NE.detach().to(dtype)
        head = head_VD.detach()[: settings.vocabulary].to(dtype)
        teacher_head = teacher_head_VE.detach()[: settings.vocabulary].to(dtype)
        weights_N = weights_N.to(exact)
        figures_FN = torch.full((len(Figures._fields), len(student)), torch.nan, dtype=exact, device=student.device)
        grad_states = torch.empty_like(student) if wants_states else None
        grad_head = torch.zeros(head_VD.shape, dtype=exact, device=head_VD.device) if wants_head else None
        with torch.autocast(student.device.type, enabled=False):
            for at, of_student, of_teacher in _chunks(student, head, teacher, teacher_head, settings.chunk):
                part = settings.of(at)
                _to_gradient(of_student, of_teacher, response_N[at], weights_N[at], part, figures_FN[:, at])
                if grad_states is not None:
                    torch.mm(of_student, head, out=grad_states[at])
                if grad_head is not None:
                    _add_head_gradient(grad_head[: settings.vocabulary], of_student, student[at])
        ctx.save_for_backward(grad_states, grad_head)
        ctx.head_dtype = head_VD.dtype
        ctx.mark_non_differentiable(figures_FN)
        # A position of weight 0 adds nothing, even if its divergence is infinite.
        return (weights_N * figures_FN[0].masked_fill(weights_N == 0, 0.0)).sum(), figures_FN

    @staticmethod
    def backward(ctx, grad_loss, _):
        grad_states, grad_head = ctx.saved_tensors
        if grad_states is not None:
            grad_states = grad_states * grad_loss.to(grad_states.dtype)
        if grad_head is not None:
            # In place, because a second float32 head would be the largest tensor of all. So backward can run only once.
            grad_head = grad_head.mul_(grad_loss).to(ctx.head_dtype)
        return grad_states, grad_head, None, None, None, None, None


@torch.no_grad()
def distributions(
    student_ND: Tensor,
    student_head_VD: Tensor,
    teacher_NE: Tensor,
    teacher_head_VE: Tensor,
    chunk: int = CHUNK,
) -> Iterator[tuple[slice, Distribution, Distribution]]:
    """Yield p and q a block of positions at a time, for measurements without a gradient: places in N, student, teacher.

    Dtypes, the cut of longer heads and the memory are those of `fused_divergence`, at temperature 1.
    """
    vocabulary = min(len(student_head_VD), len(teacher_head_VE))
    dtype, exact = student_ND.dtype, torch.promote_types(student_ND.dtype, torch.float32)
    heads = [head[:vocabulary].to(dtype) for head in (student_head_VD, teacher_head_VE)]
    with torch.autocast(student_ND.device.type, enabled=False):
        for at, of_student, of_teacher in _chunks(student_ND, heads[0], teacher_NE.to(dtype), heads[1], chunk):
            for inner, p, q in _blocks(of_student, of_teacher, exact, 1.0):
                yield slice(at.start + inner.start, at.start + inner.start + len(p.log)), p, q


def response_nll(
    student_ND: Tensor, student_head_VD: Tensor, teacher_NE: Tensor, teacher_head_VE: Tensor, response_N: Tensor
) -> Tensor:
    """Return −log p of each response token under student and teacher (2, N), from their `distributions`."""
    both = distributions(student_ND, student_head_VD, teacher_NE, teacher_head_VE)
    return -torch.cat([torch.stack([each.log_of(response_N[at]) for each in pair]) for at, *pair in both], dim=1)


def _chunks(
    student_ND: Tensor, head_VD: Tensor, teacher_NE: Tensor, teacher_head_VE: Tensor, chunk: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield each chunk's places in N and the logits (C, V) of both sides, in memory that the next chunk overwrites."""
    logits = [student_ND.new_empty(min(chunk, len(student_ND)), len(head_VD)) for _ in range(2)]
    for start in range(0, len(student_ND), chunk):
        at = slice(start, start + chunk)
        of_student, of_teacher = (x[: len(student_ND[at])] for x in logits)
        torch.mm(student_ND[at], head_VD.T, out=of_student)
        torch.mm(teacher_NE[at], teacher_head_VE.T, out=of_teacher)
        yield at, of_student, of_teacher


def _blocks(
    student_CV: Tensor, teacher_CV: Tensor, dtype: torch.dtype, temperature: float
) -> Iterator[tuple[slice, Distribution, Distribution]]:
    """Yield the distributions of a chunk, as many positions at a time as are worked on together: places in C, p, q."""
    rows = max(2, _CPU_BLOCK // student_CV.shape[1]) if student_CV.device.type == "cpu" else len(student_CV)
    for start in range(0, len(student_CV), rows):
        at = slice(start, start + rows)
        yield at, *(_distribution(x[at], dtype, temperature) for x in (student_CV, teacher_CV))


def _to_gradient(
    student_CV: Tensor,
    teacher_CV: Tensor,
    response_C: Tensor,
    weights_C: Tensor,
    settings: _Settings,
    figures_FC: Tensor,
) -> None:
    """Fill in the figures of a chunk's positions and replace the student's logits by their gradient."""
    for at, p, q in _blocks(student_CV, teacher_CV, weights_C.dtype, settings.temperature):
        value_R, clipped_R, grad_RV = settings.objective(p, q, response_C[at], settings.of(at).correct_N)
        shared = _figures(p, q, response_C[at], first=at.start)
        figures_FC[:, at] = torch.stack([value_R, clipped_R.to(value_R.dtype), *shared])
        grad_RV.masked_fill_(weights_C[at, None] == 0, 0.0)
        torch.mul(grad_RV, weights_C[at, None] / settings.temperature, out=student_CV[at])


def _distribution(logits_RV: Tensor, dtype: torch.dtype, temperature: float) -> Distribution:
    logits_RV = logits_RV.to(dtype)
    return Distribution.of_logits(logits_RV if temperature == 1.0 else logits_RV / temperature)


def _figures(p: Distribution, q: Distribution, response_R: Tensor, first: int) -> list[Tensor]:
    """Return the figures that do not depend on the objective, in the order of `Figures`.

    `first` is the first row's place in its chunk.
    """
    nll = [-each.log_of(response_R) for each in (p, q)]
    entropy = [each.entropy() for each in (p, q)]
    agree_R = (p.log_of(q.log.argmax(-1)) == p.log.amax(-1)).to(nll[0].dtype)
    mass_R = torch.full_like(agree_R, torch.nan)
    some = slice(-first % _TOP_K_EVERY, None, _TOP_K_EVERY)
    if len(mass_R[some]):
        mass_R[some] = q.prob[some].topk(min(_TOP_K, q.prob.shape[-1])).values.sum(-1)
    return [*nll, *entropy, agree_R, mass_R]


def _add_head_gradient(grad_head_VD: Tensor, grad_logits_CV: Tensor, student_CD: Tensor) -> None:
    """Add grad_logitsᵀ · states to the head's gradient, in the dtype of `grad_head`."""
    if grad_head_VD.dtype == student_CD.dtype:
        grad_head_VD.addmm_(grad_logits_CV.T, student_CD)
        return
    # A product in another dtype needs memory of its own, so one slice of the vocabulary at a time.
    rows = max(1, _HEAD_TILE // grad_head_VD.shape[1])
    for start in range(0, len(grad_head_VD), rows):
        at = slice(start, start + rows)
        grad_head_VD[at] += grad_logits_CV[:, at].T @ student_CD
