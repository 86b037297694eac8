"""Encode messages between a program under test and its judge. Standard library only: it also runs inside the sandbox.

A message is its length in eight bytes, then a pickle, which is fast and sends a string that occurs a million times
once. A pickle may name only the objects in `_MAKERS` and cannot change them. It can call them with values of fixed
kinds, and nothing else in it can run.

These plain values keep their type: None, bool, int, float, complex, str, bytes, list, tuple (a named one with its
names), set, frozenset, dict and its views, deque, Counter, OrderedDict, defaultdict, range, Fraction, Decimal, dates
and times without a zone, numpy's scalars and arrays of numbers, and the list and tree nodes of LeetCode's tests. Nodes
keep their identity within a message. A value of a class derived from one of these types is sent as that type, read by
the base class's own methods, so that an overridden `__eq__` is left behind. Anything else arrives as a reference if
both sides agreed on that (see `objects`), else as `Opaque`, which equals nothing.
"""

from __future__ import annotations

import builtins
import datetime
import io
import pickle
import struct
import sys
import time
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

if __package__:
    from trd_cli.graders.inside.forgeries import refuse_changes, refuse_endless
    from trd_cli.graders.inside.nodes import LINKS, Graph, links
else:  # inside the sandbox, where there is no package
    from forgeries import refuse_changes, refuse_endless
    from nodes import LINKS, Graph, links

_LENGTH = struct.Struct(">Q")
HEADER = _LENGTH.size
_PLAIN = frozenset({"int", "float", "str", "bool", "complex", "bytes", "bytearray", "range", "object"}) | {
    *("list", "tuple", "dict", "set", "frozenset"),
}
_NUMPY = frozenset({"bool", "bool_", "float64", "float32", "float16"}) | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class Clock:
    """The time that a process has left of `limit` seconds.

    It runs by the wall clock and, if others kept the process from running, by the process's own CPU time. So a busy
    machine does not make a program late. One that sleeps is late after `PATIENCE` times the limit.
    """

    PATIENCE = 4

    def __init__(self, process: int | None, limit: float) -> None:
        """Start the clock; it uses wall time alone if `process` is None or its CPU time cannot be read (not Linux)."""
        self._process, self._limit = process, limit
        self._began, self._used = time.monotonic(), self._cpu()

    def _cpu(self) -> float | None:
        try:
            # The CPU clock of a process by its number (clock_getcpuclockid(3)): readable without /proc.
            return None if self._process is None else time.clock_gettime((~self._process << 3) | 2)
        except (OSError, AttributeError):
            return None

    def left(self) -> float:
        """Return the seconds until the next look; 0 or less if the time is over."""
        passed = time.monotonic() - self._began
        if passed < self._limit:
            return self._limit - passed
        cpu = self._cpu()
        if self._used is None or cpu is None:
            return 0.0
        owed = self._limit - (cpu - self._used)
        return min(max(owed, 0.05), self.PATIENCE * self._limit - passed) if owed > 0 else 0.0


class Opaque:
    """A value that could not be sent: not None, and equal to nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__


def graph(kind: str, rows: list[tuple[Any, ...]]) -> list[Any]:
    """Return the nodes of a graph; raises KeyError for another class, IndexError for a link that leads nowhere."""
    make, names = LINKS[kind]
    nodes = [make(row[0]) for row in rows]
    for node, row in zip(nodes, rows, strict=True):
        for name, link in zip(names, row[1:], strict=True):
            setattr(node, name, nodes[link] if type(link) is int else link)
    return nodes


def node_at(nodes: list[Any], place: int) -> Any:
    """Return one node of a graph."""
    return nodes[place]


def default_dict(builtin: str, factory: Any, items: dict[Any, Any]) -> Any:
    """Return a dict whose missing values come from a plain type by name, or from a callable."""
    return defaultdict(builtin_type(builtin) if builtin else factory if callable(factory) else None, items)


def builtin_type(name: str) -> Any:
    """Return Python's type of a plain value; raises ValueError for another name."""
    if name not in _PLAIN:
        raise ValueError(f"no plain type {name!r}")
    return getattr(builtins, name)


def is_plain_type(value: Any) -> bool:
    """Return whether a value is a type that a message may name, because calling it returns a plain value."""
    return isinstance(value, type) and value.__name__ in _PLAIN and getattr(builtins, value.__name__) is value


def numpy_scalar(name: str, value: Any) -> Any:
    """Return a scalar of numpy; raises ValueError for an unknown name."""
    import numpy

    if name not in _NUMPY:
        raise ValueError(f"no numpy scalar {name!r}")
    return getattr(numpy, name)(value)


def numpy_array(kind: str, shape: tuple[int, ...], data: bytes) -> Any:
    """Return an array of numpy's numbers; raises ValueError for another kind or a size that does not fit."""
    import numpy

    if kind not in _NUMPY:
        raise ValueError(f"no numpy array of {kind!r}")
    return numpy.frombuffer(data, getattr(numpy, kind)).reshape(shape).copy()


def named_tuple(name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """Return a tuple whose places have names."""
    return _tuple_class(name, fields)(*values)


@lru_cache(maxsize=64)
def _tuple_class(name: str, fields: tuple[str, ...]) -> Any:
    if len(fields) > 100 or any(len(word) > 100 for word in (name, *fields)):
        raise ValueError("too many names, or too long ones")
    return namedtuple(name, fields)


def dict_view(kind: str, values: list[Any]) -> Any:
    """Return the keys, the values or the items of a dict; raises ValueError for another kind."""
    if kind == "dict_keys":
        return dict.fromkeys(values).keys()
    if kind == "dict_items":
        return dict(values).items()
    if kind == "dict_values":
        return dict(enumerate(values)).values()
    raise ValueError(f"a dict has no {kind!r}")


_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))

# Functions that read each base class from a value derived from it; a base comes before its own base.
_READ_AS = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
    (list, lambda v: list(list.__iter__(v))),
    (tuple, lambda v: tuple(tuple.__iter__(v))),
    (Counter, lambda v: dict(dict.items(v))),
    (OrderedDict, lambda v: dict(OrderedDict.items(v))),
    (dict, lambda v: dict(dict.items(v))),
    (deque, lambda v: list(deque.__iter__(v))),
    (set, lambda v: set(set.__iter__(v))),
    (frozenset, lambda v: frozenset(frozenset.__iter__(v))),
    (bytes, lambda v: bytes(bytes.__iter__(v))),
    (bytearray, lambda v: bytes(bytearray.__iter__(v))),
)
# Functions that take the other types apart. (Their own pickling needs names and conversions that no forged message may
# have.)
_PARTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    complex: lambda v: (v.real, v.imag),
    range: lambda v: (v.start, v.stop, v.step),
    Fraction: lambda v: (v.numerator, v.denominator),
    Decimal: lambda v: (str(v),),
    datetime.date: lambda v: (v.year, v.month, v.day),
    datetime.timedelta: lambda v: (v.days, v.seconds, v.microseconds),
}
_CLOCK = ("hour", "minute", "second", "microsecond")
# Limits the digits of a number: reading takes time that grows with the square of their count.
_LONGEST = 20_000


class _Maker:
    """Make values of one type from arguments of fixed types; an empty tuple of types allows any.

    No pickle can change a maker, as it could a class.
    """

    __slots__ = ("_kinds", "_make")

    def __init__(self, make: Callable[..., Any], *kinds: tuple[type, ...]) -> None:
        object.__setattr__(self, "_make", make)
        object.__setattr__(self, "_kinds", kinds)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != len(self._kinds) or not all(
            not kinds or type(argument) in kinds for argument, kinds in zip(arguments, self._kinds, strict=True)
        ):
            raise ValueError("a value made of what it is not made of")
        return self._make(*arguments)


def _fraction(above: int, below: int) -> Fraction:
    if max(above.bit_length(), below.bit_length()) > 4 * _LONGEST:
        raise ValueError("a fraction of long integers")
    return Fraction(above, below)


def _decimal(digits: str) -> Decimal:
    if len(digits) > _LONGEST:
        raise ValueError("a decimal number of many digits")
    return Decimal(digits)


def made(name: str, parts: tuple[Any, ...]) -> Any:
    """Return a value of a type of `_TYPES`; raises KeyError for another name, ValueError for parts that do not fit."""
    return _TYPES[name](*parts)


class _Writer(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, refer: Callable[[Any], tuple[Any, ...]] | None) -> None:
        super().__init__(buffer, protocol=5)
        self._refer = refer
        self._places: dict[int, tuple[Graph, int]] = {}

    def reducer_override(self, value: Any) -> Any:
        """Return how to rebuild a value; pickle calls this for all but the exact built-in types."""
        if id(value) in self._places:
            return node_at, self._places[id(value)]
        kind = type(value)
        if any(value is named for named in _MADE_HERE):
            return NotImplemented
        name = kind.__name__
        if kind in _PARTS:
            return made, (name, _PARTS[kind](value))
        if kind is Graph:
            return graph, (value.kind, value.rows)
        if links(value):
            Graph(value, self._places)
            return node_at, self._places[id(value)]
        if kind in _VIEWS:
            return dict_view, (name, list(value))
        if kind in (datetime.datetime, datetime.time) and value.tzinfo is None:
            day = (value.year, value.month, value.day) if kind is datetime.datetime else ()
            return made, (name, (*day, *(getattr(value, part) for part in _CLOCK)))
        if kind.__module__ == "numpy" and name in _NUMPY:
            return numpy_scalar, (name, value.item())
        if kind.__module__ == "numpy" and name == "ndarray" and value.dtype.name in _NUMPY:
            return numpy_array, (value.dtype.name, value.shape, value.tobytes())
        if isinstance(value, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
            return named_tuple, (name, kind._fields, tuple(tuple.__iter__(value)))
        if isinstance(value, defaultdict):
            factory = value.default_factory
            is_plain = is_plain_type(factory)
            items = dict(dict.items(value))
            return default_dict, (factory.__name__ if is_plain else "", None if is_plain else factory, items)
        for base, read in _READ_AS:
            if isinstance(value, base):
                return made, (base.__name__, (read(value),))
        return (reference, self._refer(value)) if self._refer else (Opaque, ())


def reference(*parts: Any) -> Any:
    """Stand in a message for an object that stays on its side; the reader gets a function that resolves it."""
    raise ValueError("a reference where none is read")


class _Reader(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, resolve: Callable[..., Any] | None, is_suspect: bool) -> None:
        super().__init__(buffer)
        self._buffer, self._resolve, self._is_suspect = buffer, resolve, is_suspect

    def find_class(self, module: str, name: str) -> Any:
        known = module.rpartition(".")[2], name
        if known == ("codec", "reference") and self._resolve:
            if self._is_suspect:
                self._is_suspect = False
                refuse_changes(self._buffer.getvalue())
            return _Maker(self._resolve, (str,), (int,), (str,), (tuple,), (tuple,))
        if known not in _MAKERS:
            raise pickle.UnpicklingError(f"a message with {module}.{name}")
        return _MAKERS[known]


_MADE_HERE = (
    *(Opaque, made, graph, node_at, default_dict, numpy_scalar, numpy_array, named_tuple, dict_view),
    reference,
)
_TYPES = {
    **{kind.__name__: _Maker(kind, (kind,)) for kind, _ in _READ_AS},
    "bytearray": _Maker(bytearray, (bytes,)),
    "Counter": _Maker(Counter, (dict,)),
    "OrderedDict": _Maker(OrderedDict, (dict,)),
    "deque": _Maker(deque, (list,)),
    "date": _Maker(datetime.date, (int,), (int,), (int,)),
    "datetime": _Maker(datetime.datetime, *[(int,)] * 7),
    "time": _Maker(datetime.time, *[(int,)] * 4),
    "timedelta": _Maker(datetime.timedelta, (int,), (int,), (int,)),
    "complex": _Maker(complex, (float,), (float,)),
    "range": _Maker(range, (int,), (int,), (int,)),
    "Fraction": _Maker(_fraction, (int,), (int,)),
    "Decimal": _Maker(_decimal, (str,)),
}
_MAKERS = {
    ("codec", "Opaque"): _Maker(Opaque),
    ("codec", "made"): _Maker(made, (str,), (tuple,)),
    ("codec", "graph"): _Maker(graph, (str,), (list,)),
    ("codec", "node_at"): _Maker(node_at, (list,), (int,)),
    ("codec", "default_dict"): _Maker(default_dict, (str,), (), (dict,)),
    ("codec", "numpy_scalar"): _Maker(numpy_scalar, (str,), (bool, int, float)),
    ("codec", "numpy_array"): _Maker(numpy_array, (str,), (tuple,), (bytes,)),
    ("codec", "named_tuple"): _Maker(named_tuple, (str,), (tuple,), (tuple,)),
    ("codec", "dict_view"): _Maker(dict_view, (str,), (list,)),
}
_SELF = sys.modules[__name__]


def dumps(message: Any, refer: Callable[[Any], tuple[Any, ...]] | None = None) -> bytes:
    """Return one message with its length before it; raises RecursionError if it is nested too deep.

    `refer` returns the parts of a `reference` (text, number, text, tuple, tuple) for each value that cannot be sent.
    """
    buffer = io.BytesIO(bytes(HEADER))
    buffer.seek(HEADER)
    # A pickle names functions by their module, and this module is hidden from programs.
    is_hidden = sys.modules.setdefault(__name__, _SELF) is _SELF and _is_hidden
    try:
        _Writer(buffer, refer).dump(message)
    finally:
        if is_hidden:
            sys.modules.pop(__name__, None)
    data = buffer.getbuffer()
    _LENGTH.pack_into(data, 0, len(data) - HEADER)
    return data


def length(header: bytes) -> int:
    """Return the length of the message after a header."""
    return _LENGTH.unpack(header)[0]


_is_hidden = False


def hide() -> None:
    """Hide this module from programs, except while a message is written."""
    global _is_hidden
    _is_hidden = True
    sys.modules.pop(__name__, None)


def loads(data: bytes, resolve: Callable[..., Any] | None = None, is_suspect: bool = True) -> Any:
    """Return the message in these bytes (without the header).

    `resolve` returns the value for the parts of a `reference`. A message from a program is suspect. Raises ValueError
    for anything that `dumps` does not write.
    """
    try:
        if is_suspect:
            refuse_endless(data)
        return _Reader(io.BytesIO(data), resolve, is_suspect).load()
    except Exception as error:  # a forged pickle can raise nearly anything
        raise ValueError(f"not a message: {type(error).__name__}: {error}") from None


def allow_long_integers() -> None:
    """Let Python print and read integers of more than 4300 digits, which some tests have."""
    sys.set_int_max_str_digits(0)
