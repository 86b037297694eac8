"""Find models whose rotary factors depend on the length of a forward pass, and so on the rows that share it.

transformers chooses the factors of `longrope` (Phi-3, Phi-4-mini) for a whole pass: the long ones if one of its rows,
padding included, has more than `original_max_position_embeddings` tokens. Rows shorter and longer than that must not
share a pass; then each has the factors that it would have alone.

`dynamic` factors grow with every pass of more than `max_position_embeddings` tokens, and later passes depend on it.
They are the same for all rows as long as no pass is longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def switch_length(config: PreTrainedConfig) -> int | None:
    """Return the longest pass, in tokens, that uses a model's short factors, or None if it has one set of factors."""
    found = [
        int(rope["original_max_position_embeddings"])
        for rope in _settings(config)
        if rope.get("rope_type") == "longrope"
    ]
    return min(found, default=None)


def steady_length(config: PreTrainedConfig) -> int | None:
    """Return the longest pass, in tokens, that leaves a model's factors unchanged, or None if every pass does."""
    grow = any("dynamic" in str(rope.get("rope_type")) for rope in _settings(config))
    return config.max_position_embeddings if grow else None


def _settings(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration's rotary settings: one, or one for each type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    by_layer = [each for each in settings.values() if isinstance(each, Mapping)]
    yield from by_layer or [settings]
