"""CRC-32 checksums of a whole Parquet file, kept in its own footer.

Parquet's page checksums cover the data of each page. They do not cover the headers of pages, the footer, or which page stands
where: two pages that have changed places pass. The footer of a sealed file therefore has the key `trd.checksums`. Its value is
`trd-crc32:`, then eight hexadecimal digits a checksum, then `;`. The first checksum is that of the leading magic number and of the
footer to the end of the file, with all these digits as zeros. One of each column follows, in the order of the schema, over its
chunks with all their headers and pages.

So every byte of the file is under a checksum, the file is sealed before it gets its name, and other readers see a key more.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Collection, Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = b"trd.checksums"
_PREFIX = b"trd-crc32:"
_VALUE = re.compile(_PREFIX + rb"((?:[0-9a-f]{8})+);")
_MAGIC = b"PAR1"


class Damage(Exception):
    """The bytes of a file are not those that were written; the message says which."""


def sealed(table: pa.Table, **options: object) -> list[memoryview]:
    """Encode `table` as a Parquet file with checksums; returns the parts of the file in order.

    `options` are those of `pyarrow.parquet.ParquetWriter`.
    """
    sink = pa.BufferOutputStream()
    blank = b"0" * 8 * (1 + table.num_columns)
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True, **options) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({_KEY: _PREFIX + blank + b";"})
    content = sink.getvalue()
    file = pa.BufferReader(content)
    footer = _footer(file)
    columns = _chunks(pq.read_metadata(content))
    sums = [_crc_outside(file, footer), *(_crc(file, chunks) for chunks in columns.values())]
    place = content.size - len(footer) + _digits(footer).start
    whole, digits = memoryview(content), b"".join(b"%08x" % each for each in sums)
    return [whole[:place], memoryview(digits), whole[place + len(digits) :]]


def check_footer(file: IO[bytes]) -> bool:
    """Check the part of a Parquet file that says how to read the rest; returns whether the file has checksums.

    Raises Damage where the footer is not what was written. Call it before a reader parses the footer.
    """
    footer = _footer(file)
    digits = footer[_digits(footer)]
    if digits and _crc_outside(file, footer) != int(digits[:8], 16):
        raise Damage("its footer does not match its checksum")
    return bool(digits)


def check_columns(file: IO[bytes], metadata: pq.FileMetaData, columns: Collection[str] | None = None) -> None:
    """Check all chunks of some columns, None for all; raises Damage that names the first damaged one.

    A file without checksums passes. Its footer must have passed `check_footer`.
    """
    sums = column_sums(file, metadata)
    for name, chunks in _chunks(metadata).items() if sums else ():
        if (columns is None or name in columns) and _crc(file, chunks) != sums[name]:
            raise Damage(f"column {name} does not match its checksum")


def column_sums(file: IO[bytes], metadata: pq.FileMetaData) -> dict[str, int]:
    """Return the checksum of each column by name, {} for a file without checksums."""
    footer = _footer(file)
    digits = footer[_digits(footer)]
    if not digits:
        if _KEY in (metadata.metadata or {}):
            raise Damage(f"its {_KEY.decode()} cannot be read")
        return {}
    sums = [int(digits[i : i + 8], 16) for i in range(8, len(digits), 8)]
    return dict(zip(_chunks(metadata), sums, strict=True))


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
    """Return where the digits of all checksums are; empty where there are none."""
    # The last one: before it the footer holds values of columns, which may be any text.
    found = _VALUE.match(footer, max(0, footer.rfind(_PREFIX)))
    return slice(*found.span(1)) if found else slice(0, 0)


def _crc_outside(file: IO[bytes], footer: bytes) -> int:
    """Return the checksum of what is in no column, with zeros for the digits of all checksums."""
    file.seek(0)
    digits = _digits(footer)
    blanked = footer[: digits.start] + b"0" * (digits.stop - digits.start) + footer[digits.stop :]
    return zlib.crc32(blanked, zlib.crc32(file.read(len(_MAGIC))))


def _crc(file: IO[bytes], chunks: Collection[tuple[int, int]]) -> int:
    sum_ = 0
    for start, length in chunks:
        for block in _blocks(file, start, length):
            sum_ = zlib.crc32(block, sum_)
    return sum_


def _blocks(file: IO[bytes], start: int, length: int, size: int = 1 << 20) -> Iterator[bytes]:
    file.seek(start)
    while length > 0 and (block := file.read(min(length, size))):
        length -= len(block)
        yield block


def _chunks(metadata: pq.FileMetaData) -> dict[str, list[tuple[int, int]]]:
    """Return the first byte and the length of every chunk, by the column of the schema; the leaves of a nested column go together."""
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in metadata.schema.to_arrow_schema().names}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            found[chunk.path_in_schema.partition(".")[0]].append((start, chunk.total_compressed_size))
    return found
