"""Read a teacher's list of commands: one a line, with the words that it expects in the reply behind ` => `."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trd_cli.episodes.actions import command_in
from trd_cli.graders.answers import final_part

_ARROW = re.compile(r"\s*(?:=>|⇒)\s*")
_FENCE = re.compile(r"\s*(?:```|~~~)")
# A number or a dot before an entry of a list; a command may begin with a number itself.
_MARK = re.compile(r"\A(?:\d{1,3}[.)]|[-*•])\s+")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Command:
    """Hold a command, and words that its reply should have, "" where any reply will do."""

    action: str
    expected: str = ""

    def is_met_by(self, reply: str) -> bool:
        """Return whether a reply has the expected words in a row; case, punctuation and space do not count."""
        return f" {_words(self.expected)} " in f" {_words(reply)} " or not _words(self.expected)


def commands_in(reply: str, is_cut: bool = False, opened: bool = False) -> tuple[Command, ...]:
    """Return the commands of a teacher's reply in their order; none for one that ends inside its thoughts.

    With `is_cut` the reply was cut at its limit of tokens: its last line may be half a command, and does not count.
    `opened` if the prompt began the thoughts.
    """
    lines = (final_part(reply, opened) or "").splitlines(keepends=True)
    if is_cut and lines and not lines[-1].endswith("\n"):
        lines.pop()
    found = (_command(line) for line in lines if not _FENCE.match(line))
    return tuple(command for command in found if command.action)


def _command(line: str) -> Command:
    action, *expected = _ARROW.split(line.strip(), maxsplit=1)
    return Command(command_in(_MARK.sub("", action)), *expected)


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
