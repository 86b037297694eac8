"""trd distill --continue: rounds of one training end where one training over the same rows ends, bit for bit.

Not covered: a GPU's own random numbers, and rounds on different numbers of processes, whose dropout differs.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd
from support.children import Start, forking, wait_for
from support.launches import ENGINE, SHARDED, Order, World, apart, carry_out, log_of, make_world, weights
from support.sets import by_hand

from trd_cli import keeper

ONE_STEP = ("--dtype", "float32", "--device", "cpu", "--lr", 1e-2)
# Twelve rows make three steps a pass.
TRAIN = (*ONE_STEP, "--batch-size", 5)
ADAPTER = ("--lora", "--lora-rank", 4)
# TRD_FULL=1 makes as many rounds as the recipe on-policy-40.
MANY = 40 if os.environ.get("TRD_FULL") else 6
OF_THE_MACHINE = {"seconds", "response_tokens_per_second", "read_tokens_per_second", "peak_memory_gib"}
WARM = """
import accelerate.utils, peft, torch, transformers
import torch.distributed.checkpoint.state_dict
import trd_cli.training.launch, trd_cli.training.trainer
from trd_cli.stages import distill
"""
CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "all weights": ("by_teacher", ()),
    "all weights, taught by the initial ones": ("by_student", ("--teacher-weights", "initial")),
    "all weights, taught by their average": ("by_student", ("--teacher-weights", "ema", "--ema-decay", 0.9)),
    "an adapter with dropout": ("by_teacher", (*ADAPTER, "--lora-dropout", 0.1)),
    "an adapter, taught by the model without it": ("by_student", (*ADAPTER, "--teacher-weights", "initial")),
    "an adapter, taught by its average": ("by_student", (*ADAPTER, "--teacher-weights", "ema", "--ema-decay", 0.9)),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ok)


@pytest.fixture(scope="module")
def first(world: World, ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the first of three rounds of three steps each. Tests read it and write elsewhere."""
    out = tmp_path_factory.mktemp("first") / "c"
    ok("distill", world.by_teacher, *TRAIN, "--total-steps", 9, "--out", out)
    return out


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    """Return a copy of the first round to change."""
    return Path(shutil.copytree(first, tmp_path / "copy"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with forking(WARM, tmp_path_factory.mktemp("talk")) as starts:
        yield starts


def goes_on(checkpoint: Path) -> tuple[object, ...]:
    """Return the options that continue a checkpoint along rows that another model wrote."""
    return ("--continue", checkpoint, "--model", checkpoint)


def steps_of(*checkpoints: Path) -> list[dict[str, Any]]:
    """Return the lines of some logs, one after another, without the figures that depend on the machine."""
    lines = [line for checkpoint in checkpoints for line in log_of(checkpoint)]
    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in lines]


def saved(checkpoint: Path) -> dict[str, bytes]:
    return {str(p.relative_to(checkpoint)): p.read_bytes() for p in checkpoint.rglob("*.safetensors")}


def states(checkpoint: Path) -> list[str]:
    return sorted(path.name for path in (checkpoint / "states").glob("*"))


def about(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "run.json").read_text())["about"]


# One training


@pytest.mark.parametrize("case", CASES)
def test_rounds_over_the_same_rows_are_one_training_bit_for_bit(
    world: World, ok: Trd, tmp_path: Path, cold: Callable[[str], list[Path]], case: str
) -> None:
    kind, options = CASES[case]
    command = ("distill", getattr(world, kind), *TRAIN, *options)
    ok(*command, "--epochs", 3, "--out", tmp_path / "one")
    rounds = cold(case)
    assert steps_of(*rounds) == steps_of(tmp_path / "one")
    assert saved(rounds[-1]) == saved(tmp_path / "one")


def test_many_rounds_of_one_step_are_one_training_bit_for_bit(
    world: World, ok: Trd, tmp_path: Path, keeping: None
) -> None:
    command = ("distill", world.by_teacher, *TRAIN, "--batch-size", 12)
    ok(*command, "--epochs", MANY, "--out", tmp_path / "one")
    rounds = [tmp_path / str(number) for number in range(MANY)]
    ok(*command, "--total-steps", MANY, "--out", rounds[0])
    for before, out in itertools.pairwise(rounds):
        ok(*command, *goes_on(before), "--out", out)
    assert steps_of(*rounds) == steps_of(tmp_path / "one")
    assert saved(rounds[-1]) == saved(tmp_path / "one")


def test_the_rate_follows_one_schedule_over_all_rounds(world: World, first: Path, ok: Trd, tmp_path: Path) -> None:
    ok("distill", world.by_teacher, *TRAIN, *goes_on(first), "--steps", 5, "--out", tmp_path / "c")
    lines = steps_of(first, tmp_path / "c")
    assert [line["step"] for line in lines] == list(range(1, 9))
    rates = [line["learning_rate"] for line in lines]
    # A tenth of nine steps rises: one step. The cosine reaches a tenth of the peak at the ninth.
    assert rates[:2] == pytest.approx([0.01, 0.01])
    assert rates[5:] == pytest.approx([0.0044987, 0.0026943, 0.0014456], rel=1e-4)


def test_the_optimiser_s_moments_go_on(world: World, first: Path, copy: Path, ok: Trd, tmp_path: Path) -> None:
    (path,) = (copy / "states").iterdir()
    state = torch.load(path, weights_only=True)
    moments = [values["exp_avg"] for values in state["optimizer"]["state"].values()]
    assert all(moment.abs().max() > 0 for moment in moments)
    for moment in moments:
        moment.zero_()
    torch.save(state, path)
    for name, before in (("with", first), ("without", copy)):
        ok("distill", world.by_teacher, *TRAIN, *goes_on(before), "--steps", 1, "--out", tmp_path / name)
    one, other = log_of(tmp_path / "with")[0], log_of(tmp_path / "without")[0]
    assert one["loss"] == other["loss"], "the weights are the same before the step"
    assert saved(tmp_path / "with") != saved(tmp_path / "without")


def test_rows_that_the_round_before_has_written_need_no_model_named(ok: Trd, world: World, tmp_path: Path) -> None:
    learns = ("distill", *TRAIN, *ADAPTER, "--teacher-weights", "initial")
    ok(*learns, world.by_student, "--total-steps", 20, "--out", tmp_path / "0")
    ok("data", "make", "arithmetic", "--n", 3, "--seed", 5, "--out", tmp_path / "p.parquet")
    ok("sample", "-m", tmp_path / "0", "-p", tmp_path / "p.parquet", *ENGINE, "--out", tmp_path / "y_o")
    ok("refine", tmp_path / "y_o", "--setting", "opsd", "--teacher", world.student, *ENGINE, "--out", tmp_path / "y_r")
    said = ok(*learns, tmp_path / "y_r", "--continue", tmp_path / "0", "--out", tmp_path / "1").stderr
    assert f"continuing {tmp_path / '0'} after step 3 of 20" in said.splitlines()[0]
    told = about(tmp_path / "1")
    assert (told["student"], told["teacher"]) == (str(world.student), str(world.student)), "the base, its adapter off"
    assert (told["steps_before"], told["steps"], told["total_steps"]) == (3, 1, 20)


def test_an_adapter_is_taught_by_what_it_was_at_the_start_of_the_round(world: World, ok: Trd, tmp_path: Path) -> None:
    command = ("distill", world.by_student, *TRAIN, *ADAPTER)
    ok(*command, "--total-steps", 9, "--out", tmp_path / "0")
    # The same weights in another directory are another model: merged, and loaded beside the student.
    shutil.copytree(tmp_path / "0", tmp_path / "merged")
    teachers = {"round": (), "merged": ("--teacher", tmp_path / "merged"), "initial": ("--teacher-weights", "initial")}
    losses = {}
    for name, options in teachers.items():
        ok(*command, *goes_on(tmp_path / "0"), *options, "--epochs", 2, "--out", tmp_path / name / "c")
        losses[name] = [line["loss"] for line in log_of(tmp_path / name / "c")]
    assert losses["round"] == pytest.approx(losses["merged"], rel=1e-3)
    assert losses["round"] != pytest.approx(losses["initial"], rel=1e-2)


def test_more_steps_than_a_pass_has_begin_further_passes(world: World, ok: Trd, tmp_path: Path) -> None:
    command = ("distill", world.by_teacher, *TRAIN)
    ok(*command, "--epochs", 4, "--out", tmp_path / "one")
    said = ok(*command, "--steps", 7, "--total-steps", 12, "--out", tmp_path / "0").stderr
    assert "29 rows" in said, "two whole passes and five rows"
    ok(*command, *goes_on(tmp_path / "0"), "--out", tmp_path / "1")
    lines = steps_of(tmp_path / "one")
    assert steps_of(tmp_path / "0") == lines[:7]
    assert json.loads((tmp_path / "0" / "sessions.jsonl").read_text())["rows"] == 29
    # The partial pass is over: the round begins with the fourth.
    assert [line["trajectories"] for line in log_of(tmp_path / "1")] == [5, 5, 2]
    assert about(tmp_path / "1")["steps_before"] == 7


# In a process that keeps things


@pytest.fixture
def keeping() -> Iterator[None]:
    keeper.begin()
    yield
    keeper.end()


IN_MEMORY = "are in memory since the round before"
KEPT = CASES | {
    "all weights, taught by those of the round": ("by_student", ()),
    "weights that are rounded when they are saved": ("by_student", ("--save-dtype", "bfloat16")),
    "an adapter, taught by its start": ("by_student", (*ADAPTER, "--lora-dropout", 0.1)),
    "an adapter alone": ("by_student", (*ADAPTER, "--no-merge")),
}


@pytest.fixture(scope="module")
def cold(world: World, ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Return a function that gives three rounds of a case, each as in a process of its own."""
    made: dict[str, list[Path]] = {}

    def rounds(case: str) -> list[Path]:
        if case not in made:
            made[case] = three_rounds(world, ok, tmp_path_factory.mktemp("cold"), case)
        return made[case]

    return rounds


def three_rounds(world: World, ok: Trd, root: Path, case: str, says: str | None = None) -> list[Path]:
    """Train three rounds; the later ones must say so much on standard error."""
    kind, options = KEPT[case]
    command = ("distill", getattr(world, kind), *TRAIN, *options)
    rounds = [root / str(number) for number in range(3)]
    ok(*command, "--total-steps", 9, "--out", rounds[0])
    for before, out in itertools.pairwise(rounds):
        said = ok(*command, *goes_on(before), "--out", out).stderr
        assert says is None or says in said
    return rounds


@pytest.mark.parametrize("case", KEPT)
def test_a_trainer_that_is_kept_makes_the_same_bits_as_one_that_loads_all(
    world: World, ok: Trd, tmp_path: Path, cold: Callable[[str], list[Path]], keeping: None, case: str
) -> None:
    warm = three_rounds(world, ok, tmp_path, case, says=IN_MEMORY)
    for one, other in zip(cold(case), warm, strict=True):
        assert steps_of(one) == steps_of(other)
        assert saved(one) == saved(other)
        assert (one / "probe.json").read_bytes() == (other / "probe.json").read_bytes()


@pytest.mark.parametrize("changed", ["option", "state", "training", "directory"])
def test_a_kept_trainer_serves_no_round_but_the_next_of_its_own(
    world: World, ok: Trd, tmp_path: Path, keeping: None, changed: str
) -> None:
    command = ("distill", world.by_teacher, *TRAIN)
    ok(*command, "--total-steps", 9, "--out", tmp_path / "0")
    more: tuple[object, ...] = goes_on(tmp_path / "0")
    if changed == "option":
        more += ("--gradient-checkpointing",)
    elif changed == "state":
        (path,) = (tmp_path / "0" / "states").iterdir()
        torch.save(torch.load(path, weights_only=True), path)
    elif changed == "training":
        more = ()
    else:
        more = goes_on(Path(shutil.copytree(tmp_path / "0", tmp_path / "copy")))
    said = ok(*command, *more, "--out", tmp_path / "1").stderr
    assert "loading" in said
    assert IN_MEMORY not in said


def test_a_round_that_was_interrupted_goes_on_from_its_state_in_a_process_that_keeps_the_round_before(
    world: World, ok: Trd, start: Start, tmp_path: Path, keeping: None
) -> None:
    command = ("distill", world.by_student, *TRAIN, *ADAPTER)
    ok(*command, "--total-steps", 30, "--out", tmp_path / "0")
    later = (*command, *goes_on(tmp_path / "0"), "--epochs", 8, "--save-steps", 1)
    run = start(*later, "--out", tmp_path / "cut")
    wait_for(lambda: any((tmp_path / "cut").glob("states/step-*.pt")))
    assert run.kill(signal.SIGTERM) == 130
    said = ok(*later, "--out", tmp_path / "cut").stderr
    assert IN_MEMORY in said
    assert "going on after step" in said
    keeper.end()
    ok(*later, "--out", tmp_path / "whole")
    assert steps_of(tmp_path / "cut") == steps_of(tmp_path / "whole")
    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")


# The state


def test_the_state_of_a_training_that_goes_on_is_kept_until_the_last_round(
    world: World, first: Path, ok: Trd, tmp_path: Path
) -> None:
    command = ("distill", world.by_teacher, *TRAIN)
    assert states(first) == ["step-000003.pt"]
    again = ok(*command, "--total-steps", 9, "--out", first)
    assert "is finished: nothing to do" in again.stderr
    assert states(first) == ["step-000003.pt"]
    ok(*command, *goes_on(first), "--steps", 6, "--save-steps", 1, "--out", tmp_path / "c")
    assert not (tmp_path / "c" / "states").exists()
    assert about(tmp_path / "c")["total_steps"] == 9


def test_a_finished_round_is_done_though_the_state_it_began_with_is_gone(
    world: World, copy: Path, ok: Trd, tmp_path: Path
) -> None:
    command = ("distill", world.by_teacher, *TRAIN, *goes_on(copy), "--out", tmp_path / "c")
    ok(*command)
    shutil.rmtree(copy / "states")
    assert "is finished: nothing to do" in ok(*command).stderr
    assert states(tmp_path / "c") == ["step-000006.pt"]


@pytest.mark.parametrize(
    ("options", "number"),
    [(("--teacher-weights", "ema"), signal.SIGTERM), ((*ADAPTER, "--lora-dropout", 0.1), signal.SIGKILL)],
    ids=["an average", "an adapter, taught by its start"],
)
def test_a_continued_round_that_is_ended_in_the_middle_goes_on_to_the_same_bits(
    world: World, start: Start, ok: Trd, tmp_path: Path, options: tuple[Any, ...], number: signal.Signals
) -> None:
    command = ("distill", world.by_student, *TRAIN, *options)
    ok(*command, "--total-steps", 30, "--out", tmp_path / "0")
    later = (*command, *goes_on(tmp_path / "0"), "--epochs", 8, "--save-steps", 1)
    ok(*later, "--out", tmp_path / "whole")
    run = start(*later, "--out", tmp_path / "cut")
    wait_for(lambda: any((tmp_path / "cut").glob("states/step-*.pt")))
    assert run.kill(number) == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not about(tmp_path / "cut").get("finished")
    said = ok(*later, "--out", tmp_path / "cut").stderr
    assert int(re.search(r"going on after step (\d+)", said)[1]) > 3
    assert steps_of(tmp_path / "cut") == steps_of(tmp_path / "whole")
    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")
    assert states(tmp_path / "cut") == ["step-000027.pt"]


@pytest.mark.parametrize(
    ("plain", "place"), [(False, 0.2), (False, 0.5), (False, -24), (False, -1), (True, 0.2), (True, 0.5)]
)
def test_a_state_with_a_flipped_bit_is_refused(
    world: World, copy: Path, trd: Trd, tmp_path: Path, plain: bool, place: float
) -> None:
    (path,) = (copy / "states").iterdir()
    if plain:
        torch.save(torch.load(path, weights_only=True), path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if place > 0 else int(place)] ^= 1
    path.write_bytes(content)
    line = refused(trd("distill", world.by_teacher, *TRAIN, *goes_on(copy), "--out", tmp_path / "c"))
    assert f"{path} is damaged" in line
    assert not (tmp_path / "c" / "config.json").exists()


def test_a_state_that_lost_its_end_is_refused(world: World, copy: Path, trd: Trd, tmp_path: Path) -> None:
    (path,) = (copy / "states").iterdir()
    os.truncate(path, path.stat().st_size - 1000)
    assert f"{path} is damaged" in refused(
        trd("distill", world.by_teacher, *TRAIN, *goes_on(copy), "--out", tmp_path / "c")
    )


def test_a_state_with_the_checksums_of_torch_is_gone_on_from(world: World, copy: Path, ok: Trd, tmp_path: Path) -> None:
    (path,) = (copy / "states").iterdir()
    ok("distill", world.by_teacher, *TRAIN, *goes_on(copy), "--out", tmp_path / "sealed")
    torch.save(torch.load(path, weights_only=True), path)
    ok("distill", world.by_teacher, *TRAIN, *goes_on(copy), "--out", tmp_path / "plain")
    assert saved(tmp_path / "plain") == saved(tmp_path / "sealed")


# A round without rows


def test_a_round_without_rows_makes_no_step_and_the_training_goes_on(
    world: World, first: Path, ok: Trd, tmp_path: Path
) -> None:
    command, empty = ("distill", world.by_teacher, *TRAIN), tmp_path / "empty"
    said = ok(*command, *goes_on(first), "--where", "verdict = 'correct'", "--out", empty).stderr
    assert said.count("no row to train on: no step") == 1
    assert saved(empty) == saved(first)
    assert (log_of(empty), states(empty)) == ([], ["step-000003.pt"])
    told = about(empty)
    assert (told["steps"], told["steps_before"], told["first_loss"], told["finished"]) == (0, 3, None, True)
    ok(*command, *goes_on(first), "--out", tmp_path / "direct")
    ok(*command, *goes_on(empty), "--out", tmp_path / "after")
    assert steps_of(tmp_path / "after") == steps_of(tmp_path / "direct")
    assert saved(tmp_path / "after") == saved(tmp_path / "direct")


def test_a_first_round_without_rows_is_refused(world: World, trd: Trd, tmp_path: Path) -> None:
    command = ("distill", world.by_teacher, *TRAIN, "--total-steps", 9, "--where", "verdict = 'correct'")
    assert "no refined row in" in refused(trd(*command, "--out", tmp_path / "c"))


# Refusals


def refused(result: Any) -> str:
    """Return the one line in which a refused command ends."""
    assert result.exit_code == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert lines == result.stderr.splitlines()[-1:]
    return lines[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--total-steps", 12), "--total-steps 12 with --continue {first}, whose training has 9; expected the same"),
        (("--lora",), "--lora True with --continue {first}, which was trained with False"),
        (("--steps", 7), "7 steps after 3 of 9; expected at most the 6 that are left of --total-steps"),
        (("--epochs", 3), "9 steps after 3 of 9; expected at most the 6"),
        (("--steps", 2, "--epochs", 2), "--epochs with --steps; expected one of them"),
        (("--model", "{student}"), "--model {student} with --continue {first}; expected the model in that directory"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_is_written(
    world: World, first: Path, trd: Trd, tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    names = {"first": first, "student": world.student}
    words = [str(word).format(**names) for word in (*goes_on(first), *options)]
    line = refused(trd("distill", world.by_teacher, *TRAIN, *words, "--out", tmp_path / "c"))
    assert told.format(**names) in line
    assert not (tmp_path / "c").exists()
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_model_are_refused(world: World, first: Path, trd: Trd, tmp_path: Path) -> None:
    line = refused(trd("distill", world.by_teacher, *TRAIN, "--continue", first, "--out", tmp_path / "c"))
    assert f"{first} is now" in line
    assert f"which made {world.by_teacher}" in line


def test_a_directory_without_a_training_to_go_on_with_is_refused(
    world: World, copy: Path, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    def told(directory: Path) -> str:
        return refused(trd("distill", world.by_teacher, *TRAIN, *goes_on(directory), "--out", tmp_path / "c"))

    assert "expected an output directory of trd distill" in told(world.student)
    assert "expected an output directory of trd distill" in told(tmp_path / "nowhere")
    ok("distill", world.by_teacher, *TRAIN, "--out", tmp_path / "whole")
    assert (
        "whose training has ended, after 3 steps; expected one that ended before its --total-steps and kept its state; "
        f"give --total-steps to the command that makes {tmp_path / 'whole'}, or leave --continue out"
    ) in told(tmp_path / "whole")
    (copy / "states" / "step-000003.pt").unlink()
    assert f"where {copy / 'states' / 'step-000003.pt'} is gone" in told(copy)
    by_hand(copy / "run.json", lambda run: run["about"].pop("finished"))
    assert "is an unfinished checkpoint" in told(copy)
    assert not (tmp_path / "c").exists()


def test_the_first_line_of_the_log_and_a_dry_run_say_which_training_it_is(
    world: World, first: Path, ok: Trd, tmp_path: Path
) -> None:
    command = ("distill", world.by_teacher, *TRAIN, "--dry-run", "--out", tmp_path / "c")
    assert "a new training" in ok(*command).stderr.splitlines()[0]
    said = ok(*command, *goes_on(first), "--steps", 2).stderr
    assert f"continuing {first} after step 3 of 9" in said.splitlines()[0]
    assert said.rstrip().endswith("2 steps after 3 of 9")
    assert not (tmp_path / "c").exists()


def test_options_that_a_later_round_may_change_make_another_checkpoint(
    world: World, first: Path, ok: Trd, tmp_path: Path
) -> None:
    command = ("distill", world.by_teacher, *TRAIN, *goes_on(first), "--steps", 1)
    outs = []
    for number, options in enumerate([(), ("--lr", 1e-3), ("--weight-decay", 0.5), ("--max-grad-norm", 0.1)]):
        outs.append(tmp_path / str(number))
        ok(*command, *options, "--out", outs[-1])
    assert len({tuple(saved(out).values()) for out in outs}) == 4


# Several processes


def test_two_processes_continue_a_training_plain_and_in_shards(world: World, ok: Trd, tmp_path: Path) -> None:
    plain, adapter = ("distill", world.by_teacher, *TRAIN), ("distill", world.by_student, *TRAIN, *ADAPTER)
    orders = []
    for name, command, variables in (("plain", plain, {}), ("adapter", adapter, SHARDED)):
        rounds = [
            (*command, "--total-steps", 9),
            (*command, *goes_on(tmp_path / "two" / name / "0"), "--epochs", 2),
        ]
        for number, words in enumerate(rounds):
            out = tmp_path / "two" / name / str(number)
            orders.append(Order([str(word) for word in (*words, "--out", out)], variables))
            one = [str(word).replace(f"{tmp_path}/two", f"{tmp_path}/one") for word in (*words, "--out", out)]
            ok(*one)
    launch = carry_out(tmp_path / "two", orders)
    assert launch.exit_code == 0, launch.stderr
    assert launch.stderr[0].count("after step 3 of 9") == 2
    for name in ("plain", "adapter"):
        one, two = (tmp_path / processes / name / "1" for processes in ("one", "two"))
        assert [line["loss"] for line in log_of(two)] == pytest.approx([line["loss"] for line in log_of(one)], rel=1e-3)
        assert apart(one, two, world.student) < 5e-3
        assert weights(one).keys() == weights(two).keys()
