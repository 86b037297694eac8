"""Describe known sets: the columns of their rows, and the way from columns to a problem's fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trd_cli.datasets.code_tests import are_tests, function_name, of_assertions, parsed_tests
from trd_cli.datasets.columns import From
from trd_cli.datasets.conversations import assistant_turn, prompt, user_turn
from trd_cli.datasets.values import RowFault, opened, text_of
from trd_cli.records import Task

# Columns for a reference answer, the most certain first: an `answer` may also be a worked solution.
ANSWERS = ("reference_answer", "ground_truth", "final_answer", "answer")
_MESSAGES = ("messages", "conversations", "conversation")
_TRUTH = "reward_model.ground_truth"


@dataclass(frozen=True)
class Preset:
    """Describe a known set: the task of its rows, the origin of their fields, and its name on the Hub.

    A set that others publish in several places has no name.
    """

    task: Task
    fields: Mapping[str, From]
    home: str | None = None


def first_solution(value: Any) -> Any:
    """Return the first of a list of solutions, which may be written as JSON; any other text is the solution itself."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowFault(f"solutions are not a JSON list ({error})") from None
    return next(iter(value), None) if isinstance(value, list) else value


def gsm8k_parts(value: Any) -> tuple[str, str]:
    """Return GSM8K's worked solution without its calculator marks, and the number at its end.

    Raises RowFault if there is no such number.
    """
    solution, mark, answer = str(value).rpartition("####")
    if not mark:
        raise RowFault("the answer has no '####' before its number")
    return re.sub(r"<<[^<>]*>>", "", solution).strip(), answer.strip().replace(",", "")


def _with_starter_code(question: Any, starter_code: Any) -> Any:
    if not text_of(question) or not text_of(starter_code):
        return question
    return f"{question}\n\nComplete this code:\n```python\n{starter_code}\n```"


def _with_one_assertion(question: Any, assertions: Any) -> Any:
    """Add the first assertion to MBPP's text, which does not name the function otherwise."""
    lines = opened(assertions)
    if not text_of(question) or not isinstance(lines, list) or not lines:
        return question
    return f"{question}\n\nYour code should pass this test:\n```python\n{lines[0]}\n```"


def _other(solution: Any, truth: Any) -> Any:
    return None if solution == truth else solution


def _no_tests(truth: Any) -> Any:
    return None if are_tests(truth) else truth


def _only_tests(truth: Any) -> Any:
    return truth if are_tests(truth) else None


def _task_of(truth: Any) -> Task | None:
    return "code" if are_tests(truth) else None


def _conversation(*columns: str) -> dict[str, From]:
    return {
        "problem": From((columns,), user_turn),
        "reference_answer": From((ANSWERS,), optional=True),
        "reference_solution": From((columns,), assistant_turn, optional=True),
    }


PRESETS: dict[str, Preset] = {
    "gsm8k": Preset(
        "math",
        {
            "problem": From(("question",)),
            "reference_answer": From(("answer",), lambda value: gsm8k_parts(value)[1]),
            "reference_solution": From(("answer",), lambda value: gsm8k_parts(value)[0]),
        },
        home="openai/gsm8k:main",
    ),
    "math": Preset(
        "math",
        {
            "problem": From(("problem",)),
            "reference_answer": From((("answer", *ANSWERS),)),
            "reference_solution": From(("solution",), optional=True),
        },
    ),
    "deepscaler": Preset(
        "math",
        {
            "problem": From(("problem",)),
            "reference_answer": From((("answer", *ANSWERS),)),
            "reference_solution": From(("solution",)),
        },
        home="agentica-org/DeepScaleR-Preview-Dataset",
    ),
    "verl": Preset(
        "math",
        {
            "problem": From(("prompt",), prompt),
            "reference_answer": From(((_TRUTH, "extra_info.answer"),), _no_tests),
            "reference_solution": From((("extra_info.solution", "extra_info.answer"), _TRUTH), _other, True),
            "tests": From((_TRUTH,), _only_tests),
            "task": From((_TRUTH,), _task_of),
        },
    ),
    "messages": Preset("math", _conversation(*_MESSAGES)),
    "sharegpt": Preset("math", _conversation("conversations", "conversation", "messages")),
    "taco": Preset(
        "code",
        {
            "problem": From(("question", "starter_code"), _with_starter_code),
            "reference_solution": From(("solutions",), first_solution),
            "tests": From(("input_output",)),
        },
        home="BAAI/TACO",
    ),
    "leetcode": Preset(
        "code",
        {
            "problem": From(("problem",)),
            "reference_solution": From(("solutions",), first_solution),
            "tests": From(("tests",)),
        },
    ),
    "code_contests": Preset("code", {"problem": From(("problem",)), "tests": From(("tests",))}),
    "deepcoder": Preset(
        "code",
        {
            "problem": From((("problem", "question"), "starter_code"), _with_starter_code),
            "reference_solution": From(("solutions",), first_solution, optional=True),
            "tests": From(("tests", "metadata"), lambda tests, metadata: parsed_tests(tests, function_name(metadata))),
        },
        home="agentica-org/DeepCoder-Preview-Dataset:taco",
    ),
    "mbpp": Preset(
        "code",
        {
            "problem": From((("text", "prompt"), "test_list"), _with_one_assertion),
            "reference_solution": From(("code",), optional=True),
            "tests": From(("test_list", "code", "test_imports", "test_setup_code"), of_assertions),
            "problem_id": From(("task_id",), optional=True),
        },
    ),
}
