"""Forward KL, the loss of TRD along y_r (arXiv 2606.08432), and of supervised knowledge distillation along any text.

    D = KL(π_T ‖ π_θ) = Σ_v q_v (log q_v − log p_v)        ∂D/∂z = p − q

The student learns to cover everything that the teacher finds likely.
"""

from trd_cli.losses.distribution import Distribution, Parts


def forward_kl(p: Distribution, q: Distribution) -> Parts:
    """Return slopes −q_v, written as (p_v − q_v) − p_v."""
    return Parts((q.log - p.log).mul_(q.prob), p.prob - q.prob, -1.0)


def forward_kl_weights_held(p: Distribution, q: Distribution) -> Parts:
    """Return slopes −q_v unshifted, for a support on which p does not sum to one (see `top_k`)."""
    return Parts((q.log - p.log).mul_(q.prob), -q.prob, 0.0)
