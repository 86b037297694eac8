"""Remove what surrounds an answer: marks, announcing words, the label of an equation, conditions."""

from __future__ import annotations

import re

from trd_cli.graders.reading.brackets import group_end, split
from trd_cli.graders.reading.kinds import Relation
from trd_cli.graders.reading.notation import TEXT
from trd_cli.graders.reading.vocabulary import ANNOUNCING

_CONDITION = re.compile(
    r"\s*,?\s*(?:\\text\{(?:for|where|if|when|with|given|provided|such|as)\}|\\forall\b|(?<![A-Za-z])(?:for all|for every|for any|for each|where))"
    r"(?P<rest>.*)$",
    re.DOTALL,
)


_FORALL = re.compile(r"\\forall\s?[^,:]*[,:]\s?|\\text\{for\}\s?\\text\{(?:all|every|any|each)\}[^,:]*[,:]\s?")


RELATIONS = re.compile(
    r"\\(?:le|ge|neq|in|notin|equiv|approx|subset|to|Rightarrow|iff|mid|parallel|perp|propto)(?![A-Za-z])|[=<>]"
)


def tidy(text: str) -> str:
    """Return the text without surrounding space, a final full stop and superfluous braces."""
    before = None
    while before != text:
        before = text
        text = text.strip().rstrip(",;").strip()
        if text.endswith("\\"):
            text = text.rstrip("\\").rstrip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        if text.startswith("{") and text.endswith("}") and group_end(text, 0) == len(text) - 1:
            text = text[1:-1]
        for mark in ("**", "__", '"', "`", "'"):
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
                text = text[len(mark) : -len(mark)]
    return text


def unannounced(text: str) -> str:
    """Return the text without the words that announce an answer: `Answer: 5`, `Option D`, `The answer is 5`."""
    rest = re.sub(r"^\\(?:therefore|Rightarrow|because)\s?(?=\S)", "", text)
    seen = False
    while match := re.match(r"\s*(?:\\text\{([^{}]*)\}|([A-Za-z]{2,})(?![A-Za-z({])|(答案|答))\s*(:)?\s*", rest):
        word = (match[1] or match[2] or match[3] or "").lower()
        if word not in ANNOUNCING or not rest[match.end() :].strip():
            break
        if word == "total" and not match[4] and not seen:
            break
        seen = True
        rest = rest[match.end() :]
    rest = re.sub(r"^\s*:\s*", "", rest)
    return rest if rest.strip() else text


def without_condition(text: str) -> str:
    """Return the text without `for all x`, `\\forall x > 0,` or `where …` at its beginning or end."""
    text = _FORALL.sub("", text, count=1) if text.startswith(("\\forall", "\\text{for}")) else text
    if "\\text{" in text or "\\forall" in text or "for" in text or "where" in text:
        match = _CONDITION.search(text)
        if match and text[: match.start()].strip() and match["rest"].strip():
            return text[: match.start()].strip()
    if match := re.fullmatch(r"(.*\S)\s*\(([^()]*(?:\\(?:in|ge|le|neq)(?![A-Za-z])|[<>])[^()]*)\)", text):
        return match[1]
    return text


def is_condition(piece: str, first: str) -> bool:
    """Return whether a piece of a list only limits a variable of the first piece."""
    sides, relations = split(piece, RELATIONS)
    if re.search(r"\\(?:pmod|bmod|mod)", piece):
        return False
    if relations and relations[0] == "\\in" and re.search(r"\\mathbb|\\text", sides[1]):
        return True
    opened, of_first = split(first, RELATIONS)
    ranges = bool(relations) and all(r in ("<", ">", "\\le", "\\ge", "\\neq") for r in relations)
    return (
        ranges
        and not any(r in ("<", ">", "\\le", "\\ge", "\\neq", "\\in") for r in of_first)
        and bool(re.search(r"[A-Za-z]", opened[-1]))
    )


def signs(text: str) -> tuple[str, str]:
    """Return the two texts that a text with `\\pm` stands for."""
    return (
        text.replace("\\pm", "+").replace("\\mp", "-").lstrip("+ "),
        text.replace("\\pm", "-").replace("\\mp", "+").lstrip("+ "),
    )


def is_label(side: str) -> bool:
    """Return whether the left side of an equation only names the right side.

    Such names are `x`, `f(2)`, `\\text{Area}`, `|AB|` and `(x,y)`.
    """
    side = side.strip()
    if TEXT.search(side) or re.match(r"m?\s?\\(?:angle|triangle|overline|vec|overrightarrow)", side):
        return True
    if re.fullmatch(r"[A-Z]{2,3}|\|[A-Z]{2}\||[a-z]{4,}|[A-Z][a-z]+", side):
        return True
    # Proportions of lengths, areas and the like.
    piece = r"(?:[A-Z]{1,3}|[A-Z]\s?_\s?(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\w|\\[A-Za-z]+))"
    if re.fullmatch(rf"\\frac\{{{piece}\}}\{{{piece}\}}|{piece}\s?[:/]\s?{piece}", side):
        return True
    name = r"(?:\\[A-Za-z]+|[A-Za-z])(?:\s?_\s?(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\w|\\[A-Za-z]+))?'*(?:\^\{\\(?:circ|prime|star)\})?(?:\^\{-1\})?"
    return bool(
        re.fullmatch(
            rf"{name}(?:\s?\([^()]*(?:\([^()]*\))?[^()]*\))?|\((?:{name}\s?,\s?)+{name}\)|\\frac\{{d.*\}}\{{d.*\}}",
            side,
        )
    )


def label_and_value(value: Relation) -> tuple[str, str]:
    """Return the first and the last side of an equation, exchanged if only the right one is a label (`5 = x`)."""
    first, last = value.sides[0], value.sides[-1]
    if (
        len(value.sides) == 2
        and not is_label(first)
        and re.fullmatch(r"[A-Za-z]|\\[a-z]+", last)
        and last not in ("\\pi", "e", "i")
    ):
        return last, first
    return first, last


def spelling(name: str) -> str:
    """Return a name without spaces and braces."""
    return re.sub(r"[\s{}]", "", name)
