"""The main job, small: a real round on the real model through the shell pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import made_by_setup

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.model, made_by_setup]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return a finished run of 24 rows and 8 questions, and the script's output."""
    run = tmp_path_factory.mktemp("quickstart") / "run"
    return run, start(run)


def start(run: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRD_VENV": sys.prefix, "ROWS": "24", "QUESTIONS": "8", "EPOCHS": "1"}
    return subprocess.run(
        ["bash", str(ROOT / "examples" / "quickstart.sh"), str(run)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_the_quickstart_runs_and_prints_its_table(quickstart) -> None:
    _, done = quickstart
    assert done.returncode == 0, done.stderr
    for words in ("| before |", "| after |", "Paired difference", "| y_o → y_r |", "| student |"):
        assert words in done.stdout


def test_every_problem_was_tried_refined_and_graded(quickstart) -> None:
    run, _ = quickstart
    rollouts, refined = (pl.read_parquet(run / name / "*.parquet") for name in ("y_o", "y_r"))
    assert len(rollouts) == len(refined) == 24
    assert set(refined["parent_id"]) == set(rollouts["trajectory_id"])
    for rows in (rollouts, refined):
        assert set(rows["verdict"]) <= {"correct", "incorrect"}
        assert rows["response_token_ids"].list.len().min() > 0


def test_the_student_scores_the_same_ids_as_the_teacher_in_its_own_context(quickstart) -> None:
    run, _ = quickstart
    rollouts, refined = (pl.read_parquet(run / name / "*.parquet") for name in ("y_o", "y_r"))
    pairs = refined.join(rollouts, left_on="parent_id", right_on="trajectory_id", suffix="_y_o")
    assert pairs["student_prompt_token_ids"].to_list() == pairs["prompt_token_ids_y_o"].to_list()
    assert pairs["prompt_token_ids"].to_list() != pairs["prompt_token_ids_y_o"].to_list()


def test_the_loss_falls_and_the_checkpoint_says_where_it_came_from(quickstart) -> None:
    run, _ = quickstart
    record = json.loads((run / "student" / "run.json").read_text())
    assert record["about"]["finished"]
    assert [Path(i["path"]).name for i in record["inputs"]] == ["y_r"]
    losses = [json.loads(line)["loss"] for line in (run / "student" / "train.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert losses[-1] < losses[0]


def test_a_second_run_does_nothing_again(quickstart) -> None:
    run, _ = quickstart
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} | {
        path: path.stat().st_mtime_ns for path in (run / "y_r").glob("*.parquet")
    }
    assert start(run).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
