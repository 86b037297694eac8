"""Keep a trainer for the next command of this process, whose round goes on with the networks and moments in memory.

A trainer is kept only in a process that keeps things (see `keeper`), if it works alone and its training goes on. It
serves again where the next round continues the very checkpoint and state that it has saved, under the same options of
all that is loaded. Else it is forgotten, and a new one loads everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trd_cli import keeper
from trd_cli.config.training import DistillConfig, LoraOptions
from trd_cli.freeing import free_unreferenced
from trd_cli.models import ModelRef, resolve_model
from trd_cli.training.rounds import Earlier
from trd_cli.training.sharding import is_sharded
from trd_cli.training.state import state_path
from trd_cli.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

_NAME = "trainer"
# Options of the networks and of the average. Merging is of the checkpoint alone.
_LOADED = (
    *(name for name in LoraOptions.model_fields if name != "merge"),
    *("dtype", "attn_implementation", "gradient_checkpointing", "teacher_weights", "ema_decay"),
)


@dataclass(frozen=True)
class _Kept:
    """Hold a trainer between two commands, the checkpoint and state that it has saved, and what it has loaded."""

    trainer: Trainer
    loaded: Any
    revision: str
    state: Path
    stamp: tuple[int, ...]

    def fits(self, loaded: Any, earlier: Earlier | None) -> bool:
        """Return True if the trainer is as one that loads the earlier round's state, and has loaded the same."""
        return (
            earlier is not None
            and loaded == self.loaded
            and (earlier.model.revision, earlier.state) == (self.revision, self.state)
            and _stamp(earlier.state) == self.stamp
        )


def trainer_for(
    config: DistillConfig,
    student: ModelRef,
    teacher: ModelRef,
    accelerator: Accelerator,
    directory: Path,
    earlier: Earlier | None,
    note: Callable[[str], None],
) -> Trainer:
    """Return the kept trainer if it fits, else a new one; `note` gets a line that tells which models are loaded."""
    at = keeper.current()
    kept: _Kept | None = at.take(_NAME) if at else None
    if kept is not None and kept.fits(_loaded(config, student, accelerator), earlier):
        note(f"{student.name} and its training are in memory since the round before: going on")
        kept.trainer.go_on(config, teacher, accelerator, directory, earlier)
        return kept.trainer
    if kept is not None:
        del kept  # before the next models are loaded
        free_unreferenced()
    note(f"loading {student.name} and its teacher {teacher.name}")
    return Trainer(config, student, teacher, accelerator, directory, earlier)


def keep(
    trainer: Trainer, config: DistillConfig, student: ModelRef, accelerator: Accelerator, directory: Path, step: int
) -> None:
    """Keep a trainer whose training goes on after `step`, once its checkpoint is finished in `directory`."""
    at = keeper.current()
    if at is None or accelerator.num_processes > 1 or is_sharded(accelerator):
        return
    model = resolve_model(str(directory))
    state = state_path(model.path, step)
    loaded = _loaded(config, student, accelerator)
    at.put(_NAME, _Kept(trainer, loaded, model.revision, state, _stamp(state)), free_unreferenced)


def _loaded(config: DistillConfig, student: ModelRef, accelerator: Accelerator) -> Any:
    """Return all that decides which networks are loaded, and how, but for a teacher of its own."""
    return [student.path, student.revision, str(accelerator.device), config.model_dump(include={*_LOADED})]


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
