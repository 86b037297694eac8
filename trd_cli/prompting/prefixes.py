"""Cut a response to a prefix from which a model goes on. The ids stay as they were sampled; nothing is tokenised again.

The end-of-turn id is no part of a prefix: after it there is nothing to write. A share counts the tokens before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Cut

_LOST = "\ufffd"  # decoding writes it for a character of which some bytes are missing
_MOST_BYTES = 4  # of a character in UTF-8, and so the most tokens that share one


def cut(token_ids: Sequence[int], tokenizer: Tokenizer, where: Cut) -> int:
    """Return how many of a response's ids its prefix keeps, or 0 where the response is shorter than the prefix.

    With `at_line_break` the prefix ends after the token with a line break that is nearest to the place asked for, the
    earlier of two; a break behind which nothing follows does not count. A response without one is cut as if not asked
    for. A place inside a character of several tokens moves in front of the character, or behind it where it is the
    first.
    """
    length = length_before_end(token_ids, tokenizer)
    place = place_in(length, where)
    if not place:
        return 0
    if where.at_line_break and (breaks := _after_line_breaks(token_ids[:length], tokenizer)):
        place = min(breaks, key=lambda end: (abs(end - place), end))
    return _beside_character(token_ids[:length], tokenizer, place)


def length_before_end(token_ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Return the number of a response's ids before the end of its turn."""
    length = len(token_ids)
    while length and token_ids[length - 1] in tokenizer.eos_ids:
        length -= 1
    return length


def place_in(length: int, where: Cut) -> int:
    """Return where a response of so many tokens is cut by count or share, or 0 where it is shorter than that.

    A share is rounded to whole tokens, at least one.
    """
    place = where.tokens if where.share is None else max(1, int(where.share * length + 0.5))
    return place if place <= length else 0


def _after_line_breaks(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the places after each token with a line break, but for the end of the response."""
    breaks = {i for i in set(token_ids) if "\n" in tokenizer.decode([i])}
    return [end for end, i in enumerate(token_ids[:-1], 1) if i in breaks]


def _beside_character(token_ids: Sequence[int], tokenizer: Tokenizer, place: int) -> int:
    """Return the place, or the nearest one that is not inside a character, an earlier one if there is any."""
    whole: str | None = None
    steps = range(1, _MOST_BYTES)
    for end in (place, *(place - i for i in steps), *(place + i for i in steps)):
        if not 0 < end <= len(token_ids):
            continue
        head = tokenizer.decode(token_ids[:end])
        if not head.endswith(_LOST):
            return end
        whole = tokenizer.decode(token_ids) if whole is None else whole
        if whole.startswith(head):  # the bytes are missing in the response itself
            return end
    return place
