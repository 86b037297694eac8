"""Authors and weights of response tokens: their columns, sets from before there were any, and training along them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Trd
from support.rows import refined_row
from support.sets import by_id, rows_of

from trd_cli.records import AUTHORS, authors_of
from trd_cli.trajectories.sets import iter_selected, open_sets
from trd_cli.trajectories.shards import (
    SCHEMAS,
    check_whole,
    iter_tables,
    list_shards,
    read_rows,
    read_table,
    shard_info,
    shard_path,
    write_shard,
    write_table,
)

STUDENT, TEACHER, ENVIRONMENT, TEMPLATE = range(4)
OURS = refined_row(1, response_token_ids=[5, 6, 7], author=[0, 1, 3], token_weight=[1.0, 0.5, 0.0], prefix_tokens=1)


def as_version_1(path: Path) -> None:
    """Write a shard again as an earlier trd did."""
    table, of = read_table(path), shard_info(path).set_digest
    write_table(path, table.select(SCHEMAS["1"].names).cast(SCHEMAS["1"]), of)


def versions(directory: Path) -> list[str]:
    return [pq.read_metadata(path).metadata[b"trd.schema_version"].decode() for path in list_shards(directory)]


# The columns


def test_the_codes_of_authors_never_change() -> None:
    assert AUTHORS == ("student", "teacher", "environment", "template")


def test_a_row_that_names_no_author_is_its_usual_authors() -> None:
    row = refined_row(1, response_token_ids=[5, 6, 7])
    assert [*authors_of(row)] == [TEACHER] * 3
    assert [*authors_of(replace(row, stage="rollout"))] == [STUDENT] * 3
    assert [*authors_of(replace(row, response_token_ids=None))] == []
    assert [*authors_of(OURS)] == [STUDENT, TEACHER, TEMPLATE]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("author", [0, 1]),
        ("author", [0, 1, 1, 1]),
        ("author", [0, 1, 4]),
        ("author", [0, 1, -1]),
        ("author", [0, 1, None]),
        ("token_weight", [1.0]),
        ("token_weight", [1.0, 1.0, -0.5]),
        ("token_weight", [1.0, 1.0, float("nan")]),
        ("token_weight", [1.0, 1.0, float("inf")]),
        ("prefix_tokens", 4),
        ("prefix_tokens", -1),
    ],
)
def test_a_row_whose_columns_contradict_its_response_becomes_an_error_row(
    column: str, value: Any, tmp_path: Path
) -> None:
    write_shard(tmp_path / "s.parquet", [OURS, replace(OURS, **{column: value})])
    good, bad = read_rows(tmp_path / "s.parquet")
    assert (good.error, [*good.author]) == (None, [0, 1, 3])
    assert bad.error == f"could not be written: {column} do not go with its response tokens"
    assert (bad.response_token_ids, bad.author, bad.token_weight) == (None, None, None)


def test_a_row_without_a_response_keeps_the_prefix_that_it_was_asked_with(tmp_path: Path) -> None:
    failed = refined_row(1, response=None, response_token_ids=None, prefix_tokens=7, error="no room")
    write_shard(tmp_path / "s.parquet", [failed])
    [row] = read_rows(tmp_path / "s.parquet")
    assert (row.error, row.prefix_tokens) == ("no room", 7)


# Sets from before these columns


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """A directory with problems and with 24 rollouts of them, without verdicts, in three shards."""
    root = tmp_path_factory.mktemp("made")
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 1, "--out", root / "problems.parquet")
    ok(*sampling(root))
    return root


@pytest.fixture
def old(made: Path, tmp_path: Path) -> Path:
    """A copy of them, of which two shards are of version 1 and the last one is of version 2."""
    root = shutil.copytree(made, tmp_path / "old")
    for path in list_shards(root / "y_o")[:2]:
        as_version_1(path)
    return root


def sampling(root: Path) -> list[object]:
    return [
        *("sample", "-m", "scripted", "-n", 2, "--shard-rows", 10),
        "-p",
        root / "problems.parquet",
        "--out",
        root / "y_o",
    ]


def refining(root: Path, out: Path) -> list[object]:
    return ["refine", "--setting", "opsd", "-t", "scripted", "--shard-rows", 10, "--out", out, root / "y_o"]


def test_every_way_to_read_a_shard_reads_those_of_version_1(tmp_path: Path) -> None:
    plain = refined_row(1, response_token_ids=[5, 6])
    path, there = shard_path(tmp_path, 0), len(SCHEMAS["2"])
    write_shard(path, [plain, OURS], "digest")
    as_version_1(path)
    check_whole(path)
    first, second = read_rows(path)
    assert [second.author, second.token_weight, second.prefix_tokens] == [None] * 3
    assert (first.trajectory_id, [*first.response_token_ids]) == (plain.trajectory_id, [5, 6])
    assert (shard_info(path).rows, shard_info(path).set_digest) == (2, "digest")
    assert read_table(path).schema.equals(SCHEMAS["2"])
    for columns in (["author"], ["author", "trajectory_id"], ["prefix_tokens", "token_weight"]):
        for table in (read_table(path, columns), *iter_tables(path, columns, rows=2)):
            assert (table.column_names, table.num_rows) == (columns, 2)
    assert [table.shape for table in iter_tables(path, rows=1)] == [(1, there)] * 2


def test_a_filter_reads_sets_of_both_versions(tmp_path: Path) -> None:
    write_shard(shard_path(tmp_path, 0), [refined_row(2)])
    as_version_1(shard_path(tmp_path, 0))
    write_shard(shard_path(tmp_path, 1), [OURS, refined_row(3)])
    sets = open_sets([str(tmp_path)])
    assert [row.prefix_tokens for row in iter_selected(sets)] == [None, 1, None]
    assert [row.prefix_tokens for row in iter_selected(sets, where="prefix_tokens > 0")] == [1]
    without = [row.sample_index for row in iter_selected(sets, where="author IS NULL")]
    assert without == [2, 3]


def test_a_set_of_version_1_is_finished_and_is_left_as_it_is_by_the_command_that_made_it(old: Path, ok: Trd) -> None:
    before = [path.read_bytes() for path in list_shards(old / "y_o")]
    ok(*sampling(old))
    assert [path.read_bytes() for path in list_shards(old / "y_o")] == before


def test_a_set_of_version_1_that_lost_a_shard_goes_on_to_the_same_rows(old: Path, made: Path, ok: Trd) -> None:
    list_shards(old / "y_o")[0].unlink()
    ok(*sampling(old))
    assert by_id(old / "y_o") == by_id(made / "y_o")
    assert sorted(versions(old / "y_o")) == ["1", "2", "2"]


def test_verify_writes_version_2_in_place_and_in_copies(old: Path, ok: Trd, tmp_path: Path) -> None:
    ok("verify", old / "y_o", "--out", tmp_path / "copy")
    assert versions(tmp_path / "copy") == ["2"] * 3
    assert versions(old / "y_o") == ["1", "1", "2"]
    ok("verify", old / "y_o")
    assert versions(old / "y_o") == ["2"] * 3
    assert rows_of(old / "y_o") == rows_of(tmp_path / "copy")
    assert {row.verdict for row in rows_of(old / "y_o")} == {"correct", "incorrect"}


def test_what_is_made_from_a_set_of_version_1_is_the_same(old: Path, made: Path, ok: Trd, tmp_path: Path) -> None:
    ok(*refining(old, tmp_path / "of-old"))
    ok(*refining(made, tmp_path / "of-new"))
    assert rows_of(tmp_path / "of-old") == rows_of(tmp_path / "of-new")
    assert versions(tmp_path / "of-old") == ["2"] * 3
    for where in (old / "y_o", tmp_path / "of-old"):
        ok("verify", where)
    [first, *_] = rows_of(tmp_path / "of-old")
    assert first.trajectory_id in ok("show", tmp_path / "of-old", "--id", first.trajectory_id).stdout
