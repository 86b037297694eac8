"""Decide how many replicas of an engine run, and on which devices of this machine."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from trd_cli.config.generating import EngineName, EngineOptions
from trd_cli.errors import EngineError, counted, flag

# Engines that load weights.
LOADING = ("transformers", "vllm")
# Of NVIDIA, of WSL and of AMD: without one there is no GPU, and torch need not be loaded to count them.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def check_replicas(name: EngineName, options: EngineOptions) -> None:
    """Raise EngineError for replicas that this engine or this machine cannot have, whatever the model."""
    if options.batch_invariant and name != "vllm":
        raise EngineError(
            f"{flag('batch_invariant')} with {flag('engine')} {name}", "vllm, which has such kernels", "leave it out"
        )
    if options.replicas == "1" and options.ray is None:
        return
    if name == "openai":
        given = f"{flag('ray')}" if options.ray else f"{flag('replicas')} {options.replicas}"
        raise EngineError(f"{given} with {flag('engine')} openai", "one engine that asks the servers", "leave it out")
    if ":" in options.device:
        raise EngineError(
            f"{flag('device')} {options.device} with several replicas",
            "each replica on devices of its own",
            f"leave {flag('device')} out, and choose GPUs by CUDA_VISIBLE_DEVICES",
        )
    if options.ray is not None:
        _check_ray(options)
    else:
        local_replicas(name, options)


def _check_ray(options: EngineOptions) -> None:
    if importlib.util.find_spec("ray") is None:
        raise EngineError(f"{flag('ray')} {options.ray}, but ray is not installed", "Ray", 'pip install "trd-cli[ray]"')
    if "distributed_executor_backend" in options.engine_arg:
        raise EngineError(
            f"{flag('engine_arg')} distributed_executor_backend with {flag('ray')}", "vllm's own choice", "leave it out"
        )


def gpus_each(name: EngineName, options: EngineOptions) -> int:
    """Return the number of GPUs that one replica takes on a machine that has any."""
    if name not in LOADING or options.device in ("cpu", "mps"):
        return 0
    return options.tensor_parallel_size if name == "vllm" else 1


def local_replicas(name: EngineName, options: EngineOptions) -> tuple[int, list[list[str]]]:
    """Return the number of replicas on this machine, and the GPUs of each, as CUDA_VISIBLE_DEVICES names them.

    Raises EngineError if more GPUs are needed than are visible.
    """
    each = gpus_each(name, options)
    gpus = visible_gpus() if each else []
    count = number_of(options, len(gpus) // each if gpus else 1)
    if gpus and count * each > len(gpus):
        raise too_few(options, count, each, f"{counted(len(gpus), 'GPU')} visible")
    return count, [gpus[first * each : (first + 1) * each] for first in range(count)] if gpus else []


def number_of(options: EngineOptions, automatic: int) -> int:
    """Return the number of replicas asked for; `automatic` is what `auto` means."""
    return max(1, automatic) if options.replicas == "auto" else int(options.replicas)


def too_few(options: EngineOptions, count: int, each: int, there: str) -> EngineError:
    """Return the error of replicas that need more GPUs than are there."""
    sharing = f" of {counted(each, 'GPU')}" if each > 1 else ""
    return EngineError(
        f"{counted(count, 'replica')}{sharing} with {there}",
        f"at most one replica for each {counted(each, 'GPU')}",
        f"lower {flag('replicas')}" + (f" or {flag('tensor_parallel_size')}" if each > 1 else ""),
    )


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return []
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",")][:count]
