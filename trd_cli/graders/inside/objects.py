"""Let a test use objects of a program in another process as if they were its own. Standard library only.

Both sides hold a `Peer`. A plain value is sent (see codec). Any other object stays on its side, and the other side gets
a stand-in that asks for each attribute, call and step. A side that waits serves the other, so that a program may call a
function it was given. A request and its reply:

    {"op": name, "args": …, "kwargs": …, "given": …, "around": …}
        → {"value": …, "changed": …} | {"raised": text, "error": its parts, "changed": …}

`given` holds the containers among the arguments and `changed` the same ones as the call left them, so that a list
sorted in place is sorted on both sides. `around` holds the objects that the tests put in the place of Python's own.

The program never learns the plain values that a test compares with: stand-ins compare and compute only with each other.
`in` and operators such as `+=` take a plain value if the tests made the object by calling a class. Not covered:
attributes that are plain containers and are changed through the attribute (`box.items.append(1)`).
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import codec
import stand_ins
from containers import change, containers
from exceptions import Exceptions, is_awaited, message_of

_OPERATIONS: dict[str, Callable[..., Any]] = {
    **stand_ins.ALONE,
    **stand_ins.BETWEEN,
    **stand_ins.OF_MADE,
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "type": type,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "run": lambda coroutine: __import__("asyncio").run(coroutine),
    "super": lambda kind, value, name: getattr(super(kind, value), name),
    "derive": stand_ins.derive,
}
# Objects of Python that tests may replace: the program finds the replacement while the tests call it.
_WARNS = ("warnings", "_showwarnmsg_impl")
_REPLACED = (
    *(("builtins", "input"), ("builtins", "print"), ("sys", "stdin"), ("sys", "stdout"), ("sys", "stderr")),
    _WARNS,
)
# The program may use public attributes of the tests' objects whose classes these modules define.
_OPEN = ("__main__", "_io")


class Wire(Protocol):
    """Messages in and out; see runner.Pipes."""

    def receive(
        self, limit: float | None = None, resolve: Callable[..., Any] | None = None, is_suspect: bool = True
    ) -> Any: ...

    def send(self, message: Any, refer: Callable[[Any], tuple[Any, ...]] | None = None) -> None: ...


class Gone(BaseException):
    """The other side does not answer any more.

    It is no Exception, so that `except Exception` in a test does not take it for an error of the program.
    """


class Peer:
    """One side of the conversation.

    `limit` is the time it waits for a reply, in seconds; `extra` holds further operations. A guarded side lets the
    other one call and iterate the objects it handed over, and use those of the tests' own classes by operators and
    public attributes, nothing else.
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
        self._usual = _replaceable()
        # The seconds that the steps of each iterator of the other side took, by its identity.
        self._stepped: dict[int, float] = {}
        self._failed: AssertionError | None = None
        self.exceptions = Exceptions(self._mine, self._number_of, guarded)
        # How often the other side was asked, and why it is asked no more.
        self.asked = 0
        self.broken: str | None = None

    def ask(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Return the result of an operation on the other side, or raise its exception; raises Gone if it is silent."""
        if self.broken:
            raise Gone(self.broken)
        given = containers((*args, *kwargs.values()))
        began = time.monotonic()
        try:
            request = {"op": op, "args": args, "kwargs": kwargs, "given": given}
            if self._guarded:
                request["around"] = self._around()
            self._wire.send(request, self._refer)
            reply = self._reply()
        except (TimeoutError, ValueError, OSError) as failure:
            self.broken = str(failure) if isinstance(failure, TimeoutError) else "the program ended its process"
            raise Gone(self.broken) from None
        if op == "__next__" and self._limit is not None:
            spent = self._stepped[id(args[0])] = self._stepped.get(id(args[0]), 0.0) + time.monotonic() - began
            if spent > self._limit:
                self.broken = "an iterator that does not end in time"
                raise Gone(self.broken)
        ours = change(given, reply.get("changed") or ())
        error = None
        if "value" not in reply:
            error = self.exceptions.made(reply.get("error"), str(reply.get("raised", "no value")))
        failed, self._failed = self._failed, None
        if failed and (error is None or isinstance(error, AssertionError)):
            raise failed  # by a function of the tests that the program called, which may have caught it
        if error is not None:
            # A StopIteration would end the loop of a test that calls the program in it.
            ends_loop = isinstance(error, StopIteration) and op != "__next__" and not is_awaited("StopIteration")
            raise (RuntimeError(message_of(error)) if ends_loop else error)
        return ours.get(id(reply["value"]), reply["value"])

    def _around(self) -> dict[tuple[str, str], Any]:
        """Return the tests' replacements of Python's objects."""
        now = _replaceable()
        found = {name: now[name] for name in now if now[name] is not self._usual[name]}
        return found | ({_WARNS: _warn} if _WARNS in found else {})

    def _reply(self) -> dict[str, Any]:
        while (
            isinstance(message := self._wire.receive(self._limit, self.resolve, self._guarded), dict)
            and "op" in message
        ):
            self.serve(message)
        if not isinstance(message, dict):
            raise ValueError("no reply")
        return message

    def serve(self, request: dict[str, Any]) -> None:
        """Do what the other side asks for, and reply."""
        try:
            reply = self._done(request)
        except BaseException as error:
            reply = {"raised": message_of(error), "error": self.exceptions.parts(error)}
        try:
            self._wire.send(reply, self._refer)
        except BaseException as error:  # a value that cannot even be inspected
            self._wire.send({"raised": message_of(error)})

    def _done(self, request: dict[str, Any]) -> dict[str, Any]:
        op, args, kwargs = request["op"], list(request["args"]), request["kwargs"]
        if op == "__exit__":
            args[1] = args[1] and self.exceptions.made(args[1], "")
        if self._guarded and not self._allows(op, args):
            raise (AttributeError(str(args[1])) if op == "get" else TypeError(f"{op} is not for the program"))
        given = request["given"]
        try:
            with _replaced(request.get("around") or {}):
                value = self._operations[op](*args, **kwargs)
        except BaseException as error:
            if self._guarded and isinstance(error, AssertionError):
                self._failed = error
            parts = self.exceptions.parts(error)
            return {"raised": parts["text"], "error": parts, "changed": given}
        return {"value": value, "changed": given}

    def _allows(self, op: str, args: list[Any]) -> bool:
        if not any(args[0] is handed for handed in self._mine):
            return False
        if op in ("get", "set"):
            name = str(args[1])
            if op == "get" and name in ("__name__", "__qualname__"):
                return callable(args[0])
            # No other objects: the attributes of a generator lead to its frame and all that the tests know.
            is_open = type(args[0]).__module__ in _OPEN and not isinstance(args[0], type)
            is_kept = op == "set" and (
                isinstance(args[0], BaseException) or callable(getattr(type(args[0]), name, None))
            )
            return is_open and not name.startswith("_") and not is_kept
        is_own = type(args[0]).__module__ == "__main__" and not isinstance(args[0], BaseException)
        return op in ("call", "__next__", "__iter__") or (is_own and (op in stand_ins.ALONE or op in stand_ins.BETWEEN))

    # References

    def _refer(self, value: Any) -> tuple[str, int, str, tuple[str, ...], tuple[Any, ...]]:
        if isinstance(value, stand_ins.StandIn):
            return "yours", stand_ins.number_of(value), "", (), ()
        if codec.is_plain_type(value):
            return "builtin", 0, value.__name__, (), ()
        is_error = isinstance(value, type) and issubclass(value, BaseException)
        if is_error and value in self.exceptions.numbers:
            return "yours", self.exceptions.numbers[value], "", (), ()
        number = self._number_of(value)
        named = value if isinstance(value, type) else type(value)
        line = self.exceptions.line(value) if is_error else ()
        return "mine", number, named.__name__, stand_ins.abilities(type(value)), line

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
            return codec.builtin_type(name)
        if line:
            return self.exceptions.class_of(line)
        if number not in self._theirs:
            self._theirs[number] = stand_ins.stand_in(self, number, name, able)
        return self._theirs[number]


# Objects of Python that tests replace


def _replaceable() -> dict[tuple[str, str], Any]:
    return {(module, name): getattr(sys.modules[module], name) for module, name in _REPLACED}


@contextlib.contextmanager
def _replaced(around: dict[tuple[str, str], Any]) -> Iterator[None]:
    """Put the tests' replacements into modules of this side, for a while."""
    usual, warn = _replaceable() if around else {}, around.get(_WARNS)
    with warnings.catch_warnings() if warn else contextlib.nullcontext():
        try:
            for module, name in around:
                setattr(sys.modules[module], name, around[module, name])
            if warn:
                warnings.simplefilter("always")  # the tests' filters decide
                warnings._showwarnmsg_impl = lambda shown: warn(str(shown.message), shown.category)
            yield
        finally:
            for module, name in usual:
                setattr(sys.modules[module], name, usual[module, name])


def _warn(text: str, kind: type[Warning]) -> None:
    warnings.warn_explicit(text, kind, "solution.py", 1)
