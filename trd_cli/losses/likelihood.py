"""Negative log-likelihood of the response: supervised fine-tuning, and the loss along right rows in SCOPE (2604.10688).

    D = −log p_y        ∂D/∂z = p − 1[v = y]

It is no divergence: it does not read the teacher, and is not 0 where student and teacher agree.
"""

from trd_cli.losses.distribution import Distribution, Parts


def likelihood(p: Distribution, q: Distribution) -> Parts:
    """Return the loss for distributions that hold the response's token alone: (C, 1)."""
    return Parts(-p.log, -p.log.new_ones(p.log.shape), 0.0)
