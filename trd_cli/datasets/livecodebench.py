"""Load LiveCodeBench (code generation, lite) within a window of contest dates.

The Hub repository has a loading script, which is no longer run, beside its data: test.jsonl is the first release, and
each further file holds the problems that a release added (problems and dates from LiveCodeBench's README). The union of
all six is release_v6. Files whose release ended before the window are not fetched. Rows of the others are read one at a
time, and tests are decoded only for problems within the window.

Tests are JSON lists of {input, output, testtype}. The public ones are plain, the private ones plain or
base64(zlib(pickle(JSON text))). The pickle is read without any global, so it can build a text but call nothing. A
function's input has one JSON value a line for each argument; its output is one JSON value.

Not covered: LiveCodeBench's other scenarios; a limit on the size of a problem's decoded tests.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import re
import zlib
from calendar import monthrange
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from trd_cli.datasets.code_tests import function_name, of_cases
from trd_cli.datasets.rows import file_rows
from trd_cli.datasets.sources import Fetched, Loaded, fetch
from trd_cli.errors import InputError, first_line
from trd_cli.local_data import local_file
from trd_cli.records import Problem

REPOSITORY = "livecodebench/code_generation_lite"
REVISION = "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"
# Papers call the 131 problems of this window "LiveCodeBench v6": those of release_v6 from February 2025 on.
WINDOW = {"from": "2025-02-01", "to": "2025-05-31"}
SIZE = 131


@dataclass(frozen=True)
class _Release:
    file: str
    rows: int
    last: date


_RELEASES = (
    _Release("test.jsonl", 400, date(2024, 3, 31)),
    _Release("test2.jsonl", 111, date(2024, 5, 31)),
    _Release("test3.jsonl", 101, date(2024, 7, 31)),
    _Release("test4.jsonl", 101, date(2024, 9, 30)),
    _Release("test5.jsonl", 167, date(2025, 1, 31)),
    _Release("test6.jsonl", 175, date(2025, 4, 30)),
)
# A problem's text ends in one of these instructions.
_BY_STDIN = "Write a Python program that reads from standard input and prints its answer to standard output."
_BY_CALL = "Complete this code, keeping its names and arguments:\n```python\n{}\n```"


def load_livecodebench(name: str, window: Mapping[str, str], revision: str | None) -> Loaded:
    """Return the problems with a contest date from `window["from"]` to `window["to"]`, both days included.

    Dates are YYYY-MM-DD, or YYYY-MM for the whole month. Raises InputError for another date, a window without problems,
    a file whose number of rows is not its release's, and a row that cannot be read.
    """
    first, last = _window(window)
    problems: list[Problem] = []
    for release in _RELEASES:
        if release.last >= first:
            file = _fetch(release, revision)
            problems += _problems(name, file, release, first, last)
    if not problems:
        raise InputError(
            f"{name} has no problem from {first} to {last}", "a window in release_v6", "change from= and to="
        )
    where = file.source if file.commit is None else f"{REPOSITORY}@{file.commit[:12]}"
    size = SIZE if dict(window) == WINDOW else None
    return Loaded(problems, where, file.commit, size, notes=(f"contest dates {first} to {last}",))


def _fetch(release: _Release, revision: str | None) -> Fetched:
    try:
        return fetch(f"livecodebench/{release.file}", REPOSITORY, release.file, revision, REVISION)
    except InputError as error:
        if local_file("livecodebench_v6_prompts.jsonl") is None:
            raise
        raise type(error)(
            f"{error.got} (TRD_DATA has the prompts of livecodebench only, without tests)", error.expected, error.mend
        ) from None


def _window(window: Mapping[str, str]) -> tuple[date, date]:
    first, last = _day("from", window["from"], 1), _day("to", window["to"], None)
    if first > last:
        raise InputError(f"from={first} and to={last}", "from= before to=", "change the window")
    return first, last


def _day(key: str, text: str, day: int | None) -> date:
    """Return a date; a month stands for its first day (`day` 1) or its last one (None)."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}", text):
            year, month = map(int, text.split("-"))
            return date(year, month, day or monthrange(year, month)[1])
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"livecodebench:{key}={text}", "YYYY-MM-DD or YYYY-MM", "change the date") from None


def _problems(name: str, file: Fetched, release: _Release, first: date, last: date) -> Iterator[Problem]:
    rows = 0
    for rows, row in enumerate(file_rows(file.path), start=1):
        try:
            if first <= date.fromisoformat(row["contest_date"][:10]) <= last:
                yield _problem(name, row)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"row {rows} of {file.source}: {first_line(error)}", "LiveCodeBench's columns", "get the file again"
            ) from None
    if rows != release.rows:
        raise InputError(f"{file.source} has {rows} rows", str(release.rows), "get the file again")


def _problem(name: str, row: Mapping[str, Any]) -> Problem:
    ending = _BY_CALL.format(row["starter_code"].strip("\n")) if row["starter_code"].strip() else _BY_STDIN
    cases = _cases(row["public_test_cases"]) + _cases(row["private_test_cases"])
    tests = of_cases(cases, function_name(row["metadata"]))
    return Problem(
        f"livecodebench-{row['question_id']}",
        name,
        "code",
        f"{row['question_content'].strip()}\n\n{ending}",
        tests=json.dumps(tests, ensure_ascii=False),
    )


def _cases(text: str) -> list[dict[str, Any]]:
    if text.lstrip().startswith("["):
        return json.loads(text)
    try:
        pickled = zlib.decompress(base64.b64decode(text, validate=True))
        unpickled = _WithoutGlobals(io.BytesIO(pickled)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, IndexError) as error:
        raise ValueError(f"tests cannot be decoded ({error})") from None
    if not isinstance(unpickled, str):
        raise ValueError(f"tests are a pickled {type(unpickled).__name__}, not a text")
    return json.loads(unpickled)


class _WithoutGlobals(pickle.Unpickler):
    """Read a pickle of plain values; refuse one that names a class or function, which is how a pickle runs code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"the pickle asks for {module_name}.{global_name}")
