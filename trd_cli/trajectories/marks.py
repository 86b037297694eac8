"""Mark in a text who wrote each part, and what has changed: by signs, and by colours where there are colours.

The signs are there for pipes and for eyes that do not tell the colours apart.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from rich.text import Text

from trd_cli.prompting.authors import Span

STYLES = {"student": "cyan", "teacher": "magenta", "environment": "yellow", "template": "dim"}
_WORDS = re.compile(r"\s+|[^\s]+")


def sign(author: str) -> Text:
    """Return the sign before what an author wrote, as ⟨teacher⟩."""
    return Text(f"⟨{author}⟩", style=f"bold {STYLES[author]}")


def removed(text: str) -> Text:
    return Text(f"[-{text}-]", style="red strike") if text else Text()


def added(text: str) -> Text:
    return Text(f"{{+{text}+}}", style="green") if text else Text()


def by_author(text: str, spans: Sequence[Span]) -> Text:
    """Return a text with the sign and the colour of each part's author; without `spans` as it is."""
    if not spans:
        return Text(text)
    marked = Text()
    for span in spans:
        marked.append_text(sign(span.author))
        marked.append(text[span.start : span.end], style=STYLES[span.author])
    return marked


def word_diff(before: str, after: str, spans: Sequence[Span] = ()) -> Text:
    """Return both texts as one, word by word. `spans` are of `after`."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    text, place = Text(), 0

    def append(words: Sequence[str], is_added: bool) -> None:
        nonlocal place
        start, place = place, place + sum(map(len, words))
        if is_added and start < place:
            text.append("{+", style="green")
        for span in spans or [Span("", 0, len(after))]:
            if start <= span.start < place and span.author:
                text.append_text(sign(span.author))
            part = after[max(start, span.start) : min(place, span.end)]
            text.append(part, style="green" if is_added else STYLES.get(span.author, ""))
        if is_added and start < place:
            text.append("+}", style="green")

    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            text.append_text(removed("".join(old[a:b])))
        append(new[c:d], is_added=kind != "equal")
    return text
