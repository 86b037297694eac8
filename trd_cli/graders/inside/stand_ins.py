"""Stand-ins in a test for objects of the program, which live in another process. Standard library only.

A stand-in asks the other side, through its `Peer` (see objects), for each attribute, call and step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

# Operations on one object, with operands that are inputs.
ALONE = {
    "__len__": len,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__iter__": iter,
    "__next__": next,
    "__reversed__": reversed,
    "__str__": str,
    "__repr__": repr,
    "__format__": format,
    "__bool__": bool,
    "__int__": int,
    "__float__": float,
    "__index__": operator.index,
    "__abs__": abs,
    "__neg__": operator.neg,
    "__enter__": lambda value: type(value).__enter__(value),
    "__exit__": lambda value, *error: type(value).__exit__(value, *error),
}
# Operations on two objects of the program: a plain operand may be an expected result.
BETWEEN = {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "matmul")
} | {f"__{name}__": getattr(operator, f"__{name}__") for name in ("and", "or", "xor", "pow")}


class StandIn:
    """An object on the other side."""

    __slots__ = ("__weakref__", "_of")

    def __getattr__(self, name: str) -> Any:
        return _asked(self, "get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _asked(self, "set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _asked(self, "delete", self, name)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, StandIn) and bool(_asked(self, "isinstance", value, self))

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance(value, StandIn) and bool(_asked(self, "issubclass", value, self))

    def __hash__(self) -> int:
        return hash(("stand", number_of(self)))

    def __eq__(self, other: object) -> bool:
        return self is other


def number_of(stand: StandIn) -> int:
    """Return the number of the object on its own side."""
    return object.__getattribute__(stand, "_of")[1]


def _asked(stand: StandIn, op: str, *args: Any, **kwargs: Any) -> Any:
    peer = object.__getattribute__(stand, "_of")[0]
    peer.asked += 1
    return peer.ask(op, *args, **kwargs)


def _alone(name: str) -> Callable[..., Any]:
    def method(self: StandIn, *args: Any) -> Any:
        return _asked(self, name, self, *args)

    return method


def _between(name: str) -> Callable[..., Any]:
    def method(self: StandIn, other: Any) -> Any:
        return _asked(self, name, self, other) if isinstance(other, StandIn) else NotImplemented

    return method


def _called(self: StandIn, *args: Any, **kwargs: Any) -> Any:
    return _asked(self, "call", self, *args, **kwargs)


def _contains(self: StandIn, wanted: Any) -> bool:
    return any(value is wanted or value == wanted for value in self)


def _iterated(self: StandIn) -> Iterator[Any]:
    place = 0
    while True:
        try:
            yield self[place]
        except IndexError:
            return
        place += 1


_METHODS = {name: _alone(name) for name in ALONE} | {name: _between(name) for name in BETWEEN}
_METHODS |= {"__call__": _called}


def has(kind: type, name: str) -> bool:
    """Return whether a class has a method that `object` lacks."""
    found = getattr(kind, name, None)
    return found is not None and found is not getattr(object, name, None)


def stand_in(peer: Any, number: int, name: str, able: tuple[str, ...]) -> StandIn:
    """Return a stand-in for object `number` of the other side, of a class `name` with the methods `able`."""
    methods = {each: _METHODS[each] for each in able if each in _METHODS}
    if "__iter__" in methods or "__getitem__" in methods:
        methods["__contains__"] = _contains
        methods.setdefault("__iter__", _iterated)
    if "__iter__" in methods and "__next__" in methods:
        methods["__iter__"] = lambda self: self
    if "__eq__" in methods:
        methods["__hash__"] = StandIn.__hash__
    kind = type(str(name), (StandIn,), {"__slots__": (), "__module__": "solution", **methods})
    stand = object.__new__(kind)
    object.__setattr__(stand, "_of", (peer, number))
    return stand
