"""Keep the engine of a command for the next one, which gives it the weights of its own model.

An engine is kept only in a process that keeps things (see `keeper`), one at a time, and only if nothing went wrong
while it worked. It serves again where everything that decides an engine is the same but the weights. New weights are
proved by the checkpoint's probe (see `probe`). An engine that does not fit, or fails the proof, is closed, and a new
one starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trd_cli import keeper
from trd_cli.config.generating import EngineName, EngineOptions
from trd_cli.engines.base import Engine, Keepable
from trd_cli.engines.placement import LOADING
from trd_cli.engines.probe import LIMITS, Probe, difference, read_probe
from trd_cli.errors import ModelError, first_line
from trd_cli.model_files import weights_dtype
from trd_cli.models import ModelRef
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request, content_hash

_NAME = "engine"
# They describe the file and not the network, or are decided by an option.
_NOT_OF_THE_NETWORK = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
_OWN_PROBE = "The engine that sleeps says of these words what it said before: 2 + 3 = 5, and 5 - 3 = 2."


@dataclass(frozen=True)
class _Kept:
    """Hold an engine between two commands.

    `fit` is a digest of all that decides an engine but its weights, whose revision is `revision`. If the engine forgets
    them while it rests and the checkpoint has no probe, `probe` is what the engine said when they were new.
    """

    engine: Keepable
    fit: str
    revision: str
    probe: Probe | None

    def rest(self) -> None:
        """See `Keepable.rest`; the keeper calls it."""
        self.engine.rest()


class KeptEngine:
    """An engine that goes to the keeper when it is closed, unless its work failed or was left half way."""

    def __init__(self, kept: _Kept, at: keeper.Keeper) -> None:
        self._kept: _Kept | None = kept
        self._keeper, self._is_sound = at, True
        engine = kept.engine
        self.name, self.version, self.rows_at_once = engine.name, engine.version, engine.rows_at_once

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """See `Engine.generate`."""
        was_sound, self._is_sound = self._is_sound, False
        yield from self._kept.engine.generate(requests)
        self._is_sound = was_sound

    def close(self) -> None:
        """Hand the engine to the keeper, or close it for good. A second call is harmless."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        if self._is_sound:
            self._keeper.put(_NAME, kept, kept.engine.close)
        else:
            kept.engine.close()


def start_kept(
    name: EngineName,
    model: ModelRef,
    tokenizer: Tokenizer,
    options: EngineOptions,
    note: Callable[[str], None],
    build: Callable[[], Engine],
) -> Engine:
    """Return the kept engine with the weights of `model` if it fits and takes them, else what `build` returns.

    `note` gets a line for a person if a kept engine is not taken. In a process of one command it is `build()` alone.
    """
    at = keeper.current()
    if at is None:
        return build()
    kept: _Kept | None = at.take(_NAME)
    fit = None
    if name in LOADING:
        with suppress(ModelError):  # vllm has architectures that transformers does not know
            fit = _fit(name, model, tokenizer, options)
    if kept is not None and not _takes(kept, fit, model, tokenizer, note):
        kept = None
    if fit is None:
        return build()
    engine = kept.engine if kept is not None else build()
    return KeptEngine(_Kept(engine, fit, model.revision, _own_probe(engine, model, tokenizer, kept)), at)


def _fit(name: EngineName, model: ModelRef, tokenizer: Tokenizer, options: EngineOptions) -> str:
    """Return the digest of all that decides an engine but the model's weights."""
    given = {key: getattr(options, key) for key in EngineOptions.model_fields}
    network = _without(model.architecture().to_dict(), _NOT_OF_THE_NETWORK)
    dtype = weights_dtype(model.path) if options.dtype == "auto" else options.dtype
    ends = sorted(tokenizer.eos_ids)
    return content_hash([given | {"engine": name, "dtype": dtype}, network, tokenizer.fingerprint(), ends])


def _without(value: Any, keys: set[str]) -> Any:
    """Return a JSON value without these keys, at any depth; what JSON does not have becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _without(inner, keys) for key, inner in value.items() if key not in keys}
    if isinstance(value, (list, tuple)):
        return [_without(inner, keys) for inner in value]
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _takes(kept: _Kept, fit: str | None, model: ModelRef, tokenizer: Tokenizer, note: Callable[[str], None]) -> bool:
    """Return True if the kept engine has the weights of `model` now; close it if not."""
    is_taken = False
    try:
        if fit == kept.fit:
            try:
                why_not = _reload(kept, model, tokenizer)
            except Exception as error:  # of any type: whatever it is, a new engine is the way out
                why_not = first_line(error)
            is_taken = why_not is None
            if not is_taken:
                note(f"the running engine does not take the weights of {model.name}: {why_not}; a new one starts")
        return is_taken
    finally:
        if not is_taken:
            kept.engine.close()


def _reload(kept: _Kept, model: ModelRef, tokenizer: Tokenizer) -> str | None:
    """Give the engine the weights of `model` unless it has them; return why it cannot be trusted, or None if it can."""
    engine, is_same = kept.engine, kept.revision == model.revision
    probe = read_probe(model.path) or (kept.probe if is_same else None)
    has_weights = engine.wake()
    if is_same and has_weights:
        return None
    if has_weights and not engine.copies and engine.dtype != "float32":
        return f"old weights cannot be told from new ones in {engine.dtype}"
    if probe is None:
        return "it has no probe.json to prove them by"
    before = engine.score(probe.token_ids) if has_weights and not engine.copies else None
    if not engine.reload(model, tokenizer):
        return "its tensors have other names or shapes"
    found = engine.score(probe.token_ids)
    if found == before:
        return "its log-probabilities are the old ones"
    off, limit = difference(probe, found), LIMITS[engine.dtype]
    return None if off <= limit else f"its log-probabilities are off by {off:.2g} on average, by more than {limit:g}"


def _own_probe(engine: Keepable, model: ModelRef, tokenizer: Tokenizer, kept: _Kept | None) -> Probe | None:
    """Return what the engine says of some words while its weights are known to be right, if it needs that later."""
    if not engine.forgets or read_probe(model.path) is not None:
        return None
    if kept is not None:
        return kept.probe
    ids = tokenizer.encode(_OWN_PROBE)
    return Probe(ids, engine.score(ids))
