"""trd distill on two processes: the same training as on one, and never one process where two were asked for.

Most launches cost several seconds: all trainings that are compared run one after another in a single one. Not covered: GPUs,
several machines, and FSDP as accelerate sets it up, which needs a GPU; what it does to the trained module is done here by hand.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from children import start_child
from conftest import Trd
from tiny import END, OTHER_END, VOCABULARY, build_model, set_eos

from trd_cli.config import LoraOptions
from trd_cli.core.objectives import Objective
from trd_cli.models import resolve_model
from trd_cli.shards import list_shards, read_rows, write_shard
from trd_cli.training.batches import Example, Weighting, collate, plan_step
from trd_cli.training.model import AdapterOff, DistillStep, Teacher, base_of, load, with_adapter
from trd_cli.training.state import trained_weights

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 12)
TRAIN = ("--dtype", "float32", "--device", "cpu", "--lr", 2e-3)
PLENTY = 180  # seconds, for what must end by itself


@dataclass(frozen=True)
class World:
    """Two models of one family, twelve trajectories of each kind, and twelve of very different lengths."""

    student: Path
    teacher: Path
    by_teacher: Path
    by_student: Path
    uneven: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    root = tmp_path_factory.mktemp("world")
    student, teacher = build_model(root / "student"), build_model(root / "teacher", seed=1)
    for model in (student, teacher):
        set_eos(model, [END, OTHER_END])
    problems, rollouts = root / "problems.parquet", root / "y_o"
    ok("data", "make", "arithmetic", "--n", 6, "--out", problems)
    ok("sample", "-m", student, "-p", problems, "-n", 2, *ENGINE, "--out", rollouts)
    ok("refine", rollouts, "--setting", "opd", "--teacher", teacher, *ENGINE, "--out", root / "opd")
    ok("refine", rollouts, "--setting", "opsd", *ENGINE, "--out", root / "opsd")
    return World(
        student, teacher, root / "opd", root / "opsd", with_uneven_responses(root / "opd", root / "uneven")
    )


def with_uneven_responses(source: Path, target: Path) -> Path:
    """A copy of a set whose responses have 1, 1, 2, 3, 5, 8 ... tokens."""
    shutil.copytree(source, target)
    shorter, longer = 1, 1
    for shard in list_shards(target):
        rows = []
        for row in read_rows(shard):
            ids = [4 + (7 * i + shorter) % (VOCABULARY - 4) for i in range(shorter)]
            rows.append(replace(row, response_token_ids=ids, finish_reason="length", logprobs=None))
            shorter, longer = longer, shorter + longer
        write_shard(shard, rows)
    return target


def log_of(checkpoint: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (checkpoint / "train.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def apart(one: Path, two: Path, before: Path) -> float:
    """How far two trainings ended from one another, as a share of how far they went; of the weights where it is most.

    Not element by element: AdamW divides by the gradient's size, so that one of nearly nothing moves as far as any other.
    """
    ends, others, starts = weights(one), weights(two), weights(before)
    assert ends.keys() == others.keys() == starts.keys()
    moved = [name for name in starts if not ends[name].equal(starts[name])]
    assert moved
    assert all(others[name].equal(starts[name]) for name in starts.keys() - set(moved))
    return max(((ends[n] - others[n]).norm() / (ends[n] - starts[n]).norm()).item() for n in moved)


# Launches


@dataclass(frozen=True)
class Launch:
    """What became of a launch: the launcher's exit code, and what each process printed, by its rank."""

    exit_code: int
    stdout: Mapping[int, str]
    stderr: Mapping[int, str]


def environment(**more: str) -> dict[str, str]:
    """This process's, for a launch that knows nothing of another one."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("MASTER_", "ACCELERATE_"))
    }
    # A trainer that ran in this process has told its environment of one process.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        own.pop(name, None)
    return {**own, "OMP_NUM_THREADS": "1", **more}


def start_two(logs: Path, *program: object, **more: str) -> subprocess.Popen[bytes]:
    """Two processes of a Python program under torchrun; each prints into files of its own in `logs`."""
    launcher = (BIN / "torchrun", "--standalone", "--nproc_per_node", 2, "--log-dir", logs, "--redirects", 3)
    return start_child(
        (*launcher, *program),
        cwd=ROOT,
        env=environment(ACCELERATE_USE_CPU="true", **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def ended(launcher: subprocess.Popen[bytes], logs: Path) -> Launch:
    try:
        code = launcher.wait(PLENTY)
    finally:
        launcher.terminate()  # which ends its processes too
    stdout, stderr = (
        {int(path.parent.name): path.read_text() for path in logs.rglob(f"{name}.log")}
        for name in ("stdout", "stderr")
    )
    return Launch(code, stdout, stderr)


def run(*command: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Any other command, in the environment of a shell."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PLENTY,
        check=False,
    )


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
    "the average as the teacher": (
        *("by_student", "--batch-size", 3, "--teacher-weights", "ema", "--ema-decay", 0.5),
    ),
}
# What depends on how a step is cut into micro-batches, or on the machine.
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


def trd_commands(path: str) -> None:
    """What two processes under torchrun do: one command after another, each as `python -m trd_cli` would."""
    for words in json.loads(Path(path).read_text()):
        sys.argv[1:] = words
        try:
            runpy.run_module("trd_cli", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


@dataclass(frozen=True)
class Trained:
    launch: Launch
    root: Path


def checkpoint(root: Path, case: str) -> Path:
    return root / str(list(CASES).index(case))


@pytest.fixture(scope="module")
def by_two(world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All cases trained by two processes."""
    root = tmp_path_factory.mktemp("by_two")
    orders = root / "orders.json"
    orders.write_text(json.dumps([arguments(world, case, checkpoint(root, case)) for case in CASES]))
    # torch then says of each group of processes that is made how large it is.
    talkative = {"TORCH_CPP_LOG_LEVEL": "INFO", "TORCH_DISTRIBUTED_DEBUG": "INFO"}
    return Trained(ended(start_two(root / "logs", __file__, orders, **talkative), root / "logs"), root)


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
        assert {key: together[key] for key in compared} == pytest.approx(
            {key: alone[key] for key in compared}, rel=2e-5, abs=1e-6
        )
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
        ("accelerate", "launch", "--config_file", "CONFIG"),
        ("python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
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
    assert "one process, launched as 2; expected 2 processes" in line
    assert "torchrun --nproc_per_node 2 -m trd_cli distill" in line
    assert not (tmp_path / "c").exists()


def test_a_script_of_the_users_own_that_is_called_launch_is_no_launcher_of_ours(
    world: World, tmp_path: Path
) -> None:
    command = (BIN / "trd", "distill", world.by_teacher, *TRAIN, "--out", tmp_path / "c")
    script = tmp_path / "launch.py"
    words = [str(word) for word in command]
    script.write_text(f"import subprocess\nraise SystemExit(subprocess.call({words!r}))\n")
    result = run(sys.executable, script)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'c'}\n"


def test_a_world_of_two_without_a_launcher_ends_and_trains_nothing(world: World, tmp_path: Path) -> None:
    command = (BIN / "trd", "distill", world.by_teacher, *TRAIN, "--out", tmp_path / "c")
    result = run(*command, WORLD_SIZE="2")
    assert result.returncode != 0
    assert result.stdout == ""
    assert "MASTER_ADDR" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("late", [0, 1], ids=["the first late", "the second late"])
def test_paths_from_a_pipe_are_refused_and_the_reason_said_whichever_process_is_late(
    tmp_path: Path, late: int
) -> None:
    # Python runs a module of this name before anything else: one of two processes on a slow disk, say.
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


# Weights cut into shards, one for each process


ROWS = [
    Example(f"row-{i}", range(10, 12 + 3 * i), range(30, 37 + 2 * i), range(60, 63 + 4 * i)) for i in range(5)
]
ADAPTER = LoraOptions(lora=True, lora_rank=4, lora_alpha=8.0)
KINDS = ("all weights", "adapter")


@dataclass(frozen=True)
class Step:
    """One step of plain gradient descent: its loss, and by name the gradients and the weights after it."""

    loss: float
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]


def distill_step(student: Path, teacher: Path, kind: str) -> DistillStep:
    cpu = torch.device("cpu")
    network = load(resolve_model(str(student)), torch.float32, cpu).train()
    if kind == "all weights":
        return DistillStep(
            network,
            Teacher(load(resolve_model(str(teacher)), torch.float32, cpu)),
            Objective(),
            torch.float32,
        )
    network = with_adapter(network, ADAPTER, seed=0)
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:  # which begins as nothing, and half of the gradients with it
            torch.nn.init.normal_(parameter, std=0.1)
    return DistillStep(network, AdapterOff(), Objective(), torch.float32)


def descend(step: DistillStep, process: int = 0, processes: int = 1) -> float:
    """One step along the micro-batches of a process; gives its part of the loss."""
    weighting, loss_of_mine = Weighting.of(ROWS, "sequence"), 0.0
    for group in plan_step(ROWS, 64, processes).mine(process):
        loss, _ = step(collate(group, weighting) if group else collate(ROWS[:1], None))
        # Gradients are averaged over processes, the loss is a sum over them.
        (loss * processes).backward()
        loss_of_mine += loss.item() if group else 0.0
    torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=0.5).step()
    return loss_of_mine


def shard_and_descend(process: int, student: Path, teacher: Path, directory: Path) -> None:
    """One of two processes: each layer's weights are cut in two, then all others', and a step is made."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=process, world_size=2
    )
    assert torch.distributed.get_world_size() == 2
    mesh = init_device_mesh("cpu", (2,))
    for kind in KINDS:
        step = distill_step(student, teacher, kind)
        for layer in base_of(step.student).get_decoder().layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(step, mesh=mesh)
        for name, parameter in step.named_parameters():
            assert isinstance(parameter, DTensor), name
            assert 2 * parameter.to_local().numel() == parameter.numel(), name
        loss = torch.tensor(descend(step, process, 2))
        torch.distributed.all_reduce(loss)
        gradients = {n: p.grad.full_tensor() for n, p in step.named_parameters() if p.requires_grad}
        found = Step(loss.item(), gradients, trained_weights(step))
        if process == 0:
            torch.save(asdict(found), directory / f"{kind}.pt")
        else:
            assert not found.weights, "the first process has them all"
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step of each kind made by two processes that hold half of every weight each."""
    directory = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.spawn(
        shard_and_descend, (world.student, world.teacher, directory), nprocs=2, join=True
    )
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_weights_in_shards_a_step_is_the_same_and_the_weights_come_back_whole(
    sharded: Path, world: World, kind: str
) -> None:
    step = distill_step(world.student, world.teacher, kind)
    before = {name: weight.clone() for name, weight in trained_weights(step).items()}
    loss = descend(step)
    found = Step(**torch.load(sharded / f"{kind}.pt", weights_only=True))
    assert found.loss == pytest.approx(loss, rel=1e-5)
    trained = {name: p for name, p in step.named_parameters() if p.requires_grad}
    assert found.gradients.keys() == found.weights.keys() == trained.keys()
    for name, parameter in trained.items():
        assert found.weights[name].shape == parameter.shape
        assert not found.weights[name].equal(before[name]), f"{name} has not moved"
        torch.testing.assert_close(found.gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.weights[name], parameter.detach(), rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    trd_commands(sys.argv[1])
