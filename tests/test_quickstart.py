"""The quickstart: its script on a model of a few thousand weights, and with TRD_FULL=1 on the real one."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import tomli_w
from conftest import Trd, made_by_setup, takes_long
from support.children import start_child, wait_for
from support.tiny import build_model

from trd_cli.recipes.loading import load_recipe

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "examples" / "quickstart" / "quickstart.toml"


def start(*words: object) -> subprocess.Popen[str]:
    """Start the script in a process group of its own, with standard output and error in one stream."""
    environment = os.environ | {"TRD_VENV": sys.prefix}
    script = ["bash", ROOT / "examples" / "quickstart.sh", *words]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return start_child(script, env=environment, text=True, start_new_session=True, **streams)


def small(directory: Path) -> Path:
    """Write a recipe that extends the quickstart's, with a tiny model that learns from every row."""
    short = {"max_tokens": 8, "replicas": 1}
    recipe = {
        "extends": str(RECIPE),
        "student": str(build_model(directory / "model")),
        "problems": {"make": {"n": 6}},
        "sample": short,
        "refine": short,
        "eval": short | {"bench": "arithmetic:n=5,seed=2"},
        "arms": {"trd": {"subset": "all", "where": "TRUE"}},
    }
    path = directory / "small.toml"
    path.write_text(tomli_w.dumps(recipe))
    return path


@made_by_setup
def test_the_script_goes_on_after_an_interruption_and_ends_with_its_page(tmp_path: Path) -> None:
    run, recipe = tmp_path / "a run", small(tmp_path)
    first = start(run, recipe)
    wait_for(lambda: bool(list(run.glob("nodes/sample-*/sessions.jsonl"))), 300)
    os.killpg(first.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to all
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 130, said
    (rollouts,) = run.glob("nodes/sample-*/sessions.jsonl")
    before = rollouts.read_text()

    second = start(run, recipe)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert rollouts.read_text() == before
    for words in (
        "Arms by benchmarks",
        "Differences",
        "| base",
        "| trd",
        "y_o incorrect",
        "seed-0/round-0/trd/distill",
    ):
        assert words in said
    page = Path(said.splitlines()[-1].partition(": ")[2])
    assert page == (run / "report" / "report.html").resolve()
    assert "<html" in page.read_text()

    made = {path: path.stat().st_mtime_ns for path in run.glob("nodes/*/*.safetensors")}
    began = time.time_ns()
    third = start(run, recipe)
    third.communicate(timeout=300)
    assert third.returncode == 0
    assert made
    assert all(path.stat().st_mtime_ns == at < began for path, at in made.items())


@pytest.mark.model
def test_the_planner_finds_no_error_in_the_recipe(ok: Trd) -> None:
    ok("plan", RECIPE)


def test_the_recipe_in_the_manual_is_a_larger_one(tmp_path: Path) -> None:
    manual = (ROOT / "examples" / "README.md").read_text()
    ((extended, rest),) = re.findall(r'^```toml\nextends = "(.*)"\n(.*?)^```', manual, re.MULTILINE | re.DOTALL)
    assert ROOT / extended == RECIPE
    path = tmp_path / "larger.toml"
    path.write_text(f'extends = "{RECIPE}"\n{rest}')
    default, larger = load_recipe(RECIPE), load_recipe(path)
    assert larger.problems["make"]["n"] == 2 * default.problems["make"]["n"]
    assert larger.arms == default.arms


@pytest.mark.model
@takes_long
@made_by_setup
def test_the_whole_quickstart_shows_a_gain_that_chance_does_not_explain(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run)
    said, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, said
    with open(run / "report" / "differences.csv", encoding="utf-8") as file:
        (difference,) = csv.DictReader(file)
    assert float(difference["value"]) > 0.05
    assert float(difference["p_value"]) < 0.001
    rollouts, refined = (pl.read_parquet(run / "nodes" / f"{stage}-*" / "*.parquet") for stage in ("sample", "refine"))
    assert len(rollouts) == len(refined) == load_recipe(RECIPE).problems["make"]["n"]
    pairs = refined.join(rollouts, left_on="parent_id", right_on="trajectory_id", suffix="_y_o")
    assert pairs["student_prompt_token_ids"].to_list() == pairs["prompt_token_ids_y_o"].to_list()
    assert pairs["prompt_token_ids"].to_list() != pairs["prompt_token_ids_y_o"].to_list()
