"""A distribution over a support, for each of C positions, as probabilities and their logarithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Distribution(NamedTuple):
    """`log` and `prob`, (C, S) each, float32 or float64. Divergences read them and never write to them."""

    log: Tensor
    prob: Tensor

    @classmethod
    def of_logits(cls, logits_CS: Tensor) -> Distribution:
        """The softmax of logits."""
        return cls(logits_CS.log_softmax(-1), logits_CS.softmax(-1))

    @classmethod
    def of_log(cls, log_CS: Tensor) -> Distribution:
        """From logarithms that need not sum to one."""
        return cls(log_CS, log_CS.exp())


class Parts(NamedTuple):
    """A divergence entry by entry: `entries` e_v and `slopes` (C, S), both the receiver's to overwrite.

    The slopes are ∂e_v/∂log p_v − c·p_v with c = `shift`, a number or one for each position (C, 1). A multiple of p
    makes no difference to the gradient by the logits, as Σ p = 1; without it, p = q gives slopes and a gradient of
    exactly 0. With it, rounding would leave 1e-8, which AdamW blows up to whole steps.
    """

    entries: Tensor
    slopes: Tensor
    shift: float | Tensor


Pointwise = Callable[[Distribution, Distribution], Parts]
