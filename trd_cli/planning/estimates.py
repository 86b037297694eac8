"""Estimate what a stage needs from the sizes of its models: bytes of memory and of disk.

Weights, keys and values, gradients and optimiser are exact for what the code holds; activations are rough, within a
factor of two. Not covered: what the framework itself takes (CUDA context, allocator, vLLM's graphs: one to three GiB),
the memory of the host, attention that is not of all heads in every layer (sliding windows, linear attention, latent
keys).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trd_cli.losses import chunk_bytes

GIB = 2**30
BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# float32 master weight, gradient, and AdamW's two moments.
_MASTER, _GRADIENT, _MOMENTS = 4, 4, 8
# Of sharded weights, a layer is whole while it computes, and the next one is fetched meanwhile.
_LAYERS_AT_ONCE = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    `kv_width` is key-value heads times their width, `inner` the width inside the feed-forward block. The output head
    of a `tied` one is the input embedding.
    """

    parameters: int
    vocabulary: int
    width: int
    layers: int
    kv_width: int
    inner: int
    tied: bool = False

    def kv_bytes(self, dtype: str) -> int:
        """Return the bytes of a token's keys and values in all layers."""
        return 2 * self.layers * self.kv_width * BYTES[dtype]

    @property
    def head_parameters(self) -> int:
        """Return the parameters of the output head."""
        return self.vocabulary * self.width

    @property
    def embedding_parameters(self) -> int:
        """Return the parameters of the output head and of an input embedding that is not tied to it."""
        return self.head_parameters * (1 if self.tied else 2)

    @property
    def layer_parameters(self) -> int:
        """Return the parameters of one layer: its share of what is no embedding."""
        return max(0, self.parameters - self.embedding_parameters) // max(1, self.layers)


def adapter_parameters(rank: int, linears: Sequence[tuple[int, int]]) -> int:
    """Return the parameters of a low-rank adapter on linear layers of (in, out) features."""
    return sum(rank * (inputs + outputs) for inputs, outputs in linears)


@dataclass(frozen=True)
class Need:
    """Bytes by purpose, in the order of the report."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def generating(shape: Shape, dtype: str, longest: int, at_once: int = 1) -> Need:
    """Return weights, and keys and values of `at_once` sequences of `longest` tokens."""
    weights = shape.parameters * BYTES[dtype]
    return Need({"weights": weights, "keys and values": at_once * longest * shape.kv_bytes(dtype)})


def comparing(student: Shape, teacher: Shape, dtype: str) -> Need:
    """Return the weights of two models and what comparing their distributions takes, but no activations."""
    weights = {name: each.parameters * BYTES[dtype] for name, each in (("weights", student), ("teacher", teacher))}
    return Need({**weights, "logits": chunk_bytes(student.vocabulary, BYTES[dtype])})


def training(
    student: Shape,
    teacher: Shape | None,
    dtype: str,
    tokens: int,
    *,
    adapter: int = 0,
    copied: bool = False,
    checkpointing: bool = False,
    shards: int = 1,
) -> Need:
    """Return what one process of trd distill holds.

    `teacher` is None where it is the student without its adapter. `tokens` are those of a forward pass on the longer
    side. `adapter` is the number of its parameters, 0 where all weights are trained. `copied` holds a float32 copy of
    what is trained (an average, or its start) in place of a teacher. With `shards`, FSDP2 cuts weights, gradients,
    moments and teacher over so many processes.
    """
    trained = adapter or student.parameters
    frozen = student.parameters * BYTES[dtype] if adapter else 0
    is_cast = not adapter and dtype != "float32" and shards == 1
    # Autocast keeps the weights it has cast while a forward pass lasts.
    cast = student.parameters * BYTES[dtype] if is_cast else 0
    of_teacher = trained * _MASTER if copied else (teacher.parameters * BYTES[dtype] if teacher else 0)
    held = {
        "weights": frozen + trained * _MASTER + cast,
        "gradients": trained * _GRADIENT,
        "optimiser": trained * _MOMENTS,
        "teacher": of_teacher,
    }
    head_gradient = 0 if adapter else student.head_parameters * _GRADIENT
    return Need(
        {
            **{name: -(-size // shards) for name, size in held.items()},
            "whole while it computes": _whole(student, teacher, dtype, trains_all=not adapter) if shards > 1 else 0,
            "logits": chunk_bytes(student.vocabulary, BYTES[dtype]) + head_gradient,
            "activations": activations(student, dtype, tokens, checkpointing),
        }
    )


def _whole(student: Shape, teacher: Shape | None, dtype: str, trains_all: bool) -> int:
    """Return what shards do not make smaller: gathered weights of both sides, and the largest gradient that is sent."""
    sides = [student, teacher] if teacher else [student]
    gathered = sum(side.embedding_parameters + _LAYERS_AT_ONCE * side.layer_parameters for side in sides) * BYTES[dtype]
    # A gradient in the dtype of the backward pass, and in float32 as it is sent.
    return gathered + (
        max(student.layer_parameters, student.head_parameters) * (BYTES[dtype] + _GRADIENT) if trains_all else 0
    )


def activations(shape: Shape, dtype: str, tokens: int, checkpointing: bool) -> int:
    """Return roughly what the backward pass keeps: all that the products of a layer read.

    A layer keeps about eight tensors of its width (norms' inputs and outputs, query, attention's output, residuals),
    keys and values, and three of the inner width. With checkpointing that is one layer at a time, and every input.
    """
    whole = tokens * (8 * shape.width + 2 * shape.kv_width + 3 * shape.inner) * BYTES[dtype]
    if not checkpointing:
        return shape.layers * whole
    return whole + shape.layers * tokens * shape.width * BYTES[dtype]


# Bytes of a token in a shard before compression: an id, and its text; a response's has a log-probability too.
_ID, _TEXT, _LOGPROB = 4, 4, 4
_FIXED = 900  # ids, names, digests and numbers of a row, and its part of a small shard's footer


def row_bytes(prompt: int, response: int, problem_text: int, student_prompt: int = 0) -> int:
    """Return the bytes of one row before compression, which takes off a half to two thirds.

    `prompt`, `response` and `student_prompt` (of refined rows) are tokens. `problem_text` is the problem with its
    reference and tests, in bytes.
    """
    per_prompt, per_response = _ID + _TEXT, _ID + _TEXT + _LOGPROB
    return _FIXED + problem_text + prompt * per_prompt + response * per_response + student_prompt * _ID
