"""Turn a divergence into a training objective: its tokens, its clipping, its gradient.

Axes: C positions, V vocabulary, S the support of a divergence (V, or K of it). Each divergence's file has its formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trd_cli.losses.distribution import Distribution, Parts, Pointwise
from trd_cli.losses.entropy_gated import EntropyGatedOptions, entropy_gated
from trd_cli.losses.forward_kl import forward_kl, forward_kl_weights_held
from trd_cli.losses.jsd import JsdOptions, jsd
from trd_cli.losses.likelihood import likelihood
from trd_cli.losses.reverse_kl import reverse_kl, reverse_kl_weights_held
from trd_cli.losses.sampled import SampledOptions, sampled
from trd_cli.losses.top_k import TopKOptions, spread, top_k_support

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective(EntropyGatedOptions, SampledOptions, TopKOptions, JsdOptions):
    """A divergence by its name in `OBJECTIVES`, with its options.

    `clip_entry` bounds each vocabulary entry from above (arXiv 2601.18734), `clip_position` the sum over them at one
    position; a bounded value has no gradient. None does not clip. A divergence of the sampled token has one entry.
    `of_correct` names the divergence of positions in correct rows, None where they have the same as all.
    """

    name: str = "forward-kl"
    clip_entry: float | None = None
    clip_position: float | None = None
    of_correct: str | None = None

    def __call__(self, p: Distribution, q: Distribution, response_C: Tensor, correct_C: Tensor | None = None) -> Scores:
        """Score each position from the student's and the teacher's distribution over the vocabulary.

        `response_C`, int64, are the response's tokens; only `sampled` and `likelihood` read them. `correct_C`, bool,
        tells which positions are in correct rows (None: no one needs to know).
        """
        if self.of_correct is None or correct_C is None or not correct_C.any():
            return OBJECTIVES[self.name](self, p, q, response_C)
        found = OBJECTIVES[self.of_correct](self, p, q, response_C)
        if correct_C.all():
            return found
        others = OBJECTIVES[self.name](self, p, q, response_C)
        return Scores(
            found.value_C.where(correct_C, others.value_C),
            found.clipped_C.where(correct_C, others.clipped_C),
            found.grad_CV.where(correct_C[:, None], others.grad_CV),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the divergences that it takes."""
        return (self.name,) if self.of_correct is None else (self.name, self.of_correct)

    @property
    def gradient_is_of_value(self) -> bool:
        """Tell whether the gradient is the slope of the value, not of a surrogate (see `sampled` and `top_k`)."""
        if "sampled" in self.names and self.estimator == "k1":
            return False
        return not ("reverse-kl-topk" in self.names and self.top_k_mode == "stop-gradient")

    def vanishes(self, correct: bool) -> bool:
        """Tell whether value and gradient of a row are 0 where student and teacher agree, as those of a divergence."""
        return (self.of_correct if correct and self.of_correct else self.name) != "likelihood"

    def clip(self, parts: Parts, p: Distribution) -> tuple[Tensor, Tensor, Tensor]:
        """Return each position's value (C,), a mask of the clipped ones (C,), and the remaining slopes (in place)."""
        entries_CS, slopes_CS, shift = parts
        clipped_C = None
        if self.clip_entry is not None:
            over_CS = entries_CS > self.clip_entry
            entries_CS = entries_CS.clamp_(max=self.clip_entry)
            # A slope of 0, in the measure of `Parts`.
            slopes_CS = (p.prob * -shift).where(over_CS, slopes_CS)
            clipped_C = over_CS.any(-1)
        value_C = entries_CS.sum(-1)
        if self.clip_position is not None:
            over_C = value_C > self.clip_position
            value_C = value_C.clamp_(max=self.clip_position)
            slopes_CS = slopes_CS.masked_fill_(over_C[:, None], 0.0)
            clipped_C = over_C if clipped_C is None else clipped_C | over_C
        if clipped_C is None:
            clipped_C = value_C.new_zeros(value_C.shape).bool()
        return value_C, clipped_C, slopes_CS


class Scores(NamedTuple):
    """Divergence (C,), mask of the clipped positions (C,), and gradient by the student's logits (C, V)."""

    value_C: Tensor
    clipped_C: Tensor
    grad_CV: Tensor


Score = Callable[[Objective, Distribution, Distribution, "Tensor"], Scores]


def _on_vocabulary(pointwise: Callable[[Objective], Pointwise]) -> Score:
    def score(options: Objective, p: Distribution, q: Distribution, response_C: Tensor) -> Scores:
        value_C, clipped_C, slopes_CV = options.clip(pointwise(options)(p, q), p)
        return Scores(value_C, clipped_C, _through_softmax(slopes_CV, p))

    return score


def _on_top_k(pointwise: Pointwise, weights_held: Pointwise) -> Score:
    def score(options: Objective, p: Distribution, q: Distribution, response_C: Tensor) -> Scores:
        support = top_k_support(p, q, options.top_k, options.top_k_mode)
        held = options.top_k_mode == "stop-gradient"
        divergence = weights_held if held else pointwise
        value_C, clipped_C, slopes_CS = options.clip(divergence(support.p, support.q), support.p)
        if held:
            slopes_CV = p.log.new_zeros(p.log.shape).scatter_(-1, support.ids_CK, slopes_CS)
            return Scores(value_C, clipped_C, _through_softmax(slopes_CV, p))
        return Scores(value_C, clipped_C, spread(support, _through_softmax(slopes_CS, support.p), p))

    return score


def _on_response(pointwise: Callable[[Objective], Pointwise]) -> Score:
    def score(options: Objective, p: Distribution, q: Distribution, response_C: Tensor) -> Scores:
        ids_C1 = response_C[:, None]
        student, teacher = (Distribution.of_log(each.log.gather(-1, ids_C1)) for each in (p, q))
        value_C, clipped_C, slopes_C1 = options.clip(pointwise(options)(student, teacher), student)
        slopes_CV = p.log.new_zeros(p.log.shape).scatter_(-1, ids_C1, slopes_C1)
        return Scores(value_C, clipped_C, _through_softmax(slopes_CV, p))

    return score


def _through_softmax(slopes_CS: Tensor, p: Distribution) -> Tensor:
    """Turn slopes by log p into the gradient by the logits, s_v − p_v Σ s, in place."""
    return slopes_CS.addcmul_(p.prob, slopes_CS.sum(-1, keepdim=True), value=-1.0)


# `trd distill --objective` takes these names.
OBJECTIVES: dict[str, Score] = {
    "forward-kl": _on_vocabulary(lambda _: forward_kl),
    "reverse-kl": _on_vocabulary(lambda _: reverse_kl),
    "jsd": _on_vocabulary(lambda options: jsd(options.beta)),
    "entropy-gated": _on_vocabulary(lambda options: entropy_gated(options.entropy_threshold)),
    "forward-kl-topk": _on_top_k(forward_kl, weights_held=forward_kl_weights_held),
    "reverse-kl-topk": _on_top_k(reverse_kl, weights_held=reverse_kl_weights_held),
    "sampled": _on_response(lambda options: sampled(options.estimator)),
    "likelihood": _on_response(lambda _: likelihood),
}
