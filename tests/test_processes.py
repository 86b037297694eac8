"""trd distill on two processes: the same training as on one, and never one process where two were asked for.

Most launches cost several seconds, so all trainings to compare run one after another in a single one. Not covered:
GPUs, several machines. FSDP has tests of its own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Trd, takes_long
from support.launches import (
    BIN,
    PLENTY,
    TRAIN,
    Launch,
    Order,
    World,
    apart,
    carry_out,
    ended,
    log_of,
    make_world,
    run,
    start_two,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    return make_world(tmp_path_factory.mktemp("world"), ok)


# Two processes train as one does

CASES: dict[str, tuple[object, ...]] = {
    "all weights, an odd last step": ("by_teacher", "--batch-size", 9, "--epochs", 2),
    "an adapter, its base as the teacher": ("by_student", "--batch-size", 5, "--lora", "--epochs", 2),
    "a row a step": ("by_teacher", "--batch-size", 1),
    "a row a step, an adapter": ("by_student", "--batch-size", 1, "--lora", "--lora-rank", 4),
    "tokens weighted alike, uneven rows, a last step of one": (
        *("uneven", "--batch-size", 11, "--reduction", "token", "--max-tokens-per-batch", 300, "--epochs", 2),
    ),
    "rows weighted alike, uneven rows": (
        *("uneven", "--batch-size", 6, "--max-tokens-per-batch", 300, "--gradient-checkpointing"),
    ),
    "rows routed and weighed by verdicts": ("graded", "--method", "scope", "--setting", "opsd", "--batch-size", 5),
    "the average as the teacher": (*("by_student", "--batch-size", 3, "--teacher-weights", "ema", "--ema-decay", 0.5),),
}
# Figures that depend on how a step is cut into micro-batches, or on the machine.
OF_THE_MACHINE = {
    "seconds",
    "response_tokens_per_second",
    "read_tokens_per_second",
    "peak_memory_gib",
    "padding",
    "teacher_top32_mass",
}


def arguments(world: World, case: str, out: Path) -> list[str]:
    name, *options = CASES[case]
    return [str(word) for word in ("distill", getattr(world, str(name)), *TRAIN, *options, "--out", out)]


@dataclass(frozen=True)
class Trained:
    launch: Launch
    root: Path


def checkpoint(root: Path, case: str) -> Path:
    return root / str(list(CASES).index(case))


@pytest.fixture(scope="module")
def by_two(world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return all cases trained by two processes."""
    root = tmp_path_factory.mktemp("by_two")
    orders = [Order(arguments(world, case, checkpoint(root, case))) for case in CASES]
    # torch then logs the size of each group of processes.
    talkative = {"TORCH_CPP_LOG_LEVEL": "INFO", "TORCH_DISTRIBUTED_DEBUG": "INFO"}
    return Trained(carry_out(root, orders, **talkative), root)


def test_there_are_two_processes_and_one_of_them_speaks(by_two: Trained) -> None:
    launch = by_two.launch
    assert launch.exit_code == 0, launch.stderr
    assert sorted(launch.stdout) == sorted(launch.stderr) == [0, 1]
    for rank, said in launch.stderr.items():
        assert said.count(f"[Rank {rank}]: DDP Initialized with:") == len(CASES)
        assert said.count("\nworld_size: 2\n") == len(CASES)
    assert launch.stdout[0].splitlines() == [str(checkpoint(by_two.root, case)) for case in CASES]
    assert launch.stdout[1] == ""
    assert launch.stderr[0].count("trd distill: loss ") == len(CASES)
    assert "trd distill" not in launch.stderr[1]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_the_gradients_and_the_weights_of_one(
    by_two: Trained, world: World, ok: Trd, tmp_path: Path, case: str
) -> None:
    ok(*arguments(world, case, tmp_path / "one"))
    one, two = log_of(tmp_path / "one"), log_of(checkpoint(by_two.root, case))
    assert len(one) > 1
    for alone, together in zip(one, two, strict=True):
        compared = alone.keys() - OF_THE_MACHINE
        assert {"loss", "grad_norm", "learning_rate", "response_tokens", "student_nll"} <= compared
        assert alone["grad_norm"] > 0
        for key in compared:
            assert together[key] == pytest.approx(alone[key], rel=2e-5, abs=1e-6), key
    assert apart(tmp_path / "one", checkpoint(by_two.root, case), world.student) < 5e-4


def test_an_interrupted_launch_keeps_its_state_and_one_process_goes_on_from_it(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    long = (*TRAIN, "--batch-size", 5, "--epochs", 20, "--teacher-weights", "ema")
    ok("distill", world.by_student, *long, "--out", tmp_path / "one")
    out, logs = tmp_path / "two", tmp_path / "logs"
    more = ("--save-steps", 5, "--out", out)
    launcher = start_two(logs, "-m", "trd_cli", "distill", world.by_student, *long, *more)
    until = time.monotonic() + PLENTY
    while not list(out.glob("states/step-*.pt")) and launcher.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    launcher.send_signal(signal.SIGINT)
    launch = ended(launcher, logs)
    assert launch.exit_code != 0
    assert launch.stderr[0].splitlines()[-1] == (
        "trd distill: error: interrupted; training goes on from its last saved state when the same command is run again"
    )
    assert launch.stdout == {0: "", 1: ""}
    steps_done = len(log_of(out))
    assert 5 <= steps_done < 60
    assert f"step-{steps_done:06d}.pt" in {path.name for path in (out / "states").iterdir()}
    said = ok("distill", world.by_student, *long, *more).stderr
    assert f"going on after step {steps_done}" in said
    assert [line["loss"] for line in log_of(out)] == pytest.approx(
        [line["loss"] for line in log_of(tmp_path / "one")], rel=1e-4
    )
    assert apart(tmp_path / "one", out, world.student) < 5e-4


# Launches that are refused


def the_one_line(stderr: str) -> str:
    (line,) = [line for line in stderr.splitlines() if line.startswith("trd distill: error:")]
    return line


CPU_CONFIG = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 2\nuse_cpu: true\n"


@pytest.mark.parametrize(
    "launcher",
    [
        ("accelerate", "launch", "--cpu", "--num_processes", "2"),
        pytest.param(("accelerate", "launch", "--config_file", "CONFIG"), marks=takes_long),
        pytest.param(("python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"), marks=takes_long),
    ],
    ids=["by options", "by a file", "as a module"],
)
def test_a_launch_that_silently_gives_one_process_is_refused(
    world: World, tmp_path: Path, launcher: Sequence[str]
) -> None:
    (tmp_path / "two.yaml").write_text(CPU_CONFIG)
    words = [tmp_path / "two.yaml" if word == "CONFIG" else word for word in launcher]
    command = ("-m", "trd_cli", "distill", world.by_teacher, *TRAIN, "--out", tmp_path / "c")
    result = run(BIN / words[0], *words[1:], *command)
    assert result.returncode != 0
    line = the_one_line(result.stderr)
    assert "one process, launched as several; expected several processes" in line
    assert "torchrun --nproc_per_node N -m trd_cli distill" in line
    assert not (tmp_path / "c").exists()


def test_a_cluster_s_address_in_the_environment_is_no_launch_of_several(world: World, tmp_path: Path) -> None:
    command = (BIN / "trd", "distill", world.by_teacher, *TRAIN, "--out", tmp_path / "c")
    result = run(*command, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'c'}\n"


def test_a_world_of_two_without_a_launcher_ends_and_trains_nothing(world: World, tmp_path: Path) -> None:
    command = (BIN / "trd", "distill", world.by_teacher, *TRAIN, "--out", tmp_path / "c")
    result = run(*command, WORLD_SIZE="2")
    assert result.returncode != 0
    assert result.stdout == ""
    assert "MASTER_ADDR" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("late", [0, pytest.param(1, marks=takes_long)], ids=["the first late", "the second late"])
def test_paths_from_a_pipe_are_refused_and_the_reason_said_whichever_process_is_late(tmp_path: Path, late: int) -> None:
    # Python runs a module of this name first; this one delays one of the two processes, like a slow disk.
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\ntime.sleep(3 if os.environ.get('RANK') == '{late}' else 0)\n"
    )
    command = ("-m", "trd_cli", "distill", *TRAIN, "--out", tmp_path / "c")
    logs = tmp_path / "logs"
    launch = ended(start_two(logs, *command, PYTHONPATH=str(tmp_path)), logs)
    assert launch.exit_code != 0
    assert sorted(launch.stderr) == [0, 1]
    assert any("several processes and paths from a pipe" in said for said in launch.stderr.values())
    assert not any("Traceback" in said for said in launch.stderr.values())
    assert launch.stdout == {0: "", 1: ""}
    assert not (tmp_path / "c").exists()
