"""Authors and weights of response tokens: their columns, sets from before there were any, and training along them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Trd
from support.rows import refined_row, write_set
from support.sets import by_id, rows_of
from support.tiny import END, build_model, reference_model

from trd_cli.config.training import DistillConfig
from trd_cli.models import resolve_model
from trd_cli.progress import SilentProgress
from trd_cli.records import AUTHORS, authors_of
from trd_cli.stages.distill import read
from trd_cli.training.batches import Example
from trd_cli.training.stored import Examples
from trd_cli.trajectories.sets import iter_selected, open_sets
from trd_cli.trajectories.shards import (
    SCHEMA,
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
    """A copy of them, of which two shards are of version 1 and the last one is of the newest."""
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
    path, there = shard_path(tmp_path, 0), len(SCHEMA)
    write_shard(path, [plain, OURS], "digest")
    as_version_1(path)
    check_whole(path)
    first, second = read_rows(path)
    assert [second.author, second.token_weight, second.prefix_tokens] == [None] * 3
    assert (first.trajectory_id, [*first.response_token_ids]) == (plain.trajectory_id, [5, 6])
    assert (shard_info(path).rows, shard_info(path).set_digest) == (2, "digest")
    assert read_table(path).schema.equals(SCHEMA)
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
    assert sorted(versions(old / "y_o")) == ["1", "3", "3"]


def test_verify_writes_version_2_in_place_and_in_copies(old: Path, ok: Trd, tmp_path: Path) -> None:
    ok("verify", old / "y_o", "--out", tmp_path / "copy")
    assert versions(tmp_path / "copy") == ["3"] * 3
    assert versions(old / "y_o") == ["1", "1", "3"]
    ok("verify", old / "y_o")
    assert versions(old / "y_o") == ["3"] * 3
    assert rows_of(old / "y_o") == rows_of(tmp_path / "copy")
    assert {row.verdict for row in rows_of(old / "y_o")} == {"correct", "incorrect"}


def test_what_is_made_from_a_set_of_version_1_is_the_same(old: Path, made: Path, ok: Trd, tmp_path: Path) -> None:
    ok(*refining(old, tmp_path / "of-old"))
    ok(*refining(made, tmp_path / "of-new"))
    assert rows_of(tmp_path / "of-old") == rows_of(tmp_path / "of-new")
    assert versions(tmp_path / "of-old") == ["3"] * 3
    for where in (old / "y_o", tmp_path / "of-old"):
        ok("verify", where)
    [first, *_] = rows_of(tmp_path / "of-old")
    assert first.trajectory_id in ok("show", tmp_path / "of-old", "--id", first.trajectory_id).stdout


def test_trd_show_tells_how_much_was_given_and_what_the_tokens_weigh(ok: Trd, tmp_path: Path) -> None:
    said = ok("show", write_set(tmp_path / "y_r", [[OURS]])).stdout
    assert "student 1, then teacher 1, then template 1" in said
    assert "1 response token given to the model" in said
    assert "0 to 1, mean 0.5, 0 for 1 of 3 tokens" in said


# Training along them

# Responses of four tokens; in the second row the student, the teacher and a template wrote them.
MIXED = [
    refined_row(1, response_token_ids=[40, 41, 42, 43]),
    refined_row(2, response_token_ids=[50, 51, 52, 53], author=[STUDENT, STUDENT, TEACHER, TEMPLATE]),
    refined_row(3, response_token_ids=[60, 61, 62, 63], token_weight=[0.5, 0.0, 2.0, 1.5]),
    replace(
        refined_row(4, response_token_ids=[70, 71, 72, 73], token_weight=[0.25, 3.0, 1.0, 1.0]),
        author=[STUDENT, TEACHER, ENVIRONMENT, TEACHER],
    ),
]
# The tokens that count, with their weights.
TRAINED: dict[str, dict[int, dict[int, float]]] = {
    "all": {
        1: {40: 1, 41: 1, 42: 1, 43: 1},
        2: {50: 1, 51: 1, 52: 1},
        3: {60: 0.5, 62: 2, 63: 1.5},
        4: {70: 0.25, 71: 3, 73: 1},
    },
    "student": {2: {50: 1, 51: 1}, 4: {70: 0.25}},
    "teacher": {1: {40: 1, 41: 1, 42: 1, 43: 1}, 2: {52: 1}, 3: {60: 0.5, 62: 2, 63: 1.5}, 4: {71: 3, 73: 1}},
}
TRAIN = ("--dtype", "float32", "--device", "cpu", "--steps", 1, "--batch-size", 4)


@dataclass(frozen=True)
class World:
    model: Path
    rows: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    return World(build_model(root / "model"), write_set(root / "y_r", [MIXED[:3], MIXED[3:]]))


def examples_of(world: World, source: Path, **options: Any) -> Examples:
    config = DistillConfig.parse({"inputs": (str(source),), "model": str(world.model), "device": "cpu", **options})
    with tempfile.TemporaryFile() as file:
        return read(config, open_sets([str(source)]), resolve_model, SilentProgress(), file)[2]


def counting(examples: Iterable[Example]) -> dict[int, dict[int, float]]:
    """Return the tokens that count with their weights, by the number in the row's id."""
    numbers = {row.trajectory_id: row.sample_index for row in MIXED}
    return {
        numbers[e.trajectory_id]: dict(zip(e.response_ids[e.scored].tolist(), e.weights.tolist(), strict=True))
        for e in examples
    }


@pytest.mark.parametrize("train_on", TRAINED)
def test_a_token_counts_by_its_author_and_its_weight(world: World, train_on: str) -> None:
    assert counting(examples_of(world, world.rows, train_on=train_on)) == TRAINED[train_on]


def test_rollouts_without_authors_are_the_students(world: World, tmp_path: Path) -> None:
    rollout = refined_row(1, stage="rollout", setting=None, response_token_ids=[40, 41], parent_id=None)
    source = write_set(tmp_path / "y_o", [[rollout]])
    options = {"setting": "opd", "teacher": str(world.model), "train_on": "student"}
    assert counting(examples_of(world, source, **options)) == {1: {40: 1, 41: 1}}


def test_the_head_of_a_response_is_all_that_is_read_and_trained_on(world: World) -> None:
    examples = examples_of(world, world.rows, max_response_tokens=2)
    assert {len(e.response_ids) for e in examples} == {2}
    assert counting(examples) == {1: {40: 1, 41: 1}, 2: {50: 1, 51: 1}, 3: {60: 0.5}, 4: {70: 0.25, 71: 3}}
    assert examples_of(world, world.rows, max_response_tokens=4).digest == examples_of(world, world.rows).digest


def test_the_end_of_turn_has_the_author_and_the_weight_of_the_last_token(world: World, tmp_path: Path) -> None:
    given = {"finish_reason": "stop", "response_token_ids": [40, 41], "author": [TEACHER, STUDENT]}
    source = write_set(tmp_path / "y_r", [[refined_row(1, **given, token_weight=[1.0, 0.5])]])
    [found] = examples_of(world, source, train_on="student")
    assert (found.response_ids.tolist(), found.scored.tolist(), found.weights.tolist()) == (
        [40, 41, END],
        [1, 2],
        [0.5, 0.5],
    )


def test_saying_who_is_the_usual_author_with_the_usual_weight_changes_nothing_that_is_trained_on(
    world: World, tmp_path: Path
) -> None:
    plain = [refined_row(i) for i in range(4)]
    told = [
        replace(row, author=[TEACHER] * len(row.response_token_ids), token_weight=[1.0] * len(row.response_token_ids))
        for row in plain
    ]
    sets = [write_set(tmp_path / name, [rows]) for name, rows in (("plain", plain), ("told", told))]
    assert examples_of(world, sets[0]).digest == examples_of(world, sets[1]).digest
    as_version_1(shard_path(sets[0], 0))
    assert examples_of(world, sets[0]).digest == examples_of(world, sets[1]).digest


def test_rows_with_nothing_to_train_on_are_counted_and_left_out(
    world: World, ok: Trd, trd: Trd, tmp_path: Path
) -> None:
    command = ("distill", "--model", world.model, *TRAIN, "--train-on", "student")
    said = ok(*command, world.rows, "--dry-run").stderr
    assert "left out 2 of 4 rows: no token of the response has a weight above 0 with --train-on student" in said
    assert "on 2 trajectories" in said
    alone = write_set(tmp_path / "y_r", [MIXED[:1]])
    refused = trd(*command, alone, "--out", tmp_path / "c")
    assert refused.exit_code == 1
    assert "0 of 1 row can be trained on" in refused.stderr
    assert not (tmp_path / "c").exists()


def test_a_row_of_another_program_whose_authors_are_too_few_is_counted_and_left_out(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    path = shard_path(write_set(tmp_path / "y_r", [MIXED]), 0)
    table = read_table(path)
    authors = pa.array([[TEACHER], *table["author"].to_pylist()[1:]], table["author"].type)
    write_table(path, table.set_column(table.column_names.index("author"), table.schema.field("author"), authors))
    said = ok("distill", path, "--model", world.model, *TRAIN, "--dry-run").stderr
    assert "left out 1 of 4 rows: author do not go with the response tokens" in said


def naive_losses(model: Path) -> tuple[float, float]:
    """Return the loss of all rows by sequence and by token, from whole logits and the table above."""
    network = reference_model(model)
    of_rows, weights_of_rows = [], []
    for row in MIXED:
        response = list(row.response_token_ids)
        teachers, students = (
            network(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for prompt in (row.prompt_token_ids, row.student_prompt_token_ids)
        )
        divergence_T = (teachers.exp() * (teachers - students)).sum(-1)
        counting = TRAINED["all"][row.sample_index]
        weights_T = torch.tensor([float(counting.get(token, 0)) for token in response])
        of_rows.append((divergence_T * weights_T).sum())
        weights_of_rows.append(weights_T.sum())
    sums, weights = torch.stack(of_rows), torch.stack(weights_of_rows)
    return (sums / weights).mean().item(), (sums.sum() / weights.sum()).item()


def test_the_loss_is_the_weighted_mean_in_both_reductions_however_the_step_is_cut(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    with torch.no_grad():
        expected = naive_losses(world.model)
    assert expected[0] != pytest.approx(expected[1], rel=0.01)
    for reduction, loss in zip(("sequence", "token"), expected, strict=True):
        lines = []
        for most in (4096, 1):
            out = tmp_path / f"{reduction}-{most}"
            options = ("--reduction", reduction, "--max-tokens-per-batch", most)
            ok("distill", world.rows, "--model", world.model, *TRAIN, *options, "--out", out)
            lines.append(json.loads((out / "train.jsonl").read_text()))
        for line in lines:
            assert line["loss"] == pytest.approx(loss, rel=1e-4)
            assert line["response_tokens"] == 13
        assert lines[0]["padding"] != lines[1]["padding"]
        assert lines[0]["grad_norm"] == pytest.approx(lines[1]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("train_on", ["all", "student"])
def test_the_selfcheck_holds_along_weights(world: World, ok: Trd, train_on: str) -> None:
    ok("distill", world.rows, "--model", world.model, *TRAIN, "--train-on", train_on, "--selfcheck")


def test_the_loss_by_verdict_of_the_attempt_is_weighted_too(world: World, ok: Trd, tmp_path: Path) -> None:
    parents = [refined_row(i, trajectory_id=f"parent-{i}", stage="rollout", verdict="incorrect") for i in range(5)]
    options = ("--parents", write_set(tmp_path / "y_o", [parents]), "--out", tmp_path / "c")
    ok("distill", world.rows, "--model", world.model, *TRAIN, *options)
    line = json.loads((tmp_path / "c" / "train.jsonl").read_text())
    assert line["loss_parent_incorrect"] == pytest.approx(line["loss"], rel=1e-5)
