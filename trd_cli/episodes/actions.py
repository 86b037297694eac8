"""Take one command out of what a model writes in a turn."""

from __future__ import annotations

from trd_cli.graders.answers import final_part


def command_of(reply: str, opened: bool = False) -> str:
    """Return the first command in a reply after its thinking; `opened` if the prompt began the thinking.

    Return "" for a reply without one, as where the thinking never ends.
    """
    lines = (final_part(reply, opened) or "").splitlines()
    return next(filter(None, map(command_in, lines)), "")


def command_in(line: str) -> str:
    """Return the command on a line, trimmed and without a leading `>`, or "" where there is none."""
    return line.strip().removeprefix(">").strip()
