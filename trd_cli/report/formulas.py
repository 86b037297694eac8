"""Formulas in the text of models: where they are, and what they look like, as MathML for a page that loads nothing.

`PATTERN` is in the syntax that Python and JavaScript share, so that the page finds the same formulas in the same text.
Its groups: 1 fenced code, 2 code in a line, 3 a formula with its delimiters: `$…$`, `$$…$$`, `\\(…\\)`, `\\[…\\]`, an
environment, a `\\boxed{…}` on its own. A dollar sign opens a formula where no space follows, and closes one where no
space precedes and no digit follows (as pandoc has it), so that prices stay prices. Bounded repeats keep the search
linear on text made to be slow.

A formula becomes a tree of MathML elements, written as JSON: [tag, {attributes}?, child or text, …]. Only elements and
attributes in the lists below are taken over: the text comes from a model, and a converter that lets `\\href` through
must not matter.

Not covered: macros that the text defines itself, and what latex2mathml does not read: such a formula is shown as its
source.
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
# All begin with one of three characters: tried at no other place, the search takes half the time.
_FINDER = re.compile(rf"(?=[`$\\])(?:{PATTERN})")
_FORMULA = 3
_LONGEST = 1500
_CACHED = 20_000

_TAGS = frozenset(
    [
        "math",
        "mrow",
        "mi",
        "mn",
        "mo",
        "mtext",
        "mspace",
        "msup",
        "msub",
        "msubsup",
        "mfrac",
        "msqrt",
        "mroot",
        "mover",
        "munder",
        "munderover",
        "mtable",
        "mtr",
        "mtd",
        "mstyle",
        "menclose",
        "mpadded",
        "mphantom",
    ]
)
_ATTRIBUTES = frozenset(
    [
        "accent",
        "accentunder",
        "columnalign",
        "depth",
        "displaystyle",
        "fence",
        "form",
        "height",
        "largeop",
        "linethickness",
        "lspace",
        "mathvariant",
        "maxsize",
        "minsize",
        "movablelimits",
        "notation",
        "rspace",
        "scriptlevel",
        "separator",
        "stretchy",
        "symmetric",
        "width",
    ]
)
_VALUE = re.compile(r"[+-]?\d{0,2}(?:\.\d{1,4})?(?:em|ex|px|pt|%)?|[a-z-]{1,24}")
_LATIN_BRACES = (("\\[", "\\]", True), ("\\(", "\\)", False), ("$$", "$$", True), ("$", "$", False))
# latex2mathml knows the outer environments; the inner ones read the same without numbers.
_ENVIRONMENTS = re.compile(r"\\(begin|end)\{(aligned|align|alignat\*?|eqnarray\*?|gathered|gather\*?|multline\*?)\}")
_WITHOUT_EFFECT = re.compile(r"\\(begin|end)\{equation\*?\}|\\(?:label|tag)\{[^{}]*\}|\\(?:nonumber|notag)\b")


def formulas(text: str) -> Iterator[str]:
    """The formulas of a text in order, delimiters included."""
    return (match[_FORMULA] for match in _FINDER.finditer(text) if match[_FORMULA])


def typeset(texts: Iterable[str]) -> dict[str, str]:
    """Formula → MathML tree as JSON, for every formula of these texts that can be drawn."""
    found = dict.fromkeys(formula for text in texts for formula in formulas(text))
    return {formula: tree for formula in found if (tree := mathml(formula))}


@lru_cache(_CACHED)
def mathml(formula: str) -> str | None:
    """The tree of one formula as JSON; None where it cannot be drawn: it is then shown as its source."""
    from latex2mathml.converter import convert_to_element

    latex, is_block = _bare(formula)
    if not latex.strip() or len(latex) > _LONGEST:
        return None
    try:
        tree = _clean(convert_to_element(latex, display="block" if is_block else "inline"))
    except Exception:  # Whatever goes wrong in a converter fed with a model's text, the source is there to show.
        return None
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":"))


def _bare(formula: str) -> tuple[str, bool]:
    """The LaTeX between the delimiters, and whether it stands on a line of its own."""
    latex, is_block = formula, formula.startswith("\\begin")
    for opening, closing, block in _LATIN_BRACES:
        if formula.startswith(opening) and formula.endswith(closing):
            latex, is_block = formula[len(opening) : -len(closing)], block
            break
    latex = _WITHOUT_EFFECT.sub(" ", latex)
    return _ENVIRONMENTS.sub(r"\\\1{align*}", latex), is_block


def _clean(element: Element) -> Any:
    """The element as a nested list.

    ValueError for an element that is not in the list, or a macro that was not understood.
    """
    if element.tag not in _TAGS:
        raise ValueError(element.tag)
    # The converter writes entities into the text; here they are characters again.
    text = html.unescape(element.text or "").strip("\n")
    if text.startswith("\\") or (element.tag == "mi" and text == "&"):
        raise ValueError(text)
    names = _ATTRIBUTES | ({"display"} if element.tag == "math" else set())
    kept = {k: v for k, v in element.attrib.items() if k in names and _VALUE.fullmatch(v)}
    children = [_clean(child) for child in element]
    if element.tag == "mrow" and len(children) == 1 and not kept:
        return children[0]
    return [element.tag, *([kept] if kept else []), *([text] if text else []), *children]
