"""Files of torch with a digest at their end: a fast one, in place of the slow checksums that torch writes itself.

A sealed file is a file of `torch.save`, then the mark `trd-xxh3`, then the XXH3 digest of 128 bits of all bytes before
the mark. torch finds what it reads from the start of the file or the end of its archive, so `torch.load` takes it as it
is.
"""

from __future__ import annotations

import mmap
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
import xxhash

_MARK = b"trd-xxh3"
_DIGEST = 16
# Bytes. A file is made durable and leaves the page cache piece by piece, since nothing reads it soon: the same pages of
# memory serve again. New ones cost a virtual machine more time than the disk does.
_PIECE = 128 << 20


class _Digesting:
    """Hand bytes on to a file and take their digest on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self._cached = file, xxhash.xxh3_128(), 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        written = self._file.write(data)
        self._cached += written
        if self._cached > _PIECE:
            self._uncache()
        return written

    def _uncache(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._cached = 0

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        self._file.write(_MARK + self._digest.digest())


def save_sealed(value: Any, file: IO[bytes]) -> None:
    """Write a value as `torch.save` does, without torch's checksums and with a digest at the end.

    Raises RuntimeError, as `torch.save` does, where the disk is full.
    """
    digesting = _Digesting(file)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(value, digesting)
    finally:
        torch.serialization.set_crc32_options(before)
    digesting.seal()


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
