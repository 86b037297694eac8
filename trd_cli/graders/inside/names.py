"""Find the names that programs and test programs use and define, and the names given to them. Standard library only.

LeetCode and similar sites give some names to a program before its first line. A program gets them if it uses them and
does not define them.
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

# If two modules have a name, the later one wins.
MODULES = (
    *("bisect", "collections", "copy", "datetime", "functools", "heapq", "io", "itertools", "json", "math"),
    *("operator", "random", "re", "statistics", "string", "sys", "typing"),
)


# Test programs import the tested program under these names.
IMPORTED_AS = (
    *("solution", "main", "submission", "candidate", "program", "answer", "task", "my_solution", "my_module"),
    *("your_solution", "your_module", "solution_module", "module", "implementation"),
)


def load_modules() -> None:
    """Import the modules given to programs, outside of any program's time."""
    for name in MODULES:
        importlib.import_module(name)


def global_names(source: str) -> tuple[set[str], set[str]]:
    """Return the names that a program looks up outside of its functions' own, and those that it defines there.

    Raises SyntaxError as `compile` does.
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
    """Return the meaning of a name that nobody defined; raises KeyError if it has none."""
    if name in MODULES:
        return sys.modules[name]
    for module in reversed(MODULES):
        if name in public_names(sys.modules[module]):
            return getattr(sys.modules[module], name)
    raise KeyError(name)


def public_names(module: ModuleType) -> list[str]:
    """Return the names that `from module import *` provides."""
    return list(getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")])


def given_names(source: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the given names, with their meanings, that a program uses without defining them.

    `more` holds meanings besides those of the modules' names.
    """
    try:
        used, bound = global_names(source)
        starred = [
            name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and node.module in MODULES
            for name in public_names(sys.modules[node.module])
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}  # compiling it will report this
    found = {}
    for name in used - bound - set(dir(builtins)) - set(starred):
        try:
            found[name] = more[name] if more and name in more else given(name)
        except KeyError:
            continue
    return found


def is_given(name: str) -> bool:
    """Return whether a name has a meaning without being defined."""
    try:
        given(name)
    except KeyError:
        return False
    return True


def asked_by(tests: str) -> set[str]:
    """Return the names that a test program expects of a solution: its imports from one, and undefined names it uses."""
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
