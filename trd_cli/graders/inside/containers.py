"""Carry changes of containers among a call's arguments from one process to the other. Standard library only."""

from __future__ import annotations

from collections import deque
from typing import Any

import nodes

_NESTING = (list, tuple, deque)
_MUTABLE = (list, dict, set, bytearray, deque)
# Types that hold no containers: for speed, their values are not inspected.
_PLAIN = frozenset((int, float, str, bool, bytes, type(None)))


def containers(values: Any) -> list[Any]:
    """Return all mutable values among the given ones and inside them."""
    found, waiting, seen = [], [values], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        links = nodes.links(value)
        is_array = type(value).__name__ == "ndarray" and type(value).__module__ == "numpy"
        if links or is_array or isinstance(value, _MUTABLE):
            found.append(value)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, _NESTING) else ()
        inner = [getattr(value, name) for name in ("val", *links)] if links else inner
        waiting.extend(each for each in inner if type(each) not in _PLAIN)
    return found


def change(old: list[Any], new: Any) -> dict[int, Any]:
    """Give our containers the content of the other side's; return ours by the identity of theirs."""
    pairs = [(mine, theirs) for mine, theirs in zip(old, new, strict=False) if _are_alike(mine, theirs)]
    ours = {id(theirs): mine for mine, theirs in pairs}
    for mine, theirs in pairs:
        if links := nodes.links(mine):
            for name in ("val", *links):
                value = getattr(theirs, name)
                setattr(mine, name, ours.get(id(value), value))
        elif isinstance(mine, (list, deque)):
            content = [ours.get(id(each), each) for each in theirs]
            mine.clear()
            mine.extend(content)
        elif isinstance(mine, dict):
            content = {key: ours.get(id(value), value) for key, value in theirs.items()}
            mine.clear()
            mine.update(content)
        elif isinstance(mine, set):
            mine.clear()
            mine.update(theirs)
        elif isinstance(mine, bytearray):
            mine[:] = theirs
        elif mine.shape == theirs.shape and mine.flags.writeable:  # an array
            mine[...] = theirs
    return ours


def _are_alike(mine: Any, theirs: Any) -> bool:
    return type(mine) is type(theirs) or (nodes.links(mine) == nodes.links(theirs) != ())
