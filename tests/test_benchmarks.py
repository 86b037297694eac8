"""Benchmarks by name: from a folder, from a Hub on this machine, and from users' files."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import pickle
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.hub import Hub

from trd_cli.datasets.benchmarks import Benchmark, load_benchmark, split_benchmarks
from trd_cli.datasets.known_sets import KNOWN
from trd_cli.datasets.livecodebench import REPOSITORY, REVISION
from trd_cli.datasets.math_sets import MATH_SETS
from trd_cli.errors import InputError
from trd_cli.graders import evalplus_tasks

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TRD_DATA", ROOT.parent / "shared" / "data"))
Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set TRD_DATA to the folder of real benchmarks and return it."""
    if not (DATA / "benchmarks").is_dir():
        pytest.skip("there is no folder of benchmarks (set TRD_DATA)")
    monkeypatch.setenv("TRD_DATA", str(DATA))
    return DATA / "benchmarks"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set TRD_DATA to an empty folder of benchmarks and return it."""
    monkeypatch.setenv("TRD_DATA", str(tmp_path))
    (tmp_path / "benchmarks" / "livecodebench").mkdir(parents=True)
    return tmp_path / "benchmarks"


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def refusal(name: str) -> str:
    with pytest.raises(InputError) as refused:
        load_benchmark(name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Real sets


@pytest.mark.parametrize(
    ("name", "size", "task"),
    [
        ("aime24", 30, "math"),
        ("aime25", 30, "math"),
        ("hmmt25", 30, "math"),
        ("beyondaime", 100, "math"),
        ("amobench", 39, "math"),
        ("math500", 500, "math"),
        ("gsm8k", 1319, "math"),
        ("humaneval+", 164, "code"),
        ("humaneval+:version=v0.1.9", 164, "code"),
        ("mbpp+", 378, "code"),
    ],
)
def test_a_real_set_has_its_size_and_the_content_trd_knows(data: Path, name: str, size: int, task: str) -> None:
    bench = load_benchmark(name)
    assert (len(bench.problems), bench.task, bench.known, bench.name) == (size, task, True, name)
    assert bench.source.startswith(str(data))
    assert {problem.source for problem in bench.problems} == {name}
    assert len({problem.problem_id for problem in bench.problems}) == size
    assert all(p.reference_answer if task == "math" else p.tests for p in bench.problems)
    assert (bench.temperature, bench.top_p, bench.top_k) == (0.6, 0.95, 20)
    assert bench.max_tokens == {"math": 38912, "code": 16384}[task]


@pytest.mark.parametrize(
    ("name", "number", "answer"),
    [
        ("aime24", 7, "025"),
        ("aime25", 0, "70"),
        ("hmmt25", 2, r"\frac{1}{576}"),
        ("math500", 0, r"\left( 3, \frac{\pi}{2} \right)"),
        ("gsm8k", 0, "18"),
        ("amobench", 3, r"\dfrac{(2+\sqrt{3})^{2^{2-n}}+(2-\sqrt{3})^{2^{2-n}}}{2}"),
        ("amobench", 37, "16"),
    ],
)
def test_reference_answers_are_as_published_without_their_wrapping(
    data: Path, name: str, number: int, answer: str
) -> None:
    assert load_benchmark(name).problems[number].reference_answer == answer


def test_arguments_of_a_call_that_are_no_list_are_refused(tmp_path: Path) -> None:
    row = {"problem": "add", "tests": {"fn_name": "add", "inputs": ["[1, 2]"], "outputs": [3]}}
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    assert "list of its arguments" in refusal(f"{tmp_path}/c.jsonl:code")


def test_amobench_leaves_out_descriptions_and_says_so(data: Path) -> None:
    bench = load_benchmark("amobench")
    assert any("11" in note and "description" in note for note in bench.notes)
    assert not any("After solving" in p.problem or "boxed" in p.problem for p in bench.problems)


def test_amobench_formulas_are_compared_at_points_and_sets_are_asked_for_by_their_elements(data: Path) -> None:
    problems = {p.problem_id: p for p in load_benchmark("amobench").problems}
    tests = {name: json.loads(p.tests) for name, p in problems.items()}
    rounded = [name for name, spec in tests.items() if spec == {"kind": "rounded", "digits": 4}]
    assert len(rounded) == 37
    assert {name: spec for name, spec in tests.items() if name not in rounded} == {
        "amobench-5": {"kind": "points", "variables": ["n"], "points": [[n] for n in range(1, 21)]},
        "amobench-37": {
            "kind": "points",
            "variables": ["a", "b", "c"],
            "points": [[n, n + 1, n + 2] for n in range(2, 19)],
        },
    }
    asked = {name for name, p in problems.items() if p.problem.endswith("listing all of its elements.")}
    assert asked == {"amobench-3", "amobench-7", "amobench-43"}


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize(("name", "dataset"), [("humaneval+", "humaneval"), ("mbpp+", "mbpp")])
def test_an_evalplus_problem_names_its_task_and_shows_its_prompt(
    data: Path, name: str, dataset: evalplus_tasks.Dataset
) -> None:
    version = evalplus_tasks.LATEST[dataset]
    tasks = evalplus_tasks.tasks(dataset, version)
    bench = load_benchmark(name)
    assert bench.revision == version
    for problem in bench.problems:
        tests = json.loads(problem.tests or "")
        task = tasks[tests["task_id"]]
        assert tests == {
            "kind": "evalplus",
            "dataset": dataset,
            "version": version,
            "task_id": problem.problem_id,
            "entry_point": task["entry_point"],
            "sha256": evalplus_tasks.task_sha256(task),
        }
        assert problem.problem.endswith(f"```python\n{task['prompt'].strip()}\n```")
        assert problem.reference_solution == task["prompt"] + task["canonical_solution"]
        compile(problem.reference_solution, problem.problem_id, "exec")


def test_two_editions_of_humaneval_differ_in_some_tasks_and_agree_in_most(data: Path) -> None:
    old, new = (evalplus_tasks.tasks("humaneval", version) for version in ("v0.1.9", "v0.1.10"))
    differing = sum(evalplus_tasks.task_sha256(old[name]) != evalplus_tasks.task_sha256(new[name]) for name in old)
    assert old.keys() == new.keys()
    assert 0 < differing < 82


def test_mbpp_inputs_have_the_types_that_json_does_not_have(data: Path) -> None:
    tasks = evalplus_tasks.tasks("mbpp", "v0.2.0")
    assert isinstance(tasks["Mbpp/2"]["base_input"][0][0], tuple)
    assert isinstance(tasks["Mbpp/252"]["base_input"][0][0], complex)


# The content hash

TASK = {
    "task_id": "Mbpp/1",
    "prompt": '"""Write f."""\n',
    "entry_point": "f",
    "canonical_solution": "def f(x): return x",
    "base_input": [[1]],
    "plus_input": [[[1, 2]]],
    "atol": 0,
    "contract": "",
}


@pytest.mark.parametrize(("one", "other"), [([(1, 2)], [[1, 2]]), ([{0, 8}], [{8, 0}]), ([1 + 2j], [complex(1, 2)])])
def test_a_task_has_one_hash_however_python_holds_its_inputs(one: list[Any], other: list[Any]) -> None:
    first, second = ({**TASK, "plus_input": [inputs]} for inputs in (one, other))
    assert evalplus_tasks.task_sha256(first) == evalplus_tasks.task_sha256(second)


@pytest.mark.parametrize(
    "change", [{"plus_input": [[[1, 3]]]}, {"base_input": [[1.0]]}, {"atol": 1e-6}, {"canonical_solution": "f = id"}]
)
def test_a_task_whose_verdicts_could_differ_has_another_hash(change: dict[str, Any]) -> None:
    assert evalplus_tasks.task_sha256({**TASK, **change}) != evalplus_tasks.task_sha256(TASK)


def test_what_no_verdict_depends_on_is_not_in_a_tasks_hash() -> None:
    assert evalplus_tasks.task_sha256({**TASK, "contract": "assert x"}) == evalplus_tasks.task_sha256(TASK)


def test_the_order_of_rows_does_not_change_the_content_hash(data: Path, folder: Path) -> None:
    lines = (data / "aime24.jsonl").read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (folder / "aime24.jsonl").write_text("".join(lines))
    assert load_benchmark("aime24").known is True


@pytest.mark.parametrize(("old", "new"), [('"answer":"204"', '"answer":"205"'), ("Every morning", "Each morning")])
def test_another_answer_or_text_is_not_refused_but_told(data: Path, folder: Path, old: str, new: str) -> None:
    text = (data / "aime24.jsonl").read_text()
    assert old in text
    (folder / "aime24.jsonl").write_text(text.replace(old, new))
    assert load_benchmark("aime24").known is False


# Sets that are not as they should be


def test_a_set_with_a_row_missing_is_refused(folder: Path) -> None:
    (folder / "aime25.jsonl").write_bytes(jsonl([{"id": i, "problem": f"p{i}", "answer": i} for i in range(29)]))
    assert "aime25.jsonl has 29 questions; expected 30" in refusal("aime25")


def test_a_set_with_a_question_twice_is_refused(folder: Path) -> None:
    (folder / "aime25.jsonl").write_bytes(jsonl([{"problem": f"p{i % 29}", "answer": i} for i in range(30)]))
    assert "one of them twice" in refusal("aime25")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("aime25", {"text": "p"}, "no column problem or question or prompt; it has text"),
        ("aime24", {"problem": "p", "solution": "it is 3"}, "no boxed answer in the solution"),
        ("gsm8k", {"question": "p", "answer": "3"}, "no '####'"),
        ("gsm8k", {"question": "p"}, "row 1 of"),
        ("amobench", {"question_id": 1, "answer_type": "number", "prompt": "p", "answer": "3"}, "instruction"),
    ],
)
def test_a_row_that_is_not_the_sets_is_refused_with_its_number(
    folder: Path, name: str, row: dict[str, Any], message: str
) -> None:
    (folder / f"{name}.jsonl").write_bytes(jsonl([row]))
    said = refusal(name)
    assert f"{name}, row 1 of " in said
    assert message in said


UNUSABLE = {
    "no archive": (b"no archive", "could not be read"),
    "half a line": (gzip.compress(b'{"task_id": ', mtime=0), "could not be read"),
    "a key missing": (
        gzip.compress(jsonl([{"task_id": "HumanEval/0", "prompt": "p"}]), mtime=0),
        "HumanEval/0 has no entry_point",
    ),
    "too few questions": (gzip.compress(jsonl([TASK]), mtime=0), "has 1 question; expected 164"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_evalplus_file_that_cannot_be_used_is_refused(folder: Path, case: str) -> None:
    content, message = UNUSABLE[case]
    (folder / "HumanEvalPlus.jsonl.gz").write_bytes(content)
    said = refusal("humaneval+")
    assert "HumanEvalPlus.jsonl.gz" in said
    assert message in said


def test_evalplus_own_variable_names_a_file_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").write_bytes(jsonl([{**TASK, "task_id": f"Mbpp/{i}"} for i in range(1000, 1378)]))
    monkeypatch.setenv("MBPP_OVERRIDE_PATH", str(tmp_path / "mine.jsonl"))
    bench = load_benchmark("mbpp+")
    assert (bench.source, bench.known) == (str(tmp_path / "mine.jsonl"), False)


def evalplus_in_new_process(name: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Load a set with EvalPlus's cache elsewhere, no folder of benchmarks, and a proxy that does not answer."""
    code = """
import sys
from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.errors import InputError
try:
    bench = load_benchmark(sys.argv[1])
    print(len(bench.problems), bench.revision, bench.known, bench.problems[0].tests)
except InputError as error:
    print(error)
"""
    without = ("TRD_DATA", "HUMANEVAL_OVERRIDE_PATH", "no_proxy", "NO_PROXY")
    variables = {k: v for k, v in os.environ.items() if k not in without}
    variables |= {"XDG_CACHE_HOME": str(cache), "https_proxy": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, name], env=variables, capture_output=True, text=True, check=True)


def test_evalplus_cache_gives_the_version_that_was_asked_for(data: Path, tmp_path: Path) -> None:
    (tmp_path / "evalplus").mkdir()
    for version, file in (("v0.1.9", "HumanEvalPlus-v0.1.9"), ("v0.1.10", "HumanEvalPlus")):
        content = gzip.decompress((data / f"{file}.jsonl.gz").read_bytes())
        (tmp_path / "evalplus" / f"HumanEvalPlus-{version}.jsonl").write_bytes(content)
    done = evalplus_in_new_process("humaneval+:version=v0.1.9", tmp_path)
    assert done.stdout.startswith("164 v0.1.9 True ")


def test_an_evalplus_set_that_cannot_be_downloaded_is_one_line_and_standard_output_stays_clean(tmp_path: Path) -> None:
    done = evalplus_in_new_process("humaneval+", tmp_path)
    assert done.stdout.startswith("HumanEvalPlus v0.1.10 could not be downloaded from https://github.com/")
    assert done.stdout.count("\n") == 1
    assert "Downloading" in done.stderr


# Names


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("AIME-24", "aime24"),
        ("aime2025", "aime25"),
        ("beyond-aime", "beyondaime"),
        ("AMO-Bench", "amobench"),
        ("MATH-500", "math500"),
        ("HumanEval_Plus", "humaneval+"),
        ("humanevalplus:version=0.1.9", "humaneval+:version=v0.1.9"),
        ("mbpp_plus", "mbpp+"),
        ("Arithmetic: n=3 , seed=1", "arithmetic:n=3,seed=1"),
    ],
)
def test_a_name_may_be_written_in_other_ways(data: Path, typed: str, name: str) -> None:
    assert load_benchmark(typed).name == name


def test_an_unknown_name_lists_all_and_the_closest() -> None:
    said = refusal("aime52")
    assert said.startswith("no benchmark 'aime52'; expected one of aime24, aime25, ")
    assert "(closest: aime25, aime24)" in said
    assert "closest: humaneval+)" in refusal("humanevl")
    assert "closest" not in refusal("zzz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aime24:n=3", "aime24:n=3: 'n=3'; expected revision="),
        ("arithmetic:n=many", "n=many; expected a whole number"),
        ("arithmetic:n", "'n'; expected n=, seed=, level="),
        ("humaneval+:version=latest", "version=latest; expected one of EvalPlus's"),
        ("livecodebench:from=soon", "from=soon; expected YYYY-MM-DD or YYYY-MM"),
        ("livecodebench:from=2025-03,to=2025-02", "from=2025-03-01 and to=2025-02-28"),
    ],
)
def test_a_wrong_option_is_refused_by_name(name: str, message: str) -> None:
    assert message in refusal(name)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("aime24,livecodebench:from=2025-02,to=2025-04", ["aime24", "livecodebench:from=2025-02,to=2025-04"]),
        ("own.jsonl:math,aime25", ["own.jsonl:math", "aime25"]),
        ("aime24,runs/lr=1/own.parquet", ["aime24", "runs/lr=1/own.parquet"]),
        ("arithmetic:n=5, seed=2", ["arithmetic:n=5, seed=2"]),
    ],
)
def test_names_are_split_at_the_commas_between_them(text: str, names: list[str]) -> None:
    assert split_benchmarks(text) == names


def test_arithmetic_is_made_from_its_options() -> None:
    small, other = load_benchmark("arithmetic:n=5,level=2"), load_benchmark("arithmetic:n=5,level=2,seed=3")
    assert (len(small.problems), small.max_tokens, small.known) == (5, 1024, True)
    assert small.sha256 != other.sha256


# Users' files


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_file_is_a_benchmark_of_the_task_after_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    rows = [{"problem": "1 + 1?", "reference_answer": "2"}, {"problem": "2 + 2?", "reference_answer": "4"}]
    lines = ["problem,reference_answer", *(",".join(row.values()) for row in rows)]
    path.write_text({".csv": "\n".join(lines), ".json": json.dumps(rows)}.get(suffix, jsonl(rows).decode()))
    bench = load_benchmark(f"{path}:math")
    assert [(p.problem, p.reference_answer, p.source) for p in bench.problems] == [
        ("1 + 1?", "2", f"{path}:math"),
        ("2 + 2?", "4", f"{path}:math"),
    ]
    assert (bench.name, bench.task, bench.source, bench.known) == (f"{path}:math", "math", str(path), None)


def test_a_file_of_code_problems_has_tests(tmp_path: Path) -> None:
    tests = {"kind": "stdin", "inputs": ["1\n"], "outputs": ["2\n"]}
    (tmp_path / "own.jsonl").write_bytes(jsonl([{"problem": "Add one.", "tests": tests}]))
    bench = load_benchmark(f"{tmp_path / 'own.jsonl'}:code")
    assert (bench.task, bench.max_tokens, json.loads(bench.problems[0].tests or "")) == ("code", 16384, tests)


def test_questions_without_a_reference_and_rows_left_out_are_told(tmp_path: Path) -> None:
    rows = [{"problem": "a", "reference_answer": "1"}, {"problem": "b"}, {"problem": "b"}, {"problem": " "}]
    (tmp_path / "own.jsonl").write_bytes(jsonl(rows))
    assert load_benchmark(f"{tmp_path / 'own.jsonl'}:math").notes == (
        "left out: 1 duplicate, 1 row without a problem",
        "1 of 2 questions have no reference answer: they get no verdict",
    )


def test_a_file_with_both_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(jsonl([{"problem": t, "task": t} for t in ("math", "code")]))
    assert "has code and math problems; expected one task" in refusal(str(tmp_path / "own.jsonl"))


def test_a_file_with_other_columns_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(jsonl([{"question": "a"}]))
    assert "trd data import --map" in refusal(f"{tmp_path / 'own.jsonl'}:math")


def test_a_problem_set_is_a_benchmark(problems: Path) -> None:
    bench = load_benchmark(str(problems))
    assert (len(bench.problems), bench.name, bench.known) == (12, str(problems), None)


# LiveCodeBench, in the form of its files


def plain(cases: Rows) -> str:
    return json.dumps(cases)


def packed(cases: Rows) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def case(given: str, wanted: str, kind: str = "stdin") -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


def lcb_row(number: int, date: str, **more: Any) -> dict[str, Any]:
    row = {
        "question_title": f"t{number}",
        "question_content": f"Question {number}.",
        "platform": "atcoder",
        "question_id": f"q{number}",
        "contest_id": "c",
        "contest_date": f"{date}T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": plain([case("1\n", "2\n")]),
        "private_test_cases": packed([case("3\n", "4\n")]),
        "metadata": "{}",
    }
    return row | more


def release(*first: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return 175 rows, as test6.jsonl has: `first`, 43 of January with unreadable tests, and the others of March."""
    january = [lcb_row(n, "2025-01-31", private_test_cases="?") for n in range(1000, 1044)]
    return [*first, *january, *(lcb_row(n, "2025-03-15") for n in range(2000, 2131 - len(first)))]


def lcb(folder: Path, *first: Mapping[str, Any], window: str = "") -> Benchmark:
    (folder / "livecodebench" / "test6.jsonl").write_bytes(jsonl(release(*first)))
    return load_benchmark("livecodebench" + window)


def test_the_default_window_has_131_problems_and_decodes_no_other_tests(folder: Path) -> None:
    bench = lcb(folder)
    assert (len(bench.problems), bench.task, bench.known) == (131, "code", None)
    assert bench.notes == ("contest dates 2025-02-01 to 2025-05-31",)


@pytest.mark.parametrize("private", [plain, packed])
def test_public_and_private_tests_come_together(folder: Path, private: Callable[[Rows], str]) -> None:
    row = lcb_row(1, "2025-02-01", private_test_cases=private([case("3\n", "4\n"), case("5\n", "6\n")]))
    problem = lcb(folder, row).problems[0]
    assert problem.problem_id == "livecodebench-q1"
    assert json.loads(problem.tests or "") == {
        "kind": "stdin",
        "inputs": ["1\n", "3\n", "5\n"],
        "outputs": ["2\n", "4\n", "6\n"],
    }
    assert problem.problem.startswith("Question 1.\n\n")
    assert "standard input" in problem.problem


def test_a_functions_arguments_are_one_json_value_a_line(folder: Path) -> None:
    row = lcb_row(
        1,
        "2025-02-01",
        starter_code="class Solution:\n    def f(self, a, b):\n        ",
        metadata='{"func_name": "f"}',
        public_test_cases=plain([case('[1, 2]\n"x\\ny"', "[true]", "functional")]),
        private_test_cases=packed([case('[]\n""\n', "null", "functional")]),
    )
    problem = lcb(folder, row).problems[0]
    assert json.loads(problem.tests or "") == {
        "kind": "call",
        "exact": True,
        "fn_name": "f",
        "inputs": [[[1, 2], "x\ny"], [[], ""]],
        "outputs": [[True], None],
    }
    assert "```python\nclass Solution:\n    def f(self, a, b):\n" in problem.problem
    assert "standard input" not in problem.problem


class Hostile:
    """A pickle that makes the directory if it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_pickle_is_refused_and_runs_nothing(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    pickled = pickle.dumps(Hostile(made))
    with pytest.raises(InputError, match=r"row 1 of .*test6\.jsonl: .*the pickle asks for posix\.mkdir"):
        lcb(folder, lcb_row(1, "2025-02-01", private_test_cases=base64.b64encode(zlib.compress(pickled)).decode()))
    assert not made.exists()
    pickle.loads(pickled)
    assert made.exists(), "the pickle of this test would have run"


@pytest.mark.parametrize(
    ("private", "message"),
    [
        ("not base64!", "cannot be decoded"),
        (base64.b64encode(b"not zlib").decode(), "cannot be decoded"),
        (base64.b64encode(zlib.compress(b"not pickle")).decode(), "cannot be decoded"),
        (base64.b64encode(zlib.compress(pickle.dumps([1]))).decode(), "a pickled list, not a text"),
        (plain([case("1", "2", "functional")]), r"tests of the types \['functional', 'stdin'\]"),
    ],
)
def test_tests_that_cannot_be_understood_are_refused_with_their_row(folder: Path, private: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"row 1 of .*{message}"):
        lcb(folder, lcb_row(1, "2025-02-01", private_test_cases=private))


@pytest.mark.parametrize(
    ("window", "ids"),
    [
        (":from=2025-02-03,to=2025-02-28", ["q2", "q3"]),
        (":from=2025-02-04,to=2025-02-27", []),
        (":from=2025-02,to=2025-02", ["q1", "q2", "q3"]),
        (":from=2025-02-28,to=2025-03-01", ["q3", "q4"]),
    ],
)
def test_a_window_includes_its_first_and_its_last_day(folder: Path, window: str, ids: list[str]) -> None:
    dates = ("2025-02-02", "2025-02-03", "2025-02-28", "2025-03-01")
    rows = [lcb_row(number, date) for number, date in enumerate(dates, start=1)]
    if not ids:
        with pytest.raises(InputError, match="no problem from 2025-02-04 to 2025-02-27"):
            lcb(folder, *rows, window=window)
        return
    bench = lcb(folder, *rows, window=window)
    assert [p.problem_id for p in bench.problems] == [f"livecodebench-{name}" for name in ids]
    assert {p.source for p in bench.problems} == {f"livecodebench{window}"}


def test_a_release_with_another_number_of_rows_is_refused(folder: Path) -> None:
    (folder / "livecodebench" / "test6.jsonl").write_bytes(jsonl(release()[:-1]))
    assert "test6.jsonl has 174 rows; expected 175" in refusal("livecodebench")


# The Hub


def from_hub(hub: Hub, cache: Path, *names: str, **environment: str) -> list[dict[str, Any]]:
    """Load each name in a new process; return its description or its error."""
    code = """
import dataclasses, json, sys
from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.errors import InputError
for name in sys.argv[1:]:
    try:
        print(json.dumps(dataclasses.asdict(load_benchmark(name))))
    except InputError as error:
        print(json.dumps({"error": str(error)}))
"""
    variables = {k: v for k, v in os.environ.items() if k != "TRD_DATA"}
    variables |= {"PYTHONPATH": str(ROOT), **hub.environment(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, *names], env=variables, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def serve(hub: Hub, name: str, content: bytes) -> None:
    known = MATH_SETS[name]
    hub.add(known.repo, known.revision, {known.path: content})


FORMAT = "\nAfter solving the above problem, please output your final answer in the following format: ..."


def hub_rows(name: str) -> list[dict[str, Any]]:
    """Return rows with the columns that the set has on the Hub."""
    make: dict[str, Callable[[int], dict[str, Any]]] = {
        "aime24": lambda i: {"id": i, "problem": f"p{i}", "solution": rf"\boxed{{0{i}}}", "url": "u"},
        "aime25": lambda i: {"problem": f"p{i}", "answer": str(i), "id": str(i)},
        "hmmt25": lambda i: {"problem_idx": i, "problem": f"p{i}", "answer": str(i), "problem_type": ["a"]},
        "beyondaime": lambda i: {"problem": f"p{i}", "answer": i},
        "amobench": lambda i: {
            "question_id": i,
            "prompt": f"p{i}{FORMAT}",
            "solution": "s",
            "answer": f"$$\\boxed{{{i}}}$$" if i < 39 else "words",
            "answer_type": "number" if i < 39 else "description",
        },
        "math500": lambda i: {"problem": f"p{i}", "solution": "s", "answer": str(i), "unique_id": f"test/{i}.json"},
        "gsm8k": lambda i: {"question": f"p{i}", "answer": f"s\n#### {i}"},
    }
    return [make[name](i) for i in range(50 if name == "amobench" else MATH_SETS[name].size)]


def test_every_mathematics_set_is_read_from_the_hub_at_its_pinned_commit(tmp_path: Path) -> None:
    with Hub() as hub:
        for name, known in MATH_SETS.items():
            rows = hub_rows(name)
            serve(hub, name, parquet(rows) if known.path.endswith(".parquet") else jsonl(rows))
        loaded = dict(zip(MATH_SETS, from_hub(hub, tmp_path, *MATH_SETS), strict=True))
        again = from_hub(hub, tmp_path, *MATH_SETS, HF_HUB_OFFLINE="1")
    for name, bench in loaded.items():
        known = MATH_SETS[name]
        assert len(bench["problems"]) == known.size
        assert bench["revision"] == known.revision
        assert bench["source"] == f"{known.repo}@{known.revision[:12]} ({known.path})"
        third = bench["problems"][2]
        assert (third["problem"], third["reference_answer"]) == ("p2", "02" if name == "aime24" else "2")
        # Another content is certain only if trd knows the pinned file's hash.
        assert bench["known"] is (False if name in ("aime25", "math500") else None)
    assert again == list(loaded.values()), "offline, from the cache"


def test_the_pinned_files_that_are_the_known_ones_are_recognised(data: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        for name in ("aime25", "math500", "aime24"):
            rows = (data / f"{name}.jsonl").read_bytes()
            serve(hub, name, parquet([json.loads(r) for r in rows.splitlines()]) if name == "aime24" else rows)
        assert [b["known"] for b in from_hub(hub, tmp_path, "aime25", "math500", "aime24")] == [True] * 3


def test_a_set_that_the_hub_does_not_give_as_expected_is_one_line(tmp_path: Path) -> None:
    with Hub() as hub:
        serve(hub, "aime25", jsonl(hub_rows("aime25")[:-1]))
        hub.add(MATH_SETS["math500"].repo, MATH_SETS["math500"].revision, {"README.md": b""})
        hub.add(MATH_SETS["gsm8k"].repo, "0" * 40, {})
        names = ("aime25", "hmmt25", "math500", "gsm8k")
        short, missing, without_file, without_commit = (b["error"] for b in from_hub(hub, tmp_path, *names))
    assert f"aime25 from math-ai/aime25@{MATH_SETS['aime25'].revision[:12]} (test.jsonl) has 29" in short
    assert "dataset MathArena/hmmt_feb_2025 could not be fetched: there is no such repository" in missing
    assert (
        "test.jsonl of the Hub dataset HuggingFaceH4/MATH-500 could not be fetched: there is no such file"
        in without_file
    )
    assert f"it has no revision {MATH_SETS['gsm8k'].revision}" in without_commit


def test_without_a_network_and_a_cache_the_refusal_is_one_line(tmp_path: Path) -> None:
    with Hub() as hub:
        (refused,) = from_hub(hub, tmp_path, "aime25", HF_HUB_OFFLINE="1")
        assert hub.requests == []
    assert "it is not in the cache, and the Hub cannot be reached" in refused["error"]
    assert "\n" not in refused["error"]


def test_another_revision_is_the_hubs_and_its_commit_is_recorded(data: Path, tmp_path: Path) -> None:
    commit = "a" * 40
    with Hub() as hub:
        hub.add(MATH_SETS["aime25"].repo, commit, {"test.jsonl": jsonl(hub_rows("aime25"))})
        (bench,) = from_hub(hub, tmp_path, "aime25:revision=main", TRD_DATA=str(DATA))
    assert (bench["name"], bench["revision"], len(bench["problems"])) == ("aime25:revision=main", commit, 30)


def test_livecodebench_fetches_only_the_releases_its_window_can_be_in(tmp_path: Path) -> None:
    fifth = [lcb_row(n, "2025-01-05") for n in range(3000, 3167)]
    with Hub() as hub:
        hub.add(REPOSITORY, REVISION, {"test5.jsonl": jsonl(fifth), "test6.jsonl": jsonl(release())})
        (default,) = from_hub(hub, tmp_path, "lcb")
        assert not any("test5" in request for request in hub.requests)
        (longer,) = from_hub(hub, tmp_path, "livecodebench:from=2025-01-01,to=2025-01-30")
    assert (len(default["problems"]), default["revision"]) == (131, REVISION)
    assert default["source"] == f"{REPOSITORY}@{REVISION[:12]}"
    assert len(longer["problems"]) == 167


def test_livecodebench_without_the_hub_says_that_the_folder_has_prompts_only(data: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        (refused,) = from_hub(hub, tmp_path, "livecodebench", HF_HUB_OFFLINE="1", TRD_DATA=str(DATA))
    assert "TRD_DATA has the prompts of livecodebench only, without tests" in refused["error"]


def test_a_hub_dataset_is_imported_as_a_problem_set(tmp_path: Path) -> None:
    card = b"---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test-*\n---\n"
    with Hub() as hub:
        content = parquet(hub_rows("gsm8k"))
        hub.add("openai/gsm8k", "b" * 40, {"README.md": card, MATH_SETS["gsm8k"].path: content})
        command = ("data", "import", "openai/gsm8k", "--preset", "gsm8k", "--split", "test")
        done = subprocess.run(
            [sys.executable, "-m", "trd_cli", *command, "--out", str(tmp_path / "set.parquet")],
            env={**os.environ, "PYTHONPATH": str(ROOT), **hub.environment(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert len(load_benchmark(str(tmp_path / "set.parquet")).problems) == 1319


# trd data list


def test_the_list_has_a_line_for_every_benchmark_and_one_for_files(ok: Any, folder: Path) -> None:
    (folder / "aime24.jsonl").write_text("")
    lines = [line.split("\t") for line in ok("data", "list").stdout.splitlines()]
    assert [cells[0] for cells in lines] == [*KNOWN, "FILE[:TASK]"]
    assert {len(cells) for cells in lines} == {8}
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows["aime24"][:5] == ["30", "math", "math-verify", str(folder / "aime24.jsonl"), "local file"]
    assert rows["gsm8k"][3:5] == ["Hub: openai/gsm8k", "pinned cc7b047b6e5b"]
    assert rows["gsm8k"][5] == "T=0.6 top_p=0.95 top_k=20 max_tokens=38912"
    assert rows["humaneval+"][:2] == ["164", "code"]
    assert rows["livecodebench"][6] == "from=2025-02-01,to=2025-05-31,revision="


def test_the_list_asks_nothing_of_the_network(tmp_path: Path) -> None:
    code = "import sys\nfrom trd_cli.datasets.make import list_\nlist_()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"huggingface_hub", "datasets", "evalplus", "httpx", "requests"} & set(done.stdout.split())
