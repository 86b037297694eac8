"""Replicas of an engine in worker processes: the rows of one engine, whatever becomes of the workers."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Trd
from support.children import Start, alive, forking, gone, wait_for
from support.sets import by_id

# More take longer: TRD_KILLS=20 python -m pytest tests/test_replicas.py
KILLS = int(os.environ.get("TRD_KILLS", "4"))
N = 40

WARM = """
import pyarrow
import trd_cli.engines.scripted
from trd_cli.stages import sample
pyarrow.table({"x": [1]})  # loads pandas, where there is one
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Yield a function that starts a trd command; end every command that is left."""
    with forking(WARM, tmp_path_factory.mktemp("talk")) as starts:
        yield starts


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    path = tmp_path_factory.mktemp("data") / "p.parquet"
    ok("data", "make", "arithmetic", "--n", N, "--seed", 1, "--out", path)
    return path


@pytest.fixture(scope="module")
def alone(problems: Path, ok: Trd) -> Path:
    """Return the rows that one scripted engine makes."""
    path = problems.parent / "alone"
    ok("sample", "-m", "scripted", "-p", problems, "-n", 3, "--out", path)
    return path


def workers(session: int) -> list[int]:
    """Return the worker processes of a command."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in alive(session)}
    return [pid for pid, command in commands.items() if b"local_workers" in command]


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_make_the_rows_of_one_engine(
    replicas: int, problems: Path, alone: Path, tmp_path: Path, ok: Trd
) -> None:
    done = ok("sample", "-m", "scripted", "-p", problems, "-n", 3, "--replicas", replicas, "--out", tmp_path / "out")
    assert by_id(tmp_path / "out") == by_id(alone)
    assert f"{replicas} replicas" in done.stderr
    [session] = map(json.loads, (tmp_path / "out" / "sessions.jsonl").read_text().splitlines())
    assert len(session["replicas"]) == replicas
    assert any(session["replicas"])
    shown = r"replica 1 \d+, 2 \d+" + r", \d \d+" * (replicas - 2) + " tok/s"
    assert re.search(shown, done.stderr)


def test_the_rows_of_a_worker_that_is_killed_are_made_by_others(
    start: Start, problems: Path, alone: Path, tmp_path: Path
) -> None:
    chance, out = random.Random(KILLS), tmp_path / "out"
    slowly = ("--engine-arg", "delay=0.05", "--shard-rows", 4)
    run = start("sample", "-m", "scripted", "-p", problems, "-n", 3, "--replicas", 3, *slowly, "--out", out)
    for _ in range(KILLS):
        wait_for(lambda: workers(run.pid))
        time.sleep(chance.uniform(0, 0.4))
        for victim in chance.sample(workers(run.pid), min(1, len(workers(run.pid)))):
            os.kill(victim, signal.SIGKILL)
    assert run.wait() == 0, run.stderr.read_text()
    assert by_id(out) == by_id(alone)
    assert run.stderr.read_text().count("was ended by SIGKILL; it starts again") == KILLS
    assert gone([run.pid], 5)
