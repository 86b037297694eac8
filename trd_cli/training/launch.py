"""Where training runs: the device and the processes, checked against what the launcher was asked for."""

from __future__ import annotations

import os
from contextlib import suppress
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
    """The processes and devices of this run; trackers write to `logs`.

    Raises InputError for a device or a tracker that is not there, UserError when the launcher was asked for several
    processes and this one is alone: it would train on its own, at a fraction of the speed and with nobody the wiser.
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
            mixed_precision="no",  # the loss chooses what is computed in which precision
            # Accumulated here, whatever is configured.
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
    wanted = _processes_wanted()
    if wanted > 1 and accelerator.num_processes == 1:
        raise UserError(
            f"one process, launched as {wanted}",
            f"{wanted} processes",
            f"on CPUs, start with ACCELERATE_USE_CPU=true torchrun --nproc_per_node {wanted} -m trd_cli distill ...",
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
    """Raise InputError for another device than `device`, by default the one of this machine."""
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


def _processes_wanted() -> int:
    """How many processes the launcher was asked for: by its environment, or by the words it was started with."""
    return max(int(os.environ.get("WORLD_SIZE", "1")), *(_of_accelerate_launch(words) for words in _ancestors()))


def _ancestors() -> list[list[str]]:
    import psutil

    found: list[list[str]] = [[]]
    for process in psutil.Process().parents():
        with suppress(psutil.Error):  # gone, or another user's: no launcher of this run
            found.append(process.cmdline())
    return found


def _of_accelerate_launch(words: list[str]) -> int:
    """How many processes `accelerate launch` was asked for in this command line, or 1 where it is no such line."""
    start = _words_before_options(words)
    if start is None:
        return 1
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        asked, _ = launch_command_parser().parse_known_args(words[start:])
        if asked.num_processes is not None:
            return asked.num_processes
        config = asked.config_file or (default_config_file if Path(default_config_file).is_file() else None)
        return (load_config_from_file(config).num_processes or 1) if config else 1
    except (SystemExit, OSError, ValueError):
        return 1  # it could not be launched like that


def _words_before_options(words: list[str]) -> int | None:
    """Where the options of `accelerate launch` begin, by the ways to start it; None where this is something else."""
    for i, word in enumerate(words):
        name = Path(word).name
        if name == "accelerate-launch" or word == "accelerate.commands.launch":
            return i + 1
        if word.endswith("accelerate/commands/launch.py"):
            return i + 1
        if name == "accelerate" or word == "accelerate.commands.accelerate_cli":
            return i + 2 if words[i + 1 : i + 2] == ["launch"] else None
    return None
