"""trd status: what is done, missing and failed in sets, evaluations, checkpoints and runs.

Arrays are in test_job_arrays.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import Trd
from support.sets import by_hand, flip

from trd_cli.locks import hold
from trd_cli.trajectories.shards import list_shards

STATE, DONE, MISSING, ERRORS, UNGRADED, RATE, NOTE = range(2, 9)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return 24 rollouts in three shards, some of them error rows."""
    directory = tmp_path_factory.mktemp("made")
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 1, "--out", directory / "p.parquet")
    faulty = ("--engine-arg", "faults=0.3", "--max-errors", 1000, "--shard-rows", 10)
    ok("sample", "-m", "scripted", "-p", directory / "p.parquet", "-n", 2, *faulty, "--out", directory / "y_o")
    return directory / "y_o"


@pytest.fixture
def y_o(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "y_o"))


def cells(result: Result) -> list[list[str]]:
    return [line.split("\t") for line in result.stdout.splitlines()]


def test_a_set_is_told_with_its_rows_errors_verdicts_and_rate(y_o: Path, ok: Trd) -> None:
    [line] = cells(ok("status", y_o))
    assert line[:5] == [str(y_o), "sample", "complete", "24", "0"]
    assert 0 < int(line[ERRORS]) < 24
    assert line[UNGRADED] == "24"
    assert int(line[RATE]) > 0
    ok("verify", "--workers", 1, "--max-errors", 1000, y_o)
    assert cells(ok("status", y_o))[0][UNGRADED] == "0"


def test_what_is_not_complete_ends_with_4_and_is_told_beside_what_is(y_o: Path, made: Path, trd: Trd) -> None:
    list_shards(y_o)[1].unlink()
    result = trd("status", made, y_o)
    assert result.exit_code == 4
    assert [line[STATE : MISSING + 1] for line in cells(result)] == [
        ["complete", "24", "0"],
        ["unfinished", "14", "10"],
    ]
    assert result.stderr == ""
    with hold(y_o / ".lock"):
        assert cells(trd("status", y_o))[0][STATE] == "running"
    (y_o / "run.json").unlink()
    [line] = cells(trd("status", y_o))
    assert (line[1], line[STATE], line[NOTE]) == ("set", "unfinished", "no run.json")


def test_a_damaged_or_foreign_shard_is_named(y_o: Path, trd: Trd) -> None:
    first, second, _ = list_shards(y_o)
    shutil.copy(first, second)
    [line] = cells(trd("status", y_o))
    assert line[STATE] == "damaged"
    assert line[NOTE] == f"{second} has the rows of {first.name}"
    flip(first)
    [line] = cells(trd("status", y_o))
    assert line[STATE] == "damaged"
    assert line[NOTE].startswith(f"{first} is damaged")


def test_directories_that_hold_no_output_are_one_clear_line(y_o: Path, tmp_path: Path, trd: Trd) -> None:
    (tmp_path / "empty").mkdir()
    for directory, words in (
        (tmp_path / "none", f"no such directory: {tmp_path / 'none'}; expected an output of trd"),
        (tmp_path / "empty", f"{tmp_path / 'empty'} has neither run.json nor shards; expected an output of trd"),
    ):
        result = trd("status", y_o, directory)
        assert result.exit_code == 1
        [line] = result.stderr.splitlines()
        assert line.startswith(f"trd status: error: {words}")
    (y_o / "run.json").write_text("{")
    [line] = trd("status", y_o).stderr.splitlines()
    assert line.startswith(f"trd status: error: {y_o}/run.json is no JSON")


def test_a_checkpoint_is_told_by_its_steps(tmp_path: Path, trd: Trd, ok: Trd) -> None:
    record = {
        "format": "trd-run-1",
        "command": "distill",
        "digest": "0",
        "inputs": [],
        "rows_expected": None,
        "about": {},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "train.jsonl").write_text('{"response_tokens": 300, "seconds": 2}\n' * 2)
    [line] = cells(trd("status", tmp_path))
    assert line[1:] == ["distill", "unfinished", "2", "", "", "", "150", ""]
    by_hand(tmp_path / "run.json", lambda record: record["about"].update(finished=True))
    [line] = cells(ok("status", tmp_path))
    assert line[1:5] == ["distill", "complete", "2", "0"]


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """Return the directory of a run with stages in several states."""
    directory = tmp_path / "run"
    for name in ("sample-0", "sample-1", "sample-2"):
        shutil.copytree(made, directory / "nodes" / name)
    list_shards(directory / "nodes" / "sample-2")[0].unlink()

    def node(name: str, stage: str, out: str) -> dict[str, Any]:
        return {"name": name, "stage": stage, "out": f"nodes/{out}", "inputs": [], "digest": name}

    nodes = [
        *(node("round0/sample", "sample", "sample-0"), node("round0/verify-rollouts", "verify", "sample-0")),
        *(node("round1/sample", "sample", "sample-1"), node("round2/sample", "sample", "sample-2")),
        *(node("round0/refine", "refine", "refine-0"), node("round0/distill", "distill", "distill-0")),
    ]
    states = ("done", "done", "running", "done", "failed", "skipped")
    status = {node["name"]: {"state": state, "digest": node["name"]} for node, state in zip(nodes, states, strict=True)}
    (directory / "graph.json").write_text(json.dumps({"format": "trd-graph-1", "name": "trial", "nodes": nodes}))
    (directory / "status.json").write_text(json.dumps(status))
    return directory


def test_a_run_is_told_stage_by_stage_by_its_records_and_its_directories(run: Path, trd: Trd) -> None:
    result = trd("status", run)
    assert result.exit_code == 4
    whole, *stages = cells(result)
    assert whole[:5] == [str(run), "run", "failed", "1", "5"]
    assert [(line[1], line[STATE], line[DONE]) for line in stages] == [
        ("round0/sample", "done", "24"),
        ("round0/verify-rollouts", "damaged", "24"),
        ("round1/sample", "unfinished", "24"),
        ("round2/sample", "unfinished", "14"),
        ("round0/refine", "failed", ""),
        ("round0/distill", "skipped", ""),
    ]
    assert stages[2][NOTE] == "interrupted"
    with hold(run / ".lock"):
        whole, *stages = cells(trd("status", run))
    assert (whole[STATE], stages[2][STATE]) == ("running", "running")


def test_a_run_whose_stages_are_all_done_is_complete(run: Path, ok: Trd) -> None:
    graph = json.loads((run / "graph.json").read_text())
    (run / "graph.json").write_text(json.dumps(graph | {"nodes": graph["nodes"][:1]}))
    whole, stage = cells(ok("status", run))
    assert whole[1:5] == ["run", "complete", "1", "0"]
    assert stage[1:5] == ["round0/sample", "done", "24", "0"]


def test_rounds_of_a_long_run_that_are_done_or_wait_have_a_line_together(run: Path, trd: Trd) -> None:
    def node(of: int, stage: str) -> dict[str, Any]:
        name = f"seed-0/round-{of}/{stage}"
        return {
            "name": name,
            "stage": stage,
            "out": "nodes/sample-0",
            "inputs": [],
            "digest": name,
            "round": of,
            "seed": 0,
        }

    nodes = [node(of, stage) for of in range(8) for stage in ("sample", "refine")]
    nodes = [{**node(0, "problems"), "name": "problems", "round": None, "seed": None}, *nodes]
    states = ["done"] * 9 + ["failed"]
    status = {node["name"]: {"state": s, "digest": node["digest"]} for node, s in zip(nodes, states, strict=False)}
    (run / "graph.json").write_text(json.dumps({"format": "trd-graph-1", "name": "trial", "nodes": nodes}))
    (run / "status.json").write_text(json.dumps(status))
    (run / "nodes" / "sample-0" / "problems.parquet").touch()
    whole, *lines = cells(trd("status", run))
    assert whole[1:5] == ["run", "failed", "9", "8"]
    assert [line[1:5] for line in lines[1:]] == [
        ["seed-0, rounds 0-3: 8 stages", "done", "8", "0"],
        ["seed-0/round-4/sample", "failed", "24", "0"],
        ["seed-0/round-4/refine", "waiting", "24", "0"],
        ["seed-0, rounds 5-7: 6 stages", "waiting", "0", "6"],
    ]
    (run / "graph.json").write_text(json.dumps({"format": "trd-graph-1", "name": "trial", "nodes": nodes[:7]}))
    assert len(cells(trd("status", run))) == 8, "three rounds have a line for each stage"
