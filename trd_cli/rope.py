"""Rotary position embeddings whose factors depend on the length of a forward pass, and so on the rows that share it.

transformers takes the factors of `longrope` (Phi-3, Phi-4-mini) for a whole pass: the long ones as soon as one of its rows, padding
included, has more than `original_max_position_embeddings` tokens. Rows on the two sides of that length must not share a pass; each
then has the factors that it has alone.

`dynamic` factors grow with every pass of more than `max_position_embeddings` tokens, and what later passes see depends on it. They are
the same for all rows as long as no pass is longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trd_cli.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from trd_cli.models import ModelRef


def switch_length(config: PreTrainedConfig) -> int | None:
    """Return the longest pass, in tokens, that a model reads with its short factors, or None where it has one set of factors."""
    found = [
        int(rope["original_max_position_embeddings"])
        for rope in _settings(config)
        if rope.get("rope_type") == "longrope"
    ]
    return min(found, default=None)


def steady_length(config: PreTrainedConfig) -> int | None:
    """Return the longest pass, in tokens, that leaves a model's factors as they are, or None where no pass changes them."""
    grow = any("dynamic" in str(rope.get("rope_type")) for rope in _settings(config))
    return config.max_position_embeddings if grow else None


def config_of(model: ModelRef) -> PreTrainedConfig:
    """Return the configuration of a model's text part, in transformers' own names; raises ModelError where it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(model.path), trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot read the configuration of {model.name}: {first_line(error)}",
            "one that transformers knows",
            "check its config.json",
        ) from None


def _settings(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration's rotary settings: one, or one for each type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    by_layer = [each for each in settings.values() if isinstance(each, Mapping)]
    yield from by_layer or [settings]
