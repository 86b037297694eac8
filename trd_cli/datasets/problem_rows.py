"""Turn one row of a file into a problem: take its fields as text, find its one reference answer, count every change."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trd_cli.config.commands import ImportConfig
from trd_cli.datasets.code_tests import tests_json
from trd_cli.datasets.columns import From, filled_in, found, paths
from trd_cli.datasets.conversations import has_system_turn, is_conversation
from trd_cli.datasets.presets import PRESETS
from trd_cli.datasets.rows import Row, set_name
from trd_cli.datasets.values import RowFault, Structured, answer_of, control_character, filled, mended, opened, text_of
from trd_cli.errors import InputError
from trd_cli.graders.answers import reference_answer
from trd_cli.records import TASK_NAME, Problem, Task, content_hash

_SHOWN_ROWS = 10
# Keys that likely hold the wanted value of an object with several.
_LIKELY = ("ground_truth", "answer", "final_answer", "content", "value", "text")
Texts = dict[str, str | None]


def _numbers() -> array[int]:
    return array("Q")


@dataclass
class Counts:
    """Hold the number of the current row, from 1, and of the rows in which something was changed or left out."""

    row: int = 0
    mended: array[int] = field(default_factory=_numbers)
    worked: array[int] = field(default_factory=_numbers)
    differing: array[int] = field(default_factory=_numbers)
    repeated: array[int] = field(default_factory=_numbers)
    systems: array[int] = field(default_factory=_numbers)
    columns: tuple[str, str] = ("", "")

    def remarks(self) -> Iterator[str]:
        """Yield a line for people on each kind of change."""
        taken, other = self.columns
        for rows, said in (
            (self.mended, "put back the backslashes that had become control characters"),
            (self.worked, "took the answer out of the worked solution"),
            (self.differing, f"took the answer in {taken!r} where another one stands in {other!r}"),
            (self.repeated, "left out the answer of a repeated problem that differs from the first one"),
            (self.systems, "left out the system's turn"),
        ):
            if rows:
                yield f"{said}: {listed(rows)}"


def listed(rows: Sequence[int]) -> str:
    """Return `row 3` for one row; for several, their number and the first of them."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", …" if len(rows) > _SHOWN_ROWS else "")
    return f"{len(rows)} rows ({shown})"


def problem_of(row: Row, sources: Mapping[str, From], config: ImportConfig, counts: Counts) -> Problem | None:
    """Return a row as a problem, or None if it has no problem text.

    Raises RowFault for a value that cannot be understood, and InputError for an object or a list where one value is
    needed.
    """
    tests = tests_json(sources["tests"](row)) if "tests" in sources else None
    texts = {
        name: _text(name, source, row, config, counts.row)
        for name, source in sources.items()
        if name not in ("tests", "reference_answer")
    }
    answer, worked = None, None
    if "reference_answer" in sources:
        answer, worked = _answer_and_solution(sources["reference_answer"], row, config, counts)
    if not texts.get("problem"):
        return None
    texts = {**texts, "reference_answer": answer, "reference_solution": texts.get("reference_solution") or worked}
    task = _task(texts.get("task") or config.task or (PRESETS[config.preset].task if config.preset else "math"))
    if task == "math":
        texts = _with_one_answer(_mended(texts, counts), counts)
    if config.preset and _has_system_turn(sources["problem"], row):
        counts.systems.append(counts.row)
    source = texts.get("source") or config.source or config.preset or set_name(config.file)
    return Problem(
        problem_id=_problem_id(source, texts.get("problem_id"), texts["problem"]),
        source=source,
        task=task,
        problem=texts["problem"],
        reference_answer=texts["reference_answer"],
        reference_solution=texts["reference_solution"],
        tests=tests,
    )


def _text(name: str, source: From, row: Row, config: ImportConfig, number: int) -> str | None:
    try:
        value = source(row)
        if name == "problem" and is_conversation(value):
            raise Structured(value)
        return text_of(value)
    except Structured:
        raise _structured(name, source.all(), row, config, number) from None


def _answer_and_solution(source: From, row: Row, config: ImportConfig, counts: Counts) -> tuple[str | None, str | None]:
    """Return a row's reference answer, and the worked solution that another of its answer columns holds.

    The answer is the first column that holds a single answer, else the first filled one.
    """
    given = list(_answers(source, row, config, counts.row))
    if not given:
        return None, None
    certain = [item for item in given if filled(item[1], doubtful=False)] or given
    single = [(name, text, answer) for name, text in certain if (answer := reference_answer(text))]
    worked = next((text for _, text in certain if not reference_answer(text)), None)
    if not single:
        return worked, None
    name, text, answer = single[0]
    other = next((other for other, _, another in single if another != answer), None)
    if other:
        counts.differing.append(counts.row)
        counts.columns = counts.columns if all(counts.columns) else (name, other)
    return text, worked


def _answers(source: From, row: Row, config: ImportConfig, number: int) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each filled column for a reference answer."""
    for name, value in (item for names in source.first() for item in filled_in(row, names)):
        try:
            text = answer_of(source.make(value))
        except Structured:
            raise _structured("reference_answer", (name,), row, config, number) from None
        if text is not None:
            yield name, text


def _has_system_turn(source: From, row: Row) -> bool:
    return any(has_system_turn(value) for name in source.first() for _, value in found(row, name))


def _structured(name: str, columns: Sequence[str], row: Row, config: ImportConfig, number: int) -> InputError:
    """Return the error for an object or a list where one value is needed; it names the paths to the parts."""
    given = ((c, opened(value)) for column in columns for c, value in found(row, column))
    column, value = next((c, value) for c, value in given if isinstance(value, Mapping | list))
    inside = paths(value, column)
    part = next((path for path in inside if path.rpartition(".")[2] in _LIKELY), inside[0])
    mend = f"name the part with --map {name}={part}"
    if is_conversation(value):
        mend = f"read conversations with --preset messages, or {mend}"
    kind = "an object" if isinstance(value, Mapping) else "a list"
    return InputError(
        f"{config.file}, row {number}: {column!r}, where {name} comes from, holds {kind} ({', '.join(inside)})",
        "one value",
        mend,
    )


def _mended(texts: Texts, counts: Counts) -> Texts:
    """Return the texts with broken LaTeX commands mended.

    Raises RowFault if the answer still has a control character.
    """
    whole = dict(texts)
    for name in ("problem", "reference_answer", "reference_solution"):
        text = texts[name]
        whole[name] = text and mended(text, prose=name != "reference_answer")
    if whole != texts:
        counts.mended.append(counts.row)
    wrong = control_character(whole["reference_answer"] or "")
    if wrong:
        raise RowFault(f"the reference answer has the control character {wrong}")
    return whole


def _with_one_answer(texts: Texts, counts: Counts) -> Texts:
    """Return the texts with the answer taken out of a worked solution; the solution is kept."""
    given = texts["reference_answer"] or texts["reference_solution"]
    answer = reference_answer(given) if given else None
    if not given or answer is None or answer == given.strip():
        return texts
    counts.worked.append(counts.row)
    solution = texts["reference_solution"] or (given if len(given.split()) > 1 else None)
    return texts | {"reference_answer": answer, "reference_solution": solution}


def _problem_id(source: str, given: str | None, text: str) -> str:
    """Return an id that starts with the source, so that sets can be joined; an id that already does is kept."""
    if given is None:
        return f"{source}-{content_hash(text, 16)}"
    return given if given.startswith(f"{source}-") else f"{source}-{given}"


def _task(value: str) -> Task:
    task = value.strip().lower()
    if not TASK_NAME.fullmatch(task):
        raise RowFault(f"task {value!r} is no name: letters, digits, - and _")
    return task
