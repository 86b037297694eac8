"""Set up the device and the processes of a training, and check them against what the launcher was asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError, TrdError, UserError, first_line, flag
from trd_cli.training.model import compute_dtype
from trd_cli.training.sharding import complete_settings, is_asked_for

if TYPE_CHECKING:
    from accelerate import Accelerator


# The others wait while the main process writes a large model.
_PATIENCE = timedelta(hours=2)

# They wait while it reads the sets, which may take a day.
_PATIENCE_WITH_READING = timedelta(days=30)
Made = TypeVar("Made")


class Processes:
    """The processes of a launch: the main one reads and writes for all of them."""

    def __init__(self, config: DistillConfig) -> None:
        """Join the others, if there are any. Raises UserError where they do not find each other."""
        self._group, self.is_main = None, True
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        from accelerate import PartialState

        _check_launch(config)
        try:
            self.is_main = PartialState(_on_cpu(config), timeout=_PATIENCE).process_index == 0
        except (ValueError, RuntimeError) as error:
            raise _apart(error) from None
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE_WITH_READING)

    def from_main(self, work: Callable[[], Made]) -> Made:
        """Return in every process the value that `work` has in the main one; raise its TrdError in every process."""
        sent: list[Any] = [None, None]
        if self.is_main:
            try:
                sent[0] = work()
            except TrdError as error:
                sent[1] = error
        if self._group is not None:
            dist.broadcast_object_list(sent, 0, self._group)
        if sent[1] is not None:
            raise sent[1]
        return sent[0]

    def all_or_none(self, work: Callable[[], Made]) -> Made:
        """Return what `work` gives in this process; raise in every process the first TrdError that any has."""
        made = failure = None
        try:
            made = work()
        except TrdError as error:
            failure = error
        failures = [failure]
        if self._group is not None:
            failures = [None] * dist.get_world_size(self._group)
            dist.all_gather_object(failures, failure, self._group)
        for each in filter(None, failures):
            raise each
        return made


@contextlib.contextmanager
def end_of_others_said() -> Iterator[None]:
    """Turn the error of a call that waited for another process, which has ended, into one line."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            f"another process of this launch has ended or does not answer ({first_line(error)})",
            "all of them to the end",
            "see what it said, on its own machine too, and run the same command again on all machines",
        ) from None


def accelerator_for(config: DistillConfig, logs: Path | None = None) -> Accelerator:
    """Return the processes and devices of this training; trackers write to `logs`.

    Raises InputError for a device or a tracker that is missing, and UserError when the launcher was asked for several
    processes and this one is alone. It would train at a fraction of the speed without a word.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    _check_launch(config)
    try:
        accelerator = Accelerator(
            cpu=_on_cpu(config),
            mixed_precision="no",  # the loss chooses the precision of each computation
            # The trainer accumulates; accelerate's configuration must not do it again.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
            log_with=list(config.tracker) or None,
            project_dir=str(logs) if logs else None,
        )
    except ValueError as error:
        raise _apart(error) from None
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


def _check_launch(config: DistillConfig) -> None:
    for name in config.tracker:
        check_tracker(name)
    if is_asked_for() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise _unfit("FSDP version 1")


def _on_cpu(config: DistillConfig) -> bool:
    return config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())


def _apart(error: Exception) -> UserError:
    return UserError(
        f"the processes of this launch do not find each other: {first_line(error)}",
        "a launch by torchrun or accelerate",
        "see the example in --help",
    )


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


def begin_trackers(accelerator: Accelerator, config: DistillConfig) -> None:
    """Begin a run of each tracker; raises InputError for one that cannot, as where nobody is logged in."""
    try:
        accelerator.init_trackers("trd", config={key: str(value) for key, value in config.record().items()})
    except Exception as error:  # each tracker has kinds of its own
        got = f"{flag('tracker')} {' '.join(config.tracker)}: {first_line(error)}"
        raise InputError(got, "a tracker that can be used", f"log in to it, or leave {flag('tracker')} out") from None


def _launched_as() -> str:
    """Return how many processes the launcher was asked for: a number, or "several" where it does not say.

    `accelerate launch` starts a single process where it cannot start more, as on CPUs without MPI. The environment then
    has the address for several processes, accelerate's own and not a cluster's, but no WORLD_SIZE.
    """
    several = os.environ.get("MASTER_ADDR") == "127.0.0.1" and "ACCELERATE_MIXED_PRECISION" in os.environ
    return os.environ.get("WORLD_SIZE", "several" if several else "1")
