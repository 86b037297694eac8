"""Replicas as actors of a Ray cluster on this machine, whose nodes and GPUs are only numbers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Trd
from support.children import start_child, wait_for
from support.cluster_page import in_small, lines
from support.pair import build_pair, write_problems_of_pair
from support.sets import by_id
from support.tiny import build_model

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.replicas import Replicas
from trd_cli.engines.starting import start_engine
from trd_cli.models import resolve_model
from trd_cli.records import Completion, Request, Sampling

# More take longer: TRD_KILLS=20 python -m pytest tests/test_ray.py
KILLS = int(os.environ.get("TRD_KILLS", "3"))
SCRIPTED = resolve_model("scripted")
REQUESTS = [
    Request(f"row {i}", [1, 2, 3], Sampling(1.0, 1.0, 0, 64), seed=i, hints={"reference_answer": str(i)})
    for i in range(120)
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    """Yield a Ray cluster of one node with four CPUs and two GPUs, to which this process is connected."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, **size})
    os.environ["RAY_ADDRESS"] = cluster.address  # for the processes of commands
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    del os.environ["RAY_ADDRESS"]
    cluster.shutdown()


def engine_of(replicas: int, **arguments: Any) -> Replicas:
    """Start scripted engines on the cluster."""
    options = EngineOptions(engine="scripted", replicas=replicas, ray="auto", engine_arg=arguments)
    return start_engine("scripted", SCRIPTED, SCRIPTED.tokenizer(), options)


@pytest.fixture(scope="module")
def expected() -> dict[str, Completion]:
    """Return what one scripted engine answers."""
    return answers(start_engine("scripted", SCRIPTED, SCRIPTED.tokenizer(), EngineOptions()).generate(REQUESTS))


def answers(completions: Iterator[Completion]) -> dict[str, Completion]:
    """Return completions by request; fail if a request has two."""
    found: dict[str, Completion] = {}
    for completion in completions:
        assert completion.request_id not in found
        found[completion.request_id] = completion
    return found


def actors() -> list[psutil.Process]:
    """Return the processes of all actors below this process."""
    found: Sequence[psutil.Process] = psutil.Process().children(recursive=True)
    return [process for process in found if _is_actor(process)]


def _is_actor(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::Actor") and process.status() != "zombie"
    except psutil.NoSuchProcess:  # it has ended since
        return False


@pytest.mark.parametrize("replicas", [2, 4])
def test_actors_make_the_rows_of_one_engine(replicas: int, expected: dict[str, Completion]) -> None:
    engine = engine_of(replicas)
    assert answers(engine.generate(REQUESTS)) == expected
    assert len(engine.tokens()) == replicas
    engine.close()
    wait_for(lambda: not actors(), 10)


def test_a_command_makes_its_rows_on_a_cluster(tmp_path: Path, problems: Path, rollouts: Path, ok: Trd) -> None:
    command = ("sample", "-m", "scripted", "-p", problems, "-n", 2, "--ray", "auto", "--replicas", 2)
    done = ok(*command, "--out", tmp_path / "out")
    assert by_id(tmp_path / "out") == by_id(rollouts)
    assert "2 replicas on Ray" in done.stderr
    assert len(json.loads((tmp_path / "out" / "sessions.jsonl").read_text())["replicas"]) == 2


def test_the_commands_of_the_manual_for_a_cluster_work(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ok: Trd
) -> None:
    from ray.scripts.scripts import start  # the cluster of these tests is started otherwise

    monkeypatch.chdir(tmp_path)
    shutil.copy(problems, "train.parquet")
    starts = [line.split()[2:] for line in lines() if line.startswith("ray start")]
    assert [sorted(start.make_context("start", words).params.items() & {("head", True)}) for words in starts] == [
        [("head", True)],
        [],
    ]
    [command] = [line for line in lines() if "--ray" in line]
    ok(*in_small(command))
    assert len(by_id(tmp_path / "runs" / "y_o")) == 48


def test_the_rows_of_an_actor_that_is_killed_are_made_by_others(expected: dict[str, Completion]) -> None:
    chance, engine = random.Random(KILLS), engine_of(2, delay=0.02)
    moments = sorted(chance.sample(range(1, len(REQUESTS)), KILLS))
    found: dict[str, Completion] = {}
    for count, completion in enumerate(engine.generate(REQUESTS)):
        assert completion.request_id not in found
        found[completion.request_id] = completion
        if count in moments:
            os.kill(chance.choice(actors()).pid, signal.SIGKILL)
    engine.close()
    assert found == expected


def test_the_rows_of_a_node_that_is_removed_are_made_elsewhere(cluster: Any, expected: dict[str, Completion]) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    engine = engine_of(5, delay=0.05)
    completions = engine.generate(REQUESTS)
    first = [next(completions) for _ in range(20)]
    cluster.remove_node(node, allow_graceful=False)
    assert answers(iter([*first, *completions])) == expected
    engine.close()


def test_a_row_that_kills_every_actor_ends_as_an_error(expected: dict[str, Completion]) -> None:
    engine = engine_of(2, dies_on=7)
    found = answers(engine.generate(REQUESTS))
    engine.close()
    assert found.pop("row 7").error.startswith("3 workers died with this row")
    assert found.items() <= expected.items()
    assert len(found) == len(REQUESTS) - 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("tiny"))


def test_more_replicas_than_the_cluster_has_gpus_are_refused(
    tiny: Path, problems: Path, tmp_path: Path, trd: Trd
) -> None:
    done = trd("sample", "-m", tiny, "-p", problems, "--ray", "auto", "--replicas", 3, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "error: 3 replicas with 2 GPUs in the cluster; expected at most one replica for each 1 GPU" in done.stderr


def test_a_run_generates_on_the_cluster_with_a_replica_for_each_free_gpu(tmp_path: Path, ok: Trd) -> None:
    path, run = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(
        'setting = "opsd"\nstudent = "scripted"\nray = "auto"\n'
        'problems.make = {kind = "arithmetic", n = 4}\nsample.replicas = "auto"\nverify.workers = 1\narms.a.method = "fkl"\n'
    )
    ok("run", path, "--out", run, "--until", "verify")
    status = json.loads((run / "status.json").read_text())
    record = status["seed-0/round-0/sample"]
    assert (record["state"], record["devices"], record["replicas"]) == ("done", ["ray:0", "ray:1"], 2)
    log = (run / "logs" / "seed-0_round-0_sample.log").read_text()
    assert log.partition("\n")[0].endswith("--ray auto --replicas 2")
    assert status["seed-0/round-0/verify-rollouts"]["devices"] != record["devices"]


def test_a_command_on_a_cluster_keeps_its_rows_when_it_is_told_to_end(problems: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    slowly = ("--engine-arg", "delay=0.2", "--engine-arg", f"log={log}")
    words = ["sample", "-m", "scripted", "-p", problems, "--ray", "auto", *slowly, "--out", out]
    process = start_child([sys.executable, "-m", "trd_cli", *words], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: log.is_file() and len(log.read_text().split()) > 5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert 0 < len(by_id(out)) < 12


def test_a_diagnosis_on_the_cluster_has_the_figures_of_one_process(tmp_path: Path, ok: Trd) -> None:
    student, teacher = build_pair(tmp_path)
    problems = write_problems_of_pair(tmp_path / "problems.parquet", 6)
    cpu = ("--device", "cpu", "--dtype", "float32")
    ok("sample", "-m", student, "-p", problems, *cpu, "--max-tokens", 12, "--temperature", 1, "--out", tmp_path / "y_o")
    command = ("diagnose", tmp_path / "y_o", "--teacher", teacher, *cpu)
    ok(*command, "--out", tmp_path / "here")
    ok(*command, "--ray", "auto", "--replicas", 2, "--out", tmp_path / "there")
    assert (tmp_path / "there/rows.parquet").read_bytes() == (tmp_path / "here/rows.parquet").read_bytes()
