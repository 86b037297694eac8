"""The question that a grader answers about one row, and its grade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trd_cli.records import Task, Verdict

NO_ANSWER = "no_answer"
# The column of a problem that trd's own grader of a task reads. A user's grader may need neither.
READ: dict[Task, Literal["reference_answer", "tests"]] = {
    "math": "reference_answer",
    "code": "tests",
    "reasoning-gym": "tests",
}


def graded_by(task: Task) -> Literal["reference_answer", "tests"] | None:
    """Return the column of a problem without which rows of a task get no verdict, or None where there is none."""
    return READ.get(task)


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its evidence.

    `detail` gives the reason: `NO_ANSWER`, an exception of the grader, the time it ran, or the test that failed.
    """

    verdict: Verdict
    extracted_answer: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A response and what to grade it against: a reference answer, or `tests` (JSON, as in the row's column).

    `thinking` is true if the prompt itself opens a thinking block, so that the response begins inside it. Graders of
    the user's own read the `problem` too.
    """

    task: Task
    response: str
    reference_answer: str | None
    tests: str | None = None
    thinking: bool = False
    problem: str = ""


# What is done with a question: a function, and its arguments after the question.
Way = tuple[Callable[..., Grade], tuple[Any, ...]]


def grade_all(questions: Sequence[Question], way: Way) -> list[Grade]:
    """Return the grade of each question. It stands here because a worker imports all that stands beside it."""
    function, arguments = way
    return [function(question, *arguments) for question in questions]
