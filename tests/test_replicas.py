"""Replicas of an engine in worker processes: the rows of one engine, whatever becomes of the workers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Trd
from support.children import Start, alive, forking, gone, wait_for
from support.cluster_page import in_small, lines, of_the_array
from support.sets import by_id
from support.tiny import build_model

# More take longer: TRD_KILLS=20 python -m pytest tests/test_replicas.py
KILLS = int(os.environ.get("TRD_KILLS", "4"))
N = 40
ROOT = Path(__file__).parent.parent
# Python runs a module named sitecustomize first; this one imitates a machine without Ray.
WITHOUT_RAY = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "ray" else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""

WARM = """
import trd_cli.engines.scripted
from trd_cli.stages import sample
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("tiny"))


def workers(session: int) -> list[int]:
    """Return the worker processes of a command, the oldest first."""
    found = []
    for pid in sorted(alive(session)):
        with contextlib.suppress(OSError):
            if b"local_workers" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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


def test_replicas_of_a_real_model_make_its_tokens(tiny: Path, problems: Path, tmp_path: Path, ok: Trd) -> None:
    command = ("sample", "-m", tiny, "-p", problems, "--limit", 12, "-n", 2, "--max-tokens", 24, "--dtype", "float32")
    ok(*command, "--batch-size", 4, "--out", tmp_path / "one")
    ok(*command, "--batch-size", 4, "--replicas", 2, "--out", tmp_path / "two")
    one, two = (
        {name: replace(row, logprobs=None) for name, row in by_id(tmp_path / n).items()} for n in ("one", "two")
    )
    assert two == one
    assert len({tuple(row.response_token_ids) for row in one.values()}) > 12, "the model does not always say the same"


def test_workers_that_die_as_they_start_are_given_up(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trd: Trd
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # no Python starts
    done = trd("sample", "-m", "scripted", "-p", problems, "--replicas", 2, "--out", tmp_path / "out")
    assert done.exit_code == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("trd sample: error: none of 2 replicas is left, the last one ended with exit code 1: ")
    assert done.stderr.count("; it starts again") == 2 * 3


def test_an_engine_that_cannot_start_is_an_error_of_one_line(
    tiny: Path, problems: Path, tmp_path: Path, trd: Trd
) -> None:
    command = ("sample", "-m", tiny, "-p", problems, "--engine-arg", "attn_implementation=none", "--replicas", 2)
    done = trd(*command, "--out", tmp_path)
    assert done.exit_code == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(
        "trd sample: error: none of 2 replicas is left, the last one failed: transformers cannot load"
    )
    assert done.stderr.count("it is given up") == 2
    assert "starts again" not in done.stderr


def test_the_rows_of_a_worker_that_is_killed_are_made_by_others(
    start: Start, problems: Path, alone: Path, tmp_path: Path
) -> None:
    chance, out, kills = random.Random(KILLS), tmp_path / "out", 0
    slowly = ("--engine-arg", "delay=0.1", "--shard-rows", 1)
    n = 3 if KILLS > 4 else 1
    run = start("sample", "-m", "scripted", "-p", problems, "-n", n, "--replicas", 3, *slowly, "--out", out)
    while kills < KILLS and alive(run.pid):
        # A worker that dies again and again before it has made a row is given up, and so is a row that is always there.
        made = len(list(out.glob("shard-*.parquet"))) + 3
        wait_for(lambda made=made: len(list(out.glob("shard-*.parquet"))) >= made or not alive(run.pid))
        time.sleep(chance.uniform(0, 0.3))
        for oldest in workers(run.pid)[:1]:
            kill(oldest)
            kills += 1
    assert run.wait() == 0, run.stderr.read_text()
    assert by_id(out) == {name: row for name, row in by_id(alone).items() if row.sample_index < n}
    assert run.stderr.read_text().count("was ended by SIGKILL; it starts again") >= KILLS // 2
    assert gone([run.pid], 5)


def test_a_row_that_kills_every_worker_ends_as_an_error_and_all_others_are_right(
    problems: Path, alone: Path, tmp_path: Path, ok: Trd
) -> None:
    expected = {name: row for name, row in by_id(alone).items() if row.sample_index == 0}
    deadly = next(row.reference_answer for row in expected.values())
    command = ("sample", "-m", "scripted", "-p", problems, "--replicas", 2, "--engine-arg", f"dies_on={deadly}")
    ok(*command, "--max-errors", 5, "--out", tmp_path)
    made = by_id(tmp_path)
    assert made.keys() == expected.keys()
    for name, row in made.items():
        if row.reference_answer == deadly:
            assert row.error.startswith("3 workers died with this row")
        else:
            assert row == expected[name]


def test_an_engine_that_fails_now_and_then_is_started_again(
    problems: Path, alone: Path, tmp_path: Path, ok: Trd
) -> None:
    command = ("sample", "-m", "scripted", "-p", problems, "-n", 3, "--replicas", 2, "--engine-arg", "crash_after=40")
    done = ok(*command, "--out", tmp_path)
    assert by_id(tmp_path) == by_id(alone)
    assert "replica 1 failed: the scripted engine crashed; it starts again" in done.stderr


def test_replicas_that_only_fail_are_given_up(problems: Path, tmp_path: Path, trd: Trd) -> None:
    command = ("sample", "-m", "scripted", "-p", problems, "--replicas", 2, "--engine-arg", "crash_after=0")
    done = trd(*command, "--out", tmp_path)
    assert done.exit_code == 1
    *_, last = done.stderr.splitlines()
    assert last == (
        "trd sample: error: none of 2 replicas is left, the last one failed: the scripted engine crashed; "
        "expected no crash_after; run again without it"
    )
    assert done.stderr.count("it is given up") == 2
    assert done.stderr.count("it starts again") == 2 * 3


def test_with_no_replica_left_the_command_ends_and_keeps_its_rows(
    start: Start, problems: Path, alone: Path, tmp_path: Path
) -> None:
    out, command = tmp_path / "out", ("sample", "-m", "scripted", "-p", problems, "-n", 3, "--shard-rows", 1)
    run = start(*command, "--replicas", 2, "--engine-arg", "delay=0.4", "--out", out)
    wait_for(lambda: list(out.glob("shard-*.parquet")))
    while alive(run.pid):
        for victim in workers(run.pid):
            kill(victim)
        time.sleep(0.01)
    assert run.wait() == 1
    assert by_id(out).items() <= by_id(alone).items()
    *_, last = run.stderr.read_text().splitlines()
    assert last.startswith("trd sample: error: none of 2 replicas is left, the last one was ended by SIGKILL; expected")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_no_worker_outlives_a_command_that_is_stopped(
    number: signal.Signals, code: int, start: Start, problems: Path, alone: Path, tmp_path: Path
) -> None:
    out, command = tmp_path / "out", ("sample", "-m", "scripted", "-p", problems, "-n", 3, "--shard-rows", 1)
    run = start(*command, "--replicas", 2, "--engine-arg", "delay=0.1", "--out", out)
    wait_for(lambda: list(out.glob("shard-*.parquet")))
    assert len(workers(run.pid)) == 2
    assert run.kill(number) == code
    assert gone([run.pid], 10)
    assert by_id(out).items() <= by_id(alone).items()
    assert "Traceback" not in run.stderr.read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--replicas", "0"], "--replicas '0'; expected a whole number of at least 1, or auto;"),
        (["--replicas", "two"], "--replicas 'two'; expected a whole number of at least 1, or auto;"),
        (["--replicas", "2", "--device", "cuda:1"], "--device cuda:1 with several replicas; expected each replica on"),
        (["--batch-invariant"], "--batch-invariant with --engine scripted; expected vllm, which has such kernels;"),
    ],
)
def test_replicas_that_cannot_be_are_refused(
    options: list[str], told: str, problems: Path, tmp_path: Path, trd: Trd
) -> None:
    done = trd("sample", "-m", "scripted", "-p", problems, "--out", tmp_path / "out", *options)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"trd sample: error: {told}")
    assert not (tmp_path / "out").exists()


def test_an_engine_of_servers_has_no_replicas(problems: Path, trd: Trd) -> None:
    command = (
        "sample",
        "-m",
        "smollm2-135m",
        "-p",
        problems,
        "--engine",
        "openai",
        "--base-url",
        "http://localhost/v1",
    )
    done = trd(*command, "--replicas", 2)
    assert done.exit_code == 1
    assert "--replicas 2 with --engine openai; expected one engine that asks the servers" in done.stderr


def test_automatic_replicas_without_a_gpu_are_one_engine(problems: Path, alone: Path, tmp_path: Path, ok: Trd) -> None:
    ok("sample", "-m", "scripted", "-p", problems, "-n", 3, "--replicas", "auto", "--out", tmp_path)
    assert by_id(tmp_path) == by_id(alone)
    assert "replicas" not in json.loads((tmp_path / "sessions.jsonl").read_text())


def test_the_commands_of_the_manual_for_one_machine_make_the_same_rows(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ok: Trd
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(problems, "train.parquet")
    commands = [line for line in lines() if line.startswith("trd ") and "--ray" not in line and "status" not in line]
    one, several, refine = map(in_small, commands)
    ok(*one)
    rows = by_id(Path("runs/y_o"))
    shutil.rmtree("runs/y_o")
    ok(*several)
    assert "--replicas" in several
    assert by_id(Path("runs/y_o")) == rows
    ok(*refine)
    assert len(by_id(Path("runs/y_r"))) == len(rows)
    shutil.rmtree("runs/y_o")
    command, tasks = of_the_array()
    for task in range(1, tasks + 1):
        ok(*in_small(command.replace("$SLURM_ARRAY_TASK_ID", str(task)).replace("--replicas auto", "")))
    [status] = [line for line in lines() if line.startswith("trd status ")]
    ok(*in_small(status))
    assert by_id(Path("runs/y_o")) == rows


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://localhost:10001", "here"])
def test_an_address_without_a_cluster_is_refused_at_once(
    address: str, problems: Path, tmp_path: Path, trd: Trd
) -> None:
    done = trd("sample", "-m", "scripted", "-p", problems, "--ray", address, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert f"error: no Ray cluster at {address}: " in done.stderr
    assert "start one by `ray start --head`" in done.stderr


def test_without_ray_a_command_tells_how_to_install_it(problems: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_RAY)
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "trd_cli", "sample", "-m", "scripted", "-p", str(problems), "--ray", "auto"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        'trd sample: error: --ray auto, but ray is not installed; expected Ray; pip install "trd-cli[ray]"\n'
    )
