"""Keep text that a model wrote from being evaluated as Python by the scores of reasoning-gym.

A few of the package's tasks pass the answer to `eval`, or to SymPy's `parse_expr`, which evaluates too. `_EVALUATING`
has all of them, found by reading the score of every task of version 0.1.25 and by watching which of them compile
something. Such a task gets only an answer of the form that its right answers have.

In another version of the package other tasks may evaluate. There every other task gets only answers without the signs
that a program needs to do harm.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

# The version whose scores were read.
_READ = "0.1.25"
_CHARACTERS, _DEPTH = 1_000, 30
# A number may be as large, as may the product of the exponents of powers of powers; powers and functions nest as deep.
_NUMBER, _EXPONENT, _NESTED = 10**30, 100, 3
# fmt: off
_FUNCTIONS = frozenset((
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "ln",
    "sqrt", "Abs", "abs",
))
# fmt: on
_SIGNS = re.compile(r"[A-Za-z0-9+*/()., -]+")
# SymPy reads `1e-999` exactly where Python reads 0.
_LONG_EXPONENT = re.compile(r"\d[eE][+-]?\d{3}")
# A call, an attribute, a name of Python's own, an import, a tag of YAML that makes an object.
_PROGRAM = re.compile(r"[\w)\]}\"'`]\s*\(|[^\W\d]\s*\.\s*[^\W\d]|[)\]}\"']\s*\.|__|\bimport\b|\blambda\b|!!|\*\*.*\*\*")


def refusal(task: str, version: str, answer: str) -> str | None:
    """Return why a task of a version of the package does not get an answer, or None if it may have it."""
    check = _EVALUATING.get(task)
    if check is not None:
        return check(answer.strip())
    if version != _READ and _PROGRAM.search(answer):
        return "it looks like a program, and the task may evaluate it"
    return None


def _written(pattern: str, told: str) -> Callable[[str], str | None]:
    """Return a check for answers that match a pattern as a whole."""
    form = re.compile(pattern)
    return lambda answer: None if form.fullmatch(answer) else f"expected {told}"


def _expression(operators: tuple[type[ast.AST], ...], told: str, named: bool) -> Callable[[str], str | None]:
    """Return a check for expressions of numbers with these operators; `named`: also of letters and functions."""

    def check(answer: str) -> str | None:
        if len(answer) > _CHARACTERS:
            return f"longer than {_CHARACTERS} characters"
        if not _SIGNS.fullmatch(answer) or _LONG_EXPONENT.search(answer):
            return f"expected {told}"
        try:
            _check(ast.parse(answer, mode="eval").body, operators, named, _Room())
        except _Refused as why:
            return str(why)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return f"expected {told}"
        return None

    return check


class _Refused(Exception):
    """A part of an expression that is not admitted, in words."""


@dataclass(frozen=True)
class _Room:
    """Count what a part of an expression may have: levels, levels of powers and functions, the product of exponents."""

    levels: int = _DEPTH
    nested: int = _NESTED
    exponent: float = _EXPONENT


def _check(node: ast.expr, operators: tuple[type[ast.AST], ...], named: bool, room: _Room) -> None:
    """Raise `_Refused` unless an expression may be evaluated."""
    if room.levels == 0 or room.nested < 0:
        raise _Refused("nested too deep")
    room = replace(room, levels=room.levels - 1)
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            if not value <= _NUMBER:
                raise _Refused("a number is too large")
            return
        case ast.Name(id=name) if named and (len(name) == 1 or name == "pi"):
            return
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            parts = [operand]
        case ast.BinOp(left=left, op=ast.Pow(), right=right) if ast.Pow in operators:
            most = _most(right)
            if most > room.exponent:
                raise _Refused("an exponent is too large")
            room = replace(room, nested=room.nested - 1, exponent=room.exponent / max(most, 1))
            parts = [left, right]
        case ast.BinOp(left=left, op=operator, right=right) if isinstance(operator, operators):
            parts = [left, right]
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if named and name in _FUNCTIONS:
            room = replace(room, nested=room.nested - 1)
            parts = [argument]
        # In this way the package writes an integral that it could not find.
        case ast.Call(func=ast.Name(id="Integral"), args=[argument, ast.Name(id=name)], keywords=[]) if (
            named and len(name) == 1
        ):
            parts = [argument]
        case _:
            raise _Refused(f"`{ast.unparse(node)[:60]}` is none of what the task's answers are made of")
    for part in parts:
        _check(part, operators, named, room)


def _most(exponent: ast.expr) -> float:
    """Return a bound of an exponent's absolute value, with 1 for each letter; infinite where it is not seen easily."""
    match exponent:
        case ast.Constant(value=value):
            return abs(value)
        case ast.Name():
            return 1.0
        case ast.UnaryOp(operand=operand):
            return _most(operand)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return _most(left) + _most(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _most(left) * _most(right)
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=int(value))) if value:
            return _most(left) / value
    return float("inf")


_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_CALCULATION = _expression(_ARITHMETIC, "numbers with + - * / and parentheses", named=False)
_FORMULA = _expression((*_ARITHMETIC, ast.Pow), "a formula of numbers, letters and functions such as sin", named=True)
_EVALUATING: dict[str, Callable[[str], str | None]] = {
    "binary_matrix": _written(r"[\d\s]+", "rows of digits"),
    "countdown": _CALCULATION,
    "intermediate_integration": _FORMULA,
    "n_queens": _written(r"[_Q\s]+", "rows of _ and Q"),
    "polynomial_multiplication": _FORMULA,
    "puzzle24": _CALCULATION,
    "simple_integration": _FORMULA,
    "spiral_matrix": _written(r"[\d\s-]+", "numbers with blanks between them"),
    "string_insertion": _written(r"[A-Za-z]+", "letters"),
}
