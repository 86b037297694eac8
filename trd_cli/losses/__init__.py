"""Objectives of training: one short file a divergence, pure functions of probabilities.

p is the student π_θ, q the teacher π_T. Axes: C positions, V vocabulary, S a support (the vocabulary, or the teacher's
top K). A *pointwise* divergence D = Σ_v e(p_v, q_v) maps two distributions to `Parts`: entries e_v and slopes
s_v = ∂e_v/∂log p_v. The slopes give the gradient with respect to the logits: ∂D/∂z_v = s_v − p_v Σ_u s_u.

A file whose divergence has options declares them in a dataclass that `Objective` inherits. A field's metadata names the
objectives that read it (`of`) and its help; `trd distill` offers a flag of the field's name and type. So only `fused`
and `positions` import torch at import time: the command line reads names and options without it.
"""

# Tokens whose logits exist at one time.
CHUNK = 256
# Float32 tensors that `fused` holds of a chunk beside the logits of both sides: probabilities and logarithms of both,
# entries and slopes of the divergence, the gradient, and one at work.
_COPIES = 8


def chunk_bytes(vocabulary: int, number: int) -> int:
    """Return the bytes that the logits of one chunk take with their working copies; a logit has `number` bytes."""
    return CHUNK * vocabulary * (2 * number + _COPIES * 4)
