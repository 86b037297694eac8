"""Problem sets from files and from the Hugging Face Hub: presets for known sets, column maps for all others.

Files are JSONL (plain or gzipped), JSON, CSV and Parquet, told apart by suffix; a pipe is JSONL. A name `owner/set` or `owner/set:subset`
that is no file here is asked of the Hub. Rows are read one at a time, so that only what becomes a problem is held. Tests
come out as JSON of one of three kinds:

    {"kind": "stdin", "inputs": [text, …], "outputs": [text, …]}
    {"kind": "call", "fn_name": name, "inputs": [arguments, …], "outputs": [result, …]}     values as the set has them
    {"kind": "functional", "code": program that raises when the solution is wrong}

Not covered: sets that are spread over several files, answers inside free text other than GSM8K's, whether a reference
answer or a test is right.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from trd_cli.checksums import Checksums, Damage
from trd_cli.config import ImportConfig
from trd_cli.errors import InputError
from trd_cli.records import Problem, Task, content_hash, well_formed
from trd_cli.shards import source_of

_BOM = "\ufeff"
FIELDS = ("problem", "reference_answer", "reference_solution", "tests", "problem_id", "source", "task")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Imported:
    """What came of a file. Of problems with the same id the first one stays; `duplicates` counts the others.

    `skipped` counts the rows with no problem text. `unreadable` has one line for each row left out because a value in it
    could not be understood (as tests that are not JSON): "row 7: …", counted from 1.
    """

    problems: list[Problem]
    duplicates: int
    skipped: int
    unreadable: tuple[str, ...]


class _RowFault(ValueError):
    """A value that cannot be understood; the row is left out, with this as the reason."""


@dataclass(frozen=True)
class From:
    """Where a field comes from: `make` of the values of `columns` (None where a row lacks one).

    A file in which no row has the first column is refused, unless `optional`.
    """

    columns: tuple[str, ...]
    make: Callable[..., Any] = lambda value: value
    optional: bool = False


@dataclass(frozen=True)
class Preset:
    """A known set: the task of its rows and where their fields come from."""

    task: Task
    fields: Mapping[str, From]


def import_problems(config: ImportConfig) -> Imported:
    """The problems of `config.file`, shuffled by `shuffle_seed` and cut to `limit` at the end.

    Raises InputError for a file or Hub set that cannot be read, a malformed line, a field or column that does not exist,
    two different problems with one mapped id, and a file that gives no problem at all.
    """
    fields = _fields(config)
    seen_columns: dict[str, None] = {}
    found: dict[str, Problem] = {}
    duplicates = skipped = rows = 0
    unreadable: list[str] = []
    with _integers_of_any_length():
        for rows, row in enumerate(_rows(config), start=1):
            seen_columns.update(dict.fromkeys(row))
            try:
                problem = _problem(row, fields, config)
            except _RowFault as fault:
                unreadable.append(f"row {rows}: {fault}")
                continue
            if problem is None:
                skipped += 1
                continue
            duplicates += problem.problem_id in found
            _check_same(found.setdefault(problem.problem_id, problem), problem)
    _check_columns(config, fields, seen_columns, rows)
    if not found:
        why = unreadable[0] if unreadable else f"{rows} rows without a problem text"
        raise InputError(
            f"{config.file} gives no problem ({why})", "at least one", "check --preset and --map"
        )
    return Imported(_selected(list(found.values()), config), duplicates, skipped, tuple(unreadable))


def _selected(problems: list[Problem], config: ImportConfig) -> list[Problem]:
    if config.shuffle_seed is not None:
        # Of all of Random's methods only random() is promised to stay the same in future versions of Python.
        rng = random.Random(config.shuffle_seed)
        problems = sorted(problems, key=lambda _: rng.random())
    return problems[: config.limit]


def _fields(config: ImportConfig) -> dict[str, From]:
    """The preset's fields, or without one the columns that are named like a field (`answer` and `id` too, as many sets have them), overridden by `--map`."""
    for name in config.map:
        if name not in FIELDS:
            raise InputError(
                f"--map {name}={config.map[name]}",
                f"one of the fields {', '.join(FIELDS)}",
                "change the field",
            )
    if config.preset:
        fields = dict(PRESETS[config.preset].fields)
    else:
        given = {name for name in ("source", "task") if getattr(config, name)}
        fields = {name: From((name,), optional=name != "problem") for name in FIELDS if name not in given}
        for name, other in (("reference_answer", "answer"), ("problem_id", "id")):
            fields[name] = From((name, other), _given, optional=True)
    return fields | {name: From((column,)) for name, column in config.map.items()}


def _check_columns(config: ImportConfig, fields: Mapping[str, From], seen: Iterable[str], rows: int) -> None:
    if not rows:
        raise InputError(f"{config.file} has no rows", "at least one", "check the file, or --split")
    columns = set(seen)
    for name, field in fields.items():
        if not field.optional and field.columns[0] not in columns:
            has = ", ".join(map(str, seen)) or "none"
            raise InputError(
                f"{config.file} has no column {field.columns[0]!r} (its columns: {has})",
                f"a column for {name}",
                f"name it with --map {name}=COLUMN",
            )


def _check_same(kept: Problem, other: Problem) -> None:
    if kept.problem != other.problem:
        raise InputError(
            f"two different problems have the id {kept.problem_id!r}",
            "a value of its own for each problem",
            "map problem_id to another column, or leave it out",
        )


def _problem(row: Row, fields: Mapping[str, From], config: ImportConfig) -> Problem | None:
    """One row as a problem, or None when it has no problem text."""
    raw = {name: field.make(*(row.get(column) for column in field.columns)) for name, field in fields.items()}
    tests = _tests(raw.pop("tests", None))
    values = {name: _text(value) for name, value in raw.items()}
    text = values.get("problem")
    if text is None:
        return None
    source = values.get("source") or config.source or config.preset or _set_name(config.file)
    return Problem(
        problem_id=_problem_id(source, values.get("problem_id"), text),
        source=source,
        task=_task(
            values.get("task") or config.task or (PRESETS[config.preset].task if config.preset else "math")
        ),
        problem=text,
        reference_answer=values.get("reference_answer"),
        reference_solution=values.get("reference_solution"),
        tests=tests,
    )


def _problem_id(source: str, given: str | None, text: str) -> str:
    """Ids start with the source, so that sets can be joined; an id that already does is kept."""
    if given is None:
        return f"{source}-{content_hash(text, 16)}"
    return given if given.startswith(f"{source}-") else f"{source}-{given}"


def _task(value: str) -> Task:
    if value not in get_args(Task):
        raise _RowFault(f"task {value!r} is neither math nor code")
    return value


def _set_name(file: str) -> str:
    """`gsm8k` for data/gsm8k.jsonl.gz, for openai/gsm8k and for openai/gsm8k:main; `pipe` for a pipe, whose name is a number."""
    if Path(file).is_fifo():
        return "pipe"
    name = well_formed(Path(file).name)
    return name.removesuffix(_suffix(name) or "") if _suffix(name) else name.partition(":")[0]


# Values


def _text(value: Any) -> str | None:
    """A cell as text: None, NaN and blank text are None, 25.0 is "25", lists and objects are JSON."""
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    # Half of a surrogate pair is legal in JSON but cannot be written as UTF-8.
    text = "" if value is None else well_formed(str(value))
    return text if text.strip() else None


def _tests(value: Any) -> str | None:
    """Tests of any known form as JSON text (see the module's docstring); None where there is nothing to run."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _RowFault(f"tests are not JSON ({error})") from None
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, dict):
        raise _RowFault(
            f"tests are a {type(value).__name__}, not an object with lists of inputs and outputs (and fn_name for calls)"
        )
    tests = _tests_object(value)
    return _text(tests) if tests else None


def _tests_object(value: Row) -> dict[str, Any] | None:
    code = value.get("functional") or value.get("code")
    if isinstance(code, str):
        return {"kind": "functional", "code": code}
    inputs, outputs = (value.get(f"{name}s", value.get(name)) for name in ("input", "output"))
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise _RowFault(
            f"tests have the keys {', '.join(value)}, not inputs and outputs, nor functional code"
        )
    if len(inputs) != len(outputs):
        raise _RowFault(f"tests have {len(inputs)} inputs and {len(outputs)} outputs")
    if not inputs:
        return None
    if value.get("fn_name"):
        if not all(isinstance(given, list) for given in inputs):
            raise _RowFault("each of the inputs of a call is the list of its arguments")
        return {"kind": "call", "fn_name": value["fn_name"], "inputs": inputs, "outputs": outputs}
    return {"kind": "stdin", "inputs": [_lines(i) for i in inputs], "outputs": [_lines(o) for o in outputs]}


def _lines(value: Any) -> str:
    """What goes through standard input or output; some sets list its lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _given(*values: Any) -> Any:
    """The first value that is one; many sets call the reference answer just that, an answer."""
    return next((value for value in values if value is not None), None)


def _first(value: Any) -> Any:
    """The first of a list of solutions, which may be written as JSON; a text that is no list is the solution."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _RowFault(f"solutions are not a JSON list ({error})") from None
    return next(iter(value), None) if isinstance(value, list) else value


def _gsm8k_parts(value: Any) -> tuple[str, str]:
    solution, mark, answer = str(value).rpartition("####")
    if not mark:
        raise _RowFault("the answer has no '####' before its number")
    return re.sub(r"<<[^<>]*>>", "", solution).strip(), answer.strip().replace(",", "")


def _with_starter_code(question: Any, starter_code: Any) -> Any:
    if not _text(question) or not _text(starter_code):
        return question
    return f"{question}\n\nComplete this code:\n```python\n{starter_code}\n```"


PRESETS: dict[str, Preset] = {
    "gsm8k": Preset(
        "math",
        {
            "problem": From(("question",)),
            "reference_answer": From(("answer",), lambda value: _gsm8k_parts(value)[1]),
            "reference_solution": From(("answer",), lambda value: _gsm8k_parts(value)[0]),
        },
    ),
    "math": Preset(
        "math",
        {
            "problem": From(("problem",)),
            "reference_answer": From(("answer",)),
            "reference_solution": From(("solution",), optional=True),
        },
    ),
    "deepscaler": Preset(
        "math",
        {
            "problem": From(("problem",)),
            "reference_answer": From(("answer",)),
            "reference_solution": From(("solution",)),
        },
    ),
    "taco": Preset(
        "code",
        {
            "problem": From(("question", "starter_code"), _with_starter_code),
            "reference_solution": From(("solutions",), _first),
            "tests": From(("input_output",)),
        },
    ),
    "leetcode": Preset(
        "code",
        {
            "problem": From(("problem",)),
            "reference_solution": From(("solutions",), _first),
            "tests": From(("tests",)),
        },
    ),
    "code_contests": Preset("code", {"problem": From(("problem",)), "tests": From(("tests",))}),
}


# Files


def _rows(config: ImportConfig) -> Iterator[Row]:
    path, suffix = Path(config.file), _suffix(config.file)
    if path.is_dir():
        raise InputError(f"{path} is a directory", "a file", "name the file in it")
    if not path.exists():
        if suffix is None and _HUB_NAME.fullmatch(config.file):
            return iter(_hub_rows(config.file, config.split))
        raise InputError(f"no such file: {path}", "a file, or a Hub dataset as owner/name", "check the path")
    return file_rows(path)


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, read by its suffix; InputError for another suffix, and for what cannot be read."""
    # As of <(...), which has no name of its own.
    suffix = ".jsonl" if path.is_fifo() else _suffix(str(path))
    if suffix is None:
        raise InputError(
            f"{path} has the suffix {path.suffix!r}", f"one of {', '.join(_READERS)}", "convert or rename it"
        )
    return _guarded(path, _READERS[suffix](path))


def _suffix(file: str) -> str | None:
    return next((suffix for suffix in _READERS if file.lower().endswith(suffix)), None)


def _guarded(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows, with what the operating system, gzip or Parquet raise on the way as one InputError."""
    try:
        yield from rows
    except (Damage, OSError, EOFError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "JSONL, as which a pipe is read," if path.is_fifo() else "a whole, readable file"
        raise InputError(f"{path} could not be read ({reason})", f"{kind} in UTF-8", "get it again") from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.removeprefix(_BOM))
            except ValueError as error:
                raise _malformed(path, f"line {number}", f"not JSON ({error})") from None
            yield _object(path, f"line {number}", row)


def _json_rows(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text)
    except ValueError as error:
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
                    raise _malformed(
                        path, f"line {reader.line_num}", f"{len(cells)} cells under {len(header)} columns"
                    )
                if cells:
                    yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise _malformed(path, f"line {reader.line_num}", str(error)) from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    with source_of(path) as source, open(path, "rb") as file:
        checksums = Checksums(file)  # of files that trd wrote; others may have those of pages
        with pq.ParquetFile(source, page_checksum_verification=True) as parquet:
            checksums.check_columns(parquet.metadata)
            for batch in parquet.iter_batches(batch_size=256):
                yield from batch.to_pylist()


def _object(path: Path, where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise _malformed(path, where, f"a {type(row).__name__}, not an object")
    return row


def _malformed(path: Path, where: str, what: str) -> InputError:
    return InputError(f"{path}, {where}: {what}", "one row with named columns", "mend or remove it")


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".jsonl.gz": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


@contextmanager
def _integers_of_any_length() -> Iterator[None]:
    """Python refuses to read integers of more than 4300 digits; TACO's tests have some."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


# The Hub

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
# Sets that their bare name does not load: GSM8K asks which subset, TACO has a loading script (no longer run) beside its data.
_HUB_SUBSETS = {"openai/gsm8k": "main"}
_HUB_FILES = {"BAAI/TACO": "hf://datasets/BAAI/TACO/ALL/{split}-*.parquet"}


def _hub_rows(file: str, split: str) -> Iterable[Row]:
    """The rows of a Hub dataset, downloaded into the datasets package's cache."""
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
            return load_dataset(
                "parquet", data_files={base: _HUB_FILES[name].format(split=base)}, split=split
            )
        return load_dataset(name, subset or _HUB_SUBSETS.get(name), split=split)
    except Exception as error:  # the package passes on whatever its HTTP, file and builder layers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{file!r} is no file here and the Hub did not give it ({reason})",
            "a file, or owner/name or owner/name:subset of a Hub dataset with that --split",
            "check the name, the network, and HF_TOKEN for gated sets",
        ) from None
