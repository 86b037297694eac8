"""Code by its tests: EvalPlus's tasks, programs fed through standard input, functions called.

The program is what the response's fences hold, after any thinking block (see `fences`); without one there is no answer.
It runs in a sandbox (see there) that is given inputs only. Results come back as plain values and are compared out here,
so a program that replaces `==`, the checker or the interpreter compares nothing but itself.

What the program does wrong is `incorrect`, as in the field's graders: a wrong value, an exception, its process ended,
its memory used up, a test not ended within `test_timeout` seconds (EvalPlus: within its own limits, which follow the
reference's time). `timeout` is a row whose tests did not end within `code_timeout` seconds altogether though none had
failed; `error` is a grader that could not do its work: no tests, tests that cannot be read, ask nothing or fail by
themselves, a sandbox that does not close.
"""

from __future__ import annotations

import json
import reprlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
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
    """How programs run: seconds a test and a row, bytes of memory a process."""

    sandbox: Level = "limits"
    test_timeout: float = 6.0
    code_timeout: float = 120.0
    memory: int = 4 << 30

    @property
    def limits(self) -> Limits:
        return Limits(self.memory, int(self.code_timeout) + 1)


def name_of(tests: str | None) -> str:
    """Which grader the tests of a row call for."""
    return evalplus.NAME if tests and '"evalplus"' in tests[:200] else NAME


def version(name: str, options: CodeOptions) -> str:
    """The rules, and the limits that can change a verdict."""
    memory = f"{options.memory >> 20}MiB"
    if name == evalplus.NAME:
        return f"{metadata.version('evalplus')}+{evalplus.RULES}+{memory}"
    return f"{_RULES}+{options.test_timeout:g}s+{memory}"


class _Failed(Exception):
    """A test the program did not pass: the reason, as the row's detail."""


def grade(question: Question, options: CodeOptions) -> Grade:
    """Run the response's program against the row's tests.

    Needs no time limit of its own but for sanitising very long programs.
    """
    try:
        spec = _spec(question.tests)
        source = _program(question, _asked(spec))
    except _Unusable as error:
        return Grade("error", detail=_said(error))
    except _Failed as failure:
        return Grade("incorrect", detail=str(failure))
    try:
        _KINDS[spec["kind"]](spec, options, source)
    except _Unusable as error:
        return Grade("error", source, _said(error))
    except _Failed as failure:
        return Grade("incorrect", source, _said(failure))
    except SandboxError as error:
        return Grade("error", source, _said(error))
    except _OverTime:
        return Grade("timeout", source, f"not ended after {options.code_timeout:g} s")
    return Grade("correct", source)


def _said(error: Exception) -> str:
    """The message as a detail, which a program may have made long."""
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
    """The tests as an object of a known kind."""
    codec.allow_long_integers()
    try:
        spec = json.loads(tests or "null")
    except ValueError as error:
        raise _Unusable(f"tests are not JSON ({error})") from None
    if not isinstance(spec, dict) or spec.get("kind") not in list(_KINDS):
        raise _Unusable("no tests" if spec is None else f"tests of an unknown kind; known are {', '.join(_KINDS)}")
    return spec


def _asked(spec: dict[str, Any]) -> Collection[str]:
    """The names that the tests ask for, none where they feed standard input."""
    if spec["kind"] == "functional":
        try:
            return names.asked_by(spec["code"]) | set(_named(spec))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _Unusable(f"the tests do not compile: {error}") from None
    return {spec[key] for key in ("fn_name", "entry_point") if spec.get(key)}


def _named(spec: dict[str, Any]) -> list[str]:
    """The names that a row says its test program asks for."""
    return [*spec.get("names", ()), *filter(None, (spec.get("entry_point"), spec.get("fn_name")))]


def _load(sandbox: Sandbox, source: str, options: CodeOptions) -> None:
    """Define what the program defines; failing that, the program has failed."""
    reply = _within(options.test_timeout, "the program's definitions", sandbox.ask, {"load": source, "prelude": True})
    if "ok" not in reply:
        raise _Failed(f"the program does not load: {reply.get('raised')}")


def _within(seconds: float, what: str, ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of the sandbox; whatever the program does to prevent one is its failure."""
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
    # The runner keeps the limit; the second one, longer than its longest wait, is for a program that stops the runner.
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
    """Line by line, spaces at both ends aside; lines that differ are equal where all their words are equal numbers.

    Empty lines at the end do not count. This is LiveCodeBench's rule (lcb_runner/evaluation/testing_util.py).
    """
    lines, wanted = (text.strip().split("\n") for text in (found, expected))
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def _same_line(found: str, expected: str) -> bool:
    if found.strip() == expected.strip():
        return True
    try:
        numbers = [[Decimal(word) for word in line.split()] for line in (found, expected)]
        return numbers[0] == numbers[1]
    except (InvalidOperation, ValueError):  # the comparison raises too: for a signalling NaN
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
    """Equality of values whose expected side is JSON: a tuple equals the list, and a set of one result is that result.

    Sets of tests from TACO wrap an expected result in a list of one; both readings are accepted, as their own graders
    do.
    """
    try:
        return _equal(found, expected) or (
            isinstance(expected, list) and len(expected) == 1 and _equal(found, expected[0])
        )
    except (RecursionError, ArithmeticError, ValueError):  # a signalling NaN; an array
        return False


def same_exactly(found: Any, expected: Any) -> bool:
    """LiveCodeBench's rule for calls: a tuple that is returned counts as a list, one inside it does not."""
    try:
        return bool((list(found) if isinstance(found, tuple) else found) == expected)
    except (RecursionError, ArithmeticError, ValueError):
        return False


def _equal(found: Any, expected: Any) -> bool:
    """Goes no further than what is expected does: what was found may hold one list a million times, or itself."""
    if isinstance(expected, list):
        same_length = isinstance(found, (list, tuple)) and len(found) == len(expected)
        return same_length and all(map(_equal, found, expected))
    if isinstance(expected, dict):
        if not isinstance(found, dict) or len(found) != len(expected):
            return False
        named = {str(k) if isinstance(k, (int, float)) else k: v for k, v in found.items()}
        return all(k in named and _equal(named[k], v) for k, v in expected.items())
    return bool(found == expected)


class _Shown(reprlib.Repr):
    """A value for people, in bounded time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _SHOWN
        self.maxlist = self.maxtuple = self.maxdict = 20

    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if value.bit_length() < 10_000 else "a very long integer"


# Test programs


def _functional(spec: dict[str, Any], options: CodeOptions, source: str) -> None:
    """The test program runs in a sandbox of its own and asks the tested one, which never sees an expected result."""
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
