"""The pool of graders gets rows of mathematics in chunks; a row's verdict does not depend on its neighbours.

Workers may be killed from outside at any moment; that costs a row at most. Not covered: a worker that is stopped while
it starts is given a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from click.testing import Result
from support.children import start_child
from support.sets import by_id

from trd_cli import keeper
from trd_cli.errors import InputError
from trd_cli.graders.base import Question
from trd_cli.graders.options import GraderOptions
from trd_cli.graders.pool import GraderPool

Trd = Callable[..., Result]

# Takes longer than the world lasts, in steps short enough to end at once.
ENDLESS = r"\boxed{\sum_{k=1}^{10^9} \frac{1}{k^k}}"
NO_TESTS = Question("code", "```python\nprint(1)\n```", None)


def question(response: str, reference: str) -> Question:
    return Question("math", response, reference)


def numbers(count: int) -> list[Question]:
    """Return questions of which every third is wrong."""
    return [question(rf"\boxed{{{n + (n % 3 == 0)}}}", str(n)) for n in range(count)]


def verdicts(questions: list[Question], workers: int = 1, timeout: float = 10.0) -> list[str]:
    with GraderPool(GraderOptions(workers=workers, timeout=timeout)) as pool:
        return [grade.verdict for grade in pool.grade(questions)]


def test_many_rows_are_graded_each_in_its_place() -> None:
    assert verdicts(numbers(200)) == verdicts(numbers(200), workers=3) == expected(200)


def test_rows_beside_one_that_hangs_keep_their_verdicts() -> None:
    rows = numbers(40)
    rows[17] = question(ENDLESS, "12")
    expected = ["correct" if n % 3 else "incorrect" for n in range(40)]
    expected[17] = "timeout"
    assert verdicts(rows, timeout=1.0) == expected


def test_rows_that_hang_in_different_chunks_time_out_and_no_other_row_does() -> None:
    rows = numbers(64)
    for hanging in (3, 20, 60):
        rows[hanging] = question(ENDLESS, "12")
    found = verdicts(rows, workers=3, timeout=2.0)
    assert [n for n, verdict in enumerate(found) if verdict == "timeout"] == [3, 20, 60]


def test_rows_of_both_tasks_keep_their_order() -> None:
    rows = numbers(30)
    rows[10:10] = [NO_TESTS, NO_TESTS]
    expected = ["correct" if n % 3 else "incorrect" for n in range(30)]
    expected[10:10] = ["error", "error"]
    assert verdicts(rows, workers=2) == expected


def test_questions_are_taken_as_the_workers_have_room_for_them() -> None:
    taken = 0

    def asked() -> Iterator[Question]:
        nonlocal taken
        for each in numbers(900):
            taken += 1
            yield each

    with GraderPool(GraderOptions(workers=1)) as pool:
        ahead = [taken - graded for graded, _ in enumerate(pool.grade(asked()))]
    assert (len(ahead), taken) == (900, 900)
    assert max(ahead) < 450


def test_a_temporary_directory_with_too_long_a_path_is_one_line(rollouts: Path, tmp_path: Path) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "trd_cli", "verify", rollouts],
        env=os.environ | {"TMPDIR": str(long)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "set TMPDIR to another" in line


def expected(count: int) -> list[str]:
    return ["correct" if n % 3 else "incorrect" for n in range(count)]


def servers(of: int | None = None) -> list[psutil.Process]:
    """Return the processes below `of`, or below this one, that workers are forked from."""
    with suppress(psutil.NoSuchProcess):
        return [p for p in psutil.Process(of).children() if "multiprocessing.forkserver" in " ".join(cmdline(p))]
    return []


def cmdline(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def workers(of: int | None = None) -> list[psutil.Process]:
    found = []
    for server in servers(of):
        with suppress(psutil.NoSuchProcess):
            found += [p for p in server.children() if p.status() != psutil.STATUS_ZOMBIE]
    return found


@contextmanager
def killing(victims: int | None, delay: float, of: int | None = None) -> Iterator[list[int]]:
    """Kill every worker in the block `delay` seconds after it appeared, until there were `victims` (None: no end)."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        seen: dict[int, float] = {}
        while not ended.is_set() and (victims is None or len(killed) < victims):
            for worker in workers(of):
                since = seen.setdefault(worker.pid, time.monotonic())
                if time.monotonic() - since >= delay and worker.pid not in killed:
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
                        killed.append(worker.pid)
            time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def are_gone(pids: list[int]) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_a_worker_that_is_killed_in_its_first_second_costs_no_row(delay: float) -> None:
    with killing(2, delay), GraderPool(GraderOptions(workers=2)) as pool:
        assert [grade.verdict for grade in pool.grade(numbers(30))] == expected(30)
    assert workers() == []


def test_workers_that_are_killed_between_two_calls_cost_nothing() -> None:
    with GraderPool(GraderOptions(workers=2)) as pool:
        for _ in range(3):
            assert [grade.verdict for grade in pool.grade(numbers(40))] == expected(40)
            for worker in workers():
                worker.kill()


def test_the_server_that_workers_come_from_may_be_killed_before_rows_are_graded_and_meanwhile() -> None:
    with GraderPool(GraderOptions(workers=2)) as pool:
        for moment in (0.0, 0.3):
            for server in servers():
                server.kill()
            later = threading.Timer(moment, lambda: [server.kill() for server in servers()])
            later.start()
            assert [grade.verdict for grade in pool.grade(numbers(150))] == expected(150)
            later.join()
        last = workers()
    assert are_gone([worker.pid for worker in last])


class Deadly(Question):
    """A question that ends the process that reads it."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_row_that_always_ends_its_worker_is_an_error_and_the_others_keep_their_verdicts() -> None:
    rows = numbers(40)
    rows[17] = Deadly("math", "", "12")
    with GraderPool(GraderOptions(workers=2)) as pool:
        grades = list(pool.grade(rows))
    assert (grades[17].verdict, grades[17].detail) == ("error", "the grader's process died (exit code -9)")
    assert [grade.verdict for n, grade in enumerate(grades) if n != 17] == expected(40)[:17] + expected(40)[18:]


def test_workers_that_all_die_while_they_start_end_in_one_line() -> None:
    with (
        killing(None, 0.0) as killed,
        pytest.raises(InputError, match=r"do not start.*died \(exit code -9\)") as refused,
        GraderPool(GraderOptions(workers=1)) as pool,
    ):
        list(pool.grade(numbers(8)))
    assert "\n" not in str(refused.value)
    assert len(killed) <= 10
    assert workers() == []


def test_a_worker_that_is_stopped_while_it_has_no_row_is_replaced() -> None:
    with GraderPool(GraderOptions(workers=2, timeout=2.0)) as pool:
        assert [grade.verdict for grade in pool.grade(numbers(40))] == expected(40)
        for worker in workers():
            worker.suspend()
        assert [grade.verdict for grade in pool.grade(numbers(40))] == expected(40)
    assert workers() == []


@pytest.fixture
def kept() -> Iterator[keeper.Keeper]:
    """Make this process keep its graders while a test runs."""
    yield keeper.begin()
    keeper.end()


def pids() -> set[int]:
    return {worker.pid for worker in workers()}


def test_a_process_of_several_commands_keeps_its_workers_until_it_ends(kept: keeper.Keeper) -> None:
    assert verdicts(numbers(40), workers=2) == expected(40)
    first = pids()
    assert len(first) == 2
    # Limits of time are of the work and not of the worker.
    assert verdicts(numbers(40), workers=2, timeout=5.0) == expected(40)
    kept.rest()
    assert pids() == first, "the workers stay, also while GPUs are for others"
    workers()[0].kill()
    rows = numbers(40)
    rows[17] = question(ENDLESS, "12")
    assert verdicts(rows, workers=2, timeout=1.0) == [*expected(40)[:17], "timeout", *expected(40)[18:]]
    assert verdicts(numbers(40), workers=1) == expected(40)
    last = pids()
    assert len(last) == 1, "another number of workers is another pool"
    assert last.isdisjoint(first)
    keeper.end()
    assert are_gone([*first, *last])


def test_workers_are_not_kept_after_an_exception_or_with_work_left_undone(kept: keeper.Keeper) -> None:
    def interrupted() -> Iterator[Question]:
        yield from numbers(200)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), GraderPool(GraderOptions(workers=1)) as pool:
        list(pool.grade(interrupted()))
    assert kept.take("graders") is None
    rows = numbers(100)
    rows[80] = question(ENDLESS, "12")
    with GraderPool(GraderOptions(workers=1, timeout=1.0)) as pool:
        next(pool.grade(rows))
    assert kept.take("graders") is None
    assert are_gone(list(pids()))


def test_too_little_memory_to_load_the_graders_is_one_line(trd: Trd, rollouts: Path) -> None:
    result = trd("verify", rollouts, "--memory", 0.01, "--workers", 1)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert "MemoryError" in line
    assert "--memory" in line


def test_a_verify_whose_first_worker_is_killed_gives_the_verdicts_of_one_that_is_left_alone(
    ok: Trd, rollouts: Path, tmp_path: Path
) -> None:
    ok("verify", rollouts, "--out", tmp_path / "calm")
    process = start_child(
        [sys.executable, "-m", "trd_cli", "verify", str(rollouts), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with killing(1, 0.05, process.pid) as killed:  # two may meet one row, which is an error then
        ours = [process.pid]
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                ours += [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
            time.sleep(0.02)
    said = process.stderr.read()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert killed
    assert by_id(rollouts) == by_id(tmp_path / "calm")
    assert are_gone(ours)
