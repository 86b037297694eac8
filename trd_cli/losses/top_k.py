"""Any pointwise divergence on S, the teacher's K likeliest tokens (arXiv 2603.25562, eq. 6–8, with K = 32).

Three ways to treat the rest of the vocabulary:

    renormalise      both sides become distributions on S: p̂_v = p_v / Σ_S p, q̂ likewise; the rest does not count
    tail             the rest becomes one more symbol with the remaining probability, 1 − Σ_S p and 1 − Σ_S q
    stop-gradient    nothing is renormalised and the weight of log p is held constant: Σ_S sg[w_v] log p_v with
                     w = p log(p/q) for reverse KL, w = −q for forward KL (arXiv 2605.11182)

The plain sum over S of a reverse KL has the gradient Σ_S p (log(p/q) + 1) ∇log p. Its last term vanishes on the whole
vocabulary but not on S, where it drives mass out of S; none of the three has it. With K = V all three have the full
divergence's gradient. `stop-gradient` reports the truncated sum, which may be negative, and for forward KL draws mass
into S even where p = q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from trd_cli.losses.distribution import Distribution

if TYPE_CHECKING:
    from torch import Tensor

TopKMode = Literal["renormalise", "tail", "stop-gradient"]
_READERS = ("forward-kl-topk", "reverse-kl-topk")


@dataclass(frozen=True, kw_only=True)
class TopKOptions:
    """The size of S, and the treatment of the rest."""

    top_k: Annotated[int, Field(ge=1)] = field(default=32, metadata={"of": _READERS, "help": "Tokens of the support."})
    top_k_mode: TopKMode = field(
        default="renormalise",
        metadata={
            "of": _READERS,
            "help": "Renormalise both sides on the support, add the rest as one symbol, or hold the weights constant.",
        },
    )


class Support(NamedTuple):
    """S of each position: `ids_CK`, with p and q on it (C, K), or (C, K + 1) with the tail last."""

    ids_CK: Tensor
    p: Distribution
    q: Distribution


def top_k_support(p: Distribution, q: Distribution, k: int, mode: TopKMode) -> Support:
    """Return the K tokens with the largest q, at most V."""
    ids_CK = q.log.topk(min(k, q.log.shape[-1]), dim=-1).indices
    return Support(ids_CK, *(_restricted(each, ids_CK, mode) for each in (p, q)))


def _restricted(whole: Distribution, ids_CK: Tensor, mode: TopKMode) -> Distribution:
    log_CK = whole.log.gather(-1, ids_CK)
    if mode == "renormalise":
        return Distribution.of_logits(log_CK)
    if mode == "tail":
        # Summed over the tail itself, because 1 − Σ_S p would lose a small tail to rounding. Where S is the whole
        # vocabulary the tail is empty: -1e4 is a number that exp takes to 0 and that cancels between p and q.
        log_tail_C1 = whole.log.scatter(-1, ids_CK, -math.inf).logsumexp(-1, keepdim=True).clamp(min=-1e4)
        import torch

        log_CK = torch.cat([log_CK, log_tail_C1], -1)
    return Distribution.of_log(log_CK)


def spread(support: Support, grad_CS: Tensor, p: Distribution) -> Tensor:
    """Return the gradient on S as one on the logits (C, V). The tail's share is split in proportion to p."""
    k = support.ids_CK.shape[-1]
    if grad_CS.shape[-1] > k:
        grad_CV = (p.log - support.p.log[:, k:]).exp_().mul_(grad_CS[:, k:])
    else:
        grad_CV = p.log.new_zeros(p.log.shape)
    return grad_CV.scatter_(-1, support.ids_CK, grad_CS[:, :k])
