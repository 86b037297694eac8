"""Run a test program unchanged, in a sandbox of its own, with the names of the tested program within reach.

A test program's names are its own, Python's, those of the tested program and those that LeetCode gives. `Solution` and
other names that the tests do not define are asked of the program. Names of Python, of our helpers and of LeetCode come
from the program only if the tests do not use them as helpers, so that no program replaces what its results are compared
with.
"""

from __future__ import annotations

import ast
import builtins
import sys
import types
from typing import Any

import names
import nodes
import objects
import stand_ins
from exceptions import message_of


class Fault(Exception):
    """The tests themselves are at fault."""


class _Lacks(Exception):
    """The program does not define what the tests ask for."""


def run(wire: objects.Wire, source: str, named: list[str], limit: float) -> dict[str, Any]:
    """Run a test program against the program behind `wire`.

    Returns {"ok": true}, {"raised": reason} if the program failed, or {"fault": reason} if the tests are no tests.
    `named` are names that the tests are known to ask for; `limit` is the time for one request, in seconds.
    """
    peer = objects.Peer(wire, limit, guarded=True)
    try:
        tests = _Tests(peer, source, named)
        tests.run()
    except Fault as fault:
        return {"fault": str(fault)}
    except _Lacks as lack:
        return {"raised": str(lack)}
    except objects.Gone as gone:
        return {"raised": str(gone)}
    except BaseException as error:
        return {"raised": message_of(error)}
    return {"raised": peer.broken} if peer.broken else {"ok": True}


class _Tests:
    def __init__(self, peer: objects.Peer, source: str, named: list[str]) -> None:
        self._peer, self._named = peer, list(named)
        try:
            self._code = compile(source, "tests.py", "exec", dont_inherit=True)
            self._tree = ast.parse(source)
            self._used, self._bound = names.global_names(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise Fault(f"the tests do not compile: {message_of(error)}") from None
        self._own = list(peer.ask("names"))
        self._plain_asked = 0
        self._missing: set[str] = set()
        self._asked: set[str] = set()
        self._module = types.ModuleType("__main__")

    def run(self) -> None:
        sys.modules["__main__"] = self._module
        sys.modules.pop("solution", None)
        sys.argv = ["tests.py"]
        sys.meta_path.append(_Finder(self))
        self._module.__dict__.update(self._resolved())
        runs_unittest = "unittest" in self._imports()
        if runs_unittest:
            _silence_unittest()
        try:
            exec(self._code, self._module.__dict__)
            uncalled = names.uncalled(self._tree, self._used)
            if "check" in uncalled and self._named:
                self._check_named()
                uncalled.remove("check")
            if runs_unittest:
                _run_cases(self._module)
            if uncalled:
                raise Fault(f"the tests ask nothing where no line calls {', '.join(uncalled)}")
        except SystemExit as end:
            if end in self._peer.exceptions.raised or end.code not in (None, 0):
                raise
        except (_Lacks, Fault):
            raise
        except Exception as error:
            self._attribute(error)
            raise
        if not self._peer.asked and not self._plain_asked and not self._peer.broken:
            raise Fault("the tests ask nothing of the program")

    def _imports(self) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
        return found

    def _check_named(self) -> None:
        """Call HumanEval's `check` with the functions that the row names."""
        for name in self._named:
            if name not in self._own:
                raise _Lacks(f"NameError: the program defines no {name!r}")
            self._module.__dict__["check"](self._value(name))

    def _attribute(self, error: Exception) -> None:
        """Raise Fault if an exception is the tests' own, or _Lacks if the program defines too little."""
        if any(error is raised for raised in self._peer.exceptions.raised) or isinstance(error, AssertionError):
            return
        text = message_of(error)
        if isinstance(error, NameError):
            if error.name in self._missing:
                raise _Lacks(f"NameError: the program defines no {error.name!r}")
            if error.name in self._used or not self._is_of_result(error):
                raise Fault(f"the tests fail by themselves: {text}")
            return
        meant = self._called() - self._bound
        if isinstance(error, (TypeError, ValueError)) and meant and all(hasattr(builtins, name) for name in meant):
            # For example `sum(2, 3)`, if the program should have defined `sum`.
            raise _Lacks(f"the program defines none of {', '.join(sorted(meant))} ({text})")
        is_own = isinstance(error, (ImportError, SyntaxError, OSError)) and not self._is_of_result(error)
        if isinstance(error, AttributeError):
            is_own = isinstance(error.obj, types.ModuleType) or hasattr(error.obj, "assertEqual")
        if is_own or not self._peer.asked:
            raise Fault(f"the tests fail by themselves: {text}")

    def _is_of_result(self, error: BaseException) -> bool:
        """Return whether the statement of the tests that raised uses a result of the program, as `open(f(1))` does."""
        lines, place = [], error.__traceback__
        while place:
            lines += [place.tb_lineno] if place.tb_frame.f_code.co_filename == self._code.co_filename else []
            place = place.tb_next
        used = names.statement_names(self._tree, lines[-1]) if lines else set()
        return bool(used & names.reached(self._tree, self._asked))

    # Names

    def _resolved(self) -> dict[str, Any]:
        wanted = self._used - self._bound
        own, python = set(self._own), set(dir(builtins))
        uses_solution = "Solution" in wanted
        called = self._called()
        # Names that can only be the program's.
        asked = {name for name in wanted if not _is_ambient(name)} & (own | called | {"Solution"})
        asked |= set(self._named) | names.asked_module_names(self._tree)
        if self._named:
            asked |= names.parameters(self._tree).get("check", set())
        asked |= {"candidate"} & wanted
        kept = self._kept({name for name in wanted & own if _is_ambient(name)} - asked, asked)
        self._starred = [name for name in self._own if not _is_ambient(name) or name in wanted - kept]
        self._asked = asked | (wanted & own - kept)
        asks_others = bool(asked)
        imports_it = bool(self._imports() & set(names.IMPORTED_AS))
        found: dict[str, Any] = {"__name__": "__main__"}
        if names.is_only_called(self._tree, "type"):
            found["type"] = stand_ins.class_of
        if names.is_only_called(self._tree, "super"):
            found["super"] = stand_ins.above
        for name in wanted:
            if name in self._named or (name in own and name not in kept):
                if name in own:
                    found[name] = self._value(name)
                else:
                    self._missing.add(name)
            elif name in python or name.startswith("__"):
                continue
            elif name in _HELPERS:
                found[name] = _HELPERS[name]
            elif name == "Solution":
                found[name] = lambda *args, **kwargs: _Functions(self)
            elif name == "candidate":
                found[name] = self._candidate()
            elif names.is_given(name) and (
                asks_others or imports_it or name not in called or bool(wanted & own - python)
            ):
                found[name] = names.given(name)
            elif name in called and not uses_solution:
                self._missing.add(name)
        return found

    def _kept(self, ambient: set[str], asked: set[str]) -> set[str]:
        """Return those of `ambient`, names that the program defines too, that the tests use as helpers."""
        ours, python = ambient & set(_HELPERS), ambient & set(dir(builtins))
        ambient = ambient - ours
        if asked:
            return ours | python | names.helpers(self._tree, asked, ambient - python)
        kept = {name for name in ambient if names.helpers(self._tree, ambient - {name}, {name})}
        kept |= python if ambient - python else set()
        return ours | (kept if kept != ambient else set())

    def _called(self) -> set[str]:
        """Return the names that the tests call, pass to one of their functions, or use as a class."""
        found: set[str] = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call):
                heads = [node.func]
                if isinstance(node.func, ast.Name) and node.func.id in self._bound:
                    heads += node.args
                found |= {head.id for head in heads if isinstance(head, ast.Name)}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id[:1].isupper():
                found.add(node.value.id)
        return found

    def _value(self, name: str) -> Any:
        value = self._peer.ask("name", name)
        if not isinstance(value, (stand_ins.StandIn, type)):
            self._plain_asked += 1
        return value

    def _candidate(self) -> Any:
        """Return HumanEval's `candidate`: the function that the row names, else the last one of the program."""
        functions = [*self._peer.ask("functions"), *(name for name in self._named if name in self._own)]
        if not functions:
            raise _Lacks("the program defines no function")
        return self._value(functions[-1])

    def imported(self, name: str) -> Any:
        if name not in self._own:
            raise _Lacks(f"ImportError: the program defines no {name!r}")
        return self._value(name)

    def ask_function(self, name: str) -> Any:
        if name not in self._own:
            raise _Lacks(f"NameError: the program defines neither Solution nor {name!r}")
        return self._value(name)

    @property
    def starred(self) -> list[str]:
        return self._starred


class _Functions:
    """A Solution for tests that ask for one, of a program that has plain functions."""

    def __init__(self, tests: _Tests) -> None:
        self._tests = tests

    def __getattr__(self, name: str) -> Any:
        return self._tests.ask_function(name)


class _Finder:
    """Find the tested program under the names that tests give it, unless another module has that name."""

    def __init__(self, tests: _Tests) -> None:
        self._tests = tests

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self) if name in names.IMPORTED_AS else None

    def create_module(self, spec: Any) -> types.ModuleType:
        tests = self._tests

        class Program(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name == "__all__":
                    return tests.starred
                if name.startswith("__"):
                    raise AttributeError(name)
                return tests.imported(name)

        return Program(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: the program is loaded already."""


_HELPERS: dict[str, Any] = {
    "list_node": nodes.list_node,
    "tree_node": nodes.tree_node,
    "is_same_list": lambda a, b: nodes.list_values(a) == nodes.list_values(b),
    "is_same_tree": lambda a, b: nodes.tree_values(a) == nodes.tree_values(b),
    "ListNode": nodes.ListNode,
    "TreeNode": nodes.TreeNode,
}


def _is_ambient(name: str) -> bool:
    """Return whether a name has a meaning if no program defines it."""
    is_flag = len(name) == 1 and name.isupper()  # of `re`; programs give such names to classes
    return hasattr(builtins, name) or name in _HELPERS or (names.is_given(name) and not is_flag)


# unittest


def _silence_unittest() -> None:
    """Disable `unittest.main()`, which would end the process; the test cases run afterwards."""
    import unittest

    unittest.main = lambda *args, **kwargs: None


def _run_cases(module: types.ModuleType) -> None:
    """Run the test cases that a module defines; raise the exception of the first failure."""
    import unittest

    class Result(unittest.TestResult):
        first: BaseException | None = None

        def addError(self, test: Any, error: Any) -> None:
            self.first = self.first or error[1]

        addFailure = addError

        def addSubTest(self, test: Any, subtest: Any, error: Any) -> None:
            self.first = self.first or (error and error[1])

        def addUnexpectedSuccess(self, test: Any) -> None:
            self.first = self.first or AssertionError(f"{test} passed unexpectedly")

    result = Result()
    loader = unittest.TestLoader()
    loader.loadTestsFromModule(module).run(result)
    if result.first is not None:
        raise result.first
