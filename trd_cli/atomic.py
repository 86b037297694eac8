"""Write files that are there whole or not at all: beside their place, made durable, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote_to_bytes

from trd_cli.errors import InputError, first_line
from trd_cli.locks import flock
from trd_cli.records import well_formed

# Errors of CIFS and many FUSE file systems, which cannot make a directory durable.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EACCES}

_ROOM = ("room on the disk", "free some space and run the same command again")
_PERMISSION = ("permission", "change it, or name another place")
_REMOVED = ("file and directory to be there", "see what has removed them, and run the same command again")
_ANSWER = ("a file system that answers", "see to the disk or its server, and run the same command again")
# For each error of the operating system, what was expected and how to mend it.
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _PERMISSION),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), _REMOVED),
    **dict.fromkeys((errno.ESTALE, errno.EIO, errno.ETIMEDOUT), _ANSWER),
    errno.EROFS: ("a file system that can be written to", "name another place, or mount it for writing"),
    errno.EMFILE: ("fewer open files", "raise the limit (ulimit -n) and run the same command again"),
}
# Errors of the system that a user cannot cause.
_OUR_MISTAKES = (errno.EBADF, errno.EFAULT, errno.ECHILD, errno.ENOTSOCK)
_OTHERWISE = ("the system to allow it", "mend that and run the same command again")
_URI = "file://"
_SCHEME = re.compile(r"[a-z][a-z0-9]+:")
# Texts of pipes, which can be read only once, by path, device and inode.
_read: dict[tuple[str, int, int], str] = {}


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write to, which replaces `path` when the block ends well and is discarded otherwise.

    Raises InputError when the disk refuses, and where `path` is a device, a pipe or a directory.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file", "one, or nothing yet", "name another place")
    try:
        with temporary(path) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Renamed while it is locked: no other process may take it for a leftover.
            os.replace(file.name, path)
        sync_directory(path.parent)
    except OSError as error:
        raise refused(path, error) from None


@contextmanager
def temporary(path: Path, mode: str = "xb") -> Iterator[IO[bytes]]:
    """Open a new file beside `path`; remove it after the block unless it was renamed.

    Its name is of this process alone; its lock shows that it is being written.
    """
    sweep(path.parent, path.name)
    while True:
        with open(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"), mode) as file:
            # A sweep may have removed the file before it was locked.
            if flock(file) is False or not os.path.exists(file.name):
                continue
            try:
                yield file
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
            return


def sweep(directory: Path, name: str | None = None) -> None:
    """Remove half-written files of killed processes from a directory, of one name or of all, but none being written."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.tmp" if name else r"\..*\.tmp")
    # A leftover that cannot be removed does no harm.
    with contextlib.suppress(OSError):
        for leftover in filter(pattern.fullmatch, os.listdir(directory)):
            with contextlib.suppress(OSError), open(directory / leftover, "r+b") as file:
                if flock(file):
                    os.unlink(directory / leftover)


def refused(path: Path, error: Exception) -> InputError:
    """Return the error for a file that the disk does not take."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    # Any other exception is how a library reports a full disk.
    expected, mend = _advice(error) if isinstance(error, OSError) else _ROOM
    return InputError(f"could not write {path}: {reason}", expected, mend)


def of_the_system(error: OSError) -> InputError:
    """Return the one line for an error of the operating system that no nearer code has explained."""
    reason = error.strerror or first_line(error)
    names = " → ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, os.PathLike))
    )
    return InputError(f"{names}: {reason}" if names else reason, *_advice(error))


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error of the operating system that leaves the block into the one line of `of_the_system`."""
    try:
        yield
    except OSError as error:
        if error.errno in _OUR_MISTAKES:  # a command would take an OSError for one of standard output
            raise AssertionError(f"a wrong call of the system: {error}") from error
        raise of_the_system(error) from None


def _advice(error: OSError) -> tuple[str, str]:
    if error.errno is None:  # of a library, as for a model directory without a file
        return "files that can be used", "mend or replace them, and run the same command again"
    return _ADVICE.get(error.errno, _OTHERWISE)


def has_text_name(path: Path) -> bool:
    """Return whether a path is UTF-8 from the root on; libraries written in Rust, and JSON, take no other."""
    whole = str(path.resolve())
    return well_formed(whole) == whole


def as_text(path: Path) -> str:
    """Return the absolute path as text for a record; one that is not UTF-8 becomes a `file:` URI. See `from_text`."""
    return str(path.resolve()) if has_text_name(path) else path.resolve().as_uri()


def from_text(text: str) -> Path:
    """Return the path that `as_text` has written."""
    is_uri = text.startswith(_URI)
    return Path(os.fsdecode(unquote_to_bytes(text.removeprefix(_URI))) if is_uri else text)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file."""
    write_bytes(path, well_formed(text).encode("utf-8"))


def read_text_once(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    The text of a pipe, as of `<(...)`, is kept, as it can be read only once.
    """
    if path.is_file():
        return path.read_text(encoding="utf-8-sig")
    status = os.stat(path)
    pipe = (str(path), status.st_dev, status.st_ino)
    if pipe not in _read:
        _read[pipe] = path.read_text(encoding="utf-8-sig")
    return _read[pipe]


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a small file."""
    with replacing(path) as file:
        file.write(content)


def make_directory(path: Path) -> None:
    """Make a directory for output, with those above it; raises InputError where that fails."""
    check_here(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {path}: {error.strerror}", "a directory", "give another --out") from None


def check_here(path: Path) -> None:
    """Raise InputError for a place that begins with a scheme, as hf://owner/name: nothing can be written there."""
    if path.parts and _SCHEME.fullmatch(path.parts[0]):
        raise InputError(f"{path.parts[0]}//{'/'.join(path.parts[1:])}", "a place on this machine", "give a path")


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable where its file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
