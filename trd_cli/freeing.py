"""Free what nothing refers to, so that the next model, here or in another process, finds the memory."""

from __future__ import annotations

import gc
import sys


def free_unreferenced() -> None:
    """Collect what nothing refers to, and give the memory that torch keeps for later tensors back to the GPU.

    An object is freed only when its last name is gone: delete the names first. torch is not imported for this.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
