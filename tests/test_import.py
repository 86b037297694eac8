"""`trd data import` in use: published sets, columns under users' names, answers in the forms that files have."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from click.testing import CliRunner

from trd_cli.cli import app
from trd_cli.graders.base import Question
from trd_cli.graders.code import CodeOptions, grade
from trd_cli.records import Problem
from trd_cli.trajectories.problem_sets import read_problems

DATA = Path(os.environ.get("TRD_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Outcome:
    """The command's exit code, its output, and the problems of the file it wrote (None if it wrote none)."""

    code: int
    said: str
    problems: list[Problem] | None

    @property
    def only(self) -> Problem:
        assert self.problems is not None, self.said
        (problem,) = self.problems
        return problem

    @property
    def answers(self) -> list[str | None]:
        assert self.problems is not None, self.said
        return [problem.reference_answer for problem in self.problems]


def run(file: Path, *options: str) -> Outcome:
    out = file.parent / "out.parquet"
    out.unlink(missing_ok=True)
    command = typer.main.get_command(app)
    result = CliRunner().invoke(command, ["data", "import", str(file), "--out", str(out), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    return Outcome(result.exit_code, result.stderr, read_problems(out) if out.exists() else None)


def import_rows(folder: Path, rows: Sequence[dict[str, Any]], *options: str) -> Outcome:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run(folder / "rows.jsonl", *options)


def import_text(folder: Path, name: str, text: str, *options: str) -> Outcome:
    (folder / name).write_text(text, encoding="utf-8")
    return run(folder / name, *options)


def import_table(folder: Path, table: pa.Table, *options: str) -> Outcome:
    pq.write_table(table, folder / "rows.parquet")
    return run(folder / "rows.parquet", *options)


def refused(outcome: Outcome) -> str:
    """Return the one line of a refusal that has written nothing."""
    assert (outcome.code, outcome.problems) == (1, None)
    (line,) = outcome.said.strip().splitlines()
    return line


def verdict(problem: Problem, program: str) -> str:
    answer = f"```python\n{program}\n```"
    return grade(Question("code", answer, None, problem.tests), CodeOptions()).verdict


# Paths

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"answer": "Two and two are four.\n#### 4", "index": 7, "split": "train"},
}
PATHS = "problem=prompt.1.content,answer=reward_model.ground_truth"


@pytest.mark.parametrize("options", [("--map", PATHS), [word for pair in PATHS.split(",") for word in ("--map", pair)]])
def test_a_map_leads_into_objects_and_lists_however_its_pairs_are_given(tmp_path: Path, options: Sequence[str]) -> None:
    for outcome in (
        import_rows(tmp_path, [VERL], *options),
        import_table(tmp_path, pa.Table.from_pylist([VERL]), *options),
    ):
        assert (outcome.only.problem, outcome.only.reference_answer) == ("2 + 2?", "4")


def test_a_map_leads_into_text_that_is_json(tmp_path: Path) -> None:
    rows = [{"q": "p", "reward_model": json.dumps({"ground_truth": ["7", "8"]})}]
    options = ("--map", "problem=q", "--map", "reference_answer=reward_model.ground_truth.1")
    assert import_rows(tmp_path, rows, *options).answers == ["8"]


def test_a_column_whose_own_name_has_dots_wins_over_a_path(tmp_path: Path) -> None:
    rows = [{"problem": "p", "a.b": "column", "a": {"b": "inside", "c.d": "key with a dot"}}]
    column = import_rows(tmp_path, rows, "--map", "answer=a.b")
    assert (column.answers, len(column.said.splitlines())) == (["column"], 1)
    assert import_rows(tmp_path, rows, "--map", "answer=a.c.d").answers == ["key with a dot"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            "problem=prompt.1.content,answer=reward_model",
            ("'reward_model'", "an object", "--map reference_answer=reward_model.ground_truth"),
        ),
        (
            "problem=prompt,answer=reward_model.ground_truth",
            ("'prompt'", "a list", "problem=prompt.0.content", "--preset messages"),
        ),
        ("problem=prompt.1.content,solution=extra_info", ("'extra_info'", "extra_info.answer")),
        (
            "problem=prompt.1.content,answer=reward_model.truth",
            ("'reward_model.truth'", "its columns: data_source", "reward_model.ground_truth"),
        ),
        ("problem=prompt.2.content,answer=data_source", ("'prompt.2.content'", "prompt.1.content")),
    ],
)
def test_a_structure_or_a_path_that_leads_nowhere_is_refused_by_name_with_the_paths_there_are(
    tmp_path: Path, options: str, words: Sequence[str]
) -> None:
    line = refused(import_rows(tmp_path, [VERL], "--map", options))
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "answer", [{"value": 3, "unit": "m"}, [{"value": 3}], json.dumps({"value": 3}), str({"value": 3})]
)
def test_an_answer_that_is_a_structure_is_refused_without_any_map_too(tmp_path: Path, answer: Any) -> None:
    line = refused(import_rows(tmp_path, [{"problem": "p", "answer": answer}]))
    assert "'answer'" in line
    assert "--map reference_answer=answer." in line


# Known sets


def test_verl_takes_the_users_turn_the_ground_truth_and_the_worked_solution(tmp_path: Path) -> None:
    for outcome in (
        import_rows(tmp_path, [VERL], "--preset", "verl"),
        import_table(tmp_path, pa.Table.from_pylist([VERL]), "--preset", "verl"),
    ):
        problem = outcome.only
        assert (problem.source, problem.task, problem.problem) == ("verl", "math", "2 + 2?")
        assert problem.reference_answer == "4"
        assert problem.reference_solution == VERL["extra_info"]["answer"]
        assert "left out the system's turn: row 1" in outcome.said


def test_verl_rows_of_code_have_their_tests_in_the_ground_truth_and_sets_are_answers(tmp_path: Path) -> None:
    truths = [json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]}), "{1, 2}", '["\\\\frac{3}{4}"]']
    rows = [{"prompt": f"q{i}", "reward_model": {"ground_truth": truth}} for i, truth in enumerate(truths)]
    problems = import_rows(tmp_path, rows, "--preset", "verl").problems or []
    assert [p.task for p in problems] == ["code", "math", "math"]
    assert [p.reference_answer for p in problems] == [None, "{1, 2}", r"\frac{3}{4}"]
    assert verdict(problems[0], "print(sum(map(int, input().split())))") == "correct"
    assert verdict(problems[0], "print(0)") == "incorrect"
    as_told = import_rows(tmp_path, rows[:1], "--preset", "verl", "--task", "math", "--no-answers")
    assert as_told.only.task == "math"


CASES = {
    "read from standard input": (
        {"tests": json.dumps([{"type": "stdin_stdout", "input": "1 2\n", "output": "3\n", "fn_name": None}])},
        "print(sum(map(int, input().split())))",
    ),
    "LiveCodeBench's": (
        {"tests": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin", "metadata": {}}])},
        "print(sum(map(int, input().split())))",
    ),
    "calls that name the function": (
        {"tests": json.dumps([{"type": "function_call", "fn_name": "f", "input": [1, [2]], "output": [[1, 2]]}])},
        "def f(a, b): return [a, *b]",
    ),
    "calls by lines of JSON": (
        {
            "starter_code": "class Solution:\n    def f(self, a, b):",
            "tests": json.dumps(
                [{"input": "1\n[2]", "output": "[1, 2]", "testtype": "functional", "metadata": {"func_name": "f"}}]
            ),
        },
        "class Solution:\n    def f(self, a, b): return [a, *b]",
    ),
    "the row names the function": (
        {
            "tests": json.dumps([{"input": "1\n[2]", "output": "[1, 2]", "testtype": "functional"}]),
            "metadata": json.dumps({"func_name": "f"}),
        },
        "def f(a, b): return [a, *b]",
    ),
    "TACO's object": (
        {"tests": json.dumps({"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[[1, 2]]]})},
        "def f(a, b): return [a, *b]",
    ),
    "a list that is no JSON text": (
        {"tests": [{"input": "1 2\n", "output": "3\n"}], "solutions": ["print(3)"]},
        "print(sum(map(int, input().split())))",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_deepcoders_cases_run_in_all_the_forms_they_have(tmp_path: Path, case: str) -> None:
    row, program = CASES[case]
    problem = import_rows(tmp_path, [{"problem": "Do it.", **row}], "--preset", "deepcoder").only
    assert (problem.task, problem.source) == ("code", "deepcoder")
    assert problem.problem.startswith("Do it.")
    assert row.get("starter_code", "") in problem.problem
    assert verdict(problem, program) == "correct"
    assert verdict(problem, "def f(a, b): return 0\nprint(0)") == "incorrect"


def test_cases_that_cannot_be_run_leave_their_row_out_with_a_count(tmp_path: Path) -> None:
    good = [{"input": "1", "output": "1"}]
    call = {"input": "1", "output": "1", "testtype": "functional"}
    cases = [good, [call], [*good, {**call, "fn_name": "f"}], [{"input": "1"}], [{**call, "testtype": "ui"}]]
    rows = [{"problem": f"p{i}", "tests": json.dumps(tests)} for i, tests in enumerate(cases)]
    outcome = import_rows(tmp_path, rows, "--preset", "deepcoder")
    assert outcome.only.problem == "p0"
    assert "left out: 4 unreadable rows, the first: row 2: tests that call a function name no" in outcome.said


@pytest.mark.parametrize(
    "row",
    [
        {"task_id": 601, "text": "Round it.", "test_setup_code": "import math", "challenge_test_list": []},
        {"task_id": 601, "prompt": "Round it.", "test_imports": ["import math"], "source_file": "x"},
    ],
)
@pytest.mark.parametrize("write", [list, json.dumps, repr])
def test_mbpp_takes_either_edition_with_its_assertions_and_what_they_import(
    tmp_path: Path, row: dict[str, Any], write: Callable[[list[str]], Any]
) -> None:
    assertions = ["assert down(1.5) == math.floor(1.5)", "assert down(2) == 2"]
    row = {**row, "code": "def down(x): return int(x)", "test_list": write(assertions)}
    problem = import_rows(tmp_path, [row], "--preset", "mbpp").only
    assert (problem.problem_id, problem.task) == ("mbpp-601", "code")
    assert problem.problem.startswith("Round it.")
    assert assertions[0] in problem.problem, "nothing else names the function"
    assert assertions[1] not in problem.problem
    assert verdict(problem, problem.reference_solution or "") == "correct"
    assert verdict(problem, "def down(x): return 1") == "incorrect"


def test_mbpp_finds_the_functions_and_classes_that_are_tested(tmp_path: Path) -> None:
    code = "class Pair:\n    def __init__(self, a): self.a = a\ndef helper(x): return x\ndef merge(a, b): return sorted(helper(a) + b)"
    rows = [
        {"text": "a", "code": code, "test_list": ["assert sorted(merge([2], [1])) == [1, 2]"]},
        {"text": "b", "code": "print 1", "test_list": ["assert set(join([1])) == {1}"]},
        {"text": "c", "code": code, "test_list": ["assert merge([Pair(2).a], [1]) == [1, 2]"]},
        {"text": "d", "code": code, "test_list": ["assert merge([Pair()"]},
        {"text": "e", "code": "def sum(a, b): return a + b", "test_list": ["assert sum(2, 3) == 5"]},
    ]
    outcome = import_rows(tmp_path, rows, "--preset", "mbpp")
    assert outcome.problems is not None
    found = {p.problem[0]: p for p in outcome.problems}
    assert list(found) == ["a", "b", "c", "e"]
    assert verdict(found["a"], code) == verdict(found["c"], code) == "correct"
    assert verdict(found["c"], code.replace("class Pair", "class Other")) == "incorrect"
    assert verdict(found["b"], "def join(x): return x") == "correct"
    assert verdict(found["e"], rows[4]["code"]) == "correct"
    assert verdict(found["e"], "def add(a, b): return a + b") == "incorrect"
    assert "1 unreadable row" in outcome.said


@pytest.mark.parametrize(
    "form",
    [
        lambda test: f"{test}\ncheck(add)",
        lambda test: {"test": test, "entry_point": "add"},
        lambda test: json.dumps({"test": test, "entry_point": "add"}),
    ],
    ids=["a program", "an object", "JSON"],
)
def test_tests_of_humaneval_are_taken_as_they_stand(tmp_path: Path, form: Callable[[str], Any]) -> None:
    test = "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate(2, 3) == 5\n"
    problem = import_rows(tmp_path, [{"problem": "Add.", "tests": form(test), "task": "code"}]).only
    assert verdict(problem, "def add(a, b): return a + b") == "correct"
    assert verdict(problem, "def add(*given): return None") == "incorrect"
    assert verdict(problem, "def sub(a, b): return a - b") == "incorrect"


TALKS = {
    "messages": ("messages", "role", "content", "user", "assistant"),
    "sharegpt": ("conversations", "from", "value", "human", "gpt"),
}


@pytest.mark.parametrize("write", [list, json.dumps, repr])
@pytest.mark.parametrize("preset", TALKS)
def test_a_conversations_problem_is_the_users_turn_and_nothing_the_assistant_said(
    tmp_path: Path, preset: str, write: Callable[[list[Any]], Any]
) -> None:
    column, role, content, user, assistant = TALKS[preset]
    turns = [("system", "Be brief."), (user, "Add:\nall of 1 + 1."), (assistant, r"It is \boxed{2}.")]
    talk = [{role: who, content: text} for who, text in turns]
    outcome = import_rows(tmp_path, [{column: write(talk)}], "--preset", preset)
    problem = outcome.only
    assert (problem.problem, problem.reference_answer) == ("Add:\nall of 1 + 1.", "2")
    assert problem.reference_solution == r"It is \boxed{2}."
    assert "left out the system's turn: row 1" in outcome.said


@pytest.mark.parametrize("write", [list, json.dumps, repr])
def test_a_conversation_mapped_to_the_problem_whole_is_refused(
    tmp_path: Path, write: Callable[[list[Any]], Any]
) -> None:
    talk = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    line = refused(import_rows(tmp_path, [{"chat": write(talk), "answer": 2}], "--map", "problem=chat"))
    assert "--preset messages" in line
    assert "--map problem=chat.0.content" in line


def test_conversations_that_are_no_single_problem_are_left_out_and_counted(tmp_path: Path) -> None:
    def talk(*turns: tuple[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": content} for role, content in turns], "answer": 1}

    rows = [
        talk(("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])),
        talk(("user", "one"), ("assistant", "x"), ("user", "two")),
        talk(("assistant", "never a problem")),
        talk(("user", [{"type": "image", "image": "x.png"}])),
        talk(("narrator", "c"), ("user", "d")),
        {"messages": "user: e\nassistant: f", "answer": 1},
    ]
    outcome = import_rows(tmp_path, rows, "--preset", "messages")
    assert outcome.only.problem == "a\nb"
    assert "1 row without a problem" in outcome.said
    assert "4 unreadable rows, the first: row 2: 2 turns of the user, not one" in outcome.said


# Values


def test_numbers_are_written_as_they_were_meant_from_every_format(tmp_path: Path) -> None:
    written = ["0.1", "10^{-7}", "5", "1" + "0" * 22, "0.25", r"6.63 \times 10^{-34}", "-3", r"-10^{-9}"]
    values = [0.1, 1e-7, 5.0, 1e22, 0.25, 6.63e-34, -3.0, -1e-9]
    problems = [f"p{i}" for i in range(len(values))]
    rows = [{"problem": p, "answer": v} for p, v in zip(problems, values, strict=True)]
    assert import_rows(tmp_path, rows).answers == written
    for kind in (pa.float64(), pa.float32()):
        column = pa.array([*values, None], kind)
        if kind == pa.float32():
            column, written[5] = pa.array([*values[:5], 0.0, *values[6:], None], kind), "0"
        outcome = import_table(tmp_path, pa.table({"problem": [*problems, "none"], "answer": column}))
        assert outcome.answers == [*written, None]
        assert "no single reference answer in row 9" in outcome.said


def test_digits_of_a_number_in_json_are_kept(tmp_path: Path) -> None:
    digits = "3.14159265358979323846264338327950288"
    text = f'{{"problem": "p", "answer": {digits}}}\n{{"problem": "q", "answer": {"9" * 5000}}}\n'
    assert import_text(tmp_path, "rows.jsonl", text).answers == [digits, "9" * 5000]


def test_integers_beside_nulls_decimals_booleans_and_dates_are_text(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 5, 1)
    columns = {
        "25": pa.array([25.0, None]),
        "0.50": pa.array([Decimal("0.50"), None]),
        "7": pa.array([Decimal("7.00"), None]),
        "True": pa.array([True, None]),
        "2024-05-01": pa.array([day, None]),
        "9007199254740993": pa.array([2**53 + 1, None]),
    }
    for text, column in columns.items():
        table = pa.table({"problem": ["p", "q"], "answer": column})
        assert import_table(tmp_path, table).answers == [text, None]


def test_floats_inside_of_structures_and_maps_keep_their_digits_too(tmp_path: Path) -> None:
    inner = pa.struct([("value", pa.float32()), ("list", pa.list_(pa.float32()))])
    made = pa.array([{"value": 0.1, "list": [0.2, 0.3]}, None], inner)
    pairs = pa.array([[("value", "x")], None], pa.map_(pa.string(), pa.string()))
    table = pa.table({"problem": ["p", "q"], "made": made, "pairs": pairs})
    for path, answer in (("made.value", "0.1"), ("made.list", "0.2, 0.3"), ("pairs.value", "x")):
        assert import_table(tmp_path, table, "--map", f"answer={path}").answers == [answer, None]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (["1", "2"], "1, 2"),
        ([3], "3"),
        ([1.5, 2.0], "1.5, 2"),
        (["$x$", "$y$"], "x, y"),
        (["$x$"], "$x$"),
        (["1,000", "2"], "1000, 2"),
        ([[1, 2], [3, 4]], "(1, 2), (3, 4)"),
        (["5", None, ""], "5"),
        ('["1", "2"]', "1, 2"),
        ("['$2$']", "$2$"),
        (r'["\nu", "\frac{1}{2}"]', r"\nu, \frac{1}{2}"),
        (json.dumps([r"\pi", "é"]), r"\pi, é"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_lists_are_joined_as_answers_are_written(tmp_path: Path, answer: Any, text: str) -> None:
    assert import_rows(tmp_path, [{"problem": "p", "answer": answer}]).answers == [text]


def test_bytes_are_decoded_or_their_row_is_left_out_and_counted(tmp_path: Path) -> None:
    table = pa.table({"problem": [b"p", "ü".encode()], "answer": ["½".encode(), b"\xff\xfe"]})
    outcome = import_table(tmp_path, table)
    assert (outcome.only.problem, outcome.answers) == ("p", ["½"])
    assert "left out: 1 unreadable row, the first: row 2: b'\\xff\\xfe' is bytes that are not UTF-8" in (outcome.said)


# Columns


@pytest.mark.parametrize(
    "header", ["problem, Answer ", " Problem ,Ground Truth", "PROBLEM,final-answer", "problem,reference answer"]
)
def test_headers_are_found_with_other_case_spaces_and_hyphens(tmp_path: Path, header: str) -> None:
    outcome = import_text(tmp_path, "rows.csv", f"{header}\np,5\n")
    assert (outcome.only.problem, outcome.answers) == ("p", ["5"])


@pytest.mark.parametrize("column", ["final_answer", "ground_truth"])
@pytest.mark.parametrize("empty", ["", " ", "nan", "NaN", "null", "None", "n/a", None, float("nan"), []])
def test_the_filled_one_of_several_answers_is_taken(tmp_path: Path, column: str, empty: Any) -> None:
    for row in ({"answer": empty, column: "5"}, {"answer": "5", column: empty}, {column: "5"}):
        outcome = import_rows(tmp_path, [{"problem": "p", **row}])
        assert (outcome.answers, len(outcome.said.splitlines())) == (["5"], 1)


def test_none_is_an_answer_where_it_is_all_there_is(tmp_path: Path) -> None:
    assert import_rows(tmp_path, [{"problem": "p", "answer": "None"}]).answers == ["None"]


def test_answers_that_differ_are_said_with_a_count(tmp_path: Path) -> None:
    rows = [{"problem": p, "answer": a, "final_answer": "6"} for p, a in (("p", "6"), ("q", "7"), ("r", "8"))]
    outcome = import_rows(tmp_path, rows)
    assert outcome.answers == ["6", "6", "6"]
    assert "took the answer in 'final_answer' where another one stands in 'answer': 2 rows (2, 3)" in (outcome.said)


def test_of_a_worked_solution_and_an_answer_beside_it_each_becomes_what_it_is(tmp_path: Path) -> None:
    worked = "First add 2 and 2, which gives 4. Then double it. So the total comes to eight."
    for row in ({"ground_truth": worked, "answer": "8"}, {"answer": worked, "final_answer": "8"}):
        problem = import_rows(tmp_path, [{"problem": "p", **row}]).only
        assert (problem.reference_answer, problem.reference_solution) == ("8", worked)


def test_a_column_that_stands_twice_gives_its_filled_cell_and_a_contradiction_is_counted(tmp_path: Path) -> None:
    rows = [("p", "", "5"), ("q", "6", ""), ("r", "7", "7"), ("s", "8", "9")]
    text = "problem,answer,answer\n" + "".join(f"{','.join(row)}\n" for row in rows)
    names = ["problem", "answer", "answer"]
    table = pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=names)
    lines = "".join(f'{{"problem": "{p}", "answer": "{a}", "answer": "{b}"}}\n' for p, a, b in rows)
    for outcome in (
        import_text(tmp_path, "rows.csv", text),
        import_table(tmp_path, table),
        import_text(tmp_path, "rows.jsonl", lines),
    ):
        assert outcome.answers == ["5", "6", "7"]
        assert "left out: 1 unreadable row, the first: row 4: 'answer' occurs twice, with '8' and '9'" in (outcome.said)


def test_answers_in_two_spellings_of_one_name_that_differ_are_said_too(tmp_path: Path) -> None:
    outcome = import_text(tmp_path, "rows.csv", "problem,answer, Answer \np,5,5\nq,,6\nr,7,8\n")
    assert outcome.answers == ["5", "6", "7"]
    assert "took the answer in 'answer' where another one stands in ' Answer ': row 3" in outcome.said


def test_a_repeated_problem_gives_the_answer_that_the_first_one_lacks(tmp_path: Path) -> None:
    rows = [{"problem": "p"}, {"problem": "p", "answer": "1"}, {"problem": "p", "answer": "2"}]
    outcome = import_rows(tmp_path, rows)
    assert outcome.answers == ["1"]
    assert "2 duplicates" in outcome.said
    assert "left out the answer of a repeated problem that differs from the first one: row 3" in outcome.said


# Damage


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("\frac{1}{2}", r"\frac{1}{2}"),
        ("\boxed{3}", "3"),
        ("12\text{ cm}", r"12\text{ cm}"),
        ("2\times 10^3", r"2\times 10^3"),
        ("\tan(x)", r"\tan(x)"),
        ("(1,2\right)", r"(1,2\right)"),
        ("x\neq 3", r"x\neq 3"),
        ("\alpha", r"\alpha"),
        ("\vec{a}", r"\vec{a}"),
        ("\beta+\theta", r"\beta+\theta"),
    ],
)
def test_a_backslash_that_became_a_control_character_is_put_back_and_said(
    tmp_path: Path, damaged: str, whole: str
) -> None:
    outcome = import_rows(tmp_path, [{"problem": "p", "answer": damaged}])
    assert outcome.answers == [whole]
    assert "put back the backslashes that had become control characters: row 1" in outcome.said


def test_problems_and_solutions_are_mended_too_and_prose_after_a_tab_or_a_line_is_not(tmp_path: Path) -> None:
    prose = "See\neq. 5,\tan apple,\tau revoir.\r\nNext line."
    rows = [
        {"problem": "What is $\frac12$?", "solution": "\text{half}", "answer": "1"},
        {"problem": prose, "solution": prose, "answer": "1"},
    ]
    first, second = import_rows(tmp_path, rows, "--preset", "math").problems or []
    assert (first.problem, first.reference_solution) == (r"What is $\frac12$?", r"\text{half}")
    assert (second.problem, second.reference_solution) == (prose, prose)


def test_a_control_character_that_cannot_be_mended_leaves_its_row_out_and_is_said(tmp_path: Path) -> None:
    rows = [{"problem": "p", "answer": "1"}, {"problem": "q", "answer": "1\x00"}, {"problem": "r", "answer": "\x08"}]
    outcome = import_rows(tmp_path, rows)
    assert outcome.answers == ["1"]
    assert "2 unreadable rows, the first: row 2: the reference answer has the control character U+0000" in (
        outcome.said
    )


# No answer

WORKED = "We add 2 and 2 and get 4. Then two more are added, and that makes six in the end. A: 6"


@pytest.mark.parametrize(
    "rows",
    [
        [{"problem": "p", "reply": "5"}],
        [{"problem": "p", "answer": ""}, {"problem": "q", "answer": None}],
        [{"problem": "p", "answer": "nan"}],
        [{"problem": "p", "answer": WORKED}],
    ],
)
def test_a_set_of_mathematics_without_any_reference_answer_is_refused_unless_that_is_meant(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    line = refused(import_rows(tmp_path, rows))
    assert "no reference answer" in line
    assert "--map reference_answer=COLUMN" in line
    assert "--no-answers" in line
    allowed = import_rows(tmp_path, rows, "--no-answers")
    assert (allowed.code, len(allowed.problems or [])) == (0, len(rows))


def test_rows_without_one_answer_are_kept_and_named(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "answer": a} for i, a in enumerate(["5", "", WORKED, "6"])]
    outcome = import_rows(tmp_path, rows)
    assert (outcome.code, outcome.answers) == (0, ["5", None, WORKED, "6"])
    assert "no single reference answer in 2 rows (2, 3)" in outcome.said


def test_code_needs_no_reference_answer(tmp_path: Path) -> None:
    tests = {"inputs": ["1"], "outputs": ["1"]}
    assert import_rows(tmp_path, [{"problem": "p", "tests": tests}], "--task", "code").code == 0


@pytest.mark.parametrize("column", ["ground_truth", "answer"])
def test_a_column_that_is_mapped_to_the_tests_is_no_answer(tmp_path: Path, column: str) -> None:
    rows = [{"prompt": "p", column: {"inputs": ["1"], "outputs": ["1"]}}]
    options = ("--task", "code", "--map", f"problem=prompt,tests={column}")
    problem = import_rows(tmp_path, rows, *options).only
    assert (problem.task, problem.reference_answer) == ("code", None)
    assert verdict(problem, "print(input())") == "correct"


def test_rows_of_code_without_tests_are_named(tmp_path: Path) -> None:
    cases = [[], [{"input": "1", "output": "1"}], None, "nan"]
    rows = [{"problem": f"p{i}", "tests": tests} for i, tests in enumerate(cases)]
    outcome = import_rows(tmp_path, rows, "--preset", "deepcoder")
    assert (outcome.code, len(outcome.problems or [])) == (0, 4)
    assert "no tests in 3 rows (1, 3, 4)" in outcome.said


def test_the_answer_of_a_worked_solution_is_taken_and_the_solution_kept(tmp_path: Path) -> None:
    hashed, boxed = "Two and two.\n#### 4", r"Two and two are $\boxed{4}$."
    rows = [{"problem": "p", "answer": hashed}, {"problem": "q", "solution": boxed}]
    outcome = import_rows(tmp_path, rows)
    assert [(p.reference_answer, p.reference_solution) for p in outcome.problems or []] == [("4", hashed), ("4", boxed)]
    assert "took the answer out of the worked solution: 2 rows (1, 2)" in outcome.said


def test_the_real_training_set_says_which_rows_have_no_answer_and_which_were_mended() -> None:
    path = DATA / "train" / "math.json"
    if not path.is_file():
        pytest.skip("train/math.json is not in the data folder (set TRD_DATA)")
    from trd_cli.config.commands import ImportConfig
    from trd_cli.datasets.importing import import_problems

    imported = import_problems(ImportConfig(file=str(path), out="unused", preset="math"))
    assert list(imported.unanswered) == [887, 1010, 5329, 5331]
    assert imported.remarks == ("put back the backslashes that had become control characters: row 5320",)
