"""Make the standard streams safe: nothing that a shell or a terminal does to them costs a row.

A closed stream becomes the null device. Text that standard error does not take is dropped. Paths go to standard output
as the bytes of their names, whatever the encoding.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

from trd_cli.errors import InputError

_ENCODING_ERRORS = "trd.bytes_or_escapes"
_BOM = codecs.BOM_UTF8
# Why paths for the next command could not be printed; `finish` raises it.
_lost: list[OSError] = []


def settle() -> None:
    """Make the standard streams usable. Call it once, before any file is opened."""
    missing = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in missing:
        # The system gives the lowest free number: the closed stream's, which the next file or socket would have got.
        descriptor = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(descriptor, True)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    codecs.register_error(_ENCODING_ERRORS, _bytes_or_escapes)
    sys.stdout.reconfigure(errors=_ENCODING_ERRORS)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Lossy(sys.stderr.fileno(), "wb", closefd=False)),
        encoding=sys.stderr.encoding,
        errors=_ENCODING_ERRORS,
        line_buffering=True,
    )


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if the locale has another encoding.

    Call it once, before anything is read. Otherwise a command in another locale would read other names, records and
    templates from the same bytes.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or not sys.executable:
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class _Lossy(io.FileIO):
    """Write to a descriptor, and drop what a full disk, a closed pipe or a lost terminal does not take."""

    def write(self, data: memoryview) -> int:
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError:
            return len(data)
        return count


def _bytes_or_escapes(error: UnicodeError) -> tuple[bytes | str, int]:
    """Encode a character that the stream's encoding lacks: escaped, but a byte of a name that was no text as it is."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return letter.encode("ascii", "backslashreplace").decode(), error.start + 1


def lines() -> Iterator[str]:
    """Yield the paths on standard input as they come, one a line; drop byte order marks, outer spaces, empty lines."""
    try:
        for line in sys.stdin.buffer:
            if path := line.removeprefix(_BOM).strip():
                yield os.fsdecode(path)
    except OSError as error:
        raise InputError(
            f"standard input cannot be read: {error.strerror}", "paths, one a line", "name them as arguments"
        ) from None


def hand_over(path: Path) -> OSError | None:
    """Print a path for the next command of a pipe. On failure, give up standard output and return the error."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        _flush()
    except OSError as error:
        _give_up()
        if not isinstance(error, BrokenPipeError):
            _lost.append(error)
        return error
    return None


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Guard a block that prints its result. A reader that closes the pipe is no error.

    Raises InputError where standard output cannot be written.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:
        _give_up()
        if isinstance(error.__context__, SystemExit):  # the block ended with an exit code of its own
            raise error.__context__ from None
    except OSError as error:
        _give_up()
        raise InputError(
            f"standard output cannot be written: {error.strerror}", "room for it", "send it elsewhere"
        ) from None


def _flush() -> None:
    """Flush, and wait for a slow reader also where an earlier command has made the pipe non-blocking."""
    while True:
        try:
            sys.stdout.buffer.flush()
            return
        except BlockingIOError:
            select.select([], [sys.stdout], [])


def finish() -> None:
    """Raise InputError if paths for the next command could not be printed."""
    if _lost:
        reason = _lost.pop().strerror
        _lost.clear()
        raise InputError(
            f"all is done, but standard output could not be written: {reason}",
            "room for the paths of the output",
            "give them to the next command by name",
        )


def _give_up() -> None:
    """Send standard output to the null device from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
