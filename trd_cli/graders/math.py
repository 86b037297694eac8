"""Math answers by math-verify: the last boxed answer, compared with the reference by value.

`grade` runs without a time limit of its own: math-verify's needs SIGALRM and so the main thread. Call it through
`pool.GraderPool`, which kills a worker that takes too long.
"""

from __future__ import annotations

import re
from importlib import metadata

from trd_cli.graders.base import Grade, Question

NAME = "math-verify"
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")


def version(lenient: bool) -> str:
    """What is stored as the grader's version: the package's, and the rule by which the answer is found."""
    return f"{metadata.version(NAME)}+{'lenient' if lenient else 'boxed'}"


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}` whose braces balance, or None."""
    for match in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for end in range(match.end(), len(text)):
            if text[end] in "{}" and text[end - 1] != "\\":
                depth += 1 if text[end] == "{" else -1
            if depth == 0:
                return text[match.end() : end].strip()
    return None


def final_part(response: str) -> str | None:
    """What comes after the thinking block; None when one was opened and never closed."""
    _, closed, answer = response.rpartition("</think>")
    if closed:
        return answer
    return None if "<think>" in response else response


def extract_answer(response: str, lenient: bool) -> str | None:
    """The boxed answer; with `lenient`, the last number where nothing is boxed."""
    text = final_part(response)
    if text is None:
        return None
    boxed = last_boxed(text)
    if boxed is not None or not lenient:
        return boxed or None
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def grade(question: Question, lenient: bool) -> Grade:
    """Correct, incorrect, or error where the reference cannot be read."""
    from math_verify import parse, verify

    if not question.reference_answer:
        return Grade("error", detail="no reference answer")
    answer = extract_answer(question.response, lenient)
    if answer is None:
        return Grade("incorrect", detail="no_answer")
    if answer == question.reference_answer:
        return Grade("correct", answer)
    # Without an explicit None both run under SIGALRM, which raises outside the main thread.
    gold = parse(f"\\boxed{{{question.reference_answer}}}", parsing_timeout=None, raise_on_error=True)
    if not gold:
        return Grade("error", answer, "the reference answer cannot be parsed")
    found = parse(f"\\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=True)
    return Grade(
        "correct" if verify(gold, found, timeout_seconds=None, raise_on_error=True) else "incorrect", answer
    )
