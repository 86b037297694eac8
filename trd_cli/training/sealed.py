"""Files of torch with a digest at their end: a fast one, in place of the slow checksums that torch writes itself.

A sealed file is a file of `torch.save`, then the mark `trd-xxh3`, then the XXH3 digest of 128 bits of all bytes before
the mark. torch finds what it reads from the start of the file or the end of its archive, so `torch.load` takes it as it
is.
"""

from __future__ import annotations

import mmap
import os
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
import xxhash

_MARK = b"trd-xxh3"
_DIGEST = 16
# Bytes. A file is made durable and leaves the page cache piece by piece, while the next piece is written: nothing reads
# it soon, and the same pages of memory serve again. New ones cost a virtual machine more time than the disk does.
_PIECE = 32 << 20


class _Digesting:
    """Hand bytes on to a file, take their digest on the way, and see to it that they reach the disk."""

    def __init__(self, file: IO[bytes], background: ThreadPoolExecutor) -> None:
        self._file, self._background = file, background
        self._digest, self._cached = xxhash.xxh3_128(), 0
        self._piece: Future[None] | None = None

    def write(self, data: Any) -> int:
        self._digest.update(data)
        written = self._file.write(data)
        self._cached += written
        if self._cached > _PIECE:
            self._file.flush()
            self._wait()
            self._piece = self._background.submit(_uncache, self._file.fileno())
            self._cached = 0
        return written

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        self._wait()
        self._file.write(_MARK + self._digest.digest())

    def _wait(self) -> None:
        """Wait for the last piece; raise OSError where the disk has refused it."""
        if self._piece is not None:
            self._piece.result()


def _uncache(descriptor: int) -> None:
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def save_sealed(value: Any, file: IO[bytes]) -> None:
    """Write a value as `torch.save` does, without torch's checksums and with a digest at the end.

    Raises RuntimeError, as `torch.save` does, or OSError where the disk is full.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        with ThreadPoolExecutor(1) as background:
            digesting = _Digesting(file, background)
            torch.save(value, digesting)
            digesting.seal()
    finally:
        torch.serialization.set_crc32_options(before)


def is_whole(path: Path) -> bool:
    """Return True if every byte is as it was written: by the digest, or by the checksums of a file that has none."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = len(data) - len(_MARK) - _DIGEST
            if data[end : end + len(_MARK)] == _MARK:
                with memoryview(data) as view, view[:end] as before:
                    return xxhash.xxh3_128(before).digest() == data[-_DIGEST:]
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # damaged bytes make zipfile raise errors of any kind
        return False
