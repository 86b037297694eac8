"""Leave nothing behind: memory that nothing refers to goes back, and a training's settings of its process go."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def free_unreferenced() -> None:
    """Collect what nothing refers to, and give the memory that torch keeps for later tensors back to the GPU.

    An object is freed only when its last name is gone: delete the names first. torch is not imported for this.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def forget_launch() -> None:
    """Let the next training of this process choose device and precision anew, which accelerate keeps for all."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@contextmanager
def own_launch() -> Iterator[None]:
    """Train inside the block without a trace in a process of somebody else's.

    torch's random numbers are afterwards as before, and so is accelerate's state, which may be in use there.
    """
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    # Each class has one dictionary, which is that of all its objects.
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    theirs = [dict(state) for state in shared]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
        forget_launch()
        try:
            yield
        finally:
            for state, before in zip(shared, theirs, strict=True):
                state.clear()
                state.update(before)
