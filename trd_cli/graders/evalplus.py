"""HumanEval+ and MBPP+ as EvalPlus grades them: its sanitiser, its inputs, its limits and its comparison (package evalplus).

EvalPlus runs a program and its comparison in one process. Here the comparison is EvalPlus's own `unsafe_execute`, in a process of
ours, and what it calls is a stand-in that asks the program in its sandbox: so its time limits, its special cases and its tolerances
hold as they are, and the program never meets an expected result.

Statuses are EvalPlus's: pass, fail, timeout. As in its own runner a task's `base` and `plus` inputs are two runs, and each ends at its
first failure. Expected results and limits come from the reference solution, run once a process; its seconds are those of the processor.

Not the same: limits are by the clock, and on a busy machine by the CPU time a program got (`inside.codec.Clock`); a program of more than
`MAX_SANITISED` lines or `MAX_SANITISED_CHARACTERS` is run as it is, since the sanitiser's time grows with the square of the lines, as is
one that it cannot read; results travel as plain values, so that a numpy array, which EvalPlus would compare by its own means, is a
failure.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from trd_cli.datasets.evalplus import task_sha256, tasks
from trd_cli.graders.inside import codec
from trd_cli.graders.sandbox import Ended, Flooded, Level, Limits, OutOfTime, Sandbox, SandboxError

NAME, RULES = "evalplus", 2
_JUDGE_MEMORY = 16 << 30
# After which a row's worker is killed: two runs of 62 s at most, sanitising, and what a busy machine adds.
SECONDS = 400.0
PASS, FAIL, TIMEOUT = "pass", "fail", "timeout"
MAX_SANITISED, MAX_SANITISED_CHARACTERS = 300, 30_000
PARTS = ("base", "plus")
# How the detail of a row begins that failed the plus tests alone.
BASE_PASSED = f"base {PASS}"
# What the stand-in calls; set in the judging process alone.
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
    with ExitStack() as stack:
        sandbox: Sandbox | None = None
        for part, run in runs.items():
            # A run begins anew with the program's definitions; one that was broken off needs another sandbox too.
            sandbox = sandbox or stack.enter_context(Sandbox(level, limits))
            statuses[part], undisturbed = _status(sandbox, program, run)
            sandbox = sandbox if undisturbed else None
    return statuses


def _run(spec: Mapping[str, Any], task: Mapping[str, Any], part: str) -> _Run:
    from evalplus.config import DEFAULT_GT_TIME_LIMIT_FACTOR, DEFAULT_MIN_TIME_LIMIT

    expected, reference_seconds = _expected(spec["dataset"], spec["version"], spec["task_id"], part)
    seconds = [max(DEFAULT_MIN_TIME_LIMIT, DEFAULT_GT_TIME_LIMIT_FACTOR * t) for t in reference_seconds]
    return _Run(spec["dataset"], task, list(task[f"{part}_input"]), expected, seconds)


@lru_cache(maxsize=4)
def _expected(dataset: str, version: str, task_id: str, part: str) -> tuple[list[Any], list[float]]:
    """The reference's results and seconds, by input. (`lru_cache`: the samples of one task come one after the other.)

    As EvalPlus's `trusted_exec` makes them, but that seconds are those of the processor: a busy machine gives no program more time.
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


def _status(sandbox: Sandbox, program: str, run: _Run) -> tuple[str, bool]:
    """The status, and whether the sandbox waits for the next request as if nothing had been."""
    try:
        loaded = sandbox.ask({"load": program, "prelude": False}, run.in_all)
    except OutOfTime:
        return TIMEOUT, False
    except (Ended, Flooded):
        return FAIL, False
    if "ok" not in loaded:
        return FAIL, True
    status = _judged(sandbox, run)
    return status, status == PASS


def _judged(sandbox: Sandbox, run: _Run) -> str:
    """The status a process of its own comes to: EvalPlus cripples the process in which it compares."""
    result, told = os.pipe()
    child = os.fork()
    if child == 0:
        _judge(told, sandbox, run)
    os.close(told)
    try:
        if not select.select([result], [], [], codec.Clock.PATIENCE * run.in_all)[0]:
            return TIMEOUT
        return {b"0": PASS, b"1": FAIL}.get(os.read(result, 1), TIMEOUT)
    finally:
        os.close(result)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _judge(told: int, sandbox: Sandbox, run: _Run) -> None:
    """In the child: EvalPlus's comparison. Never returns."""
    global candidate
    finish, clock = os._exit, sandbox.clock(run.in_all)
    try:
        from evalplus.eval import unsafe_execute

        # EvalPlus bounds the memory of the program, which is not in here; what is compared may be large on both sides.
        os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(_JUDGE_MEMORY)
        name = run.task["entry_point"]
        status = SimpleNamespace(value=None)
        values = sandbox.calls(name, run.inputs, run.seconds)

        def candidate(*args: Any) -> Any:
            if clock.left() <= 0:
                os.write(told, b"2")
                finish(0)
            # EvalPlus has just set its alarm; the limit is kept by the sandbox's clock. It goes through the inputs in their order.
            signal.setitimer(signal.ITIMER_REAL, 0)
            return next(values)

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
        # It stops at the first failure, so its status says all. (Of HumanEval/32 it counts no result at all, and untrusted_check
        # of evalplus 0.3.1 therefore fails every solution, the reference too.)
        os.write(told, b"0" if status.value == 0 else b"1")
    finally:
        finish(0)
