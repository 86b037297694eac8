"""The slots of a run: which stages start when, on which devices, and that stages of one run work at the same time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.children import start_child, wait_for

from trd_cli.planning.hours import schedule
from trd_cli.recipes.devices import machine_of
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.slots import Scheduler, Slot, Task, simulate

GPUS = tuple((f"cuda:{i}",) for i in range(8))
PAIRS = (("cuda:0", "cuda:1"), ("cuda:2", "cuda:3"))


def started(scheduler: Scheduler) -> dict[str, tuple[str, ...]]:
    return {each.task.name: each.devices for each in scheduler.start()}


def spans(tasks: list[Task], slots: tuple[Slot, ...], **seconds: float) -> dict[str, tuple[float, float]]:
    made = simulate(tasks, slots, lambda placement: seconds.get(placement.task.name, 1.0))
    return {span.placement.task.name: (span.begin, span.end) for span in made}


# Which task starts when and where


def test_with_one_slot_tasks_run_one_after_the_other_in_their_order() -> None:
    tasks = [Task("a"), Task("b"), Task("c", ("a",)), Task("d")]
    assert spans(tasks, (("machine",),)) == {"a": (0, 1), "b": (1, 2), "c": (2, 3), "d": (3, 4)}


def test_a_task_waits_for_its_inputs_and_for_no_other() -> None:
    tasks = [Task("slow"), Task("quick"), Task("of-quick", ("quick",)), Task("of-both", ("slow", "quick"))]
    found = spans(tasks, GPUS, slow=10)
    assert found["of-quick"] == (1, 2)
    assert found["of-both"] == (10, 11)


def test_a_task_that_does_not_fit_lets_a_later_one_start() -> None:
    scheduler = Scheduler([Task("a", devices=5), Task("b", devices=5), Task("c", devices=3)], GPUS)
    assert list(started(scheduler)) == ["a", "c"]
    scheduler.end("c")
    assert started(scheduler) == {}
    scheduler.end("a")
    assert list(started(scheduler)) == ["b"]


def test_no_device_is_given_to_two_tasks_at_once() -> None:
    scheduler = Scheduler([Task(str(i), devices=i % 3 + 1) for i in range(40)], GPUS)
    while scheduler.start() or scheduler.running:
        held = [device for each in scheduler.running.values() for device in each.devices]
        assert len(held) == len(set(held)) <= 8
        scheduler.end(next(iter(scheduler.running)))


def test_a_task_that_takes_what_is_free_comes_last_and_takes_it_all_in_multiples() -> None:
    tasks = [Task("free", devices=2, takes_free=True), Task("fixed", devices=3)]
    first, second = Scheduler(tasks, GPUS).start()
    assert (first.task.name, len(first.devices), first.times) == ("fixed", 3, 1)
    assert (second.task.name, len(second.devices), second.times) == ("free", 4, 2)


def test_a_slot_of_several_devices_is_given_as_a_whole() -> None:
    scheduler = Scheduler([Task("one"), Task("two", devices=2), Task("three")], PAIRS)
    assert started(scheduler) == {"one": PAIRS[0], "two": PAIRS[1]}
    scheduler.end("two")
    assert started(scheduler) == {"three": PAIRS[1]}


def test_of_slots_of_different_sizes_the_smallest_that_suffices_is_taken() -> None:
    slots = (("cuda:0",), ("cuda:1", "cuda:2", "cuda:3"), ("cuda:4", "cuda:5"))
    assert started(Scheduler([Task("a", devices=2)], slots)) == {"a": slots[2]}
    assert started(Scheduler([Task("a", devices=5)], slots)) == {"a": (*slots[1], *slots[2])}


def test_tasks_without_devices_run_beside_the_others_one_at_a_time() -> None:
    scheduler = Scheduler([Task("train", devices=8), Task("grade", devices=0), Task("make", devices=0)], GPUS)
    assert list(started(scheduler)) == ["train", "grade"]
    scheduler.end("grade")
    assert list(started(scheduler)) == ["make"]


def test_tasks_take_devices_of_their_kind_and_kinds_that_are_apart_take_turns() -> None:
    slots = (("cuda:0",), ("ray:0",), ("ray:1",))
    tasks = [
        Task("sample", takes_free=True, kind="ray"),
        Task("train", kind="cuda"),
        Task("grade", devices=0, kind="cuda"),
    ]
    beside = started(Scheduler(tasks, slots))
    assert beside == {"train": ("cuda:0",), "grade": (), "sample": ("ray:0", "ray:1")}
    scheduler = Scheduler(tasks, slots, apart=True)
    assert started(scheduler).keys() == {"train", "grade"}
    scheduler.end("train")
    assert started(scheduler) == {"sample": ("ray:0", "ray:1")}


def test_what_depends_on_a_failed_task_never_starts_and_the_rest_goes_on() -> None:
    scheduler = Scheduler([Task("a"), Task("b"), Task("of-a", ("a",)), Task("of-of-a", ("of-a", "b"))], GPUS)
    assert list(started(scheduler)) == ["a", "b"]
    assert [task.name for task in scheduler.end("a", well=False)] == ["of-a", "of-of-a"]
    assert scheduler.end("b") == []
    assert scheduler.start() == []


# Stages at the same time

RECIPE = """
setting = "opsd"
student = "scripted"
devices = ["cpu", "cpu"]
[problems]
make = {{kind = "arithmetic", n = 2}}
[sample]
replicas = "auto"
[verify]
workers = 1
[arms.one]
method = "trd"
refine = {{engine_arg = {{log = "{directory}/one"{more}}}}}
[arms.two]
method = "trd"
epochs = 2
refine = {{engine_arg = {{log = "{directory}/two"}}}}
"""
ONE, TWO = "seed-0/round-0/one/refine", "seed-0/round-0/two/refine"


def status(run: Path) -> dict[str, Any]:
    path = run / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def states(run: Path) -> dict[str, str]:
    return {name: record["state"] for name, record in status(run).items()}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return a directory with a recipe, its run up to the verdicts of the rollouts, and a pipe for each arm."""
    directory = tmp_path_factory.mktemp("sampled")
    for name in ("one", "two"):
        os.mkfifo(directory / name)
    recipe = directory / "recipe.toml"
    recipe.write_text(RECIPE.format(directory=directory, more="").replace('"trd"', '"fkl"'))
    ok("run", recipe, "--out", directory / "run", "--until", "verify")
    return directory


class Held:
    """A run whose two arms refine at the same time; each waits at its first reply until it is let go."""

    def __init__(self, sampled: Path, directory: Path, more: str = "") -> None:
        self._pipes = [sampled / "one", sampled / "two"]
        recipe = directory / "recipe.toml"
        recipe.write_text(RECIPE.format(directory=sampled, more=more))
        self.run = shutil.copytree(sampled / "run", directory / "run")
        words = [sys.executable, "-m", "trd_cli", "run", recipe, "--out", self.run, "--until", "verify"]
        self.process = start_child(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        logs = [self.run / "logs" / f"seed-0_round-0_{arm}_refine.log" for arm in ("one", "two")]
        wait_for(lambda: all(log.is_file() and "trd refine: 2 rows" in log.read_text() for log in logs))

    def stages(self) -> dict[str, int]:
        """Return the process of each stage that runs."""
        locks = [lock.read_text() for lock in (self.run / ".stages").glob("*.lock")]
        return {record["node"]: record["pid"] for record in map(json.loads, filter(None, locks))}

    @contextmanager
    def let_go(self, count: int = 2) -> Iterator[None]:
        """Let the first `count` arms go on while the block lasts."""
        ends = [os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) for pipe in self._pipes[:count]]
        yield
        for end in ends:
            os.close(end)

    def said(self) -> str:
        """Wait for the end and return standard error."""
        return self.process.communicate(timeout=60)[1]


def test_as_many_replicas_as_there_are_free_slots_sample(sampled: Path) -> None:
    record = status(sampled / "run")["seed-0/round-0/sample"]
    assert (record["replicas"], record["devices"]) == (2, ["cpu", "cpu"])
    log = sampled / "run" / "logs" / "seed-0_round-0_sample.log"
    assert log.read_text().partition("\n")[0].endswith("--replicas 2")


def test_an_arm_that_fails_leaves_the_one_beside_it_alone(sampled: Path, tmp_path: Path) -> None:
    held = Held(sampled, tmp_path, more=", crash_after = 1")
    assert held.stages().keys() == {ONE, TWO}
    assert [status(held.run)[name]["devices"] for name in (ONE, TWO)] == [["cpu"], ["cpu"]]
    with held.let_go(1):
        wait_for(lambda: states(held.run).get("seed-0/round-0/one/verify-refined") == "skipped")
        assert (states(held.run)[ONE], states(held.run)[TWO]) == ("failed", "running")
    with held.let_go():
        said = held.said()
    assert held.process.returncode == 1
    assert f"{TWO}: running on cpu" in said
    assert "1 of 4 stages failed, 1 skipped for it: seed-0/round-0/one/refine" in said
    assert states(held.run)["seed-0/round-0/two/verify-refined"] == "done"
    assert list((held.run / ".stages").iterdir()) == []


def test_an_interruption_stops_all_stages(sampled: Path, tmp_path: Path) -> None:
    held = Held(sampled, tmp_path)
    held.process.send_signal(signal.SIGINT)
    said = held.said()
    assert held.process.returncode == 130
    assert f"stopping {ONE}, {TWO}; once more to end them at once" in said
    assert [states(held.run)[name] for name in (ONE, TWO)] == ["waiting", "waiting"]
    assert list((held.run / ".stages").iterdir()) == []


def test_a_second_interruption_ends_stages_that_do_not_stop(sampled: Path, tmp_path: Path) -> None:
    held = Held(sampled, tmp_path)
    for pid in (stages := held.stages().values()):
        os.kill(pid, signal.SIGSTOP)
    for _ in range(2):
        held.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    said = held.said()
    assert held.process.returncode == 130, said
    assert not any(Path(f"/proc/{pid}").exists() for pid in stages)


def test_the_schedule_of_a_plan_is_that_of_the_run(sampled: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(directory=sampled, more=""))
    graph = build_graph(load_recipe(path), tmp_path / "run")
    spans = {span.placement.task.name: span for span in schedule(graph, [], {}, machine_of(graph.recipe))}
    made = status(sampled / "run")
    assert list(spans)[: len(made)] == list(made), "stages start in this order"
    for name, record in made.items():
        assert list(spans[name].placement.devices) == record["devices"]
    assert spans["seed-0/round-0/sample"].placement.times == made["seed-0/round-0/sample"]["replicas"]


# Refused


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("3", '"auto", or slots'),
        ("[]", '"auto", or slots'),
        ('["gpu"]', "names such as cuda:0, or cpu"),
        ('["cuda:0", "cuda:1,cuda:0"]', "each GPU once"),
        ('["cuda:0", "cpu"]', "either GPUs or cpu"),
    ],
)
def test_devices_that_are_no_slots_are_refused(devices: str, expected: str, tmp_path: Path, trd: Trd) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(directory=tmp_path, more="").replace('["cpu", "cpu"]', devices))
    result = trd("run", path, "--out", tmp_path / "run", "--until", "verify")
    assert result.exit_code == 1
    assert f"{path}: devices = " in result.stderr
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'replicas = "auto"',
            "replicas = 3",
            "sample: 3 devices (replicas = 3, tensor_parallel_size = 1) of 2 (cpu, cpu)",
        ),
        ('["cpu", "cpu"]', '["cuda:97"]', "devices names cuda:97"),
        ('replicas = "auto"', "device = 'cuda:1'", "sample: device = 'cuda:1'"),
    ],
)
def test_a_stage_that_needs_other_devices_is_refused_before_anything_runs(
    old: str, new: str, expected: str, tmp_path: Path, trd: Trd
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(directory=tmp_path, more="").replace(old, new))
    result = trd("run", path, "--out", tmp_path / "run", "--until", "verify")
    assert result.exit_code == 1
    assert expected in result.stderr
    assert not (tmp_path / "run").exists()
