"""Forward KL over the full vocabulary, from hidden states, a chunk of tokens at a time.

Axes: N response tokens, V vocabulary, D student width, E teacher width.

    L = Σ_n w_n · KL(π_T(·|n) ‖ π_θ(·|n)) = Σ_n w_n Σ_v π_T log(π_T / π_θ)

with ∂L/∂(student logits) = w_n (π_θ − π_T), so the gradient is formed while a chunk's logits are there and only chunk × V
of them are ever alive. TRD (arXiv 2606.08432) takes w_n = 1 / (|y_r| · trajectories).

Not covered: heads with a bias, and models that transform their logits (soft-capping, scaling): see `trainer`.
"""

from __future__ import annotations

import torch

CHUNK = 256


def forward_kl(
    student_ND: torch.Tensor,
    student_head_VD: torch.Tensor,
    teacher_NE: torch.Tensor,
    teacher_head_VE: torch.Tensor,
    weights_N: torch.Tensor,
    chunk: int = CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the positions' KL (scalar, float32) and the KL of each position (N,), float32 and detached.

    Differentiable in the student's hidden states and head; the teacher gets no gradient. Products are taken in the
    dtype of `student_ND`, everything from the logits on in float32. Heads of different length are cut to the shorter one:
    ids beyond it are padding that no tokenizer makes.
    """
    assert len(student_ND) == len(teacher_NE) == len(weights_N)
    vocabulary = min(len(student_head_VD), len(teacher_head_VE))
    return _ForwardKL.apply(
        student_ND,
        student_head_VD,
        teacher_NE,
        teacher_head_VE[:vocabulary],
        weights_N.float(),
        vocabulary,
        chunk,
    )


class _ForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student_ND, head_VD, teacher_NE, teacher_head_VE, weights_N, vocabulary, chunk):
        dtype = student_ND.dtype
        head = head_VD[:vocabulary].to(dtype)
        teacher_head = teacher_head_VE.to(teacher_NE.dtype)
        grad_student_ND = torch.empty_like(student_ND)
        grad_head_VD = torch.zeros(head_VD.shape, dtype=torch.float32, device=head_VD.device)
        kl_N = torch.empty(len(student_ND), dtype=torch.float32, device=student_ND.device)
        with torch.autocast(student_ND.device.type, enabled=False):
            for start in range(0, len(student_ND), chunk):
                at = slice(start, start + chunk)
                kl_N[at], grad_logits = _chunk(
                    student_ND[at] @ head.T, teacher_NE[at] @ teacher_head.T, weights_N[at]
                )
                grad_logits = grad_logits.to(dtype)
                grad_student_ND[at] = grad_logits @ head
                grad_head_VD[:vocabulary] += grad_logits.T @ student_ND[at]
        ctx.save_for_backward(grad_student_ND, grad_head_VD)
        ctx.head_dtype = head_VD.dtype
        ctx.mark_non_differentiable(kl_N)
        return (weights_N * kl_N).sum(), kl_N

    @staticmethod
    def backward(ctx, grad_loss, _):
        grad_student_ND, grad_head_VD = ctx.saved_tensors
        grad_head = (grad_head_VD * grad_loss).to(ctx.head_dtype)
        return grad_student_ND * grad_loss.to(grad_student_ND.dtype), grad_head, None, None, None, None, None


def _chunk(
    student_CV: torch.Tensor, teacher_CV: torch.Tensor, weights_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of each position (C,) and the gradient of the weighted sum with respect to the student's logits (C, V)."""
    student_CV, teacher_CV = student_CV.float(), teacher_CV.float()
    log_student_CV = student_CV.sub_(student_CV.logsumexp(-1, keepdim=True))
    log_teacher_CV = teacher_CV.sub_(teacher_CV.logsumexp(-1, keepdim=True))
    teacher_probability_CV = log_teacher_CV.exp()
    kl_C = (teacher_probability_CV * log_teacher_CV.sub_(log_student_CV)).sum(-1)
    grad_CV = log_student_CV.exp_().sub_(teacher_probability_CV).mul_(weights_C[:, None])
    return kl_C, grad_CV
