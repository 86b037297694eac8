"""Reverse KL, plus forward KL where the teacher is unsure (EOPD, arXiv 2603.07079).

    D = KL(π_θ ‖ π_T) + 1[H(π_T) > h] · KL(π_T ‖ π_θ)        H in nats

Both terms are exact over the vocabulary.
"""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from trd_cli.losses.distribution import Distribution, Parts, Pointwise
from trd_cli.losses.forward_kl import forward_kl
from trd_cli.losses.reverse_kl import reverse_kl


@dataclass(frozen=True, kw_only=True)
class EntropyGatedOptions:
    """The threshold h, in nats."""

    entropy_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = field(
        default=0.8,
        metadata={"of": ("entropy-gated",), "help": "Forward KL is added above this entropy of the teacher, in nats."},
    )


def entropy_gated(threshold: float) -> Pointwise:
    """Return the divergence for one threshold h, in nats."""

    def divergence(p: Distribution, q: Distribution) -> Parts:
        entropy_C1 = -(q.prob * q.log).sum(-1, keepdim=True)
        gate_C1 = (entropy_C1 > threshold).to(entropy_C1.dtype)
        reverse, forward = reverse_kl(p, q), forward_kl(p, q)
        return Parts(
            reverse.entries.addcmul_(forward.entries, gate_C1),
            reverse.slopes.addcmul_(forward.slopes, gate_C1),
            reverse.shift + forward.shift * gate_C1,
        )

    return divergence
