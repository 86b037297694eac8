"""Tasks of one's own: rows of any task name, graded by a function of the user's in workers that can be killed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from support.sets import rows_of

from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import shard_path, write_shard

Trd = Callable[..., Result]
# Of a set: a response to the task of each row.
Make = Callable[..., Path]
MANUAL = Path(__file__).parent.parent / "trd_cli" / "graders" / "README.md"

GRADERS = """
import os, time

def one(problem, reference, response):
    print("a word on standard output")
    if "raise" in response:
        raise ValueError("no such\\nmove")
    if "hang" in response:
        time.sleep(60)
    if "die" in response:
        os._exit(1)
    if "eat" in response:
        bytearray(64 << 30)
    if "seven" in response:
        return 7
    if "fraction" in response:
        from fractions import Fraction
        return Fraction(1)
    if "lines" in response:
        return "one\\n\\x1b[31mtwo\\x00"
    return reference in response or f"no {reference} in it"

def other(problem, reference, response):
    return response == problem
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, which holds a module of graders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GRADERS, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Trajectory:
    place = tmp_path_factory.mktemp("template")
    ok("data", "make", "arithmetic", "--n", 1, "--out", place / "p.parquet")
    ok("sample", "-m", "scripted", "-p", place / "p.parquet", "--out", place / "y_o")
    return rows_of(place / "y_o")[0]


@pytest.fixture
def answered(template: Trajectory, place: Path) -> Make:
    """Return a set with a row for each response to `chess`, whose reference is e4, and for each keyword of another."""

    def make(*responses: str, **more: str) -> Path:
        directory = place / f"set-{len(list(place.iterdir()))}"
        directory.mkdir()
        pairs = [*(("chess", text) for text in responses), *more.items()]
        rows = [
            replace(
                template,
                trajectory_id=f"{i:032x}",
                task=task,
                problem="Mate in one?",
                response=response,
                reference_answer="e4" if task == "chess" else "4",
            )
            for i, (task, response) in enumerate(pairs)
        ]
        write_shard(shard_path(directory, 0), rows)
        return directory

    return make


def graded(directory: Path, column: str = "verdict") -> list[str | None]:
    """Return a column of the rows in order."""
    return [getattr(row, column) for row in rows_of(directory)]


def test_a_function_says_right_wrong_and_why_and_its_name_and_version_are_in_the_row(
    answered: Make, place: Path, ok: Trd
) -> None:
    directory = answered("I play e4.", "I play d4.", "<think>e4</think> d4", "<think>e4")
    result = ok("verify", directory, "--grader", "mine:one")
    assert graded(directory) == ["correct", "incorrect", "incorrect", "incorrect"]
    assert graded(directory, "verdict_detail") == [None, "no e4 in it", "no e4 in it", "no_answer"]
    assert set(graded(directory, "grader")) == {"mine:one"}
    (before,) = set(graded(directory, "grader_version"))
    assert "a word" not in result.stdout
    (place / "mine.py").write_text(GRADERS.replace("response or", "response[:6] or"), encoding="utf-8")
    ok("verify", directory, "--grader", "mine:one", "--regrade")
    assert graded(directory)[0] == "incorrect"
    assert graded(directory, "grader_version")[0] != before


def test_a_function_that_fails_costs_its_row_and_no_other(answered: Make, ok: Trd) -> None:
    directory = answered("e4", "raise", "hang", "die", "eat", "seven", "fraction", "lines", "e4")
    ok("verify", directory, "--grader", "mine:one", "--timeout", "1", "--max-errors", "9")
    assert graded(directory) == ["correct", "error", "timeout", *["error"] * 4, "incorrect", "correct"]
    _, raised, hung, died, ate, seven, fraction, lines, _ = graded(directory, "verdict_detail")
    assert raised == "ValueError: no such move"
    assert hung == "killed after 1 s"
    assert "died" in str(died)
    assert "MemoryError" in str(ate)
    assert "returned int" in str(seven)
    assert "returned fractions.Fraction" in str(fraction)
    assert lines == "one ␛[31mtwo␀"


def test_without_a_grader_the_other_rows_are_graded_and_one_line_names_the_task(
    answered: Make, ok: Trd, trd: Trd
) -> None:
    directory = answered("e4", "e5", math=r"\boxed{4}")
    result = trd("verify", directory)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert "2 rows of the task chess" in line
    assert "--grader" in line
    assert graded(directory) == [None, None, "correct"]
    ok("verify", directory, "--grader", "mine:one")
    assert graded(directory) == ["correct", "incorrect", "correct"]


def test_a_task_of_trds_own_is_taken_over_only_by_its_name(answered: Make, ok: Trd) -> None:
    directory = answered("e4", math="Mate in one?")
    ok("verify", directory, "--grader", "mine:one", "--grader", "math=mine:other")
    assert graded(directory) == ["correct", "correct"]
    assert graded(directory, "grader") == ["mine:one", "mine:other"]


@pytest.mark.parametrize(
    ("grader", "said"),
    [
        ("mine", "MODULE:FUNCTION"),
        ("mine:", "MODULE:FUNCTION"),
        ("Chess=mine:one", "MODULE:FUNCTION"),
        ("=mine:one", "MODULE:FUNCTION"),
        ("nowhere:one", "no module nowhere"),
        ("mine:three", "no function three"),
        ("broken:one", "ZeroDivisionError"),
    ],
)
def test_a_grader_that_cannot_be_used_is_one_line_before_anything_is_graded(
    grader: str, said: str, answered: Make, place: Path, trd: Trd
) -> None:
    (place / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    directory = answered("e4", math=r"\boxed{4}")
    result = trd("verify", directory, "--grader", grader)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert said in line
    assert graded(directory) == [None, None]


def test_a_second_opinion_of_a_users_grader_is_a_second_run(answered: Make, ok: Trd) -> None:
    result = ok("verify", answered("e4", "e5"), "--grader", "mine:one", "--audit", "1")
    assert "agrees on 2 of 2" in result.stderr


def test_the_manuals_example_goes_through_all_steps(place: Path, ok: Trd, trd: Trd) -> None:
    manual = MANUAL.read_text(encoding="utf-8")
    source = re.search(r"```python\n# mates\.py[^\n]*\n(.*?)```", manual, re.DOTALL)
    assert source is not None
    (place / "mates.py").write_text(source[1], encoding="utf-8")
    assert len(source[1].strip().splitlines()) <= 10
    lines = [{"problem": "Mate in one?", "answer": "Qh7 or Rh8"}, {"problem": "Mate in two?", "answer": "Ng6"}]
    (place / "mates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    ok("data", "import", "mates.jsonl", "--task", "chess", "--out", "mates.parquet")
    result = trd("eval", "scripted", "--bench", "mates.parquet", "--out", "e")
    assert result.exit_code == 1
    assert "the task chess" in result.stderr.splitlines()[-1]
    assert not (place / "e").exists()
    words = ("--engine-arg", "accuracy=1", "--k", 2, "--grader", "mates:grade")
    for number, bench in enumerate(("mates.parquet", "mates.jsonl:chess")):
        ok("eval", "scripted", "--bench", bench, *words, "--out", place / f"e{number}")
        # The engine answers with the whole reference: `Qh7 or Rh8` is no move of the first problem.
        verdicts = {row.problem: row.verdict for row in rows_of(place / f"e{number}")}
        assert verdicts == {"Mate in one?": "incorrect", "Mate in two?": "correct"}


@pytest.mark.parametrize("name", ["Chess", "episode", "a task"])
def test_a_task_is_named_as_rows_can_name_it(name: str, place: Path, trd: Trd) -> None:
    (place / "q.jsonl").write_text('{"problem": "?", "answer": "1"}\n', encoding="utf-8")
    result = trd("data", "import", "q.jsonl", "--task", name, "--out", "q.parquet")
    assert result.exit_code == 1
    assert "--task" in result.stderr
