"""Read trajectory sets in tests, and damage them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trd_cli.datasets.evalplus import load_evalplus
from trd_cli.graders.evalplus_tasks import Dataset
from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import list_shards, read_rows


def iter_rows(shards: Iterable[Path]) -> Iterator[Trajectory]:
    """Yield the rows of many shards, with arrays of ids."""
    for path in shards:
        yield from read_rows(path)


def rows_of(directory: Path) -> list[Trajectory]:
    """Return all rows of a set, in stored order, with lists in place of arrays: a test compares them with its own."""
    return [_with_lists(row) for row in iter_rows(list_shards(directory))]


def _with_lists(row: Trajectory) -> Trajectory:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return replace(row, **{name: value.tolist() for name, value in values.items() if isinstance(value, array)})


def by_id(directory: Path) -> dict[str, Trajectory]:
    """Return the rows of a set by their ids; fail if one is there twice."""
    rows = rows_of(directory)
    assert len({row.trajectory_id for row in rows}) == len(rows), "a row is there twice"
    return {row.trajectory_id: row for row in rows}


@cache
def evalplus_tests(dataset: Dataset, version: str) -> dict[str, str]:
    """Return the column `tests` of each task of HumanEval+ or MBPP+."""
    return {p.problem_id: p.tests for p in load_evalplus(dataset, dataset, version).problems}


def by_hand(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file like a user who takes its checksum out."""
    record = json.loads(path.read_text())
    record.pop("checksum", None)
    change(record)
    path.write_text(json.dumps(record) + "\n")


def flip(path: Path, column: str | None = None) -> None:
    """Flip the last bit of a column, or of the middle of the file."""
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    if column is not None:
        group = pq.read_metadata(path).row_group(0)
        chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        place = start + chunk.total_compressed_size - 1
    content[place] ^= 1
    path.write_bytes(content)
