"""A relayed response on its way: what is written, by whom, and who is next. Nothing here generates, reads or writes.

The student writes (its rollout is the first part). At a trigger the rest of its part is dropped, and the teacher's
likeliest token, an onset token, takes the place of the student's. With it begins a leg of the teacher. After the last
leg that the rules allow the response ends; after any other the student goes on, and its new tokens are searched for the
next trigger.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trd_cli.records import AUTHORS, FinishReason, author_array, logprob_array, token_array

# The next thing that happens to a response: its last part is searched for a trigger, a model writes on, or nothing.
Step = Literal["score", "teacher", "student", "end"]
STUDENT, TEACHER = AUTHORS.index("student"), AUTHORS.index("teacher")


@dataclass(frozen=True, slots=True)
class Rules:
    """Hold the most legs of a row, and where a leg ends: after so many tokens or (0: never) blank lines."""

    legs: int
    leg_tokens: int
    leg_paragraphs: int


@dataclass(frozen=True, slots=True)
class Trigger:
    """Hold where the teacher takes over, the onset token that it begins with, and that token's log-probability."""

    place: int
    onset: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Response:
    """Hold a response so far: its ids, the author and the log-probability of each, and how its last part ended.

    `logprobs` is None where a part has none. `ids_exact` is that of the rollout.
    """

    token_ids: array[int]
    author: array[int]
    logprobs: array[float] | None
    finish_reason: FinishReason | None
    ids_exact: bool | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def head(self, length: int, finish_reason: FinishReason | None = None) -> Response:
        """Return the first tokens, which end as `finish_reason` tells; the whole response if it is no longer."""
        if length >= len(self):
            return self
        logprobs = None if self.logprobs is None else self.logprobs[:length]
        return Response(self.token_ids[:length], self.author[:length], logprobs, finish_reason, self.ids_exact)

    def with_onset(self, trigger: Trigger) -> Response:
        """Return what is left before a trigger, and the teacher's onset token."""
        kept = self.head(trigger.place)
        logprobs = None if kept.logprobs is None else kept.logprobs + logprob_array([trigger.logprob])
        token_ids, author = kept.token_ids + token_array([trigger.onset]), kept.author + author_array([TEACHER])
        return Response(token_ids, author, logprobs, None, self.ids_exact)


@dataclass(frozen=True, slots=True)
class Relay:
    """Represent a response between two steps. `place` is the first token that may be a trigger."""

    response: Response
    step: Step
    place: int = 0

    @classmethod
    def begun(cls, rollout: Response, most: int) -> Relay:
        """Return the student's own rollout, of which at most `most` tokens count."""
        return cls(rollout.head(most, "length"), "score")

    def after_search(self, trigger: Trigger | None) -> Relay:
        """Return the response handed over to the teacher or, without a trigger, as it ends."""
        if trigger is None:
            return Relay(self.response, "end")
        return Relay(self.response.with_onset(trigger), "teacher")

    @classmethod
    def after_leg(
        cls,
        response: Response,
        given: int,
        number: int,
        rules: Rules,
        most: int,
        decode: Callable[[Sequence[int]], str],
    ) -> Relay:
        """Return the response after leg `number`, from 1.

        The first `given` tokens were there before the teacher wrote; the last of them is the leg's onset token.
        """
        start = given - 1
        response = response.head(start + leg_length(response.token_ids[start:], rules, decode))
        if response.finish_reason == "stop":
            return cls(response, "end")
        ends = number == rules.legs or len(response) >= most
        return cls(replace(response, finish_reason="length" if ends else None), "end" if ends else "student")

    @classmethod
    def after_student(cls, response: Response, given: int) -> Relay:
        """Return the response after the student went on from its first `given` tokens."""
        return cls(response, "score", given)


def room_of_leg(length: int, rules: Rules, most: int) -> int:
    """Return how many tokens the teacher may write after the onset token, the last of `length` tokens."""
    return max(0, min(rules.leg_tokens - 1, most - length))


def leg_length(leg: Sequence[int], rules: Rules, decode: Callable[[Sequence[int]], str]) -> int:
    """Return how many tokens of a leg count: up to its last blank line, which the rules number, else all.

    A blank line is two line breaks or more in a row, and complete with the token that brings the second.
    """
    if not rules.leg_paragraphs:
        return len(leg)
    blank_lines = breaks = 0  # `breaks`: line breaks at the end of the text so far
    for length, token in enumerate(leg, 1):
        for character in decode([token]):
            breaks = breaks + 1 if character == "\n" else 0
            blank_lines += breaks == 2
        if blank_lines >= rules.leg_paragraphs:
            return length
    return len(leg)
