"""Tasks of reasoning-gym: the same rows in every process, graded by each task's own score, and their mean.

By default a few tasks; TRD_FULL=1 takes every default task, 50 entries each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result

from trd_cli.datasets.benchmarks import split_benchmarks
from trd_cli.evaluation.metrics import Estimate, mean_of_groups
from trd_cli.graders.base import Grade, Question
from trd_cli.graders.gym import answer_in, plain
from trd_cli.graders.harmless import refusal
from trd_cli.graders.options import GraderOptions
from trd_cli.graders.pool import GraderPool
from trd_cli.records import Problem
from trd_cli.trajectories.problem_sets import read_problems

pytest.importorskip("reasoning_gym", reason="needs the package reasoning-gym (the extra worlds)")

Trd = Callable[..., Result]
# A number, a fraction in LaTeX, words, an expression of several right ones, one with braces, a grid.
FEW = "chain_sum,fraction_simplification,knights_knaves,countdown,rearc,manipulate_matrix"
FULL = os.environ.get("TRD_FULL") == "1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> list[Problem]:
    """Return the problems of a set: four of a few tasks, or 50 of every default task."""
    out = tmp_path_factory.mktemp("gym") / "gym.parquet"
    ok("data", "make", "reasoning-gym", *tasks(), "--seed", 3, "--out", out)
    return read_problems(out)


def tasks() -> tuple[object, ...]:
    return ("--n", 50) if FULL else ("--tasks", FEW, "--n", 4)


def question(problem: Problem, response: str) -> Question:
    return Question(problem.task, response, problem.reference_answer, problem.tests, problem=problem.problem)


@pytest.fixture(scope="module")
def grade() -> Iterator[Callable[[list[Question]], list[Grade]]]:
    with GraderPool(GraderOptions(workers=1)) as pool:
        yield lambda questions: list(pool.grade(questions))


def wrong(problem: Problem, problems: list[Problem]) -> str:
    """Return the answer of another entry of the same task."""
    others = [other.reference_answer for other in problems if other.source == problem.source]
    return next(answer for answer in others if answer != problem.reference_answer)


def test_every_oracle_is_right_and_a_wrong_answer_wrong(
    made: list[Problem], grade: Callable[[list[Question]], list[Grade]]
) -> None:
    right = grade([question(problem, rf"So \boxed{{{problem.reference_answer}}}.") for problem in made])
    assert {p.source for p, each in zip(made, right, strict=True) if each.verdict != "correct"} == set()
    others = grade([question(problem, rf"So \boxed{{{wrong(problem, made)}}}.") for problem in made])
    assert {each.verdict for each in others} <= {"correct", "incorrect"}
    # The answer of another entry may solve this one too.
    taken = Counter(p.source for p, each in zip(made, others, strict=True) if each.verdict == "correct")
    assert taken.total() <= (3 if FULL else 0), taken


def test_two_processes_make_the_same_rows(made: list[Problem], tmp_path: Path) -> None:
    out = tmp_path / "again.parquet"
    words = [*map(str, tasks()), "--seed", "3", "--out", str(out)]
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run(
        [sys.executable, "-m", "trd_cli", "data", "make", "reasoning-gym", *words], env=environment, check=True
    )
    assert read_problems(out) == made


def test_a_row_names_its_entry_and_neighbouring_seeds_share_none(made: list[Problem], tmp_path: Path, ok: Trd) -> None:
    first = next(problem for problem in made if problem.source.endswith("/chain_sum"))
    assert (first.task, first.source) == ("reasoning-gym", "reasoning-gym/chain_sum")
    assert json.loads(first.tests or "").keys() == {"kind", "task", "seed", "index", "version"}
    questions = []
    for seed in (1, 2, 3):
        ok("data", "make", "reasoning-gym", "--tasks", "chain_sum", "--n", 50, "--seed", seed, "--out", tmp_path / "p")
        questions += [problem.problem for problem in read_problems(tmp_path / "p")]
    assert len(set(questions)) == 150


def entry(made: list[Problem], task: str) -> Problem:
    return next(problem for problem in made if problem.source.endswith(f"/{task}"))


@pytest.mark.parametrize(
    ("task", "response", "verdict"),
    [
        ("chain_sum", r"first \boxed{0}, then \boxed{ANSWER}", "correct"),
        ("chain_sum", r"\boxed{\text{ANSWER}}", "correct"),
        ("chain_sum", r"<think>\boxed{ANSWER}</think> I give up", "incorrect"),
        ("chain_sum", r"<think>\boxed{ANSWER}", "incorrect"),
        ("chain_sum", "ANSWER", "incorrect"),
        ("chain_sum", r"\boxed{}", "incorrect"),
        # It contains the answer, for which the task gives a part of the score.
        ("chain_sum", r"\boxed{it is ANSWER}", "incorrect"),
        ("manipulate_matrix", "\\boxed{\nANSWER\n}", "correct"),
        ("manipulate_matrix", r"\boxed{\begin{bmatrix}MATRIX\end{bmatrix}}", "correct"),
        ("knights_knaves", r"\boxed{\text{ANSWER}}", "correct"),
    ],
)
def test_the_text_in_the_last_box_is_what_the_task_scores(
    task: str, response: str, verdict: str, made: list[Problem], grade: Callable[[list[Question]], list[Grade]]
) -> None:
    problem = entry(made, task)
    answer = str(problem.reference_answer)
    matrix = r" \\ ".join(line.replace(" ", " & ") for line in answer.splitlines())
    text = response.replace("ANSWER", answer).replace("MATRIX", matrix)
    assert grade([question(problem, text)])[0].verdict == verdict


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> list[Problem]:
    """Return an entry of each default task and of each task that evaluates its answer."""
    folder = tmp_path_factory.mktemp("each")
    ok("data", "make", "reasoning-gym", "--n", 1, "--out", folder / "default.parquet")
    evaluating = "puzzle24,n_queens,binary_matrix,spiral_matrix"
    ok("data", "make", "reasoning-gym", "--tasks", evaluating, "--n", 1, "--out", folder / "others.parquet")
    return read_problems(folder / "default.parquet") + read_problems(folder / "others.parquet")


@pytest.mark.parametrize(
    "program",
    [
        "__import__('os').system('touch FILE')",
        "__import__('os').system('touch FILE') + 0*x + C",
        "open('FILE', 'w')",
        "[open('FILE', 'w') for _ in [1]]",
        "(lambda: open('FILE', 'w'))()",
        "().__class__.__base__.__subclasses__()[0:].append(open('FILE', 'w'))",
    ],
)
def test_an_answer_is_never_run_as_a_program(
    program: str, one_of_each: list[Problem], grade: Callable[[list[Question]], list[Grade]], tmp_path: Path
) -> None:
    answer = program.replace("FILE", str(tmp_path / "made"))
    escaped = answer.replace("_", r"\_")
    texts = (rf"\boxed{{{answer}}}", rf"\boxed{{\text{{{answer}}}}}", rf"\boxed{{{escaped}}}")
    grades = grade([question(problem, text) for problem in one_of_each for text in texts])
    assert {each.verdict for each in grades} == {"incorrect"}
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("task", "answer", "said"),
    [
        ("simple_integration", "9**9**9", "exponent"),
        ("simple_integration", "((9**99)**99)**99", "exponent"),
        ("simple_integration", "x**x**x", "exponent"),
        ("simple_integration", "exp(exp(exp(exp(x))))", "nested"),
        ("simple_integration", "x.real", "none of"),
        ("simple_integration", "print(x)", "none of"),
        ("simple_integration", "1e-999999999", "formula"),
        ("simple_integration", "-" * 900 + "x", "nested"),
        ("simple_integration", "x + " * 900 + "x", "longer"),
        ("simple_integration", "“x”", "formula"),
        ("puzzle24", "2**3*3", "none of"),
        ("countdown", "9" * 40, "too large"),
        ("string_insertion", "['A', 'B']", "letters"),
    ],
)
def test_a_task_that_evaluates_gets_only_what_its_answers_are_made_of(task: str, answer: str, said: str) -> None:
    assert said in str(refusal(task, "0.1.25", answer))


@pytest.mark.parametrize(
    "answer", ["-X**5/7 - x**3/2 + C", "2*(4*x + 2)**(3/2)/3 + C", "x*exp(sin(x)**2)", "3.5*log(pi*x)"]
)
def test_a_formula_is_not_refused(answer: str) -> None:
    assert refusal("simple_integration", "0.1.25", answer) is None


def test_in_a_version_that_was_not_read_no_task_gets_a_program() -> None:
    programs = ["f(1)", "x.y", "__a__", "import os", "!!python/object x", "9**9**9", "[1] .real", "a [0] (1)"]
    assert [refusal("chain_sum", "99.0", program) is None for program in programs] == [False] * len(programs)
    assert [refusal("chain_sum", "99.0", answer) for answer in ("-12.5", "(1, 2)", '{"a": [1]}', "1 2\n3 4")] == [
        None
    ] * 4


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\text{Alice is a knight}", "Alice is a knight"),
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac{\text{3}}{4}", "3/4"),
        (r"3 \times (4 + 2)", "3 * (4 + 2)"),
        (r"\{1, 2\}", "{1, 2}"),
        (r"snake\_case", "snake_case"),
        (r"A \to B \rightarrow C", "A -> B -> C"),
        (r"$\left(1,\, 2\right)$", "(1, 2)"),
        ('"a word"', "a word"),
        (r"1 & 2 \\ 3 & 4", "1 & 2\n3 & 4"),
        ('{"a": [1, 2]}', '{"a": [1, 2]}'),
        ("1 2\n3 4", "1 2\n3 4"),
    ],
)
def test_an_answer_is_also_read_without_the_latex_that_a_box_invites(written: str, read: str) -> None:
    assert plain(written) == read


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("Thus.\nThe final answer is: 42", "42"),
        ("**Answer:** `left`", "left"),
        ("Here it is:\n```json\n[1, 2]\n```\nDone.", "[1, 2]"),
        ("I count.\n7", "7"),
        (r"Answer: 1, but \boxed{2}", "2"),
        ("", None),
    ],
)
def test_lenient_takes_what_is_announced_a_block_or_the_last_line(response: str, found: str | None) -> None:
    assert answer_in(response, lenient=True) == found
    assert answer_in(response, lenient=False) == ("2" if "boxed" in response else None)


def test_rows_of_another_version_or_another_question_are_errors_with_the_reason(
    made: list[Problem], grade: Callable[[list[Question]], list[Grade]]
) -> None:
    problem = entry(made, "chain_sum")
    spec = json.loads(problem.tests or "")
    right = rf"\boxed{{{problem.reference_answer}}}"
    asked = partial(question, response=right)
    changed = [
        replace(problem, tests=json.dumps(spec | {"version": "0.0.1"})),
        replace(problem, tests=json.dumps(spec | {"index": 4_000})),
        replace(problem, tests=json.dumps(spec | {"task": "no_such_task"})),
        replace(problem, tests='{"kind": "reasoning-gym"}'),
        replace(problem, tests=None),
        problem,
    ]
    grades = grade([asked(each) for each in changed])
    assert [each.verdict for each in grades] == ["error"] * 5 + ["correct"]
    details = [str(each.detail) for each in grades]
    for part, detail in zip(
        ("made by reasoning-gym 0.0.1", "another question", "no_such_task", "lack", "no entry"), details, strict=False
    ):
        assert part in detail


def test_an_answer_that_a_task_cannot_read_is_incorrect(
    tmp_path: Path, ok: Trd, grade: Callable[[list[Question]], list[Grade]]
) -> None:
    ok("data", "make", "reasoning-gym", "--tasks", "prime_factorization", "--n", 1, "--out", tmp_path / "p")
    (problem,) = read_problems(tmp_path / "p")
    (found,) = grade([question(problem, r"\boxed{banana}")])
    assert found.verdict == "incorrect"
    assert "not read" in str(found.detail)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("boxnet", "no answer of its own"),
        ("list_functions", "each time"),
        ("word_ladder", "another process"),
        ("chain_sun", "closest: chain_sum"),
        ("gcd,gcd", "twice"),
    ],
)
def test_a_task_that_cannot_be_graded_is_refused_with_the_reason(
    tasks: str, said: str, trd: Trd, tmp_path: Path
) -> None:
    result = trd("data", "make", "reasoning-gym", "--tasks", tasks, "--n", 2, "--out", tmp_path / "p")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "p").exists()
    result = trd(
        "eval", "scripted", "--bench", f"reasoning-gym:tasks={tasks.replace(',', '+')}", "--out", tmp_path / "e"
    )
    assert result.exit_code == 1
    assert said in result.stderr


def test_a_task_with_too_few_questions_says_so(tmp_path: Path, ok: Trd) -> None:
    result = ok("data", "make", "reasoning-gym", "--tasks", "coin_flip", "--n", 2000, "--out", tmp_path / "p")
    found = len(read_problems(tmp_path / "p"))
    assert 0 < found < 2000
    assert f"coin_flip has {found} different questions, not 2000" in result.stderr


def test_an_evaluation_has_a_row_a_task_and_their_mean(tmp_path: Path, ok: Trd) -> None:
    bench = "reasoning-gym:tasks=chain_sum+knights_knaves,n=5,seed=7"
    words = ("--engine-arg", "accuracy=0.5", "--bench", bench, "--k", 2, "--workers", 1)
    result = ok("eval", "scripted", *words, "--out", tmp_path / "e")
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    names = [f"reasoning-gym:tasks={task},n=5,seed=7" for task in ("chain_sum", "knights_knaves")]
    assert list(results["benchmarks"]) == names == split_benchmarks(bench)
    ((name, mean),) = results["means"].items()
    assert (name, mean["benchmarks"]) == ("reasoning-gym:n=5,seed=7", names)
    scores = [results["benchmarks"][each]["scores"]["avg@2"] for each in names]
    assert mean["scores"]["avg@2"]["value"] == pytest.approx(sum(score["value"] for score in scores) / 2)
    assert mean["scores"]["avg@2"]["low"] < mean["scores"]["avg@2"]["value"] < mean["scores"]["avg@2"]["high"]
    for text in ((tmp_path / "e" / "results.md").read_text(), (tmp_path / "e" / "results.csv").read_text()):
        assert "(mean of 2)" in text
    assert "mean of 2" in result.stderr


def test_the_mean_of_equal_independent_tasks_is_known_better_than_each() -> None:
    one = Estimate(0.5, 0.4, 0.6, 0.05, 0.02, 100)
    mean = mean_of_groups([one] * 4)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.45, 0.55))
    assert (mean.stderr, mean.stderr_within, mean.questions) == pytest.approx((0.025, 0.01, 400))
    nothing = mean_of_groups([replace(one, value=0.0, low=0.0, high=0.08, stderr=0.0)] * 4)
    assert (nothing.value, nothing.low, nothing.high) == pytest.approx((0.0, 0.0, 0.04))
