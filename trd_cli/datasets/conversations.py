"""Conversations as problems: the user's one turn is the problem, the assistant's one turn its worked solution.

Read are lists of {role, content} and of {from, value}, JSON of them, content as text or as a list of parts that are text.
A system's turn is instruction to another model; it is left out. Not covered: conversations of several turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trd_cli.datasets.values import RowFault, filled, text_of

_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}


def user_turn(conversation: Any) -> str | None:
    """Return the user's turn, or None without any; a conversation that is one text is that turn.

    Raises RowFault for several turns of the user, for a role or a part of a message that is not known.
    """
    turns = _turns(conversation)
    if isinstance(turns, str):
        return turns
    said = [text for role, text in turns if role == "user"]
    if len(said) > 1:
        raise RowFault(f"{len(said)} turns of the user, not one")
    return said[0] if said else None


def assistant_turn(conversation: Any) -> str | None:
    """Return the assistant's turn, or None without one or with several."""
    turns = _turns(conversation)
    said = [] if isinstance(turns, str) else [text for role, text in turns if role == "assistant"]
    return said[0] if len(said) == 1 else None


def has_system_turn(conversation: Any) -> bool:
    """Return whether a system's turn stands in a conversation; False for what is none."""
    opened = _opened(conversation)
    return isinstance(opened, list) and any(
        isinstance(turn, Mapping) and _ROLES.get(_role(turn)) == "system" for turn in opened
    )


def _turns(conversation: Any) -> str | list[tuple[str, str | None]]:
    opened = _opened(conversation)
    if not filled(opened):
        return []
    if isinstance(opened, str):
        return opened
    if not isinstance(opened, list) or not all(isinstance(turn, Mapping) for turn in opened):
        raise RowFault(f"a conversation is a {type(opened).__name__}, not a list of messages")
    return [_turn(turn) for turn in opened]


def _turn(turn: Mapping[str, Any]) -> tuple[str, str | None]:
    role = _ROLES.get(_role(turn))
    if role is None:
        raise RowFault(f"a message has the role {_role(turn) or 'none'!r}, not user, assistant or system")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = "\n".join(map(_part, content))
    return role, text_of(content)


def _role(turn: Mapping[str, Any]) -> str:
    return str(turn.get("role") or turn.get("from") or "").strip().casefold()


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise RowFault(f"a part of a message is of the type {kind}, not text")
    return text


def _opened(conversation: Any) -> Any:
    if isinstance(conversation, str) and conversation.lstrip().startswith("[{"):
        try:
            return json.loads(conversation)
        except ValueError as error:
            raise RowFault(f"a conversation is not JSON ({error})") from None
    return conversation
