"""Stages killed at any moment and run again: the same rows as in an undisturbed run, none lost, none doubled.

The commands run in children forked from one process with the modules loaded, so that the moments of death fall into the
work and not into Python's start. TRD_KILLS sets the number of kills of a test: 20 is the full form.
Not covered: power loss, which only the fsync before each rename guards against.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from support.children import Run, Start, forking, gone, wait_for
from support.sets import by_id, rows_of

from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

KILLS = int(os.environ.get("TRD_KILLS", "6"))
Trd = Callable[..., Result]
Rows = dict[str, Trajectory]

WARM = """
import trd_cli.engines.scripted
from trd_cli.stages import refine, sample, verify
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Yield a function that starts a trd command; end every command that is left."""
    with forking(WARM, tmp_path_factory.mktemp("talk")) as starts:
        yield starts


def files(directory: Path) -> set[tuple[str, int]]:
    """Return the shards that exist; one that is written again counts as another."""
    return {(path.name, path.stat().st_mtime_ns) for path in directory.glob("shard-*.parquet")}


def at_work(run: Run, directory: Path) -> None:
    """Return when one more shard is done than now, or when the command has ended."""
    before = files(directory)
    with contextlib.suppress(ProcessLookupError):
        wait_for(lambda: files(directory) != before or os.kill(run.pid, 0))


def state(directory: Path) -> Rows:
    """Return every row by its id; fail if a shard is not whole."""
    if not directory.is_dir():
        return {}
    return by_id(directory)


def survive(
    start: Start, prepare: Callable[[], Path], command: Callable[[Path], list[object]], seed: int, most: int = KILLS
) -> None:
    """Kill `command` on the directory that `prepare` makes until it is done, and begin anew; `most` kills in all."""
    undisturbed = prepare()
    run, began = start(*command(undisturbed)), time.time_ns()
    assert run.wait() == 0, run.stderr.read_text()
    written = [moment for _, moment in files(undisturbed)]
    startup, work = (min(written) - began) / 1e9, (max(written) - min(written)) / 1e9
    expected, names = state(undisturbed), {path.name for path in undisturbed.iterdir()}
    chance, kills, amid, sessions = random.Random(seed), 0, 0, []
    directory = prepare()
    before = state(directory)
    for attempt in range(10 * most):
        run = start(*command(directory))
        sessions.append(run.pid)
        # The start takes most of the time: every other kill falls into the work after it.
        late = attempt % 2 == 1
        if late:
            at_work(run, directory)
        left = work * sum(before.get(name) != row for name, row in expected.items()) / len(expected)
        time.sleep(chance.uniform(0, left if late else startup + left) if kills < most else 0)
        code = run.kill() if kills < most else run.wait()
        after = state(directory)
        if code == 0:
            assert after == expected
            assert {path.name for path in directory.iterdir()} <= names, "nothing is left over"
            if kills == most:
                break
            directory = prepare()
            before = state(directory)
            continue
        assert code == -signal.SIGKILL, run.stderr.read_text()
        check_progress(before, after, expected)
        kills += 1
        amid += after not in (before, expected)
        before = after
    assert kills == most
    assert amid >= most // 5, "the kills fell into the work"
    assert gone(sessions, 10), "no process outlives its command"


def check_progress(before: Rows, after: Rows, expected: Rows) -> None:
    """Assert that every row is as it was or as it must become, and that finished work is still there."""
    assert before.keys() <= after.keys() <= expected.keys()
    for name, row in after.items():
        assert row in (before.get(name), expected[name])
        assert row == expected[name] or before[name] != expected[name]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    path = tmp_path_factory.mktemp("data") / "p.parquet"
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 1, "--out", path)
    return path


@pytest.fixture(scope="module")
def y_o(problems: Path, ok: Trd) -> Path:
    """Return 24 rollouts, each in a shard of its own."""
    path = problems.parent / "y_o"
    ok("sample", "-m", "scripted", "-p", problems, "-n", 2, "--shard-rows", 1, "--out", path)
    return path


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Return a function that gives a path with no file yet, another one each time."""
    return lambda: tmp_path / f"set-{time.monotonic_ns()}"


# Short rows and a shard for each, so that many kills fall into the writing.
SLOWLY = ("--engine-arg", "delay=0.001", "--shard-rows", 1)


def test_sample_survives_being_killed_at_any_moment(start: Start, problems: Path, fresh: Callable[[], Path]) -> None:
    survive(
        start, fresh, lambda out: ["sample", "-m", "scripted", "-p", problems, "-n", 2, *SLOWLY, "--out", out], seed=1
    )


def test_refine_survives_being_killed_at_any_moment(start: Start, y_o: Path, fresh: Callable[[], Path]) -> None:
    survive(start, fresh, lambda out: ["refine", "--setting", "opsd", y_o, *SLOWLY, "--out", out], seed=2)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return twelve episodes, none of which reaches its goal."""
    path = tmp_path_factory.mktemp("episodes") / "y_o"
    env = ("--env", "scripted:n=12,rooms=6", "--env-workers", 1, "--max-turns", 3, "--engine-arg", "accuracy=0")
    ok("sample", "-m", "scripted", *env, "--out", path)
    return path


def test_replays_of_episodes_survive_being_killed_at_any_moment(
    start: Start, episodes: Path, fresh: Callable[[], Path]
) -> None:
    script = ("--engine-arg", "accuracy=0.4", "--engine-arg", "delay=0.02", "--shard-rows", 1, "--env-workers", 1)
    command = ("refine", "--setting", "opsd", episodes, *script)
    kills = int(os.environ.get("TRD_KILLS", "1"))
    survive(start, fresh, lambda out: [*command, "--out", out], seed=4, most=kills)


def test_verify_survives_being_killed_at_any_moment(start: Start, y_o: Path, fresh: Callable[[], Path]) -> None:
    def prepare() -> Path:
        return Path(shutil.copytree(y_o, fresh()))

    survive(start, prepare, lambda directory: ["verify", "--workers", 1, directory], seed=3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_stage_that_is_interrupted_keeps_its_rows_and_goes_on_from_there(
    number: signal.Signals, start: Start, problems: Path, y_o: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("sample", "-m", "scripted", "-p", problems, "-n", 2, "--engine-arg", "delay=0.05", "--out", out)
    run = start(*command)
    wait_for(lambda: "24 rows" in run.stderr.read_text())
    time.sleep(0.3)
    assert run.kill(number) == 130
    rows = by_id(out)
    assert 0 < len(rows) < 24
    assert len(list_shards(out)) == 1, "rows that fill no shard are kept too"
    assert run.stdout.read_text().splitlines() == [str(path) for path in list_shards(out)]
    assert run.stderr.read_text().splitlines()[-1].startswith("trd sample: error: interrupted; ")
    assert "Traceback" not in run.stderr.read_text()
    run = start(*command)
    assert run.wait() == 0
    assert by_id(out) == by_id(y_o)
    assert run.stdout.read_text().splitlines() == [str(path) for path in list_shards(out)]


# This is one arithmetic operation; a process inside it reacts only to a signal that ends it.
ENDLESS = r"\boxed{9^{9^{9^{9}}}}"


@pytest.fixture
def endless(y_o: Path, tmp_path: Path) -> Path:
    """Return a set whose second shard takes longer to grade than the world lasts."""
    directory = Path(shutil.copytree(y_o, tmp_path / "endless"))
    second = list_shards(directory)[1]
    write_shard(second, [replace(row, response=ENDLESS) for row in read_rows(second)])
    return directory


def graded_one_shard(directory: Path) -> bool:
    return read_rows(list_shards(directory)[0])[0].verdict is not None


def test_an_interrupted_verify_ends_at_once_with_whole_shards(start: Start, endless: Path) -> None:
    run = start("verify", "--workers", 1, "--timeout", 100, endless)
    wait_for(lambda: graded_one_shard(endless))
    began = time.monotonic()
    time.sleep(0.3)
    os.killpg(run.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to all
    assert run.wait() == 130
    assert time.monotonic() - began < 10
    assert gone([run.pid], 5)
    assert [row.verdict is None for row in rows_of(endless)] == [False] + [True] * 23
    assert "Traceback" not in run.stderr.read_text()


def test_a_grader_that_hangs_does_not_outlive_a_killed_verify_for_long(start: Start, endless: Path) -> None:
    run = start("verify", "--workers", 1, "--timeout", 0.5, endless)
    wait_for(lambda: graded_one_shard(endless))
    time.sleep(0.2)
    assert run.kill() == -signal.SIGKILL
    assert gone([run.pid], 10)
