"""Weights & Biases. The package is loaded when the tracker is made.

wandb drops rows whose number is not above those that it has, so a row has the number of its point, and figures have the
optimiser step as their x axis (`define_metric`). Its files lie in `wandb/` of the run directory.

With WANDB_MODE=offline each `trd run` leaves one directory `wandb/offline-run-…` for a tracker's run; `wandb sync`
puts those of one run together. A directory that a killed process has left is removed, and its points are logged anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trd_cli.errors import InputError
from trd_cli.tracking.base import Batch, Place

FILES = "wandb"
STEP = "step"
# Seconds for the server's answer to a new run.
_PATIENCE = 30.0
_OFFLINE = ("offline", "dryrun")


class Wandb:
    """Log to wandb, or to its files with WANDB_MODE=offline."""

    def __init__(self) -> None:
        """Raise ImportError if the package is not installed, and InputError if it is switched off."""
        import wandb

        self._wandb = wandb
        mode = wandb.setup().settings.mode
        if mode == "disabled":
            raise InputError("WANDB_MODE=disabled", "online or offline", "change it, or leave --tracker wandb out")
        self.is_late = mode in _OFFLINE

    def log(self, place: Place, batch: Batch) -> Sequence[str]:
        """Log the points; those that the server has are left out."""
        kept = set(place.files)
        for path in self._fragments(place):
            if path.name not in kept:
                shutil.rmtree(path)
        run = self._begin(place)
        try:
            there = 0 if self.is_late else run.step
            for number, point in batch.points:
                if number >= there:
                    tables = {name: self._table(*lines) for name, lines in point.tables.items()}
                    run.log({STEP: point.step, **point.values, **tables}, step=number)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
        return [path.name for path in self._fragments(place)]

    def _fragments(self, place: Place) -> list[Path]:
        """Return the directories of a run that was logged offline."""
        return sorted((place.directory / FILES).glob(f"offline-run-*-{place.id}"))

    def _begin(self, place: Place) -> Any:
        run = self._wandb.init(
            project=place.project,
            group=place.group,
            name=place.name,
            id=place.id,
            resume="allow",
            dir=str(place.directory),
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                init_timeout=_PATIENCE,
            ),
        )
        run.config.update(dict(place.config), allow_val_change=True)
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        return run

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
        return self._wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
