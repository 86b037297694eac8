"""Read conversations as problems: the user's one turn is the problem, the assistant's one turn its worked solution.

A conversation is a list of {role, content} or of {from, value}, or JSON of one. Its content is text, or a list of parts
that are text. A system turn instructs another model and is left out. Not covered: conversations of several turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trd_cli.datasets.values import RowFault, filled, opened, text_of

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
    """Return the user's turn, or None if there is none.

    Raises RowFault for several turns of the user, for a value that is no list of messages, and for an unknown role or
    part.
    """
    said = [text for role, text in _turns(conversation) if role == "user"]
    if len(said) > 1:
        raise RowFault(f"{len(said)} turns of the user, not one")
    return said[0] if said else None


def prompt(value: Any) -> str | None:
    """Return a prompt that is given as text, or as the user's turn in a list of messages."""
    return value if isinstance(opened(value), str) else user_turn(value)


def assistant_turn(conversation: Any) -> str | None:
    """Return the assistant's turn, or None if there is none or more than one."""
    said = [text for role, text in _turns(conversation) if role == "assistant"]
    return said[0] if len(said) == 1 else None


def is_conversation(value: Any) -> bool:
    """Return True if a value has the form of a list of messages."""
    turns = opened(value)
    first = next(iter(turns), None) if isinstance(turns, list) else None
    return isinstance(first, Mapping) and bool({"role", "from"} & first.keys())


def has_system_turn(conversation: Any) -> bool:
    """Return True if a value is a conversation with a system turn."""
    return is_conversation(conversation) and any(
        isinstance(turn, Mapping) and _ROLES.get(_role(turn)) == "system" for turn in opened(conversation)
    )


def _turns(conversation: Any) -> list[tuple[str, str | None]]:
    turns = opened(conversation)
    if not filled(turns):
        return []
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowFault(f"a conversation is a {type(turns).__name__}, not a list of messages")
    return [_turn(turn) for turn in turns]


def role_of(turn: Mapping[str, Any]) -> str:
    """Return user, assistant or system; raises RowFault for another role."""
    role = _ROLES.get(_role(turn))
    if role is None:
        raise RowFault(f"a message has the role {_role(turn) or 'none'!r}, not user, assistant or system")
    return role


def _turn(turn: Mapping[str, Any]) -> tuple[str, str | None]:
    role = role_of(turn)
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
