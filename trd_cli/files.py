"""Files that are there whole or not at all: written beside their place, made durable, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trd_cli.errors import InputError, first_line


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the block ends well; else that is as it was.

    Raises InputError when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise refused(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def refused(path: Path, error: Exception) -> InputError:
    """What is said when the disk does not take a file."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return InputError(
        f"could not write {path}: {reason}",
        "room and permission to write",
        "free some space and run the same command again",
    )


def write_text(path: Path, text: str) -> None:
    """Replace a small text file."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a small file."""
    with replacing(path) as file:
        file.write(content)


def make_directory(path: Path) -> None:
    """A directory for output, with those above it; InputError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make {path}: {error.strerror}", "a directory", "give another --out"
        ) from None


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
