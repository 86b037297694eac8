"""Worker processes that grade rows, each killed when its row takes too long.

A row that hangs ends as `timeout`; one that kills its worker, raises, or takes more memory or CPU than a worker may ends as `error`. The
others are not touched, and a fresh worker takes the place. Programs of code rows run in a sandbox below the worker (see there) and end
with it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as GradingTimeout
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from multiprocessing import forkserver
from typing import Any, Literal

from pebble import ProcessExpired, ProcessPool

from trd_cli.config import GraderConfig
from trd_cli.errors import InputError
from trd_cli.graders import code, evalplus, math
from trd_cli.graders.base import Grade, Question
from trd_cli.graders.code import CodeOptions
from trd_cli.graders.sandbox import Level, choose_level
from trd_cli.records import Verdict

_GRACE = 5.0
# What a busy machine adds to the time of all tests.
_CODE_GRACE = 60.0
_CLASSES_SECONDS = 30.0
# Handing a task to a worker costs more than grading a usual row of mathematics: such rows go together, this many at most, and
# one by one where the chunk has not ended after so many seconds.
_CHUNK_ROWS, _CHUNK_SECONDS = 32, 3.0


@dataclass(frozen=True)
class GraderOptions:
    """How rows are graded; `timeout` in seconds a row of mathematics, the limits of programs in `code`."""

    lenient: bool = False
    timeout: float = 10.0
    workers: int | None = None
    sandbox: Level | Literal["auto"] = "auto"
    code: CodeOptions = field(default_factory=CodeOptions)

    @classmethod
    def of(cls, config: GraderConfig) -> GraderOptions:
        limits = CodeOptions(
            test_timeout=config.test_timeout,
            code_timeout=config.code_timeout,
            memory=int(config.memory * (1 << 30)),
        )
        return cls(config.lenient, config.timeout, config.workers, config.sandbox, limits)

    def grader(self, task: str, tests: str | None) -> tuple[str, str]:
        """Name and version of what grades such a row: with other options that matter, another version."""
        if task == "math":
            return math.NAME, math.version(self.lenient)
        name = code.name_of(tests)
        return name, code.version(name, self.code)

    def seconds(self, question: Question) -> float:
        """After how long a row's worker is killed."""
        if question.task == "math":
            return self.timeout
        if code.name_of(question.tests) == evalplus.NAME:
            return evalplus.SECONDS
        return self.code.code_timeout + _CODE_GRACE


def _warm_up(memory: int) -> None:
    """Import what a worker needs outside any row's time limit, and bound its memory."""
    import math_verify

    # Its reminder that it has no time limit of its own is not news.
    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _limited(seconds: float, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do a piece of work inside a worker. The pool kills it after its time; where the pool itself is gone, the alarm does."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with suppress(ValueError, OSError):
        bound = int(time.process_time() + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (bound, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        return work(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _grade_all(questions: Sequence[Question], lenient: bool) -> list[Grade]:
    return [math.grade(question, lenient) for question in questions]


def _chunks(questions: Sequence[Question], workers: int) -> list[Sequence[Question]]:
    """The questions in order: rows of mathematics that follow each other in parts of one size, any other row by itself."""
    size = max(1, min(_CHUNK_ROWS, len(questions) // (4 * workers)))
    chunks: list[Sequence[Question]] = []
    for task, rows in groupby(questions, key=lambda question: question.task):
        run = list(rows)
        step = size if task == "math" else 1
        chunks.extend(run[start : start + step] for start in range(0, len(run), step))
    return chunks


def _grades(future: Any) -> list[Grade] | None:
    """The grades of a chunk; None where it was killed, died or raised, so that its rows are to be graded one by one."""
    found = _result(future, 0.0)
    return found if isinstance(found, list) else None


class GraderPool:
    """Grades questions in worker processes; use as a context manager."""

    def __init__(self, options: GraderOptions) -> None:
        self._options = options
        self._workers = options.workers or os.cpu_count() or 1
        self._code: CodeOptions | None = None

    def __enter__(self) -> GraderPool:
        # Workers are forked from a small server that has the graders loaded: a fresh one costs milliseconds, and it does not
        # inherit this process's threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["math_verify", "trd_cli.graders.math", "trd_cli.graders.code"])
        try:
            forkserver.ensure_running()
        except OSError as error:  # its socket lies in the directory for temporary files, whose path may be too long for one
            raise InputError(
                f"the graders' workers cannot start below {tempfile.gettempdir()}: {error}",
                "a directory for temporary files with a short path",
                "set TMPDIR to another",
            ) from None
        self._pool = ProcessPool(
            max_workers=self._workers,
            initializer=_warm_up,
            initargs=(self._options.code.memory,),
            context=context,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:
            self._pool.stop()
        else:
            self._pool.close()
        self._pool.join()

    @property
    def sandbox(self) -> Level:
        """The level programs run in; InputError where the one asked for is not to be had."""
        return self._code_options().sandbox

    def _code_options(self) -> CodeOptions:
        if self._code is None:
            self._code = replace(self._options.code, sandbox=choose_level(self._options.sandbox))
        return self._code

    def grade(self, questions: Sequence[Question]) -> Iterator[Grade]:
        """One grade a question, in order."""
        chunks = _chunks(questions, self._workers)
        together = {n: self._submit_chunk(chunk) for n, chunk in enumerate(chunks) if len(chunk) > 1}
        alone = {n: [self._submit(chunk[0])] for n, chunk in enumerate(chunks) if n not in together}
        for n, chunk in enumerate(chunks):
            if n in together and _grades(together[n]) is None:
                # Of all chunks that died, so that rows that hang do so beside each other.
                dead = [later for later in together if later >= n and _grades(together[later]) is None]
                alone |= {later: [self._submit(q) for q in chunks[later]] for later in dead}
                together = {later: future for later, future in together.items() if later not in dead}
            if n in together:
                yield from _grades(together[n]) or ()
            else:
                for question, future in zip(chunk, alone[n], strict=True):
                    yield _result(future, self._options.seconds(question))

    def _submit_chunk(self, questions: Sequence[Question]) -> Any:
        # Never more than a single row may take: what a row's verdict is must not depend on how it was handed over.
        seconds = min(_CHUNK_SECONDS, self._options.timeout)
        return self._schedule(seconds, _grade_all, questions, self._options.lenient)

    def _submit(self, question: Question) -> Any:
        if question.task == "math":
            work = (math.grade, question, self._options.lenient)
        else:
            work = (code.grade, question, self._code_options())
        return self._schedule(self._options.seconds(question), *work)

    def _schedule(self, seconds: float, *work: Any) -> Any:
        return self._pool.schedule(_limited, (seconds + _GRACE, *work), timeout=seconds)

    def second_opinions(self, questions: Sequence[Question]) -> Iterator[Verdict | None]:
        """Return the verdict of another method on each question, in order; None where it cannot tell.

        Mathematics: math-verify called plainly, with its own extraction. Code: the tests run again.
        """
        futures = [
            self._schedule(self._options.timeout, math.second_opinion, q)
            if q.task == "math"
            else self._submit(q)
            for q in questions
        ]
        for question, future in zip(questions, futures, strict=True):
            second = _result(future, 0.0)
            if question.task == "code":
                yield second.verdict
            else:
                yield ("correct" if second else "incorrect") if isinstance(second, bool) else None

    def classes(self, groups: Sequence[Sequence[str]]) -> Iterator[list[int]]:
        """The equivalence classes of each group of answers; by their text alone where telling takes too long."""
        futures = [self._schedule(_CLASSES_SECONDS, math.answer_classes, list(group)) for group in groups]
        for group, future in zip(groups, futures, strict=True):
            found = _result(future, _CLASSES_SECONDS)
            if isinstance(found, list):
                yield found
            else:
                numbers: dict[str, int] = {}
                yield [numbers.setdefault(answer, len(numbers)) for answer in group]


def _result(future: Any, seconds: float) -> Any:
    """What the work gave, or the grade that says why it gave nothing."""
    try:
        return future.result()
    except GradingTimeout:
        return Grade("timeout", detail=f"killed after {seconds:g} s")
    except ProcessExpired as death:
        return Grade("error", detail=f"the grader's process died (exit code {death.exitcode})")
    except Exception as error:
        return Grade("error", detail=f"{type(error).__name__}: {error}"[:500])
