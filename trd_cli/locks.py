"""Locks on files, held for as long as the file is open.

NFS without its lock daemon and Lustre without `-o flock` have none. There a lock is the name of its holder in the file.
It keeps out other processes of the same machine, but for one that starts in the same instant. Processes of other
machines cannot be checked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trd_cli.errors import ResumeRefused

if TYPE_CHECKING:
    import psutil

# Seconds after which a look at a lock has ended.
_LOOK = 0.02
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


def flock(file: IO[Any]) -> bool | None:
    """Lock an open file; return True, or False where another process holds it, or None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return None
    return True


@contextlib.contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Hold the lock file at `path` for the length of the block; the block gets False where another process holds it."""
    with open(path, "a+", encoding="utf-8") as file:
        is_held = take(file)
        if not is_held:  # another process may just be looking, as `is_held` does
            time.sleep(_LOOK)
            is_held = take(file)
        try:
            yield is_held
        finally:
            if is_held:
                _give_back(file)


@contextlib.contextmanager
def awaited(path: Path, seconds: float = 60) -> Iterator[None]:
    """Hold the lock file at `path` for the length of the block, after those that hold it now.

    Raises ResumeRefused where that takes more than so many seconds.
    """
    until = time.monotonic() + seconds
    with open(path, "a+", encoding="utf-8") as file:
        while not take(file):
            if time.monotonic() > until:
                raise ResumeRefused(
                    f"{path} has been held by another process for {seconds:g} seconds", "its turn", "end that process"
                )
            time.sleep(0.02)
        try:
            yield
        finally:
            _give_back(file)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file at `path`; it is not taken for longer than this look."""
    with contextlib.suppress(OSError), open(path, "r+", encoding="utf-8") as file:
        locked = flock(file)
        return holder(file) is not None if locked is None else not locked
    return False


def take(file: IO[str]) -> bool:
    """Lock a file that is open for reading and writing, by name where there are no locks.

    Return False where another process holds it.
    """
    locked = flock(file)
    if locked is not None:
        return locked
    _say_that_there_are_none(str(Path(file.name).parent))
    if (other := holder(file)) is not None and other.pid != os.getpid():
        return False
    sign(file, os.getpid())
    return True


def _give_back(file: IO[str]) -> None:
    with contextlib.suppress(OSError):
        if os.fstat(file.fileno()).st_size:  # signed
            file.truncate(0)


def sign(file: IO[str], pid: int, more: Mapping[str, Any] | None = None) -> None:
    """Write the process that holds a lock file into it."""
    import psutil

    with contextlib.suppress(psutil.Error):
        who = {"host": platform.node(), "pid": pid, "created": psutil.Process(pid).create_time()}
        file.seek(0)
        file.truncate()
        file.write(json.dumps({**(more or {}), **who}))
        file.flush()


def signature(file: IO[str]) -> dict[str, Any]:
    """Return the record that `sign` has written into a lock file, {} where it holds none."""
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def holder(file: IO[str]) -> psutil.Process | None:
    """Return the process that signed a lock file, None where it has ended or is of another machine."""
    import psutil

    who = signature(file)
    if not {"pid", "created"} <= who.keys() or who.get("host", platform.node()) != platform.node():
        return None
    try:
        process = psutil.Process(who["pid"])
        return process if abs(process.create_time() - who["created"]) < 1 else None
    except (psutil.Error, TypeError, ValueError):
        return None


@functools.cache
def _say_that_there_are_none(directory: str) -> None:
    logging.getLogger(__name__).warning(
        "%s is on a file system without locks: make sure that no other machine writes there at the same time", directory
    )
