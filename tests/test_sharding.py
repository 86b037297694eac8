"""trd distill with its weights cut over two processes, by FSDP2 as accelerate sets it up: the same training as on one.

accelerate shards on GPUs alone; trd lets it on CPUs too, and only the kind of device differs there. Not covered: GPUs,
several machines, offloaded parameters.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Trd
from support.launches import (
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
from support.tiny import build_model

# The variables of `accelerate launch --use_fsdp --fsdp_version 2`.
SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
RECOMPUTED = {"FSDP_ACTIVATION_CHECKPOINTING": "true"}
BY_LAYER = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}

# World, set, options; and accelerate's settings that are not its defaults.
CASES: dict[str, tuple[str, str, tuple[object, ...], dict[str, str]]] = {
    "a head that is the embedding": ("tied", "by_teacher", ("--batch-size", 5, "--epochs", 2), {}),
    "a head of its own": ("untied", "by_teacher", ("--batch-size", 5, "--epochs", 2), BY_LAYER),
    "the student its own teacher": ("tied", "by_student", ("--batch-size", 7), {}),
    "an adapter, its base as the teacher": ("tied", "by_student", ("--batch-size", 5, "--lora"), {}),
    "an adapter, another teacher": ("untied", "by_teacher", ("--batch-size", 5, "--lora"), {}),
    "layers recomputed": ("tied", "by_teacher", ("--batch-size", 5, "--gradient-checkpointing"), {}),
    "layers recomputed by accelerate": ("tied", "by_teacher", ("--batch-size", 5), RECOMPUTED),
    "an adapter, layers recomputed by accelerate": (
        *("untied", "by_student", ("--batch-size", 5, "--lora"), RECOMPUTED),
    ),
    "uneven rows in several micro-batches": (
        *("untied", "uneven", ("--batch-size", 11, "--max-tokens-per-batch", 300), {}),
    ),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> dict[str, World]:
    root = tmp_path_factory.mktemp("worlds")
    made = {}
    for name in ("tied", "untied"):
        (root / name).mkdir()
        made[name] = make_world(root / name, ok, tied=name == "tied")
    return made


def words(worlds: dict[str, World], case: str, out: Path) -> list[str]:
    world, kind, options, _ = CASES[case]
    return [str(word) for word in ("distill", getattr(worlds[world], kind), *TRAIN, *options, "--out", out)]


@pytest.fixture(scope="module")
def by_two(worlds: dict[str, World], tmp_path_factory: pytest.TempPathFactory) -> tuple[Launch, Path]:
    """Return all cases trained by two processes that hold half of every weight each."""
    root = tmp_path_factory.mktemp("by_two")
    orders = [Order(words(worlds, case, root / str(i)), SETTINGS | CASES[case][3]) for i, case in enumerate(CASES)]
    return carry_out(root, orders), root


@pytest.mark.parametrize("case", CASES)
def test_weights_in_shards_train_as_whole_ones_do(
    by_two: tuple[Launch, Path], worlds: dict[str, World], ok: Trd, tmp_path: Path, case: str
) -> None:
    launch, root = by_two
    assert launch.exit_code == 0, launch.stderr
    sharded, whole = root / str(list(CASES).index(case)), tmp_path / "one"
    # On one process there is nothing for accelerate to recompute.
    ok(*words(worlds, case, whole))
    one, two = log_of(whole), log_of(sharded)
    for key in ("loss", "grad_norm", "student_nll", "teacher_nll", "response_tokens"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=2e-5, abs=1e-6)
    assert apart(whole, sharded, worlds[CASES[case][0]].student) < 5e-4


def test_a_training_in_bfloat16_stays_close_to_that_of_one_process(
    worlds: dict[str, World], ok: Trd, tmp_path: Path
) -> None:
    command = ("distill", worlds["tied"].by_teacher, "--device", "cpu", "--batch-size", 12, "--out")
    ok(*command, tmp_path / "one")
    order = Order([str(word) for word in (*command, tmp_path / "two")], SETTINGS)
    launch = carry_out(tmp_path / "launch", [order])
    assert launch.exit_code == 0, launch.stderr
    (one,), (two,) = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert two["loss"] == pytest.approx(one["loss"], rel=0.01)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.05)


def test_no_process_holds_more_than_its_part_of_student_teacher_and_moments(
    worlds: dict[str, World], tmp_path: Path
) -> None:
    world, logs = worlds["tied"], tmp_path / "logs"
    arguments = (__file__, world.student, world.teacher, tmp_path)
    launch = ended(start_two(logs, *arguments, **SETTINGS), logs)
    assert launch.exit_code == 0, launch.stderr
    held = [json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in range(2)]
    for kind in ("student", "teacher", "moments"):
        shares = [one[kind]["here"] / one[kind]["whole"] for one in held]
        assert sum(shares) == pytest.approx(1.0), kind
        # Weights whose first dimension is odd do not halve.
        assert max(shares) < 0.51, kind


@pytest.mark.parametrize("recomputed", [{}, RECOMPUTED], ids=["plain", "layers recomputed by accelerate"])
def test_an_interrupted_launch_goes_on_in_shards_to_what_one_process_gives(
    worlds: dict[str, World], ok: Trd, tmp_path: Path, recomputed: dict[str, str]
) -> None:
    world = worlds["tied"]
    long = ("distill", world.by_teacher, *TRAIN, "--batch-size", 5, "--epochs", 12, "--save-steps", 5)
    ok(*long, "--out", tmp_path / "one")
    out, logs = tmp_path / "two", tmp_path / "logs"
    command = ("-m", "trd_cli", *long, "--out", out)
    launcher = start_two(logs, *command, **{**SETTINGS, **recomputed})
    until = time.monotonic() + PLENTY
    while not list(out.glob("states/step-*.pt")) and launcher.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    launcher.send_signal(signal.SIGINT)
    assert "interrupted" in ended(launcher, logs).stderr[0]
    assert 5 <= len(log_of(out)) < 36
    order = Order([str(word) for word in (*long, "--out", out)], SETTINGS | recomputed)
    launch = carry_out(tmp_path / "again", [order])
    assert launch.exit_code == 0, launch.stderr
    assert "going on after step" in launch.stderr[0]
    assert [line["loss"] for line in log_of(out)] == pytest.approx(
        [line["loss"] for line in log_of(tmp_path / "one")], rel=1e-4
    )
    assert apart(tmp_path / "one", out, world.student) < 5e-4


def one_alone(*command: object, **more: str):
    """Run a process of a launch of one."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return run(sys.executable, "-m", "trd_cli", *command, ACCELERATE_USE_CPU="true", **alone, **more)


@pytest.mark.parametrize(
    ("options", "settings", "told"),
    [
        (
            (),
            {"FSDP_VERSION": "1"},
            "a launch with FSDP version 1; expected several processes alone, or FSDP version 2",
        ),
        (("--lora", "--lora-dropout", 0.1), RECOMPUTED, "give --gradient-checkpointing"),
        (("--gradient-checkpointing",), RECOMPUTED, "expected one of them"),
        (("--selfcheck",), {}, "--selfcheck with FSDP"),
        (("--teacher-weights", "ema"), {}, "--teacher-weights ema with FSDP"),
    ],
    ids=["version 1", "dropout recomputed", "recomputed twice", "selfcheck", "an average"],
)
def test_what_cannot_be_right_in_shards_is_refused(
    worlds: dict[str, World], tmp_path: Path, options: Sequence[object], settings: dict[str, str], told: str
) -> None:
    command = ("distill", worlds["tied"].by_student, *TRAIN, *options, "--out", tmp_path / "c")
    result = one_alone(*command, **{**SETTINGS, **settings})
    assert result.returncode == 1, result.stderr
    assert told in result.stderr.splitlines()[-1]
    assert not (tmp_path / "c" / "config.json").exists()


def test_recomputation_with_a_model_s_own_dropout_is_refused(worlds: dict[str, World], ok: Trd, tmp_path: Path) -> None:
    dropping = build_model(tmp_path / "dropping", attention_dropout=0.1)
    command = ("distill", worlds["untied"].by_teacher, "-m", dropping, *TRAIN, "--out", tmp_path / "c")
    result = one_alone(*command, **{**SETTINGS, **RECOMPUTED})
    assert result.returncode == 1
    assert "fsdp_activation_checkpointing with dropout" in result.stderr.splitlines()[-1]


def tell_what_is_held(student: str, teacher: str, directory: str) -> None:
    """Train two steps in one of two processes; write the numbers of elements held here and in all."""
    from torch.distributed.tensor import DTensor

    from trd_cli.config.training import DistillConfig
    from trd_cli.models import resolve_model
    from trd_cli.progress import SilentProgress
    from trd_cli.training.batches import Example
    from trd_cli.training.launch import accelerator_for
    from trd_cli.training.trainer import Trainer

    config = DistillConfig(dtype="float32", device="cpu", batch_size=2)
    accelerator = accelerator_for(config)
    root = Path(directory)
    trainer = Trainer(config, resolve_model(student), resolve_model(teacher), accelerator, root)
    rows = [Example(f"{i}", range(8), range(20, 30), range(40, 60)) for i in range(4)]
    trainer.train(rows, SilentProgress())
    moments = [
        value for state in trainer.optimizer.state.values() for value in state.values() if getattr(value, "ndim", 0)
    ]

    def count(tensors) -> dict[str, int]:
        tensors = list(tensors)
        assert all(isinstance(tensor, DTensor) for tensor in tensors)
        return {"here": sum(t.to_local().numel() for t in tensors), "whole": sum(t.numel() for t in tensors)}

    held = {
        "student": count(trainer.step.parameters()),
        "teacher": count(trainer.step.teacher.model.parameters()),
        "moments": count(moments),
    }
    (root / f"held-{accelerator.process_index}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    tell_what_is_held(*sys.argv[1:])
