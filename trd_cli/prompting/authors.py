"""Find the parts of a response's text that each author wrote, from the author of each of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import AUTHORS

_LOST = "\ufffd"  # decoding writes it for a character of which some bytes are missing


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` to `end` of a response, all by one author."""

    author: str
    start: int
    end: int


def author_runs(codes: Iterable[int]) -> list[tuple[str, int]]:
    """Return the authors of a response in turn, each with the number of tokens until the next one writes."""
    return [(AUTHORS[code], sum(1 for _ in run)) for code, run in groupby(codes)]


def told_authors(codes: Sequence[int], *, is_episode: bool) -> str:
    """Return how many tokens each author wrote, in words: in turn, or of an episode, which has many turns, in all."""
    if is_episode:
        return ", ".join(f"{author} {codes.count(code)}" for code, author in enumerate(AUTHORS) if code in codes)
    return ", then ".join(f"{author} {tokens}" for author, tokens in author_runs(codes))


def author_spans(text: str, token_ids: Sequence[int], codes: Sequence[int], tokenizer: Tokenizer) -> list[Span] | None:
    """Return the spans of `text` in order, which cover it, or None if the tokens do not spell it in this tokenizer.

    A character of several tokens belongs to the author of its last one.
    """
    if tokenizer.decode(token_ids) != text:
        return None
    found: list[Span] = []
    tokens = start = 0
    for author, count in author_runs(codes):
        tokens += count
        head = tokenizer.decode(token_ids[:tokens])
        if not text.startswith(head):
            head = head.rstrip(_LOST)
        if not text.startswith(head):
            return None
        end = max(start, len(head))
        if end > start:
            found.append(Span(author, start, end))
        start = end
    return found
