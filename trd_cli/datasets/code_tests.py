"""Read the tests of programs in the forms that sets have, and return them as JSON of one of three kinds:

    {"kind": "stdin", "inputs": [text, …], "outputs": [text, …]}
    {"kind": "call", "fn_name": name, "inputs": [arguments, …], "outputs": [result, …]}     values as the set has them
    {"kind": "functional", "code": program that raises if the solution is wrong}

A functional test also has the `names` that it takes from the solution, or the `entry_point` that HumanEval's `check` is
called with.

Known forms are an object with lists of inputs and outputs (TACO, APPS), an object with the code of a test (LeetCode), a
list of cases (LiveCodeBench, DeepCoder), a list of assertions (MBPP), a test program (HumanEval), and JSON of any of
them. Not covered: whether a test is right.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping, Sequence
from typing import Any

from trd_cli.datasets.values import RowFault, filled, opened
from trd_cli.records import well_formed

Tests = dict[str, Any]
# The kinds above and those of benchmarks, in problem sets that trd has written.
_OWN = ("stdin", "call", "functional", "evalplus", "points", "rounded", "reasoning-gym")
_EXPECTED = "an object with lists of inputs and outputs (and fn_name for calls), or a list of cases"


def tests_json(value: Any) -> str | None:
    """Return tests of any known form as JSON text, or None if there is no test.

    Raises RowFault for an unknown form.
    """
    tests = parsed_tests(value)
    return well_formed(json.dumps(tests, ensure_ascii=False, default=str)) if tests else None


def parsed_tests(value: Any, function: str | None = None) -> Tests | None:
    """Return tests of any known form, or None if there is no test.

    `function` is the function to call in cases that name none. Raises RowFault for an unknown form.
    """
    if _is_test_program(value):
        return {"kind": "functional", "code": value} | ({"entry_point": function} if function else {})
    value = _read(value, "tests")
    if not filled(value):
        return None
    if isinstance(value, list):
        return _of_list(value, function)
    if isinstance(value, Mapping):
        return _of_object(value, function)
    raise RowFault(f"tests are a {type(value).__name__}, not {_EXPECTED}")


def _is_test_program(value: Any) -> bool:
    """Return True if a text is Python that asserts, or that defines test cases or HumanEval's `check`."""
    if not isinstance(value, str) or not any(word in value for word in ("assert", "def check(")):
        return False
    try:
        tree = ast.parse(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    tells = ast.Assert | ast.FunctionDef | ast.ClassDef
    return any(isinstance(node, tells) for node in ast.walk(tree))


def are_tests(value: Any) -> bool:
    """Return True if a value has the form of tests, for sets that keep answers and tests in one column."""
    try:
        return bool(parsed_tests(value))
    except RowFault:
        return isinstance(value, str) and value.lstrip().startswith(('{"', '[{"'))


def of_cases(cases: Sequence[Mapping[str, Any]], function: str | None = None) -> Tests:
    """Return the tests in a list of cases: {input, output, testtype or type, fn_name or metadata.func_name}.

    A call's arguments may be text (LiveCodeBench's form): then each line is the JSON of one of them, and the result is
    JSON too. Raises RowFault for another form.
    """
    if not cases:
        raise RowFault("no tests")
    missing = next((case for case in cases if "input" not in case or not _outputs(case)), None)
    if missing is not None:
        raise RowFault(f"a test has the keys {', '.join(missing)}, not input and output")
    inputs = [case["input"] for case in cases]
    outputs = [_outputs(case)[0] for case in cases]
    kinds = {_kind(case, function) for case in cases}
    if len(kinds) > 1:
        types = sorted({str(case.get("testtype") or case.get("type")) for case in cases})
        raise RowFault(f"tests of the types {types}, of which some feed standard input and some call a function")
    if kinds == {"stdin"}:
        return {"kind": "stdin", "inputs": list(map(_lines, inputs)), "outputs": list(map(_lines, outputs))}
    names = {_function(case) or function for case in cases}
    if len(names) > 1 or not all(names):
        named = " and ".join(sorted(filter(None, names))) or "no function"
        raise RowFault(f"tests that call a function name {named}, not one")
    call = {"kind": "call", "fn_name": names.pop()}
    if all(isinstance(given, list) for given in inputs):
        return {**call, "inputs": inputs, "outputs": outputs}
    arguments = [[_json(line) for line in str(text).split("\n") if line.strip()] for text in inputs]
    # LiveCodeBench compares the results of this form exactly.
    return {
        "kind": "call",
        "exact": True,
        "fn_name": call["fn_name"],
        "inputs": arguments,
        "outputs": list(map(_json, outputs)),
    }


def of_assertions(assertions: Any, solution: Any = None, *before: Any) -> Tests | None:
    """Return the test program of a list of assertions, or None if there are none.

    The code `before` (texts, or lists of lines) is put in front of them. `names` are the functions and classes that
    `solution` defines and the assertions use; without a solution, the first function that they call.
    """
    lines = _read(assertions, "tests")
    if not filled(lines):
        return None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise RowFault("tests are not a list of assertions")
    setup = [_lines(part) for part in before if filled(part)]
    program = "\n".join([*setup, *lines]) + "\n"
    return {"kind": "functional", "code": program, "names": _tested(program, solution)}


def _tested(program: str, solution: Any) -> list[str]:
    """Return the names that a test program takes from the solution."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError) as error:
        raise RowFault(f"tests are not Python ({error})") from None
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if defined := _defined(solution) & used:
        return sorted(defined)
    called = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [name for name in called if name not in dir(builtins) and name not in _bound(tree)][:1]


def _defined(solution: Any) -> set[str]:
    """Return the functions and classes that a solution defines; none if it is not valid Python 3."""
    try:
        body = ast.parse(solution).body if isinstance(solution, str) else []
    except (SyntaxError, ValueError):
        body = []
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _bound(tree: ast.Module) -> set[str]:
    """Return the names that a program binds itself."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _of_list(value: list[Any], function: str | None) -> Tests | None:
    if all(isinstance(item, str) for item in value):
        if any(item.lstrip().startswith("assert") for item in value):
            return of_assertions(value)
        value = [_read(item, "tests") for item in value]
    if not all(isinstance(item, Mapping) for item in value):
        raise RowFault(f"tests are a list, not {_EXPECTED}")
    return of_cases(value, function)


def _of_object(value: Mapping[str, Any], function: str | None) -> Tests | None:
    if value.get("kind") in _OWN:
        return dict(value)
    code = value.get("functional") or value.get("code") or value.get("test")
    if isinstance(code, str):
        # HumanEval's test is a function, and the row names its argument.
        entry = value.get("entry_point") or function
        return {"kind": "functional", "code": code} | ({"entry_point": entry} if entry else {})
    if isinstance(value.get("test_cases"), list):
        return _of_list(value["test_cases"], value.get("fn_name") or function)
    inputs, outputs = (value.get(f"{name}s", value.get(name)) for name in ("input", "output"))
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise RowFault(f"tests have the keys {', '.join(value)}, not inputs and outputs, nor functional code")
    if len(inputs) != len(outputs):
        raise RowFault(f"tests have {len(inputs)} inputs and {len(outputs)} outputs")
    if not inputs:
        return None
    name = value.get("fn_name") or function
    if name:
        if not all(isinstance(given, list) for given in inputs):
            raise RowFault("each of the inputs of a call is the list of its arguments")
        return {"kind": "call", "fn_name": name, "inputs": inputs, "outputs": outputs}
    return {"kind": "stdin", "inputs": list(map(_lines, inputs)), "outputs": list(map(_lines, outputs))}


def _kind(case: Mapping[str, Any], function: str | None) -> str:
    said = case.get("testtype") or case.get("type")
    if said is None:
        return "call" if _function(case) or function else "stdin"
    kind = {"stdin": "stdin", "stdin_stdout": "stdin", "functional": "call", "function_call": "call"}.get(str(said))
    if kind is None:
        raise RowFault(f"a test is of the type {said!r}, not stdin, stdin_stdout, functional or function_call")
    return kind


def _outputs(case: Mapping[str, Any]) -> list[Any]:
    """Return the expected result of a case as a list of one, or an empty list."""
    return [case[name] for name in ("output", "expected_output") if name in case][:1]


def _function(case: Mapping[str, Any]) -> str | None:
    return case.get("fn_name") or function_name(case.get("metadata"))


def function_name(metadata: Any) -> str | None:
    """Return `func_name` of metadata, which is an object or JSON of one; None if it has none."""
    known = _read(metadata, "metadata") if isinstance(metadata, str) else metadata
    return known.get("func_name") if isinstance(known, Mapping) else None


def _read(value: Any, what: str) -> Any:
    """Return the value that JSON or a Python literal of an object or a list spells; any other value unchanged."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str) or not filled(value):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        written = opened(value)
        if written is value:
            raise RowFault(f"{what} are not JSON ({error})") from None
        return written


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowFault(f"the value {value[:40]!r} of a call is not JSON ({error})") from None


def _lines(value: Any) -> str:
    """Return the text for standard input or output; some sets give a list of its lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
