"""g_γ, a family of estimators of the gradient of a sequence's reverse KL.

Axes: N trajectories, T steps, M micro-batches, D parameters.

    r_t = log π(a_t|s_t) − log q(a_t|s_t)
    g_γ = mean over trajectories of  Σ_t ( Σ_{t' ≥ t} γ^(t'−t) r_t' ) ∇ log π(a_t|s_t)

γ = 1 is unbiased for KL(π ‖ q) of whole trajectories; γ = 0 keeps the immediate term alone, as the loss on sampled
tokens does. After Fu et al., arXiv 2603.25562. No baseline is subtracted, as there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def future_sums(ratios_NT: Tensor, gamma: float) -> Tensor:
    """Return Σ_{t' ≥ t} γ^(t'−t) r_t' of each step, shape (N, T)."""
    sums_NT = torch.empty_like(ratios_NT)
    later_N = torch.zeros_like(ratios_NT[:, 0])
    for t in reversed(range(ratios_NT.shape[1])):
        later_N = ratios_NT[:, t] + gamma * later_N
        sums_NT[:, t] = later_N
    return sums_NT


def surrogate(logprobs_NT: Tensor, teacher_NT: Tensor, gamma: float) -> Tensor:
    """Return a scalar whose gradient is g_γ; its value means nothing.

    Both arguments are log-probabilities of the actions taken: of the student, with its graph, and of the teacher.
    """
    with torch.no_grad():
        sums_NT = future_sums(logprobs_NT - teacher_NT, gamma)
    return (sums_NT * logprobs_NT).sum(dim=1).mean()


class Spread(NamedTuple):
    """Hold the variance of a gradient over micro-batches and the squared norm of its mean, summed over parameters."""

    variance: float
    squared_norm: float


def spread(gradients_MD: Tensor) -> Spread:
    """Return the spread of M ≥ 2 gradients. The variance is that of one micro-batch and divides by M − 1."""
    return Spread(float(gradients_MD.var(dim=0).sum()), float(gradients_MD.mean(dim=0).square().sum()))
