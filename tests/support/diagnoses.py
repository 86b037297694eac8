"""Make up a diagnosis: the files of `trd diagnose` without a model, for its figures, its tables and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from trd_cli.diagnosis.files import RowFigures, described, repetition, summary, write_figures, write_onset, write_rows
from trd_cli.diagnosis.gathering import conclude
from trd_cli.diagnosis.onset import Onset
from trd_cli.diagnosis.results import Diagnosis, Model
from trd_cli.diagnosis.scoring import PositionFigures
from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import shard_path

ONSET = 7
_WHOLE = {"response_ids": np.int32, "teacher_top": np.int32, "overlap": np.int8, "is_onset": bool, "trigger": bool}


def positions(**values: Sequence[float]) -> PositionFigures:
    """Return figures of positions, 0 where not given."""
    length = len(next(iter(values.values())))
    columns = {
        field.name: np.array(values.get(field.name, [0] * length), _WHOLE.get(field.name, np.float32))
        for field in fields(PositionFigures)
    }
    return PositionFigures(**columns)


def invented(row: Trajectory, seed: int) -> PositionFigures:
    """Return figures of a row that turns wrong at its middle if it is incorrect, for looking at."""
    random = np.random.default_rng(seed)
    length = int(random.integers(40, 400))
    place = np.arange(length) / length
    wrong = (row.verdict == "incorrect") * (place > 0.45)
    forward = random.gamma(1.0, 0.25 + 0.9 * wrong)
    student = -random.gamma(0.6, 0.5, length)
    return positions(
        response_ids=random.integers(0, 100, length),
        forward_kl=forward,
        reverse_kl=forward * random.gamma(2.0, 0.3 + 0.3 * wrong),
        student_logprob=student,
        teacher_logprob=student - random.normal(0.1 + 0.8 * wrong, 0.4),
        student_entropy=random.gamma(1.0, 0.4, length),
        teacher_entropy=random.gamma(1.0, 0.3 + 0.3 * wrong),
        l2=random.beta(1.0, 6.0 - 3.0 * wrong),
        onset_mass=random.gamma(0.2, 0.008 + 0.03 * wrong),
        overlap=random.binomial(16, 0.7 - 0.2 * wrong),
        overlap_advantage=random.normal(-0.2 - 0.2 * wrong, 0.1),
        teacher_top=np.where(random.random(length) < 0.02 + 0.1 * wrong, ONSET, 3),
        is_onset=random.random(length) < 0.004,
        trigger=random.random(length) < 0.001 + 0.02 * wrong,
    )


def write_figures_of(
    directory: Path,
    rows: Sequence[tuple[Trajectory, PositionFigures | None]],
    shard_rows: int = 100,
    onset_ids: Sequence[int] = (ONSET,),
) -> None:
    """Write the shards, rows.parquet and onset.json of these rows; one without figures has an error."""
    directory.mkdir(parents=True, exist_ok=True)
    made = [_row_figures(*row) for row in rows]
    for number, start in enumerate(range(0, len(made), shard_rows)):
        write_figures(shard_path(directory, number), made[start : start + shard_rows], None)
    write_onset(directory, Onset(("wait",), tuple(onset_ids), dict.fromkeys(onset_ids, "wait"), {}, {}))
    verdicts: Mapping[str, Any] = {row.trajectory_id: row.verdict for row, _ in rows}
    write_rows(directory, verdicts.get, None)


def _row_figures(row: Trajectory, figures: PositionFigures | None) -> RowFigures:
    if figures is None:
        return RowFigures(described(row), error="too long")
    return RowFigures(described(row) | summary(figures), positions=figures)


def concluded(directory: Path) -> Diagnosis:
    """Make the figures of a diagnosis and write them."""
    return conclude(directory, Model("tiny-student", "1"), Model("tiny-teacher", "2"))


__all__ = ["ONSET", "concluded", "invented", "positions", "repetition", "write_figures_of"]
