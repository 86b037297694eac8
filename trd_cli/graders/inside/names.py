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

_CLASS_CHECKS = {"isinstance", "issubclass", "assertIsInstance", "assertNotIsInstance"}
_TRUTHS = {"assertTrue", "assertFalse", "assert_", "bool", "all", "any"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


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


def uncalled(tree: ast.Module, used: set[str]) -> list[str]:
    """Return the functions and classes of assertions that a test program of the names `used` never calls."""
    found: list[str] = []
    for node in tree.body if not used & {"globals", "locals", "vars", "dir"} else []:
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)) or node.name in used:
            continue
        if node.decorator_list and not any("pytest" in _loads(each) for each in node.decorator_list):
            continue  # the decorator may call it
        if isinstance(node, ast.ClassDef):
            is_test = node.name.startswith("Test") and not node.bases
        else:
            needs = len(node.args.posonlyargs + node.args.args) - len(node.args.defaults)
            is_test = node.name.startswith("test") or node.name == "check" or needs == 0
        if is_test and any(
            isinstance(each, ast.Assert) or _last_name(each).startswith("assert") for each in ast.walk(node)
        ):
            found.append(node.name)
    return found


def is_only_called(tree: ast.AST, name: str) -> bool:
    """Return whether a test program uses a name only in calls of it with at most one argument."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) <= 1]
    return sum(_last_name(each) == name for each in ast.walk(tree)) == sum(_last_name(each) == name for each in calls)


def asked_module_names(tree: ast.AST) -> set[str]:
    """Return the names under which a test program imports the tested program or parts of it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in IMPORTED_AS:
            found |= {alias.asname or alias.name for alias in node.names} - {"*"}
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name for alias in node.names if alias.name in IMPORTED_AS}
    return found


def parameters(tree: ast.AST) -> dict[str, set[str]]:
    """Return the parameters of each function that a test program defines."""
    found = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)]
    return {node.name: {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)} for node in found}


def reached(tree: ast.AST, asked: set[str], skipped: set[str] | None = None) -> set[str]:
    """Return `asked` and the names in a test program that hold or use a result of it: variables, functions, attributes.

    Arguments of calls of `skipped` do not count. Without `skipped`, parameters that are given such a result do.
    """
    found, taken = set(asked), parameters(tree)
    while True:
        before = len(found)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and skipped is None:
                if any(_loads(each) & found for each in (*node.args, *node.keywords)):
                    found |= taken.get(_last_name(node.func), set())
            elif isinstance(node, _FUNCTIONS):
                found |= {node.name} if any(_loads(each, skipped) & found for each in node.body) else set()
            else:
                value = _first(node, "value", "iter", "context_expr")
                targets = _first(node, "targets", "target", "optional_vars")
                if isinstance(value, ast.AST) and targets and _loads(value, skipped) & found:
                    found |= set().union(*map(_bound_by, targets if isinstance(targets, list) else [targets]))
        if len(found) == before:
            return found


def statement_names(tree: ast.AST, line: int) -> set[str]:
    """Return the names and attributes in the innermost statement at a line of a test program, without its body."""
    around = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno]
    parts = ast.iter_child_nodes(max(around, key=lambda node: (node.lineno, -node.end_lineno))) if around else ()
    return set().union(*(_loads(each) for each in parts if not isinstance(each, (ast.stmt, ast.excepthandler))))


def helpers(tree: ast.AST, asked: set[str], names: set[str]) -> set[str]:
    """Return those of `names` that a test program uses as helpers beside results of `asked`.

    A helper compares a result or what is expected, or decides whether the program is asked. A call with such a result
    alone whose value is compared is no such use: `loads(encode(1))`.
    """
    held = reached(tree, asked) if names else set()
    callees = held - set(parameters(tree))
    found = set()
    for name in names:
        made = reached(tree, {name}, callees)
        if any(_is_beside(node, made, held, callees) for node in ast.walk(tree)):
            found.add(name)
    return found


def _is_beside(node: ast.AST, made: set[str], held: set[str], callees: set[str]) -> bool:
    """Return whether a node uses what a helper made (`made`) beside results of the program (`held`)."""
    heads = [getattr(node, key, None) for key in ("iter", "test", "items", "generators")]
    heads = [each for head in heads if head for each in (head if isinstance(head, list) else [head])]
    if heads and not isinstance(node, ast.Assert):
        return any(_loads(head, callees) & made for head in heads) and bool(_loads(node) & held)
    if isinstance(node, ast.Assert):
        return _is_verdict(node.test, made, held)
    if isinstance(node, ast.Call) and not _is_call_of(node, callees) and _last_name(node.func) not in _CLASS_CHECKS:
        parts: list[ast.AST] = [*node.args, *node.keywords]
        if _last_name(node.func) in _TRUTHS and any(_is_verdict(part, made, held) for part in parts):
            return True
        of_held = [bool(_loads(part) & callees) for part in parts]
        if _loads(node.func) & made and any(of_held) and not all(of_held):
            return True
    elif isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.BinOp):
        parts = [node.left, node.right]
    else:
        return False
    of_made = [part for part in parts if _loads(part, callees) & made]
    is_expected = len(of_made) > 1 or any(not _loads(part) & callees for part in of_made)
    return is_expected and any(_loads(part) & held for part in parts)


def _is_verdict(node: ast.AST, made: set[str], held: set[str]) -> bool:
    """Return whether a helper makes the truth of an expression from results of the program."""
    while isinstance(node, ast.UnaryOp):
        node = node.operand
    parts = node.values if isinstance(node, ast.BoolOp) else [node]
    heads = [
        part.func if isinstance(part, ast.Call) else part for part in parts if isinstance(part, (ast.Call, ast.Name))
    ]
    return any(_loads(head) & made for head in heads) and bool(_loads(node) & held)


def _loads(node: ast.AST, skipped: set[str] | None = None) -> set[str]:
    """Return the names and attributes in a node, except those in arguments of calls of `skipped`."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        found.add(_last_name(node))
        is_skipped = skipped and isinstance(node, ast.Call) and _is_call_of(node, skipped)
        waiting.extend([node.func] if is_skipped else ast.iter_child_nodes(node))
    return found - {""}


def _bound_by(target: ast.AST) -> set[str]:
    if isinstance(target, (ast.Tuple, ast.List)):
        return set().union(*map(_bound_by, target.elts))
    if isinstance(target, (ast.Starred, ast.Subscript)):
        return _bound_by(target.value)
    return {_last_name(target)} - {""}


def _first(node: ast.AST, *fields: str) -> Any:
    return next(filter(None, (getattr(node, field, None) for field in fields)), None)


def _last_name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_call_of(call: ast.Call, names: set[str]) -> bool:
    """Return whether a call is of one of the names, or of an attribute of one."""
    called = call.func
    while isinstance(called, ast.Attribute):
        called = called.value
    return _last_name(called) in names
