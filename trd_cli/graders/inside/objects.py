"""Let a test use objects of a program in another process as if they were its own. Standard library only.

Both sides hold a `Peer`. A plain value is sent (see codec). Any other object stays on its side, and the other side gets
a stand-in that asks for each attribute, call and step. A side that waits serves the other, so that a program may call a
function it was given. A request and its reply:

    {"op": name, "args": …, "kwargs": …}
        → {"value": …, "changed": …} | {"raised": text, "error": its parts, "changed": …}

`changed` holds the containers among the arguments as the call left them, so that a list sorted in place is sorted on
both sides.

The program never learns the plain values that a test compares with: stand-ins compare and compute only with each other.
Not covered: attributes that are plain containers and are changed through the attribute (`box.items.append(1)`).
"""

from __future__ import annotations

import builtins
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import codec
import stand_ins

_NESTING = (list, tuple, deque)
_MUTABLE = (list, dict, set, bytearray, deque, codec.ListNode, codec.TreeNode)
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **stand_ins.ALONE,
    **stand_ins.BETWEEN,
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
    """The other side does not answer any more.

    It is no Exception, so that `except Exception` in a test does not take it for an error of the program.
    """


class Peer:
    """One side of the conversation.

    `limit` is the time it waits for a reply, in seconds; `extra` holds further operations. A guarded side lets the
    other one call, iterate and read public attributes of the objects it handed over, nothing else.
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
        self._errors: dict[tuple[str, int], type[BaseException]] = {}
        # The exceptions of the other side, how often it was asked, and why it is asked no more.
        self.raised: list[BaseException] = []
        self.asked = 0
        self.broken: str | None = None

    def ask(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Return the result of an operation on the other side, or raise its exception; raises Gone if it is silent."""
        if self.broken:
            raise Gone(self.broken)
        given = _containers((*args, *kwargs.values()))
        try:
            self._wire.send({"op": op, "args": args, "kwargs": kwargs}, self._refer)
            reply = self._reply()
        except (TimeoutError, ValueError, OSError) as failure:
            self.broken = str(failure) if isinstance(failure, TimeoutError) else "the program ended its process"
            raise Gone(self.broken) from None
        ours = _change(given, reply.get("changed") or ())
        if "value" not in reply:
            error = self._exception(reply)
            # A StopIteration would end the loop of a test that calls the program in it.
            raise (RuntimeError(message_of(error)) if isinstance(error, StopIteration) and op != "__next__" else error)
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
            reply = {"raised": message_of(error), "error": self._parts(error)}
        try:
            self._wire.send(reply, self._refer)
        except BaseException as error:  # a value that cannot even be inspected
            self._wire.send({"raised": message_of(error)})

    def _done(self, request: dict[str, Any]) -> dict[str, Any]:
        op, args, kwargs = request["op"], list(request["args"]), request["kwargs"]
        if self._guarded and not self._allows(op, args):
            raise TypeError(f"{op} is not for the program")
        given = _containers((*args, *kwargs.values()))
        try:
            value = self._operations[op](*args, **kwargs)
        except BaseException as error:
            return {"raised": message_of(error), "error": self._parts(error), "changed": given}
        return {"value": value, "changed": given}

    def _allows(self, op: str, args: list[Any]) -> bool:
        if not any(args[0] is handed for handed in self._mine):
            return False
        # Attributes only of the tests' own classes: those of a generator lead to its frame and all that the tests know.
        is_own = type(args[0]).__module__ == "__main__" and not isinstance(args[0], type)
        may_get = op == "get" and is_own and not str(args[1]).startswith("_")
        return op in ("call", "__next__", "__iter__") or may_get

    # References

    def _refer(self, value: Any) -> tuple[str, int, str, tuple[str, ...], tuple[Any, ...]]:
        if isinstance(value, stand_ins.StandIn):
            return "yours", stand_ins.number_of(value), "", (), ()
        if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
            return "builtin", 0, value.__name__, (), ()
        number = self._number_of(value)
        is_error = isinstance(value, type) and issubclass(value, BaseException)
        named = value if isinstance(value, type) else type(value)
        able = tuple(
            name for name in (*stand_ins.ALONE, *stand_ins.BETWEEN, "__call__") if stand_ins.has(type(value), name)
        )
        return "mine", number, named.__name__, able, self._line(value) if is_error else ()

    def _number_of(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._mine.append(value)
            self._numbers[id(value)] = len(self._mine) - 1
        return self._numbers[id(value)]

    def resolve(self, side: str, number: int, name: str, able: tuple[str, ...], line: tuple[Any, ...]) -> Any:
        """Return the object or the stand-in for the parts of a reference, as `_refer` makes them."""
        if side == "yours":
            return self._mine[number] if 0 <= number < len(self._mine) else codec.Opaque()
        if side == "builtin":
            found = getattr(builtins, name, None)
            return found if isinstance(found, type) else codec.Opaque()
        if line:
            return self._error_class(line)
        if number not in self._theirs:
            self._theirs[number] = stand_ins.stand_in(self, number, name, able)
        return self._theirs[number]

    # Exceptions

    def _line(self, kind: type[BaseException]) -> tuple[tuple[str, str, int], ...]:
        """Return a class of exceptions and those above it by module and name, the program's own also by number."""
        line = []
        for above in kind.__mro__:
            if not issubclass(above, BaseException):
                continue
            is_known = getattr(sys.modules.get(above.__module__), above.__name__, None) is above
            is_own = above.__module__ in ("solution", "__main__") or not is_known
            line.append((above.__module__, above.__name__, self._number_of(above) + 1 if is_own else 0))
        return tuple(line)

    def _parts(self, error: BaseException) -> dict[str, Any]:
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
        if (name, number) not in self._errors:
            # A program must not be able to skip a test.
            is_runner = module.partition(".")[0] in ("unittest", "pytest", "_pytest")
            known = None if number or is_runner else getattr(sys.modules.get(module), name, None)
            is_known = isinstance(known, type) and issubclass(known, BaseException)
            above = known if is_known else self._error_class(line[1:])
            names = {"__getattr__": _attribute_of_error, "__str__": _text_of_error, "__module__": "solution"}
            self._errors[name, number] = above if is_known else type(name, (above,), names)
        return self._errors[name, number]

    def _exception(self, reply: dict[str, Any]) -> BaseException:
        parts = reply.get("error")
        try:
            kind = self._error_class(tuple(parts["line"]))
            error = kind.__new__(kind, *parts["args"])
            error.args = tuple(parts["args"])
            if kind.__module__ == "solution":
                error.__dict__.update(said=parts["text"], stand=parts["object"])
        except Exception:  # forged, or of a class that needs more arguments
            error = RuntimeError(str(reply.get("raised", "no value")))
        self.raised.append(error)
        return error


def message_of(error: BaseException) -> str:
    """Return an exception's type and text, shortened; a program may make one that cannot be printed."""
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


# Arguments that a call changes


def _containers(values: Any) -> list[Any]:
    """Return all mutable values among the given ones and inside them, in the same order on both sides."""
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
    """Give our containers the content of the other side's; return ours by the identity of theirs."""
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
