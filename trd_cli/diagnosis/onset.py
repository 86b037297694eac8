"""Onset tokens: the first tokens of words with which a text turns back on itself, as "Wait" or "However".

A word has up to three forms: at the start of a text, after a space and after a line break. The first token of each
form counts where it stands for the word: it spells the whole word, or at least four of its letters. A shorter piece is
shared with many other words, and the first token of a phrase belongs to all texts that begin with its first word. Such
forms are left out and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trd_cli.atomic import read_text_once
from trd_cli.errors import InputError, flag
from trd_cli.prompting.templates import prompts_dir
from trd_cli.prompting.tokens import Tokenizer

FILE = "onset.txt"
RULE = "first token of each word, bare, after a space and after a line break: all of the word, or at least 4 letters"
_LETTERS = 4


@dataclass(frozen=True)
class Onset:
    """Hold the words of a list, the ids (sorted) with the text of each token, and what was left out.

    `left_out` maps a form to the text of its first token, which is too general; `silent` maps a word, all of whose
    forms are left out, to the text of its first one.
    """

    words: tuple[str, ...]
    ids: tuple[int, ...]
    tokens: Mapping[int, str]
    left_out: Mapping[str, str]
    silent: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON values, with the rule."""
        return {"rule": RULE, **asdict(self), "tokens": {str(i): text for i, text in self.tokens.items()}}

    def notes(self) -> list[str]:
        """Return lines for a person on words that do not count in any form."""
        lines = []
        if self.silent:
            listed = ", ".join(f"{word} ({piece!r})" for word, piece in self.silent.items())
            lines.append(f"onset words that do not count, because their first token is too general: {listed}")
        if not self.ids:
            lines.append("no onset word counts with this tokenizer: onset mass and trigger are 0 everywhere")
        return lines


def read_words(path: str | None) -> tuple[str, ...]:
    """Return the words of a list, without comments and repetitions; None is the built-in list.

    Raises InputError for a file that cannot be read or has no word.
    """
    where = Path(path) if path else prompts_dir() / FILE
    try:
        lines = read_text_once(where).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"{flag('onset')} {where}: {reason}", "a text file with a word a line", "check it") from None
    words = tuple(dict.fromkeys(filter(None, (line.partition("#")[0].strip() for line in lines))))
    if not words:
        raise InputError(f"{flag('onset')} {where} has no word", "a word a line", "add some, or leave it out")
    return words


def onset_of(words: Sequence[str], tokenizer: Tokenizer) -> Onset:
    """Return the onset tokens of a tokenizer."""
    tokens: dict[int, str] = {}
    left_out: dict[str, str] = {}
    silent: dict[str, str] = {}
    for word in words:
        firsts = [(form, first, tokenizer.decode([first])) for form, first in _forms(word, tokenizer)]
        counted = {i: text for _, i, text in firsts if i not in tokenizer.special_ids and _stands_for(text, word)}
        tokens |= counted
        left_out |= {form: text for form, i, text in firsts if i not in counted}
        if firsts and not counted:
            silent[word] = firsts[0][2]
    return Onset(tuple(words), tuple(sorted(tokens)), dict(sorted(tokens.items())), left_out, silent)


def _forms(word: str, tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """Yield each form of a word with the id of its first token."""
    for before in ("", " "):
        ids = tokenizer.encode(before + word)
        if ids:
            yield before + word, ids[0]
    # A tokenizer may write the start of a text as if a space were before it, but not a new line.
    line, whole = tokenizer.encode("\n"), tokenizer.encode("\n" + word)
    if line and len(whole) > len(line) and _starts(whole, line):
        yield "\n" + word, whole[len(line)]


def _starts(ids: Sequence[int], head: Iterable[int]) -> bool:
    return all(a == b for a, b in zip(ids, head, strict=False))


def _stands_for(piece: str, word: str) -> bool:
    """Return whether a token's text is all of a word, or enough of its letters to tell it from most others."""
    text, whole = piece.strip().lower(), word.lower()
    return text == whole or (" " not in whole and len(text) >= _LETTERS and whole.startswith(text))
