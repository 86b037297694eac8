"""Read the rows of files and of the Hugging Face Hub one at a time, each as a dictionary by column.

Files are JSONL (plain or gzipped), JSON, CSV or Parquet, told apart by suffix; a pipe is JSONL. A column that a row has
twice has one value if only one of the two is filled or both are equal; otherwise it is a `Clash` of both.

Not covered: sets that consist of several files.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trd_cli.datasets.values import Clash, RowFault, Written, filled
from trd_cli.errors import InputError, OutOfReach
from trd_cli.records import well_formed
from trd_cli.trajectories.checksums import Checksums, Damage
from trd_cli.trajectories.shards import source_of

Row = Mapping[str, Any]
_BOM = "\ufeff"
# Without a limit Arrow reads a column of a row group as one piece.
_READ_AT_ONCE = 1 << 20


def rows_of(file: str, split: str) -> Iterator[Row]:
    """Return the rows of a file, or of the Hub's dataset of that name if there is no such file.

    Raises InputError where neither can be read.
    """
    path, suffix = Path(file), _suffix(file)
    if path.is_dir():
        raise InputError(f"{path} is a directory", "a file", "name the file in it")
    if not path.exists():
        if suffix is None and _HUB_NAME.fullmatch(file):
            return iter(_hub_rows(file, split))
        raise InputError(f"no such file: {path}", "a file, or a Hub dataset as owner/name", "check the path")
    return file_rows(path)


def file_rows(path: Path) -> Iterator[Row]:
    """Return the rows of one file, read by its suffix.

    Raises InputError for another suffix, and for content that cannot be read.
    """
    # A pipe, as `<(...)` makes one, has no name of its own.
    suffix = ".jsonl" if path.is_fifo() else _suffix(str(path))
    if suffix is None:
        raise InputError(
            f"{path} has the suffix {path.suffix!r}", f"one of {', '.join(_READERS)}", "convert or rename it"
        )
    return _guarded(path, _READERS[suffix](path))


def numbered_rows(path: Path) -> Iterator[tuple[str, Row | RowFault]]:
    """Yield the rows of one file, each with its place ("line 7", "row 7").

    A line of JSONL that is no row is yielded as a fault. All else is as in `file_rows`.
    """
    if _suffix(str(path)) in (".jsonl", ".jsonl.gz"):
        yield from ((f"line {number}", row) for number, row in _guarded(path, _jsonl_lines(path)))
    else:
        yield from ((f"row {number}", row) for number, row in enumerate(file_rows(path), start=1))


def set_name(file: str) -> str:
    """Return `gsm8k` for data/gsm8k.jsonl.gz, for openai/gsm8k and for openai/gsm8k:main.

    A pipe, whose name is a number, is called `pipe`.
    """
    if Path(file).is_fifo():
        return "pipe"
    name = well_formed(Path(file).name)
    return name.removesuffix(_suffix(name) or "") if _suffix(name) else name.partition(":")[0]


def _suffix(file: str) -> str | None:
    return next((suffix for suffix in _READERS if file.lower().endswith(suffix)), None)


def _guarded(path: Path, rows: Iterator[Any]) -> Iterator[Any]:
    """Yield the same rows; errors of the operating system, gzip and Parquet become one InputError."""
    try:
        yield from rows
    except (Damage, OSError, EOFError, zlib.error, pa.ArrowException, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "JSONL, as which a pipe is read," if path.is_fifo() else "a whole, readable file"
        raise InputError(f"{path} could not be read ({reason})", f"{kind} in UTF-8", "get it again") from None


def _row(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return one object from names and values; a name may come twice."""
    pairs = list(pairs)
    row = dict(pairs)
    if len(row) < len(pairs):
        for name in row:
            given = [value for other, value in pairs if other == name and filled(value)]
            different = [value for i, value in enumerate(given) if value not in given[:i]]
            row[name] = Clash(different) if len(different) > 1 else next(iter(different), row[name])
    return row


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_row, parse_float=Written)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, row in _jsonl_lines(path):
        if isinstance(row, RowFault):
            raise _malformed(path, f"line {number}", str(row))
        yield row


def _jsonl_lines(path: Path) -> Iterator[tuple[int, Row | RowFault]]:
    """Yield the number of each line that is not empty, and its row or what is wrong with it."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, row_of(line)


def row_of(line: str) -> Row | RowFault:
    """Return the row of a line of JSONL, or what is wrong with it."""
    try:
        row = _loads(line.removeprefix(_BOM))
    except (ValueError, RecursionError) as error:
        return RowFault(f"not JSON ({error})")
    return row if isinstance(row, dict) else RowFault(_no_object(row))


def _json_rows(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        value = _loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON ({error})",
            "a list of rows, or an object with one list of rows",
            "mend it, or name it .jsonl if it has one row a line",
        ) from None
    lists = [value] if isinstance(value, list) else []
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
    if len(lists) != 1:
        got = f"{len(lists)} lists in an object" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise InputError(
            f"{path} holds {got}", "a list of rows, or an object with one list of rows", "write it as JSONL"
        )
    for number, row in enumerate(lists[0], start=1):
        yield _object(path, f"row {number}", row)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default ends at 128 KiB, less than some problems' tests
    with open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise _malformed(path, f"line {reader.line_num}", f"{len(cells)} cells under {len(header)} columns")
                if cells:
                    yield _row(zip(header, cells, strict=True))
        except csv.Error as error:
            raise _malformed(path, f"line {reader.line_num}", str(error)) from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    with source_of(path) as source, open(path, "rb") as file:
        checksums = Checksums(file)  # of files that trd wrote; others may have those of pages
        with pq.ParquetFile(source, page_checksum_verification=True, buffer_size=_READ_AT_ONCE) as parquet:
            checksums.check_columns(parquet.metadata)
            for batch in parquet.iter_batches(batch_size=256):
                yield from _batch_rows(batch)


def _batch_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    columns = [_values(column) for column in batch.columns]
    for cells in zip(*columns, strict=True):
        yield _row(zip(batch.schema.names, cells, strict=True))


def _values(column: pa.Array) -> Sequence[Any]:
    """Return a column's values as Python objects.

    Maps become dictionaries. Narrow floats keep their own digits: 0.1, not 0.10000000149011612.
    """
    column_type = column.type
    if pa.types.is_float16(column_type) or pa.types.is_float32(column_type):
        written = pc.cast(pc.cast(column, pa.float32()), pa.string()).to_pylist()
        return [None if text is None else Written(text) for text in written]
    if pa.types.is_struct(column_type) and any(map(_is_deep, column_type)):
        fields = [_values(part) for part in column.flatten()]
        names = [field.name for field in column_type]
        rows = (dict(zip(names, parts, strict=True)) for parts in zip(*fields, strict=True))
        return [row if there else None for row, there in zip(rows, column.is_valid().to_pylist(), strict=True)]
    if _is_list(column_type) and _is_deep(column_type.value_field):
        return list(_cut(_values(column.flatten()), pc.list_value_length(column).to_pylist()))
    if pa.types.is_map(column_type):
        return [None if pairs is None else dict(pairs) for pairs in column.to_pylist()]
    return column.to_pylist()


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_deep(field: pa.Field) -> bool:
    """Return True if values of this type somewhere need more than Arrow's own conversion."""
    kind = field.type
    if pa.types.is_map(kind) or pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return True
    return pa.types.is_nested(kind) and any(_is_deep(kind.field(i)) for i in range(kind.num_fields))


def _cut(items: Sequence[Any], lengths: Sequence[int | None]) -> Iterator[list[Any] | None]:
    start = 0
    for length in lengths:
        yield None if length is None else list(items[start : start + length])
        start += length or 0


def _object(path: Path, where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise _malformed(path, where, _no_object(row))
    return row


def _no_object(row: Any) -> str:
    return f"a {type(row).__name__}, not an object"


def _malformed(path: Path, where: str, what: str) -> InputError:
    return InputError(f"{path}, {where}: {what}", "one row with named columns", "mend or remove it")


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".jsonl.gz": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


# The Hub

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
# The bare name does not load these sets: GSM8K needs a subset, TACO has a loading script that is no longer run.
_HUB_SUBSETS = {"openai/gsm8k": "main"}
_HUB_FILES = {"BAAI/TACO": "hf://datasets/BAAI/TACO/ALL/{split}-*.parquet"}


def _hub_rows(file: str, split: str) -> Iterable[Row]:
    """Return the rows of a Hub dataset, which is downloaded into the cache of the package datasets."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"{file!r} is no file here, and Hub datasets need the package datasets",
            "it to be installed",
            "pip install datasets",
        ) from None
    name, _, subset = file.partition(":")
    base = re.split(r"\W", split)[0]
    try:
        if name in _HUB_FILES and not subset:
            files = {base: _HUB_FILES[name].format(split=base)}
            found = load_dataset("parquet", data_files=files, split=split)
        else:
            found = load_dataset(name, subset or _HUB_SUBSETS.get(name), split=split)
    except Exception as error:  # its HTTP, file and builder layers raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OutOfReach(
            f"{file!r} is no file here and the Hub did not give it ({reason})",
            "a file, or owner/name or owner/name:subset of a Hub dataset with that --split",
            "check the name, the network, and HF_TOKEN for gated sets",
        ) from None
    tables = found.with_format("arrow").iter(batch_size=256)
    return (row for table in tables for batch in table.to_batches() for row in _batch_rows(batch))
