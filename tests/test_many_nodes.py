"""trd distill on two machines: two processes that are started apart and meet over loopback.

Not covered: a network between them, GPUs.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.children import start_child
from support.launches import PLENTY, ROOT, TRAIN, ended, environment, free_port, log_of, start_node, start_two
from support.rows import refined_row, write_set
from support.tiny import build_model

from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.processes import command_of

OF_THE_MACHINE = ("seconds", "response_tokens_per_second", "read_tokens_per_second", "peak_memory_gib")


@dataclass(frozen=True)
class World:
    """A model, and rows that it is trained on towards another one."""

    model: Path
    teacher: Path
    rows: Path

    def command(self, out: object, *options: object) -> tuple[object, ...]:
        models = ("--model", self.model, "--teacher", self.teacher)
        return ("-m", "trd_cli", "distill", self.rows, *models, *TRAIN, "--batch-size", 4, *options, "--out", out)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    rows = write_set(root / "y_r", [[refined_row(i) for i in range(12)]])
    return World(build_model(root / "model"), build_model(root / "teacher", seed=1), rows)


def the_one_line(said: str) -> str:
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("trd distill: error:")]
    return line


def test_two_machines_train_as_two_processes_of_one_do_and_the_first_writes(world: World, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    logs = tmp_path / "logs"
    whole = ended(start_two(logs, *world.command(one, "--epochs", 2)), logs)
    assert whole.exit_code == 0, whole.stderr
    port, logs = free_port(), [tmp_path / "node-0", tmp_path / "node-1"]
    launchers = [start_node(i, port, logs[i], *world.command(two, "--epochs", 2)) for i in range(2)]
    first, second = (ended(launcher, log) for launcher, log in zip(launchers, logs, strict=True))
    assert (first.exit_code, second.exit_code) == (0, 0), (first.stderr, second.stderr)
    assert list(first.stdout.values()) == [f"{two}\n"]
    assert list(second.stdout.values()) == [""]
    assert "trd distill" not in "".join(second.stderr.values())
    logs_of_both = (
        [{k: v for k, v in line.items() if k not in OF_THE_MACHINE} for line in log_of(c)] for c in (one, two)
    )
    assert next(logs_of_both) == next(logs_of_both)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}


class Machine:
    """The one process of a machine, started as by srun or by hand: without torchrun, which takes long to start."""

    def __init__(self, rank: int, port: int, log: Path, command: Sequence[object], directory: Path = ROOT) -> None:
        self._log = log
        place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        with open(log, "wb") as file:
            self.process = start_child(
                (sys.executable, *command),
                cwd=directory,
                env=environment(PYTHONPATH=str(ROOT), **place, **meeting),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def refusal(self) -> str:
        """Return the line in which the process ends."""
        try:
            assert self.process.wait(PLENTY) == 1
        finally:
            self.process.kill()
        return the_one_line(self._log.read_text())


def test_machines_without_shared_storage_are_told_so(world: World, tmp_path: Path) -> None:
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    port = free_port()
    # The same path is another directory for each of them.
    command = world.command("/proc/self/cwd/c")
    machines = [Machine(i, port, tmp_path / f"{i}.log", command, directories[i]) for i in range(2)]
    for machine in machines:
        line = machine.refusal()
        assert "does not find /proc/self/cwd/c/examples.bin" in line
        assert "storage that all machines of the launch share" in line
    assert list(directories[1].iterdir()) == []


def test_machines_that_are_started_differently_are_told_how(world: World, tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "c"
    machines = [Machine(i, port, tmp_path / f"{i}.log", world.command(out, "--seed", i)) for i in range(2)]
    for machine in machines:
        assert "was started with other options than the main process: seed (0 → 1)" in machine.refusal()
    assert not out.exists()


def test_the_death_of_one_machine_ends_the_other_with_a_line(world: World, tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "c"
    command = world.command(out, "--epochs", 2000, "--save-steps", 5)
    machines = [Machine(i, port, tmp_path / f"{i}.log", command) for i in range(2)]
    until = time.monotonic() + PLENTY
    while not list(out.glob("states/step-*.pt")) and machines[0].process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    machines[1].process.kill()
    line = machines[0].refusal()
    assert "another process of this launch has ended" in line
    assert "run the same command again on all machines" in line


# In a recipe

RECIPE = """
setting = "opsd"
student = "scripted"
processes = 4
nodes = 2
problems = {make = {kind = "arithmetic", n = 1}}
arms = {a = {method = "trd"}}
"""


@pytest.mark.parametrize("in_slurm", [True, False])
def test_a_recipe_for_two_machines_trains_by_a_command_that_is_the_same_on_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_slurm: bool
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if in_slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    graph = build_graph(load_recipe(tmp_path / "recipe.toml"), tmp_path / "run")
    words = {node.stage: command_of(graph, node) for node in graph.nodes}
    assert words["sample"][:3] == [sys.executable, "-m", "trd_cli"]
    by_slurm = ["srun", "--nodes", "2", "--ntasks-per-node", "1"]
    launcher = words["distill"][: words["distill"].index("trd_cli")]
    assert (launcher[:5] == by_slurm) == in_slurm
    told = " ".join(launcher[5:] if in_slurm else launcher)
    assert told.startswith(f"{sys.executable} -m torch.distributed.run --nproc_per_node 4 --nnodes 2 ")
    assert f"--rdzv-endpoint {platform.node()}:" in told
