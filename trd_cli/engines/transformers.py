"""The engine that runs anywhere: a Hugging Face model, batched, with rows that come and go.

Requests are taken a window at a time, a few for each slot, and prompts are prefilled in groups of similar length. A
finished row is yielded at once and the next prompt takes its slot, so that no step computes a row that has ended.

If a model's rotary factors switch at a length (see `rope`), short and long rows are never in flight together: long ones
wait until a window of them has come, or until no short one is left. A row that grows past that length leaves its slot.
Its cached keys have the short factors, so it is prefilled again once, among the long rows, and continues from there.

Not covered: models whose cache is not plain keys and values (state-space, linear attention); they are refused, and vllm
runs them.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import metadata
from itertools import islice
from typing import Any

import torch

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.probe import logprobs_of
from trd_cli.engines.reloading import copy_weights
from trd_cli.engines.rope import steady_length, switch_length
from trd_cli.engines.sampling import draw
from trd_cli.engines.slot_cache import SlotCache
from trd_cli.errors import EngineError, InputError, flag
from trd_cli.freeing import free_unreferenced
from trd_cli.merging import pretrained
from trd_cli.model_files import tensor_names
from trd_cli.models import ModelRef, why_not
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request, Sampling

_PREFILL_TOKENS = 4096
_WAITING_PER_SLOT = 8
_ALIBI = {"bloom", "mpt"}
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is CUDA, then MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_device(name: str) -> None:
    """Raise InputError for a device that this machine lacks; `auto` always exists."""
    try:
        torch.empty(0, device=pick_device(name))
    except (RuntimeError, AssertionError):
        raise InputError(f"{flag('device')} {name}", "a device of this machine", f"change {flag('device')}") from None


def _load(model: ModelRef, options: EngineOptions) -> tuple[torch.device, torch.nn.Module]:
    try:
        device = pick_device(options.device)
        return device, _from_pretrained(model, options).to(device).eval()
    except Exception as error:  # each architecture checks its own sizes and raises any kind
        raise _cannot_load(model, error) from None


def _from_pretrained(model: ModelRef, options: EngineOptions, **more: Any) -> torch.nn.Module:
    from transformers.utils import logging

    logging.disable_progress_bar()
    return pretrained(model, **{"dtype": options.dtype, **options.engine_arg, **more})


def _cannot_load(model: ModelRef, error: Exception) -> EngineError:
    return EngineError(
        f"transformers cannot load {model.name}: {why_not(model, error)}",
        "a causal language model",
        f"check {flag('model')}, {flag('device')} and {flag('engine_arg')}",
    )


def check_options(model: ModelRef, options: EngineOptions) -> None:
    """Raise EngineError for a model or an argument that the engine would refuse; no weights are held in memory."""
    if not options.engine_arg:
        check_attention(model.name, model.skeleton())
        return
    if model.path is None or not tensor_names(model.weights_path):
        return
    try:
        # Only transformers knows its arguments. On the device meta it reads the weights' files and keeps no tensor.
        built = _from_pretrained(model, options, device_map="meta")
    except Exception as error:  # as in loading, of any kind
        raise _cannot_load(model, error) from None
    check_attention(model.name, built)


def check_attention(name: str, model: torch.nn.Module) -> None:
    """Raise EngineError for a model whose cache is more than keys and values, or whose attention takes other masks."""
    config = model.config.get_text_config()
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS)
    if odd:
        raise EngineError(f"{name} has {odd[0]} layers", "attention layers only", f"use {flag('engine')} vllm")
    if config.model_type in _ALIBI or getattr(config, "alibi", False):
        raise EngineError(
            f"{name} encodes positions by ALiBi", "positions that the engine can set", f"use {flag('engine')} vllm"
        )
    kind = model.config._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise EngineError(f"attention {kind}", "sdpa or eager", f"change {flag('engine_arg')} attn_implementation")


@dataclass
class _Row:
    """A request that waits or is in flight.

    `length` is the number of its tokens in the cache, or those that a prefill will put there.
    """

    request: Request
    length: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @cached_property
    def generator(self) -> random.Random:
        """Return the row's own random generator; it is made at the first token, so that waiting rows have none."""
        return random.Random(self.request.seed)

    def finish_reason(self, eos_ids: frozenset[int]) -> str | None:
        if self.token_ids[-1] in eos_ids:
            return "stop"
        return "length" if len(self.token_ids) >= self.request.sampling.max_tokens else None


def _longest_first(rows: Iterable[_Row]) -> list[_Row]:
    return sorted(rows, key=lambda row: -row.length)


class _Queue:
    """Rows that wait, those with short and those with long rotary factors apart.

    Rows are taken from `source` in windows of `size`, longest prompts first; None there ends a window early.
    """

    def __init__(self, source: Iterator[_Row | None], size: int, switch: int | None) -> None:
        self.short: deque[_Row] = deque()
        self.long: deque[_Row] = deque()
        self._source, self._size = source, size
        self._switch = math.inf if switch is None else switch

    def fill(self, side: deque[_Row]) -> bool:
        """Take windows until a row of this side is there, or a window of the other; return True if one is there."""
        other = self.long if side is self.short else self.short
        while not side and len(other) < self._size:
            ready = iter(partial(next, self._source, None), None)
            window = _longest_first(islice(ready, self._size))
            if not window:
                break
            for row in window:
                (self.long if row.length > self._switch else self.short).append(row)
        return bool(side)


class TransformersEngine:
    """See the module. Extra engine arguments go to `from_pretrained` (attn_implementation, for example)."""

    name = "transformers"
    copies, forgets = True, False

    def __init__(self, model: ModelRef, tokenizer: Tokenizer, options: EngineOptions) -> None:
        self.version = metadata.version("transformers")
        self.device, self.model = _load(model, options)
        self.dtype = str(self.model.dtype).removeprefix("torch.")
        self._name, self._tokenizer = model.name, tokenizer
        self._config = self.model.config.get_text_config()
        self._layer_types = getattr(self._config, "layer_types", None)
        self._window = getattr(self._config, "sliding_window", None)
        self._switch, self._steady_length = switch_length(self._config), steady_length(self._config)
        check_attention(model.name, self.model)
        self._slots = self.rows_at_once = options.batch_size or (32 if self.device.type == "cpu" else 64)

    def close(self) -> None:
        del self.model
        free_unreferenced()

    def rest(self) -> None:
        """See `Keepable.rest`; on a GPU the weights wait in the machine's memory."""
        if self.device.type == "cuda":
            self.model.to("cpu")
            free_unreferenced()

    def wake(self) -> bool:
        """See `Keepable.wake`."""
        self.model.to(self.device)
        return True

    def reload(self, model: ModelRef, tokenizer: Tokenizer) -> bool:
        """See `Keepable.reload`."""
        self._name, self._tokenizer = model.name, tokenizer
        return copy_weights(model, self.model)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """See `Keepable.score`."""
        return logprobs_of(self.model, token_ids)

    @torch.inference_mode()
    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """See `Engine.generate`. At most `--batch-size` rows are in flight, longest prompts of a window first."""
        rows = (request and self._row(request) for request in requests)
        queue = _Queue(rows, _WAITING_PER_SLOT * self._slots, self._switch)
        while queue.fill(queue.short) or queue.long:
            yield from self._run(queue, queue.short, grown=queue.long)
            queue.long = deque(_longest_first(queue.long))  # those that have grown are at its end
            yield from self._run(queue, queue.long)

    def _row(self, request: Request) -> _Row:
        """Return the row of a request. Raises EngineError for one so long that it would change its neighbours."""
        longest = len(request.prompt_token_ids) + request.sampling.max_tokens
        limit = self._steady_length
        if limit is not None and longest > limit:
            raise EngineError(
                f"{self._name} has dynamic rotary factors, which grow with the longest row of a batch, here {longest} tokens",
                f"at most {limit} tokens a row",
                "lower --max-model-len, or use --engine vllm",
            )
        return _Row(request, len(request.prompt_token_ids))

    def _run(self, queue: _Queue, waiting: deque[_Row], grown: deque[_Row] | None = None) -> Iterator[Completion]:
        """Generate the rows on one side of the switch of factors; a row that is about to pass it moves to `grown`."""
        cache = SlotCache(self._config.num_hidden_layers, self._slots)
        rows: list[_Row] = []
        refill_at = self._slots - max(1, self._slots // 8)
        while rows or queue.fill(waiting):
            if len(rows) <= refill_at and queue.fill(waiting):
                yield from self._prefill(cache, rows, waiting)
            if grown is not None:
                self._set_apart(cache, rows, grown)
            if rows:
                yield from self._decode(cache, rows)

    def _prefill(self, cache: SlotCache, rows: list[_Row], waiting: deque[_Row]) -> Iterator[Completion]:
        """Fill the free slots, one group of prompts a forward pass.

        Prompts are padded on the right, where causal attention never looks.
        """
        while waiting and len(rows) < self._slots:
            new = [waiting.popleft()]
            longest = new[0].length
            while waiting and len(rows) + len(new) < self._slots and longest * (len(new) + 1) <= _PREFILL_TOKENS:
                new.append(waiting.popleft())
            ids = torch.zeros(len(new), longest, dtype=torch.long)
            for i, row in enumerate(new):
                ids[i, : row.length] = torch.tensor([*row.request.prompt_token_ids, *row.token_ids])
            ends = sorted({row.length - 1 for row in new})
            cache.prefill(list(range(len(rows), len(rows) + len(new))), self.device)
            logits = self._forward(ids, cache, None, None, torch.tensor(ends, device=self.device))
            if not cache.layers[0].is_initialized:
                raise EngineError(f"{self._name} keeps no keys and values", "attention", "use --engine vllm")
            picked = torch.tensor([ends.index(row.length - 1) for row in new], device=self.device)
            self._draw(logits[torch.arange(len(new), device=self.device), picked], new)
            rows.extend(new)
            yield from self._release(cache, rows)

    def _set_apart(self, cache: SlotCache, rows: list[_Row], grown: deque[_Row]) -> None:
        """Take out the rows whose next token is the first beyond the short factors: their cached keys are of no use."""
        for slot in range(len(rows) - 1, -1, -1):
            if rows[slot].length == self._switch:
                row = self._leave(cache, rows, slot)
                row.length += 1  # for the last drawn token, which the cache does not hold yet
                grown.append(row)

    def _decode(self, cache: SlotCache, rows: list[_Row]) -> Iterator[Completion]:
        """Generate one token for every row in flight."""
        ids = torch.tensor([[row.token_ids[-1]] for row in rows])
        lengths = [row.length for row in rows]
        cache.decode(lengths, self.device)
        for row in rows:
            row.length += 1
        positions = torch.tensor(lengths, device=self.device)[:, None]
        logits = self._forward(ids, cache, self._masks(positions, max(lengths) + 1), positions, 1)
        self._draw(logits[:, -1], rows)
        yield from self._release(cache, rows)

    def _masks(self, positions: torch.Tensor, span: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return the cached tokens that each row sees, boolean (n, 1, 1, span), by layer type if there are several."""
        columns = torch.arange(span, device=self.device)[None, :]
        full = (columns <= positions)[:, None, None, :]
        if not self._window or (self._layer_types and "sliding_attention" not in self._layer_types):
            return self._as_added(full)
        sliding = self._as_added(full & (columns > positions - self._window)[:, None, None, :])
        full = self._as_added(full)
        return {"full_attention": full, "sliding_attention": sliding} if self._layer_types else sliding

    def _as_added(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the mask for eager attention, which adds it to the scores: a boolean one would count as 0 and 1."""
        if self.model.config._attn_implementation != "eager":
            return mask
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(~mask, lowest)

    def _forward(self, ids: torch.Tensor, cache: SlotCache, mask, positions, keep: torch.Tensor | int) -> torch.Tensor:
        try:
            return self.model(
                input_ids=ids.to(self.device),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        except torch.OutOfMemoryError:
            raise EngineError(
                f"out of memory with {self._slots} rows in flight",
                "room for their keys and values",
                "lower --batch-size or --max-tokens",
            ) from None

    def _draw(self, logits: torch.Tensor, rows: Sequence[_Row]) -> None:
        by_sampling: dict[Sampling, list[int]] = {}
        for i, row in enumerate(rows):
            s = row.request.sampling
            by_sampling.setdefault(Sampling(s.temperature, s.top_p, s.top_k, 0), []).append(i)
        for sampling, members in by_sampling.items():
            uniforms = [rows[i].generator.random() for i in members]
            chosen = logits if len(members) == len(rows) else logits[torch.tensor(members, device=logits.device)]
            tokens, logprobs = draw(chosen, sampling, uniforms)
            for i, token, logprob in zip(members, tokens.tolist(), logprobs.tolist(), strict=True):
                rows[i].token_ids.append(token)
                rows[i].logprobs.append(logprob)

    def _release(self, cache: SlotCache, rows: list[_Row]) -> Iterator[Completion]:
        """Yield the rows that have ended and free their slots."""
        finished: list[Completion] = []
        for slot in range(len(rows) - 1, -1, -1):
            row = rows[slot]
            reason = row.finish_reason(self._tokenizer.eos_ids)
            if reason is None:
                continue
            self._leave(cache, rows, slot)
            text = self._tokenizer.decode(row.token_ids)
            finished.append(Completion(row.request.request_id, text, row.token_ids, row.logprobs, reason))
        yield from finished

    @staticmethod
    def _leave(cache: SlotCache, rows: list[_Row], slot: int) -> _Row:
        """Free a slot, into which the last row in flight moves, and return the row that had it."""
        row, last = rows[slot], rows.pop()
        if slot < len(rows):
            cache.move(len(rows), slot, last.length)
            rows[slot] = last
        return row
