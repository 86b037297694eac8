"""The distillation loop: AdamW on float32 weights, bfloat16 compute, one KL step after another.

Not covered yet: several processes, and resuming inside a run; both are refused or restarted, never guessed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trd_cli.config import DistillConfig
from trd_cli.errors import InputError, ModelError, TrdError, first_line
from trd_cli.models import ModelRef
from trd_cli.reporting import Report
from trd_cli.training.batches import Batch, Example, Side, micro_batches, steps
from trd_cli.training.checkpoints import save_model
from trd_cli.training.loss import forward_kl

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Trained:
    """Sum of a run: optimiser steps, response tokens seen, seconds, first and last loss."""

    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float


class DistillStep(nn.Module):
    """Student in, loss out: everything that needs the student's parameters happens inside one forward call."""

    def __init__(self, student: nn.Module, compute: torch.dtype) -> None:
        """`compute` is the dtype of matrix products; the weights stay as they are."""
        super().__init__()
        self.student, self.compute = student, compute

    def forward(self, batch: Batch, teacher_NE: torch.Tensor, teacher_head_VE: torch.Tensor):
        """Weighted KL of a micro-batch (scalar) and of each position (N,)."""
        device = batch.student.ids_BL.device.type
        with torch.autocast(device, self.compute, enabled=self.compute != torch.float32):
            student_ND = response_states(self.student, batch.student)
        # Autocast hands on float32 from the last norm; the head's products are taken in the compute dtype too.
        student_ND = student_ND.to(self.compute)
        return forward_kl(student_ND, head_of(self.student), teacher_NE, teacher_head_VE, batch.weights_N)


def response_states(model: nn.Module, side: Side) -> torch.Tensor:
    """Final hidden states (N, D) at the places that predict the response; prompt positions never reach the head."""
    hidden_BLD = model.get_decoder()(input_ids=side.ids_BL, use_cache=False).last_hidden_state
    return hidden_BLD.flatten(0, 1)[side.places_N]


def head_of(model: nn.Module) -> torch.Tensor:
    """The output head's weight (V, D)."""
    return model.get_output_embeddings().weight


def rate_at(done: int, total: int, warmup_ratio: float, min_ratio: float) -> float:
    """Share of the peak learning rate after `done` of `total` steps: a linear rise, then a cosine down to `min_ratio`.

    The first step has a rate above zero and the last of the rise has the peak, so that no step is spent on nothing.
    """
    warmup = round(warmup_ratio * total)
    if done < warmup:
        return (done + 1) / warmup
    progress = (done - warmup) / max(1, total - 1 - warmup)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def load(model: ModelRef, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A causal language model whose logits are its head's output, nothing more; raises ModelError for others."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(str(model.path), dtype=dtype).to(device)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load {model.name}: {first_line(error)}",
            "a causal language model",
            "check the directory",
        ) from None
    config = loaded.config.get_text_config()
    for name in _LOGIT_TRANSFORMS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ModelError(
                f"{model.name} transforms its logits ({name})",
                "a model whose logits are its head's output",
                "use another model",
            )
    if getattr(loaded.get_output_embeddings(), "bias", None) is not None:
        raise ModelError(f"{model.name} has a bias on its output head", "a head without", "use another model")
    return loaded


class Trainer:
    """Trains `student` towards `teacher` on examples and saves it."""

    def __init__(self, config: DistillConfig, student: ModelRef, teacher: ModelRef) -> None:
        """Loads both models. Raises TrdError when launched as several processes, InputError for a device that is not there."""
        from accelerate import Accelerator

        self._config, self._student_ref = config, student
        self._compute = _DTYPES["bfloat16" if config.dtype == "auto" else config.dtype]
        self._accelerator = Accelerator(cpu=config.device == "cpu")
        if self._accelerator.num_processes > 1:
            raise TrdError(
                f"got {self._accelerator.num_processes} processes; expected one; start trd distill without a launcher"
            )
        self.device = self._accelerator.device
        if config.device not in ("auto", self.device.type, str(self.device)):
            raise InputError(f"--device {config.device}", f"auto or {self.device}", "change --device")
        torch.manual_seed(config.seed)
        self._student = load(student, torch.float32, self.device)
        self._teacher = load(teacher, self._compute, self.device).eval().requires_grad_(False)
        if config.gradient_checkpointing:
            # transformers 5.23 renamed it and warns about the old name.
            old = self._student.gradient_checkpointing_enable
            getattr(self._student, "activation_checkpointing_enable", old)()

    def train(self, examples: Sequence[Example], log: Path, report: Report) -> Trained:
        """Run all steps; one JSON line a step goes to `log`. Stops with TrdError at a loss or a gradient that is not finite."""
        config = self._config
        total = config.epochs * math.ceil(len(examples) / config.batch_size)
        optimizer = torch.optim.AdamW(
            self._student.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: rate_at(done, total, config.warmup_ratio, config.min_lr_ratio)
        )
        step_module, optimizer, schedule = self._accelerator.prepare(
            DistillStep(self._student.train(), self._compute), optimizer, schedule
        )
        started, tokens, losses = time.monotonic(), 0, []
        with open(log, "w", encoding="utf-8") as file:
            for number, rows in enumerate(steps(examples, config.batch_size, config.epochs, config.seed), 1):
                begun = time.monotonic()
                loss, count = self._within_memory(step_module, rows)
                norm = float(
                    self._accelerator.clip_grad_norm_(step_module.parameters(), config.max_grad_norm)
                )
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    named = ", ".join(row.trajectory_id[:12] for row in rows[:8])
                    raise TrdError(
                        f"loss {loss}, gradient norm {norm} at step {number}; expected finite ones; lower --lr "
                        f"(rows of the step: {named})"
                    )
                rate = schedule.get_last_lr()[0]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                seconds = time.monotonic() - begun
                record = {
                    "step": number,
                    "loss": loss,
                    "learning_rate": rate,
                    "grad_norm": norm,
                    "trajectories": len(rows),
                    "response_tokens": count,
                    "seconds": round(seconds, 3),
                }
                file.write(json.dumps(record) + "\n")
                file.flush()
                losses.append(loss)
                tokens += count
                report.advance(len(rows), count)
        return Trained(len(losses), tokens, time.monotonic() - started, losses[0], losses[-1])

    def _within_memory(self, step_module: Callable, rows: Sequence[Example]) -> tuple[float, int]:
        try:
            return self._accumulate(step_module, rows)
        except torch.OutOfMemoryError:
            size = self._config.micro_batch_size
            raise TrdError(
                f"out of memory with {size} rows a forward pass; expected room for their activations; "
                "lower --micro-batch-size (the gradient does not depend on it), or add --gradient-checkpointing"
            ) from None

    def _accumulate(self, step_module: Callable, rows: Sequence[Example]) -> tuple[float, int]:
        """Gradients of one step's mean loss, micro-batch by micro-batch; returns that loss and the response tokens."""
        loss_sum, tokens = 0.0, 0
        for batch in micro_batches(rows, self._config.micro_batch_size):
            batch = batch.to(self.device)
            with torch.no_grad():
                teacher_NE = response_states(self._teacher, batch.teacher)
            loss, _ = step_module(batch, teacher_NE, head_of(self._teacher))
            self._accelerator.backward(loss)
            loss_sum += loss.item()
            tokens += len(batch.response_N)
        return loss_sum, tokens

    def save(self, target: Path) -> None:
        """Write the trained student as a model directory."""
        saved = self._config.save_dtype
        config = json.loads((self._student_ref.path / "config.json").read_text())
        original = config.get("dtype") or config.get("torch_dtype") or "float32"
        dtype = _DTYPES.get(original, torch.float32) if saved == "auto" else _DTYPES[saved]
        save_model(self._student, self._student_ref.path, target, dtype)
