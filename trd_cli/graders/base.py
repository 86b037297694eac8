"""The question that a grader answers about one row, and its grade."""

from __future__ import annotations

from dataclasses import dataclass

from trd_cli.records import Task, Verdict

NO_ANSWER = "no_answer"


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

    `thinking` is true if the prompt itself opens a thinking block, so that the response begins inside it.
    """

    task: Task
    response: str
    reference_answer: str | None
    tests: str | None = None
    thinking: bool = False
