"""Names of programs and of test programs: which they use, which they define, and what is given to them. Standard
library only.

What LeetCode and its kin give to a program before its first line is given to those that use it and define nothing of
that name.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import symtable
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

# The later ones win where two have a name.
MODULES = (
    *("bisect", "collections", "copy", "datetime", "functools", "heapq", "io", "itertools", "json", "math"),
    *("operator", "random", "re", "statistics", "string", "sys", "typing"),
)


# Under which names test programs import what they test.
IMPORTED_AS = (
    *("solution", "main", "submission", "candidate", "program", "answer", "task", "my_solution", "my_module"),
    *("your_solution", "your_module", "solution_module", "module", "implementation"),
)


def load_modules() -> None:
    """Import what programs are given, outside of any program's time."""
    for name in MODULES:
        importlib.import_module(name)


def global_names(source: str) -> tuple[set[str], set[str]]:
    """Return the names a program looks up outside of its functions, and those it defines there;

    SyntaxError as of `compile`.
    """
    used: set[str] = set()
    bound: set[str] = set()
    tables = [symtable.symtable(source, "<string>", "exec")]
    for table in tables:
        tables.extend(table.get_children())
        is_top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if not is_top and not symbol.is_global():
                continue
            if symbol.is_referenced():
                used.add(symbol.get_name())
            if symbol.is_assigned() or symbol.is_imported() or (is_top and symbol.is_namespace()):
                bound.add(symbol.get_name())
    return used, bound


def given(name: str) -> Any:
    """Return what a name means that nobody defined; KeyError where it is given no meaning."""
    if name in MODULES:
        return sys.modules[name]
    for module in reversed(MODULES):
        if name in public_names(sys.modules[module]):
            return getattr(sys.modules[module], name)
    raise KeyError(name)


def public_names(module: ModuleType) -> list[str]:
    """Return the names that `from module import *` gives."""
    return list(getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")])


def given_names(source: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a program uses without defining it, as far as it is given, `more` besides the modules' names."""
    try:
        used, bound = global_names(source)
        starred = [
            name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and node.module in MODULES
            for name in public_names(sys.modules[node.module])
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}  # its own compilation says so
    found = {}
    for name in used - bound - set(dir(builtins)) - set(starred):
        try:
            found[name] = more[name] if more and name in more else given(name)
        except KeyError:
            continue
    return found


def is_given(name: str) -> bool:
    """Return whether a name means something that nobody need define."""
    try:
        given(name)
    except KeyError:
        return False
    return True


def asked_by(tests: str) -> set[str]:
    """Return the names that a test program asks a solution for:

    those it imports from one, and those it uses and nobody defines.
    """
    load_modules()
    used, bound = global_names(tests)
    wanted = used - bound - set(dir(builtins))
    imported = {
        alias.name
        for node in ast.walk(ast.parse(tests))
        if isinstance(node, ast.ImportFrom) and node.module in IMPORTED_AS
        for alias in node.names
    }
    return imported | ({name for name in wanted if not is_given(name)} or wanted) or used - bound
