"""Save and resume the state of a training: a file is there whole or not at all, and the last N are kept.

A state is one file, `step-000012.pt`. It holds the trained weights, the optimiser, the teacher's average, the random
generators of each process, the number of finished steps and of the passes over rows that are begun, which with the seed
give the position in the data, and the number of steps of all rounds. Weights that are not trained are not in it.

States go when the model is saved, but for the last one of a training that goes on in a later round.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_state_dict,
)

from trd_cli.atomic import make_directory, refused, replacing
from trd_cli.errors import InputError
from trd_cli.training import STATES
from trd_cli.training.sealed import is_whole, save_sealed

if TYPE_CHECKING:
    from accelerate import Accelerator

# accelerate's activation checkpointing puts this into the names of a layer's parameters.
_RECOMPUTED = "_checkpoint_wrapped_module."
_WHOLE = {"full_state_dict": True, "ignore_frozen_params": True}
_TO_CPU = StateDictOptions(**_WHOLE, cpu_offload=True)
_IN_PLACE = StateDictOptions(ignore_frozen_params=True)


def trained_weights(model: nn.Module, whole: bool = True) -> dict[str, torch.Tensor]:
    """Return the trained weights by the names of the bare module, whole and on the CPU, in the main process.

    Every process takes part. Without `whole`, each process returns its own tensors, not copied; a shard has the shape
    of the whole.
    """
    return get_model_state_dict(model, options=_TO_CPU if whole else _IN_PLACE)


class States:
    """Hold the saved states of one run directory."""

    def __init__(self, run_directory: Path, keep: int) -> None:
        self._directory, self._keep = run_directory / STATES, keep

    def save(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        extra: dict[str, Any],
    ) -> None:
        """Write the state after `step` steps; every process takes part, and the main one writes.

        Raises InputError if it cannot be written.
        """
        from accelerate.utils import gather_object

        weights, moments = (trained_weights(model), get_optimizer_state_dict(model, _bare(optimizer), options=_TO_CPU))
        of_all = gather_object([generators()])
        if accelerator.is_main_process:
            state = {"step": step, "model": weights, "optimizer": moments, "generators": of_all, **extra}
            self._write(self._directory / _file_name(step), state)
        accelerator.wait_for_everyone()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        make_directory(self._directory)
        try:
            with replacing(path) as file:
                save_sealed(state, file)
        except RuntimeError as error:  # torch raises it for a full disk
            raise refused(path, error) from None
        before = [other for other in self.paths() if other.name <= path.name]
        # Later ones are left over from before a resume that could not read them.
        for other in {*self.paths()} - {*before[-self._keep :]}:
            other.unlink()

    def paths(self) -> list[Path]:
        """Return the saved states, oldest first."""
        return sorted(self._directory.glob("step-*.pt"))

    def latest(self, accelerator: Accelerator) -> dict[str, Any] | None:
        """Return the last state that is whole, or None.

        The main process chooses; its tensors are mapped from disk.
        """
        from accelerate.utils import broadcast_object_list

        chosen = (
            next((path for path in reversed(self.paths()) if is_whole(path) and _read(path)), None)
            if accelerator.is_main_process
            else None
        )
        if accelerator.num_processes > 1:
            chosen = broadcast_object_list([chosen])[0]
        return _read(chosen) if chosen else None

    def restore(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Restore weights, optimiser and random generators; raise InputError for a state of other weights."""
        bare = accelerator.unwrap_model(model)
        trained = (n.replace(_RECOMPUTED, "") for n, p in bare.named_parameters() if p.requires_grad)
        missing = [name for name in trained if name not in state["model"]]
        if missing:
            raise InputError(
                f"the state in {self._directory} lacks {missing[0]}",
                "one that this version saved",
                "give another --out",
            )
        options = StateDictOptions(**_WHOLE, strict=False)
        set_state_dict(
            model,
            _bare(optimizer),
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
        of_all = state["generators"]
        if len(of_all) == accelerator.num_processes:
            set_generators(of_all[accelerator.process_index])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError):
        return None  # the disk lost it: the state before it is as good, only older


def _file_name(step: int) -> str:
    return f"step-{step:06d}.pt"


def state_path(run_directory: Path, step: int) -> Path:
    """Return the path of the state after `step` steps."""
    return run_directory / STATES / _file_name(step)


def clear_states(run_directory: Path, but: int | None = None) -> None:
    """Remove the states after the model itself has been saved, but for that after the step that is named."""
    directory = run_directory / STATES
    if but is None:
        shutil.rmtree(directory, ignore_errors=True)
        return
    for path in directory.glob("*"):
        if path != state_path(run_directory, but):
            path.unlink(missing_ok=True)


def _bare(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def generators() -> dict[str, torch.Tensor]:
    """Return the states of this process's random generators."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_generators(states: dict[str, torch.Tensor]) -> None:
    """Set the random generators to what `generators` has returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
