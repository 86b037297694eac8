"""Problem sets from files and from the Hugging Face Hub: presets for known sets, column maps for all others.

Rows are read one at a time, so that only what becomes a problem is held. An answer is never lost in silence: what is not taken is
counted, and `Imported.remarks` says it.

Not covered: whether a reference answer or a test is right.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

from trd_cli.config import ImportConfig
from trd_cli.datasets.code_tests import tests_json
from trd_cli.datasets.columns import From, first_filled, has, paths, values
from trd_cli.datasets.conversations import has_system_turn
from trd_cli.datasets.presets import ANSWERS, PRESETS
from trd_cli.datasets.rows import Row, rows_of, set_name
from trd_cli.datasets.values import RowFault, Structured, answer_of, control_character, mended, text_of
from trd_cli.errors import InputError
from trd_cli.graders.reading import reference_answer
from trd_cli.records import Problem, Task, content_hash

FIELDS = ("problem", "reference_answer", "reference_solution", "tests", "problem_id", "source", "task")
# Other names of fields in `--map`.
_ALIASES = {"answer": "reference_answer", "solution": "reference_solution", "id": "problem_id"}
_SHOWN_ROWS = 10


@dataclass(frozen=True)
class Imported:
    """What came of a file. Of problems with the same id the first one stays; `duplicates` counts the others.

    `skipped` counts the rows with no problem text. `unreadable` has one line for each row left out because a value in it
    could not be understood (as tests that are not JSON): "row 7: …", counted from 1. `unanswered` are the rows whose problem of
    mathematics is among `problems` without one reference answer; `remarks` are lines for people on what was changed or not taken.
    """

    problems: list[Problem]
    duplicates: int
    skipped: int
    unreadable: tuple[str, ...]
    unanswered: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()

    def without_answer(self) -> str | None:
        """Return a line on the rows in `unanswered`, or None where every problem of mathematics has its answer."""
        if not self.unanswered:
            return None
        return f"no single reference answer in {_listed(self.unanswered)}: no verdict will say right or wrong"


@dataclass
class _Counts:
    """What was changed or not taken on the way: numbers of rows, from 1."""

    rows: int = 0
    skipped: int = 0
    duplicates: int = 0
    unreadable: list[str] = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    contradicting: list[int] = field(default_factory=list)
    mended: list[int] = field(default_factory=list)
    worked: list[int] = field(default_factory=list)
    systems: list[int] = field(default_factory=list)

    def remarks(self) -> Iterator[str]:
        for rows, said in (
            (self.mended, "put back the backslashes that had become control characters"),
            (self.worked, "took the answer out of the worked solution"),
            (self.differing, f"took the first of two different answers in the columns {', '.join(ANSWERS)}"),
            (self.contradicting, "left out the answer of a repeated problem that differs from the first one"),
            (self.systems, "left out the system's turn"),
        ):
            if rows:
                yield f"{said} in {_listed(rows)}"


def import_problems(config: ImportConfig) -> Imported:
    """Return the problems of `config.file`, shuffled by `shuffle_seed` and cut to `limit` at the end.

    Raises InputError for a file or Hub set that cannot be read, a malformed line, a field or column that does not exist, a column
    that holds objects where one value is needed, two different problems with one mapped id, and a file that gives no problem at all.
    """
    sources = _fields(config)
    seen = _Seen(sources)
    found: dict[str, Problem] = {}
    row_of: dict[str, int] = {}
    counts = _Counts()
    with _integers_of_any_length():
        for counts.rows, row in enumerate(rows_of(config.file, config.split), start=1):
            seen.add(row)
            try:
                problem = _problem(row, sources, config, counts)
            except RowFault as fault:
                counts.unreadable.append(f"row {counts.rows}: {fault}")
                continue
            if problem is None:
                counts.skipped += 1
                continue
            row_of.setdefault(problem.problem_id, counts.rows)
            known = found.setdefault(problem.problem_id, problem)
            if known is not problem:
                counts.duplicates += 1
                found[problem.problem_id] = _joined(known, problem, counts)
    seen.check(config, counts.rows)
    if not found:
        why = counts.unreadable[0] if counts.unreadable else f"{counts.rows} rows without a problem text"
        raise InputError(
            f"{config.file} gives no problem ({why})", "at least one", "check --preset and --map"
        )
    problems = _selected(list(found.values()), config)
    unanswered = [row_of[p.problem_id] for p in problems if p.task == "math" and not _has_answer(p)]
    return Imported(
        problems,
        counts.duplicates,
        counts.skipped,
        tuple(counts.unreadable),
        tuple(sorted(unanswered)),
        tuple(counts.remarks()),
    )


def check_answers(imported: Imported, config: ImportConfig) -> None:
    """Raise InputError where no problem of mathematics has a reference answer, unless `config.no_answers` says that none is needed."""
    asked = sum(problem.task == "math" for problem in imported.problems)
    if asked and asked == len(imported.unanswered) and not config.no_answers:
        raise InputError(
            f"{config.file} gives {asked} problems of mathematics and not one reference answer",
            f"answers in a column that --map names, or in one of {', '.join(ANSWERS)}",
            "name it with --map reference_answer=COLUMN, or pass --no-answers to go without",
        )


def _has_answer(problem: Problem) -> bool:
    return bool(problem.reference_answer and reference_answer(problem.reference_answer))


def _listed(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", …" if len(rows) > _SHOWN_ROWS else "")
    return f"{len(rows)} rows ({shown})"


def _selected(problems: list[Problem], config: ImportConfig) -> list[Problem]:
    if config.shuffle_seed is not None:
        # Of all of Random's methods only random() is promised to stay the same in future versions of Python.
        rng = random.Random(config.shuffle_seed)
        problems = sorted(problems, key=lambda _: rng.random())
    return problems[: config.limit]


# Fields and their columns


def _fields(config: ImportConfig) -> dict[str, From]:
    """The preset's fields, or without one the columns that are named like a field (`answer` and `id` too, as many sets have them), overridden by `--map`."""
    mapped = {_ALIASES.get(name, name): column for name, column in config.map.items()}
    for name in config.map:
        if _ALIASES.get(name, name) not in FIELDS:
            raise InputError(
                f"--map {name}={config.map[name]}",
                f"one of the fields {', '.join(FIELDS)}",
                "change the field",
            )
    if config.preset:
        sources = dict(PRESETS[config.preset].fields)
    else:
        given = {name for name in ("source", "task") if getattr(config, name)}
        sources = {name: From((name,), optional=name != "problem") for name in FIELDS if name not in given}
        sources["reference_answer"] = From((ANSWERS,), optional=True)
        sources["problem_id"] = From((("problem_id", "id"),), optional=True)
    return sources | {name: From((column,)) for name, column in mapped.items()}


class _Seen:
    """The columns of the rows so far, and which of the required ones were there."""

    def __init__(self, sources: Mapping[str, From]) -> None:
        self._missing = {name: source for name, source in sources.items() if not source.optional}
        self._columns: dict[str, None] = {}
        self._first: dict[str, Any] = {}

    def add(self, row: Row) -> None:
        self._columns.update(dict.fromkeys(row))
        if self._missing:
            self._first = self._first or dict(row)
            there = [n for n, s in self._missing.items() if any(has(row, column) for column in s.required())]
            for name in there:
                del self._missing[name]

    def check(self, config: ImportConfig, rows: int) -> None:
        """Raise InputError where there was no row, or no row had a required column."""
        if not rows:
            raise InputError(f"{config.file} has no rows", "at least one", "check the file, or --split")
        for name, source in self._missing.items():
            column = " or ".join(repr(str(c)) for c in source.required())
            has_columns = ", ".join(map(str, self._columns)) or "none"
            inside = self._inside(source)
            raise InputError(
                f"{config.file} has no column {column} (its columns: {has_columns}{inside})",
                f"a column for {name}",
                f"name it with --map {name}=COLUMN",
            )

    def _inside(self, source: From) -> str:
        """What the first row has under the column that a path of `source` begins with."""
        roots = [column.split(".")[0] for column in source.required() if "." in column]
        found = [
            path
            for root in roots
            for value in values(self._first, [root])
            for path in paths(value, root)
            if path != root
        ]
        return f"; inside of them: {', '.join(found)}" if found else ""


# Rows


def _problem(row: Row, sources: Mapping[str, From], config: ImportConfig, counts: _Counts) -> Problem | None:
    """One row as a problem, or None when it has no problem text."""
    raw = {name: source(row) for name, source in sources.items()}
    tests = tests_json(raw.pop("tests", None))
    texts = {name: _text(name, value, sources[name], config, counts.rows) for name, value in raw.items()}
    if texts.get("problem") is None:
        return None
    task = _task(texts.get("task") or config.task or _preset_task(config))
    if task == "math":
        texts = _mended(texts, counts)
        texts = _with_one_answer(texts, counts)
        _count_different_answers(row, sources, counts)
    if config.preset and any(has_system_turn(value) for value in values(row, sources["problem"].required())):
        counts.systems.append(counts.rows)
    source = texts.get("source") or config.source or config.preset or set_name(config.file)
    return Problem(
        problem_id=_problem_id(source, texts.get("problem_id"), texts["problem"]),
        source=source,
        task=task,
        problem=texts["problem"],
        reference_answer=texts.get("reference_answer"),
        reference_solution=texts.get("reference_solution"),
        tests=tests,
    )


def _text(name: str, value: Any, source: From, config: ImportConfig, row: int) -> str | None:
    try:
        return answer_of(value) if name == "reference_answer" else text_of(value)
    except Structured as structured:
        column = source.required()[0]
        inside = paths(structured.value, column)
        kind = "an object" if isinstance(structured.value, Mapping) else "a list"
        raise InputError(
            f"{config.file}, row {row}: {column!r}, where {name} comes from, holds {kind} ({', '.join(inside)})",
            "one value",
            f"name the part with --map {name}={inside[0]}" + _preset_for(structured.value),
        ) from None


def _preset_for(value: Any) -> str:
    first = next(iter(value), None) if isinstance(value, list) else None
    talks = isinstance(first, Mapping) and {"role", "from"} & first.keys()
    return ", or read conversations with --preset messages" if talks else ""


def _mended(texts: dict[str, str | None], counts: _Counts) -> dict[str, str | None]:
    """The same texts with their commands of LaTeX whole; RowFault for an answer with what cannot be mended."""
    whole = {
        name: mended(text) if text and name in ("problem", "reference_answer", "reference_solution") else text
        for name, text in texts.items()
    }
    if whole != texts:
        counts.mended.append(counts.rows)
    wrong = control_character(whole.get("reference_answer") or "")
    if wrong:
        raise RowFault(f"the reference answer has the control character {wrong}")
    return whole


def _with_one_answer(texts: dict[str, str | None], counts: _Counts) -> dict[str, str | None]:
    """The same texts with the answer taken out of a worked solution, which is kept as one."""
    given = texts.get("reference_answer") or texts.get("reference_solution")
    answer = reference_answer(given) if given else None
    if not given or answer is None or answer == given.strip():
        return texts
    counts.worked.append(counts.rows)
    solution = texts.get("reference_solution") or (given if len(given.split()) > 1 else None)
    return texts | {"reference_answer": answer, "reference_solution": solution}


def _count_different_answers(row: Row, sources: Mapping[str, From], counts: _Counts) -> None:
    source = sources.get("reference_answer")
    names = source.columns[0] if source else ""
    if isinstance(names, tuple):
        given = [first_filled(row, name) for name in names]
        plain = {reference_answer(text) or text for text in map(answer_of, given) if text}
        if len(plain) > 1:
            counts.differing.append(counts.rows)


def _joined(kept: Problem, other: Problem, counts: _Counts) -> Problem:
    """The first of two equal problems, with what only the second one has; InputError where they are not equal."""
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
        counts.contradicting.append(counts.rows)
    return replace(kept, **given)


def _problem_id(source: str, given: str | None, text: str) -> str:
    """Ids start with the source, so that sets can be joined; an id that already does is kept."""
    if given is None:
        return f"{source}-{content_hash(text, 16)}"
    return given if given.startswith(f"{source}-") else f"{source}-{given}"


def _preset_task(config: ImportConfig) -> Task:
    return PRESETS[config.preset].task if config.preset else "math"


def _task(value: str) -> Task:
    if value.strip().lower() not in get_args(Task):
        raise RowFault(f"task {value!r} is neither math nor code")
    return value.strip().lower()


@contextmanager
def _integers_of_any_length() -> Iterator[None]:
    """Python refuses to read integers of more than 4300 digits; TACO's tests have some."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)
