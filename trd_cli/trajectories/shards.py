"""Parquet trajectory shards: one schema, atomic writes, reads that refuse what does not match.

A set is a directory of `shard-NNNNN.parquet` files; those of part 2 of 5 are `shard-2of5-NNNNN.parquet`. Each is
written to a temporary name, fsynced and renamed, so a shard is there whole or not at all. Its footer has the version of
the schema, the digest of the set and checksums. Readers refuse a shard that a disk or a copy has changed since. Shards
older than the checksums are read too; only damage that breaks their encoding is noticed.

Shards of all versions are read, and may lie in one set: columns that an older one lacks are None. The newest version is
written.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trd_cli.atomic import make_directory, replacing
from trd_cli.errors import DamagedFile, InputError, first_line
from trd_cli.records import Environment, Part, Problem, Trajectory, Turn, token_array, unfit_for_response, well_formed
from trd_cli.trajectories.checksums import Checksums, Damage, write_sealed
from trd_cli.trajectories.parts import again, named
from trd_cli.trajectories.run_json import maker_of
from trd_cli.trajectories.without_pandas import keep_out_pandas

keep_out_pandas()

_VERSION_KEY = b"trd.schema_version"
_KIND_KEY = b"trd.kind"
_SET_KEY = b"trd.set"
_SHARD_NAME = re.compile(r"shard-(?:(\d+)of(\d+)-)?(\d{5,})\.parquet")


def _field(name: str, kind: pa.DataType, required: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=not required)


_IDS = pa.list_(pa.field("element", pa.int32()))
_ENVIRONMENT = pa.struct(
    [("name", pa.string()), ("version", pa.string()), ("config", pa.string()), ("seed", pa.int64())]
)
_TURNS = pa.list_(
    pa.field(
        "element",
        pa.struct(
            [
                ("role", pa.string()),
                ("action", pa.string()),
                ("observation", pa.string()),
                ("start", pa.int32()),
                ("end", pa.int32()),
                ("valid", pa.bool_()),
                ("finish_reason", pa.string()),
                ("seed", pa.int64()),
                ("context_token_ids", _IDS),
            ]
        ),
    )
)
_MESSAGES = pa.list_(pa.field("element", pa.struct([("role", pa.string()), ("content", pa.string())])))

SCHEMA = pa.schema(
    [
        _field("trajectory_id", pa.string(), required=True),
        _field("problem_id", pa.string(), required=True),
        _field("parent_id", pa.string()),
        _field("round", pa.int32(), required=True),
        _field("sample_index", pa.int32(), required=True),
        _field("stage", pa.string(), required=True),
        _field("setting", pa.string()),
        _field("source", pa.string(), required=True),
        _field("task", pa.string(), required=True),
        _field("problem", pa.string(), required=True),
        _field("reference_answer", pa.string()),
        _field("reference_solution", pa.string()),
        _field("tests", pa.string()),
        _field("messages", _MESSAGES, required=True),
        _field("prompt_token_ids", _IDS, required=True),
        _field("prompt_template", pa.string(), required=True),
        _field("prompt_sha256", pa.string(), required=True),
        _field("student_prompt_token_ids", _IDS),
        _field("attempt_tokens_trimmed", pa.int32()),
        _field("response", pa.string()),
        _field("response_token_ids", _IDS),
        _field("logprobs", pa.list_(pa.field("element", pa.float32()))),
        _field("finish_reason", pa.string()),
        _field("ids_exact", pa.bool_()),
        _field("model", pa.string(), required=True),
        _field("model_revision", pa.string(), required=True),
        _field("engine", pa.string(), required=True),
        _field("engine_version", pa.string(), required=True),
        _field("temperature", pa.float64(), required=True),
        _field("top_p", pa.float64(), required=True),
        _field("top_k", pa.int32(), required=True),
        _field("max_tokens", pa.int32(), required=True),
        _field("seed", pa.int64(), required=True),
        _field("verdict", pa.string()),
        _field("extracted_answer", pa.string()),
        _field("grader", pa.string()),
        _field("grader_version", pa.string()),
        _field("verdict_detail", pa.string()),
        _field("error", pa.string()),
        _field("author", pa.list_(pa.field("element", pa.int8()))),
        _field("token_weight", pa.list_(pa.field("element", pa.float32()))),
        _field("prefix_tokens", pa.int32()),
        _field("turns", _TURNS),
        _field("environment", _ENVIRONMENT),
        _field("episode_reward", pa.float64()),
        _field("stop_reason", pa.string()),
    ]
)
# Columns that hold a value a token, which are most of a set.
PER_TOKEN = (
    *("prompt_token_ids", "student_prompt_token_ids", "response_token_ids"),
    *("logprobs", "author", "token_weight"),
)
OF_A_RESPONSE = (
    *("response", "response_token_ids", "logprobs", "finish_reason", "ids_exact", "author", "token_weight"),
    *("turns", "episode_reward", "stop_reason"),
)
OF_A_VERDICT = ("verdict", "extracted_answer", "grader", "grader_version", "verdict_detail")
# Replaces a value that cannot be written in a required column; a list becomes empty.
_EMPTY = {pa.string(): "", pa.int32(): 0, pa.int64(): 0, pa.float64(): 0.0}
# Without a limit Arrow reads a column of a row group as one piece.
_READ_AT_ONCE = 1 << 20
# A row group of a problem set ends at either.
_GROUP_ROWS, _GROUP_CHARACTERS = 10_000, 64 << 20
# Rows that are Python objects at the same time while a table is read.
_ROWS_AT_ONCE = 256
# The typecode of arrays of a type of numbers.
_CODES = {pa.int32(): "i", pa.float32(): "f", pa.int8(): "b"}
# Raised by Arrow and Python for a value that is not of its column's type.
_UNBUILDABLE = (pa.ArrowException, TypeError, ValueError, OverflowError)
PROBLEM_SCHEMA = pa.schema(
    [
        _field(n, pa.string(), required=n in ("problem_id", "source", "task", "problem"))
        for n in (f.name for f in fields(Problem))
    ]
)
# The columns of each version of shards and of problem sets. The last version is written.
_LAST_OF_VERSION = {"1": "error", "2": "prefix_tokens", "3": "stop_reason"}
SCHEMAS = {
    version: pa.schema([*SCHEMA][: SCHEMA.get_field_index(last) + 1]) for version, last in _LAST_OF_VERSION.items()
}
SCHEMAS["3"] = SCHEMA
PROBLEM_SCHEMAS = {"1": PROBLEM_SCHEMA}


def schema_of(command: str | None) -> pa.Schema | None:
    """Return the schema of the shards in the output of a command, None for one of another room."""
    return None if command == "diagnose" else SCHEMA


def of_kind(kind: str, version: str, columns: Iterable[pa.Field]) -> pa.Schema:
    """Return the schema of a file that another room writes and reads; `kind` names the file in messages."""
    return pa.schema(columns, {_KIND_KEY: kind, _VERSION_KEY: version})


def write_table(path: Path, table: pa.Table, set_digest: str | None = None) -> None:
    """Write `table` to `path` atomically and durably; raises InputError when the disk refuses.

    `set_digest` is the digest in the run.json of the set that the rows belong to.
    """
    _write(path, table.schema, [table], {_SET_KEY: set_digest} if set_digest else {})


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], metadata: Mapping[bytes, str]) -> None:
    """Write tables of one schema as the row groups of a file."""
    if _kind(schema):
        own = {key: schema.metadata[key] for key in (_KIND_KEY, _VERSION_KEY)}
    else:
        own = {_VERSION_KEY: _version_of(schema)}
    schema = schema.with_metadata({**own, **metadata})
    with replacing(path) as file:
        # The samples of one problem repeat its text and tests, megabytes for some: a dictionary holds them once.
        write_sealed(
            file,
            schema,
            (table.replace_schema_metadata(schema.metadata) for table in tables),
            compression="zstd",
            dictionary_pagesize_limit=64 << 20,
        )


def _version_of(schema: pa.Schema) -> str:
    known = [*SCHEMAS.items(), *PROBLEM_SCHEMAS.items()]
    return next(version for version, columns in known if columns.equals(schema))


def _versions(schema: pa.Schema) -> Mapping[str, pa.Schema]:
    return SCHEMAS if schema is SCHEMA else PROBLEM_SCHEMAS


def write_shard(path: Path, rows: Sequence[Trajectory], set_digest: str | None = None) -> list[Trajectory]:
    """Write rows as one shard, atomically, and return them as they were written; for `set_digest` see `write_table`.

    A row that no table can hold, or whose columns contradict each other, becomes an error row; it never takes the
    others along.
    """
    try:
        if any(map(unfit_for_response, rows)):
            raise ValueError("a row whose columns contradict each other")
        table, written = _to_table(rows, SCHEMA), list(rows)
    except _UNBUILDABLE:
        written = [_writable(row) for row in rows]
        # Each by itself, as a column may also be too large for one piece.
        table = pa.concat_tables([_to_table([row], SCHEMA) for row in written])
    write_table(path, table, set_digest)
    return written


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write a problem set as one Parquet file, atomically; one row group of it is in memory at a time."""
    make_directory(path.parent)
    tables = (_to_table(group, PROBLEM_SCHEMA) for group in _groups(problems))
    _write(path, PROBLEM_SCHEMA, tables, {})


def _groups(problems: Iterable[Problem]) -> Iterator[list[Problem]]:
    """Yield the problems in groups, at least one, each as large as a row group may be."""
    group: list[Problem] = []
    characters = 0
    for problem in problems:
        if len(group) == _GROUP_ROWS or characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
        group.append(problem)
        characters += sum(len(getattr(problem, name) or "") for name in PROBLEM_SCHEMA.names)
    yield group


def _writable(row: Trajectory) -> Trajectory:
    """Return the row, or the nearest to it that a table can hold.

    That is the row with its text well formed, else an error row that names the columns.
    """
    for candidate in (row, replace(row, **{name: _in_utf8(getattr(row, name)) for name in SCHEMA.names})):
        unfit = [name for name in SCHEMA.names if not _fits(SCHEMA.field(name), getattr(candidate, name))]
        reason = f"could not be written: no table holds its {', '.join(unfit)}"
        if not unfit:
            unfit = unfit_for_response(candidate)
            reason = f"could not be written: {', '.join(unfit)} do not go with its response tokens"
        if not unfit:
            return candidate
    required = (name for name in unfit if not SCHEMA.field(name).nullable)
    emptied = dict.fromkeys(unfit) | {name: _EMPTY.get(SCHEMA.field(name).type, ()) for name in required}
    if set(unfit) <= set(OF_A_VERDICT):
        return replace(candidate, **emptied | {"verdict": "error", "verdict_detail": reason})
    return replace(candidate, **emptied | dict.fromkeys(OF_A_RESPONSE) | {"error": reason})


def _in_utf8(value: Any) -> Any:
    """Return a column's value with all text in it well formed."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        return {key: _in_utf8(each) for key, each in value.items()}
    if isinstance(value, (Turn, Environment)):
        return replace(value, **{f.name: _in_utf8(getattr(value, f.name)) for f in fields(value)})
    is_text = isinstance(value, (list, tuple)) and any(isinstance(each, (str, Mapping, Turn)) for each in value)
    return [_in_utf8(each) for each in value] if is_text else value


def _fits(column: pa.Field, value: Any) -> bool:
    try:
        return pa.array(_column([value], column.type), column.type).null_count == 0 or column.nullable
    except _UNBUILDABLE:
        return False


def read_rows(path: Path) -> list[Trajectory]:
    """Return all rows of one shard."""
    return list(rows_in(read_table(path)))


def rows_in(table: pa.Table) -> Iterator[Trajectory]:
    """Yield the rows of a table, ids and logprobs in arrays; columns that it lacks are None."""
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        yield from _rows(table.slice(start, _ROWS_AT_ONCE))


def _rows(table: pa.Table) -> Iterator[Trajectory]:
    columns = {
        name: _arrays(table[name]) if name in PER_TOKEN else table[name].to_pylist() for name in table.column_names
    }
    lacking = dict.fromkeys(set(SCHEMA.names) - set(columns))
    for values in zip(*columns.values(), strict=True):
        yield Trajectory(**_of_episode(dict(zip(columns, values, strict=True))), **lacking)


def _of_episode(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's values with its turns and its environment as their classes."""
    if row.get("turns") is not None:
        row["turns"] = [_turn(**turn) for turn in row["turns"]]
    if row.get("environment") is not None:
        row["environment"] = Environment(**row["environment"])
    return row


def _turn(context_token_ids: list[int] | None, **others: Any) -> Turn:
    return Turn(**others, context_token_ids=None if context_token_ids is None else token_array(context_token_ids))


def _arrays(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column of lists, each in an array of four bytes an item; None stays None."""
    found: list[Any] = []
    for chunk in column.chunks:
        code = _CODES[chunk.type.value_type]
        values, offsets = chunk.values, chunk.offsets.to_numpy()
        if values.null_count:  # no trd writes any, other than from a row by hand
            found += chunk.to_pylist()
            continue
        numbers = values.to_numpy()
        for start, end, is_there in zip(offsets[:-1], offsets[1:], chunk.is_valid().to_pylist(), strict=True):
            found.append(array(code, numbers[start:end].tobytes()) if is_there else None)
    return found


def read_table(path: Path, columns: list[str] | None = None, schema: pa.Schema | None = SCHEMA) -> pa.Table:
    """Read all or some columns of a Parquet file of exactly `schema` (None: of any), or of an earlier version of it.

    Columns that the earlier version lacks are None. Raises InputError that names the file for any other, DamagedFile
    for one that is not as it was written.
    """
    with _opened(path, schema) as (checksums, parquet):
        checksums.check_columns(parquet.metadata, columns)
        table = parquet.read(columns=columns)
        if not checksums:
            table.validate(full=True)
        return _completed(table, columns, schema)


def _completed(table: pa.Table, columns: Sequence[str] | None, schema: pa.Schema | None) -> pa.Table:
    """Return a table with all columns of `schema`, or those asked for; those that an older file lacks are None."""
    if schema is None:
        return table
    wanted = [name for name in dict.fromkeys(columns or schema.names) if name in schema.names]
    for name in wanted:
        if name not in table.column_names:
            table = table.append_column(schema.field(name), pa.nulls(table.num_rows, schema.field(name).type))
    return table if table.column_names == wanted else table.select(wanted)


def iter_values(
    paths: Iterable[Path], columns: list[str], schema: pa.Schema | None = SCHEMA
) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns of each row, one file in memory at a time; raises as `read_table`."""
    for path in paths:
        table = read_table(path, columns, schema)
        yield from zip(*(table[name].to_pylist() for name in columns), strict=True)


def iter_tables(
    path: Path, columns: list[str] | None = None, schema: pa.Schema = SCHEMA, rows: int = 1024
) -> Iterator[pa.Table]:
    """Read as `read_table` does, `rows` rows at a time, without holding the file."""
    with _opened(path, schema) as (checksums, parquet):
        checksums.check_columns(parquet.metadata, columns)
        for batch in parquet.iter_batches(rows, columns=columns):
            table = pa.Table.from_batches([batch])
            if not checksums:
                table.validate(full=True)
            yield _completed(table, columns, schema)


def check_whole(path: Path, schema: pa.Schema | None = SCHEMA) -> None:
    """Raise DamagedFile where any part of a file is not as it was written. Only files without checksums are decoded."""
    with _opened(path, schema) as (checksums, parquet):
        checksums.check_columns(parquet.metadata)
        if not checksums:
            for batch in parquet.iter_batches():
                batch.validate(full=True)


@dataclass(frozen=True)
class ShardInfo:
    """Hold the footer of a shard: the number of rows, the digest of its set, and the checksum of the ids.

    Digest and checksum are None in shards older than them.
    """

    rows: int
    set_digest: str | None
    ids_sum: int | None


def shard_info(path: Path, schema: pa.Schema | None = SCHEMA) -> ShardInfo:
    """Read the footer of a shard or, by its `schema`, of another file; raises as `read_table`."""
    with _opened(path, schema) as (checksums, parquet):
        digest = parquet.metadata.metadata.get(_SET_KEY)
        ids_sum = checksums.of_columns(parquet.metadata).get(parquet.schema_arrow.names[0])
        return ShardInfo(parquet.metadata.num_rows, digest and digest.decode(), ids_sum)


@contextmanager
def _opened(path: Path, schema: pa.Schema | None) -> Iterator[tuple[Checksums, pq.ParquetFile]]:
    """Open a file whose footer is whole and names `schema` (None: any of trd).

    Errors of reading it in the block become DamagedFile.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory", "a Parquet file", "name the file in it")
    try:
        with _twice(path) as (source, file):
            checksums = Checksums(file)
            with pq.ParquetFile(source, page_checksum_verification=True, buffer_size=_READ_AT_ONCE) as parquet:
                _check_schema(path, parquet.schema_arrow, schema)
                yield checksums, parquet
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", "a Parquet file", "check the path") from None
    except pa.ArrowMemoryError:
        raise  # not the file's fault
    except (Damage, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                f"cannot read {path}: {error.strerror}", "a file that can be read", "see to its permissions or its disk"
            ) from None
        raise _damaged(path, schema, error) from None


@contextmanager
def _twice(path: Path) -> Iterator[tuple[pa.OSFile, IO[bytes]]]:
    """Open a file for pyarrow and for its checksums; both are the same file, even if another process replaces it."""
    while True:
        before = os.stat(path)
        with source_of(path) as source, open(path, "rb") as file:
            if os.path.samestat(before, os.fstat(file.fileno())):
                yield source, file
                return


def source_of(path: Path) -> pa.OSFile:
    """Open a Parquet file for pyarrow, whatever the bytes of its name. Raises InputError for a pipe, and OSError.

    It is not a Python file: pyarrow's threads may release one while Python ends, which aborts the process.
    """
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path} is a pipe or a device", "a file: Parquet is read from its end", "write it to a file first"
        )
    return pa.OSFile(os.fsencode(path))


def _damaged(path: Path, schema: pa.Schema | None, error: Exception) -> DamagedFile:
    reason = first_line(error).removesuffix(".")
    if schema is PROBLEM_SCHEMA:
        mend = "make or import it again with trd data"
    elif maker := maker_of(path.parent):
        mend = f"{again(maker, part_of(path))}, which makes the lost rows anew"
    else:
        mend = "copy it again from where it came, or make its set again"
    return DamagedFile(f"{path} is damaged, truncated or not Parquet ({reason})", "a whole Parquet file", mend)


def _kind(schema: pa.Schema) -> str | None:
    """Return the kind of a file of another room, None for shards and problem sets."""
    kind = (schema.metadata or {}).get(_KIND_KEY)
    return kind and kind.decode()


def _check_schema(path: Path, found: pa.Schema, expected: pa.Schema | None) -> None:
    version = (found.metadata or {}).get(_VERSION_KEY)
    if version is not None and expected is None:
        return
    kind = expected and _kind(expected)
    if version is None or _kind(found) != kind:
        called = kind or ("problem set" if expected is PROBLEM_SCHEMA else "trajectory shard")
        mend = "make one with trd data import" if expected is PROBLEM_SCHEMA else "give a set made by trd"
        got = f"{path} is a {_kind(found)}" if _kind(found) else f"{path} is not a {called} of trd"
        raise InputError(got, f"a {called}, which has {_VERSION_KEY.decode()} in its footer", mend)
    versions = {expected.metadata[_VERSION_KEY].decode(): expected} if kind else _versions(expected)
    if version.decode() not in ({**versions} if kind else {**SCHEMAS, **PROBLEM_SCHEMAS}):
        raise InputError(
            f"{path} has schema version {version.decode()}",
            f"version {' or '.join(versions)}",
            "use the trd that wrote it, or make it again",
        )
    # A shard that was given for a problem set differs in its columns.
    expected = versions.get(version.decode(), expected)
    if found.equals(expected):
        return
    for name in dict.fromkeys([*expected.names, *found.names]):
        has = str(found.field(name).type) if name in found.names else "no such column"
        wants = str(expected.field(name).type) if name in expected.names else "no such column"
        if has != wants:
            raise InputError(f"{path}, column {name}: {has}", wants, "give a file made by this version of trd")


def _to_table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    columns = {field.name: _column([getattr(row, field.name) for row in rows], field.type) for field in schema}
    table = pa.table(columns, schema=schema)
    for field in schema:
        if not field.nullable and table[field.name].null_count:  # which pyarrow says only when it writes
            raise ValueError(f"a row without {field.name}")
    return table


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array | Sequence[Any]:
    """Return arrays of numbers as an Arrow column, from their bytes; any other values as they are."""
    if kind in (_TURNS, _ENVIRONMENT):
        return [_as_records(value) for value in values]
    code = _CODES.get(kind.value_type) if pa.types.is_list(kind) else None
    if code is None or not all(v is None or (isinstance(v, array) and v.typecode == code) for v in values):
        return values
    ends = np.cumsum([0, *(0 if value is None else len(value) for value in values)])
    numbers = pa.py_buffer(b"".join(value for value in values if value is not None))
    items = pa.Array.from_buffers(kind.value_type, int(ends[-1]), [None, numbers])
    is_missing = [value is None for value in values]
    mask = pa.array(is_missing, pa.bool_()) if any(is_missing) else None
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items, kind, mask=mask)


def _as_records(value: Any) -> Any:
    """Return a value with the dataclasses in it as dictionaries."""
    if isinstance(value, (list, tuple)):
        return [_as_records(each) for each in value]
    return asdict(value) if is_dataclass(value) else value


def shard_number(path: Path) -> int | None:
    """Return the number in a shard's file name, None for any other name."""
    match = _SHARD_NAME.fullmatch(path.name)
    return int(match[3]) if match else None


def part_of(path: Path) -> Part | None:
    """Return the part that a shard's file name has, None for a shard of a set that was made whole."""
    match = _SHARD_NAME.fullmatch(path.name)
    return Part(int(match[1]), int(match[2])) if match and match[1] else None


def is_named_for(path: Path, parts: int | None) -> bool:
    """Return whether a shard's name is one of a set that is made in so many parts, None: whole."""
    of = part_of(path)
    return of is None if parts is None else of is not None and of.count == parts and 1 <= of.index <= parts


def misplaced(path: Path) -> InputError:
    """Return the error of a shard whose name is not one of its set, which no command mends."""
    return InputError(f"{path} is by its name of another set", f"a shard of {path.parent}", "take it away")


def shard_path(directory: Path, number: int, part: Part | None = None) -> Path:
    return directory / f"{named('shard', part)}-{number:05d}.parquet"


def list_shards(directory: Path, part: Part | None = None) -> list[Path]:
    """Return the finished shards of a set, or those of one part, by parts and numbers."""
    numbered = ((shard_number(path), path) for path in directory.iterdir())
    found = [(part_of(path), number, path) for number, path in numbered if number is not None]
    kept = [each for each in found if part in (None, each[0])]
    return [path for _, _, path in sorted(kept, key=lambda each: ((each[0] and astuple(each[0])) or (), each[1]))]


def may_hold(path: Path, part: Part | None) -> bool:
    """Return whether a shard may have rows of a part: not one of another part of as many."""
    of = part_of(path)
    return part is None or of is None or of.count != part.count or of == part


def graded_by(path: Path, part: Part | None) -> bool:
    """Return whether a part of `trd verify` replaces a shard: one of its own, else by the numbers in the name."""
    if part is None:
        return True
    of = part_of(path)
    if of is not None and of.count == part.count:
        return of == part
    return (shard_number(path) + (of.index if of else 0)) % part.count == part.index - 1
