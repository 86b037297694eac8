"""CRC-32 checksums of a whole Parquet file, kept in its own footer.

Parquet's page checksums cover the data of each page. They do not cover the headers of pages, the footer, or the order
of pages: two that have changed places pass. The footer of a sealed file therefore has the key `trd.checksums`. Its
value is `trd-crc32:`, then eight hexadecimal digits a checksum, then `;`. The first checksum is that of the leading
magic number, of the footer's place (eight bytes) and of the footer to the end of the file, with its own digits as
zeros. One checksum of each column follows, in the order of the schema, over its chunks with all their headers and
pages.

So every byte of the file is under a checksum, the file is sealed before it gets its name, and other readers see one key
more.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = b"trd.checksums"
_PREFIX = b"trd-crc32:"
_VALUE = re.compile(_PREFIX + rb"((?:[0-9a-f]{8})+);")
_MAGIC = b"PAR1"


class Damage(Exception):
    """Say which bytes of a file are not those that were written."""


def write_sealed(file: IO[bytes], schema: pa.Schema, tables: Iterable[pa.Table], **options: object) -> None:
    """Write a Parquet file with checksums to a new, named file that is open for writing. Each table is a row group.

    `options` are those of `pyarrow.parquet.ParquetWriter`.
    """
    blank = b"0" * 8 * (1 + len(schema))
    with pq.ParquetWriter(file, schema, write_page_checksum=True, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({_KEY: _PREFIX + blank + b";"})
    file.flush()
    with open(file.name, "rb") as written:
        footer = bytearray(_footer(written))
        digits = _digits(footer)
        columns = [_crc(written, chunks) for chunks in _chunks(pq.read_metadata(written)).values()]
        footer[digits] = b"%08x" * (1 + len(columns)) % (0, *columns)
        outside = _crc_outside(written, footer)
    footer[digits.start : digits.start + 8] = b"%08x" % outside
    file.seek(-len(footer), os.SEEK_END)
    file.write(footer)


class Checksums:
    """Hold the checksums of an open Parquet file; a file without any passes every check."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read the footer before any reader parses it; raises Damage where it is not as it was written."""
        self._file = file
        footer = _footer(file)
        digits = footer[_digits(footer)]
        if digits and _crc_outside(file, footer) != int(digits[:8], 16):
            raise Damage("its footer does not match its checksum")
        self._columns = [int(digits[i : i + 8], 16) for i in range(8, len(digits), 8)]

    def __bool__(self) -> bool:
        """Return whether the file has checksums."""
        return bool(self._columns)

    def of_columns(self, metadata: pq.FileMetaData) -> dict[str, int]:
        """Return the checksum of each column by its name, {} for a file without checksums."""
        return {name: checksum for name, (checksum, _) in self._known(metadata).items()}

    def check_columns(self, metadata: pq.FileMetaData, columns: Collection[str] | None = None) -> None:
        """Check all chunks of some columns, None for all; raises Damage that names the first damaged one."""
        for name, (checksum, chunks) in self._known(metadata).items():
            if (columns is None or name in columns) and _crc(self._file, chunks) != checksum:
                raise Damage(f"column {name} does not match its checksum")

    def _known(self, metadata: pq.FileMetaData) -> dict[str, tuple[int, list[tuple[int, int]]]]:
        """Return the checksum and the chunks of each column."""
        if not self._columns:
            if _KEY in (metadata.metadata or {}):
                raise Damage(f"its {_KEY.decode()} cannot be read")
            return {}
        chunks = _chunks(metadata)
        return dict(zip(chunks, zip(self._columns, chunks.values(), strict=True), strict=True))


def _footer(file: IO[bytes]) -> bytes:
    """Read the footer with its length and the closing magic number; raises Damage where there is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    ending = file.read(8)
    if len(ending) < 8 or ending[4:] != _MAGIC:
        raise Damage("it does not end as a Parquet file")
    length = int.from_bytes(ending[:4], "little")
    if length + 12 > size:
        raise Damage("its footer is longer than the file")
    file.seek(size - 8 - length)
    return file.read(length + 8)


def _digits(footer: bytes) -> slice:
    """Return the place of the digits of all checksums; empty where there are none."""
    # The last one: before it the footer holds values of columns, which may be any text.
    found = _VALUE.match(footer, max(0, footer.rfind(_PREFIX)))
    return slice(*found.span(1)) if found else slice(0, 0)


def _crc_outside(file: IO[bytes], footer: bytes) -> int:
    """Return the checksum of all bytes outside the columns, with zeros for its own digits."""
    place = file.seek(0, os.SEEK_END) - len(footer)
    file.seek(0)
    start = _digits(footer).start
    blanked = footer[:start] + b"0" * 8 + footer[start + 8 :]
    return zlib.crc32(blanked, zlib.crc32(file.read(len(_MAGIC)) + place.to_bytes(8, "little")))


def _crc(file: IO[bytes], chunks: Collection[tuple[int, int]]) -> int:
    sum_ = 0
    for start, length in chunks:
        for block in _blocks(file, start, length):
            sum_ = zlib.crc32(block, sum_)
    return sum_


def _blocks(file: IO[bytes], start: int, length: int, size: int = 1 << 17) -> Iterator[bytes]:
    file.seek(start)
    while length > 0 and (block := file.read(min(length, size))):
        length -= len(block)
        yield block


def _chunks(metadata: pq.FileMetaData) -> dict[str, list[tuple[int, int]]]:
    """Return the first byte and the length of every chunk by its column; the leaves of a nested column go together."""
    found: dict[str, list[tuple[int, int]]] = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            place = (start, chunk.total_compressed_size)
            found.setdefault(chunk.path_in_schema.partition(".")[0], []).append(place)
    return found
