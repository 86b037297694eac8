"""Monte-Carlo reverse KL from the one sampled token y (estimators: Schulman, "Approximating KL Divergence", 2020).

With r = q_y / p_y:

    k1 = −log r              k2 = ½ (log r)²              k3 = r − 1 − log r
    slope −log r             slope −log r                 slope 1 − r                (∂/∂log p_y; 0 for other tokens)

k1 and k3 are unbiased estimates of KL(π_θ ‖ π_T) when y ~ π_θ. Training uses their gradients. k1's own gradient has
mean zero, so k1 is trained with the score function's, log(p/q) ∇log p, a policy gradient with reward log(q/p). It is
unbiased for reverse KL and equals k2's own. k3's own gradient is, in the mean over y ~ π_θ, that of *forward* KL
(discussed in arXiv 2506.09477); it is offered because others use it.

Not covered: a correction for tokens drawn at another temperature, with top-p, or by another model (y_r); and k3 where
the teacher is likelier by more than 88 nats, which overflows float32 (a clip bounds it).
"""

from dataclasses import dataclass, field
from typing import Literal

from trd_cli.losses.distribution import Distribution, Parts, Pointwise

Estimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, kw_only=True)
class SampledOptions:
    """The estimator."""

    estimator: Estimator = field(
        default="k1",
        metadata={"of": ("sampled",), "help": "Monte-Carlo estimator of reverse KL; k3's gradient is forward KL's."},
    )


def sampled(estimator: Estimator) -> Pointwise:
    """Return one estimator, for distributions that hold the sampled token alone: (C, 1)."""

    def divergence(p: Distribution, q: Distribution) -> Parts:
        log_r_C1 = q.log - p.log
        if estimator == "k1":
            return Parts(-log_r_C1, -log_r_C1, 0.0)
        if estimator == "k2":
            return Parts(log_r_C1.square() / 2, -log_r_C1, 0.0)
        r_minus_1_C1 = log_r_C1.expm1()
        return Parts(r_minus_1_C1 - log_r_C1, -r_minus_1_C1, 0.0)

    return divergence
