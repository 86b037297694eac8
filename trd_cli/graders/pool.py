"""Grade rows in worker processes and kill each worker whose row takes too long.

A row that hangs ends as `timeout`. A row ends as `error` if it kills its worker, raises, or takes more memory or CPU
time than a worker may. Other rows are not affected, and a fresh worker takes over. If a worker dies, its row gets a
second one, because the row may not be to blame; a worker that dies before it has a row costs no row anything. Programs
of code rows run in a sandbox below the worker (see `sandbox`) and end with it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import groupby, islice
from queue import SimpleQueue
from typing import Any, TypeVar

from trd_cli import keeper
from trd_cli.errors import InputError, flag
from trd_cli.graders import code, gym, math, own
from trd_cli.graders.base import Grade, Question, Way, grade_all
from trd_cli.graders.code import CodeOptions
from trd_cli.graders.crew import IMPORT_SECONDS, Crew
from trd_cli.graders.options import Grader, GraderOptions
from trd_cli.graders.sandbox import Level, choose_level, described
from trd_cli.graders.workers import Died, Expired, Raised, Work
from trd_cli.own_code import OwnCodeError
from trd_cli.records import Verdict
from trd_cli.redaction import one_line

_CLASSES_SECONDS = 30.0
# Sending a task to a worker costs more than grading a usual row of mathematics. Such rows therefore go together, at
# most `_CHUNK_ROWS`, and one by one if the chunk has not ended after `_CHUNK_SECONDS`.
_CHUNK_ROWS, _CHUNK_SECONDS = 32, 3.0
# As many pieces of work a worker are under way at a time, so that none waits for the next one.
_AHEAD = 4
# Of the workers, where they are kept.
_NAME = "graders"
T = TypeVar("T")


def _portions(questions: Iterable[Question], size: int) -> Iterator[Sequence[Question]]:
    """Yield the questions in order, so many at a time; the last portion may have fewer."""
    rest = iter(questions)
    while portion := list(islice(rest, size)):
        yield portion


class GraderPool:
    """Grade questions in worker processes; use as a context manager.

    In a process that keeps things (see `keeper`) the workers stay for the next pool that has as many, with as much
    memory, unless the block ended with an exception or left work undone.
    """

    def __init__(self, options: GraderOptions) -> None:
        self._options = options
        self._workers = options.workers or os.cpu_count() or 1
        self._code: CodeOptions | None = None

    def __enter__(self) -> GraderPool:
        at, kind = keeper.current(), (self._workers, self._options.code.memory)
        kept = at.take(_NAME) if at is not None else None
        if kept is not None and kept.kind != kind:
            kept.close()
            kept = None
        self._crew: Crew = kept or Crew(*kind)
        try:
            self._check_own()
        except BaseException:
            self._crew.close(at_once=True)
            raise
        return self

    def _check_own(self) -> None:
        """Raise InputError for a grader of the user's that a worker cannot import."""
        for grader in self._options.own.values():
            try:
                self._crew.schedule(IMPORT_SECONDS, own.load, grader).result()
            except (Raised, Expired, Died) as failure:
                why = str(failure).removeprefix(f"{OwnCodeError.__name__}: {grader.code}: ")
                raise InputError(
                    f"{flag('grader')} {grader.code}: {why}", "a function of a module that can be imported", "mend it"
                ) from None

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        at = keeper.current()
        if kind is not None:
            self._crew.close(at_once=True)
        elif at is not None and self._crew.is_idle():
            at.put(_NAME, self._crew, self._crew.close)
        else:
            self._crew.close()

    @property
    def sandbox(self) -> Level:
        """Return the level that programs run in; raises InputError if the level asked for is unavailable."""
        return self._code_options().sandbox

    @property
    def sandbox_described(self) -> str:
        """Return the level that programs run in, and why `auto` chose no stronger one; raises like `sandbox`."""
        return described(self._options.sandbox)

    def _code_options(self) -> CodeOptions:
        if self._code is None:
            self._code = replace(self._options.code, sandbox=choose_level(self._options.sandbox))
        return self._code

    def grade(self, questions: Iterable[Question]) -> Iterator[Grade]:
        """Yield one grade for each question, in order. Questions are taken as the workers have room for them."""
        chunks = self._chunks(questions)
        # Rows of chunks that were killed, died or raised: they go one by one, those that hang side by side.
        alone: deque[tuple[int, Sequence[Question]]] = deque()
        working: dict[Future[Any], tuple[int, Sequence[Question]]] = {}
        ended: SimpleQueue[Future[Any]] = SimpleQueue()
        grades: dict[int, Grade] = {}
        taken = yielded = 0
        while True:
            while len(working) < _AHEAD * self._workers:
                if alone:
                    start, chunk = alone.popleft()
                elif chunk := next(chunks, None):
                    start, taken = taken, taken + len(chunk)
                else:
                    break
                future = self._submit(chunk)
                working[future] = start, chunk
                future.add_done_callback(ended.put)
            if not working:
                return
            future = ended.get()
            start, chunk = working.pop(future)
            found = _result(future, self._grader(chunk[0]).seconds)
            if isinstance(found, list):
                grades |= enumerate(found, start)
            elif len(chunk) > 1:
                alone += [(start + i, [question]) for i, question in enumerate(chunk)]
            else:
                grades[start] = found
            while yielded in grades:
                yield grades.pop(yielded)
                yielded += 1

    def _grader(self, question: Question) -> Grader:
        grader = self._options.grader(question.task, question.tests)
        assert grader is not None, f"a row of the task {question.task}, which has no grader"
        return grader

    def _chunks(self, questions: Iterable[Question]) -> Iterator[Sequence[Question]]:
        """Yield the questions in order, in chunks of one grader.

        Consecutive rows of a fast grader share chunks of one size; any other row is alone. Questions are taken as many
        at a time as make four full chunks a worker, which is where the chunks of a short row of questions get their
        size.
        """
        for taken in _portions(questions, 4 * self._workers * _CHUNK_ROWS):
            size = max(1, min(_CHUNK_ROWS, len(taken) // (4 * self._workers)))
            for grader, rows in groupby(taken, key=self._grader):
                yield from _portions(rows, size if grader.together else 1)

    def _submit(self, questions: Sequence[Question]) -> Future[Any]:
        """Have a chunk graded, which gives a list of grades, or a single row, which gives its grade."""
        first = questions[0]
        grader = self._grader(first)
        (function, arguments), before = self._way(grader), _before(grader)
        if len(questions) > 1:
            # Never longer than a single row may take: a verdict must not depend on the chunking.
            seconds = min(_CHUNK_SECONDS, grader.seconds)
            return self._crew.schedule(seconds, grade_all, questions, (function, arguments), tries=1, before=before)
        return self._crew.schedule(grader.seconds, function, first, *arguments, before=before)

    def _way(self, grader: Grader) -> Way:
        if grader.own is not None:
            return own.grade, (grader.own,)
        if grader.name == math.NAME:
            return math.grade, (self._options.lenient,)
        if grader.name == gym.NAME:
            return gym.grade, (self._options.lenient,)
        return code.grade, (self._code_options(),)

    def second_opinions(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        """Yield the verdict of another method on each question, in order, or None if it cannot judge.

        For mathematics the method is math-verify called plainly, with its own extraction. Rows of other graders are
        graded once more.
        """
        for question, future in self._ahead(self._ask_again, questions):
            second = _result(future, 0.0)
            if self._grader(question).name != math.NAME:
                yield second.verdict
            else:
                yield ("correct" if second else "incorrect") if isinstance(second, bool) else None

    def _ask_again(self, question: Question) -> Future[Any]:
        if self._grader(question).name == math.NAME:
            return self._crew.schedule(self._options.timeout, math.second_opinion, question)
        return self._submit([question])

    def classes(self, groups: Iterable[Sequence[str]]) -> Iterator[list[int]]:
        """Yield the equivalence classes of each group of answers, by text alone if comparing them takes too long."""
        for group, future in self._ahead(self._compare, groups):
            found = _result(future, _CLASSES_SECONDS)
            if isinstance(found, list):
                yield found
            else:
                numbers: dict[str, int] = {}
                yield [numbers.setdefault(answer, len(numbers)) for answer in group]

    def _compare(self, group: Sequence[str]) -> Future[Any]:
        return self._crew.schedule(_CLASSES_SECONDS, math.answer_classes, list(group))

    def _ahead(self, submit: Callable[[T], Future[Any]], items: Iterable[T]) -> Iterator[tuple[T, Future[Any]]]:
        """Yield each item with the future of its work, in order; the work of a bounded number begins ahead."""
        begun: deque[tuple[T, Future[Any]]] = deque()
        for item in items:
            begun.append((item, submit(item)))
            if len(begun) > _AHEAD * self._workers:
                yield begun.popleft()
        yield from begun


def _before(grader: Grader) -> Work | None:
    """Return what a worker does before its first row of a grader, outside the row's time."""
    if grader.own is not None:
        return own.load, (grader.own,)
    return (gym.load, ()) if grader.name == gym.NAME else None


def _result(future: Future[Any], seconds: float) -> Any:
    """Return the result of the work, or a grade that says why there is none.

    Raises InputError if no worker starts.
    """
    try:
        return future.result()
    except Expired:
        return Grade("timeout", detail=f"killed after {seconds:g} s")
    except Died as death:
        return Grade("error", detail=f"the grader's process {death}")
    except Raised as error:
        return Grade("error", detail=one_line(error, 500))
