"""Copy the weights of a checkpoint into a model that is in memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from trd_cli.model_files import weight_files


@torch.no_grad()
def copy_weights(directory: Path, model: nn.Module) -> bool:
    """Copy a directory's tensors into `model`, one at a time, cast to the dtypes there.

    Returns False, and changes nothing, unless names and shapes are the model's own, one to one: then transformers would
    load the same values. Tensors that share memory count as one, under any of their names. A tensor that configuration
    files alone decide, such as rotary factors, stays.
    """
    own = model.state_dict()
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in weight_files(directory)]
        places: dict[str, Any] = {}
        for file in files:
            places |= dict.fromkeys(file.keys(), file)
        if not _fits(places, own):
            return False
        for name, file in places.items():
            own[name].copy_(file.get_tensor(name))
    return True


def _fits(places: dict[str, Any], own: dict[str, torch.Tensor]) -> bool:
    """Return True if the files have each tensor of the model once, in its shape, and no other."""
    if not places.keys() <= own.keys():
        return False
    memory = [own[name].data_ptr() for name in places]
    if len(set(memory)) < len(memory) or set(memory) != {tensor.data_ptr() for tensor in own.values()}:
        return False
    return all(list(own[name].shape) == file.get_slice(name).get_shape() for name, file in places.items())
