"""Load a model as transformers does; a checkpoint that is an adapter alone is merged into its base on the way.

The adapter is merged on the CPU in float32 and the sum is rounded to the checkpoint's dtype, as in saving. So the
tensors are those of the checkpoint with merged weights, bit for bit. For a while the base is in memory in float32.
"""

from __future__ import annotations

import warnings
from typing import Any

from trd_cli.adapter_files import ADAPTER
from trd_cli.model_files import weights_dtype
from trd_cli.models import ModelRef


def pretrained(model: ModelRef, **arguments: Any) -> Any:
    """Return the causal language model that `from_pretrained` loads with these arguments.

    Raises any exception of transformers, safetensors and peft.
    """
    from transformers import AutoModelForCausalLM

    arguments = {"trust_remote_code": False, **arguments}
    if model.base is None:
        return AutoModelForCausalLM.from_pretrained(str(model.path), **arguments)
    # On the device meta no tensor is kept, so none is read.
    network = model.skeleton() if arguments.get("device_map") == "meta" else merged(model)
    config = model.architecture()
    return type(network).from_pretrained(None, config=config, state_dict=network.state_dict(), **arguments)


def merged(model: ModelRef) -> Any:
    """Return an adapter merged into its base, in the dtype of the checkpoint, on the CPU."""
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig

    # A fresh generation configuration: transformers refuses some of those that models bring.
    base = pretrained(model.base, dtype=torch.float32, generation_config=GenerationConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5.23 warns about a name that peft 0.21 uses
        adapted = PeftModel.from_pretrained(base, str(model.path / ADAPTER))
    return adapted.merge_and_unload().to(getattr(torch, weights_dtype(model.path) or "float32"))
