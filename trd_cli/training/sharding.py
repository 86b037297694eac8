"""Cut weights into shards, one for each process, with FSDP2 as accelerate sets it up.

Every weight, gradient and moment is cut over the processes; a layer is whole only while it computes. accelerate shards
what is trained. This module completes its settings, so that layers are units, weights are cast as they are gathered,
and only the main process reads them from disk. It shards the teacher, which is not trained, in a group of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.models import ModelRef
from trd_cli.training.batches import Side
from trd_cli.training.model import Teacher, base_of, embedding_is_tied, head_of, load, response_states, without_weights

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin


def is_asked_for() -> bool:
    """Return True if the launch asks for shards; accelerate tells its processes by environment variables."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if the weights are cut over the processes."""
    return accelerator.distributed_type == "FSDP"


def complete_settings(accelerator: Accelerator, config: DistillConfig, compute: torch.dtype) -> None:
    """Turn on FSDP if the launch asks for it, also on CPUs, where accelerate reads its settings and shards nothing.

    Only the main process reads the weights, and they are cast as they are gathered, whatever the settings say. Layers
    are the units unless the settings name others. Raises InputError for settings with which trd cannot train as asked.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if not is_asked_for() or accelerator.distributed_type not in ("FSDP", "MULTI_CPU"):
        return
    accelerator.state.distributed_type = DistributedType.FSDP
    # A fresh one for each training: a training writes its own model's layers into the plugin.
    plugin = accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    _check(plugin, config)
    _complete(plugin, compute)


def _check(plugin: FullyShardedDataParallelPlugin, config: DistillConfig) -> None:
    config.check_shardable()
    if plugin.activation_checkpointing and config.gradient_checkpointing:
        raise InputError(
            "--gradient-checkpointing and fsdp_activation_checkpointing",
            "one of them",
            "set fsdp_activation_checkpointing to false",
        )


def _complete(plugin: FullyShardedDataParallelPlugin, compute: torch.dtype) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    plugin.cpu_ram_efficient_loading = True
    # Without a policy the whole model would be one unit, and whole on every process.
    plugin.auto_wrap_policy = plugin.auto_wrap_policy or transformer_auto_wrap_policy
    cast = None if compute == torch.float32 else compute
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=cast, reduce_dtype=torch.float32)


def check_recomputation(accelerator: Accelerator, student: nn.Module) -> None:
    """Raise InputError if accelerate would recompute a layer with another dropout mask than the first time."""
    recomputes = is_sharded(accelerator) and accelerator.state.fsdp_plugin.activation_checkpointing
    if recomputes and _drops_out(student):
        raise InputError(
            "fsdp_activation_checkpointing with dropout, which it draws anew when it recomputes",
            "trd's own recomputation, which keeps the mask",
            "set it to false and give --gradient-checkpointing",
        )


def _drops_out(model: nn.Module) -> bool:
    rates = (getattr(m, "p" if isinstance(m, nn.Dropout) else "attention_dropout", 0) for m in model.modules())
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def load_to_share(
    accelerator: Accelerator, model: ModelRef, dtype: torch.dtype, attn_implementation: str | None
) -> nn.Module:
    """Load a model on the CPU of the main process.

    The other processes get a model of the same form, with weights that are neither filled in nor in memory.
    """
    if accelerator.is_main_process:
        return load(model, dtype, torch.device("cpu"), attn_implementation)
    return _unfilled(model, dtype, attn_implementation)


def _unfilled(model: ModelRef, dtype: torch.dtype, attn_implementation: str | None) -> nn.Module:
    empty = without_weights(model, dtype, attn_implementation)
    # accelerate distinguishes parameters by address, and meta tensors have none. Pages never written cost no memory.
    _replace_parameters(empty, lambda p: torch.empty_like(p, device="cpu"))
    return empty


def _replace_parameters(model: nn.Module, made) -> None:
    """Replace each parameter by `made(parameter)`; tied ones share the new one."""
    by_parameter: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if p not in by_parameter:
                by_parameter[p] = nn.Parameter(made(p), requires_grad=p.requires_grad)
            module.register_parameter(name, by_parameter[p])


class ShardedTeacher(Teacher):
    """A frozen model cut over the processes; its head is whole from reading until `release`."""

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        """Shard `model`, which comes from `load_to_share`: the main process holds its weights."""
        super().__init__(model)
        self._reader = _shard(accelerator, _Reader(model))

    def read(
        self, student: nn.Module, side: Side, compute: torch.dtype, autocast: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return self._reader(side, compute, autocast)

    def release(self) -> None:
        self._reader.reshard()


class _Reader(nn.Module):
    """Hold every use of the teacher's weights in one forward call, around which FSDP gathers them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, side: Side, compute: torch.dtype, autocast: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return response_states(self.model, side, compute, autocast), head_of(self.model).detach()


def _shard(accelerator: Accelerator, reader: _Reader) -> nn.Module:
    """Cut a model over the processes, layer by layer; it is never whole but on the main process's CPU."""
    from accelerate.utils import fsdp2_load_full_state_dict
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    offload = accelerator.state.fsdp_plugin.cpu_offload
    whole = reader.state_dict() if accelerator.is_main_process else {}
    _replace_parameters(reader, lambda p: p.to("meta"))
    for unit in units_of(reader.model):
        fully_shard(unit, offload_policy=offload)
    fully_shard(reader, offload_policy=offload)
    fsdp2_load_full_state_dict(accelerator, reader, whole, isinstance(offload, CPUOffloadPolicy))
    return reader


def units_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a model that are gathered one by one: layers, and the embedding if it is not the head."""
    names = set(getattr(base_of(model), "_no_split_modules", None) or ())
    yield from (m for m in model.modules() if type(m).__name__ in names)
    if not embedding_is_tied(model):
        yield base_of(model).get_input_embeddings()
