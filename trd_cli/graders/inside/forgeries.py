"""Refuse forged messages before they are read. Standard library only: it also runs inside the sandbox."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

_CHANGING = frozenset({"BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"})
_MOST_OPERATIONS = 8_000_000
# How many values a message may stand for, each counted as often as it is held. Some seconds of comparing.
_MOST_VALUES = 1 << 30
# Honest results of many megabytes occur, and counting takes a microsecond a value. A longer message that never ends to
# compare costs a worker its time and the row a timeout.
_LONGEST_COUNTED = 1 << 20
_REFERS = b"h", b"j", b"g", b"2"  # BINGET, LONG_BINGET and two that only a forged message has: GET and DUP
_FOREIGN = {"GET", "DUP"}
_FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
# Nodes and stand-ins are compared by identity, so what they are made of counts once, however often they are held.
_COUNTED_ONCE = {"graph", "reference"}


def refuse_changes(data: bytes) -> None:
    """Raise UnpicklingError if a message changes an object or makes one of a class, as `dumps` never does."""
    for count, (code, _, _) in enumerate(pickletools.genops(data)):
        if code.name in _CHANGING or count > _MOST_OPERATIONS:
            raise pickle.UnpicklingError("a message that changes what it refers to, or is too long to check")


def refuse_endless(data: bytes) -> None:
    """Raise ValueError if values hold each other so often that comparing or hashing them would take for ever."""
    if len(data) > _LONGEST_COUNTED:
        return
    references = sum(map(data.count, _REFERS))
    # With so many references the values can be held at most 3 ** (references / 3) times each.
    if references < 3 or len(data) * 3 ** min(references / 3, 40) <= _MOST_VALUES:
        return
    # A cell of the stack holds the number of the values there, and their text or the name of the function. Cells are
    # shared as the values are. `marks` holds the places where marks were set.
    stack: list[list[Any]] = []
    marks: list[int] = []
    memo: dict[int, list[Any]] = {}
    apart = 0
    for code, argument, _ in pickletools.genops(data):
        name = code.name
        if name in _FOREIGN:
            raise ValueError(f"a message with {name}")
        if name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _FILLING or code.stack_before:
            start = marks.pop() if pickletools.stackslice in code.stack_before else len(stack) - len(code.stack_before)
            start -= name in ("APPENDS", "SETITEMS", "ADDITEMS")
            filled = stack[start] if name in _FILLING else [1, stack[-1][1] if name == "STACK_GLOBAL" else None]
            filled[0] += sum(cell[0] for cell in stack[start + (name in _FILLING) :])
            if filled[0] + apart > _MOST_VALUES:
                raise ValueError("values that hold each other without end")
            if name == "REDUCE" and stack[start][1] in _COUNTED_ONCE:
                apart, filled = apart + filled[0], [1, None]
            stack[start:] = [filled] if code.stack_after else []
        elif code.stack_after:
            stack.append([1, argument if name == "SHORT_BINUNICODE" else None])
