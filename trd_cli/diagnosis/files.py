"""The files of a diagnosis: figures of positions and of rows, with their exact schemas.

A directory of `trd diagnose` has

    run.json, sessions.jsonl   as any output
    shard-NNNNN.parquet        `SHARD`: one row a trajectory, its figures (`ROW`) and lists of those of its positions
    rows.parquet               `ROWS`: the figures of all rows, joined to verdicts; made anew at the end of each command
    onset.json                 the onset words, their ids and the rule

Figures of positions are float16, so they have three digits. Means of a row are made from float32 before that.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trd_cli.atomic import write_text
from trd_cli.diagnosis.onset import Onset
from trd_cli.diagnosis.scoring import PositionFigures
from trd_cli.diagnosis.sums import perplexity
from trd_cli.errors import InputError, flag
from trd_cli.losses.positions import TOP_K
from trd_cli.records import Trajectory
from trd_cli.training.batches import Example
from trd_cli.trajectories.shards import list_shards, of_kind, read_table, write_table

ROWS_FILE, ONSET_FILE = "rows.parquet", "onset.json"
# Characters at the end of a response whose repetition is measured.
TAIL = 10_000
# Offsets of lists are int32.
_MOST_POSITIONS = 2**31 - 1
# Type of each figure of a position.
POSITION_TYPES: dict[str, pa.DataType] = {
    **{field.name: pa.float16() for field in fields(PositionFigures)},
    "response_ids": pa.int32(),
    "overlap": pa.int8(),
    "teacher_top": pa.int32(),
    "is_onset": pa.bool_(),
    "trigger": pa.bool_(),
}
_REQUIRED = ("trajectory_id", "problem_id", "kind", "round", "sample_index", "source", "task")
_TEXT = ("trajectory_id", "problem_id", "parent_id", "kind", "setting", "source", "task", "finish_reason", "error")
_MEANS = ("forward_kl", "reverse_kl", "student_entropy", "teacher_entropy", "l2", "onset_mass", "overlap")
_COUNTS = (
    *("round", "sample_index", "student_prompt_tokens", "teacher_prompt_tokens", "tokens", "characters"),
    *("onset_tokens", "triggers", "first_trigger"),
)
_NUMBERS = (
    *("student_nll", "teacher_nll", "student_perplexity", "teacher_perplexity", "onset_per_1000", "repetition"),
    *(f"mean_{name}" for name in _MEANS),
)


def _schema(*groups: tuple[Sequence[str], pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name not in _REQUIRED) for names, kind in groups for name in names])


# One row a trajectory. All figures are null where `error` is set.
ROW = _schema((_TEXT, pa.string()), (_COUNTS, pa.int32()), (_NUMBERS, pa.float64()))
SHARD = of_kind(
    *("shard of a diagnosis", "1"),
    [*ROW, *(pa.field(name, pa.list_(pa.field("element", kind))) for name, kind in POSITION_TYPES.items())],
)
ROWS = of_kind(
    "table of a diagnosis", "1", [*ROW, pa.field("verdict", pa.string()), pa.field("parent_verdict", pa.string())]
)


@dataclass(frozen=True, slots=True)
class RowFigures:
    """One row of a diagnosis: what it is of, and its figures; `error` is the reason where there are none.

    `values` are the columns of `ROW` by their names, but for `error`; `positions` become columns of `SHARD`. A row that
    is not scored yet has an `example`.
    """

    values: dict[str, Any]
    example: Example | None = None
    positions: PositionFigures | None = None
    error: str | None = None

    @property
    def trajectory_id(self) -> str:
        return self.values["trajectory_id"]

    @property
    def problem_id(self) -> str:
        return self.values["problem_id"]

    @property
    def sample_index(self) -> int:
        return self.values["sample_index"]


def described(row: Trajectory) -> dict[str, Any]:
    """Return the columns of `ROW` that a trajectory has itself."""
    names = ("trajectory_id", "problem_id", "parent_id", "round", "sample_index", "setting", "source", "task")
    text = row.response or ""
    of_text = {"characters": len(text), "repetition": repetition(text)} if row.error is None else {}
    return {name: getattr(row, name) for name in names} | {
        "kind": row.stage,
        "finish_reason": row.finish_reason,
        **of_text,
    }


def repetition(text: str) -> float | None:
    """Return how many times smaller zlib makes the last 10,000 characters: about 2 to 4 for prose, more for loops."""
    tail = text[-TAIL:].encode("utf-8", "surrogatepass")
    return len(tail) / len(zlib.compress(tail)) if tail else None


def summary(of: PositionFigures) -> dict[str, Any]:
    """Return the columns of `ROW` that are made from the figures of positions."""
    tokens = len(of)
    nll = {side: -float(getattr(of, f"{side}_logprob").mean(dtype=np.float64)) for side in ("student", "teacher")}
    places = np.flatnonzero(of.trigger)
    onsets = int(of.is_onset.sum())
    means = {name: float(getattr(of, name).mean(dtype=np.float64)) for name in _MEANS}
    return {
        "tokens": tokens,
        **{f"{side}_nll": value for side, value in nll.items()},
        **{f"{side}_perplexity": perplexity(value) for side, value in nll.items()},
        "onset_tokens": onsets,
        "onset_per_1000": 1000 * onsets / tokens,
        "triggers": len(places),
        "first_trigger": int(places[0]) if len(places) else None,
        **{f"mean_{name}": value for name, value in means.items()},
        "mean_overlap": means["overlap"] / TOP_K,
    }


def write_figures(path: Path, rows: Sequence[RowFigures], set_digest: str | None) -> None:
    """Write one shard."""
    columns = {name: [row.values.get(name) for row in rows] for name in ROW.names}
    columns["error"] = [row.error for row in rows]
    arrays = {name: pa.array(values, ROW.field(name).type) for name, values in columns.items()}
    arrays |= {name: _lists([row.positions for row in rows], name) for name in POSITION_TYPES}
    write_table(path, pa.table(arrays, schema=SHARD), set_digest)


def _lists(of: Sequence[PositionFigures | None], name: str) -> pa.Array:
    kind, column = POSITION_TYPES[name], SHARD.field(name).type
    ends = np.cumsum([0, *(0 if each is None else len(each) for each in of)], dtype=np.int64)
    if ends[-1] > _MOST_POSITIONS:
        raise InputError(
            f"{ends[-1]:,} tokens in a shard", f"at most {_MOST_POSITIONS:,}", f"lower {flag('shard_rows')}"
        )
    values = [np.asarray(getattr(each, name)) for each in of if each is not None]
    dtype = np.dtype(kind.to_pandas_dtype())
    items = pa.array(np.concatenate([*values, np.empty(0, dtype)], dtype=dtype, casting="unsafe"), kind)
    missing = [each is None for each in of]
    mask = pa.array(missing) if any(missing) else None
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items, column, mask=mask)


def iter_figures(directory: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the shards of a diagnosis, all columns of `SHARD` or some, one in memory at a time."""
    for path in list_shards(directory):
        yield read_table(path, list(columns) if columns else None, SHARD)


def flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a figure of the positions of all rows one after the other, and the offsets (rows + 1) of the rows.

    Float16 becomes float32. A row with an error has no position.
    """
    column = table[name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return (values.astype(np.float32) if values.dtype == np.float16 else values), offsets


def write_rows(directory: Path, verdict_of: Callable[[str], str | None], set_digest: str | None) -> Path:
    """Write the figures of all rows of a diagnosis, with the verdicts of the rows and of the attempts they refine."""
    table = pa.concat_tables([ROW.empty_table(), *iter_figures(directory, ROW.names)]).sort_by(
        [(name, "ascending") for name in ("problem_id", "sample_index", "kind", "trajectory_id")]
    )
    of_verdicts = {"verdict": "trajectory_id", "parent_verdict": "parent_id"}
    verdicts = {
        column: [name and verdict_of(name) for name in table[ids].to_pylist()] for column, ids in of_verdicts.items()
    }
    path = directory / ROWS_FILE
    write_table(path, pa.table({**dict(zip(ROW.names, table.columns, strict=True)), **verdicts}, ROWS), set_digest)
    return path


def read_rows(directory: Path) -> pa.Table:
    """Return the figures of all rows with verdicts; InputError for a directory without a finished diagnosis."""
    return read_table(directory / ROWS_FILE, None, ROWS)


def write_onset(directory: Path, onset: Onset) -> None:
    """Write the onset words and ids."""
    write_text(directory / ONSET_FILE, json.dumps(onset.record(), indent=2, ensure_ascii=False) + "\n")


def read_onset_ids(directory: Path) -> tuple[int, ...]:
    """Return the ids of the onset tokens of a diagnosis."""
    return tuple(json.loads((directory / ONSET_FILE).read_text(encoding="utf-8"))["ids"])
