"""Load the networks of a distillation, put an adapter on the student, and compute the loss along a response."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trd_cli.config.training import DistillConfig, LoraOptions
from trd_cli.errors import InputError, ModelError, TrdError, first_line, flag
from trd_cli.losses.fused import Figures, fused_divergence, response_nll
from trd_cli.losses.objectives import Objective
from trd_cli.merging import pretrained
from trd_cli.models import ModelRef, cannot_load
from trd_cli.training.admission import check_head, check_trainable
from trd_cli.training.batches import Batch, Side

# transformers 5.23 warns about a name that peft 0.21 uses.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_HEAD_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 3e-2}


def compute_dtype(config: DistillConfig) -> torch.dtype:
    """Return the dtype of matrix products."""
    return DTYPES["bfloat16" if config.dtype == "auto" else config.dtype]


def load(
    model: ModelRef, dtype: torch.dtype, device: torch.device, attn_implementation: str | None = None
) -> nn.Module:
    """Return a causal language model whose logits are its head's output alone; raise ModelError for others."""
    from transformers import GenerationConfig
    from transformers.utils import logging

    check_trainable(model)
    logging.disable_progress_bar()
    # A fresh one: no text is generated, and transformers refuses some of those that models bring.
    more: dict[str, Any] = {"generation_config": GenerationConfig()}
    more |= {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        loaded = pretrained(model, dtype=dtype, **more).to(device)
    except torch.OutOfMemoryError:
        raise TrdError(
            f"out of memory loading {model.name}; expected room for its weights; use a larger device, --lora, or more processes"
        ) from None
    except Exception as error:  # each architecture checks its own sizes and raises any kind
        raise cannot_load(model, error, attn_implementation) from None
    check_head(model.name, loaded)
    return loaded


def without_weights(model: ModelRef, dtype: torch.dtype, attn_implementation: str | None = None) -> nn.Module:
    """Return a causal language model whose parameters are on the meta device; what no file holds is filled in."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    check_trainable(model)
    config = model.architecture()
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    # Buffers that no file holds (the rotary frequencies) are real.
    with init_empty_weights(include_buffers=False):
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)
    empty.tie_weights()  # a parameter that is registered there becomes another one
    return empty


def check_logits(model: nn.Module, name: str, compute: torch.dtype) -> None:
    """Raise ModelError for a model that cannot be run as asked, or whose logits are more than its head's output."""
    try:
        off = logits_off(model, compute)
    except (RuntimeError, ValueError, ImportError) as error:
        raise ModelError(
            f"cannot run {name}: {first_line(error)}",
            f"a model that runs with this {flag('dtype')} and {flag('attn_implementation')}",
            "change one of them",
        ) from None
    if not off <= _HEAD_LIMIT[compute]:
        raise ModelError(
            f"{name} changes its head's output to get its logits (they differ by a share of {off:.2g})",
            "a model whose logits are its head's output",
            "use another model",
        )


@torch.no_grad()
def logits_off(model: nn.Module, compute: torch.dtype) -> float:
    """Return how far head · hidden state is from the model's own logits on a few ids, as a share of the largest one."""
    side = Side(torch.arange(8)[None], torch.arange(8)).to(head_of(model).device)
    autocast = torch.autocast(side.ids_BL.device.type, compute, enabled=compute != torch.float32)
    with as_it_answers(model), autocast:
        own_NV = base_of(model)(input_ids=side.ids_BL, use_cache=False).logits[0]
        found_NV = response_states(model, side, compute) @ head_of(model).to(compute).T
    return ((found_NV - own_NV).abs().max() / own_NV.abs().max()).item()


def with_adapter(model: nn.Module, options: LoraOptions, seed: int) -> nn.Module:
    """Return the model with a float32 low-rank adapter as its only trainable weights; `seed` decides its start."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    tied = embedding_is_tied(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers 5.23 warns about a name that peft 0.21 uses
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"{flag('lora_targets')} {', '.join(options.lora_targets)}: {first_line(error)}",
            "names of linear layers, such as q_proj",
            f"change {flag('lora_targets')}",
        ) from None
    if hasattr(base_of(adapted).get_output_embeddings(), "lora_A"):
        raise InputError(
            f"{flag('lora_targets')} with the output head",
            "layers before it: the loss reads the head's own weight",
            "leave it out",
        )
    if tied and hasattr(base_of(adapted).get_input_embeddings(), "lora_A"):
        raise InputError(
            f"{flag('lora_targets')} with an embedding that is the output head too",
            "layers after it: merged into the embedding, the adapter would change the head",
            "leave it out",
        )
    return adapted


def allow_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass."""
    # transformers 5.23 renamed it and warns about the old name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{flag('gradient_checkpointing')}: {first_line(error)}", "a model that can", "leave it out"
        ) from None


def base_of(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model, with or without an adapter on it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: nn.Module) -> torch.Tensor:
    """Return the output head's weight (V, D)."""
    return base_of(model).get_output_embeddings().weight


def embedding_is_tied(model: nn.Module) -> bool:
    """Return True if the output head is the input embedding's own weight."""
    base = base_of(model)
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    return head is not None and getattr(embedding, "weight", None) is head.weight


def response_states(model: nn.Module, side: Side, compute: torch.dtype, autocast: bool = True) -> torch.Tensor:
    """Return the final hidden states (N, D), in `compute`, at the positions that predict the response.

    Prompt positions never reach the head. `autocast` is off for a model whose weights are in `compute` while it runs.
    """
    device = side.ids_BL.device.type
    with torch.autocast(device, compute, enabled=autocast and compute != torch.float32):
        hidden_BLD = base_of(model).get_decoder()(input_ids=side.ids_BL, use_cache=False).last_hidden_state
    # Autocast yields float32 from the last norm; the head's products are taken in the compute dtype too.
    return hidden_BLD.flatten(0, 1)[side.places_N].to(compute)


class Teacher:
    """A frozen model that scores the response in its own context.

    It is no module: its weights are not trained, saved or synchronised between processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @contextmanager
    def weights(self, student: nn.Module) -> Iterator[nn.Module]:
        """Yield the model to read with, while the block lasts."""
        yield self.model

    def read(
        self, student: nn.Module, side: Side, compute: torch.dtype, autocast: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states (N, E) along the response and the output head (V, E), which is valid until `release`."""
        with torch.no_grad(), self.weights(student) as model:
            return response_states(model, side, compute, autocast), head_of(model).detach()

    def release(self) -> None:
        """Free the head, after the loss has been computed."""

    def begin(self, student: nn.Module, left: dict[str, Any]) -> None:
        """Begin a later round of a training; `left` is the state of the average in the round before, if it had one."""

    def follow(self, student: nn.Module) -> None:
        """Follow the student; called after each of its steps."""

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs beside the weights that the round began with."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


class AdapterOff(Teacher):
    """The student itself without its adapter: no second copy of the weights."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def weights(self, student: nn.Module) -> Iterator[nn.Module]:
        with as_it_answers(student), student.disable_adapter():
            yield student


class Snapshot(Teacher):
    """The student with the trained weights that it had when the round began.

    It holds a second copy of the trained weights only, in float32: all of them, or the adapter's.
    """

    def __init__(self, student: nn.Module) -> None:
        self.begin(student, {})

    def begin(self, student: nn.Module, left: dict[str, Any]) -> None:
        self._held = {name: p.detach().clone() for name, p in _trained(student)}

    @contextmanager
    def weights(self, student: nn.Module) -> Iterator[nn.Module]:
        with as_it_answers(student):
            self._swap(student)
            try:
                yield student
            finally:
                self._swap(student)

    def _swap(self, student: nn.Module) -> None:
        for name, p in _trained(student):
            held = self._held[name]
            if isinstance(held, DTensor):
                # A sharded layer gathers from its own storage, which stays: the values change places.
                own, other = p.detach().to_local(), held.to_local()
                before = own.clone()
                own.copy_(other)
                other.copy_(before)
            else:
                p.data, self._held[name] = held, p.data
        for module in student.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what it has gathered is of the other weights


class Average(Snapshot):
    """Exponential moving average of the student's trained weights: θ_T ← d·θ_T + (1 − d)·θ after each step.

    It begins with the student's own weights, with those in `start`, or where the earlier round of a training left it.
    """

    def __init__(self, student: nn.Module, decay: float, start: nn.Module | None = None) -> None:
        super().__init__(start or student)
        self._decay = decay

    def begin(self, student: nn.Module, left: dict[str, Any]) -> None:
        if left:
            self.load_state(left)
        else:
            super().begin(student, left)

    def follow(self, student: nn.Module) -> None:
        for name, p in _trained(student):
            self._held[name].lerp_(p.detach(), 1.0 - self._decay)

    def state(self) -> dict[str, Any]:
        return self._held

    def load_state(self, state: dict[str, Any]) -> None:
        for name, average in state.items():
            self._held[name].copy_(average)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@contextmanager
def as_it_answers(model: nn.Module) -> Iterator[None]:
    """Switch dropout off while the block lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class DistillStep(nn.Module):
    """Map a micro-batch to its loss, with all use of the student's parameters inside one forward call."""

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        objective: Objective,
        compute: torch.dtype,
        temperature: float = 1.0,
        autocast: bool = True,
    ) -> None:
        """Hold student and teacher; `compute` is the dtype of matrix products.

        Autocast casts weights to it, or the process that gathers them does.
        """
        super().__init__()
        self.student, self.teacher = student, teacher
        self.objective, self.compute, self.temperature = objective, compute, temperature
        self.autocast = autocast

    @property
    def _no_split_modules(self) -> list[str] | None:
        """Return the names of the layers that accelerate shards one by one."""
        return getattr(base_of(self.student), "_no_split_modules", None)

    def tie_weights(self) -> None:
        """Make embedding and head one parameter again; accelerate calls it after it has replaced both."""
        base_of(self.student).tie_weights()

    def get_input_embeddings(self) -> nn.Module | None:
        """Return the embedding, which accelerate shards apart, or None if the head shares its weight."""
        return None if embedding_is_tied(self.student) else base_of(self.student).get_input_embeddings()

    def forward(self, batch: Batch, measures: bool = False) -> tuple[torch.Tensor, Figures] | torch.Tensor:
        """Return the weighted divergence of a micro-batch (scalar) and figures of each position.

        With `measures` return −log p of each response token under student and teacher (2, N), at temperature 1 and
        without a gradient.
        """
        teacher_NE, teacher_head_VE = self.teacher.read(self.student, batch.teacher, self.compute, self.autocast)
        student_ND = response_states(self.student, batch.student, self.compute, self.autocast)
        sides = (student_ND, head_of(self.student), teacher_NE, teacher_head_VE, batch.response_N)
        if measures:
            found = response_nll(*sides)
        else:
            found = fused_divergence(
                *sides, batch.weights_N, self.objective, self.temperature, correct_N=batch.correct_N
            )
        self.teacher.release()
        return found
