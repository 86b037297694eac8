"""Rounds of one training: the checkpoint that a training goes on from, and a round's steps among those of all."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError, counted, flag
from trd_cli.models import ModelRef, moved
from trd_cli.training.batches import steps as steps_of
from trd_cli.training.mix import Mixed
from trd_cli.training.state import state_path

# Options without which the weights of a state are others.
_FIXED = ("lora", "lora_rank", "lora_alpha", "lora_targets")


@dataclass(frozen=True)
class Earlier:
    """A finished round of a training that goes on: its checkpoint, and the student that the training began with.

    It ended after `step` of `total` steps of all rounds.
    """

    model: ModelRef
    student: ModelRef
    step: int
    total: int

    @property
    def state(self) -> Path:
        """Return the path of the state that the round ended with."""
        return state_path(self.model.path, self.step)

    def check_state(self) -> None:
        """Raise InputError if the state that the round ended with is gone."""
        if not self.state.is_file():
            raise InputError(
                f"--continue {self.model.name}, where {self.state} is gone",
                "the state that its training ended with",
                f"remove {self.model.name} and run its trd distill again, or leave --continue out",
            )

    def identity(self) -> dict[str, Any]:
        """Return the facts that decide what is made from it, as JSON values."""
        return {"revision": self.model.revision, "step": self.step, "total": self.total}

    def said(self) -> str:
        return f"continuing {self.model.name} after step {self.step} of {self.total}"


def earlier_round(config: DistillConfig, resolve: Callable[[str], ModelRef]) -> Earlier | None:
    """Return the round that the options continue, None for a new training. Its state may be gone: see `check_state`.

    Raises UserError for a directory that is no finished training, for a training that has no step left, and for options
    under which it cannot go on.
    """
    if config.continue_from is None:
        return None
    from trd_cli.trajectories.state import state_of

    name, own = config.continue_from, "--continue"
    directory = Path(name)
    state = state_of(directory) if directory.is_dir() else None
    if state is None or state.command != "distill":
        raise InputError(f"{own} {name}", "an output directory of trd distill", f"leave {own} out for a new training")
    model, about, record = resolve(name), state.about, state.record
    step, total = (about.steps_before or 0) + (about.steps or 0), about.total_steps
    if total is None or step >= total:
        longer = flag("total_steps")
        raise InputError(
            f"{own} {name}, whose training has ended, after {counted(step, 'step')}",
            f"one that ended before its {longer} and kept its state",
            f"give {longer} to the command that makes {name}, or leave {own} out for a new training",
        )
    given, made = config.record(), record["config"]
    for option in _FIXED:
        if made[option] != given[option]:
            raise InputError(
                f"{flag(option)} {given[option]} with {own} {name}, which was trained with {made[option]}",
                "the same",
                f"change {flag(option)}, or leave {own} out for a new training",
            )
    if config.total_steps not in (None, total):
        raise InputError(
            f"{flag('total_steps')} {config.total_steps} with {own} {name}, whose training has {total}",
            "the same",
            f"leave {flag('total_steps')} out",
        )
    student = resolve(moved(about.student, directory))
    student.check_revision(record["identity"]["student_revision"], directory)
    return Earlier(model, student, step, total)


@dataclass(frozen=True)
class Round:
    """The `steps` of one round, after `before` of `total` in all rounds, in passes over `rows`.

    The last pass may be partial.
    """

    rows: int
    batch_size: int
    steps: int
    before: int
    total: int

    @classmethod
    def of(cls, config: DistillConfig, rows: int, earlier: Earlier | None = None) -> Round:
        """Return the round that the options ask for along so many rows: none of them makes no step.

        Raises InputError if it has more steps than are left.
        """
        asked = config.steps or config.epochs * math.ceil(rows / config.batch_size)
        steps = asked if rows else 0
        before = earlier.step if earlier else 0
        total = earlier.total if earlier else config.total_steps or steps
        if before + steps > total:
            raise InputError(
                f"{counted(steps, 'step')} after {before} of {total}",
                f"at most the {total - before} that are left of {flag('total_steps')}",
                f"give a smaller {flag('steps')}, or the first round a larger {flag('total_steps')}",
            )
        return cls(rows, config.batch_size, steps, before, total)

    @property
    def is_last(self) -> bool:
        """Return True if no step is left for a later round."""
        return self.before + self.steps == self.total

    @property
    def _of_a_pass(self) -> int:
        return max(1, math.ceil(self.rows / self.batch_size))

    def passes(self, steps: int) -> int:
        """Return how many passes are begun by so many steps of the round."""
        return math.ceil(steps / self._of_a_pass)

    def rows_in(self, steps: int) -> int:
        """Return how many rows so many steps of the round take."""
        whole, more = divmod(steps, self._of_a_pass)
        return whole * self.rows + more * self.batch_size

    def epoch_at(self, steps: int, passes_before: int) -> float:
        """Return the passes of the training after so many steps of the round, as if earlier rounds had its length."""
        return (passes_before * self._of_a_pass + steps) / self._of_a_pass

    def numbered(
        self, seed: int, passes_before: int, done: int, mixed: Mixed | None = None
    ) -> Iterator[tuple[int, array[int]]]:
        """Yield the steps after the first `done`, counted from 0 over all rounds, with the numbers of their rows."""
        chosen = steps_of(self.rows, self.batch_size, self.passes(self.steps), seed, passes_before, mixed)
        return itertools.islice(enumerate(chosen, self.before), done, self.steps)
