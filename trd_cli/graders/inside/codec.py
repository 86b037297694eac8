"""Messages between a program under test and what judges it. Standard library only: it runs inside the sandbox too.

A message is its length in eight bytes, then a pickle, for its speed and because it sends a string that occurs a million
times once. A pickle can name no object but those of `_MAKERS`, none of which it can change: it can call them with
values of the kinds they are made for, and nothing else in it can run. Plain values keep their type: None, bool, int,
float, complex, str, bytes, list, tuple (a named one with its names), set, frozenset, dict and its views, deque,
Counter, OrderedDict, defaultdict, range, Fraction, Decimal, dates and times without a zone, numpy's scalars and arrays
of numbers, and the list and tree nodes of LeetCode's tests, which keep their identity in a message. What is derived
from one of them is sent as that one, read by the base class's own methods, so that an overridden `__eq__` is left
behind. Anything else arrives as a reference where both sides agreed on that (see `objects`), else as `Opaque`, which
equals nothing.
"""

from __future__ import annotations

import builtins
import datetime
import io
import pickle
import pickletools
import struct
import sys
import time
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

_LENGTH = struct.Struct(">Q")
HEADER = _LENGTH.size
_PLAIN = frozenset("int float str bool complex bytes bytearray list tuple dict set frozenset range object".split())
_NUMPY = frozenset({"bool", "bool_", "float64", "float32", "float16"}) | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class Clock:
    """The time a process has left of `limit` seconds: by the clock, and where others kept it from running, of its own
    CPU time.

    So a busy machine does not make a program late. One that sleeps is late after `PATIENCE` times the limit.
    """

    PATIENCE = 4

    def __init__(self, process: int | None, limit: float) -> None:
        """`process` None, or one whose time cannot be read (not Linux): by the clock alone."""
        self._process, self._limit = process, limit
        self._began, self._used = time.monotonic(), self._cpu()

    def _cpu(self) -> float | None:
        try:
            # The clock of a process by its number (clock_getcpuclockid(3)): readable without /proc.
            return None if self._process is None else time.clock_gettime((~self._process << 3) | 2)
        except (OSError, AttributeError):
            return None

    def left(self) -> float:
        """Seconds until the next look; 0 or less when the time is over."""
        passed = time.monotonic() - self._began
        if passed < self._limit:
            return self._limit - passed
        cpu = self._cpu()
        if self._used is None or cpu is None:
            return 0.0
        owed = self._limit - (cpu - self._used)
        return min(max(owed, 0.05), self.PATIENCE * self._limit - passed) if owed > 0 else 0.0


class Opaque:
    """A value that cannot be sent: not None, and equal to nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__


class ListNode:
    """A node of a singly linked list, as LeetCode has it."""

    def __init__(self, val: Any = 0, next: Any = None) -> None:
        self.val, self.next = val, next


class TreeNode:
    """A node of a binary tree, as LeetCode has it."""

    def __init__(self, val: Any = 0, left: Any = None, right: Any = None) -> None:
        self.val, self.left, self.right = val, left, right


_LINKS = {"ListNode": (ListNode, ("next",)), "TreeNode": (TreeNode, ("left", "right"))}


def links(value: Any) -> tuple[str, ...]:
    """Return the attributes in which a node of a list or a tree, of whichever class of that name, holds others."""
    name = type(value).__name__
    if isinstance(value, type) or hasattr(type(value), "_of"):  # or what stands for one that is elsewhere
        return ()
    return _LINKS[name][1] if name in _LINKS and hasattr(value, "val") and hasattr(value, _LINKS[name][1][0]) else ()


class _Graph:
    """Nodes that lead to each other: the name of their class, and the value and the links of each.

    A link is None, the place of a node of this graph, or a node of another.
    """

    def __init__(self, head: Any, places: dict[int, tuple[_Graph, int]]) -> None:
        """Note the place of each node in `places`, by the node's identity."""
        self.kind, nodes = type(head).__name__, [head]
        names, self._nodes = links(head), nodes
        places[id(head)] = self, 0
        for node in nodes:
            for each in (getattr(node, name, None) for name in names):
                if links(each) == names and id(each) not in places:
                    places[id(each)] = self, len(nodes)
                    nodes.append(each)

        def link(node: Any) -> Any:
            graph, place = places.get(id(node), (None, 0))
            return place if graph is self else node

        self.rows = [(node.val, *(link(getattr(node, name, None)) for name in names)) for node in nodes]


def graph(kind: str, rows: list[tuple[Any, ...]]) -> list[Any]:
    """Return the nodes of a graph."""
    make, names = _LINKS[kind]
    nodes = [make(row[0]) for row in rows]
    for node, row in zip(nodes, rows, strict=True):
        for name, link in zip(names, row[1:], strict=True):
            setattr(node, name, nodes[link] if type(link) is int else link)
    return nodes


def node_at(nodes: list[Any], place: int) -> Any:
    """Return one node of a graph."""
    return nodes[place]


def default_dict(builtin: str, factory: Any, items: dict[Any, Any]) -> Any:
    """Return a dict with a factory of its missing values: a type of Python's by name, or a callable."""
    return defaultdict(builtin_type(builtin) if builtin else factory if callable(factory) else None, items)


def builtin_type(name: str) -> Any:
    """Return the type of Python's of a plain value; ValueError for another name."""
    if name not in _PLAIN:
        raise ValueError(f"no plain type {name!r}")
    return getattr(builtins, name)


def is_plain_type(value: Any) -> bool:
    """Return whether a value is a type of Python's that a message may name: calling it gives a plain value."""
    return isinstance(value, type) and value.__name__ in _PLAIN and getattr(builtins, value.__name__) is value


def list_node(values: list[Any]) -> ListNode | None:
    """The linked list of `values`; None for none."""
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head


def list_values(node: Any) -> list[Any]:
    """The values of a linked list; ValueError where it runs in a circle."""
    values, seen = [], set()
    while node is not None:
        if id(node) in seen:
            raise ValueError("the list runs in a circle")
        seen.add(id(node))
        values.append(node.val)
        node = node.next
    return values


def tree_node(values: list[Any]) -> TreeNode | None:
    """The tree of `values` in level order, None where a child is missing."""
    if not values:
        return None
    rest = iter(values)
    root = TreeNode(next(rest))
    waiting = deque([root])
    for parent in iter(waiting.popleft, None):
        for side in ("left", "right"):
            value = next(rest, rest)
            if value is rest:
                return root
            if value is not None:
                setattr(parent, side, TreeNode(value))
                waiting.append(getattr(parent, side))
        if not waiting:
            return root
    return root


def tree_values(node: Any) -> list[Any]:
    """The values of a tree in level order, without the missing children at its end; ValueError where it is no tree."""
    values, level, seen = [], deque([node]), set()
    while level:
        node = level.popleft()
        values.append(None if node is None else node.val)
        if node is not None:
            if id(node) in seen:
                raise ValueError("a node occurs twice in the tree")
            seen.add(id(node))
            level.extend((node.left, node.right))
    while values and values[-1] is None:
        values.pop()
    return values


def numpy_scalar(name: str, value: Any) -> Any:
    """A scalar of numpy; ValueError for another name."""
    import numpy

    if name not in _NUMPY:
        raise ValueError(f"no numpy scalar {name!r}")
    return getattr(numpy, name)(value)


def numpy_array(kind: str, shape: tuple[int, ...], data: bytes) -> Any:
    """An array of numpy's numbers; ValueError for another kind or another size."""
    import numpy

    if kind not in _NUMPY:
        raise ValueError(f"no numpy array of {kind!r}")
    return numpy.frombuffer(data, getattr(numpy, kind)).reshape(shape).copy()


def named_tuple(name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """A tuple whose places have names."""
    return _tuple_class(name, fields)(*values)


@lru_cache(maxsize=64)
def _tuple_class(name: str, fields: tuple[str, ...]) -> Any:
    if len(fields) > 100 or any(len(word) > 100 for word in (name, *fields)):
        raise ValueError("too many names, or too long ones")
    return namedtuple(name, fields)


def dict_view(kind: str, values: list[Any]) -> Any:
    """The keys, the values or the items of a dict; ValueError for another kind."""
    if kind == "dict_keys":
        return dict.fromkeys(values).keys()
    if kind == "dict_items":
        return dict(values).items()
    if kind == "dict_values":
        return dict(enumerate(values)).values()
    raise ValueError(f"a dict has no {kind!r}")


_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))

# How each base class is read from something derived from it; a base before its own base.
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
# How the others are taken apart. (Their own ways need names and conversions that a made-up message must not have.)
_PARTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    complex: lambda v: (v.real, v.imag),
    range: lambda v: (v.start, v.stop, v.step),
    Fraction: lambda v: (v.numerator, v.denominator),
    Decimal: lambda v: (str(v),),
    datetime.date: lambda v: (v.year, v.month, v.day),
    datetime.timedelta: lambda v: (v.days, v.seconds, v.microseconds),
}
_CLOCK = ("hour", "minute", "second", "microsecond")
# Longer numbers take time that grows with the square of their length.
_LONGEST = 20_000


class _Maker:
    """Makes values of one type, each argument being of the types given, or of any where none are.

    No pickle can change it, as it could a class.
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
    """Return a value of one of Python's types of its parts; KeyError for another type, ValueError for other parts."""
    return _TYPES[name](*parts)


class _Writer(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, refer: Callable[[Any], tuple[Any, ...]] | None) -> None:
        super().__init__(buffer, protocol=5)
        self._refer = refer
        self._places: dict[int, tuple[_Graph, int]] = {}

    def reducer_override(self, value: Any) -> Any:
        """Asked for all but the exact built-in types."""
        if id(value) in self._places:
            return node_at, self._places[id(value)]
        kind = type(value)
        if any(value is named for named in _MADE_HERE):
            return NotImplemented
        name = kind.__name__
        if kind in _PARTS:
            return made, (name, _PARTS[kind](value))
        if kind is _Graph:
            return graph, (value.kind, value.rows)
        if links(value):
            _Graph(value, self._places)
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
    """Stand in a message for an object that stays where it is; its reader is told how to read it."""
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
                _refuse_changes(self._buffer.getvalue())
            return _Maker(self._resolve, (str,), (int,), (str,), (tuple,), (tuple,))
        if known not in _MAKERS:
            raise pickle.UnpicklingError(f"a message with {module}.{name}")
        return _MAKERS[known]


_CHANGING = frozenset({"BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"})
_MOST = 8_000_000


def _refuse_changes(data: bytes) -> None:
    """Raise UnpicklingError where a message changes or makes objects by what it refers to, as `dumps` never does."""
    for count, (code, _, _) in enumerate(pickletools.genops(data)):
        if code.name in _CHANGING or count > _MOST:
            raise pickle.UnpicklingError("a message that changes what it refers to, or is too long to tell")


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
    """One message, its length before it; RecursionError for what is nested too deep.

    `refer` gives the parts of a `reference` (text, number, text, tuple, tuple) to each value that cannot be sent.
    """
    buffer = io.BytesIO(bytes(HEADER))
    buffer.seek(HEADER)
    # A pickle names what it calls by its module, which is hidden from programs.
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
    """How long the message behind a header is."""
    return _LENGTH.unpack(header)[0]


_is_hidden = False


def hide() -> None:
    """Take this module away from the modules that a program sees, but while a message is written."""
    global _is_hidden
    _is_hidden = True
    sys.modules.pop(__name__, None)


def loads(data: bytes, resolve: Callable[..., Any] | None = None, is_suspect: bool = True) -> Any:
    """The message whose bytes these are (without the header); ValueError for anything that `dumps` does not write.

    `resolve` makes a value of the parts of a `reference`; one that comes from a program is suspect.
    """
    try:
        return _Reader(io.BytesIO(data), resolve, is_suspect).load()
    except Exception as error:  # a pickle made up to mislead can raise nearly anything
        raise ValueError(f"not a message: {type(error).__name__}: {error}") from None


def allow_long_integers() -> None:
    """Python refuses to print or read integers of more than 4300 digits; tests have some."""
    sys.set_int_max_str_digits(0)
