"""Reverse KL, the loss of on-policy distillation along y_o (MiniLLM, arXiv 2306.08543; GKD, arXiv 2306.13649).

    D = KL(π_θ ‖ π_T) = Σ_v p_v (log p_v − log q_v)        ∂D/∂z_v = p_v (log p_v − log q_v − D)

The student keeps to tokens that the teacher finds likely and may leave out some of them.
"""

from trd_cli.losses.distribution import Distribution, Parts


def reverse_kl(p: Distribution, q: Distribution) -> Parts:
    """Return slopes p_v (log p_v − log q_v + 1): the entries, plus p_v as the shift."""
    entries_CS = (p.log - q.log).mul_(p.prob)
    return Parts(entries_CS, entries_CS.clone(), 1.0)


def reverse_kl_weights_held(p: Distribution, q: Distribution) -> Parts:
    """Return the slopes of Σ_v sg[p_v log(p_v/q_v)] log p_v, on a support where p does not sum to one (`top_k`)."""
    entries_CS = (p.log - q.log).mul_(p.prob)
    return Parts(entries_CS, entries_CS.clone(), 0.0)
