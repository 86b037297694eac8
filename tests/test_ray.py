"""Replicas as actors of a Ray cluster on this machine, with GPUs that are only numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Trd
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
