"""The lab's world: its problems and verdicts, its models' prompts as trd renders them, and a training that resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from support.children import start_child
from support.sets import rows_of

Trd = Callable[..., Result]
ROOT = Path(__file__).parent.parent
LAB = ROOT / "examples" / "lab"
PROMPTS = LAB / "prompts"
GRADER = "examples.lab.world:grade"
# The id of `<end>`, and those around what a user says.
END, USER, ASSISTANT = 4, 2, 3


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(LAB / f"{script}.py"), *map(str, arguments)]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(script, *arguments), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def texts(path: Path) -> list[str]:
    return pq.read_table(path)["problem"].to_pylist()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a small problem set, and a harder one apart from it."""
    place = tmp_path_factory.mktemp("sets")
    run("world", "make", "--n", 6, "--seed", 1, "--out", place / "held-out.parquet")
    more = ("--places", 12, "--depth", 8, "--near-ties", "--apart-from", place / "held-out.parquet")
    run("world", "make", "--n", 300, "--seed", 2, *more, "--out", place / "harder.parquet")
    return place


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return models after a few steps: in form as those that are trained, and no good."""
    place = tmp_path_factory.mktemp("models")
    run("make_models", "--out", place, "--share", 0.004, "--threads", 1)
    return place


@pytest.fixture
def grading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_problems_come_from_their_seed_and_options(sets: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.parquet"
    run("world", "make", "--n", 6, "--seed", 1, "--out", again)
    assert texts(again) == texts(sets / "held-out.parquet")
    assert all(len(text) == 1 + 2 * 10 and text[0] == "6" for text in texts(again))
    hard = texts(sets / "harder.parquet")
    assert len({*hard, *texts(again)}) == 306
    for text in hard:
        digits = sorted(map(int, text[2::2]))
        assert len(digits) == 12
        assert digits[-1] - 1 == digits[-2] == digits[-4]


def test_a_problem_set_left_apart_shares_no_text_with_another(sets: Path, tmp_path: Path) -> None:
    apart = ("--apart-from", sets / "held-out.parquet")
    run("world", "make", "--n", 6, "--seed", 1, *apart, "--out", tmp_path / "other.parquet")
    assert not {*texts(tmp_path / "other.parquet")} & {*texts(sets / "held-out.parquet")}


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("Dd8D8e1E9f0F9a4A3", True),
        (" Dd8D8e1E9f0F9a4A3\n", True),
        ("Bb7B7c3!Dd8D8e1E9f0F9a4A3", True),
        ("Dd8D8e1E9f0F9a4A3!", "no route"),
        ("Dd8D8e1E9f0F9a4A3!Bb7B7", "wrong route"),
        ("Bb7B7c3C0d8D8e1E9", "wrong route"),
        ("Dd7D7e1E8f0F8a4A2", "slip at step 1"),
        ("Dd8D8e1E8f0F8a4A2", "slip at step 2"),
        ("Dd8D8c3C1b7B8a4A2", "slip at step 2"),
        ("Dd8D8e1E9d8D7e1E8", "slip at step 3"),
        ("Dd8D8e1E9f0F9", "end at step 4"),
        ("Dd8D8e1E9f0F9a4A3b7B0", "too long"),
        ("d8D8e1E9f0F9a4A3", "no route"),
        ("", "no route"),
    ],
)
def test_a_verdict_names_the_first_fault_after_the_last_turn(response: str, verdict: bool | str) -> None:
    script = "import sys, world; print(repr(world.grade(sys.argv[1], None, sys.argv[2])))"
    asked = [sys.executable, "-c", script, "4a4b7c3d8e1f0", response]
    done = subprocess.run(asked, cwd=LAB, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(verdict)


@pytest.mark.usefixtures("grading")
def test_trd_grades_the_worked_reference_as_right_and_renders_the_prompts_of_training(
    ok: Trd, sets: Path, models: Path, tmp_path: Path
) -> None:
    problems, rollouts = sets / "held-out.parquet", tmp_path / "y_o"
    model, options = models / "student", ("--temperature", 1, "--max-tokens", 6)
    ok("sample", "-m", model, "-p", problems, "--prompt", PROMPTS / "student.jinja", *options, "--out", rollouts)
    ok("verify", rollouts, "--grader", GRADER)
    lab = sys.path[:]
    sys.path.insert(0, str(LAB))
    try:
        from vocabulary import prompt_ids
    finally:
        sys.path[:] = lab
    for row in rows_of(rollouts):
        assert row.prompt_token_ids == prompt_ids("student", problem=row.problem)
        assert row.verdict == "incorrect"
        assert row.verdict_detail
    for setting, teacher in (("opd", models / "teacher"), ("opsd", model)):
        name, refined = f"refine-{setting}", tmp_path / setting
        prompt = ("--setting", setting, "--teacher", teacher, "--prompt", PROMPTS / f"{name}.jinja")
        ok("refine", rollouts, *prompt, *options, "--out", refined)
        attempts = {row.trajectory_id: row.response for row in rows_of(rollouts)}
        for row in rows_of(refined):
            shown = {"attempt": attempts[row.parent_id], "reference_solution": row.reference_solution}
            assert row.prompt_token_ids == prompt_ids(name, problem=row.problem, **shown)


@pytest.mark.usefixtures("grading")
def test_a_scripted_answer_that_is_the_reference_is_right(ok: Trd, sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "right"
    ok("sample", "-m", "scripted", "-p", sets / "held-out.parquet", "--out", out, "--engine-arg", "accuracy=1.0")
    assert ok("verify", out, "--grader", GRADER).exit_code == 0
    assert {row.task for row in rows_of(out)} == {"routes"}


def test_each_token_of_a_step_is_one_and_a_turn_ends_with_the_end_of_a_response(models: Path) -> None:
    from trd_cli.prompting.tokens import HubTokenizer

    for name in ("teacher", "student", "student-weak", "student-strong"):
        tokenizer = HubTokenizer(models / name)
        assert tokenizer.end_of_turn_id == END
        assert tokenizer.eos_ids == {END}
        ids = tokenizer.render([{"role": "user", "content": "4a4b7?3"}], "chat", {})
        assert (ids[0], ids[-1], len(ids)) == (USER, ASSISTANT, 7)
        assert len(tokenizer.encode("Dd8D8!Ee1")) == 6
        assert tokenizer.decode(tokenizer.encode("Dd8D8!e1\n9E")) == "Dd8D8!e1\n9E"


def test_models_that_are_finished_are_left_alone(models: Path) -> None:
    def made() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in models.rglob("*") if file.is_file()}

    before = made()
    done = run("make_models", "--out", models, "--share", 0.004, "--threads", 1)
    assert made() == before
    assert "| solves |" in done.stdout
    other = subprocess.run(
        command("make_models", "--out", models, "--share", 0.006), capture_output=True, text=True, check=False
    )
    assert other.returncode == 1
    assert "was made otherwise" in other.stderr


def test_a_training_that_was_killed_ends_with_the_same_weights(models: Path, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path, "--share", 0.004, "--threads", 1, "--save-minutes", 0)
    process = start_child(command("make_models", *arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for _ in range(3000):
        if [*tmp_path.glob(".teacher-*.state")]:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "teacher").exists()
    assert "goes on after step" in run("make_models", *arguments).stderr
    for name in ("teacher", "student"):
        weights = [(place / name / "model.safetensors").read_bytes() for place in (models, tmp_path)]
        assert weights[0] == weights[1]
    assert not [*tmp_path.glob(".*.state")]
