"""Grade HumanEval+ and MBPP+ as EvalPlus does: its sanitiser, inputs, limits and comparison (package evalplus).

EvalPlus runs a program and its comparison in one process. Here EvalPlus's own `unsafe_execute` compares in a grader's
process, and the function it calls is a stand-in that asks the program in its sandbox. So its time limits, special cases
and tolerances hold unchanged, and the program never meets an expected result.

Statuses are EvalPlus's: pass, fail, timeout. As in its own runner, a task's `base` and `plus` inputs are two runs, and
each ends at its first failure. Expected results and limits come from the reference solution, which runs once a process;
its seconds are those of the processor.

Differences. Limits are by the clock, or on a busy machine by the CPU time of the program (`inside/codec.py`). A program
that the sanitiser cannot read runs as it is; so does one of more than `MAX_SANITISED` lines or
`MAX_SANITISED_CHARACTERS`, since the sanitiser's time grows with the square of the lines. Results travel as plain
values, so that other types, which EvalPlus would compare by their own `==`, are a failure.
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
# Memory of the process that compares, in bytes: values may be large on both sides.
_MEMORY = 16 << 30
# A row's worker is killed after these seconds: two runs of 62 s at most, sanitising, and time for a busy machine.
SECONDS = 400.0
PASS, FAIL, TIMEOUT = "pass", "fail", "timeout"
MAX_SANITISED, MAX_SANITISED_CHARACTERS = 300, 30_000
PARTS = ("base", "plus")
# The detail of a row begins with this if it failed the plus tests alone.
BASE_PASSED = f"base {PASS}"
# The stand-in of the program that is graded now.
candidate: Any = None


def sanitise(source: str, entry_point: str) -> str:
    """Clean up a program as EvalPlus does: imports and code that the function needs stay, nothing else."""
    from evalplus.sanitize import sanitize

    if source.count("\n") > MAX_SANITISED or len(source) > MAX_SANITISED_CHARACTERS:
        return source
    try:
        return sanitize(source, entry_point)
    except (RecursionError, MemoryError, ValueError):
        return source


@dataclass(frozen=True)
class _Run:
    """One of a task's two runs: the inputs, and for each the reference's result and the program's limit in seconds."""

    dataset: str
    task: Mapping[str, Any]
    inputs: list[Any]
    expected: list[Any]
    seconds: list[float]

    @property
    def in_all(self) -> float:
        """Return the limit in seconds of EvalPlus's untrusted_check."""
        return min(60, sum(self.seconds)) + 2


def check(spec: Mapping[str, Any], program: str, level: Level, memory: int) -> dict[str, str]:
    """Return EvalPlus's status of a sanitised program on the task's base and plus inputs; `memory` in bytes.

    Raises SandboxError if the sandbox failed or the task is not the one the row was made with.
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
        # Each run loads the program's definitions again; after a failed run it also needs a new sandbox.
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
    """Return the reference's results and seconds by input; cached because the samples of a task follow each other.

    They are made as in EvalPlus's `trusted_exec`, but the seconds are those of the processor, so that a busy machine
    gives no program more time.
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
    """Return the status that EvalPlus's own comparison reaches."""
    global candidate
    from evalplus.eval import unsafe_execute

    # EvalPlus would bound the memory of this process for good, since it expects the program in it.
    os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = "-1"
    name, clock = run.task["entry_point"], sandbox.clock(run.in_all)
    status, over_time = SimpleNamespace(value=None), False
    values = sandbox.calls(name, run.inputs, run.seconds)

    def candidate(*args: Any) -> Any:
        nonlocal over_time
        over_time = clock.left() <= 0
        if over_time:
            raise TimeoutError
        # EvalPlus has just set its alarm, but the sandbox's clock keeps the limit. EvalPlus takes the inputs in order.
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
    if status.value is None:
        raise SandboxError("EvalPlus did not come to compare: it could not make its temporary directory")
    # EvalPlus stops at the first failure, so its status is enough. (It counts no result at all for HumanEval/32, and
    # untrusted_check of evalplus 0.3.1 therefore fails every solution, the reference too.)
    return PASS if status.value == 0 else FAIL


@contextmanager
def _restored() -> Iterator[None]:
    """Undo the changes that EvalPlus makes to the process it compares in (`reliability_guard`, `time_limit`).

    Its directory is made in one of ours, because EvalPlus cannot remove a file that a program puts there.
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
    with suppress(ValueError, OSError):  # macOS has no working limit
        resource.setrlimit(
            resource.RLIMIT_AS, (_MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard), hard)
        )
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
