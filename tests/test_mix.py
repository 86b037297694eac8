"""The rows of several tasks in one training: shares of each step, the order of the rows, refusals, and the log."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.rows import refined_row, write_set
from support.tiny import build_model

from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.records import EPISODE, Trajectory
from trd_cli.training.batches import steps
from trd_cli.training.mix import Classes, Mixed, turns
from trd_cli.training.rounds import Round

SHARES = [
    {"math": 0.5, "textworld": 0.5},
    {"math": 0.7, "textworld": 0.3},
    {"a": 0.1, "b": 0.25, "c": 0.65},
    {"a": 0.333, "b": 0.333, "c": 0.333},
    dict.fromkeys("abcdefgh", 0.125),
    {"rare": 0.001, "usual": 0.999},
]
MATH, EPISODES = [*range(0, 30, 2)], [*range(1, 30, 6)]
BOTH = Mixed({"math": 0.75, "textworld": 0.25}, {"math": MATH, "textworld": EPISODES})
ROWS = len(MATH) + len(EPISODES)


# Shares


@pytest.mark.parametrize("shares", SHARES, ids=lambda shares: ",".join(map(str, shares.values())))
def test_each_class_has_its_share_of_every_beginning_but_for_less_than_a_row_ahead(shares: dict[str, float]) -> None:
    given, total = Counter(), sum(shares.values())
    for count, name in enumerate(itertools.islice(turns(shares), 2000), 1):
        given[name] += 1
        assert given[name] - shares[name] / total * count < 1
    assert all(abs(given[name] - shares[name] / total * 2000) < 1 for name in shares)


def test_shares_that_a_step_cannot_meet_are_met_over_steps() -> None:
    order = turns({"math": 0.7, "textworld": 0.3})
    of_steps = [Counter(itertools.islice(order, 4))["textworld"] for _ in range(10)]
    assert set(of_steps) == {1, 2}
    assert sum(of_steps[:5]) == sum(of_steps[5:]) == 6


def test_the_order_in_which_shares_are_written_does_not_matter() -> None:
    one, other = {"math": 0.5, "code": 0.25, "a": 0.25}, {"a": 0.25, "math": 0.5, "code": 0.25}
    assert [*itertools.islice(turns(one), 50)] == [*itertools.islice(turns(other), 50)]


# The order of the rows


def test_a_pass_takes_as_many_rows_as_there_are_and_all_of_a_class_come_before_one_comes_again() -> None:
    numbers = [number for step in steps(ROWS, 8, 7, 3, mixed=BOTH) for number in step]
    assert len(numbers) == 7 * ROWS
    assert Counter(number in EPISODES for number in numbers)[True] == round(7 * ROWS / 4)
    for rows in (MATH, EPISODES):
        own = [number for number in numbers if number in rows]
        for first in range(0, len(own) - len(rows), len(rows)):
            assert sorted(own[first : first + len(rows)]) == rows
        assert own[: len(rows)] != own[len(rows) : 2 * len(rows)]


def test_the_order_depends_on_the_seed_alone_and_not_on_the_size_of_a_step() -> None:
    def order(batch_size: int, seed: int = 0) -> list[int]:
        return [number for step in steps(ROWS, batch_size, 2, seed, mixed=BOTH) for number in step]

    assert order(4) == order(7) == order(1000)
    assert order(4) != order(4, seed=1)


def test_a_round_that_goes_on_takes_the_rows_that_one_training_would_take() -> None:
    whole = [*steps(ROWS, 8, 3, 0, mixed=BOTH)]
    assert [*steps(ROWS, 8, 1, 0, first=2, mixed=BOTH)] == whole[-len(whole) // 3 :]
    round_of = Round(ROWS, 8, len(whole), 0, len(whole))
    assert [rows for _, rows in round_of.numbered(0, 0, 4, BOTH)] == whole[4:]


def test_a_class_without_rows_leaves_its_share_to_the_others() -> None:
    alone = Mixed({"a": 0.5, "b": 0.25, "c": 0.25}, {"a": [0, 1, 2], "c": [5], "b": []})
    assert Counter(number for step in steps(4, 4, 3, 0, mixed=alone) for number in step)[5] == 4


# Names


def test_a_name_is_a_task_or_where_no_row_has_that_task_a_source() -> None:
    held = {("math", "deepscaler"), ("episode", "textworld"), ("episode", "math")}
    classes = Classes({"math": 0.5, "textworld": 0.5}, held)
    found = [classes.of(*pair) for pair in sorted(held)]
    assert found == [None, "textworld", "math"]


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"math": 0.5, "alfworld": 0.5}, "--mix alfworld, which is neither task nor source of a row"),
        ({"math": 0.5, "deepscaler": 0.5}, "--mix math and deepscaler, which are task and source of the same rows"),
    ],
)
def test_a_name_that_no_row_has_and_rows_of_two_names_are_refused(shares: dict[str, float], told: str) -> None:
    with pytest.raises(InputError) as refused:
        Classes(shares, {("math", "deepscaler"), ("episode", "textworld")})
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "mix", ["math=0.5,textworld=0.4", "math=1.5", "math=0.5,code=-0.5", "math", "math=x", "math=0.7,math=1"]
)
def test_shares_that_are_none_are_refused(mix: str) -> None:
    with pytest.raises(InputError) as refused:
        DistillConfig.parse({"mix": [mix]})
    assert "--mix" in str(refused.value)


def test_a_mix_enters_the_identity_only_where_it_is_given_and_its_flags_give_it_again() -> None:
    assert "mix" not in DistillConfig.parse({}).identity()
    given = DistillConfig.parse({"mix": ["math=0.5, reasoning-gym=0.3", "text world=0.2"]})
    assert given.identity()["mix"] == {"math": 0.5, "reasoning-gym": 0.3, "text world": 0.2}
    words = given.flags()
    assert DistillConfig.parse({"mix": words[1::2]}) == given
    assert DistillConfig.parse({"mix": {"math": 0.5, "reasoning-gym": 0.3, "text world": 0.2}}) == given


# Training

TRAIN = ("--dtype", "float32", "--device", "cpu", "--batch-size", 4)


def of_episodes(rows: Sequence[Trajectory]) -> list[Trajectory]:
    return [replace(row, task=EPISODE, source="textworld") for row in rows]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    build_model(root / "model")
    write_set(root / "math", [[refined_row(i) for i in range(6)], [refined_row(i) for i in range(6, 9)]])
    write_set(root / "episodes", [of_episodes([refined_row(i) for i in range(20, 23)])])
    return root


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def test_two_sets_are_one_training_whose_log_counts_the_rows_of_each(world: Path, ok: Trd, tmp_path: Path) -> None:
    command = ("distill", "--model", world / "model", *TRAIN, "--mix", "math=0.5,textworld=0.5", "--epochs", 2)
    ok(*command, world / "math", world / "episodes", "--out", tmp_path / "c")
    ok(*command, world / "episodes", world / "math", "--max-tokens-per-batch", 1, "--out", tmp_path / "d")
    logs = lines_of(tmp_path / "c"), lines_of(tmp_path / "d")
    assert [(line["trajectories_math"], line["trajectories_textworld"]) for line in logs[0]] == [(2, 2)] * 6
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx((one["loss_math"] + one["loss_textworld"]) / 2, rel=1e-5)
        for name in ("loss", "loss_math", "loss_textworld", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
    assert json.loads((tmp_path / "c" / "run.json").read_text())["identity"]["mix"] == {"math": 0.5, "textworld": 0.5}


def test_two_rounds_of_a_mix_are_one_training_of_two_passes(world: Path, ok: Trd, tmp_path: Path) -> None:
    mix = ("--mix", "math=0.7,textworld=0.3", "--model", world / "model", "--teacher-weights", "initial", *TRAIN)
    command = ("distill", world / "math", world / "episodes", *mix)
    ok(*command, "--epochs", 2, "--out", tmp_path / "whole")
    ok(*command, "--total-steps", 6, "--out", tmp_path / "first")
    second = ("--continue", tmp_path / "first", "--model", tmp_path / "first", "--out", tmp_path / "second")
    ok(*command, *second)
    told = [(line["step"], line["loss"]) for out in ("first", "second") for line in lines_of(tmp_path / out)]
    assert told == [(line["step"], line["loss"]) for line in lines_of(tmp_path / "whole")]


def test_rows_of_no_name_are_left_out_and_counted(world: Path, ok: Trd) -> None:
    said = ok(
        "distill",
        "--model",
        world / "model",
        *TRAIN,
        world / "math",
        world / "episodes",
        "--mix",
        "episode=1",
        "--dry-run",
    ).stderr
    assert "left out 9 of 12 rows: neither task nor source is a name of --mix" in said
    assert "on 3 trajectories" in said


def test_a_class_none_of_whose_rows_can_be_trained_on_is_refused(world: Path, trd: Trd, tmp_path: Path) -> None:
    failed = write_set(tmp_path / "failed", [of_episodes([refined_row(30, error="the game crashed")])])
    command = ("distill", "--model", world / "model", *TRAIN, "--mix", "math=0.5,textworld=0.5")
    told = trd(*command, world / "math", failed, "--out", tmp_path / "c")
    assert told.exit_code == 1
    assert "no row of --mix textworld can be trained on; expected at least one" in told.stderr
    assert not (tmp_path / "c").exists()
