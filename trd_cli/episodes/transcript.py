"""Write an episode as people and teachers read it: each command after `>`, and then what the environment answered."""

from __future__ import annotations

from collections.abc import Iterable

from trd_cli.records import Turn


def transcript(turns: Iterable[Turn]) -> str:
    """Return the text of an episode without its beginning, which is the problem. A turn without an answer has none."""
    lines = (line for turn in turns for line in (f"> {turn.action}", (turn.observation or "").strip()))
    return "\n".join(filter(None, lines))
