"""The one answer of a reference: what stands in it, or that it is a worked solution without one."""

from __future__ import annotations

import re

from trd_cli.graders import answers

# A reference in words is short; what is longer, or goes on after a sentence, tells how the answer was found.
_MOST_WORDS, _MOST_LINES = 16, 1
_ENVIRONMENT = re.compile(r"\\begin\{([a-z*]+)\}.*?\\end\{\1\}", re.DOTALL)
_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mbox)\b|\\[A-Za-z]+")
_TEXT = re.compile(r"\\text(?:bf|it|rm|normal)?\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W\d_]{2,}")
# An announcement in the middle of a text: `… A: 6`, `… The answer is 6`.
_ANNOUNCED = re.compile(r"\S.*?(?<![^\W\d_])(?:A:\s|(?:Ans|Answer|answer|ANSWER)\s*:)|\S.*\banswer\s+is\b", re.DOTALL)
_SENTENCE = re.compile(r"[^\W\d_]{2,}[.!?]\s+(?:\S+\s+){2,}\S|\d[.!?]\s+[A-Z][a-z]+\s+\S")
_DERIVED = re.compile(r"\b(?:so|therefore|thus|hence|because|since|then|we (?:have|get|find))\b", re.IGNORECASE)


def reference_answer(text: str) -> str | None:
    """Return the one answer that a reference is or ends in (a box, or `####`); None for an essay or a worked solution.

    Not covered: a worked solution that is as short as an answer and shows no sign of being one.
    """
    text = text.strip()
    found = answers.last_boxed(text) or answers.after_hashes(text)
    if found:
        return found
    if not text or _is_worked(text):
        return None
    return text


def _is_worked(text: str) -> bool:
    if len(text) > answers.MAX_CHARACTERS:
        return True
    flat = _TEXT.sub(r"\1", _ENVIRONMENT.sub("M", text))
    words = _WORD.findall(_COMMAND.sub(" ", flat))
    if len(flat.strip().splitlines()) > _MOST_LINES or len(words) > _MOST_WORDS:
        return True
    label = re.match(r"\s*(?:the\s+|final\s+|correct\s+)*answer\s*(?:is\b:?|:)", flat, re.IGNORECASE)
    rest = flat[label.end() :] if label else flat
    return any(pattern.search(rest) for pattern in (_ANNOUNCED, _SENTENCE)) or (
        len(words) > 1 and bool(_DERIVED.search(rest))
    )
