"""Problem sets: the arithmetic generator, and imports from files. The Hub itself is not reached here."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_cli.config.commands import ImportConfig
from trd_cli.datasets.arithmetic import LEVELS, capacity, make_arithmetic
from trd_cli.datasets.importing import PRESETS, Imported, import_problems
from trd_cli.datasets.make import import_
from trd_cli.errors import InputError
from trd_cli.progress import SilentProgress
from trd_cli.records import Problem, content_hash
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import write_problems

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TRD_DATA", REPOSITORY.parent / "shared" / "data"))
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
RESULT = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


def texts(problems: Sequence[Problem]) -> list[str]:
    return [problem.problem for problem in problems]


def import_file(path: Path, **options: Any) -> Imported:
    return import_problems(ImportConfig(file=str(path), out="unused.parquet", **options))


def import_rows(folder: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Imported:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return import_file(path, **options)


def only(imported: Imported) -> Problem:
    (problem,) = imported.problems
    return problem


def parsed_tests(problem: Problem) -> Any:
    assert problem.tests is not None
    return json.loads(problem.tests)


def real(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not in the data folder (set TRD_DATA)")
    return DATA / name


# Arithmetic


@pytest.mark.parametrize("level", LEVELS)
def test_every_worked_solution_takes_level_right_steps_to_the_answer(level: int) -> None:
    for problem in make_arithmetic(500, seed=3, level=level):
        steps = EQUATION.findall(problem.reference_solution or "")
        assert len(steps) == level
        for a, sign, b, result in steps:
            assert RESULT[sign](int(a), int(b)) == int(result) >= 2
        assert problem.reference_answer == steps[-1][-1]
        assert (problem.reference_solution or "").endswith(f"The answer is \\boxed{{{problem.reference_answer}}}.")


@pytest.mark.parametrize("level", LEVELS)
def test_the_numbers_of_the_story_are_the_numbers_the_steps_start_from(level: int) -> None:
    for problem in make_arithmetic(500, seed=4, level=level):
        steps = EQUATION.findall(problem.reference_solution or "")
        operands = [number for a, _, b, _ in steps for number in (a, b)]
        for result in (step[-1] for step in steps[:-1]):
            operands.remove(result)
        assert sorted(re.findall(r"\d+", problem.problem)) == sorted(operands)


@pytest.mark.parametrize("level", LEVELS)
def test_arithmetic_is_the_same_for_the_same_seed_and_a_smaller_set_is_the_head_of_a_larger_one(level: int) -> None:
    large = make_arithmetic(400, seed=5, level=level)
    assert make_arithmetic(400, seed=5, level=level) == large
    assert make_arithmetic(150, seed=5, level=level) == large[:150]


def test_arithmetic_does_not_change_between_versions() -> None:
    digests = {level: content_hash(texts(make_arithmetic(50, seed=0, level=level)), 8) for level in LEVELS}
    assert digests == {1: "348ce3d2", 2: "db4b1ffb", 3: "aac74b47"}


@pytest.mark.parametrize("level", LEVELS)
def test_all_problems_of_a_set_differ_and_their_ids_follow_from_their_texts(level: int) -> None:
    problems = make_arithmetic(3000, seed=6, level=level)
    assert len(set(texts(problems))) == len({p.problem_id for p in problems}) == 3000
    assert all(p.problem_id == f"arithmetic-{content_hash(p.problem, 16)}" for p in problems)
    assert {(p.source, p.task, p.tests) for p in problems} == {("arithmetic", "math", None)}


@pytest.mark.parametrize("level", LEVELS)
def test_two_seeds_share_next_to_nothing(level: int) -> None:
    first, second = (set(texts(make_arithmetic(1000, seed=seed, level=level))) for seed in (7, 8))
    assert len(first & second) <= 3


@pytest.mark.parametrize(("level", "operations"), [(1, "+-"), (2, "+-*/")])
def test_a_set_uses_each_operation_of_its_level_about_equally_often(level: int, operations: str) -> None:
    problems = make_arithmetic(1000, seed=9, level=level)
    signs = [EQUATION.findall(p.reference_solution or "")[0][1] for p in problems]
    assert set(signs) == set(operations)
    assert all(0.7 < signs.count(sign) * len(operations) / 1000 < 1.3 for sign in operations)


def test_numbers_stay_small() -> None:
    problems = make_arithmetic(1000, seed=9, level=1)
    assert all(2 <= int(number) <= 60 for p in problems for number in re.findall(r"\d+", p.problem))


def test_stories_leave_no_placeholder_and_are_plain_sentences() -> None:
    for problem in make_arithmetic(2000, seed=10, level=3):
        assert not re.search(r"[{}]|  ", problem.problem)
        assert re.fullmatch(r"([A-Z][^.?]*\. )+How many [^.?]*\?", problem.problem)


def test_more_problems_than_there_are_is_refused_at_once() -> None:
    most = capacity(1)
    with pytest.raises(InputError, match=f"at most {most}"):
        make_arithmetic(most + 1, seed=0, level=1)


@pytest.mark.parametrize(("n", "level", "names"), [(10, 0, "level 0"), (10, 4, "level 4"), (0, 1, "0 arithmetic")])
def test_arithmetic_that_cannot_be_made_is_refused(n: int, level: int, names: str) -> None:
    with pytest.raises(InputError, match=names):
        make_arithmetic(n, seed=0, level=level)


# Presets


def test_gsm8k_answers_are_split_and_cleaned(tmp_path: Path) -> None:
    answer = "He has 500*2 = <<500*2=1000>>1,000 and <<1000+1=1001>>one more.\nIn all 1,001.\n#### 1,001"
    problem = only(import_rows(tmp_path, [{"question": "How much?", "answer": answer}], preset="gsm8k"))
    assert problem == Problem(
        problem_id=f"gsm8k-{content_hash('How much?', 16)}",
        source="gsm8k",
        task="math",
        problem="How much?",
        reference_answer="1001",
        reference_solution="He has 500*2 = 1,000 and one more.\nIn all 1,001.",
    )


def test_a_gsm8k_answer_without_its_mark_leaves_the_row_out_and_says_so(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "two"}]
    imported = import_rows(tmp_path, rows, preset="gsm8k")
    assert texts(imported.problems) == ["a"]
    assert imported.unreadable == ("row 2: the answer has no '####' before its number",)


def test_math_rows_need_no_solution_and_may_lack_an_answer(tmp_path: Path) -> None:
    rows = [{"problem": "a", "answer": "025", "solution": "s"}, {"problem": "b", "answer": None}]
    imported = import_rows(tmp_path, rows, preset="math")
    assert [(p.reference_answer, p.reference_solution) for p in imported.problems] == [("025", "s"), (None, None)]


def test_deepscaler_rows_carry_answer_and_solution(tmp_path: Path) -> None:
    problem = only(import_rows(tmp_path, [{"problem": "p", "answer": "-2/3", "solution": ""}], preset="deepscaler"))
    assert (problem.source, problem.reference_answer, problem.reference_solution) == ("deepscaler", "-2/3", None)


@pytest.mark.parametrize("solutions", [json.dumps(["print(1)", "print(2)"]), ["print(1)", "print(2)"], "print(1)"])
def test_the_first_taco_solution_is_the_reference(tmp_path: Path, solutions: Any) -> None:
    row = {"question": "q", "solutions": solutions, "starter_code": "", "input_output": ""}
    problem = only(import_rows(tmp_path, [row], preset="taco"))
    assert (problem.task, problem.problem, problem.reference_solution, problem.tests) == ("code", "q", "print(1)", None)


def test_taco_starter_code_is_part_of_the_problem_and_a_function_name_makes_call_tests(tmp_path: Path) -> None:
    tests = json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]})
    row = {"question": "Add.", "solutions": "[]", "starter_code": "def add(a, b):", "input_output": tests}
    problem = only(import_rows(tmp_path, [row], preset="taco"))
    assert problem.problem.startswith("Add.\n\n")
    assert "```python\ndef add(a, b):\n```" in problem.problem
    assert problem.reference_solution is None
    assert parsed_tests(problem) == {"kind": "call", "fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}


def test_taco_stdin_tests_given_as_lists_of_lines_become_texts(tmp_path: Path) -> None:
    tests = json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", 7]})
    problem = only(import_rows(tmp_path, [{"question": "q", "solutions": "[]", "input_output": tests}], preset="taco"))
    assert parsed_tests(problem) == {"kind": "stdin", "inputs": ["1 2\n", "3\n4"], "outputs": ["3\n", "7"]}


def test_taco_tests_with_integers_beyond_pythons_limit_are_kept(tmp_path: Path) -> None:
    digits = "9" * 5000
    tests = f'{{"fn_name": "f", "inputs": [[{digits}]], "outputs": [[1]]}}'
    limit = sys.get_int_max_str_digits()
    problem = only(import_rows(tmp_path, [{"question": "q", "solutions": "[]", "input_output": tests}], preset="taco"))
    assert digits in (problem.tests or "")
    assert sys.get_int_max_str_digits() == limit


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ('{"inputs": ["1"', "tests are not JSON"),
        ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
        ('{"cases": 3}', "the keys cases"),
        ("[1, 2]", "tests are a list"),
    ],
)
def test_a_row_whose_tests_cannot_be_understood_is_left_out_with_its_reason(
    tmp_path: Path, tests: str, reason: str
) -> None:
    rows = [{"question": q, "solutions": "[]", "input_output": t} for q, t in [("good", "{}"), ("bad", tests)]]
    imported = import_rows(tmp_path, rows, preset="taco")
    assert texts(imported.problems) == ["good"]
    (line,) = imported.unreadable
    assert line.startswith("row 2: ")
    assert reason in line


def test_broken_taco_solutions_are_not_taken_for_a_solution(tmp_path: Path) -> None:
    rows = [{"question": q, "solutions": s, "input_output": ""} for q, s in [("a", '["x"]'), ("b", '["x", "tor')]]
    imported = import_rows(tmp_path, rows, preset="taco")
    assert texts(imported.problems) == ["a"]
    assert "row 2: solutions are not a JSON list" in imported.unreadable[0]


def test_leetcode_tests_are_functional_code(tmp_path: Path) -> None:
    row = {"problem": "p", "solutions": "class Solution: ...", "tests": {"functional": "check(Solution())"}}
    problem = only(import_rows(tmp_path, [row], preset="leetcode"))
    assert (problem.task, problem.reference_solution) == ("code", "class Solution: ...")
    assert parsed_tests(problem) == {"kind": "functional", "code": "check(Solution())"}


@pytest.mark.parametrize("keys", [("inputs", "outputs"), ("input", "output")])
def test_code_contests_tests_are_stdin_and_there_is_no_reference(tmp_path: Path, keys: tuple[str, str]) -> None:
    row = {"problem": "p", "tests": dict(zip(keys, (["1\n"], ["2\n"]), strict=True))}
    problem = only(import_rows(tmp_path, [row], preset="code_contests"))
    assert (problem.task, problem.reference_answer, problem.reference_solution) == ("code", None, None)
    assert parsed_tests(problem) == {"kind": "stdin", "inputs": ["1\n"], "outputs": ["2\n"]}


def test_every_preset_of_the_command_is_there() -> None:
    annotation = str(ImportConfig.model_fields["preset"].annotation)
    assert all(f"'{name}'" in annotation for name in PRESETS)
    assert annotation.count("'") == 2 * len(PRESETS)


# Columns, values, identity


def test_a_map_names_the_columns_and_wins_over_the_preset(tmp_path: Path) -> None:
    row = {"q": "p", "answer": "1", "final": 2, "why": "w"}
    names = ["problem=q", "reference_answer=final", "reference_solution=why"]
    problem = only(import_rows(tmp_path, [row], preset="deepscaler", map=names))
    assert (problem.problem, problem.reference_answer, problem.reference_solution) == ("p", "2", "w")


def test_without_a_preset_columns_named_like_fields_are_taken(tmp_path: Path) -> None:
    row = {"problem": "p", "reference_answer": "1", "source": "s", "task": "code", "problem_id": 7, "other": "x"}
    problem = only(import_rows(tmp_path, [row]))
    assert problem == Problem("s-7", "s", "code", "p", "1")


def test_the_options_source_and_task_win_over_columns_of_those_names(tmp_path: Path) -> None:
    row = {"problem": "p", "source": "column", "task": "code"}
    problem = only(import_rows(tmp_path, [row], source="option", task="math"))
    assert (problem.source, problem.task) == ("option", "math")


def test_the_source_is_the_files_name_when_nothing_else_says_it(tmp_path: Path) -> None:
    assert only(import_rows(tmp_path, [{"problem": "p"}])).source == "rows"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (25, "25"),
        (25.0, "25"),
        (0.5, "0.5"),
        (-3, "-3"),
        ("025", "025"),
        (None, None),
        ("", None),
        (" \n", None),
        (float("nan"), None),
        (float("inf"), "inf"),
        (["1", "2"], "1, 2"),
        ("\ud83d half", "\ufffd half"),
    ],
)
def test_values_become_texts(tmp_path: Path, value: Any, text: str | None) -> None:
    imported = import_rows(tmp_path, [{"problem": "p", "reference_answer": value}])
    assert only(imported).reference_answer == text


def test_rows_without_a_problem_are_skipped_and_repeated_ones_dropped_and_both_counted(tmp_path: Path) -> None:
    rows = [
        {"problem": p, "reference_answer": a} for p, a in [("a", 1), ("", 2), ("a", 3), ("b", 4), (None, 5), ("a", 6)]
    ]
    imported = import_rows(tmp_path, rows)
    assert [(p.problem, p.reference_answer) for p in imported.problems] == [("a", "1"), ("b", "4")]
    assert (imported.duplicates, imported.skipped, imported.unreadable) == (2, 2, ())


def test_an_unknown_task_leaves_the_row_out(tmp_path: Path) -> None:
    imported = import_rows(tmp_path, [{"problem": "a", "task": "math"}, {"problem": "b", "task": "po etry"}])
    assert imported.unreadable == ("row 2: task 'po etry' is no name: letters, digits, - and _",)


def test_one_id_for_two_different_problems_is_refused(tmp_path: Path) -> None:
    rows = [{"problem": "a", "kind": "x"}, {"problem": "b", "kind": "x"}]
    with pytest.raises(
        InputError, match=r"two different problems have the id 'rows-x'.*map problem_id to another column"
    ):
        import_rows(tmp_path, rows, map=["problem_id=kind"])


def test_shuffling_is_deterministic_and_the_limit_comes_after_it(tmp_path: Path) -> None:
    rows = [{"problem": str(i)} for i in range(100)]
    plain = texts(import_rows(tmp_path, rows).problems)
    shuffled = texts(import_rows(tmp_path, rows, shuffle_seed=1).problems)
    assert plain == [str(i) for i in range(100)]
    assert sorted(shuffled) == sorted(plain)
    assert shuffled != plain
    assert shuffled != texts(import_rows(tmp_path, rows, shuffle_seed=2).problems)
    assert texts(import_rows(tmp_path, rows, shuffle_seed=1, limit=10).problems) == shuffled[:10]
    assert texts(import_rows(tmp_path, rows, limit=10).problems) == plain[:10]


def test_a_set_of_many_row_groups_is_the_one_that_a_list_would_make(tmp_path: Path) -> None:
    """The last 1,000 rows repeat the first ones; some bring the answer that the first one lacks."""
    rows = [{"id": f"{n % 11_000}", "problem": f"p {n % 11_000}"} for n in range(12_000)]
    for n in range(0, 12_000, 7):
        rows[n]["answer"] = str(n)
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_(ImportConfig(file=str(path), out=str(tmp_path / "set.parquet"), shuffle_seed=4), SilentProgress())

    answers: dict[str, str] = {}
    for row in rows:
        if "answer" in row:
            answers.setdefault(row["id"], row["answer"])
    names = list(dict.fromkeys(row["id"] for row in rows))
    chance = random.Random(4)
    names.sort(key=lambda _: chance.random())
    found = read_problems(tmp_path / "set.parquet")
    assert [(p.problem_id, p.reference_answer) for p in found] == [(f"many-{n}", answers.get(n)) for n in names]
    assert pq.read_metadata(tmp_path / "set.parquet").num_row_groups > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.jsonl", "set.parquet"]


def test_written_sets_read_back_and_import_again_unchanged(tmp_path: Path) -> None:
    row = {
        "question": "ß ∑ 😀",
        "solutions": '["x"]',
        "starter_code": "def f():",
        "input_output": '{"inputs": ["1"], "outputs": ["2"]}',
    }
    code = import_rows(tmp_path, [row], preset="taco").problems
    for problems in (code, make_arithmetic(50, seed=1, level=2)):
        path = tmp_path / "set.parquet"
        write_problems(path, problems)
        assert read_problems(path) == list(problems)
        assert list(import_file(path).problems) == list(problems)


# Files

ROWS = [{"problem": 'a, "b"\nc', "reference_answer": "007"}, {"problem": "ü", "reference_answer": "8"}]


def write_jsonl_gz(path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(row) for row in ROWS))


def write_csv(path: Path) -> None:
    path.write_text('problem,reference_answer\r\n"a, ""b""\nc",007\r\nü,8\r\n', encoding="utf-8", newline="")


WRITERS = {
    "plain.jsonl": lambda path: path.write_text("\n\n".join(json.dumps(row) for row in ROWS)),
    "with-bom.jsonl": lambda path: path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8-sig"),
    "zipped.jsonl.gz": write_jsonl_gz,
    "list.json": lambda path: path.write_text(json.dumps(ROWS)),
    "object.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "table.csv": write_csv,
    "table.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format_gives_the_same_problems(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    problems = import_file(tmp_path / name, source="s").problems
    assert [(p.problem, p.reference_answer) for p in problems] == [('a, "b"\nc', "007"), ("ü", "8")]


def test_a_csv_cell_may_be_longer_than_pythons_default_limit(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(f"problem\n{'x' * 200_000}\n")
    assert len(only(import_file(tmp_path / "long.csv")).problem) == 200_000


BAD_FILES = {
    "unknown suffix": ("set.txt", b"x", r"the suffix '\.txt'; expected one of \.jsonl"),
    "broken line": ("set.jsonl", b'{"problem": "a"}\n\n{"problem": \n', r"set\.jsonl, line 3: not JSON"),
    "line of another kind": ("set.jsonl", b'{"problem": "a"}\n[1]\n', r"line 2: a list, not an object"),
    "latin-1": ("set.jsonl", b'{"problem": "\xe9"}\n', r"could not be read.*UTF-8"),
    "not gzip": ("set.jsonl.gz", b'{"problem": "a"}\n', r"could not be read \(Not a gzipped file"),
    "cut gzip": ("set.jsonl.gz", gzip.compress(b'{"problem": "a"}\n' * 99, mtime=0)[:40], r"could not be read"),
    "not JSON": ("set.json", b'{"a": 1}\n{"a": 2}', r"set\.json is not JSON.*name it \.jsonl"),
    "number": ("set.json", b"3", r"holds a int"),
    "two lists": ("set.json", b'{"a": [], "b": []}', r"holds 2 lists in an object"),
    "list of numbers": ("set.json", b'[{"problem": "a"}, 4]', r"row 2: a int, not an object"),
    "ragged CSV": ("set.csv", b"problem,answer\na,1\nb\n", r"line 3: 1 cells under 2 columns"),
    "open quote": ("set.csv", b'problem\n"a\n', r"set\.csv, line 2: unexpected end"),
    "not Parquet": ("set.parquet", b"PAR1 is how it should begin and end", r"could not be read"),
    "no rows": ("set.jsonl", b"\n", r"has no rows"),
    "no rows of CSV": ("set.csv", b"problem\n", r"has no rows"),
    "empty problems": ("set.jsonl", b'{"problem": ""}\n', r"gives no problem \(1 row without a problem text\)"),
    "unreadable only": (
        "set.jsonl",
        b'{"problem": "a", "tests": "x"}\n',
        r"gives no problem \(row 1: tests are not JSON",
    ),
    "no such column": (
        "set.jsonl",
        b'{"question": "a", "answer": 1}\n',
        r"no column 'problem' \(its columns: question, answer\).*--map problem=COLUMN",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        import_file(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(InputError, match=r"no such file: data/gsm8k\.jsonl"):
        import_file(Path("data/gsm8k.jsonl"))


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        import_file(tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_on_another_sets_columns_lists_the_columns_there_are(tmp_path: Path, preset: str) -> None:
    with pytest.raises(InputError, match=r"no column .* \(its columns: prompt, response\)"):
        import_rows(tmp_path, [{"prompt": "a", "response": "b"}], preset=preset)


def test_a_map_to_a_field_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--map reply=x; expected one of the fields problem, reference_answer"):
        import_rows(tmp_path, [{"problem": "a"}], map=["reply=x"])


def test_a_map_to_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'x' \(its columns: problem\).*for reference_answer"):
        import_rows(tmp_path, [{"problem": "a"}], map=["reference_answer=x"])


# The Hub, as far as it can be seen from here


def import_in_new_process(before: str, **environment: str) -> str:
    code = f"""{before}
from trd_cli.config.commands import ImportConfig
from trd_cli.datasets.importing import import_problems
from trd_cli.errors import InputError
from trd_cli.progress import SilentProgress
try:
    import_problems(ImportConfig(file="openai/gsm8k", out="x", preset="gsm8k"))
except InputError as error:
    print(error)
"""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_hub_that_cannot_be_reached_is_one_clear_line(tmp_path: Path) -> None:
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the package datasets is not installed")
    printed = import_in_new_process("", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert printed.startswith("'openai/gsm8k' is no file here and the Hub did not give it (")
    assert printed.count("\n") == 1


def test_a_hub_set_without_the_datasets_package_says_what_to_install() -> None:
    assert "pip install datasets" in import_in_new_process("import sys; sys.modules['datasets'] = None")


# Real sets


def test_gsm8k_imports_whole_with_an_integer_and_clean_steps_in_every_row() -> None:
    imported = import_file(real("train/gsm8k.jsonl"), preset="gsm8k")
    assert (len(imported.problems), imported.duplicates, imported.skipped, imported.unreadable) == (7473, 0, 0, ())
    assert imported.problems[0].reference_answer == "72"
    assert all(re.fullmatch(r"-?\d+", p.reference_answer or "") for p in imported.problems)
    assert not any("<<" in (p.reference_solution or "<<") for p in imported.problems)


@pytest.mark.parametrize(
    ("name", "preset", "rows", "kind"),
    [
        ("train/math.json", "math", 7474, None),
        ("train/leetcode.json", "leetcode", 1889, "functional"),
        ("train/code_contests.json", "code_contests", 165, "stdin"),
    ],
)
def test_real_training_sets_import_whole_and_round_trip(
    tmp_path: Path, name: str, preset: str, rows: int, kind: str | None
) -> None:
    imported = import_file(real(name), preset=preset)
    assert (len(imported.problems), imported.duplicates, imported.skipped, imported.unreadable) == (rows, 0, 0, ())
    assert {parsed_tests(p)["kind"] if p.tests else None for p in imported.problems} == {kind}
    write_problems(tmp_path / "set.parquet", imported.problems)
    assert read_problems(tmp_path / "set.parquet") == list(imported.problems)


@pytest.mark.parametrize(
    ("name", "columns", "rows", "first_answer"),
    [
        ("aime24", ["reference_answer=answer", "problem_id=id"], 30, "204"),
        ("aime25", ["reference_answer=answer", "problem_id=id"], 30, "70"),
        ("hmmt25", ["reference_answer=answer", "problem_id=id"], 30, "103"),
        ("beyondaime", ["problem=question", "reference_answer=answer"], 100, None),
        ("amobench", ["problem=prompt", "reference_answer=answer", "problem_id=question_id"], 50, None),
        ("math500", ["reference_answer=answer", "reference_solution=solution", "problem_id=unique_id"], 500, None),
    ],
)
def test_real_benchmarks_import_by_a_column_map(
    name: str, columns: list[str], rows: int, first_answer: str | None
) -> None:
    imported = import_file(real(f"benchmarks/{name}.jsonl"), map=columns)
    assert len(imported.problems) == rows
    assert all(
        p.source == name and p.problem_id.startswith(f"{name}-") and p.reference_answer for p in imported.problems
    )
    assert first_answer in (None, imported.problems[0].reference_answer)
