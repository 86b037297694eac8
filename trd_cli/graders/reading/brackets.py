"""Match brackets and split a text outside of them."""

from __future__ import annotations

import re


class Unbalanced(ValueError):
    """The braces of an answer do not match."""


def group_end(text: str, start: int, opening: str = "{", closing: str = "}") -> int:
    """Return the index of the bracket that closes the one at `start`; raises Unbalanced if there is none."""
    depth = 0
    place = start
    while place < len(text):
        character = text[place]
        if character == "\\":
            place += 2
            continue
        if character == opening:
            depth += 1
        elif character == closing:
            depth -= 1
            if depth == 0:
                return place
        place += 1
    raise Unbalanced(text)


def split(text: str, pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Return the pieces between the matches of a pattern outside of brackets, and the matches."""
    pieces, found, depth, start, place = [], [], 0, 0, 0
    bars = 0
    while place < len(text):
        if depth == 0 and bars % 2 == 0 and (match := pattern.match(text, place)) and match.end() > place:
            pieces.append(text[start:place])
            found.append(match[0])
            start = place = match.end()
            continue
        character = text[place]
        if character == "\\":
            if text[place + 1 : place + 2] in ("{", "}"):
                depth += 1 if text[place + 1] == "{" else -1
            elif text.startswith(("\\langle", "\\lfloor", "\\lceil"), place):
                depth += 1
            elif text.startswith(("\\rangle", "\\rfloor", "\\rceil"), place):
                depth -= 1
            elif text.startswith("\\begin", place):
                depth += 1
            elif text.startswith("\\end", place):
                depth -= 1
            place += 2
            continue
        if character in "{([":
            depth += 1
        elif character in "})]":
            depth = max(depth - 1, 0)
        elif character == "|":
            bars += 1
        place += 1
    pieces.append(text[start:])
    return pieces, found


def depth_stays(text: str) -> bool:
    """Return whether the last character, and none before it, closes the first bracket."""
    depth, place = 0, 0
    while place < len(text):
        character = text[place]
        if character == "\\":
            step = text[place + 1 : place + 2]
            depth += {"{": 1, "}": -1}.get(step, 0)
            place += 2
        else:
            depth += 1 if character in "{([" else -1 if character in "})]" else 0
            place += 1
        if depth == 0 and place < len(text):
            return False
    return True
