"""Stand-ins in a test for objects of the program, which live in another process. Standard library only.

A stand-in asks the other side, through its `Peer` (see objects), for each attribute, call and step.
"""

from __future__ import annotations

import math
import operator
import sys
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
    "__pos__": operator.pos,
    "__invert__": operator.invert,
    "__round__": round,
    "__trunc__": math.trunc,
    "__floor__": math.floor,
    "__ceil__": math.ceil,
    "__complex__": complex,
    "__bytes__": bytes,
    "__hash__": hash,
    "__enter__": lambda value: type(value).__enter__(value),
    "__exit__": lambda value, error: type(value).__exit__(value, error and type(error), error, None),
}
# Operations on two objects of the program: a plain operand may be an expected result.
BETWEEN = {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "matmul")
} | {f"__{name}__": getattr(operator, f"__{name}__") for name in ("and", "or", "xor", "pow")}
# Operations on an object that the tests made themselves: their operand is an input.
OF_MADE = {"__contains__": operator.contains} | {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
}


class StandIn:
    """An object on the other side."""

    __slots__ = ("__weakref__", "_made", "_of")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (_Derived,)

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

    def __copy__(self) -> Any:
        return _asked(self, "copy", self)

    def __deepcopy__(self, seen: dict[int, Any]) -> Any:
        return _asked(self, "deepcopy", self)

    def __hash__(self) -> int:
        return hash(("stand", number_of(self)))

    def __eq__(self, other: object) -> bool:
        return self is other


def stand_in(peer: Any, number: int, name: str, able: tuple[str, ...]) -> Any:
    """Return a stand-in for object `number` of the other side, of a class `name` with the methods `able`.

    A coroutine's stand-in is a coroutine that runs it.
    """
    methods = {each: _METHODS[each] for each in able if each in _METHODS}
    if "mro" in able:
        methods["mro_of"] = True
    if "__iter__" in methods or "__getitem__" in methods:
        methods.setdefault("__contains__", _contains)
        methods.setdefault("__iter__", _iterated)
    if "__iter__" in methods and "__next__" in methods:
        methods["__iter__"] = lambda self: self
    if "__eq__" in methods:
        methods.setdefault("__hash__", None)
    kind = type(str(name), (StandIn,), {"__slots__": (), "__module__": "solution", **methods})
    stand = object.__new__(kind)
    object.__setattr__(stand, "_of", (peer, number))
    return _awaitable(stand) if name == "coroutine" and "__await__" in able else stand


def abilities(kind: type) -> tuple[str, ...]:
    """Return the methods that a class has beyond those of `object`, of those that a stand-in can have."""
    found = {name: getattr(kind, name, None) for name in (*_METHODS, "__await__", "mro")}
    return tuple(name for name in found if found[name] is not None and found[name] is not getattr(object, name, None))


def number_of(stand: StandIn) -> int:
    """Return the number of the object on its own side."""
    return object.__getattribute__(stand, "_of")[1]


def _asked(stand: StandIn, op: str, *args: Any, **kwargs: Any) -> Any:
    peer = object.__getattribute__(stand, "_of")[0]
    peer.asked += 1
    return peer.ask(op, *args, **kwargs)


async def _awaitable(stand: StandIn) -> Any:
    """Run a coroutine of the other side there, at once, when it is awaited."""
    return _asked(stand, "run", stand)


# Methods


def _alone(name: str) -> Callable[..., Any]:
    def method(self: StandIn, *args: Any) -> Any:
        return _asked(self, name, self, *args)

    return method


def _between(name: str) -> Callable[..., Any]:
    def method(self: StandIn, other: Any) -> Any:
        return _asked(self, name, self, other) if isinstance(other, StandIn) else NotImplemented

    return method


def _of_made(name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: StandIn, other: Any) -> Any:
        try:
            object.__getattribute__(self, "_made")
        except AttributeError:
            return otherwise(self, other)
        return _asked(self, name, self, other)

    return method


def _called(self: StandIn, *args: Any, **kwargs: Any) -> Any:
    value = _asked(self, "call", self, *args, **kwargs)
    name = type(self).__name__
    # The tests made an object if they called a class by a name for classes: no function can pass for one.
    if isinstance(value, StandIn) and hasattr(type(self), "mro_of") and name[:1].isupper() and "_" not in name:
        object.__setattr__(value, "_made", True)
    return value


def _left(self: StandIn, kind: Any, error: BaseException | None, place: Any) -> Any:
    """Return the result of the program's `__exit__`, which may end any exception but an assertion of the tests."""
    failures = object.__getattribute__(self, "_of")[0].exceptions
    done = _asked(self, "__exit__", self, error and failures.parts(error))
    is_failure = isinstance(error, AssertionError) and not any(error is raised for raised in failures.raised)
    return False if is_failure else done


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
_METHODS |= {name: _of_made(name, lambda self, other: NotImplemented) for name in OF_MADE}
_METHODS |= {"__call__": _called, "__exit__": _left, "__contains__": _of_made("__contains__", _contains)}


# Classes that the tests derive from the program's


class _Deriving(type):
    """Have the other side derive a class of the tests from its own."""

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        above = space.pop("__orig_bases__", None)
        if above is None:
            return super().__new__(cls, name, bases, space)
        cell = space.pop("__classcell__", None)
        kind = next(each for each in above if isinstance(each, StandIn))
        made = _asked(kind, "derive", name, above, dict(space))
        if cell is not None:
            cell.cell_contents = made
        return made


class _Derived(metaclass=_Deriving):
    """Hold the place of the other side's classes among the bases of a class."""


class _Above:
    """Attributes of an object of the other side as the classes above one of its classes define them."""

    def __init__(self, kind: StandIn, value: Any) -> None:
        self._of = kind, value

    def __getattribute__(self, name: str) -> Any:
        kind, value = object.__getattribute__(self, "_of")
        return _asked(kind, "super", kind, value, name)


def above(*given: Any) -> Any:
    """Do the work of `super`, also in a class that the tests derive from one of the other side."""
    frame = sys._getframe(1)
    kind = None if given else frame.f_locals.get("__class__")
    if kind is not None:
        given = kind, frame.f_locals[frame.f_code.co_varnames[0]]
    return _Above(*given) if isinstance(kind, StandIn) else super(*given)


def class_of(value: Any) -> Any:
    """Return the class of a value; the other side's class for one of its objects."""
    return _asked(value, "type", value) if isinstance(value, StandIn) else type(value)


def derive(name: str, bases: tuple[Any, ...], space: dict[str, Any]) -> Any:
    """Return a class derived from one of this side, with the attributes that the other side gave it."""
    return type(bases[0])(name, bases, {key: _bound(space[key]) for key in space})


def _bound(value: Any) -> Any:
    """Return a function of the other side as one that is given the object, as methods are; anything else as it is."""
    is_function = isinstance(value, StandIn) and type(value).__name__ == "function"
    return (lambda *args, **kwargs: value(*args, **kwargs)) if is_function else value
