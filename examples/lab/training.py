"""Train one model of the lab: the loss, the schedule, and a state from which a training goes on."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from policies import Novice
from rows import POOL, Batch, batch_at
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from vocabulary import END, PAD, VOCABULARY, WINDOW

from trd_cli.atomic import write_bytes

_SHOW_SECONDS = 15.0
_WARM_UP, _LAST_RATE = 50, 0.02
# Embeddings begin this many times as far apart as other weights.
_SPREAD = 4


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 320


@dataclass(frozen=True)
class Lesson:
    """One training: its name, which decides its rows, and how long and how fast it goes."""

    name: str
    steps: int
    rate: float
    rows: int
    forms: Mapping[str, float]
    novice: Novice | None = None


def new_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """Return an untrained model. Tokens with a letter or a digit in common begin alike in part."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        bos_token_id=None,
        eos_token_id=VOCABULARY[END],
        pad_token_id=VOCABULARY[PAD],
    )
    model = LlamaForCausalLM(config)
    weights = model.model.embed_tokens.weight
    with torch.no_grad():
        weights *= _SPREAD
        for token, i in VOCABULARY.items():
            if len(token) == 2:
                weights[i] = 0.5 * (weights[VOCABULARY[token[0]]] + weights[VOCABULARY[token[1]]]) + 0.7 * weights[i]
    return model


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Return the mean KL divergence of the model from the targets, over the places that count: a scalar."""
    hidden = model.model(input_ids=batch.ids).last_hidden_state.flatten(0, 1)[batch.places]
    logprobs_NV = model.lm_head(hidden).log_softmax(-1)
    return (torch.special.xlogy(batch.targets, batch.targets) - batch.targets * logprobs_NV).sum(-1).mean()


def train(model: LlamaForCausalLM, lesson: Lesson, state: Path, save_seconds: float) -> None:
    """Train a model from its saved state on, if there is one, and save the state again after so many seconds.

    The file stays: whoever saves the model removes it.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    begun = _load(state, model, optimizer)
    if begun:
        print(f"{lesson.name}: goes on after step {begun}", file=sys.stderr)
    shown, saved = _Shown(lesson, begun), time.monotonic()
    model.train()
    for step in range(begun, lesson.steps):
        if step % POOL == 0 or step == begun:
            pool = batch_at(lesson.name, step - step % POOL, lesson.rows, lesson.forms, lesson.novice)
        optimizer.param_groups[0]["lr"] = lesson.rate * _rate(step, lesson.steps)
        loss = loss_of(model, pool[step % POOL])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        shown.add(step + 1, loss.item())
        if time.monotonic() - saved > save_seconds:
            _save(state, model, optimizer, step + 1)
            saved = time.monotonic()
    model.eval()


def _rate(step: int, steps: int) -> float:
    """Return the share of the peak rate: it rises, then falls in a line."""
    return min(1.0, (step + 1) / min(_WARM_UP, steps)) * (1 - (1 - _LAST_RATE) * step / steps)


def _save(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    content = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, content)
    write_bytes(path, content.getvalue())


def _load(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


class _Shown:
    """Show a line on standard error now and then: the step, the loss, and the rate."""

    def __init__(self, lesson: Lesson, begun: int) -> None:
        self._lesson, self._begun, self._start = lesson, begun, time.monotonic()
        self._losses: list[float] = []
        self._last = self._start

    def add(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._last < _SHOW_SECONDS and step < self._lesson.steps:
            return
        rate = (step - self._begun) / max(now - self._start, 1e-9)
        left = (self._lesson.steps - step) / rate
        mean = sum(self._losses) / len(self._losses)
        name = f"{self._lesson.name}: step {step} of {self._lesson.steps}"
        print(f"{name}, KL {mean:.4f}, {rate * self._lesson.rows:.0f} rows/s, {left:.0f} s left", file=sys.stderr)
        self._losses, self._last = [], now
