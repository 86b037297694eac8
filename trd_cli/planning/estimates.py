"""What stages need, from a few sizes of their models: bytes of memory and disk, tokens, hours.

Sizes: P parameters, V vocabulary, D width, T tokens of a forward pass. Weights, keys and values, gradients and
optimiser are exact for what the code holds; activations are rough, within a factor of two.

Not covered: what the framework itself takes (CUDA context, allocator, vLLM's graphs: one to three GiB), the memory of
the host, attention that is not of all heads in every layer (sliding windows, linear attention, latent keys).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trd_cli.losses import chunk_bytes

GIB = 2**30
BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# float32 master weight, gradient, and AdamW's two moments.
_MASTER, _GRADIENT, _MOMENTS = 4, 4, 8
# Of weights in shards, a layer is whole while it computes, and the next one is fetched meanwhile.
_LAYERS_AT_ONCE = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. `kv_width` is key-value heads times their width, `inner` the width inside the feed-forward
    block.

    `tied` tells that the output head is the input embedding.
    """

    parameters: int
    vocabulary: int
    width: int
    layers: int
    kv_width: int
    inner: int
    tied: bool = False

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of keys and values a token takes in all layers."""
        return 2 * self.layers * self.kv_width * BYTES[dtype]

    def head_bytes(self, dtype: str) -> int:
        return self.vocabulary * self.width * BYTES[dtype]

    @property
    def layer_parameters(self) -> int:
        """Return the parameters of one layer: its share of what neither embedding nor head takes."""
        outside = self.vocabulary * self.width * (1 if self.tied else 2)
        return max(0, self.parameters - outside) // max(1, self.layers)

    def whole_bytes(self, dtype: str) -> int:
        """Return the bytes of sharded weights that are whole at one time:

        the head, two layers, and an untied embedding.
        """
        apart = 0 if self.tied else self.head_bytes(dtype)
        return self.head_bytes(dtype) + apart + _LAYERS_AT_ONCE * self.layer_parameters * BYTES[dtype]


def adapter_parameters(rank: int, linears: Sequence[tuple[int, int]]) -> int:
    """Parameters of a low-rank adapter on linear layers of (in, out) features."""
    return sum(rank * (inputs + outputs) for inputs, outputs in linears)


@dataclass(frozen=True)
class Need:
    """Bytes by what they are for, in the order in which they are told."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def generating(shape: Shape, dtype: str, longest: int, at_once: int = 1) -> Need:
    """Weights, and keys and values of `at_once` sequences of the longest length."""
    weights = shape.parameters * BYTES[dtype]
    return Need({"weights": weights, "keys and values": at_once * longest * shape.kv_bytes(dtype)})


def training(
    student: Shape,
    teacher: Shape | None,
    dtype: str,
    tokens: int,
    *,
    adapter: int = 0,
    averaged: bool = False,
    checkpointing: bool = False,
    shards: int = 1,
) -> Need:
    """Return what one process of trd distill holds. `teacher` is None where it has no weights of its own (the student's
    without its adapter).

    `tokens` are those of a forward pass on the longer side; `adapter` the adapter's parameters, 0 where all are
    trained; `averaged` holds a float32 average of what is trained, in place of a teacher. With `shards`, FSDP2 cuts
    weights, gradients, moments and teacher over so many processes.
    """
    trained = adapter or student.parameters
    frozen = student.parameters * BYTES[dtype] if adapter else 0
    is_cast = not adapter and dtype != "float32" and shards == 1
    # Autocast keeps the weights it has cast while a forward pass lasts.
    cast = student.parameters * BYTES[dtype] if is_cast else 0
    of_teacher = trained * _MASTER if averaged else (teacher.parameters * BYTES[dtype] if teacher else 0)
    held = {
        "weights": frozen + trained * _MASTER + cast,
        "gradients": trained * _GRADIENT,
        "optimiser": trained * _MOMENTS,
        "teacher": of_teacher,
    }
    return Need(
        {
            **{name: -(-size // shards) for name, size in held.items()},
            "whole while it computes": _whole(student, teacher, dtype, trains_all=not adapter) if shards > 1 else 0,
            "logits": logits(student, dtype, head_is_trained=not adapter),
            "activations": activations(student, dtype, tokens, checkpointing),
        }
    )


def _whole(student: Shape, teacher: Shape | None, dtype: str, trains_all: bool) -> int:
    """What shards do not make smaller:

    gathered weights of both sides, and the gradient of the largest unit on its way to the others.
    """
    gathered = student.whole_bytes(dtype) + (teacher.whole_bytes(dtype) if teacher else 0)
    largest = max(student.layer_parameters, student.vocabulary * student.width)
    # As it comes out of the backward pass, and in float32 as it is sent.
    return gathered + (largest * (BYTES[dtype] + _GRADIENT) if trains_all else 0)


def logits(shape: Shape, dtype: str, head_is_trained: bool) -> int:
    """A chunk's logits of both sides with working copies, and the float32 gradient of the head where it is trained."""
    return chunk_bytes(shape.vocabulary, BYTES[dtype]) + (shape.head_bytes("float32") if head_is_trained else 0)


def activations(shape: Shape, dtype: str, tokens: int, checkpointing: bool) -> int:
    """Roughly what the backward pass needs kept: a layer's inputs, or all that its products read.

    A layer keeps about eight tensors of its width (norms' inputs and outputs, query, attention's output, residuals),
    keys and values, and three of the inner width. With checkpointing that holds for one layer at a time.
    """
    whole = tokens * (8 * shape.width + 2 * shape.kv_width + 3 * shape.inner) * BYTES[dtype]
    if not checkpointing:
        return shape.layers * whole
    return whole + shape.layers * tokens * shape.width * BYTES[dtype]


# Bytes a token takes in a shard before compression: an id, and its text; a response's has a log-probability too.
_ID, _TEXT, _LOGPROB = 4, 4, 4
_FIXED = 600  # ids, names, digests and numbers of a row


def row_bytes(prompt: int, response: int, problem_text: int, student_prompt: int = 0) -> int:
    """Bytes of one row before compression, which takes off a half to two thirds.

    `prompt`, `response` and `student_prompt` (of refined rows) in tokens; `problem_text` is the problem with its
    reference and tests, in bytes.
    """
    per_prompt, per_response = _ID + _TEXT, _ID + _TEXT + _LOGPROB
    return _FIXED + problem_text + prompt * per_prompt + response * per_response + student_prompt * _ID


def hours(tokens: float, per_second: float) -> float:
    return tokens / per_second / 3600
