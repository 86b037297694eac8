"""Start trainings of several processes, and compare the results of two trainings."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from conftest import Trd
from support.children import start_child
from support.tiny import END, OTHER_END, VOCABULARY, build_model, set_eos

from trd_cli.records import AUTHORS
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

STUDENT, TEACHER, _, TEMPLATE = range(len(AUTHORS))
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 12)
TRAIN = ("--dtype", "float32", "--device", "cpu", "--lr", 2e-3)
PLENTY = 180  # seconds, for a process that must end by itself
# The variables of `accelerate launch --use_fsdp --fsdp_version 2`.
SHARDED = {
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


@dataclass(frozen=True)
class World:
    """Two models of one family, twelve trajectories of each kind, twelve of very different lengths, graded rollouts."""

    student: Path
    teacher: Path
    by_teacher: Path
    by_student: Path
    uneven: Path
    graded: Path


def make_world(root: Path, ok: Trd, tied: bool = False) -> World:
    """Make both models, with the student's embedding tied to its head or not, and the sets."""
    student = build_model(root / "student", tie_word_embeddings=tied)
    teacher = build_model(root / "teacher", seed=1)
    for model in (student, teacher):
        set_eos(model, [END, OTHER_END])
    problems, rollouts = root / "problems.parquet", root / "y_o"
    ok("data", "make", "arithmetic", "--n", 6, "--out", problems)
    ok("sample", "-m", student, "-p", problems, "-n", 2, *ENGINE, "--out", rollouts)
    ok("refine", rollouts, "--setting", "opd", "--teacher", teacher, *ENGINE, "--out", root / "opd")
    ok("refine", rollouts, "--setting", "opsd", *ENGINE, "--out", root / "opsd")
    uneven = with_uneven_responses(root / "opd", root / "uneven")
    graded = with_verdicts(rollouts, root / "graded")
    return World(student, teacher, root / "opd", root / "opsd", uneven, graded)


def with_verdicts(source: Path, target: Path) -> Path:
    """Return a copy of a set in which every third row is correct and the others are not."""
    shutil.copytree(source, target)
    for shard in list_shards(target):
        rows = read_rows(shard)
        write_shard(shard, [replace(row, verdict="incorrect" if i % 3 else "correct") for i, row in enumerate(rows)])
    return target


def with_uneven_responses(source: Path, target: Path) -> Path:
    """Return a copy of a set whose responses have 1, 1, 2, 3, 5, 8 ... tokens, some with weights and other authors."""
    shutil.copytree(source, target)
    shorter, longer = 1, 1
    for shard in list_shards(target):
        rows = []
        for row in read_rows(shard):
            ids = [4 + (7 * i + shorter) % (VOCABULARY - 4) for i in range(shorter)]
            weights = [(1.0, 0.25, 2.0, 0.0)[i % 4] for i in range(shorter)] if shorter % 2 else None
            authors = [(TEACHER, STUDENT, TEACHER, TEMPLATE)[i % 4] for i in range(shorter)] if shorter % 3 else None
            changes = {"token_weight": weights, "author": authors, "logprobs": None, "finish_reason": "length"}
            rows.append(replace(row, response_token_ids=ids, **changes))
            shorter, longer = longer, shorter + longer
        write_shard(shard, rows)
    return target


def log_of(checkpoint: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (checkpoint / "train.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def apart(one: Path, two: Path, before: Path) -> float:
    """Return how far apart two trainings ended, as a share of the way they went.

    It is the largest share of any weight tensor, not of any element: AdamW divides by the gradient's size, so an
    element with almost no gradient moves as far as any other.
    """
    ends, others, starts = weights(one), weights(two), weights(before)
    assert ends.keys() == others.keys() == starts.keys()
    moved = [name for name in starts if not ends[name].equal(starts[name])]
    assert moved
    assert all(others[name].equal(starts[name]) for name in starts.keys() - set(moved))
    return max(((ends[n] - others[n]).norm() / (ends[n] - starts[n]).norm()).item() for n in moved)


@dataclass(frozen=True)
class Launch:
    """The result of a launch: the launcher's exit code, and the output of each process by its rank."""

    exit_code: int
    stdout: Mapping[int, str]
    stderr: Mapping[int, str]


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without any trace of another launch."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MASTER_", "ACCELERATE_"))}
    # A trainer that ran in this process has written its one process into the environment.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        own.pop(name, None)
    return {**own, "OMP_NUM_THREADS": "1", **more}


def start_two(logs: Path, *program: object, **more: str) -> subprocess.Popen[bytes]:
    """Start two processes of a Python program under torchrun; each prints into files of its own in `logs`."""
    return _start(("--standalone", "--nproc_per_node", 2), logs, program, **more)


def start_node(number: int, port: int, logs: Path, *program: object) -> subprocess.Popen[bytes]:
    """Start one of two machines with one process under torchrun; they meet at `port` of this one."""
    meeting = ("--master_addr", "127.0.0.1", "--master_port", port)
    return _start(("--nnodes", 2, "--node_rank", number, *meeting, "--nproc_per_node", 1), logs, program)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _start(options: Sequence[object], logs: Path, program: Sequence[object], **more: str) -> subprocess.Popen[bytes]:
    launcher = (BIN / "torchrun", *options, "--log-dir", logs, "--redirects", 3)
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
        launcher.terminate()  # this ends its processes too
    stdout, stderr = (
        {int(path.parent.name): path.read_text() for path in logs.rglob(f"{name}.log")} for name in ("stdout", "stderr")
    )
    return Launch(code, stdout, stderr)


def run(*command: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run any other command in the environment of a shell."""
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


@dataclass(frozen=True)
class Order:
    """A trd command for the processes of a launch, with variables that are set while it runs.

    With `program`, a path, the words are those of another Python program.
    """

    words: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    program: str | None = None


def carry_out(root: Path, orders: Sequence[Order], **more: str) -> Launch:
    """Let two processes under torchrun run commands, one after another."""
    root.mkdir(exist_ok=True)
    (root / "orders.json").write_text(json.dumps([asdict(order) for order in orders]))
    # This file is the program, and it imports its neighbours.
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    words = (__file__, root / "orders.json")
    return ended(start_two(root / "logs", *words, PYTHONPATH=path, **more), root / "logs")


def _run_orders(path: str) -> None:
    for order in json.loads(Path(path).read_text()):
        sys.argv[1:] = order["words"]
        os.environ.update(order["variables"])
        try:
            if order["program"]:
                runpy.run_path(order["program"], run_name="__main__")
            else:
                runpy.run_module("trd_cli", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        for name in order["variables"]:
            del os.environ[name]


if __name__ == "__main__":
    _run_orders(sys.argv[1])
