"""Refuse models that cannot be trained or learnt from, by their files, before any weight is loaded.

The loss works on hidden states and the head's weight alone, so a model must do nothing else to its logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trd_cli.errors import ModelError
from trd_cli.model_files import tensor_names
from trd_cli.models import ModelRef

if TYPE_CHECKING:
    from torch import nn

# Fields of a configuration that scale or cap the logits. A value of 1 does nothing.
_LOGIT_TRANSFORMS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
_HEADS = ("lm_head", "embed_out")


def check_trainable(model: ModelRef) -> None:
    """Raise ModelError for a model without a directory, with damaged files, or with logits beyond its head's output.

    Only the configuration and the names of the weights are read. Weight files may be missing.
    """
    if model.path is None:
        raise ModelError(
            f"{model.name} has no weights to train or to learn from",
            "a real model",
            "give another model, or stop a recipe before training by trd run --until verify",
        )
    config = model.architecture().get_text_config()
    for name in _LOGIT_TRANSFORMS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ModelError(
                f"{model.name} transforms its logits ({name})",
                "a model whose logits are its head's output",
                "use another model",
            )
    try:
        names = tensor_names(model.weights_path)
    except ModelError as error:
        raise ModelError(f"cannot load {model.name}: {error.got}", error.expected, error.mend) from None
    if any(name.rpartition(".")[0].endswith(_HEADS) for name in names if name.endswith(".bias")):
        raise _biased(model.name)


def check_head(name: str, model: nn.Module) -> None:
    """Raise ModelError for a model, loaded or without storage, whose output head has a bias."""
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise _biased(name)


def _biased(name: str) -> ModelError:
    return ModelError(f"{name} has a bias on its output head", "a head without", "use another model")
