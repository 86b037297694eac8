"""Measure how two models differ at each position, from hidden states and output heads, a block of positions at a time.

Axes: N response tokens, C positions of a block, V vocabulary, K the likeliest tokens of a side.

    forward KL    Σ_v q_v log(q_v / p_v)                       p the student, q the teacher
    reverse KL    Σ_v p_v log(p_v / q_v)
    l2            ‖p − q‖₂
    onset mass    Σ_{v ∈ O} q_v                                O the onset tokens
    overlap       |S_T ∩ S_S|                                  S the K = 16 likeliest tokens of a side
    advantage     1/|I| · Σ_{v ∈ I} p̄_v log(q̄_v / p̄_v)       I = S_T ∩ S_S, both sides renormalised on it
    trigger       the teacher's likeliest token is in O, and none of the student's 5 likeliest is

Overlap and its advantage are those of arXiv 2604.13016, the trigger that of Relay-OPD (2607.26057). Probabilities are
at temperature 1. No tensor of tokens × vocabulary exists, whatever N (see `fused`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trd_cli.losses.distribution import Distribution
from trd_cli.losses.forward_kl import forward_kl
from trd_cli.losses.fused import distributions
from trd_cli.losses.reverse_kl import reverse_kl

TOP_K = 16
_STUDENTS_CHOICE = 5


class Compared(NamedTuple):
    """Figures of each position: (N,) each, float32 (float64 for float64 states).

    But `overlap` is int8 (0 to 16), `teacher_top` int64 (the teacher's likeliest token) and `trigger` bool.
    `overlap_advantage` is NaN where the two sides share none of their likeliest tokens.
    """

    forward_kl: Tensor
    reverse_kl: Tensor
    student_logprob: Tensor
    teacher_logprob: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    l2: Tensor
    onset_mass: Tensor
    overlap: Tensor
    overlap_advantage: Tensor
    teacher_top: Tensor
    teacher_top_logprob: Tensor
    trigger: Tensor


def compare(
    student_ND: Tensor,
    student_head_VD: Tensor,
    teacher_NE: Tensor,
    teacher_head_VE: Tensor,
    response_N: Tensor,
    onset_ids: Tensor,
) -> Compared:
    """Return the figures of all positions, at least one; `response_N` and `onset_ids` are int64, the latter below V."""
    found: Compared | None = None
    for at, p, q in distributions(student_ND, student_head_VD, teacher_NE, teacher_head_VE):
        block = _compared(p, q, response_N[at], onset_ids)
        # Written into columns made beforehand: small results kept between large temporary ones fragment the heap, which
        # then grows with the positions.
        found = found or Compared(*(column.new_empty(len(response_N)) for column in block))
        for whole, column in zip(found, block, strict=True):
            whole[at] = column
    return found


def _compared(p: Distribution, q: Distribution, response_C: Tensor, onset_ids: Tensor) -> Compared:
    ahead, back = forward_kl(p, q), reverse_kl(p, q)
    of_student, of_teacher = (each.log.topk(min(TOP_K, each.log.shape[-1])).indices for each in (p, q))
    overlap_C, advantage_C = _overlap(p, q, of_student, of_teacher)
    hears_C = torch.isin(of_teacher[:, 0], onset_ids)
    knows_C = torch.isin(of_student[:, :_STUDENTS_CHOICE], onset_ids).any(-1)
    return Compared(
        ahead.entries.sum(-1),
        back.entries.sum(-1),
        p.log_of(response_C),
        q.log_of(response_C),
        p.entropy(),
        q.entropy(),
        # The slopes of forward KL are p − q.
        ahead.slopes.norm(dim=-1),
        q.prob[:, onset_ids].sum(-1),
        overlap_C,
        advantage_C,
        of_teacher[:, 0],
        q.log_of(of_teacher[:, 0]),
        hears_C & ~knows_C,
    )


def _overlap(p: Distribution, q: Distribution, of_student: Tensor, of_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return the size of the intersection of two sets of tokens (C, K), and the advantage on it: (C,) each."""
    shared_CK = (of_student[:, :, None] == of_teacher[:, None, :]).any(-1)
    log_p, log_q = (
        each.log.gather(-1, of_student).masked_fill(~shared_CK, -torch.inf).log_softmax(-1) for each in (p, q)
    )
    terms_CK = (log_p.exp() * (log_q - log_p)).where(shared_CK, 0.0)
    size_C = shared_CK.sum(-1)
    return size_C.to(torch.int8), terms_CK.sum(-1) / size_C
