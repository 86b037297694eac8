"""Code by its tests: finding the program, running it, comparing its results, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from support import sets

from trd_cli.config.commands import ImportConfig
from trd_cli.datasets.importing import import_problems
from trd_cli.errors import InputError
from trd_cli.graders import code, evalplus
from trd_cli.graders.base import Grade, Question
from trd_cli.graders.evalplus_tasks import tasks
from trd_cli.graders.options import GraderOptions
from trd_cli.graders.pool import GraderPool
from trd_cli.graders.sandbox import choose_level
from trd_cli.local_data import local_file

Trd = Callable[..., Result]
OPTIONS = code.CodeOptions(sandbox=choose_level("auto"), test_timeout=5.0, code_timeout=20.0, memory=1 << 30)
SUM = {"kind": "stdin", "inputs": ["2 3\n", "10 -4\n"], "outputs": ["5\n", "6\n"]}


def fenced(source: str) -> str:
    return f"The program:\n\n```python\n{source}\n```\n"


def graded(source: str, tests: Any, **options: Any) -> Grade:
    return answered(fenced(source), tests, **options)


def answered(response: str, tests: Any, **options: Any) -> Grade:
    text = tests if isinstance(tests, str) or tests is None else json.dumps(tests)
    from dataclasses import replace

    return code.grade(Question("code", response, None, text), replace(OPTIONS, **options))


def stdin(text: str, output: str) -> dict[str, Any]:
    return {"kind": "stdin", "inputs": [text], "outputs": [output]}


def calls(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    inputs, outputs = zip(*pairs, strict=True)
    return {"kind": "call", "fn_name": "f", "inputs": list(inputs), "outputs": list(outputs)}


# How outputs are compared


OUTPUTS = {
    "the same": ("5\n", "5\n", True),
    "no line end": ("5", "5\n", True),
    "empty lines at the end": ("5\n\n\n", "5", True),
    "empty lines at the beginning": ("\n5", "5", True),
    "an empty line between": ("1\n\n2", "1\n2", False),
    "an empty line expected": ("1\n\n2", "1\n\n2", True),
    "spaces at the ends of lines": ("1 2 \n 3\n", "1 2\n3\n", True),
    "carriage returns": ("1\r\n2\r\n", "1\n2\n", True),
    "spaces inside numbers": ("1  2", "1 2", True),
    "spaces inside words": ("a  b", "a b", False),
    "a decimal": ("7.0", "7", True),
    "an exponent": ("1e3", "1000", True),
    "a sign": ("+5", "5", True),
    "leading zeros": ("007", "7", True),
    "nearly": ("0.3333333333", "0.3333333334", False),
    "a number and a word": ("7.0 apples", "7 apples", False),
    "case": ("yes", "YES", False),
    "one line more": ("5\n6", "5", False),
    "one line less": ("5", "5\n6", False),
    "nothing": ("", "5", False),
    "nothing expected": ("", "", True),
    "something where nothing is expected": ("5", "", False),
    "many digits": ("9" * 10_000, "9" * 10_000 + ".0", True),
    "not a number": ("nan", "nan", True),
    "not a number, written otherwise": ("NaN 1", "nan 1", False),
    "a signalling NaN": ("sNaN", "5", False),
    "infinity": ("inf", "Infinity", True),
    "another order": ("1 2", "2 1", False),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_compared_line_by_line_and_number_by_number(name: str) -> None:
    found, expected, same = OUTPUTS[name]
    assert code.same_output(found, expected) is same


VALUES = {
    "an int": (5, 5, True),
    "a float": (5.0, 5, True),
    "a bool": (True, True, True),
    "None": (None, None, True),
    "None for 0": (None, 0, False),
    "a text": ("a", "a", True),
    "a text for a number": ("5", 5, False),
    "a tuple": ((1, (2, 3)), [1, [2, 3]], True),
    "a longer list": ([1, 2], [1], False),
    "a shorter list": ([1], [1, 2], False),
    "a result in a list of one": (5, [5], True),
    "a list in a list of one": ([1, 2], [[1, 2]], True),
    "a list of one": ([5], [5], True),
    "a list of one in a list of two": (5, [5, 5], False),
    "a dict": ({"a": (1,)}, {"a": [1]}, True),
    "a dict with numbers": ({1: 2}, {"1": 2}, True),
    "a dict with a truth": ({True: 1}, {"true": 1}, True),
    "a number of numpy": (np.int64(5), 5, True),
    "an array of numpy": (np.array([1, 2]), [1, 2], False),
    "an array of one for its number": (np.array([[5]]), 5, False),
    "a rounded number of numpy": (np.float16(2048), 2049, False),
    "an infinity of numpy": ([np.float16("inf")], [10**9], False),
    "a dict with more": ({"a": 1, "b": 2}, {"a": 1}, False),
    "a dict with another": ({"b": 1}, {"a": 1}, False),
    "a set": ({1, 2}, [1, 2], False),
    "a fraction": (Fraction(1, 2), 0.5, True),
    "a decimal": (Decimal("0.5"), 0.5, True),
    "a signalling NaN": (Decimal("sNaN"), 1, False),
    "nearly": (0.1 + 0.2, 0.3, False),
    "a long int": (10**5000, 10**5000, True),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_compared_with_json(name: str) -> None:
    found, expected, same = VALUES[name]
    assert code.same_value(found, expected) is same


def test_a_result_that_contains_itself_equals_nothing_and_takes_no_time() -> None:
    itself: list[Any] = []
    itself.append(itself)
    shared: list[Any] = [1]
    for _ in range(100):
        shared = [shared, shared]
    assert not code.same_value(itself, [[1]])
    assert not code.same_value(shared, [[1, 1], [1, 1]])


# Which program


def test_without_a_fence_there_is_no_answer() -> None:
    for response in ("print(5)", "", "```python\n```", "<think>```python\nprint(5)\n```"):
        grade = answered(response, SUM)
        assert (grade.verdict, grade.detail, grade.extracted_answer) == ("incorrect", "no_answer", None)


RIGHT = "print(sum(map(int, input().split())))"


def test_the_last_fence_counts() -> None:
    assert answered(fenced("print(0)") + fenced(RIGHT), SUM).verdict == "correct"
    assert answered(fenced(RIGHT) + fenced("print(0)"), SUM).verdict == "incorrect"


def test_a_fence_inside_the_thinking_does_not_count() -> None:
    thinking = f"<think>{fenced(RIGHT)}</think>"
    assert answered(thinking + fenced("print(0)"), SUM).verdict == "incorrect"
    assert answered(thinking + "so that is it", SUM).detail == "no_answer"
    assert answered(thinking + fenced(RIGHT), SUM).verdict == "correct"


def test_the_program_is_kept_as_the_answer() -> None:
    assert graded(RIGHT, SUM) == Grade("correct", RIGHT)


def test_a_program_beyond_bounds_is_not_run() -> None:
    grade = graded(RIGHT + "\n#" + "x" * code.MAX_SOURCE, SUM)
    assert grade.verdict == "incorrect"
    assert "characters" in grade.detail


# Tests that cannot be run


@pytest.mark.parametrize("tests", [None, "", "not JSON", "[]", "{}", '{"kind": "other"}', "7", '{"kind": ["stdin"]}'])
def test_tests_that_are_missing_or_not_understood_are_an_error(tests: str | None) -> None:
    grade = answered(fenced(RIGHT), tests)
    assert grade.verdict == "error"
    assert "tests" in grade.detail


@pytest.mark.parametrize(
    "tests",
    [
        {"kind": "stdin", "inputs": ["1"], "outputs": []},
        {"kind": "stdin"},
        {"kind": "functional"},
        {"kind": "evalplus"},
    ],
    ids=["of two lengths", "without inputs", "without code", "without a task"],
)
def test_tests_that_lack_something_are_an_error_of_their_row_alone(tests: dict[str, Any]) -> None:
    pairs = ("x = 1", tests), (RIGHT, SUM)
    questions = [Question("code", fenced(source), None, json.dumps(t)) for source, t in pairs]
    with GraderPool(GraderOptions(workers=1)) as pool:
        assert [grade.verdict for grade in pool.grade(questions)] == ["error", "correct"]


# Standard input


READS = {
    "input": "a, b = map(int, input().split())\nprint(a + b)",
    "input until the end": "n = 0\ntry:\n    while True: n += sum(map(int, input().split()))\nexcept EOFError: print(n)",
    "sys.stdin": "import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))",
    "sys.stdin.read": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "sys.stdin.buffer": "import sys\nprint(sum(map(int, sys.stdin.buffer.readline().split())))",
    "a name for readline": "import sys\ninput = sys.stdin.readline\nprint(sum(map(int, input().split())))",
    "open(0)": "print(sum(map(int, open(0).read().split())))",
    "os.read": "import os\nprint(sum(map(int, os.read(0, 1000).split())))",
    "/dev/stdin": "print(sum(map(int, open('/dev/stdin').read().split())))",
    "fileinput": "import fileinput\nfor line in fileinput.input(): print(sum(map(int, line.split())))",
    "a buffer over the descriptor": "import io, os, sys\nsize = os.fstat(0).st_size\nsys.stdin = io.StringIO(os.read(0, size).decode())\nprint(sum(map(int, input().split())))",
    "as main": "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
    "without a line end": "import sys\nsys.stdout.write(str(sum(map(int, input().split()))))",
    "bytes": "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, input().split())))",
    "os.write": "import os\nos.write(1, str(sum(map(int, input().split()))).encode())",
    "output held back": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint(sum(map(int, input().split())))",
    "output closed": "import sys\nprint(sum(map(int, input().split())))\nsys.stdout.close()",
    "sys.exit after the output": "import sys\nprint(sum(map(int, input().split())))\nsys.exit()\nprint(0)",
    "exit": "print(sum(map(int, input().split())))\nexit()",
    "an exit code of its own choice": "print(sum(map(int, input().split())))\nexit(1)",
    "names that come with the prelude": "print(deepcopy(sum(map(int, stdin.readline().split()))))",
    "quit": "print(sum(map(int, input().split())))\nquit()",
    "SystemExit": "print(sum(map(int, input().split())))\nraise SystemExit(0)",
    "os._exit": "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)",
    "atexit": "import atexit\nn = sum(map(int, input().split()))\natexit.register(lambda: print(n))",
    "a thread": "import sys, threading\nthreading.stack_size(1 << 26)\ndef main(): print(sum(map(int, input().split())))\nt = threading.Thread(target=main)\nt.start()\nt.join()",
    "words to standard error": "import sys\nprint('debug', file=sys.stderr)\nprint(sum(map(int, input().split())))",
    "names nobody imported": "print(reduce(lambda a, b: a + b, map(int, input().split())))",
    "deep recursion": "def f(n): return n and 1 + f(n - 1)\nprint(sum(map(int, input().split())) + f(20_000) - 20_000)",
}


@pytest.mark.parametrize("name", READS)
def test_programs_read_and_write_as_they_like(name: str) -> None:
    assert graded(READS[name], SUM) == Grade("correct", READS[name])


FAILS = {
    "a wrong value": ("print(5)", "test 2 of 2: wrong output '5\\n'"),
    "no output": ("input()", "test 1 of 2: wrong output ''"),
    "a line too many": ("print(5)\nprint(6)", "test 1 of 2: wrong output '5\\n6\\n'"),
    "an exception": ("print(1 / 0)", "test 1 of 2: exit code 1"),
    "an exception after the output": (RIGHT + "\nraise ValueError", "test 1 of 2: exit code 1"),
    "an exit code": (RIGHT + "\nimport os\nsys.stdout.flush()\nos._exit(3)", "test 1 of 2: exit code 3"),
    "a signal": ("import os\nos.kill(os.getpid(), 15)", "test 1 of 2: ended by signal 15"),
    "no Python": ("print(", "test 1 of 2: exit code 1"),
    "too much output": ("while True: print('5' * 100_000)", "test 1 of 2: too much output"),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_a_program_does_wrong_is_incorrect_and_told(name: str) -> None:
    source, detail = FAILS[name]
    assert graded(source, SUM) == Grade("incorrect", source, detail)


def test_each_test_starts_the_program_anew() -> None:
    source = "import os\nprint(len(os.listdir('.')))\nglobals().setdefault('n', 0)\nn += 1\nassert n == 1"
    assert graded(source, {"kind": "stdin", "inputs": ["", ""], "outputs": ["0", "0"]}).verdict == "correct"


def test_long_inputs_and_outputs_pass_whole() -> None:
    text = "x" * 3_000_000
    assert graded("print(input())", stdin(text, text)).verdict == "correct"


def test_text_is_utf_8() -> None:
    assert graded("print(input()[::-1])", stdin("h\u00e9\U0001f642", "\U0001f642\u00e9h")).verdict == "correct"


# Time


def test_a_slow_program_is_incorrect() -> None:
    for source, tests in (
        ("import time\ntime.sleep(9)", SUM),
        ("def f(x):\n    while True: pass", calls([([1], 1)])),
        (
            "class Solution:\n    def f(self):\n        while True: pass",
            {"kind": "functional", "code": "Solution().f()"},
        ),
    ):
        grade = graded(source, tests, test_timeout=0.5)
        assert grade.verdict == "incorrect"
        assert "not ended" in grade.detail


def test_tests_that_take_too_long_together_are_a_timeout() -> None:
    slow = "import time\ntime.sleep(0.4)\nprint(1)"
    tests = {"kind": "stdin", "inputs": [""] * 20, "outputs": ["1"] * 20}
    assert graded(slow, tests, code_timeout=1.0) == Grade("timeout", slow, "not ended after 1 s")
    slow = "import time\ndef f(x):\n    time.sleep(0.4)\n    return x"
    assert graded(slow, calls([([1], 1)] * 20), code_timeout=1.0).verdict == "timeout"
    slow = "import time\nclass Solution:\n    def f(self): time.sleep(0.4)"
    check = {"kind": "functional", "code": "for _ in range(20): Solution().f()"}
    assert graded(slow, check, code_timeout=1.0).verdict == "timeout"


def test_a_test_that_fails_in_time_counts_before_the_row_s_limit() -> None:
    tests = {"kind": "stdin", "inputs": [""] * 20, "outputs": ["1"] * 20}
    assert graded("import time\ntime.sleep(0.4)\nprint(2)", tests, code_timeout=1.0).verdict == "incorrect"


# Calls


CALLS = {
    "a function": ("def f(a, b): return a + b", [([1, 2], 3), ([[1], [2]], [1, 2])]),
    "names of operator and string": (
        "class Solution:\n    def f(self, a): return self.merge(a)\n    def merge(self, a): return xor(a, 1), ascii_lowercase[a]",
        [([2], [3, "c"])],
    ),
    "a method": ("class Solution:\n    def f(self, a): return a * 2", [([2], 4), (["x"], "xx")]),
    "a tuple": ("def f(a): return a, (a, a)", [([1], [1, [1, 1]])]),
    "None": ("def f(a): pass", [([1], None)]),
    "a float": ("def f(a): return a / 4", [([1], 0.25), ([4], 1)]),
    "a dict": ("def f(a): return {a: [a], 'k': None}", [([1], {"1": [1], "k": None})]),
    "a list of one around the result": ("def f(a): return a", [([7], [7]), ([[1, 2]], [[1, 2]])]),
    "a long int": ("def f(a): return 10 ** a", [([5000], 10**5000)]),
    "a long int given": ("def f(a): return a % 10", [([10**5000 + 7], 7)]),
    "state between calls": ("seen = []\ndef f(a):\n    seen.append(a)\n    return len(seen)", [([0], 1), ([0], 2)]),
    "names nobody imported": (
        "def f(a: List[int]) -> Optional[int]:\n    return Counter(a).most_common(1)[0][0]",
        [([[1, 2, 2]], 2)],
    ),
    "a given list that is changed": ("def f(a):\n    a.sort()\n    return a", [([[2, 1]], [1, 2])]),
    "a subclass": ("class L(list): pass\ndef f(a): return L(a)", [([[1]], [1])]),
    "numpy's scalars": ("import numpy as np\ndef f(a): return np.sum(a)", [([[1, 2]], 3)]),
    "words printed": ("def f(a):\n    print('debug')\n    return a", [([1], 1)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_are_called_and_their_values_compared(name: str) -> None:
    import sys

    source, pairs = CALLS[name]
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    tests = json.dumps(calls(pairs))
    sys.set_int_max_str_digits(before)
    assert graded(source, tests) == Grade("correct", source)


# Sixty tuples, the last of which stands for 2 ** 60 values.
ENDLESS = "t = (1,)\n    for _ in range(60): t = (t, t)"
WRONG_CALLS = {
    "a value": ("def f(a): return a + 1", "test 1 of 1: wrong value 2"),
    "an exception": ("def f(a): raise KeyError('no')", "test 1 of 1: KeyError: 'no'"),
    "no function": ("def g(a): return a", "test 1 of 1: KeyError: 'Solution'"),
    "no method": ("class Solution: pass", "test 1 of 1: AttributeError: 'Solution' object has no attribute 'f'"),
    "too few arguments": (
        "def f(): return 1",
        "test 1 of 1: TypeError: f() takes 0 positional arguments but 1 was given",
    ),
    "a generator": ("def f(a): yield a", "test 1 of 1: wrong value <trd_cli.graders.inside.codec.Opaque"),
    "no Python": ("def f(a) return a", "the program does not load: SyntaxError: expected ':' (<string>, line 1)"),
    "values that hold each other": (
        f"def f(a):\n    {ENDLESS}\n    return [t]",
        "test 1 of 1: it wrote into the grader's pipe (not a message: ValueError: values that hold each other without end)",
    ),
    "a set of such": (
        f"class T(tuple): __hash__ = lambda self: 1\ndef f(a):\n    {ENDLESS}\n    return {{T((t,))}}",
        "test 1 of 1: it wrote into the grader's pipe (not a message: ValueError: values that hold each other without end)",
    ),
    "a long int": ("def f(a): return 10 ** 5000", "test 1 of 1: wrong value a very long integer"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_call_that_fails_is_incorrect_and_told(name: str) -> None:
    source, detail = WRONG_CALLS[name]
    grade = graded(source, calls([([1], 1)]))
    assert (grade.verdict, grade.detail[: len(detail)]) == ("incorrect", detail)


# Test programs


def check(code_text: str) -> dict[str, Any]:
    return {"kind": "functional", "code": code_text}


REVERSE = """class Solution:
    def reverse(self, head: Optional[ListNode]) -> Optional[ListNode]:
        last = None
        while head:
            head.next, last, head = last, head, head.next
        return last
"""
MIRROR = """class Solution:
    def mirror(self, root: Optional[TreeNode]) -> Optional[TreeNode]:
        if root:
            root.left, root.right = self.mirror(root.right), self.mirror(root.left)
        return root
"""


def test_lists_and_trees_of_nodes_go_in_and_out() -> None:
    lists = check(
        "assert is_same_list(Solution().reverse(head=list_node([1, 2, 3])), list_node([3, 2, 1]))\nassert Solution().reverse(list_node([])) is None"
    )
    trees = check(
        "assert is_same_tree(Solution().mirror(tree_node([1, 2, None, 3])), tree_node([1, None, 2, None, 3]))"
    )
    assert graded(REVERSE, lists).verdict == "correct"
    assert graded(MIRROR, trees).verdict == "correct"
    assert graded(REVERSE.replace("return last", "return head"), lists).verdict == "incorrect"
    assert (
        graded(
            MIRROR.replace("root.right), self.mirror(root.left)", "root.left), self.mirror(root.right)"), trees
        ).verdict
        == "incorrect"
    )


def test_a_long_list_of_nodes_is_no_deep_one() -> None:
    tests = check(
        "assert is_same_list(Solution().reverse(list_node(list(range(30_000)))), list_node(list(range(29_999, -1, -1))))"
    )
    assert graded(REVERSE, tests).verdict == "correct"


def test_the_tested_program_is_asked_in_a_sandbox_of_its_own() -> None:
    tests = check("answer = 12\nassert Solution().f() == answer")
    assert graded("class Solution:\n    def f(self): return 12", tests).verdict == "correct"
    peeking = "import sys\nclass Solution:\n    def f(self):\n        frame = sys._getframe()\n        while frame:\n            if 'answer' in frame.f_globals: return frame.f_globals['answer']\n            frame = frame.f_back"
    assert graded(peeking, tests).verdict == "incorrect"


def test_a_failed_assertion_and_an_exception_of_the_program_are_incorrect() -> None:
    tests = check("assert Solution().f() == 12, 'not 12'")
    assert graded("class Solution:\n    def f(self): return 13", tests).detail == "the tests: AssertionError: not 12"
    assert "ValueError: no" in graded("class Solution:\n    def f(self): raise ValueError('no')", tests).detail


# Real problems


def imported(name: str, preset: str, tmp_path: Path) -> list[Any]:
    from os import environ

    path = Path(environ.get("TRD_DATA", Path(__file__).parent.parent.parent / "shared" / "data")) / "train" / name
    if not path.is_file():
        pytest.skip(f"no {path}: set TRD_DATA")
    config = ImportConfig.parse({"file": str(path), "preset": preset, "out": str(tmp_path / "p.parquet")})
    return import_problems(config).problems


# References of the LeetCode set that fail their own tests, by their place in it, with the reason.
KNOWN_WRONG: dict[int, str] = {}
EVERY = 10
# A method with a name of the prelude; operator's and string's names.
SPECIAL = (40, 98, 533)


def test_references_of_leetcode_pass_their_own_tests(tmp_path: Path) -> None:
    """Every tenth is run: all of them take minutes."""
    problems = imported("leetcode.json", "leetcode", tmp_path)
    assert len(problems) == 1889
    chosen = {i: p for i, p in enumerate(problems) if i % EVERY == 0 or i in KNOWN_WRONG or i in SPECIAL}
    questions = [Question("code", fenced(p.reference_solution), None, p.tests) for p in chosen.values()]
    with GraderPool(GraderOptions(workers=1)) as pool:
        grades = dict(zip(chosen, pool.grade(questions), strict=True))
    assert {i: g.detail for i, g in grades.items() if g.verdict != "correct" and i not in KNOWN_WRONG} == {}
    assert {i for i in KNOWN_WRONG if grades[i].verdict != "incorrect"} == set()


def test_a_method_named_as_a_function_of_the_prelude_is_the_program_s() -> None:
    source = "class Solution:\n    def merge(self, intervals): return len(intervals)"
    assert graded(source, check("assert Solution().merge(intervals=[1, 2]) == 2")).verdict == "correct"
    assert graded(source, calls([([[1, 2]], 2)]) | {"fn_name": "merge"}).verdict == "correct"


def test_tests_of_code_contests_are_pairs_of_texts(tmp_path: Path) -> None:
    problems = imported("code_contests.json", "code_contests", tmp_path)
    assert len(problems) == 165
    for problem in problems:
        spec = json.loads(problem.tests)
        assert spec["kind"] == "stdin"
        assert len(spec["inputs"]) == len(spec["outputs"]) > 0
        assert all(isinstance(text, str) for text in spec["inputs"] + spec["outputs"])


# EvalPlus


def evalplus_tests(task_id: str, dataset: str = "humaneval", version: str = "v0.1.10") -> str:
    name = {"humaneval": "HumanEvalPlus", "mbpp": "MbppPlus"}[dataset]
    if local_file(f"{name}.jsonl.gz") is None:
        pytest.skip(f"no {name}.jsonl.gz: set TRD_DATA")
    return sets.evalplus_tests(dataset, version)[task_id]


def reference(task_id: str, dataset: str = "humaneval", version: str = "v0.1.10") -> str:
    task = tasks(dataset, version)[task_id]
    return task["prompt"] + task["canonical_solution"]


@pytest.mark.parametrize("task_id", ["HumanEval/0", "HumanEval/32", "HumanEval/50", "HumanEval/38"])
def test_references_of_humaneval_pass(task_id: str) -> None:
    assert graded(reference_if_there(task_id), evalplus_tests(task_id)).verdict == "correct"


@pytest.mark.parametrize("task_id", ["Mbpp/2", "Mbpp/14", "Mbpp/102", "Mbpp/803"])
def test_references_of_mbpp_pass(task_id: str) -> None:
    tests = evalplus_tests(task_id, "mbpp", "v0.2.0")
    assert graded(reference(task_id, "mbpp", "v0.2.0"), tests).verdict == "correct"


def reference_if_there(task_id: str) -> str:
    evalplus_tests(task_id)
    return reference(task_id)


EVALPLUS = {
    "wrong": ("def has_close_elements(a, b): return True", "base fail, plus fail"),
    "crashes": ("def has_close_elements(a, b): return 1 / 0", "base fail, plus fail"),
    "ends": ("import os\ndef has_close_elements(a, b): os._exit(0)", "base fail, plus fail"),
    "endless to hash": (f"def has_close_elements(a, b):\n    {ENDLESS}\n    return t", "base fail, plus fail"),
    "another name": ("def close(a, b): return True", "base fail, plus fail"),
    "no Python": ("def has_close_elements(a, b) return True", "base fail, plus fail"),
    "always equal": (
        "class A:\n    def __eq__(self, o): return True\ndef has_close_elements(a, b): return A()",
        "base fail, plus fail",
    ),
}


@pytest.mark.parametrize("name", EVALPLUS)
def test_programs_that_are_wrong_fail_both_parts(name: str) -> None:
    source, detail = EVALPLUS[name]
    tests = evalplus_tests("HumanEval/0")
    grade = graded(source, tests)
    assert (grade.verdict, grade.detail) == ("incorrect", detail)


def test_a_program_that_passes_the_base_tests_alone_is_told_apart() -> None:
    tests = evalplus_tests("HumanEval/0")
    # Compares neighbours as given, not sorted, for lists of more elements than the base tests have.
    source = "def has_close_elements(numbers, threshold):\n    n = sorted(numbers) if len(numbers) <= 6 else numbers\n    return any(abs(a - b) < threshold for a, b in zip(n, n[1:]))"
    assert graded(source, tests).detail == f"{evalplus.BASE_PASSED}, plus fail"


def test_a_program_that_does_not_end_is_incorrect_within_evalplus_s_limits() -> None:
    grade = graded("def has_close_elements(a, b):\n    while True: pass", evalplus_tests("HumanEval/0"))
    assert grade.verdict == "incorrect"
    assert set(grade.detail.replace(",", "").split()) <= {"base", "plus", "fail", "timeout"}


def test_a_worker_that_has_compared_grades_all_else_as_before() -> None:
    compared = (reference_if_there("HumanEval/0"), evalplus_tests("HumanEval/0"))
    failed = ("def has_close_elements(a, b): return 1", compared[1])
    stdin = json.dumps({"kind": "stdin", "inputs": ["2\n"], "outputs": ["4\n"]})
    called = json.dumps({"kind": "call", "fn_name": "f", "inputs": [[3]], "outputs": [9]})
    rows = [compared, ("print(int(input()) ** 2)", stdin), failed, ("def f(x): return x * x", called), compared]
    questions = [Question("code", fenced(source), None, tests) for source, tests in rows]
    with GraderPool(GraderOptions(workers=1)) as pool:
        verdicts = [grade.verdict for grade in pool.grade(questions)]
    assert verdicts == ["correct", "correct", "incorrect", "correct", "correct"]


def test_a_large_result_is_not_kept_for_the_rows_after_it() -> None:
    tests = evalplus_tests("HumanEval/0")
    many = "def has_close_elements(a, b): return [None] * (20 << 20)"
    resident = Path("/proc/self/statm")
    if not resident.exists():
        pytest.skip("memory is read from /proc")
    assert graded(reference("HumanEval/0"), tests).verdict == "correct"
    before = int(resident.read_text().split()[1])
    assert graded(many, tests).verdict == "incorrect"
    assert int(resident.read_text().split()[1]) - before < (50 << 20) // 4096


def test_what_runs_by_itself_is_dropped_before_grading() -> None:
    tests = evalplus_tests("HumanEval/0")
    source = reference("HumanEval/0") + "\nprint(has_close_elements(input(), 0.5))\nraise SystemExit\n"
    assert graded(source, tests).verdict == "correct"
    assert "input()" not in evalplus.sanitise(source, "has_close_elements")


def test_a_program_that_the_sanitiser_cannot_read_is_run_as_it_is() -> None:
    tests = evalplus_tests("HumanEval/0")
    chain = "a" + ".b" * 100_000
    assert evalplus.sanitise(chain, "f") == chain
    deep = "def has_close_elements(a, b):\n    return " + "a" + ".b" * 5_000
    assert graded(deep, tests).verdict == "incorrect"


def test_a_task_of_another_content_or_name_is_an_error() -> None:
    source = reference_if_there("HumanEval/0")
    for changed in ({"sha256": "0" * 64}, {"task_id": "HumanEval/999"}):
        grade = graded(source, json.loads(evalplus_tests("HumanEval/0")) | changed)
        assert grade.verdict == "error"
        assert "is not the task this row was made with" in grade.detail


def test_the_grader_s_name_and_version_tell_what_can_change_a_verdict() -> None:
    spec = json.dumps({"kind": "evalplus", "dataset": "humaneval"})
    assert (code.name_of(spec), code.name_of(json.dumps(SUM)), code.name_of(None)) == ("evalplus", code.NAME, code.NAME)
    from dataclasses import replace

    versions = {
        code.version(code.NAME, replace(OPTIONS, **change))
        for change in ({}, {"test_timeout": 1.0}, {"memory": 1 << 31})
    }
    assert len(versions) == 3


def test_an_import_that_is_no_test_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"problem": "p", "tests": {"inputs": ["1"], "outputs": []}}) + "\n")
    with pytest.raises(InputError, match="1 inputs and 0 outputs"):
        import_problems(
            ImportConfig.parse({"file": str(path), "preset": "code_contests", "out": str(tmp_path / "o.parquet")})
        )
