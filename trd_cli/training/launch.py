"""Set up the device and the processes of a training, and check them against what the launcher was asked for."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError, UserError, first_line, flag
from trd_cli.training.model import compute_dtype
from trd_cli.training.sharding import complete_settings, is_asked_for

if TYPE_CHECKING:
    from accelerate import Accelerator


# The others wait while the main process writes a large model.
_PATIENCE = timedelta(hours=2)


def accelerator_for(config: DistillConfig, logs: Path | None = None) -> Accelerator:
    """Return the processes and devices of this training; trackers write to `logs`.

    Raises InputError for a device or a tracker that is missing, and UserError when the launcher was asked for several
    processes and this one is alone. It would train at a fraction of the speed without a word.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    for name in config.tracker:
        check_tracker(name)
    if is_asked_for() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise _unfit("FSDP version 1")
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
    try:
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no",  # the loss chooses the precision of each computation
            # The trainer accumulates; accelerate's configuration must not do it again.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
            log_with=list(config.tracker) or None,
            project_dir=str(logs) if logs else None,
        )
    except ValueError as error:
        raise UserError(
            f"the processes of this launch do not find each other: {first_line(error)}",
            "a launch by torchrun or accelerate",
            "see the example in --help",
        ) from None
    complete_settings(accelerator, config, compute_dtype(config))
    wanted = _launched_as()
    if wanted != "1" and accelerator.num_processes == 1:
        number = "N" if wanted == "several" else wanted
        raise UserError(
            f"one process, launched as {wanted}",
            f"{wanted} processes",
            f"on CPUs, start with ACCELERATE_USE_CPU=true torchrun --nproc_per_node {number} -m trd_cli distill ...",
        )
    if accelerator.distributed_type in ("DEEPSPEED", "MEGATRON_LM", "TP"):
        raise _unfit(accelerator.distributed_type)
    check_training_device(config.device, accelerator.device)
    return accelerator


def _unfit(kind: str) -> UserError:
    return UserError(
        f"a launch with {kind}",
        "several processes alone, or FSDP version 2",
        "change accelerate's configuration (--fsdp_version 2)",
    )


def check_training_device(asked: str, device: torch.device | None = None) -> None:
    """Raise InputError where `asked` is not `device`, by default the device of this machine."""
    if device is None and asked == "cpu":
        return
    device = device or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if asked not in ("auto", device.type, str(device)):
        raise InputError(f"{flag('device')} {asked}", f"auto or {device}", f"change {flag('device')}")


def check_tracker(name: str) -> None:
    """Raise InputError for a tracker that is not installed."""
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise InputError(f"{flag('tracker')} {name}", "a tracker that is installed", f"pip install {name}")


def _launched_as() -> str:
    """Return how many processes the launcher was asked for: a number, or "several" where it does not say.

    `accelerate launch` starts a single process where it cannot start more, as on CPUs without MPI. The environment then
    has the address for several processes, accelerate's own and not a cluster's, but no WORLD_SIZE.
    """
    several = os.environ.get("MASTER_ADDR") == "127.0.0.1" and "ACCELERATE_MIXED_PRECISION" in os.environ
    return os.environ.get("WORLD_SIZE", "several" if several else "1")
