"""trd distill with its weights cut over two processes, by FSDP2 as accelerate sets it up: the same training as on one.

accelerate shards on GPUs alone; trd lets it on CPUs too, and only the kind of device differs there. Not covered: GPUs,
several machines, offloaded parameters.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Trd
from support.children import forking
from support.launches import (
    PLENTY,
    SHARDED,
    TRAIN,
    Launch,
    Order,
    World,
    apart,
    carry_out,
    ended,
    environment,
    log_of,
    make_world,
    start_two,
)
from support.tiny import build_model
from test_resume_training import WARM

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
    "rows routed and weighed by verdicts": (
        *("untied", "graded", ("--method", "scope", "--setting", "opsd", "--batch-size", 7), BY_LAYER),
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


IN_BFLOAT16 = ("--device", "cpu", "--batch-size", 12)


@pytest.fixture(scope="module")
def by_two(worlds: dict[str, World], tmp_path_factory: pytest.TempPathFactory) -> tuple[Launch, Path]:
    """Return all cases trained by two processes that hold half of every weight each.

    The same launch trains once in bfloat16, and tells what its processes hold.
    """
    root = tmp_path_factory.mktemp("by_two")
    tied = worlds["tied"]
    half = ("distill", tied.by_teacher, *IN_BFLOAT16, "--out", root / "bfloat16")
    held = (tied.student, tied.teacher, root)
    orders = [
        *(Order(words(worlds, case, root / str(i)), SHARDED | CASES[case][3]) for i, case in enumerate(CASES)),
        Order([str(word) for word in half], SHARDED),
        Order([str(word) for word in held], SHARDED, __file__),
    ]
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
    by_two: tuple[Launch, Path], worlds: dict[str, World], ok: Trd, tmp_path: Path
) -> None:
    launch, root = by_two
    assert launch.exit_code == 0, launch.stderr
    ok("distill", worlds["tied"].by_teacher, *IN_BFLOAT16, "--out", tmp_path / "one")
    (one,), (two,) = log_of(tmp_path / "one"), log_of(root / "bfloat16")
    assert two["loss"] == pytest.approx(one["loss"], rel=0.01)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.05)


def test_no_process_holds_more_than_its_part_of_student_teacher_and_moments(by_two: tuple[Launch, Path]) -> None:
    launch, root = by_two
    assert launch.exit_code == 0, launch.stderr
    held = [json.loads((root / f"held-{rank}.json").read_text()) for rank in range(2)]
    for kind in ("student", "teacher", "moments"):
        shares = [one[kind]["here"] / one[kind]["whole"] for one in held]
        assert sum(shares) == pytest.approx(1.0), kind
        # Weights whose first dimension is odd do not halve.
        assert max(shares) < 0.51, kind


@dataclass(frozen=True)
class Interrupted:
    """A launch that was interrupted at its first saved state: the launch and the steps that it had logged."""

    launch: Launch
    steps: int


# Each is a launch of its own; TRD_FULL=1 interrupts both.
INTERRUPTED = {"plain": {}} | ({"layers recomputed by accelerate": RECOMPUTED} if os.environ.get("TRD_FULL") else {})


@pytest.fixture(scope="module")
def interrupted(
    worlds: dict[str, World], ok: Trd, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Interrupted], Launch, Path]:
    """Return a training interrupted in each way, the launch that went on with all of them, and their directory.

    The directory `one` there is that of the same training by one process.
    """
    root = tmp_path_factory.mktemp("interrupted")
    world = worlds["tied"]
    long = ("distill", world.by_teacher, *TRAIN, "--batch-size", 5, "--epochs", 12, "--save-steps", 5)
    ok(*long, "--out", root / "one")
    first = {}
    for name, more in INTERRUPTED.items():
        out, logs = root / name, root / f"logs of {name}"
        launcher = start_two(logs, "-m", "trd_cli", *long, "--out", out, **SHARDED | more)
        until = time.monotonic() + PLENTY
        while not list(out.glob("states/step-*.pt")) and launcher.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        launcher.send_signal(signal.SIGINT)
        first[name] = Interrupted(ended(launcher, logs), len(log_of(out)))
    orders = [
        Order([str(word) for word in (*long, "--out", root / name)], SHARDED | more)
        for name, more in INTERRUPTED.items()
    ]
    return first, carry_out(root / "again", orders), root


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_launch_goes_on_in_shards_to_what_one_process_gives(
    interrupted: tuple[dict[str, Interrupted], Launch, Path], worlds: dict[str, World], name: str
) -> None:
    first, launch, root = interrupted
    assert "interrupted" in first[name].launch.stderr[0]
    assert 5 <= first[name].steps < 36
    assert launch.exit_code == 0, launch.stderr
    went_on = [line for line in launch.stderr[0].splitlines() if "going on after step" in line]
    assert len(went_on) == len(INTERRUPTED)
    assert f"going on after step {first[name].steps}" in went_on[list(INTERRUPTED).index(name)]
    assert [line["loss"] for line in log_of(root / name)] == pytest.approx(
        [line["loss"] for line in log_of(root / "one")], rel=1e-4
    )
    assert apart(root / "one", root / name, worlds["tied"].student) < 5e-4


ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.fixture(scope="module")
def refusal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Yield a function that runs a command as the process of a launch of one, and returns the line it is refused by."""
    env = environment(ACCELERATE_USE_CPU="true", **ALONE)
    with forking(WARM, tmp_path_factory.mktemp("talk"), env) as start:

        def refused(*command: object, settings: Mapping[str, str]) -> str:
            ran = start(*command, variables=settings)
            assert ran.wait() == 1, ran.stderr.read_text()
            return ran.stderr.read_text().splitlines()[-1]

        yield refused


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
    worlds: dict[str, World],
    refusal: Callable[..., str],
    tmp_path: Path,
    options: Sequence[object],
    settings: dict[str, str],
    told: str,
) -> None:
    command = ("distill", worlds["tied"].by_student, *TRAIN, *options, "--out", tmp_path / "c")
    assert told in refusal(*command, settings=SHARDED | settings)
    assert not (tmp_path / "c" / "config.json").exists()


def test_recomputation_with_a_model_s_own_dropout_is_refused(
    worlds: dict[str, World], refusal: Callable[..., str], tmp_path: Path
) -> None:
    dropping = build_model(tmp_path / "dropping", attention_dropout=0.1)
    command = ("distill", worlds["untied"].by_teacher, "-m", dropping, *TRAIN, "--out", tmp_path / "c")
    assert "fsdp_activation_checkpointing with dropout" in refusal(*command, settings=SHARDED | RECOMPUTED)


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
