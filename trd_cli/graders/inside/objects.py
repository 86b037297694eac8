"""Objects of a program that a test in another process uses as if they were in its own. Standard library only.

Both sides hold a `Peer`. What can be sent as a plain value is (see codec); anything else stays where it is, and the
other side is given a stand-in that asks for each attribute, call and step. While one side waits it serves the other, so
that a program may call a function that it was given. A request and its reply:

    {"op": name, "args": …, "kwargs": …, "given": …}
        →  {"value": …, "changed": …} | {"raised": text, "error": its parts, "changed": …}

`given` are the containers among the arguments, `changed` the same as the call left them, so that a list sorted in place
is sorted on both sides.

What a test compares with plain values is never told to the program: stand-ins compare and compute with each other
alone. Not covered: attributes that are plain containers and are changed through the attribute (`box.items.append(1)`).
"""

from __future__ import annotations

import builtins
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import codec

_NESTING = (list, tuple, deque)
_MUTABLE = (list, dict, set, bytearray, deque, codec.ListNode, codec.TreeNode)
# Of one object, with operands that are inputs.
_ALONE = {
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
    "__exit__": lambda value, error: type(value).__exit__(value, error and type(error), error, None),
}
# Of two objects of the program: a plain operand may be what a test expects.
_BETWEEN = {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "matmul")
} | {f"__{name}__": getattr(operator, f"__{name}__") for name in ("and", "or", "xor", "pow")}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **_ALONE,
    **_BETWEEN,
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "isinstance": isinstance,
    "issubclass": issubclass,
}


class Wire(Protocol):
    """Messages in and out; see runner.Pipes."""

    def receive(self, limit: float | None = None, resolve: Callable[..., Any] | None = None) -> Any: ...

    def send(self, message: Any, refer: Callable[[Any], tuple[Any, ...]] | None = None) -> None: ...


class Gone(BaseException):
    """The other side does not answer any more; no `except Exception` of a test takes it for an error of the program."""


class Peer:
    """One side of the conversation: `limit` is the seconds it waits for a reply, `extra` its further operations.

    A guarded side lets the other one call, iterate and read public attributes of what it handed over, nothing else.
    """

    def __init__(
        self,
        wire: Wire,
        limit: float | None = None,
        extra: dict[str, Callable[..., Any]] | None = None,
        guarded: bool = False,
    ) -> None:
        self._wire, self._limit, self._guarded = wire, limit, guarded
        self._operations = _OPERATIONS | (extra or {})
        self._mine: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._errors: dict[tuple[str, str, int], type[BaseException]] = {}
        # What the other side raised, how often it was asked, and why it is not asked any more.
        self.raised: list[BaseException] = []
        self._failed: AssertionError | None = None
        self.asked = 0
        self.broken: str | None = None

    def ask(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Return what an operation gives on the other side, or raise what it raises there;

        Gone where it does not answer.
        """
        if self.broken:
            raise Gone(self.broken)
        given = _containers((*args, *kwargs.values()))
        try:
            self._wire.send({"op": op, "args": args, "kwargs": kwargs, "given": given}, self._refer)
            reply = self._reply()
        except (TimeoutError, ValueError, OSError) as failure:
            self.broken = str(failure) if isinstance(failure, TimeoutError) else "the program ended its process"
            raise Gone(self.broken) from None
        ours = _change(given, reply.get("changed") or ())
        error = None if "value" in reply else self._exception(reply.get("error"), str(reply.get("raised", "no value")))
        failed, self._failed = self._failed, None
        if failed and (error is None or isinstance(error, AssertionError)):
            raise failed  # in a function of the tests that the program called, whatever it made of it
        if error is not None:
            # It would end the loop of a test that calls the program in it.
            raise (RuntimeError(told(error)) if isinstance(error, StopIteration) and op != "__next__" else error)
        return ours.get(id(reply["value"]), reply["value"])

    def _reply(self) -> dict[str, Any]:
        while isinstance(message := self._wire.receive(self._limit, self.resolve), dict) and "op" in message:
            self.serve(message)
        if not isinstance(message, dict):
            raise ValueError("no reply")
        return message

    def serve(self, request: dict[str, Any]) -> None:
        """Do what the other side asks for, and reply."""
        try:
            reply = self._done(request)
        except BaseException as error:
            reply = {"raised": told(error), "error": self.parts(error)}
        try:
            self._wire.send(reply, self._refer)
        except BaseException as error:  # a value that cannot even be looked at
            self._wire.send({"raised": told(error)})

    def _done(self, request: dict[str, Any]) -> dict[str, Any]:
        op, args, kwargs = request["op"], list(request["args"]), request["kwargs"]
        if op == "__exit__":
            args[1] = args[1] and self._exception(args[1], "")
        if self._guarded and not self._allows(op, args):
            raise TypeError(f"{op} is not for the program")
        given = request["given"]
        try:
            value = self._operations[op](*args, **kwargs)
        except BaseException as error:
            if self._guarded and isinstance(error, AssertionError):
                self._failed = error
            parts = self.parts(error)
            return {"raised": parts["text"], "error": parts, "changed": given}
        return {"value": value, "changed": given}

    def _allows(self, op: str, args: list[Any]) -> bool:
        if not any(args[0] is handed for handed in self._mine):
            return False
        # Only of objects of the tests' own classes: those of a generator lead to its frame and all that the tests know.
        is_own = type(args[0]).__module__ == "__main__" and not isinstance(args[0], type)
        may_get = op == "get" and is_own and not str(args[1]).startswith("_")
        return op in ("call", "__next__", "__iter__") or may_get

    # References

    def _refer(self, value: Any) -> tuple[str, int, str, tuple[str, ...], tuple[Any, ...]]:
        if isinstance(value, Stand):
            return "yours", _number(value), "", (), ()
        if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
            return "builtin", 0, value.__name__, (), ()
        number = self._number_of(value)
        is_error = isinstance(value, type) and issubclass(value, BaseException)
        named = value if isinstance(value, type) else type(value)
        able = tuple(name for name in (*_ALONE, *_BETWEEN, "__call__") if _has(type(value), name))
        return "mine", number, named.__name__, able, self._line(value) if is_error else ()

    def _number_of(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._mine.append(value)
            self._numbers[id(value)] = len(self._mine) - 1
        return self._numbers[id(value)]

    def resolve(self, side: str, number: int, name: str, able: tuple[str, ...], line: tuple[Any, ...]) -> Any:
        if side == "yours":
            return self._mine[number] if 0 <= number < len(self._mine) else codec.Opaque()
        if side == "builtin":
            found = getattr(builtins, name, None)
            return found if isinstance(found, type) else codec.Opaque()
        if line:
            return self._error_class(line)
        if number not in self._theirs:
            self._theirs[number] = _stand(self, number, name, able)
        return self._theirs[number]

    # Exceptions

    def _line(self, kind: type[BaseException]) -> tuple[tuple[str, str, int], ...]:
        """A class of exceptions and those above it, each by its module and name, or as one of the program's own by
        number.
        """
        line = []
        for above in kind.__mro__:
            if not issubclass(above, BaseException):
                continue
            is_known = getattr(sys.modules.get(above.__module__), above.__name__, None) is above
            is_own = above.__module__ in ("solution", "__main__") or not is_known
            line.append((above.__module__, above.__name__, self._number_of(above) + 1 if is_own else 0))
        return tuple(line)

    def parts(self, error: BaseException) -> dict[str, Any]:
        """Return what the other side makes an exception of; an assertion's words stay with the tests."""
        if self._guarded and isinstance(error, AssertionError):
            error = AssertionError()
        try:
            text = str(error)
        except BaseException:
            text = ""
        return {"line": self._line(type(error)), "args": error.args, "text": text, "object": self._reference(error)}

    def _reference(self, error: BaseException) -> Any:
        return None if type(error).__module__ == "builtins" else error

    def _error_class(self, line: tuple[Any, ...]) -> type[BaseException]:
        if not line:
            return Exception
        module, name, number = line[0]
        if (module, name, number) not in self._errors:
            # No program skips a test.
            is_runner = module.partition(".")[0] in ("unittest", "pytest", "_pytest")
            known = None if number or is_runner else getattr(sys.modules.get(module), name, None)
            is_known = isinstance(known, type) and issubclass(known, BaseException)
            above = known if is_known else self._error_class(line[1:])
            names = {"__getattr__": _attribute_of_error, "__str__": _text_of_error, "__module__": "solution"}
            self._errors[module, name, number] = above if is_known else type(name, (above,), names)
        return self._errors[module, name, number]

    def _exception(self, parts: Any, text: str) -> BaseException:
        try:
            kind = self._error_class(tuple(parts["line"]))
            error = kind.__new__(kind, *parts["args"])
            error.args = tuple(parts["args"])
            if kind.__module__ == "solution":
                error.__dict__.update(said=parts["text"], stand=parts["object"])
        except Exception:  # made up, or of a kind that needs more
            error = RuntimeError(text)
        self.raised.append(error)
        return error


def told(error: BaseException) -> str:
    """Return an exception's type and words, shortened; a program may have made it so that it cannot be printed."""
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an exception that cannot be printed"


def _attribute_of_error(error: BaseException, name: str) -> Any:
    stand = error.__dict__.get("stand")
    if stand is None:
        raise AttributeError(name)
    return getattr(stand, name)


def _text_of_error(error: BaseException) -> str:
    return str(error.__dict__["said"]) if "said" in error.__dict__ else super(type(error), error).__str__()


# Stand-ins


class Stand:
    """An object on the other side."""

    __slots__ = ("__weakref__", "_of")

    def __getattr__(self, name: str) -> Any:
        return _asked(self, "get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _asked(self, "set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _asked(self, "delete", self, name)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Stand) and bool(_asked(self, "isinstance", value, self))

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance(value, Stand) and bool(_asked(self, "issubclass", value, self))

    def __hash__(self) -> int:
        return hash(("stand", _number(self)))

    def __eq__(self, other: object) -> bool:
        return self is other


def _number(stand: Stand) -> int:
    return object.__getattribute__(stand, "_of")[1]


def _asked(stand: Stand, op: str, *args: Any, **kwargs: Any) -> Any:
    peer = object.__getattribute__(stand, "_of")[0]
    peer.asked += 1
    return peer.ask(op, *args, **kwargs)


def _alone(name: str) -> Callable[..., Any]:
    def method(self: Stand, *args: Any) -> Any:
        return _asked(self, name, self, *args)

    return method


def _between(name: str) -> Callable[..., Any]:
    def method(self: Stand, other: Any) -> Any:
        return _asked(self, name, self, other) if isinstance(other, Stand) else NotImplemented

    return method


def _called(self: Stand, *args: Any, **kwargs: Any) -> Any:
    return _asked(self, "call", self, *args, **kwargs)


def _left(self: Stand, kind: Any, error: BaseException | None, place: Any) -> Any:
    """Return what the program's `__exit__` does: it may end an exception, but no assertion of the tests."""
    peer = object.__getattribute__(self, "_of")[0]
    done = _asked(self, "__exit__", self, error and peer.parts(error))
    is_failure = isinstance(error, AssertionError) and not any(error is raised for raised in peer.raised)
    return False if is_failure else done


def _contains(self: Stand, wanted: Any) -> bool:
    return any(value is wanted or value == wanted for value in self)


def _iterated(self: Stand) -> Iterator[Any]:
    place = 0
    while True:
        try:
            yield self[place]
        except IndexError:
            return
        place += 1


_METHODS = {name: _alone(name) for name in _ALONE} | {name: _between(name) for name in _BETWEEN}
_METHODS |= {"__call__": _called, "__exit__": _left}


def _has(kind: type, name: str) -> bool:
    found = getattr(kind, name, None)
    return found is not None and found is not getattr(object, name, None)


def _stand(peer: Peer, number: int, name: str, able: tuple[str, ...]) -> Stand:
    methods = {each: _METHODS[each] for each in able if each in _METHODS}
    if "__iter__" in methods or "__getitem__" in methods:
        methods["__contains__"] = _contains
        methods.setdefault("__iter__", _iterated)
    if "__iter__" in methods and "__next__" in methods:
        methods["__iter__"] = lambda self: self
    if "__eq__" in methods:
        methods["__hash__"] = Stand.__hash__
    kind = type(str(name), (Stand,), {"__slots__": (), "__module__": "solution", **methods})
    stand = object.__new__(kind)
    object.__setattr__(stand, "_of", (peer, number))
    return stand


# Arguments that a call changes


def _containers(values: Any) -> list[Any]:
    """All that can be changed among values and in them."""
    found, waiting, seen = [], [values], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _MUTABLE):
            found.append(value)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, _NESTING) else ()
        waiting.extend(each for each in inner if isinstance(each, (*_MUTABLE, tuple)))
    return found


def _change(old: list[Any], new: Any) -> dict[int, Any]:
    """Give our containers the content that the other side's have;

    which of ours stands for which of theirs, by identity.
    """
    ours = {id(theirs): mine for mine, theirs in zip(old, new, strict=False) if type(mine) is type(theirs)}
    for mine, theirs in zip(old, new, strict=False):
        if type(mine) is not type(theirs):
            continue
        if isinstance(mine, (list, deque)):
            content = [ours.get(id(each), each) for each in theirs]
            mine.clear()
            mine.extend(content)
        elif isinstance(mine, dict):
            pairs = {key: ours.get(id(value), value) for key, value in theirs.items()}
            mine.clear()
            mine.update(pairs)
        elif isinstance(mine, bytearray):
            mine[:] = theirs
        elif isinstance(mine, set):
            mine.clear()
            mine.update(theirs)
        else:
            mine.__dict__.update(theirs.__dict__)
    return ours
