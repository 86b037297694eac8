"""Copy the weights of a checkpoint into a model that is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from safetensors import safe_open
from torch import nn

from trd_cli.merging import merged
from trd_cli.model_files import weight_files
from trd_cli.models import ModelRef

_Read = Callable[[], torch.Tensor]


@torch.no_grad()
def copy_weights(source: ModelRef, model: nn.Module) -> bool:
    """Copy the tensors of `source` into `model`, one at a time, cast to the dtypes there.

    Returns False, and changes nothing, unless names and shapes are the model's own, one to one: then transformers would
    load the same values. Tensors that share memory count as one, under any of their names. A tensor that configuration
    files alone decide, such as rotary factors, stays.
    """
    own = model.state_dict()
    with _tensors(source) as found:
        if not _fits({name: shape for name, (shape, _) in found.items()}, own):
            return False
        for name, (_, read) in found.items():
            own[name].copy_(read())
    return True


@contextmanager
def _tensors(source: ModelRef) -> Iterator[dict[str, tuple[list[int], _Read]]]:
    """Yield shape and reader of each tensor; those of an adapter alone are merged into its base first."""
    with ExitStack() as stack:
        if source.base is not None:
            state = merged(source).state_dict()
            once = {tensor.data_ptr(): name for name, tensor in state.items()}
            yield {name: (list(state[name].shape), partial(state.get, name)) for name in once.values()}
            return
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in weight_files(source.path)]
        yield {
            name: (file.get_slice(name).get_shape(), partial(file.get_tensor, name))
            for file in files
            for name in tuple(file.keys())
        }


def _fits(shapes: Mapping[str, list[int]], own: Mapping[str, torch.Tensor]) -> bool:
    """Return True if there is each tensor of the model once, in its shape, and no other."""
    if not shapes.keys() <= own.keys():
        return False
    memory = [own[name].data_ptr() for name in shapes]
    if len(set(memory)) < len(memory) or set(memory) != {tensor.data_ptr() for tensor in own.values()}:
        return False
    return all(list(own[name].shape) == shape for name, shape in shapes.items())
