"""Grade code by its tests: EvalPlus's tasks, programs fed through standard input, functions called.

The program is the one in the response's fences, after any thinking block (see `fences`); without a fence there is no
answer. It runs in a sandbox (see `sandbox`) that gets inputs only. Results come back as plain values and are compared
outside, so a program that replaces `==`, the checker or the interpreter deceives nobody but itself.

Faults of the program are `incorrect`, as in other graders: a wrong value, an exception, the end of its process or its
memory, a test that takes longer than `test_timeout` seconds (EvalPlus: its own limits, which follow the reference's
time). `timeout` means that the tests of a row took longer than `code_timeout` seconds together although none had
failed. `error` means that the grader could not do its work: the row has no tests, its tests cannot be read, ask nothing
of the program or fail by themselves, or the sandbox could not be closed.
"""

from __future__ import annotations

import json
import reprlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import metadata
from typing import Any

from trd_cli.graders import answers, evalplus
from trd_cli.graders.base import NO_ANSWER, Grade, Question
from trd_cli.graders.fences import program_of
from trd_cli.graders.inside import codec, names
from trd_cli.graders.sandbox import Ended, Flooded, Level, Limits, OutOfTime, Sandbox, SandboxError

NAME, _RULES = "trd-tests", 3
MAX_SOURCE = 1 << 20
_SHOWN = 200


@dataclass(frozen=True)
class CodeOptions:
    """Options of running programs: seconds a test (`test_timeout`) and a row (`code_timeout`), bytes a process."""

    sandbox: Level = "limits"
    test_timeout: float = 6.0
    code_timeout: float = 120.0
    memory: int = 4 << 30

    @property
    def limits(self) -> Limits:
        """Return the limits of a sandbox that runs a row."""
        return Limits(self.memory, int(self.code_timeout) + 1)


def name_of(tests: str | None) -> str:
    """Return the name of the grader for a row's tests."""
    return evalplus.NAME if tests and '"evalplus"' in tests[:200] else NAME


@cache
def version(name: str, options: CodeOptions) -> str:
    """Return the version of the rules, with the limits that can change a verdict."""
    memory = f"{options.memory >> 20}MiB"
    if name == evalplus.NAME:
        return f"{metadata.version('evalplus')}+{evalplus.RULES}+{memory}"
    return f"{_RULES}+{options.test_timeout:g}s+{memory}"


class _Failed(Exception):
    """The program failed a test; the message becomes the row's detail."""


def grade(question: Question, options: CodeOptions) -> Grade:
    """Run the response's program against the row's tests and return its grade.

    Only very long programs need a time limit from outside, because they take long to sanitise.
    """
    try:
        spec = _spec(question.tests)
        source = _program(question, _asked(spec))
    except _Unusable as error:
        return Grade("error", detail=_detail(error))
    except _Failed as failure:
        return Grade("incorrect", detail=str(failure))
    try:
        _KINDS[spec["kind"]](spec, options, source)
    except _Unusable as error:
        return Grade("error", source, _detail(error))
    except _Failed as failure:
        return Grade("incorrect", source, _detail(failure))
    except SandboxError as error:
        return Grade("error", source, _detail(error))
    except _OverTime:
        return Grade("timeout", source, f"not ended after {options.code_timeout:g} s")
    return Grade("correct", source)


def _detail(error: Exception) -> str:
    """Return the message, which a program may have made long, as a detail of bounded length."""
    return str(error)[:500]


def _program(question: Question, asked: Collection[str]) -> str:
    text = answers.final_part(question.response, question.thinking)
    source = program_of(text, asked) if text is not None else None
    if not source or not source.strip():
        raise _Failed(NO_ANSWER)
    if len(source) > MAX_SOURCE:
        raise _Failed(f"a program of {len(source)} characters; {MAX_SOURCE} are run at most")
    return source


class _OverTime(Exception):
    """The row's time is over, and no test has failed."""


class _Unusable(Exception):
    """The tests of a row cannot be run."""


def _spec(tests: str | None) -> dict[str, Any]:
    """Return the tests as an object of a known kind; raises _Unusable."""
    codec.allow_long_integers()
    try:
        spec = json.loads(tests or "null")
    except ValueError as error:
        raise _Unusable(f"tests are not JSON ({error})") from None
    if not isinstance(spec, dict) or spec.get("kind") not in list(_KINDS):
        raise _Unusable("no tests" if spec is None else f"tests of an unknown kind; known are {', '.join(_KINDS)}")
    return spec


def _asked(spec: dict[str, Any]) -> Collection[str]:
    """Return the names that the tests ask for; none if they feed standard input."""
    if spec["kind"] == "functional":
        try:
            return names.asked_by(spec["code"]) | set(_named(spec))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _Unusable(f"the tests do not compile: {error}") from None
    return {spec[key] for key in ("fn_name", "entry_point") if spec.get(key)}


def _named(spec: dict[str, Any]) -> list[str]:
    """Return the names that a row lists for its test program."""
    return [*spec.get("names", ()), *filter(None, (spec.get("entry_point"), spec.get("fn_name")))]


def _load(sandbox: Sandbox, source: str, options: CodeOptions) -> None:
    """Load the program's definitions; raises _Failed if the program cannot be loaded."""
    reply = _within(options.test_timeout, "the program's definitions", sandbox.ask, {"load": source, "prelude": True})
    if "ok" not in reply:
        raise _Failed(f"the program does not load: {reply.get('raised')}")


def _within(seconds: float, what: str, ask: Callable[..., Any], *arguments: Any) -> Any:
    """Return the sandbox's answer; raises _Failed if the program prevents one in any way."""
    try:
        return ask(*arguments, seconds)
    except OutOfTime:
        raise _Failed(f"{what}: not ended after {seconds:g} s") from None
    except (Ended, Flooded, RuntimeError, ValueError) as failure:
        raise _Failed(f"{what}: {failure}") from None


# Standard input and output


def _stdin(spec: dict[str, Any], options: CodeOptions, source: str) -> None:
    deadline = time.monotonic() + options.code_timeout
    with Sandbox(options.sandbox, options.limits) as sandbox:
        _within(options.test_timeout, "the program", sandbox.ask, {"script": source})
        pairs = list(zip(spec["inputs"], spec["outputs"], strict=True))
        for number, (given, expected) in enumerate(pairs, start=1):
            if time.monotonic() > deadline:
                raise _OverTime
            _check_run(sandbox, f"test {number} of {len(pairs)}", given, expected, options)


def _check_run(sandbox: Sandbox, test: str, given: str, expected: str, options: CodeOptions) -> None:
    request = {"stdin": given, "limit": options.test_timeout}
    # The runner keeps the limit. This second one exceeds its longest wait and holds if a program stops the runner.
    reply = _within(codec.Clock.PATIENCE * options.test_timeout + 5, test, sandbox.ask, request)
    if reply.get("late"):
        raise _Failed(f"{test}: not ended after {options.test_timeout:g} s")
    if reply.get("flooded"):
        raise _Failed(f"{test}: too much output")
    if reply.get("raised") or reply.get("status"):
        raise _Failed(f"{test}: {reply.get('raised') or _ending(reply['status'])}")
    if not same_output(str(reply.get("stdout")), expected):
        raise _Failed(f"{test}: wrong output {str(reply.get('stdout'))[:_SHOWN]!r}")


def _ending(status: Any) -> str:
    return f"ended by signal {-status}" if isinstance(status, int) and status < 0 else f"exit code {status}"


def same_output(found: str, expected: str) -> bool:
    """Compare outputs line by line, ignoring spaces at both ends and empty lines at the end.

    Lines that differ are equal if all their words are equal numbers. This is LiveCodeBench's rule
    (lcb_runner/evaluation/testing_util.py).
    """
    lines, wanted = (text.strip().split("\n") for text in (found, expected))
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def _same_line(found: str, expected: str) -> bool:
    if found.strip() == expected.strip():
        return True
    try:
        numbers = [[Decimal(word) for word in line.split()] for line in (found, expected)]
        return numbers[0] == numbers[1]
    except (InvalidOperation, ValueError):  # the comparison raises too, for a signalling NaN
        return False


# Function calls


def _calls(spec: dict[str, Any], options: CodeOptions, source: str) -> None:
    deadline = time.monotonic() + options.code_timeout
    with Sandbox(options.sandbox, options.limits) as sandbox:
        _load(sandbox, source, options)
        pairs = list(zip(spec["inputs"], spec["outputs"], strict=True))
        for number, (given, expected) in enumerate(pairs, start=1):
            if time.monotonic() > deadline:
                raise _OverTime
            test = f"test {number} of {len(pairs)}"
            args = tuple(given) if isinstance(given, list) else (given,)
            found = _within(options.test_timeout, test, sandbox.call, spec["fn_name"], args, {})
            if not (same_exactly if spec.get("exact") else same_value)(found, expected):
                raise _Failed(f"{test}: wrong value {_Shown().repr(found)[:_SHOWN]}")


def same_value(found: Any, expected: Any) -> bool:
    """Compare a value with an expected one from JSON: a tuple equals the list of its values.

    Test sets from TACO wrap an expected result in a list of one. Both readings are accepted, as in their own graders.
    """
    try:
        return _equal(found, expected) or (
            isinstance(expected, list) and len(expected) == 1 and _equal(found, expected[0])
        )
    except (RecursionError, ArithmeticError, ValueError):  # a signalling NaN; an array
        return False


def same_exactly(found: Any, expected: Any) -> bool:
    """Compare by LiveCodeBench's rule for calls: a returned tuple counts as a list, one inside the result does not."""
    try:
        return bool((list(found) if isinstance(found, tuple) else _plain(found)) == expected)
    except (RecursionError, ArithmeticError, ValueError):
        return False


def _plain(found: Any) -> Any:
    """Return a number of numpy as Python's, because its own `==` rounds. An array equals nothing, as in an `assert`."""
    if type(found).__module__ != "numpy":
        return found
    return found.item() if found.shape == () else codec.Opaque()


def _equal(found: Any, expected: Any) -> bool:
    """Compare no deeper than the expected value goes: the other may hold one list a million times, or itself."""
    found = _plain(found)
    if isinstance(expected, list):
        same_length = isinstance(found, (list, tuple)) and len(found) == len(expected)
        return same_length and all(map(_equal, found, expected))
    if isinstance(expected, dict):
        if not isinstance(found, dict) or len(found) != len(expected):
            return False
        named = {json.dumps(k) if isinstance(k, (bool, int, float)) else k: v for k, v in found.items()}
        return all(k in named and _equal(named[k], v) for k, v in expected.items())
    return bool(found == expected)


class _Shown(reprlib.Repr):
    """Show a value to people, in bounded time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _SHOWN
        self.maxlist = self.maxtuple = self.maxdict = 20

    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if value.bit_length() < 10_000 else "a very long integer"


# Test programs


def _functional(spec: dict[str, Any], options: CodeOptions, source: str) -> None:
    """Run the test program in a sandbox of its own, from which it calls the tested one.

    The tested program never sees an expected result.
    """
    with Sandbox(options.sandbox, options.limits) as tested:
        _load(tested, source, options)
        with Sandbox(options.sandbox, options.limits, asked=tested) as judge:
            try:
                request = {"check": spec["code"], "names": _named(spec), "limit": options.test_timeout}
                reply = judge.ask(request, options.code_timeout)
            except OutOfTime:
                raise _OverTime from None
            except (Ended, Flooded) as failure:
                raise SandboxError(f"the test program: {failure}") from None
    if "fault" in reply:
        raise _Unusable(str(reply["fault"]))
    if "ok" not in reply:
        raise _Failed(f"the tests: {reply.get('raised')}")


# EvalPlus


def _evalplus(spec: dict[str, Any], options: CodeOptions, source: str) -> None:
    program = evalplus.sanitise(source, spec["entry_point"])
    statuses = evalplus.check(spec, program, options.sandbox, options.memory)
    if set(statuses.values()) != {evalplus.PASS}:
        raise _Failed(", ".join(f"{part} {status}" for part, status in statuses.items()))


_KINDS: dict[str, Callable[[dict[str, Any], CodeOptions, str], None]] = {
    "stdin": _stdin,
    "call": _calls,
    "functional": _functional,
    "evalplus": _evalplus,
}
