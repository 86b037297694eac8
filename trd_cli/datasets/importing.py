"""Import problem sets from files and from the Hugging Face Hub: presets for known sets, column maps for all others.

Rows are read one at a time, and their problems go to a temporary file: in memory are the digest of each id and a few
numbers, some 160 bytes a problem. No answer is lost in silence: each one that is not taken is counted, and
`Imported.remarks` reports it.

Not covered: whether a reference answer or a test is right.
"""

from __future__ import annotations

import hashlib
import random
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from trd_cli.config.commands import ImportConfig
from trd_cli.datasets.columns import From, found, has, paths
from trd_cli.datasets.presets import ANSWERS, PRESETS
from trd_cli.datasets.problem_rows import Counts, listed, problem_of
from trd_cli.datasets.rows import Row, rows_of
from trd_cli.datasets.spool import Spool, Spooled
from trd_cli.datasets.values import RowFault
from trd_cli.errors import InputError, counted
from trd_cli.graders.answers import reference_answer
from trd_cli.graders.base import graded_by
from trd_cli.records import Problem

FIELDS = ("problem", "reference_answer", "reference_solution", "tests", "problem_id", "source", "task")
# Other names of fields in `--map`.
_ALIASES = {"answer": "reference_answer", "solution": "reference_solution", "id": "problem_id"}


@dataclass(frozen=True)
class Imported:
    """Hold the problems of a file. The first of those with the same id stays; `duplicates` counts the others.

    `skipped` counts the rows without a problem text. `unreadable` has one line for each row that was left out because
    of a value that could not be understood (such as tests that are not JSON): "row 7: …", counted from 1.
    `mathematics` is the number of such problems in `problems`. `unanswered` are the rows of those without one reference
    answer, `untested` the rows of those of code without tests. `remarks` are lines for people on changed and omitted
    values.
    """

    problems: Sequence[Problem]
    duplicates: int
    skipped: int
    unreadable: tuple[str, ...]
    mathematics: int
    unanswered: Sequence[int]
    untested: Sequence[int]
    remarks: tuple[str, ...]

    def left_out(self) -> str:
        """Return the numbers of rows left out, by reason; empty where there is none."""
        unreadable = len(self.unreadable)
        by_reason = {
            counted(self.duplicates, "duplicate"): self.duplicates,
            counted(self.skipped, "row") + " without a problem": self.skipped,
            counted(unreadable, "unreadable row"): unreadable,
        }
        return ", ".join(reason for reason, rows in by_reason.items() if rows)

    def ungraded(self) -> Iterator[str]:
        """Yield a line on the rows in `unanswered` and one on those in `untested`."""
        for rows, lacking in ((self.unanswered, "single reference answer"), (self.untested, "tests")):
            if rows:
                yield f"no {lacking} in {listed(rows)}: no verdict will say right or wrong"


def import_problems(config: ImportConfig, scratch: Path | None = None) -> Imported:
    """Return the problems of `config.file`, shuffled by `shuffle_seed` and cut to `limit` at the end.

    They stay in a temporary file in the directory `scratch` (default: the one for temporary files).

    Raises InputError for a file or Hub set that cannot be read, a malformed line, a field or column that does not
    exist, a column that holds objects where one value is needed, two different problems with one mapped id, and a file
    without any problem.
    """
    sources = _fields(config)
    seen, found, counts = _Seen(sources), _Found(scratch), Counts()
    unreadable: list[str] = []
    skipped = 0
    with _integers_of_any_length():
        for counts.row, row in enumerate(rows_of(config.file, config.split), start=1):
            seen.add(row)
            try:
                problem = problem_of(row, sources, config, counts)
            except RowFault as fault:
                unreadable.append(f"row {counts.row}: {fault}")
                continue
            if problem is None:
                skipped += 1
            else:
                found.add(problem, counts)
    seen.check(config, counts.row)
    if not found.spool:
        why = unreadable[0] if unreadable else f"{counted(counts.row, 'row')} without a problem text"
        raise InputError(f"{config.file} gives no problem ({why})", "at least one", "check --preset and --map")
    return found.imported(_order(len(found.spool), config), skipped, unreadable, counts)


def check_answers(imported: Imported, config: ImportConfig) -> None:
    """Raise InputError if no problem of mathematics has a reference answer, unless `config.no_answers` allows that."""
    asked = imported.mathematics
    if asked and asked == len(imported.unanswered) and not config.no_answers:
        raise InputError(
            f"{config.file} gives {counted(asked, 'problem')} of mathematics but no reference answer",
            f"answers in a column that --map names, or in one of {', '.join(ANSWERS)}",
            "name it with --map reference_answer=COLUMN, or pass --no-answers to go without",
        )


def _order(count: int, config: ImportConfig) -> np.ndarray:
    """Return the numbers of the problems to take, in order."""
    if config.shuffle_seed is None:
        return np.arange(count)[: config.limit]
    # Python promises only for random() that its numbers stay the same in future versions.
    rng = random.Random(config.shuffle_seed)
    return np.argsort(np.fromiter((rng.random() for _ in range(count)), float, count), kind="stable")[: config.limit]


# Kinds of problems: those of mathematics and those that tests grade, each with and without what its grader needs, and
# all others.
_ANSWERED, _UNANSWERED, _TESTED, _UNTESTED, _OTHER = range(5)


def _kind(problem: Problem) -> int:
    if problem.task != "math":
        needs = graded_by(problem.task)
        return _OTHER if needs is None else _TESTED if getattr(problem, needs) else _UNTESTED
    return _ANSWERED if problem.reference_answer and reference_answer(problem.reference_answer) else _UNANSWERED


class _Found:
    """Collect the problems of a file: the first one with each id, completed by the later ones."""

    def __init__(self, scratch: Path | None) -> None:
        self.spool = Spool(scratch)
        self._duplicates = 0
        self._numbers: dict[bytes, int] = {}
        # Of each problem: the number of its row, and its kind.
        self._rows, self._kinds = array("Q"), bytearray()

    def add(self, problem: Problem, counts: Counts) -> None:
        """Take the problem of the current row; raises InputError where a different one has its id."""
        digest = hashlib.blake2b(problem.problem_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        number = self._numbers.setdefault(digest, len(self.spool))
        if number == len(self.spool):
            self.spool.append(problem)
            self._rows.append(counts.row)
            self._kinds.append(_kind(problem))
            return
        self._duplicates += 1
        kept = self.spool[number]
        whole = _joined(kept, problem, counts)
        if whole != kept:
            self.spool[number] = whole
            self._kinds[number] = _kind(whole)

    def imported(self, chosen: np.ndarray, skipped: int, unreadable: Sequence[str], counts: Counts) -> Imported:
        """Return the problems of these numbers, with the remarks on all."""
        rows, kinds = np.frombuffer(self._rows, np.uint64)[chosen], np.frombuffer(self._kinds, np.uint8)[chosen]
        unanswered, untested = (array("Q", np.sort(rows[kinds == kind]).tobytes()) for kind in (_UNANSWERED, _UNTESTED))
        return Imported(
            Spooled(self.spool, chosen),
            self._duplicates,
            skipped,
            tuple(unreadable),
            mathematics=int((kinds <= _UNANSWERED).sum()),
            unanswered=unanswered,
            untested=untested,
            remarks=tuple(counts.remarks()),
        )


# Fields and their columns


def _fields(config: ImportConfig) -> dict[str, From]:
    """Return the fields and their origins: the preset's, or the columns named like a field, overridden by `--map`.

    Without a preset the columns `answer`, `solution` and `id` count as fields too, as many sets have them.
    """
    mapped = mapped_fields(config.map)
    given = {name for name in ("source", "task") if getattr(config, name)}
    if config.preset:
        known = PRESETS[config.preset].fields
        sources = {name: source for name, source in known.items() if name not in given}
    else:
        sources = {name: From((name,), optional=name != "problem") for name in FIELDS if name not in given}
        answers = ("reference_answer", "answer") if config.task == "code" else ANSWERS
        free = tuple(name for name in answers if name not in mapped.values())
        sources["reference_answer"] = From((free,), optional=True)
        sources["reference_solution"] = From((("reference_solution", "solution"),), optional=True)
        sources["problem_id"] = From((("problem_id", "id"),), optional=True)
    return sources | {name: From((column,)) for name, column in mapped.items()}


def mapped_fields(columns: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """Return the column that --map names for each field of a problem, or for one of `more`.

    Raises InputError for another field.
    """
    known = (*FIELDS, *more)
    for name, column in columns.items():
        if _ALIASES.get(name, name) not in known:
            raise InputError(f"--map {name}={column}", f"one of the fields {', '.join(known)}", "change the field")
    return {_ALIASES.get(name, name): column for name, column in columns.items()}


class _Seen:
    """Record the columns of the rows so far, and which required ones were among them."""

    def __init__(self, sources: Mapping[str, From]) -> None:
        self._missing = {name: source for name, source in sources.items() if not source.optional}
        self._columns: dict[str, None] = {}
        self._first: dict[str, Any] = {}

    def add(self, row: Row) -> None:
        self._columns.update(dict.fromkeys(row))
        if self._missing:
            self._first = self._first or dict(row)
            there = [n for n, s in self._missing.items() if any(has(row, column) for column in s.first())]
            for name in there:
                del self._missing[name]

    def check(self, config: ImportConfig, rows: int) -> None:
        """Raise InputError if there was no row, or if no row had a required column."""
        if not rows:
            raise InputError(f"{config.file} has no rows", "at least one", "check the file, or --split")
        for name, source in self._missing.items():
            column = " or ".join(repr(str(c)) for c in source.first())
            has_columns = ", ".join(map(str, self._columns)) or "none"
            inside = self._inside(source)
            raise InputError(
                f"{config.file} has no column {column} (its columns: {has_columns}{inside})",
                f"a column for {name}",
                f"name it with --map {name}=COLUMN",
            )

    def _inside(self, source: From) -> str:
        """Describe the first row's content of the column that a path of `source` begins with."""
        roots = [column.split(".")[0] for column in source.first() if "." in column]
        inside = [
            path
            for root in roots
            for _, value in found(self._first, root)
            for path in paths(value, root)
            if path != root
        ]
        return f"; inside of them: {', '.join(inside)}" if inside else ""


def _joined(kept: Problem, other: Problem, counts: Counts) -> Problem:
    """Return the first of two equal problems, completed by the second; raise InputError if they are not equal."""
    if kept.problem != other.problem:
        raise InputError(
            f"two different problems have the id {kept.problem_id!r}",
            "a value of its own for each problem",
            "map problem_id to another column, or leave it out",
        )
    given = {f.name: getattr(other, f.name) for f in fields(Problem) if getattr(kept, f.name) is None}
    if None not in (kept.reference_answer, other.reference_answer) and (
        kept.reference_answer != other.reference_answer
    ):
        counts.repeated.append(counts.row)
    return replace(kept, **given)


@contextmanager
def _integers_of_any_length() -> Iterator[None]:
    """Lift Python's limit of 4300 digits an integer; some of TACO's tests have longer ones."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)
