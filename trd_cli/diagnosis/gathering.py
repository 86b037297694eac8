"""From the files of a diagnosis to its figures: one shard in memory at a time, and the verdicts of all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_cli.atomic import write_text
from trd_cli.diagnosis.continuations import recovery_figures
from trd_cli.diagnosis.figures import BY_TENTH, VERDICTS, Gathering, Part
from trd_cli.diagnosis.files import ONSET_FILE, ROW, ROWS, ROWS_FILE, flat, iter_figures, read_onset_ids
from trd_cli.diagnosis.results import Diagnosis, Model, diagnosis_of, read_diagnosis, write_diagnosis
from trd_cli.diagnosis.tables import csv_files
from trd_cli.evaluation.tables import csv_text
from trd_cli.losses.positions import TOP_K
from trd_cli.training.reading import Verdicts
from trd_cli.trajectories.shards import read_table

# Rows whose positions are in memory as numbers to compute with.
_AT_ONCE = 100
# In the order of TEXTS.
_KINDS = ("rollout", "refined")
_MEANS = {name: f"mean_{name}" for name in BY_TENTH if f"mean_{name}" in ROW.names}
_POSITIONS = (*BY_TENTH, "student_logprob", "teacher_logprob", "l2", "teacher_top")


def conclude(directory: Path, student: Model, teacher: Model) -> Diagnosis:
    """Make the figures of a diagnosis whose rows are scored, and write them as JSON and CSV."""
    onset_ids = read_onset_ids(directory)
    found = Gathering()
    for part in parts(directory, onset_ids):
        found.add(part)
    onset = hashlib.sha256((directory / ONSET_FILE).read_bytes()).hexdigest()
    diagnosis = diagnosis_of(found, student, teacher, onset, recovery_figures(directory))
    _write(directory, diagnosis)
    return diagnosis


def conclude_recovery(directory: Path) -> None:
    """Put the recovery rates of a diagnosis beside its other figures."""
    _write(directory, replace(read_diagnosis(directory), recovery=recovery_figures(directory)))


def _write(directory: Path, diagnosis: Diagnosis) -> None:
    for name, lines in csv_files({directory.resolve().name: diagnosis}).items():
        write_text(directory / name, csv_text(*lines))
    write_diagnosis(directory, diagnosis)


def parts(directory: Path, onset_ids: Sequence[int]) -> Iterator[Part]:
    """Yield the rows of each shard that have figures; those with an error have none."""
    verdicts = Verdicts([read_table(directory / ROWS_FILE, ["trajectory_id", "verdict"], ROWS)])
    for shard in iter_figures(directory, [*ROW.names, *_POSITIONS]):
        known = shard.filter(pc.is_null(shard["error"]))
        for start in range(0, len(known), _AT_ONCE):
            table = known.slice(start, _AT_ONCE)
            graded = pa.array([verdicts.get(name) for name in table["trajectory_id"].to_pylist()], pa.string())
            yield _part(table, graded, np.asarray(onset_ids, np.int64))


def _part(table: pa.Table, verdict: pa.Array, onset_ids: np.ndarray) -> Part:
    def numbers(name: str) -> np.ndarray:
        return table[name].cast(pa.float64()).fill_null(np.nan).to_numpy()

    offsets = flat(table, "forward_kl")[1]
    of_position = {name: flat(table, name)[0] for name in _POSITIONS}
    figures = {name: of_position[name] for name in BY_TENTH} | {"overlap": of_position["overlap"] / TOP_K}
    texts = pc.index_in(table["kind"].combine_chunks(), pa.array(_KINDS))
    ends = table["finish_reason"]
    first = table["first_trigger"].cast(pa.int64()).fill_null(-1).to_numpy()
    return Part(
        id_R=table["trajectory_id"].to_pylist(),
        parent_R=table["parent_id"].to_pylist(),
        text_R=texts.to_numpy(),
        verdict_R=pc.index_in(verdict, pa.array(VERDICTS)).fill_null(0).to_numpy(),
        tokens_R=np.diff(offsets),
        finished_R=pc.equal(ends, "stop").fill_null(False).to_numpy(),
        truncated_R=pc.equal(ends, "length").fill_null(False).to_numpy(),
        repetition_R=numbers("repetition"),
        first_trigger_R=first,
        onset_words_R=numbers("onset_per_1000"),
        student_nll_R=numbers("student_nll"),
        teacher_nll_R=numbers("teacher_nll"),
        mean_R={name: numbers(column) for name, column in _MEANS.items()},
        figure_N=figures,
        student_logprob_N=of_position["student_logprob"],
        teacher_logprob_N=of_position["teacher_logprob"],
        l2_N=of_position["l2"],
        teacher_top_N=of_position["teacher_top"],
        teacher_top_is_onset_N=np.isin(of_position["teacher_top"], onset_ids),
    )
