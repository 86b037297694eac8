"""What a grader is asked of one row, and what it says."""

from __future__ import annotations

from dataclasses import dataclass

from trd_cli.records import Task, Verdict

NO_ANSWER = "no_answer"


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its evidence.

    `detail` says why: `NO_ANSWER`, what the grader raised, how long it ran, which test failed.
    """

    verdict: Verdict
    extracted_answer: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is graded: a response against the reference answer of its problem, or its `tests` (JSON, the row's column).

    `thinking` where the prompt has opened a thinking block that the response begins in.
    """

    task: Task
    response: str
    reference_answer: str | None
    tests: str | None = None
    thinking: bool = False
