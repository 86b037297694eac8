"""The two locks of a run directory.

.lock    held by trd run itself: one at a time in a directory
.stage   held by the stage that runs, and so by one whose trd run was killed: the next trd run waits for its end, or ends it,
         before it starts any other
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from trd_cli.atomic import make_directory
from trd_cli.errors import ResumeRefused
from trd_cli.locks import hold, holder, signature, take

# Seconds a stage has to end its step and write what it has finished, once it is told to stop.
PATIENCE = 600.0
_GRACE = 5.0  # seconds for what ends by itself


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory; raises ResumeRefused while another trd run has it."""
    make_directory(directory)
    with hold(directory / ".lock") as is_ours:
        if not is_ours:
            raise ResumeRefused(f"{directory} is in use by another trd run", "one at a time", "wait for it to end")
        yield


@contextlib.contextmanager
def stage_lock(directory: Path, note: Callable[[str], None]) -> Iterator[IO[str]]:
    """The file that every stage holds while it runs; a stage left by a run that was killed is ended first."""
    with open(directory / ".stage", "a+", encoding="utf-8") as file:
        if not take(file):
            _end_left_behind(file, note)
        yield file


def _end_left_behind(file: IO[str], note: Callable[[str], None]) -> None:
    """Tell a stage to stop, unless the death of its run has told it, and wait until it has written what it has
    finished.
    """
    import psutil

    left, process = signature(file), holder(file)
    note(f"waiting for the end of {left.get('node', 'a stage')}, which an earlier run has left behind")
    if process is not None and not left.get("ends_with_run"):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    if _locked_within(file, PATIENCE):
        return
    if process is not None:
        kill_tree(process.pid)
    if not _locked_within(file, _GRACE):
        raise ResumeRefused("a stage of an earlier trd run does not end", "none", "end its processes, then run again")


def _locked_within(file: IO[str], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not take(file):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def kill_tree(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                each.kill()
