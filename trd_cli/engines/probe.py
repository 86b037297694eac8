"""Prove that an engine has the weights of a checkpoint: a few tokens, and what the checkpoint says of them.

`probe.json` in a checkpoint holds token ids of a trained row and the log-probabilities that the saved weights give
them. An engine that has taken a checkpoint's weights while it ran scores the same ids. If its figures differ by more
than rounding in its dtype explains, it has other weights.

In float32 that finds the weights of one step earlier: a step of AdamW at a learning rate of 1e-6 moves the mean of a
random tiny model by 6e-5, that of SmolLM2-135M by 2e-3. In bfloat16 it does not: a step at 1e-4 moves SmolLM2's mean
from 0.05, which is rounding, to 0.07. There it finds weights that are many steps off, of another model, or garbage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trd_cli.atomic import write_text
from trd_cli.model_files import PROBE

if TYPE_CHECKING:
    import torch
    from torch import nn

# The largest mean difference of an engine's log-probabilities from the probe's, by the engine's dtype. On a CPU, with
# 64 ids, rounding alone gave in float32 1e-6 (random models of a few thousand weights), 3e-6 (SmolLM2-135M) and 7e-6
# (the same in vLLM), in bfloat16 4e-2 and 3e-2 to 6e-2, with single ids up to 0.2 and 0.6. One word over and over gave
# 0.5 in bfloat16: after such a row an engine starts anew without need.
LIMITS = {"float32": 3e-5, "bfloat16": 0.15, "float16": 0.02}
# Most ids of a probe, and those of them that are the end of the prompt.
LENGTH, _OF_THE_PROMPT = 64, 32


@dataclass(frozen=True)
class Probe:
    """Hold token ids and the log-probabilities, in float32, of each but the first after those before it."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]


def probe_ids(prompt: Sequence[int], response: Sequence[int]) -> list[int]:
    """Return at most `LENGTH` ids of a row: the end of its prompt and the beginning of its response."""
    tail = list(prompt)[-_OF_THE_PROMPT:]
    return tail + list(response)[: LENGTH - len(tail)]


def logprobs_of(model: nn.Module, token_ids: Sequence[int]) -> list[float]:
    """Return the log-probability of each id but the first, by a causal language model as it stands.

    The model computes in its own dtype, on its own device; the softmax is taken in float32.
    """
    import torch

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            ids_L = torch.tensor(list(token_ids), device=next(model.parameters()).device)
            logits_LV = model(input_ids=ids_L[None], use_cache=False).logits[0].float()
            logprobs_LV = logits_LV[:-1].log_softmax(-1)
            return logprobs_LV.gather(-1, ids_L[1:, None])[:, 0].tolist()
    finally:
        model.train(training)


def difference(probe: Probe, logprobs: Sequence[float]) -> float:
    """Return the mean absolute difference of an engine's log-probabilities from the probe's; NaN if one is NaN."""
    pairs = zip(probe.logprobs, logprobs, strict=True)
    return sum(abs(expected - found) for expected, found in pairs) / len(probe.logprobs)


def write_probe(directory: Path, model: nn.Module, token_ids: Sequence[int], dtype: torch.dtype) -> None:
    """Write the probe of a checkpoint whose weights are those of `model`, in float32, rounded to `dtype`.

    They are rounded in place. A model that was cast to `dtype` as a whole would not do: that rounds its rotary factors
    too, which no checkpoint holds. Write the probe before config.json, which makes the directory a model.
    """
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
    probe = Probe([int(i) for i in token_ids], logprobs_of(model, token_ids))
    write_text(directory / PROBE, json.dumps(asdict(probe)) + "\n")


def read_probe(directory: Path) -> Probe | None:
    """Return a checkpoint's probe, or None if it has none that can be read."""
    try:
        found = json.loads((directory / PROBE).read_text(encoding="utf-8"))
        probe = Probe([int(i) for i in found["token_ids"]], [float(value) for value in found["logprobs"]])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return probe if len(probe.token_ids) == len(probe.logprobs) + 1 > 1 else None
