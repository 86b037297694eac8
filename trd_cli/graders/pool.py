"""Worker processes that grade rows, each killed when its row takes too long.

A row that hangs ends as `timeout`, one that kills its worker or raises as `error`; the others are not touched and a
fresh worker takes the place. Not covered: memory limits and hostile code.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as GradingTimeout
from dataclasses import dataclass

from pebble import ProcessExpired, ProcessPool

from trd_cli.graders import math
from trd_cli.graders.base import Grade, Question

_GRACE = 5.0


@dataclass(frozen=True)
class GraderOptions:
    """How rows are graded; `timeout` in seconds a row."""

    lenient: bool = False
    timeout: float = 10.0
    workers: int | None = None

    @property
    def name(self) -> str:
        return math.NAME

    @property
    def version(self) -> str:
        return math.version(self.lenient)


def _warm_up() -> None:
    """Import what a worker needs outside any row's time limit; its reminder that there is none of its own is not news."""
    import math_verify

    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)


def _grade(question: Question, lenient: bool, seconds: float) -> Grade:
    """Grade inside a worker. The pool kills it after the row's time; where the pool itself has been killed, the alarm does."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return math.grade(question, lenient)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class GraderPool:
    """Grades questions in worker processes; use as a context manager."""

    def __init__(self, options: GraderOptions) -> None:
        self._options = options

    def __enter__(self) -> GraderPool:
        # Workers are forked from a small server that has math-verify loaded: a fresh one costs milliseconds, and it does not
        # inherit this process's threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["math_verify", "trd_cli.graders.math"])
        workers = self._options.workers or os.cpu_count() or 1
        self._pool = ProcessPool(max_workers=workers, initializer=_warm_up, context=context)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:
            self._pool.stop()
        else:
            self._pool.close()
        self._pool.join()

    def grade(self, questions: Sequence[Question]) -> Iterator[Grade]:
        """One grade a question, in order."""
        futures = [
            self._pool.schedule(
                _grade,
                (question, self._options.lenient, self._options.timeout + _GRACE),
                timeout=self._options.timeout,
            )
            if question.task == "math"
            else None
            for question in questions
        ]
        for question, future in zip(questions, futures, strict=True):
            if future is None:
                yield Grade("error", detail=f"no grader for task {question.task}")
                continue
            try:
                yield future.result()
            except GradingTimeout:
                yield Grade("timeout", detail=f"killed after {self._options.timeout:g} s")
            except ProcessExpired as death:
                yield Grade("error", detail=f"the grader's process died (exit code {death.exitcode})")
            except Exception as error:
                yield Grade("error", detail=f"{type(error).__name__}: {error}"[:500])
