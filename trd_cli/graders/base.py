"""What a grader says of one row."""

from __future__ import annotations

from dataclasses import dataclass

from trd_cli.records import Verdict


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its evidence. `detail` says why: no_answer, what the grader raised, how long it ran."""

    verdict: Verdict
    extracted_answer: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is graded: a response against the reference answer of its problem."""

    task: str
    response: str
    reference_answer: str | None
