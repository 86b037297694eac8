"""Examples in a file: written once, found again by what they were made from, and gone when the training has ended."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Trd
from support.rows import refined_row, write_set
from support.sets import flip
from support.tiny import build_model

from trd_cli.config.training import DistillConfig
from trd_cli.errors import DamagedFile, InputError
from trd_cli.models import resolve_model
from trd_cli.progress import SilentProgress
from trd_cli.stages.distill import read
from trd_cli.training.batches import Example
from trd_cli.training.reading import Verdicts
from trd_cli.training.stored import NAME, Examples, ExampleWriter
from trd_cli.trajectories.sets import open_sets
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

TRAIN = ("--dtype", "float32", "--device", "cpu")

# The file


def as_lists(e: Example) -> tuple[Any, ...]:
    ids = (e.student_prompt, e.teacher_prompt, e.response_ids, e.scored, e.weights)
    return e.trajectory_id, *(part.tolist() for part in ids), e.parent_verdict, e.group


def some_examples(count: int) -> list[Example]:
    verdicts = ("correct", None, "incorrect")
    return [
        Example(
            f"{'é' * (i % 3)}{i * 7919 % count}",
            range(i % 5),
            range(100, 110 + i % 4),
            range(200, 203 + i % 6),
            scored=[0, 2] if i % 2 else (),
            parent_verdict=verdicts[i % 3],
            group=(i % 3) << 56,
            weights=[0.25, 1.5] if i % 4 == 3 else (),
        )
        for i in range(count)
    ]


def test_a_file_gives_back_the_examples_in_the_order_of_their_ids(tmp_path: Path) -> None:
    examples = some_examples(5000)
    with open(tmp_path / NAME, "x+b") as file:
        writer = ExampleWriter(file)
        for example in examples:
            writer.add(example)
        writer.finish({"key": "k"})
    stored = Examples.at(tmp_path / NAME)
    expected = sorted(examples, key=lambda e: e.trajectory_id)
    assert [as_lists(e) for e in stored] == [as_lists(e) for e in expected]
    assert stored.read.tolist() == [list(e.read) for e in expected]
    # Four bytes an id, a place in a response of which only some count, and a weight other than 1; and the index.
    ids = sum(len(part) for e in stored for part in as_lists(e)[1:4])
    places, weights = (2 * sum(1 for i in range(5000) if i % n == n - 1) for n in (2, 4))
    assert (tmp_path / NAME).stat().st_size < 4 * (ids + places + weights) + 64 * 5000 + 1000


def digest_of(path: Path, examples: Sequence[Example]) -> str:
    with open(path, "x+b") as file:
        writer = ExampleWriter(file)
        for example in examples:
            writer.add(example)
        return writer.finish({}).digest


def test_weights_change_the_digest_and_weights_of_1_change_no_byte(tmp_path: Path) -> None:
    plain = [replace(e, weights=()) for e in some_examples(9)]
    given = [replace(e, weights=[1.0] * len(e.scored)) for e in plain]
    other = [*plain[:-1], replace(plain[-1], weights=[1.0] * (len(plain[-1].scored) - 1) + [0.5])]
    digests = [digest_of(tmp_path / str(i), rows) for i, rows in enumerate((plain, given, other))]
    assert digests[0] == digests[1] != digests[2]
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_neither_the_order_of_writing_nor_the_verdicts_change_the_digest(tmp_path: Path) -> None:
    examples = some_examples(50)
    orders = [examples, [replace(e, parent_verdict=None) for e in examples[::-1]], examples[1:]]
    digests = [digest_of(tmp_path / str(number), rows) for number, rows in enumerate(orders)]
    assert digests[0] == digests[1] != digests[2]


def test_a_verdict_that_routes_a_row_changes_the_digest(tmp_path: Path) -> None:
    digests = set()
    for group in (0, 4, 5, 7):
        with open(tmp_path / str(group), "x+b") as file:
            writer = ExampleWriter(file)
            writer.add(replace(some_examples(1)[0], group=group))
            digests.add(writer.finish({}).digest)
    assert len(digests) == 4


def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with open(path, "x+b") as file:
        writer = ExampleWriter(file)
        for example in some_examples(20):
            writer.add(example)
        writer.finish({"key": "k"})
    assert Examples.found([path], "k") is not None
    assert Examples.found([path], "another") is None
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert Examples.found([path], "k") is None, place
    for length in (0, 3, len(content) // 2, len(content) - 9, len(content) - 1):
        path.write_bytes(content[:length])
        assert Examples.found([path], "k") is None, length
    path.unlink()
    assert Examples.found([path], "k") is None


def test_a_full_disk_is_told_with_the_file() -> None:
    def write() -> None:
        with open("/dev/full", "r+b") as file:
            writer = ExampleWriter(file)
            for example in some_examples(5):
                writer.add(example)
            writer.finish({})

    with pytest.raises(InputError, match="could not write /dev/full: No space left"):
        write()


def test_verdicts_are_found_by_ids_of_any_length() -> None:
    def table(names: Sequence[str], verdicts: Sequence[str | None]) -> pa.Table:
        return pa.table({"trajectory_id": names, "verdict": pa.array(verdicts, pa.string())})

    verdicts = Verdicts([table(["b", "aa", "é"], ["correct", None, "timeout"]), table(["b"], ["incorrect"])])
    asked = ["b", "aa", "é", "a", "aaa", "", "c", None]
    assert [verdicts.get(name) for name in asked] == ["incorrect", None, "timeout", *[None] * 5]
    assert Verdicts([]).get("b") is None


# Reading sets


@dataclass(frozen=True)
class World:
    model: Path
    rows: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    rows = [refined_row(i) for i in range(8)]
    return World(build_model(root / "model"), write_set(root / "y_r", [rows[:5], rows[5:]]))


def read_into(world: World, source: Path, out: Path, **options: Any) -> tuple[Examples, int]:
    """Return the examples of a training into `out`, and how many bytes the reading wrote."""
    config = DistillConfig.parse(
        {"inputs": (str(source),), "model": str(world.model), "out": str(out), "device": "cpu", **options}
    )
    with tempfile.TemporaryFile() as file:
        _, _, examples = read(config, open_sets([str(source)]), resolve_model, SilentProgress(), file)
        return examples, os.fstat(file.fileno()).st_size


def left_by_a_run(world: World, source: Path, out: Path) -> None:
    """Leave the file that a training into `out` would, were it interrupted."""
    config = DistillConfig.parse({"inputs": (str(source),), "model": str(world.model), "out": str(out)})
    out.mkdir()
    with open(out / NAME, "x+b") as file:
        read(config, open_sets([str(source)]), resolve_model, SilentProgress(), file)


def copy_of(world: World, target: Path) -> Path:
    return write_set(target, [read_rows(path) for path in list_shards(world.rows)])


def test_a_second_start_takes_the_file_of_the_first(world: World, tmp_path: Path) -> None:
    left_by_a_run(world, world.rows, tmp_path / "c")
    examples, written = read_into(world, world.rows, tmp_path / "c", device="cpu")
    assert examples.path == tmp_path / "c" / NAME
    assert written == 0
    assert [e.trajectory_id for e in examples] == sorted(refined_row(i).trajectory_id for i in range(8))


@pytest.mark.parametrize("changed", ["a row", "an option", "a model"])
def test_a_stale_file_is_made_again(world: World, tmp_path: Path, changed: str) -> None:
    source, options = copy_of(world, tmp_path / "y_r"), {}
    left_by_a_run(world, source, tmp_path / "c")
    before = Examples.at(tmp_path / "c" / NAME).digest
    if changed == "a row":
        first = list_shards(source)[0]
        write_shard(first, [replace(row, response_token_ids=[5, 6, 7]) for row in read_rows(first)])
    elif changed == "an option":
        options["max_length"] = 21
    else:
        options["model"] = str(build_model(tmp_path / "other", seed=1))
    examples, written = read_into(world, source, tmp_path / "c", **options)
    assert written > 0
    assert (examples.digest == before) == (changed == "a model")


def test_a_damaged_shard_is_named(world: World, tmp_path: Path) -> None:
    source = copy_of(world, tmp_path / "y_r")
    damaged = list_shards(source)[1]
    flip(damaged, "response_token_ids.list.element")
    with pytest.raises(DamagedFile, match=rf"{damaged} is damaged"):
        read_into(world, source, tmp_path / "c")


def test_ids_become_arrays_and_are_those_of_the_shards(world: World, tmp_path: Path) -> None:
    examples, _ = read_into(world, world.rows, tmp_path / "c")
    rows = {row.trajectory_id: row for path in list_shards(world.rows) for row in read_rows(path)}
    for e in examples:
        row = rows[e.trajectory_id]
        assert isinstance(e.response_ids, np.ndarray)
        assert e.response_ids.tolist() == list(row.response_token_ids)
        assert e.teacher_prompt.tolist() == list(row.prompt_token_ids)
        assert e.student_prompt.tolist() == list(row.student_prompt_token_ids)


def test_a_dry_run_and_a_refusal_leave_nothing_behind(world: World, ok: Trd, trd: Trd, tmp_path: Path) -> None:
    options = ("distill", world.rows, "--model", world.model, *TRAIN, "--out", tmp_path / "c")
    assert "on 8 trajectories" in ok(*options, "--dry-run").stderr
    assert trd(*options, "--max-length", 1).exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_when_the_training_has_ended(world: World, ok: Trd, trd: Trd, tmp_path: Path) -> None:
    options = ("distill", world.rows, "--model", world.model, *TRAIN, "--batch-size", 4, "--out", tmp_path / "c")
    # The rate of the second step makes its loss explode, which ends the training with its files in place.
    trd(*options, "--lr", 1e30, "--max-grad-norm", 1e9)
    assert (tmp_path / "c" / NAME).is_file()
    ok(*options)
    assert not (tmp_path / "c" / NAME).exists()
    assert not list(tmp_path.rglob(".*.tmp"))
