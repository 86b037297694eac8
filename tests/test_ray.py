"""Replicas as actors of a Ray cluster on this machine, with GPUs that are only numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Trd
from support.children import start_child, wait_for
from support.sets import by_id


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Run a Ray cluster, to which this process is connected."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4, num_gpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    path = tmp_path_factory.mktemp("data") / "p.parquet"
    ok("data", "make", "arithmetic", "--n", 40, "--seed", 1, "--out", path)
    return path


@pytest.fixture(scope="module")
def alone(problems: Path, ok: Trd) -> Path:
    """Return the rows that one scripted engine makes."""
    path = problems.parent / "alone"
    ok("sample", "-m", "scripted", "-p", problems, "-n", 3, "--out", path)
    return path


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_actors_make_the_rows_of_one_engine(
    replicas: int, problems: Path, alone: Path, tmp_path: Path, ok: Trd
) -> None:
    command = ("sample", "-m", "scripted", "-p", problems, "-n", 3, "--ray", "auto", "--replicas", replicas)
    done = ok(*command, "--out", tmp_path)
    assert by_id(tmp_path) == by_id(alone)
    assert "on Ray" in done.stderr


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
    assert 0 < len(by_id(out)) < 40
