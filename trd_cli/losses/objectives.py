"""From a divergence to a training objective: which tokens it is taken over, what is clipped, and its gradient.

Axes: C positions, V vocabulary, S the support of a divergence (V, or K of it). See `core/divergences/` for the
formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trd_cli.losses.distribution import Distribution, Parts, Pointwise
from trd_cli.losses.entropy_gated import entropy_gated
from trd_cli.losses.forward_kl import forward_kl, forward_kl_weights_held
from trd_cli.losses.jsd import jsd
from trd_cli.losses.reverse_kl import reverse_kl, reverse_kl_weights_held
from trd_cli.losses.sampled import Estimator, sampled
from trd_cli.losses.top_k import TopKMode, spread, top_k_support


@dataclass(frozen=True)
class Objective:
    """A divergence by name, with the options that some of them read.

    `clip_entry` bounds each vocabulary entry from above (arXiv 2601.18734), `clip_position` the sum over them at one
    position; what is bounded has no gradient. None does not clip. A divergence of the sampled token has one entry.
    """

    name: str = "forward-kl"
    beta: float = 0.5
    k: int = 32
    top_k_mode: TopKMode = "renormalise"
    estimator: Estimator = "k1"
    entropy_threshold: float = 0.8
    clip_entry: float | None = None
    clip_position: float | None = None

    def __call__(self, p: Distribution, q: Distribution, response_C: Tensor) -> Scores:
        """Divergence of each position from the student's and the teacher's distribution over the vocabulary.

        `response_C`, int64, are the tokens that stand there; only `sampled` reads them.
        """
        return OBJECTIVES[self.name](self, p, q, response_C)

    @property
    def gradient_is_of_value(self) -> bool:
        """Whether the gradient is the slope of the value; else it is that of a surrogate, see `sampled` and `top_k`."""
        if self.name == "sampled":
            return self.estimator != "k1"
        return not (self.name == "reverse-kl-topk" and self.top_k_mode == "stop-gradient")

    def clip(self, parts: Parts, p: Distribution) -> tuple[Tensor, Tensor, Tensor]:
        """Value (C,) and whether anything was clipped (C,) of each position, and the slopes that remain (in place)."""
        entries_CS, slopes_CS, shift = parts
        clipped_C = None
        if self.clip_entry is not None:
            over_CS = entries_CS > self.clip_entry
            entries_CS = entries_CS.clamp_(max=self.clip_entry)
            # A slope of 0, in the measure of `Parts`.
            slopes_CS = torch.where(over_CS, p.prob * -shift, slopes_CS)
            clipped_C = over_CS.any(-1)
        value_C = entries_CS.sum(-1)
        if self.clip_position is not None:
            over_C = value_C > self.clip_position
            value_C = value_C.clamp_(max=self.clip_position)
            slopes_CS = slopes_CS.masked_fill_(over_C[:, None], 0.0)
            clipped_C = over_C if clipped_C is None else clipped_C | over_C
        if clipped_C is None:
            clipped_C = torch.zeros_like(value_C, dtype=torch.bool)
        return value_C, clipped_C, slopes_CS


class Scores(NamedTuple):
    """Of each position:

    the divergence (C,), whether it was clipped (C,), its gradient by the student's logits (C, V).
    """

    value_C: Tensor
    clipped_C: Tensor
    grad_CV: Tensor


Score = Callable[[Objective, Distribution, Distribution, Tensor], Scores]


def _on_vocabulary(pointwise: Callable[[Objective], Pointwise]) -> Score:
    def score(options: Objective, p: Distribution, q: Distribution, response_C: Tensor) -> Scores:
        value_C, clipped_C, slopes_CV = options.clip(pointwise(options)(p, q), p)
        return Scores(value_C, clipped_C, _through_softmax(slopes_CV, p))

    return score


def _on_top_k(pointwise: Pointwise, weights_held: Pointwise) -> Score:
    def score(options: Objective, p: Distribution, q: Distribution, response_C: Tensor) -> Scores:
        support = top_k_support(p, q, options.k, options.top_k_mode)
        held = options.top_k_mode == "stop-gradient"
        divergence = weights_held if held else pointwise
        value_C, clipped_C, slopes_CS = options.clip(divergence(support.p, support.q), support.p)
        if held:
            slopes_CV = torch.zeros_like(p.log).scatter_(-1, support.ids_CK, slopes_CS)
            return Scores(value_C, clipped_C, _through_softmax(slopes_CV, p))
        return Scores(value_C, clipped_C, spread(support, _through_softmax(slopes_CS, support.p), p))

    return score


def _on_sampled_token(options: Objective, p: Distribution, q: Distribution, response_C: Tensor) -> Scores:
    ids_C1 = response_C[:, None]
    student, teacher = (Distribution.of_log(each.log.gather(-1, ids_C1)) for each in (p, q))
    value_C, clipped_C, slopes_C1 = options.clip(sampled(options.estimator)(student, teacher), student)
    slopes_CV = torch.zeros_like(p.log).scatter_(-1, ids_C1, slopes_C1)
    return Scores(value_C, clipped_C, _through_softmax(slopes_CV, p))


def _through_softmax(slopes_CS: Tensor, p: Distribution) -> Tensor:
    """From slopes by log p to the gradient by the logits: s_v − p_v Σ s (in place of the slopes)."""
    return slopes_CS.addcmul_(p.prob, slopes_CS.sum(-1, keepdim=True), value=-1.0)


OBJECTIVES: dict[str, Score] = {
    "forward-kl": _on_vocabulary(lambda _: forward_kl),
    "reverse-kl": _on_vocabulary(lambda _: reverse_kl),
    "jsd": _on_vocabulary(lambda options: jsd(options.beta)),
    "entropy-gated": _on_vocabulary(lambda options: entropy_gated(options.entropy_threshold)),
    "forward-kl-topk": _on_top_k(forward_kl, weights_held=forward_kl_weights_held),
    "reverse-kl-topk": _on_top_k(reverse_kl, weights_held=reverse_kl_weights_held),
    "sampled": _on_sampled_token,
}
