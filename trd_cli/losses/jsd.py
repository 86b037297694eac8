"""Generalised Jensen–Shannon divergence (GKD, arXiv 2306.13649, section 2).

    m = β q + (1 − β) p        D = β KL(π_T ‖ m) + (1 − β) KL(π_θ ‖ m)        ∂e_v/∂log p_v = (1 − β) p_v log(p_v / m_v)

β weighs the teacher, as in GKD. As β → 0, D/β → KL(π_T ‖ π_θ), forward; as β → 1, D/(1 − β) → KL(π_θ ‖ π_T), reverse.
D itself vanishes at both ends, so β = 0 and β = 1 stand for those two limits. Bounded by log 2 at β = 1/2.
"""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from trd_cli.losses.distribution import Distribution, Parts, Pointwise
from trd_cli.losses.forward_kl import forward_kl
from trd_cli.losses.reverse_kl import reverse_kl


@dataclass(frozen=True, kw_only=True)
class JsdOptions:
    """The weight β."""

    beta: Annotated[float, Field(ge=0, le=1)] = field(
        default=0.5, metadata={"of": ("jsd",), "help": "Weight of the teacher; 0 is forward, 1 reverse KL."}
    )


def jsd(beta: float) -> Pointwise:
    """Return the divergence for one β in [0, 1]."""
    if beta == 0.0:
        return forward_kl
    if beta == 1.0:
        return reverse_kl

    def divergence(p: Distribution, q: Distribution) -> Parts:
        gap_CS = q.log - p.log
        share_CS = gap_CS.new_full(gap_CS.shape, 1.0 - beta).masked_fill_(gap_CS <= 0, beta)
        # log(m / max(p, q)): no overflow, small where p and q are close, and exactly 0 where they are equal.
        rest_CS = ((-gap_CS.abs()).expm1() * share_CS).log1p()
        slopes_CS = (gap_CS.clamp(min=0) + rest_CS).mul_(p.prob).mul_(beta - 1.0)
        entries_CS = (gap_CS.clamp(max=0) - rest_CS).mul_(q.prob).mul_(beta).add_(slopes_CS)
        return Parts(entries_CS, slopes_CS, 0.0)

    return divergence
