"""A key/value cache of slots, one a row in flight, for batched decoding in which rows come and go.

Axes: S slots, H key/value heads, C capacity in tokens, D head dimension, n rows in flight (they hold slots 0 … n−1).

A row's keys lie at the front of its slot. A new row overwrites the slot of a finished one, so no keys are shifted and
no padding is stored. A decoding step writes one token a row in place; the stock dynamic cache copies the whole cache at
every step (`torch.cat`).
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_GROWTH = 256


class _Step:
    """Hold the slots that one forward pass writes, and the places in them; all layers share it."""

    def __init__(self) -> None:
        self.prefill_slots: torch.Tensor | None = None
        self.lengths_n: torch.Tensor | None = None
        self.span = 0


class SlotLayer(CacheLayerMixin):
    """Hold keys and values of one layer, shape (S, H, C, D)."""

    is_sliding = False

    def __init__(self, slots: int, step: _Step) -> None:
        super().__init__()
        self._slots, self._step = slots, step

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = key_states.new_zeros(self._slots, key_states.shape[1], 0, key_states.shape[3])
        self.values = value_states.new_zeros(self._slots, value_states.shape[1], 0, value_states.shape[3])
        self.is_initialized = True

    def _reserve(self, tokens: int) -> None:
        missing = tokens - self.keys.shape[2]
        if missing > 0:
            extra = max(-(-missing // _GROWTH) * _GROWTH, self.keys.shape[2] // 2)
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, extra))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, extra))

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self._step
        if step.prefill_slots is not None:
            length = key_states.shape[2]
            self._reserve(length)
            self.keys[step.prefill_slots, :, :length] = key_states
            self.values[step.prefill_slots, :, :length] = value_states
            return key_states, value_states
        self._reserve(step.span)
        rows = len(step.lengths_n)
        index_n = torch.arange(rows, device=key_states.device)
        self.keys[index_n, :, step.lengths_n] = key_states[:, :, 0]
        self.values[index_n, :, step.lengths_n] = value_states[:, :, 0]
        return self.keys[:rows, :, : step.span], self.values[:rows, :, : step.span]

    def move(self, source: int, target: int, length: int) -> None:
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0


class SlotCache(Cache):
    """The cache that is passed to a model; call `prefill` or `decode` before each forward pass."""

    def __init__(self, layers: int, slots: int) -> None:
        self._step = _Step()
        super().__init__(layers=[SlotLayer(slots, self._step) for _ in range(layers)])

    def prefill(self, slots: list[int], device: torch.device) -> None:
        """Prepare a forward pass that fills these slots from their front, with prompts padded on the right."""
        self._step.prefill_slots = torch.tensor(slots, device=device)

    def decode(self, lengths: list[int], device: torch.device) -> None:
        """Prepare a forward pass that appends one token to each of the first slots, which hold `lengths` tokens."""
        self._step.prefill_slots = None
        self._step.lengths_n = torch.tensor(lengths, device=device)
        self._step.span = max(lengths) + 1

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row into another slot."""
        for layer in self.layers:
            layer.move(source, target, length)
