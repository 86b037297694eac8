"""Find the formulas in a model's text and convert them to MathML, for a page that loads nothing.

`PATTERN` uses the syntax that Python and JavaScript share, so that the page finds the same formulas in the same text.
Its groups: 1 fenced code, 2 code in a line, 3 a formula with its delimiters: `$…$`, `$$…$$`, `\\(…\\)`, `\\[…\\]`, an
environment, a `\\boxed{…}` on its own. A dollar sign opens a formula if no space follows, and closes one if no space
precedes and no digit follows (pandoc's rule), so that prices stay prices. Bounded repeats keep the search linear on
text made to be slow.

A formula becomes a tree of MathML elements, written as JSON: [tag, {attributes}?, child or text, …]. Only elements and
attributes in the lists below are kept: the text comes from a model, and the page must be safe even if the converter
lets `\\href` through.

Not covered: macros that the text defines itself, and LaTeX that latex2mathml cannot read. The page shows the source of
such a formula.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element

PATTERN = (
    r"(```[^\n`]*\n[\s\S]*?(?:(?<=\n)[ \t]*```|(?![\s\S])))"
    r"|(`[^`\n]{1,400}`)"
    r"|(\$\$(?:[^$]|\\\$){1,4000}?\$\$"
    r"|(?<!\\)\\\[[\s\S]{1,2000}?\\\]"
    r"|\\\([\s\S]{1,2000}?\\\)"
    r"|\\begin\{((?:equation|align|alignat|gather|multline|eqnarray|aligned|cases|array|[pbv]?matrix)\*?)\}"
    r"[\s\S]{1,4000}?\\end\{\4\}"
    r"|(?<![\\$])\$(?![\s$])(?:[^$\n\\]|\\[^\n]){0,600}?(?<=\S)(?<!\\)\$(?![\d$])"
    r"|\\boxed\{(?:[^{}$\n]|\{(?:[^{}$\n]|\{[^{}$\n]{0,200}\}){0,200}\}){1,200}\})"
)
# All begin with one of three characters. Trying the pattern only there halves the time.
_FINDER = re.compile(rf"(?=[`$\\])(?:{PATTERN})")
_FORMULA = 3
_LONGEST = 1500
_CACHED = 20_000

_TAGS = frozenset(
    [
        *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msup", "msub", "msubsup", "mfrac", "msqrt", "mroot"),
        *("mover", "munder", "munderover", "mtable", "mtr", "mtd", "mstyle", "menclose", "mpadded", "mphantom"),
    ]
)
_ATTRIBUTES = frozenset(
    [
        *("accent", "accentunder", "columnalign", "depth", "displaystyle", "fence", "form", "height", "largeop"),
        *("linethickness", "lspace", "mathvariant", "maxsize", "minsize", "movablelimits", "notation", "rspace"),
        *("scriptlevel", "separator", "stretchy", "symmetric", "width"),
    ]
)
_VALUE = re.compile(r"[+-]?\d{0,2}(?:\.\d{1,4})?(?:em|ex|px|pt|%)?|[a-z-]{1,24}")
_DELIMITERS = (("\\[", "\\]", True), ("\\(", "\\)", False), ("$$", "$$", True), ("$", "$", False))
# latex2mathml knows the outer environments; the inner ones read the same without numbers.
_ENVIRONMENTS = re.compile(r"\\(begin|end)\{(aligned|align|alignat\*?|eqnarray\*?|gathered|gather\*?|multline\*?)\}")
_WITHOUT_EFFECT = re.compile(r"\\(begin|end)\{equation\*?\}|\\(?:label|tag)\{[^{}]*\}|\\(?:nonumber|notag)\b")


def formulas(text: str) -> Iterator[str]:
    """Return the formulas of a text in order, delimiters included."""
    return (match[_FORMULA] for match in _FINDER.finditer(text) if match[_FORMULA])


def typeset(texts: Iterable[str]) -> dict[str, str]:
    """Return formula → MathML tree as JSON, for every formula of these texts that can be converted."""
    found = dict.fromkeys(formula for text in texts for formula in formulas(text))
    return {formula: tree for formula in found if (tree := mathml(formula))}


@lru_cache(_CACHED)
def mathml(formula: str) -> str | None:
    """Return the tree of one formula as JSON, or None if it cannot be converted."""
    from latex2mathml.converter import convert_to_element

    latex, is_block = _bare(formula)
    if not latex.strip() or len(latex) > _LONGEST:
        return None
    try:
        tree = _clean(convert_to_element(latex, display="block" if is_block else "inline"))
    except Exception:  # The converter may fail in any way on a model's text; the page then shows the source.
        return None
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":"))


def _bare(formula: str) -> tuple[str, bool]:
    """Return the LaTeX between the delimiters, and True if it stands on a line of its own."""
    latex, is_block = formula, formula.startswith("\\begin")
    for opening, closing, block in _DELIMITERS:
        if formula.startswith(opening) and formula.endswith(closing):
            latex, is_block = formula[len(opening) : -len(closing)], block
            break
    latex = _WITHOUT_EFFECT.sub(" ", latex)
    return _ENVIRONMENTS.sub(r"\\\1{align*}", latex), is_block


def _clean(element: Element) -> Any:
    """Return the element as a nested list.

    Raises ValueError for an element outside the list, or a macro that the converter did not understand.
    """
    if element.tag not in _TAGS:
        raise ValueError(element.tag)
    # The converter writes characters as entities.
    text = html.unescape(element.text or "").strip("\n")
    if text.startswith("\\") or (element.tag == "mi" and text == "&"):
        raise ValueError(text)
    names = _ATTRIBUTES | ({"display"} if element.tag == "math" else set())
    kept = {k: v for k, v in element.attrib.items() if k in names and _VALUE.fullmatch(v)}
    children = [_clean(child) for child in element]
    if element.tag == "mrow" and len(children) == 1 and not kept:
        return children[0]
    return [element.tag, *([kept] if kept else []), *([text] if text else []), *children]
