"""Choose the engine of a model by the options of a command. Every command, and the library, gets its backends here."""

from __future__ import annotations

from collections.abc import Callable

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.base import Engine, engine_version
from trd_cli.engines.placement import check_replicas
from trd_cli.engines.registry import check_arguments, check_weights, choose_engine, window
from trd_cli.engines.starting import manner, start_engine
from trd_cli.models import resolve_model
from trd_cli.planned import Backend


def backend_for(options: EngineOptions, name: str) -> Backend:
    """Find the model `name` and choose its engine, which starts when the first row needs it.

    Raises ModelError for a model that cannot be used, and EngineError for an engine or an argument of it.
    """
    engine = choose_engine(options, name)
    version = engine_version(engine)
    check_arguments(engine, options)
    check_replicas(engine, options)
    model = resolve_model(name, weights=engine != "openai")
    check_weights(engine, model)
    tokenizer = model.tokenizer()
    limit = window(engine, model, options)

    def start(note: Callable[[str], None]) -> Engine:
        return start_engine(engine, model, tokenizer, options, note)

    return Backend(model, tokenizer, engine, version, limit, start, manner(options))
