"""Where an answer stands in a response, and how it is written."""

from __future__ import annotations

import time

import pytest

from trd_cli.graders import answers
from trd_cli.graders.fences import program_of

BOXES = {
    "one box": (r"so \boxed{12}.", "12"),
    "the last of two": (r"\boxed{1} and \boxed{2}", "2"),
    "the inner of two": (r"\boxed{x = \boxed{5}}", "5"),
    "braces inside": (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    "escaped braces": (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    "an escaped brace without its partner": (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    "a line break before the closing brace": (r"\boxed{1\\}", r"1\\"),
    "fbox": (r"\fbox{3}", "3"),
    "a space before the brace": (r"\boxed {4}", "4"),
    "a backslash doubled": (r"\\boxed{5}", "5"),
    "cut off, after a whole one": (r"\boxed{6} no, \boxed{7", "6"),
    "a brace too many before": (r"} \boxed{8}", "8"),
    "a brace left open before": (r"{ \boxed{9}", "9"),
    "empty": (r"\boxed{}", ""),
    "over two lines": ("\\boxed{\n1\n}", "1"),
    "none": ("the answer is 12", None),
    "without braces": (r"\boxed 12", None),
    "another command": (r"\boxedge{1}", None),
}


@pytest.mark.parametrize("case", BOXES)
def test_the_last_box_whose_braces_balance_counts(case: str) -> None:
    text, expected = BOXES[case]
    assert answers.last_boxed(text) == expected


HUGE = {
    "nested boxes": ("\\boxed{" * 5_000 + "1" + "}" * 5_000, "1"),
    "boxes never closed": ("\\boxed{" * 100_000, None),
    "a box that is closed after many that are not": ("\\boxed{" * 100_000 + "5}", "5"),
    "braces never closed": ("{" * 500_000 + "\\boxed{5}", "5"),
    "braces never opened": ("}" * 500_000 + "\\boxed{5}", "5"),
    "backslashes": ("\\" * 500_000 + " \\boxed{5}", "5"),
    "spaces after the command": ("\\boxed" + " " * 500_000, None),
    "commands without braces": ("\\boxed " * 100_000, None),
}


@pytest.mark.parametrize("case", HUGE)
def test_the_last_box_is_found_in_linear_time(case: str) -> None:
    """A quadratic search takes minutes for these."""
    text, expected = HUGE[case]
    began = time.process_time()
    assert answers.last_boxed(text) == expected
    assert time.process_time() - began < 3


THINKING = {
    "no thinking": ("a", "a"),
    "a block": ("<think>a</think>b", "b"),
    "two blocks": ("<think>a</think>b<think>c</think>d", "d"),
    "the opening tag in the prompt": ("a</think>b", "b"),
    "never closed": ("<think>a", None),
    "opened once more after it was closed": ("<think>a</think>b<think>c", "b<think>c"),
    "spoken of in a sentence": ("<think>a</think>the <think> block is over", "the <think> block is over"),
    "spoken of in code": ("<think>a</think>`<think>` b `</think>` c", "`<think>` b `</think>` c"),
    "spoken of in a program": (
        "<think>a</think>\n```python\nstrip('<think>', '</think>')\n```",
        "\n```python\nstrip('<think>', '</think>')\n```",
    ),
    "spoken of in a quoted string": ("a</think>split('</think>')", "split('</think>')"),
    "nothing after it": ("<think>a</think>", ""),
}


@pytest.mark.parametrize("case", THINKING)
def test_the_answer_stands_after_the_thinking(case: str) -> None:
    response, expected = THINKING[case]
    assert answers.final_part(response) == expected
    assert answers.thinking_is_open(response) is (expected is None)


OPENED = {
    "closed": ("a</think>b", "b"),
    "never closed": (r"so \boxed{5}", None),
    "nothing": ("", None),
    "opened by the response, too": ("<think>a</think>b", "b"),
    "a block after it": ("a</think>b<think>c</think>d", "d"),
}


@pytest.mark.parametrize("case", OPENED)
def test_a_response_begins_in_the_thoughts_that_its_prompt_opens(case: str) -> None:
    response, expected = OPENED[case]
    assert answers.final_part(response, opened=True) == expected
    assert answers.thinking_is_open(response, opened=True) is (expected is None)


BLOCKS = {
    "one block": ("so\n```python\nx = 1\n\ny = 2\n```\ndone", "x = 1\n\ny = 2"),
    "the last of two": ("```python\na = 1\n```\ntext\n```python\nb = 2\n```", "b = 2"),
    "another language": ("```\na\n```", "a"),
    "an unclosed one alone": ("```python\na\nb", "a\nb"),
    "an unclosed one after another": ("```python\na\n```\n```python\nb", "a"),
    "an empty block": ("```\n```", ""),
    "longer fences around shorter ones": ("````md\n```\na\n```\n````", "```\na\n```"),
    "tildes": ("~~~py\na\n~~~", "a"),
    "in a list": ("1. so\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1"),
    "carriage returns": ("```python\r\na\r\nb\r\n```\r\n", "a\nb"),
    "marks within a line": ("use ```x``` here", None),
    "none": ("x = 1", None),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_the_last_fenced_block_is_the_code(case: str) -> None:
    text, expected = BLOCKS[case]
    assert program_of(text) == expected


def test_what_is_long_or_deep_is_no_answer() -> None:
    deep, wide = "{" * 41 + "}" * 41, "1+" * 2_001
    assert not answers.readable(deep)
    assert not answers.readable(wide)
    assert answers.readable("{" * 40 + "}" * 40)
    assert answers.readable("{1}" * 1_000)


def test_what_follows_the_hashes_is_the_answer_of_a_worked_solution() -> None:
    assert answers.after_hashes("9 * 2 = <<9*2=18>>18\n#### 18") == "18"
    assert answers.after_hashes("#### 1\n#### 2,000 \nbye") == "2,000"
    assert answers.after_hashes("#### x + 1\n") == "x + 1"
    assert answers.after_hashes("#### Conclusion\nIt is 5.") is None
    assert answers.after_hashes("##### 1") is None
    assert answers.after_hashes("### 1") is None
    assert answers.after_hashes("####") is None
