"""The worker's side of replicas: one engine in a process of its own, which answers requests as they arrive.

How requests and messages travel is the transport's business: `local_workers` or `ray_workers`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from trd_cli.config.generating import EngineName, EngineOptions
from trd_cli.engines.base import Engine, engine_version
from trd_cli.engines.registry import build_engine
from trd_cli.errors import EngineError, UserError
from trd_cli.models import ModelRef, resolve_model
from trd_cli.records import Completion, Request

# vLLM sets them for its own data parallelism. A worker that inherits them would wait for others that never come.
_LEAKED = "VLLM_DP_"


@dataclass(frozen=True)
class Build:
    """Hold what a worker needs to build the driver's engine again; it can be pickled.

    `model` is a name that means the model from any working directory, `revision` the weights that the driver found.
    """

    engine: EngineName
    version: str
    model: str
    revision: str
    options: EngineOptions

    @classmethod
    def of(cls, engine: EngineName, model: ModelRef, options: EngineOptions) -> Build:
        """Return the description of an engine; of `options` it keeps those of engines."""
        own = EngineOptions(**{name: getattr(options, name) for name in EngineOptions.model_fields})
        return cls(engine, engine_version(engine), model.lasting_name, model.revision, own)

    def start(self) -> Engine:
        """Build the engine. Raises UserError, as `resolved` does."""
        for name in [name for name in os.environ if name.startswith(_LEAKED)]:
            del os.environ[name]
        model = self.resolved()
        return build_engine(self.engine, model, model.tokenizer(), self.options)

    def resolved(self) -> ModelRef:
        """Return the model on this machine. Raises EngineError where the worker has other versions or other weights."""
        model, version = resolve_model(self.model), engine_version(self.engine)
        if (version, model.revision) != (self.version, self.revision):
            raise EngineError(
                f"a worker has {self.engine} {version} and {self.model} at {model.revision}",
                f"{self.engine} {self.version} and {self.revision}, as the driver has",
                "install the same versions and the same weights on all nodes",
            )
        return model


@dataclass(frozen=True)
class Ready:
    """Report that a worker's engine is loaded; it computes `rows_at_once` rows side by side."""

    rows_at_once: int


@dataclass(frozen=True)
class Failed:
    """Report that a worker's engine cannot start or has stopped answering; the worker ends."""

    error: UserError


@dataclass(frozen=True)
class Died:
    """Report that a worker is gone; `reason` completes a sentence that begins with it."""

    reason: str


Message = Ready | Completion | Failed | Died


class Feed:
    """The requests of one worker as they arrive: an iterator for its engine.

    It gives requests in the order of their arrival, and at most `limit` unanswered ones: after a death the driver knows
    which were with the engine. It gives None if no other is ready while some are unanswered, and waits if none is. One
    thread adds, another iterates.
    """

    def __init__(self) -> None:
        self.limit = 1
        self._arrived: SimpleQueue[Request | None] = SimpleQueue()
        self._in_flight, self._has_ended = 0, False

    def add(self, requests: Sequence[Request]) -> None:
        """Hand on more requests."""
        for request in requests:
            self._arrived.put(request)

    def end(self) -> None:
        """Let the iterator end after the requests that have arrived."""
        self._arrived.put(None)

    def answered(self) -> None:
        """Count a request that is no longer in flight."""
        self._in_flight -= 1

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Request | None:
        if self._has_ended:
            raise StopIteration
        if self._in_flight >= self.limit:
            return None
        try:
            request = self._arrived.get(block=not self._in_flight)
        except Empty:
            return None
        if request is None:
            self._has_ended = True
            raise StopIteration
        self._in_flight += 1
        return request


def serve(build: Build, feed: Feed) -> Iterator[Message]:
    """Build the engine and yield Ready, then a completion for each request of `feed`; end with Failed if it fails."""
    try:
        engine = build.start()
        try:
            feed.limit = engine.rows_at_once
            yield Ready(engine.rows_at_once)
            for completion in engine.generate(feed):
                feed.answered()
                yield completion
        finally:
            engine.close()
    except UserError as error:
        yield Failed(error)
