"""trd distill cut off at any moment and run again: the same weights as in an undisturbed run, bit for bit.

The commands run in children forked from one process with torch, transformers and peft loaded, so that the moments of
death fall into the training and not into Python's start. Not covered: power loss, which only the fsync before each
rename guards against. TRD_KILLS sets the number of kills: 12 is the full form.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd, takes_long
from support.children import Run, Start, forking, wait_for
from support.sets import iter_rows
from support.tiny import END, OTHER_END, build_model, set_eos

from trd_cli.trajectories.shards import list_shards

ROOT = Path(__file__).parent.parent
ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 12)
TRAIN = ("--dtype", "float32", "--device", "cpu", "--lr", 1e-2)
STEPS = 30  # twelve rows, four a step, ten times
LONG = (*TRAIN, "--batch-size", 4, "--epochs", 10)
KILLS, KEPT = int(os.environ.get("TRD_KILLS", "5")), 3
# Figures of the log that describe the machine and not the training.
OF_THE_MACHINE = {"seconds", "response_tokens_per_second", "read_tokens_per_second", "peak_memory_gib"}

WARM = """
import accelerate.utils, peft, torch, transformers
import torch.distributed.checkpoint.state_dict
from transformers import AutoTokenizer, LlamaForCausalLM
import trd_cli.training.launch, trd_cli.training.trainer
from trd_cli.stages import distill
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Yield a function that starts a trd command; end every command that is left."""
    with forking(WARM, tmp_path_factory.mktemp("talk")) as starts:
        yield starts


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> dict[str, Path]:
    """Return twelve rows refined by another model, and twelve by the student itself."""
    root = tmp_path_factory.mktemp("sets")
    student, teacher = build_model(root / "student"), build_model(root / "teacher", seed=1)
    for model in (student, teacher):
        set_eos(model, [END, OTHER_END])
    ok("data", "make", "arithmetic", "--n", 6, "--out", root / "p.parquet")
    ok("sample", "-m", student, "-p", root / "p.parquet", "-n", 2, *ENGINE, "--out", root / "y_o")
    ok("refine", root / "y_o", "--setting", "opd", "--teacher", teacher, *ENGINE, "--out", root / "opd")
    ok("refine", root / "y_o", "--setting", "opsd", *ENGINE, "--out", root / "opsd")
    return {"by_teacher": root / "opd", "by_student": root / "opsd"}


@pytest.fixture(scope="module")
def whole(sets: dict[str, Path], ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "c"
    ok("distill", sets["by_teacher"], *LONG, "--out", out)
    return out


@pytest.fixture(scope="module")
def interrupted(sets: dict[str, Path], start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same run stopped in the middle, with its last three states. Tests continue in copies of it."""
    out = tmp_path_factory.mktemp("interrupted") / "c"
    run = start("distill", sets["by_teacher"], *LONG, "--save-steps", 1, "--keep", KEPT, "--out", out)
    wait_for(lambda: last_state(out) >= 5)
    assert run.kill(signal.SIGINT) == 130, run.stderr.read_text()
    return out


@pytest.fixture
def cut(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "cut"))


def log_of(checkpoint: Path) -> list[dict[str, Any]]:
    """Return the log without the figures that depend on the machine; fail if a line is not whole."""
    path = checkpoint / "train.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [{k: v for k, v in json.loads(line).items() if k not in OF_THE_MACHINE} for line in lines]


def states(checkpoint: Path) -> list[Path]:
    return sorted((checkpoint / "states").glob("step-*.pt"))


def last_state(checkpoint: Path) -> int:
    """Return the number of steps before the last saved state, or 0 without one."""
    return max((int(path.stem.removeprefix("step-")) for path in states(checkpoint)), default=0)


def finished(checkpoint: Path) -> bool:
    path = checkpoint / "run.json"
    return path.is_file() and json.loads(path.read_text())["about"].get("finished", False)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def same_as(whole: Path, other: Path) -> None:
    """Assert that both directories hold the same files, the same weights and the same log."""
    names = [sorted(path.relative_to(of) for path in of.rglob("*")) for of in (whole, other)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.suffix == ".safetensors":
            assert (other / name).read_bytes() == (whole / name).read_bytes(), name
    assert [line["step"] for line in log_of(other)] == list(range(1, STEPS + 1))
    assert log_of(other) == log_of(whole)
    assert finished(other)


def resumed_at(stderr: str) -> int | None:
    found = re.search(r"going on after step (\d+)", stderr)
    return int(found[1]) if found else None


# Killed


@pytest.mark.parametrize(
    ("rows", "options", "every"),
    [
        ("by_teacher", (), 1),
        pytest.param("by_student", ("--lora", "--lora-rank", 4, "--lora-dropout", 0.1), 2, marks=takes_long),
        pytest.param("by_student", ("--teacher-weights", "ema", "--ema-decay", 0.9), 1, marks=takes_long),
    ],
    ids=["all weights", "an adapter with dropout", "the average as the teacher"],
)
def test_a_training_that_is_killed_again_and_again_ends_in_the_same_bits(
    start: Start, sets: dict[str, Path], tmp_path: Path, rows: str, options: tuple[Any, ...], every: int
) -> None:
    def begin(out: Path) -> Run:
        return start("distill", sets[rows], *LONG, *options, "--save-steps", every, "--out", out)

    whole, began = tmp_path / "whole", time.monotonic()
    run = begin(whole)
    wait_for(lambda: bool(log_of(whole)))
    startup, began = time.monotonic() - began, time.monotonic()
    assert run.wait() == 0, run.stderr.read_text()
    a_step = (time.monotonic() - began) / STEPS
    expected = log_of(whole)

    chance, out, kills, amid, resumed = random.Random(f"{rows}{options}"), tmp_path / "c0", 0, 0, set()
    while True:
        before = last_state(out)
        run = begin(out)
        if kills < KILLS:
            # The start takes most of the time: every other kill falls into the steps that come after it.
            late = kills % 2 == 1
            if late:
                at_work(run, out, before)
            time.sleep(chance.uniform(0, 3 * a_step if late else startup + 3 * a_step))
        code = run.kill() if kills < KILLS else run.wait()
        went_on = resumed_at(run.stderr.read_text())
        assert went_on in (None, before), "it goes on after the last state, or died before it said so"
        resumed |= {went_on} - {None}
        if code == 0:
            same_as(whole, out)
            if kills == KILLS:
                break
            out = tmp_path / f"c{kills}"
            continue
        assert code == -signal.SIGKILL, run.stderr.read_text()
        kills += 1
        log = log_of(out)
        assert log == expected[: len(log)], "each step once, and as it would have been"
        # Python needs time to end after all is done.
        assert finished(out) or before <= last_state(out) <= len(log), "what was done is still done"
        amid += last_state(out) > 0 and not finished(out)
    assert amid >= KILLS // 2, "the kills fell into the training"
    assert len(resumed) >= KILLS // 3


def at_work(run: Run, out: Path, before: int) -> None:
    """Return when one more step is saved than before, or when the command has ended."""
    with contextlib.suppress(ProcessLookupError):
        wait_for(lambda: last_state(out) > before or os.kill(run.pid, 0))


def test_a_training_that_is_killed_while_its_model_is_saved_ends_in_the_same_bits(
    start: Start, sets: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    command = ("distill", sets["by_teacher"], *LONG, "--save-steps", 7)
    for attempt in range(5):  # the moment is short
        out = tmp_path / str(attempt)
        run = start(*command, "--out", out)
        until = time.monotonic() + 20
        while not (out / ".saving.tmp").exists() and time.monotonic() < until:
            pass
        if run.kill() == -signal.SIGKILL and (out / ".saving.tmp").exists():
            break
    assert (out / ".saving.tmp").exists(), "it was killed while saving"
    assert not finished(out)
    assert last_state(out) == 28
    again = start(*command, "--out", out)
    assert again.wait() == 0, again.stderr.read_text()
    assert resumed_at(again.stderr.read_text()) == 28
    same_as(whole, out)


def test_half_a_state_that_a_kill_left_behind_hinders_nothing(
    sets: dict[str, Path], whole: Path, cut: Path, ok: Trd
) -> None:
    # States are saved by the clock too, so one of this name may never be written again.
    (cut / "states" / ".step-000001.pt.tmp").write_bytes(b"half")
    ok("distill", sets["by_teacher"], *LONG, "--out", cut)
    same_as(whole, cut)


def test_a_model_that_is_saved_but_not_marked_as_finished_is_not_trained_from_the_start(
    start: Start, sets: dict[str, Path], whole: Path, tmp_path: Path, ok: Trd
) -> None:
    out = tmp_path / "c"
    command = ("distill", sets["by_teacher"], *LONG, "--save-steps", 7, "--out", out)
    run = start(*command)
    wait_for(lambda: last_state(out) > 0)
    record = (out / "run.json").read_bytes()
    (out / "run.json").unlink()
    (out / "run.json").mkdir()  # so it cannot be written
    assert run.wait() == 1
    (out / "run.json").rmdir()
    (out / "run.json").write_bytes(record)
    assert (out / "model.safetensors").exists()
    assert not finished(out)
    assert resumed_at(ok(*command).stderr) == 28
    same_as(whole, out)


# Stopped


def test_a_training_in_the_background_of_a_shell_leaves_ctrl_c_alone_and_hears_sigterm(
    start: Start, sets: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "c"
    # A shell lets such a job ignore SIGINT, which a terminal sends to all jobs of a script.
    run = start("distill", sets["by_teacher"], *LONG, "--out", out, ignored=[signal.SIGINT])
    wait_for(lambda: len(log_of(out)) >= 2)
    os.kill(run.pid, signal.SIGINT)
    before = len(log_of(out))
    wait_for(lambda: len(log_of(out)) >= before + 3)
    assert run.kill(signal.SIGTERM) == 130
    assert not finished(out)
    assert last_state(out) == len(log_of(out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_training_that_is_interrupted_saves_its_last_whole_step_and_goes_on_to_the_same_bits(
    start: Start, sets: dict[str, Path], whole: Path, tmp_path: Path, ok: Trd, number: signal.Signals
) -> None:
    out = tmp_path / "c"
    command = ("distill", sets["by_teacher"], *LONG, "--out", out)
    run = start(*command)
    wait_for(lambda: len(log_of(out)) >= 4)
    assert run.kill(number) == 130
    stderr = run.stderr.read_text()
    assert stderr.splitlines()[-1] == (
        "trd distill: error: interrupted; training goes on from its last saved state when the same command is run again"
    )
    assert stderr.count("error:") == 1
    assert "Traceback" not in stderr
    assert run.stdout.read_text() == ""
    steps_done = len(log_of(out))
    assert 4 <= steps_done < STEPS
    assert [path.name for path in states(out)] == [f"step-{steps_done:06d}.pt"]
    assert not (out / "config.json").exists()
    assert resumed_at(ok(*command).stderr) == steps_done
    same_as(whole, out)


# Which states exist, and which one is used


def test_the_last_states_are_kept_and_no_more(interrupted: Path) -> None:
    last = last_state(interrupted)
    assert last == len(log_of(interrupted)) < STEPS
    assert sorted(path.name for path in (interrupted / "states").iterdir()) == [
        f"step-{step:06d}.pt" for step in range(last - KEPT + 1, last + 1)
    ]


@pytest.mark.parametrize("torn", [1, 2, 3])
def test_a_torn_state_is_passed_over_for_the_one_before_and_without_one_it_starts_over(
    sets: dict[str, Path], whole: Path, cut: Path, ok: Trd, torn: int
) -> None:
    last = last_state(cut)
    for path in states(cut)[-torn:]:
        truncate(path)
    said = ok("distill", sets["by_teacher"], *LONG, "--out", cut).stderr
    assert resumed_at(said) == (last - torn if torn < KEPT else None)
    same_as(whole, cut)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_state_with_a_flipped_bit_is_passed_over(
    sets: dict[str, Path], whole: Path, cut: Path, ok: Trd, share: float
) -> None:
    last, path = last_state(cut), states(cut)[-1]
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    assert resumed_at(ok("distill", sets["by_teacher"], *LONG, "--out", cut).stderr) == last - 1
    same_as(whole, cut)


def test_an_empty_state_is_passed_over(sets: dict[str, Path], whole: Path, cut: Path, ok: Trd) -> None:
    last = last_state(cut)
    states(cut)[-1].write_bytes(b"")
    assert resumed_at(ok("distill", sets["by_teacher"], *LONG, "--out", cut).stderr) == last - 1
    same_as(whole, cut)


def test_torn_states_push_out_no_good_one(start: Start, sets: dict[str, Path], whole: Path, cut: Path, ok: Trd) -> None:
    for path in states(cut):
        truncate(path)
    command = ("distill", sets["by_teacher"], *LONG, "--keep", 1, "--save-steps", 2, "--out", cut)
    run = start(*command)
    # The log of the run before is cut off when the training starts over.
    wait_for(lambda: f"{10 * 12} rows" in run.stderr.read_text() and bool(log_of(cut)))
    assert run.kill(signal.SIGINT) == 130
    steps_done = len(log_of(cut))
    assert resumed_at(ok(*command).stderr) == steps_done
    same_as(whole, cut)


# Whose states they are


def refusal(result: Any) -> str:
    """Return the one line in which a refused command ends."""
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert lines == result.stderr.splitlines()[-1:]
    return lines[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--lr", 1e-3), "learning_rate (0.01 → 0.001)"), (("--reduction", "token"), "reduction (sequence → token)")],
    ids=["rate", "reduction"],
)
def test_states_of_another_configuration_are_refused_and_the_difference_named(
    sets: dict[str, Path], cut: Path, trd: Trd, options: tuple[Any, ...], named: str
) -> None:
    before = {path: path.read_bytes() for path in states(cut)}
    line = refusal(trd("distill", sets["by_teacher"], *LONG, *options, "--out", cut))
    assert "was made by another configuration" in line
    assert named in line
    assert {path: path.read_bytes() for path in states(cut)} == before


def test_a_log_without_a_state_keeps_no_other_configuration_out(
    start: Start, sets: dict[str, Path], whole: Path, tmp_path: Path, ok: Trd
) -> None:
    out = tmp_path / "c"
    run = start("distill", sets["by_teacher"], *LONG, "--seed", 1, "--out", out)
    wait_for(lambda: bool(log_of(out)))
    assert run.kill() == -signal.SIGKILL
    assert log_of(out)
    assert not (out / "states").exists()
    ok("distill", sets["by_teacher"], *LONG, "--out", out)
    same_as(whole, out)


def test_a_finished_run_has_no_states_and_does_nothing_again(sets: dict[str, Path], whole: Path, ok: Trd) -> None:
    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.name != ".lock"}

    before = files()
    assert not (whole / "states").exists()
    assert ok("distill", sets["by_teacher"], *LONG, "--save-steps", 1, "--out", whole).stdout == f"{whole}\n"
    assert files() == before


# Gone wrong


def test_a_loss_that_is_not_finite_names_the_rows_and_keeps_the_last_good_state(
    sets: dict[str, Path], trd: Trd, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    options = (*LONG, "--lr", 1e30, "--max-grad-norm", 1e9, "--save-steps", 1)
    line = refusal(trd("distill", sets["by_teacher"], *options, "--out", out))
    (log,) = log_of(out)
    assert log["step"] == 1
    assert "at step 2; expected finite ones" in line
    assert "lower --lr" in line
    (kept,) = states(out)
    assert kept.name == "step-000001.pt"
    assert f"the last good state, {kept};" in line
    assert torch.load(kept, weights_only=True)["step"] == 1
    named = line.rpartition("rows of the step: ")[2].split(", ")
    ids = {row.trajectory_id[:12] for row in iter_rows(list_shards(sets["by_teacher"]))}
    assert len(named) == len(set(named)) == 4
    assert set(named) < ids
    assert not (out / "config.json").exists()
