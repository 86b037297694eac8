"""Start an engine: in this process, or as replicas in worker processes or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trd_cli.config.generating import EngineName, EngineOptions
from trd_cli.engines.base import Engine
from trd_cli.engines.kept import start_kept
from trd_cli.engines.local_workers import LocalWorkers
from trd_cli.engines.placement import gpus_each, local_replicas
from trd_cli.engines.ray_workers import RayWorkers
from trd_cli.engines.registry import build_engine
from trd_cli.engines.replicas import Replicas, Transport
from trd_cli.engines.worker import Build
from trd_cli.errors import counted
from trd_cli.models import ModelRef
from trd_cli.prompting.tokens import Tokenizer


def manner(options: EngineOptions) -> str:
    """Return how the engine runs in words, or "" for one engine as it comes."""
    replicas = "replicas for all GPUs" if options.replicas == "auto" else counted(int(options.replicas), "replica")
    ways = [replicas] if options.replicas != "1" or options.ray else []
    ways += ["on Ray"] if options.ray else []
    ways += ["with VLLM_BATCH_INVARIANT=1"] if options.batch_invariant else []
    return " ".join(ways)


def start_engine(
    name: EngineName,
    model: ModelRef,
    tokenizer: Tokenizer,
    options: EngineOptions,
    note: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Load the model and return its engine: in this process, or in as many workers as the options ask for.

    A process that keeps things gives the model to the engine of an earlier command if that fits. `note` gets a line for
    a person where it fits but does not take the model's weights.
    """
    replicas = start_replicas(name, options, lambda: Build.of(name, model, options))
    if replicas is not None:
        return replicas
    return start_kept(name, model, tokenizer, options, note, partial(build_engine, name, model, tokenizer, options))


def start_replicas(name: EngineName, options: EngineOptions, build: Callable[[], Build]) -> Replicas | None:
    """Start an engine in as many workers as the options ask for; None if one in this process will do.

    Each worker makes its engine from what `build` returns. `name` is the engine whose devices a worker needs.
    """
    if options.ray is not None:
        made = build()
        workers = RayWorkers(made, options, gpus_each(name, options))
        return _replicas(made, workers, workers.count)
    count, gpus = local_replicas(name, options) if options.replicas != "1" else (1, [])
    if count == 1:
        return None
    made = build()
    return _replicas(made, LocalWorkers(made, count, gpus), count)


def _replicas(build: Build, transport: Transport, count: int) -> Replicas:
    # vLLM's caches of compiled code break if several processes fill them at once.
    return Replicas(build.engine, build.version, transport, count, first_alone=build.engine == "vllm")
