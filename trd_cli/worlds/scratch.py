"""The workers' directory for temporary files."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "trd-worlds-"


@dataclass(frozen=True)
class Scratch:
    """A directory that a pool of workers has made; `mark` is its device and number, which no other directory has."""

    path: Path
    mark: tuple[int, int]

    @classmethod
    def made(cls) -> Scratch:
        """Make a directory and return it."""
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        return cls(path, _mark_of(path))

    def remove(self) -> None:
        """Remove the directory, unless its place has been taken by something that the pool did not make."""
        with suppress(OSError):
            if self.path.name.startswith(_PREFIX) and _mark_of(self.path) == self.mark:
                shutil.rmtree(self.path, ignore_errors=True)


def keep_newest(directory: Path, pattern: str, count: int) -> None:
    """Remove the directories that match the pattern, all but the `count` newest, if a pool made their parent."""
    if not directory.name.startswith(_PREFIX):
        return
    ages: dict[Path, float] = {}
    for path in directory.glob(pattern):
        with suppress(FileNotFoundError):  # another process removes some too
            ages[path] = path.stat().st_mtime
    for path in sorted(ages, key=ages.__getitem__, reverse=True)[count:]:
        shutil.rmtree(path, ignore_errors=True)


def _mark_of(path: Path) -> tuple[int, int]:
    """Return what names a file or directory itself; a link is not followed."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino
