"""Grade answers to tasks of reasoning-gym by each task's own `score_answer`.

A row's `tests` name the entry: `{"kind": "reasoning-gym", "task": …, "seed": …, "index": …, "version": …}`, where
`version` is that of the package. The grader makes the entry again and asks the task for the score of the answer. Only
1.0 is correct: lower scores are given for trying, and for an answer that merely contains the right one.

The answer is the text in the last box of the response, after any thinking block. Where it is scored below 1.0 as it is
written, it is asked once more as plain text (see `plain`). No text is asked that a task would evaluate and that is more
than `harmless` admits: the score runs in a worker that has no sandbox.

An entry whose question is another one than the row's is an error: some tasks draw other entries in other processes.
"""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, lru_cache
from io import StringIO
from typing import Any

from trd_cli import extras
from trd_cli.graders import answers, harmless
from trd_cli.graders.base import NO_ANSWER, Grade, Question

NAME = "reasoning-gym"
# Raise this with every change of the rules that find answers.
_RULES = 2
# As many makers of tasks a worker are kept, and entries: the attempts at one problem follow each other.
_MAKERS, _ENTRIES = 128, 64


@dataclass(frozen=True)
class Entry:
    """Name one problem of reasoning-gym, which is made from these values alone."""

    task: str
    seed: int
    index: int
    version: str

    @classmethod
    def of(cls, tests: str | None) -> Entry:
        """Read a row's `tests`; raises ValueError for anything else."""
        spec = json.loads(tests or "null")
        if not isinstance(spec, dict) or spec.get("kind") != NAME:
            raise ValueError("they name no entry of reasoning-gym")
        try:
            return cls(str(spec["task"]), int(spec["seed"]), int(spec["index"]), str(spec["version"]))
        except KeyError as missing:
            raise ValueError(f"they lack {missing}") from None

    def tests(self) -> str:
        """Return the text for a row's column `tests`."""
        values = {name: getattr(self, name) for name in ("task", "seed", "index", "version")}
        return json.dumps({"kind": NAME, **values})


@cache
def package_version() -> str:
    """Return the version of the installed package; raises InputError without one."""
    return extras.version_of(NAME, "worlds")


def version(lenient: bool) -> str:
    """Return the stored version of the grader: the package's, the way answers are found, the number of our rules."""
    return f"{package_version()}+{'lenient' if lenient else 'boxed'}.{_RULES}"


def load() -> None:
    """Import the package, which takes seconds."""
    import reasoning_gym  # noqa: F401


@lru_cache(_MAKERS)
def maker(task: str, seed: int) -> Any:
    """Return the package's data set of a task and a seed, of which `maker[index]` makes an entry.

    Its size is the package's default, on which the entries of a few tasks depend. Raises ValueError for a task that the
    package does not have.
    """
    import reasoning_gym

    with redirect_stdout(StringIO()):
        return reasoning_gym.create_dataset(task, seed=seed)


@lru_cache(_ENTRIES)
def made(entry: Entry) -> dict[str, Any]:
    """Return an entry as the package has it: `question`, `answer`, `metadata`.

    Raises IndexError for an index beyond the last entry of a task that has a last one, and ValueError as `maker` does.
    """
    with redirect_stdout(StringIO()):
        return maker(entry.task, entry.seed)[entry.index]


def is_right(entry: Entry, answer: str) -> bool:
    """Return whether a task's own score of an answer is exactly 1.0; raises what the task raises for some answers.

    Raises ValueError for an answer that the task does not get.
    """
    if why := harmless.refusal(entry.task, entry.version, answer):
        raise ValueError(why)
    with redirect_stdout(StringIO()):
        return maker(entry.task, entry.seed).score_answer(answer, made(entry)) == 1.0


def grade(question: Question, lenient: bool) -> Grade:
    """Return correct, incorrect, or error if the entry cannot be made as it was made for the row."""
    try:
        entry = Entry.of(question.tests)
    except ValueError as fault:
        return Grade("error", detail=f"the row's tests cannot be read: {fault}")
    if entry.version != package_version():
        return Grade("error", detail=f"made by reasoning-gym {entry.version}, and {package_version()} is installed")
    answer = answer_in(question.response, lenient, question.thinking)
    if answer is None:
        return Grade("incorrect", detail=NO_ANSWER)
    if len(answer) > answers.MAX_CHARACTERS:
        return Grade("incorrect", answer, f"not read: longer than {answers.MAX_CHARACTERS} characters")
    if made(entry)["question"] != question.problem:
        return Grade("error", answer, "the package makes another question of the row's task, seed and index here")
    texts = dict.fromkeys((answer, plain(answer)))
    refusals = [harmless.refusal(entry.task, entry.version, text) for text in texts]
    if all(refusals):
        return Grade("incorrect", answer, f"not read: {refusals[-1]}")
    try:
        right = any(is_right(entry, text) for text, why in zip(texts, refusals, strict=True) if why is None)
    except MemoryError:
        raise
    except Exception as fault:  # some tasks raise for an answer that they cannot read
        return Grade("incorrect", answer, f"not read: {type(fault).__name__}: {fault}"[:500])
    return Grade("correct" if right else "incorrect", answer)


# Where an answer stands


_ANNOUNCED = re.compile(r"(?:final\s+)?answer(?:\s+is)?[*_\s]*(?::|\bis\b)[*_\s]*(.+)", re.IGNORECASE)
_BLOCK = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)


def answer_in(response: str, lenient: bool, thinking: bool = False) -> str | None:
    """Return the text in the last box of a response, or None.

    With `lenient`, where nothing is boxed, it is the text after the last `Answer:`, else the last fenced block, else
    the last line.
    """
    text = answers.final_part(response, thinking)
    if text is None:
        return None
    found = answers.last_boxed(text)
    if found is None and lenient:
        announced, blocks = _ANNOUNCED.findall(text), _BLOCK.findall(text)
        *_, last = ["", *text.strip().splitlines()]
        found = announced[-1] if announced else blocks[-1] if blocks else last
        found = found.strip().strip("*`").strip()
    return found or None


# Commands that only set their argument, and signs that LaTeX escapes or spells.
_SET = re.compile(r"\\(?:text|texttt|textbf|textit|textrm|mathrm|mathbf|mathtt|mbox|operatorname)\s*\{([^{}]*)\}")
_ESCAPED = re.compile(r"\\([_%$#&{}])")
_SPELLED = {
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "/",
    r"\left": "",
    r"\right": "",
    r"\to": "->",
    r"\rightarrow": "->",
    r"\leq": "<=",
    r"\le": "<=",
    r"\geq": ">=",
    r"\ge": ">=",
    r"\quad": " ",
    r"\,": "",
    r"\;": " ",
    r"\ ": " ",
    r"\!": "",
    "~": " ",
}
_COMMAND = re.compile(
    "|".join(
        re.escape(sign) + ("(?![A-Za-z])" if sign[-1].isalpha() else "") for sign in sorted(_SPELLED, reverse=True)
    )
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ROWS = re.compile(r"\\begin\{([a-z]*matrix|array)\}(?:\{[^{}]*\})?(.*?)\\end\{\1\}", re.DOTALL)


def plain(answer: str) -> str:
    r"""Return an answer without the LaTeX that a box invites.

    `\text{Alice}` is Alice, `\frac{1}{2}` 1/2, `3 \times 4` 3 * 4, `\{1\}` {1}; a matrix, and `\\` between rows, become
    lines with spaces between cells; dollar signs and one pair of quotation marks around the whole go.
    """
    text = _ROWS.sub(lambda found: found[2].replace("&", " "), answer)
    before = None
    while text != before:
        before, text = text, _FRACTION.sub(r"\1/\2", _SET.sub(r"\1", text))
    text = re.sub(r"\s*\\\\\s*", "\n", text)
    text = _ESCAPED.sub(r"\1", _COMMAND.sub(lambda found: _SPELLED[found[0]], text))
    lines = [" ".join(line.split()) for line in text.strip().strip("$").strip().splitlines()]
    text = "\n".join(line for line in lines if line)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
