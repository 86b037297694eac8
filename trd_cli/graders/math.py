"""Grade answers in mathematics: read the last boxed answer and compare it with the reference.

`reading` finds out what an answer means and `comparing` chooses the comparison; below them are math-verify's parser and
SymPy. An answer that cannot be compared is incorrect, with the reason as its detail; a reference that is not one answer
is an error. A boxed answer is read as one answer: of `\\boxed{1}` and `\\boxed{2}` only the last counts, not the pair
1, 2.

A row's `tests` may ask for AMO-Bench's rules. `{"kind": "rounded", "digits": 4}`, for its numbers and sets, compares
decimals to that many places, with either side as the reference. `{"kind": "points", …}`, for its formulas, compares
values at points (see `points`).

`grade` has no time limit of its own. Call it through `pool.GraderPool`, which kills a worker that takes too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import metadata

from trd_cli.graders import answers, by_math_verify, comparing, points, reading
from trd_cli.graders.base import NO_ANSWER, Grade, Question
from trd_cli.graders.by_math_verify import NAME, boxed
from trd_cli.graders.comparing import Rules, numbers
from trd_cli.graders.reading.brackets import Unbalanced
from trd_cli.graders.reading.notation import plain
from trd_cli.graders.reading.structure import is_plain_answer

# Raise this with every change of the rules that find or compare answers.
_RULES = 4

# If nothing is boxed, this many characters of the end are searched: the search is quadratic in unclosed marks of
# mathematics.
TAIL_CHARACTERS = 4_000
_MOST_FOR_MATH_VERIFY = 20_000
# Limits what one majority vote may cost beyond comparing equal text and equal numbers.
MAX_COMPARISONS = 500

_UNREADABLE = f"not read: longer than {answers.MAX_CHARACTERS} characters or nested deeper than {answers.MAX_NESTING}"
# The detail of a row whose reference is an essay or a worked solution.
NOT_ONE_ANSWER = "the reference is not one answer: a worked solution needs a box or #### before its answer"


@cache
def version(lenient: bool) -> str:
    """Return the stored version of the grader: the package's, the way answers are found, the number of our rules."""
    return f"{metadata.version(NAME)}+{'lenient' if lenient else 'boxed'}.{_RULES}"


def extract_answer(response: str, lenient: bool, thinking: bool = False) -> str | None:
    """Return the boxed answer; with `lenient`, if nothing is boxed, the text after `####` or an announced answer.

    If there is none of these, `lenient` takes math-verify's final expression: the one after words such as "final answer
    is", else the last in the text. `thinking` if the prompt opened a thinking block.
    """
    text = answers.final_part(response, thinking)
    if text is None:
        return None
    found = answers.last_boxed(text)
    if found is None and lenient:
        tail = text[-TAIL_CHARACTERS:]
        found = answers.after_hashes(text) or _said(tail) or _final_expression(tail)
    return found or None


def _said(tail: str) -> str | None:
    """Return the answer that a text announces if it is a plain answer and nothing else."""
    said = answers.said_answer(tail)
    return said if said and answers.readable(said) and is_plain_answer(said) else None


def _final_expression(tail: str) -> str | None:
    found = by_math_verify.final_expression(tail)
    if found is None:
        return None
    cut_off = found.count("{") != found.count("}")
    return (answers.last_mathematics(tail) or found) if cut_off else found.strip("*_ ").removesuffix("**.")


def same_answer(reference: str, answer: str, rules: Rules | None = None) -> tuple[bool, str | None]:
    """Return whether two answers are the same, and the reason if they could not be compared."""
    if answer == reference:
        return True, None
    if not answers.readable(answer):
        return False, _UNREADABLE
    return comparing.same(reference, answer, rules or Rules())


def grade(question: Question, lenient: bool) -> Grade:
    """Return correct, incorrect, or error if the reference or the points of the row's `tests` cannot be read."""
    text = (question.reference_answer or "").strip()
    if not text:
        return Grade("error", detail="no reference answer")
    reference = answers.reference_answer(text)
    answer = extract_answer(question.response, lenient, question.thinking)
    if reference is None:
        return Grade("error", answer, NOT_ONE_ANSWER)
    if answer is None:
        return Grade("incorrect", detail=NO_ANSWER)
    if not answers.readable(reference) or not reading.read(reference):
        return Grade("error", answer, "the reference answer cannot be parsed")
    if question.tests:
        return _grade_by_tests(reference, answer, question.tests)
    same, fault = same_answer(reference, answer)
    return Grade("correct" if same else "incorrect", answer, fault)


def _grade_by_tests(reference: str, answer: str, tests: str) -> Grade:
    digits, at = points.read_digits(tests), points.read_points(tests)
    if digits is None and at is None:
        return Grade("error", answer, f"tests of a math problem that are not understood: {tests[:80]}")
    if not answers.readable(answer):
        return Grade("incorrect", answer, _UNREADABLE)
    if digits is not None:
        rules = Rules(places=digits)
        same, fault = same_answer(reference, answer, rules)
        same = same or same_answer(answer, reference, rules)[0]
        return Grade("correct" if same else "incorrect", answer, None if same else fault)
    expected, value = (by_math_verify.parse(boxed(_formula(text))) for text in (reference, answer))
    verdict, detail = points.compare_at(at, expected, value)
    return Grade(verdict, answer, detail)


def _formula(text: str) -> str:
    """Return a formula in plain LaTeX without the condition beside it."""
    formula = points.before_condition(text)
    try:
        return plain(formula)
    except Unbalanced:
        return formula


def second_opinion(question: Question) -> bool | None:
    """Return whether math-verify alone finds the reference in the response, with its own extraction; None if undecided.

    Answers that agree at the points or places that a row's `tests` ask for may differ elsewhere, so a difference there
    counts as None.
    """
    reference = answers.reference_answer(question.reference_answer or "")
    if reference is None:
        return None
    same, _ = by_math_verify.compare(boxed(reference), question.response[-_MOST_FOR_MATH_VERIFY:])
    return (same or None) if question.tests else same


def answer_classes(texts: Sequence[str]) -> list[int]:
    """Return the number of each answer's class of equal answers, from 0 in order of appearance, for majority voting.

    An answer joins the first class in which it is graded correct against each member, and each member against it. After
    `MAX_COMPARISONS` comparisons of answers that are not plain numbers, only equal text counts.
    """
    classes: list[list[str]] = []
    by_text: dict[str, int] = {}
    left = MAX_COMPARISONS
    for text in dict.fromkeys(texts):
        chosen = None
        for number, members in enumerate(classes):
            equal = [_equal_numbers(member, text) for member in members]
            if None in equal and left <= 0:
                continue
            left -= equal.count(None)
            if all(
                _interchangeable(member, text) if t is None else t for member, t in zip(members, equal, strict=True)
            ):
                chosen = number
                break
        if chosen is None:
            chosen = len(classes)
            classes.append([])
        classes[chosen].append(text)
        by_text[text] = chosen
    return [by_text[text] for text in texts]


def _equal_numbers(one: str, other: str) -> bool | None:
    """Return whether two plain numbers are equal, or None if one is something else."""
    a, b = numbers.number(one), numbers.number(other)
    return None if a is None or b is None else numbers.same_number(a, b)


def _interchangeable(one: str, other: str) -> bool:
    return same_answer(one, other)[0] and same_answer(other, one)[0]
