"""Distributions over a support, one for each of C positions, and the result of a divergence between two of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Distribution(NamedTuple):
    """Probabilities and their logarithms, (C, S) each, float32 or float64. Divergences read them and never write."""

    log: Tensor
    prob: Tensor

    @classmethod
    def of_logits(cls, logits_CS: Tensor) -> Distribution:
        """Return the softmax of logits."""
        return cls(logits_CS.log_softmax(-1), logits_CS.softmax(-1))

    @classmethod
    def of_log(cls, log_CS: Tensor) -> Distribution:
        """Exponentiate logarithms. They need not sum to one."""
        return cls(log_CS, log_CS.exp())

    def log_of(self, ids_C: Tensor) -> Tensor:
        """Return the log-probability of one entry of each position (C,); `ids_C` is int64."""
        return self.log.gather(-1, ids_C[:, None])[:, 0]

    def entropy(self) -> Tensor:
        """Return the entropy of each position (C,), in nats."""
        return -(self.prob * self.log).sum(-1)


class Parts(NamedTuple):
    """Entries e_v and slopes (C, S) of a divergence. The receiver may overwrite both.

    The slopes are ∂e_v/∂log p_v − c·p_v with c = `shift`, a number or one for each position (C, 1). A multiple of p
    leaves the gradient by the logits as it is, because Σ p = 1. Without that multiple, p = q gives slopes and a
    gradient of exactly 0; with it, rounding leaves 1e-8, which AdamW blows up to whole steps.
    """

    entries: Tensor
    slopes: Tensor
    shift: float | Tensor


Pointwise = Callable[[Distribution, Distribution], Parts]
