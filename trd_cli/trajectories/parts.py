"""The parts of a set that the tasks of a job array make beside each other: the names of their files, and their locks.

A file of part 2 of 5 has `-2of5` in its name: `shard-2of5-00000.parquet`, `run-2of5.json`, `sessions-2of5.jsonl`.
A lock of a part keeps out the same part. It also keeps out the whole, and parts of another number, because these share
its rows. `.gate` is held for moments: by a process that takes a lock, or writes what all parts share.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trd_cli.atomic import sweep
from trd_cli.errors import ResumeRefused
from trd_cli.locks import awaited, hold, is_held
from trd_cli.records import Part

LOCK = ".lock"
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def named(name: str, part: Part | None) -> str:
    """Return a file's name for a part, `run.json` → `run-2of5.json` and `.lock` → `.lock-2of5`; None: as it is."""
    if part is None:
        return name
    stem, dot, suffix = name.rpartition(".")
    mark = f"-{part.index}of{part.count}"
    return f"{stem}{mark}{dot}{suffix}" if stem else f"{name}{mark}"


def expression(indices: Sequence[int]) -> str:
    """Return numbers in rising order as Slurm's `--array` takes them: [2, 4, 5, 6] → `2,4-6`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def again(command: str, *parts: Part | int | None) -> str:
    """Return the advice to run a command again; where parts are given, for these alone."""
    indices = [part.index if isinstance(part, Part) else part for part in parts if part is not None]
    return f"run its trd {command} again" + (f" as --array={expression(indices)}" if indices else "")


def gate(directory: Path, seconds: float = 60) -> contextlib.AbstractContextManager[None]:
    """Hold the gate of a directory for the length of the block."""
    return awaited(directory / ".gate", seconds)


@contextlib.contextmanager
def locked(directory: Path, name: str, part: Part | None, refusal: ResumeRefused) -> Iterator[None]:
    """Hold the lock `name` of a part or of the whole; to be entered inside the gate.

    Raises `refusal` where another process holds it, the whole, or a part of another number.
    """
    with hold(directory / named(name, part)) as is_ours:
        if not is_ours or any(map(is_held, _locks(directory, name, but=part))):
            raise refusal
        yield


def _locks(directory: Path, name: str, but: Part | None) -> Iterator[Path]:
    """Yield the lock files that may not be held beside that of a part or, for None, of the whole."""
    if but is not None:
        yield directory / name
    for path in directory.glob(f"{name}-*"):
        found = re.fullmatch(rf"{re.escape(name)}-\d+of(\d+)", path.name)
        if found and (but is None or int(found[1]) != but.count):
            yield path


@contextlib.contextmanager
def verdicts_held(directory: Path, part: Part | None = None) -> Iterator[None]:
    """Keep out other processes that replace shards of a set or of a part; one that only adds shards may run beside it.

    Raises ResumeRefused while there is another. A directory where the lock cannot be written takes no shards either.
    """
    refusal = ResumeRefused(
        f"the verdicts in {directory} are being filled in by another process", "one at a time", "wait for it to end"
    )
    with contextlib.ExitStack() as stack:
        try:
            with gate(directory):
                stack.enter_context(locked(directory, ".verify", part, refusal))
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        sweep(directory)
        yield
