"""Run one command after another in this process, each as it would run in a process of its own.

    python -m trd_cli.warm

`trd run` starts it and keeps it for stages of one kind. Standard input brings orders and standard output takes answers,
one JSON object a line:

    {"argv": [words after trd], "log": a file to which standard error is appended, "environment": {more variables}}
    {"exit_code": …, "peak": bytes, 0 where the kernel does not tell the peak of one command}

    {"rest": true}    the GPU is for others: what is kept leaves it, or is closed
    {"rested": true}

The process ends with its input, with its run, on SIGTERM, and after a command that did not end well. A bug ends it with
a traceback and exit code 1, without an answer.

Between two commands everything that one of them may have changed in the process is as before the first: see `_Start`.
What is left as it is: the settings that a module makes once, when it is loaded, and the number of torch's threads,
which no command changes in a process that works alone.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from trd_cli import keeper
from trd_cli.cli import prepare, run_words
from trd_cli.errors import Interrupted
from trd_cli.freeing import forget_launch, free_unreferenced
from trd_cli.interrupts import raise_when_told

_PROCESS = Path("/proc/self")
_PEAK_IS_NOW = "5"  # for clear_refs, proc(5)
_PEAK = re.compile(r"VmHWM:\s*(\d+) kB")


def main() -> None:
    """Carry out orders until there is a reason to end."""
    prepare()
    orders, answers = _taken_away(0, os.O_RDONLY), _taken_away(1, os.O_WRONLY)
    raise_when_told()
    start = _Start()
    keeper.begin()
    try:
        for order in _orders(orders):
            answer = _rested() if "rest" in order else _carried_out(order)
            try:
                os.write(answers, json.dumps(answer).encode() + b"\n")
            except BrokenPipeError:  # the run has ended
                return
            if answer.get("exit_code"):
                return
            start.again()  # while other stages run
    except KeyboardInterrupt:  # between two commands
        raise SystemExit(Interrupted.exit_code) from None
    finally:
        keeper.end()


def _rested() -> dict[str, bool]:
    keeper.begin().rest()
    return {"rested": True}


def _taken_away(descriptor: int, flags: int) -> int:
    """Return another number for a standard stream, which becomes the null device for commands and their children."""
    own, nothing = os.dup(descriptor), os.open(os.devnull, flags)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    return own


def _orders(descriptor: int) -> Iterator[Mapping[str, Any]]:
    with open(descriptor, "rb") as file:
        yield from map(json.loads, file)


def _carried_out(order: Mapping[str, Any]) -> dict[str, int]:
    """Run the command of an order and return the answer."""
    os.environ.update(order["environment"])
    sys.argv = ["trd", *order["argv"]]
    _append_errors_to(order["log"])
    knows_peak = _forget_peak()
    try:
        run_words(order["argv"])
    except SystemExit as end:
        sys.stderr.flush()
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return {"exit_code": code, "peak": _peak() if knows_peak else 0}


def _append_errors_to(log: str) -> None:
    """Send standard error to a file, also for those that hold `sys.stderr` since an earlier command."""
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)


def _forget_peak() -> bool:
    """Begin a new peak of resident memory. Return False where the kernel has no way to."""
    try:
        (_PROCESS / "clear_refs").write_text(_PEAK_IS_NOW)
    except OSError:
        return False
    return True


def _peak() -> int:
    """Return the peak of resident memory in bytes."""
    found = _PEAK.search((_PROCESS / "status").read_text())
    return int(found[1]) * 1024 if found else 0


class _Start:
    """The state of the process before its first command."""

    def __init__(self) -> None:
        self._environment, self._directory = dict(os.environ), os.getcwd()
        self._signals = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def again(self) -> None:
        """Put everything back that a command may have changed."""
        for name in os.environ.keys() - self._environment.keys():
            del os.environ[name]
        os.environ.update(self._environment)
        os.chdir(self._directory)
        for number, handler in self._signals.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        _forget_results()
        _forget_warnings()
        random.seed()
        gc.unfreeze()
        free_unreferenced()
        _reset_libraries()


def _forget_results() -> None:
    """Empty the caches of our functions: files, models and directories may be others by now."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trd_cli":
            for value in vars(module).values():
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()


def _forget_warnings() -> None:
    """Let each command give a warning once, as in a process of its own."""
    with warnings.catch_warnings():  # entering it makes Python forget which warnings were shown
        pass


def _reset_libraries() -> None:
    """Give the libraries that are loaded the settings that they have when they are loaded."""
    if torch := sys.modules.get("torch"):
        _reset_torch(torch)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    forget_launch()


def _reset_torch(torch: ModuleType) -> None:
    torch.seed()  # as unforeseeable as in a new process
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
