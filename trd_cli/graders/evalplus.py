"""HumanEval+ and MBPP+ as EvalPlus grades them: its sanitiser, its inputs, its limits and its comparison (package
evalplus).

EvalPlus runs a program and its comparison in one process. Here the comparison is EvalPlus's own `unsafe_execute`, in a
grader's process, and what it calls is a stand-in that asks the program in its sandbox: so its time limits, its special
cases and its tolerances hold as they are, and the program never meets an expected result.

Statuses are EvalPlus's: pass, fail, timeout. As in its own runner a task's `base` and `plus` inputs are two runs, and
each ends at its first failure. Expected results and limits come from the reference solution, run once a process; its
seconds are those of the processor.

Not the same: limits are by the clock, and on a busy machine by the CPU time a program got (`inside/codec.py`); a
program of more than `MAX_SANITISED` lines or `MAX_SANITISED_CHARACTERS` is run as it is, since the sanitiser's time
grows with the square of the lines, as is one that it cannot read; results travel as plain values, so that a numpy
array, which EvalPlus would compare by its own means, is a failure.
"""

from __future__ import annotations

import builtins
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from trd_cli.graders.evalplus_tasks import task_sha256, tasks
from trd_cli.graders.sandbox import Ended, Flooded, Level, Limits, OutOfTime, Sandbox, SandboxError

NAME, RULES = "evalplus", 2
# Of the process that compares: what is compared may be large on both sides.
_MEMORY = 16 << 30
# After which a row's worker is killed: two runs of 62 s at most, sanitising, and what a busy machine adds.
SECONDS = 400.0
PASS, FAIL, TIMEOUT = "pass", "fail", "timeout"
MAX_SANITISED, MAX_SANITISED_CHARACTERS = 300, 30_000
PARTS = ("base", "plus")
# How the detail of a row begins that failed the plus tests alone.
BASE_PASSED = f"base {PASS}"
# The stand-in of the program that is judged now.
candidate: Any = None


def sanitise(source: str, entry_point: str) -> str:
    """EvalPlus's clean-up: imports and what the function needs, nothing that runs by itself."""
    from evalplus.sanitize import sanitize

    if source.count("\n") > MAX_SANITISED or len(source) > MAX_SANITISED_CHARACTERS:
        return source
    try:
        return sanitize(source, entry_point)
    except (RecursionError, MemoryError, ValueError):
        return source


@dataclass(frozen=True)
class _Run:
    """One of a task's two runs: the inputs, and for each the reference's result and the seconds a program may take."""

    dataset: str
    task: Mapping[str, Any]
    inputs: list[Any]
    expected: list[Any]
    seconds: list[float]

    @property
    def in_all(self) -> float:
        """The bound of EvalPlus's untrusted_check."""
        return min(60, sum(self.seconds)) + 2


def check(spec: Mapping[str, Any], program: str, level: Level, memory: int) -> dict[str, str]:
    """EvalPlus's status of a program (sanitised already) on the task's base and plus inputs; `memory` in bytes.

    Raises SandboxError where the sandbox failed or the task is not the one the row was made with.
    """
    task = tasks(spec["dataset"], spec["version"]).get(spec["task_id"])
    if task is None or task_sha256(task) != spec["sha256"]:
        raise SandboxError(
            f"{spec['task_id']} of {spec['dataset']}+ {spec['version']} is not the task this row was made with"
        )
    runs = {part: _run(spec, task, part) for part in PARTS}
    limits = Limits(memory, int(sum(run.in_all for run in runs.values())) + 1)
    statuses: dict[str, str] = {}
    while left := [part for part in PARTS if part not in statuses]:
        # A run begins anew with the program's definitions; after one that failed it needs another sandbox too.
        with Sandbox(level, limits) as sandbox:
            for part in left:
                statuses[part] = _status(sandbox, program, runs[part])
                if statuses[part] != PASS:
                    break
    return statuses


def _run(spec: Mapping[str, Any], task: Mapping[str, Any], part: str) -> _Run:
    from evalplus.config import DEFAULT_GT_TIME_LIMIT_FACTOR, DEFAULT_MIN_TIME_LIMIT

    expected, reference_seconds = _expected(spec["dataset"], spec["version"], spec["task_id"], part)
    seconds = [max(DEFAULT_MIN_TIME_LIMIT, DEFAULT_GT_TIME_LIMIT_FACTOR * t) for t in reference_seconds]
    return _Run(spec["dataset"], task, list(task[f"{part}_input"]), expected, seconds)


@lru_cache(maxsize=4)
def _expected(dataset: str, version: str, task_id: str, part: str) -> tuple[list[Any], list[float]]:
    """The reference's results and seconds, by input. (`lru_cache`: the samples of one task come one after the other.)

    As EvalPlus's `trusted_exec` makes them, but that seconds are those of the processor: a busy machine gives no
    program more time.
    """
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS

    task = tasks(dataset, version)[task_id]
    names: dict[str, Any] = {}
    exec(compile(task["prompt"] + task["canonical_solution"], "<string>", "exec", dont_inherit=True), names)
    reference = names[task["entry_point"]]
    results, seconds = [], []
    for given in task[f"{part}_input"]:
        arguments = deepcopy(given)
        began = time.process_time()
        results.append(reference(*arguments))
        seconds.append(time.process_time() - began)
    if dataset == "mbpp" and task["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS:
        results = [result is not None for result in results]
    return results, seconds


def _status(sandbox: Sandbox, program: str, run: _Run) -> str:
    try:
        loaded = sandbox.ask({"load": program, "prelude": False}, run.in_all)
    except OutOfTime:
        return TIMEOUT
    except (Ended, Flooded):
        return FAIL
    if "ok" not in loaded:
        return FAIL
    return _compared(sandbox, run)


def _compared(sandbox: Sandbox, run: _Run) -> str:
    """Return the status that EvalPlus's own comparison comes to."""
    global candidate
    from evalplus.eval import unsafe_execute

    # It would bound the memory of this process for good, as it expects the program in it.
    os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = "-1"
    name, clock = run.task["entry_point"], sandbox.clock(run.in_all)
    status, over_time = SimpleNamespace(value=None), False
    values = sandbox.calls(name, run.inputs, run.seconds)

    def candidate(*args: Any) -> Any:
        nonlocal over_time
        over_time = clock.left() <= 0
        if over_time:
            raise TimeoutError
        # EvalPlus has just set its alarm; the limit is kept by the sandbox's clock. It goes through the inputs in their
        # order.
        signal.setitimer(signal.ITIMER_REAL, 0)
        return next(values)

    try:
        with _restored(), _bounded_memory():
            unsafe_execute(
                run.dataset,
                name,
                f"import sys\n{name} = sys.modules[{__name__!r}].candidate",
                run.inputs,
                run.expected,
                run.seconds,
                run.task["atol"],
                True,
                status,
                [False] * len(run.expected),
                SimpleNamespace(value=0),
            )
    finally:
        # The last value may be large, and a later row needs its room.
        candidate = None
        values.close()
    if over_time:
        return TIMEOUT
    # It stops at the first failure, so its status says all. (Of HumanEval/32 it counts no result at all, and untrusted_check
    # of evalplus 0.3.1 therefore fails every solution, the reference too.)
    return PASS if status.value == 0 else FAIL


@contextmanager
def _restored() -> Iterator[None]:
    """Give back what EvalPlus takes from the process it compares in (`reliability_guard`, `time_limit`).

    Its empty directory is made in one of ours: it could not remove a file that a program puts there.
    """
    kept = [(vars(module), dict(vars(module))) for module in (os, builtins, shutil, subprocess)]
    modules, handler = dict(sys.modules), signal.getsignal(signal.SIGALRM)
    seconds, began = signal.getitimer(signal.ITIMER_REAL)[0], time.monotonic()
    given, tempfile.tempdir = tempfile.tempdir, tempfile.mkdtemp(prefix="trd-evalplus-")
    try:
        with suppress(TypeError, OSError):  # of its `unlink`, which it has taken away
            yield
    finally:
        for names, before in kept:
            names.update(before)
        for name in [name for name, module in sys.modules.items() if module is None]:
            del sys.modules[name]
        sys.modules.update(modules)
        shutil.rmtree(tempfile.tempdir, ignore_errors=True)
        tempfile.tempdir = given
        signal.signal(signal.SIGALRM, handler)
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds - (time.monotonic() - began)))


@contextmanager
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # macOS has no working one
        resource.setrlimit(
            resource.RLIMIT_AS, (_MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard), hard)
        )
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
