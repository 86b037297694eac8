"""Find the answer in a response or in a reference: text in, text out.

Functions that look at a whole response take time linear in its length; the others are for answers that are `readable`.

Not covered: thinking blocks in other tags than `<think>`.
"""

from __future__ import annotations

import re
from itertools import pairwise

# Nothing longer or deeper is meant as an answer, and math-verify's parser would take minutes for it.
MAX_CHARACTERS, MAX_NESTING = 4_000, 40

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile("</?think>")
_CODE = re.compile(r"(?ms)^[ \t]*```.*?(?:^[ \t]*```|\Z)|`[^`\n]+`")

# An opening box (its backslash may be doubled, as in JSON), an escaped character, or a brace.
_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHED_NUMBER = re.compile(r"-?\$?-?\d[\d,./]*%?")


def thinking_is_open(response: str, opened: bool = False) -> bool:
    """Return whether a response ends inside its thoughts; `opened` if the prompt began them."""
    return final_part(response, opened) is None


def final_part(response: str, opened: bool = False) -> str | None:
    """Return the text after the thinking, or None if the thinking never ends; `opened` if the prompt began it.

    A closing tag without an opening one ends what the prompt began. After that, a tag counts only as one of a pair
    outside of code and quotes, so that a text or a program may mention `<think>`.
    """
    first, end = response.find(OPEN), response.find(CLOSE)
    if opened or 0 <= end < first or (first < 0 <= end):
        return None if end < 0 else _after_further(response[end + len(CLOSE) :])
    if first < 0:
        return response
    if not response[:first].strip():
        return None if end < 0 else _after_further(response[end + len(CLOSE) :])
    tags = _tags(response)
    if tags and tags[-1][1] == OPEN and CLOSE not in [tag for _, tag in tags]:
        return None
    return _after_further(response)


def _after_further(text: str) -> str:
    """Return the text after the last complete block of thoughts, in a text that may also mention the tags."""
    tags = _tags(text) if CLOSE in text else []
    ends = [place + len(CLOSE) for (_, before), (place, tag) in pairwise(tags) if (before, tag) == (OPEN, CLOSE)]
    return text[ends[-1] :] if ends else text


def _tags(text: str) -> list[tuple[int, str]]:
    """Return the thinking tags of a text with their places, except those in fenced code, inline code and quotes."""
    code = [match.span() for match in _CODE.finditer(text)] if "`" in text or "~" in text else []
    return [
        (match.start(), match[0])
        for match in _TAG.finditer(text)
        if text[match.start() - 1 : match.start()] not in ("'", '"')
        and not any(start < match.start() < end for start, end in code)
    ]


def last_boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{…}` or `\\fbox{…}` whose braces balance, or None.

    Of two boxes in one sentence only the second counts; of two nested boxes the inner one. An escaped brace is an
    ordinary character.
    """
    last: tuple[int, int] | None = None
    opened: list[int | None] = []
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            start = opened.pop() if opened else None
            if start is not None and (last is None or start > last[0]):
                last = start, match.start()
        elif token == "{":
            opened.append(None)
        elif len(token) > 2:
            opened.append(match.end())
    return text[slice(*last)].strip() if last else None


def after_hashes(text: str) -> str | None:
    """Return the text after the last `####` on its line, which ends solutions of GSM8K, or None.

    It must be a number or end the text, because four hashes are also a heading in Markdown.
    """
    _, found, rest = text.rpartition("####")
    line, _, after = rest.partition("\n")
    line = line.strip()
    if not found or not line or text.endswith("#####" + rest):
        return None
    return line if not after.strip() or _HASHED_NUMBER.fullmatch(line) else None


# The words that announce an answer, and what may stand between them and the answer.
_SAID = re.compile(
    r"(?:\b(?:answer|ans|antwort|respuesta|réponse|resposta|risposta|ответ)\b[*_\s]*(?:is|are|ist|lautet|est|es|é|è|:|=|：|-\s)"
    r"|\b(?:correct|right|best|final)\s+(?:option|choice)\s+is\b|(?:答案|答え|答|정답|답)[*_\s]*(?:是|为|為|は|은|는|:|=|：))[*_\s]*:?[*_\s]*",
    re.IGNORECASE,
)
_CORRECT_OPTION = re.compile(
    r"\b(?:option|choice)\s*\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|answer)", re.IGNORECASE
)
_LETTER = re.compile(
    r"(?:the\s+)?(?:(?:option|choice|letter)\s+)?\(?([A-J])\)?(?P<more>\s*(?:,|/|&|and|or)\s*\(?[A-J]\)?(?![A-Za-z]))*(?=[\s.,;:!)]|$)"
)
_RETRACTED = re.compile(r"\b(?:no|not really|wait|sorry|rather|instead)\b.*(?<![A-Za-z])[A-J](?![A-Za-z])", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?。](?=\s|$)|,?\s(?:because|since)\b|,\s(?:as|so)\b")
_LONE_LETTER = re.compile(r"[*_]*\(?([A-J])\)?[*_]*\.?")
_LONE_OPTION = re.compile(r"\*\*(\(?[A-J][).:]\s.{1,80})\*\*\.?")
# A last line that consists of marked text.
_LONE_MARKED = re.compile(r"(?:>\s*)?(\*\*|__|`)\s*([^*`]{1,80}?)\s*\1\.?")


def said_answer(text: str) -> str | None:
    """Return the answer that a text announces, or the one that stands alone in its last line.

    An announced answer ends with its sentence. In the last line only a letter or marked text counts. The letter of a
    choice comes without the words after it, unless they take it back. `The answer is A bus` names no choice.
    """
    *_, last = [None, *_SAID.finditer(text)]
    if last is None:
        *_, option = [None, *_CORRECT_OPTION.finditer(text)]
        line = text.strip().rsplit("\n", 1)[-1].strip()
        lone = option or _LONE_LETTER.fullmatch(line) or _LONE_OPTION.fullmatch(line)
        marked = _LONE_MARKED.fullmatch(line)
        return lone[1] if lone else marked[2] if marked else None
    said = text[last.end() :].lstrip().split("\n", 1)[0].replace("**", "").strip()
    letter = _LETTER.match(said)
    if letter and not (letter[1] in "AI" and re.match(r"\s+(?!because|since|as\b)[a-z]", said[letter.end() :])):
        sentence = _SENTENCE_END.split(said[letter.end() :])[0]
        return None if _RETRACTED.search(sentence) else letter[0].strip()
    said = _SENTENCE_END.split(said)[0].strip(" *_`\"'")
    marked = re.fullmatch(r"\$([^$]+)\$", said)
    return (marked[1].strip() if marked else said) or None


def last_mathematics(text: str) -> str | None:
    """Return the text between the last marks of mathematics, or None."""
    found = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", text, re.DOTALL)
    return "".join(found[-1]).strip() if found else None


def readable(answer: str) -> bool:
    """Return whether an answer is short and flat enough to be meant as one and to be parsed in reasonable time."""
    if len(answer) > MAX_CHARACTERS:
        return False
    depth = 0
    for character in answer:
        if character in "{([":
            depth += 1
            if depth > MAX_NESTING:
                return False
        elif character in "})]":
            depth = max(depth - 1, 0)
    return True


# A reference in words is short. A longer one, or one that goes on after a sentence, explains how the answer was found.
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
    """Return the one answer of a reference; None for an essay or a worked solution.

    The answer of a worked solution counts if it is in a box or after `####`. Not covered: a worked solution that is as
    short as an answer and shows no sign of being one.
    """
    text = text.strip()
    found = last_boxed(text) or after_hashes(text)
    if found:
        return found
    if not text or _is_worked(text):
        return None
    return text


def _is_worked(text: str) -> bool:
    if len(text) > MAX_CHARACTERS:
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
