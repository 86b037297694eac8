"""`trd run --tracker`: what wandb and trackio hold of a run is what its report says, each figure once.

The figures are those of tests/golden/run, two rounds of two arms that an earlier version made and reported. A run of
scripted stages is interrupted. trackio writes to a database of the test's own, and wandb to files, offline.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.children import start_child
from support.sets import by_hand
from support.trackers import Logged, of_trackio, of_wandb

from trd_cli.report.run_directory import read_run
from trd_cli.tracking.figures import Figures, Steps

OLD = Path(__file__).parent / "golden" / "run"
REPORT = OLD / "report"
BENCH = "arithmetic:n=4,seed=3"
SCRIPTED = """
setting = "opsd"
student = "scripted"
warm = "off"
[problems]
make = {kind = "arithmetic", n = 4}
[eval]
engine = "openai"
base_url = "http://me:opensesame@127.0.0.1:9/v1"
bench = "arithmetic:n=4"
[verify]
workers = 1
[arms.trd]
method = "trd"
[arms.rkl]
method = "rkl"
"""
TRACKERS = [
    name
    for name, needed in {"trackio": "gradio_client", "wandb": "wandb"}.items()
    if find_spec(name) and find_spec(needed)  # an old trackio comes without what it needs
]
EACH = pytest.mark.parametrize(
    "tracker",
    [
        pytest.param(name, marks=pytest.mark.skipif(name not in TRACKERS, reason=f"{name} is not installed"))
        for name in ("trackio", "wandb")
    ],
)
has_trackio = pytest.mark.skipif("trackio" not in TRACKERS, reason="trackio is not installed")
has_wandb = pytest.mark.skipif("wandb" not in TRACKERS, reason="wandb is not installed: pip install wandb")
with_tracker = pytest.mark.skipif(not TRACKERS, reason="neither trackio nor wandb is installed")
BY_ALL = [word for name in TRACKERS for word in ("--tracker", name)]
Held = dict[str, dict[str, Logged]]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the trackers write to places of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        patch.setenv("WANDB_MODE", "offline")
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        yield


def held(directory: Path, project: str) -> Held:
    """Return what each tracker holds of a run directory that has this project for itself."""
    found: Held = {}
    if "trackio" in TRACKERS:
        found["trackio"] = of_trackio(project, dict(os.environ))
    if "wandb" in TRACKERS:
        found["wandb"] = of_wandb(directory)
    return found


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run and its recipe."""
    return shutil.copytree(OLD, tmp_path_factory.mktemp("old") / "moved")


@pytest.fixture(scope="module")
def logged(old: Path, ok: Trd, places: None) -> Held:
    """Return what each tracker holds of the finished run."""
    assert "lacks figures" not in run_old(ok, old, *BY_ALL)
    return held(old / "run", "of-old")


def run_old(ok: Trd, old: Path, *more: object) -> str:
    """Run the finished recipe again, and return what it says."""
    return ok("run", old / "recipe.toml", "--out", old / "run", "--tracker-project", "of-old", *more).stderr


def report(name: str, **wanted: str) -> list[dict[str, str]]:
    """The lines of a table of the report in which some columns have these values."""
    lines = csv.DictReader((REPORT / f"{name}.csv").read_text().splitlines())
    return [line for line in lines if all(line[key] == value for key, value in wanted.items())]


def by_step(lines: Sequence[Mapping[str, str]], key: str) -> dict[int, Any]:
    """The values of a column of two rounds, by the steps that their trainings end with."""
    return {step: pytest.approx(float(line[key])) for step, line in zip((1, 2), lines, strict=True)}


@EACH
def test_a_tracker_holds_the_figures_of_the_report_at_the_steps_of_the_training(tracker: str, logged: Held) -> None:
    runs = logged[tracker]
    assert set(runs) == {"base", "trd/seed-0", "fkl/seed-0"}
    assert len({run.group for run in runs.values()}) == 1
    for arm in ("trd", "fkl"):
        run = runs[f"{arm}/seed-0"]
        # Each round has one step and a schedule of its own: steps are counted on.
        for key in ("loss", "grad_norm", "divergence_p95"):
            assert run.of(f"train/{key}") == by_step(report("training", arm=arm), key)
        for score in ("avg@2", "pass@2"):
            lines = report("scores", arm=arm, score=score)
            for key, end in (("value", ""), ("low", "/low"), ("high", "/high")):
                assert run.of(f"score/{BENCH}/{score}{end}") == by_step(lines, key)
        assert run.of("cost/distill/seconds") == by_step(report("cost", arm=arm, stage="distill"), "seconds")
    (before,) = report("scores", arm="base", score="avg@2")
    assert runs["base"].of(f"score/{BENCH}/avg@2/high") == {0: pytest.approx(float(before["high"]))}


def test_the_rounds_of_one_training_keep_the_steps_that_it_counts_itself(tmp_path: Path) -> None:
    copy = shutil.copytree(OLD / "run", tmp_path / "run")
    run = read_run(copy)
    trainings = [node for node in run.of_stage("distill") if node.arm == "trd"]
    second = trainings[1].path
    by_hand(second / "run.json", lambda record: record["about"].update(steps_before=1, total_steps=2))
    (second / "train.jsonl").write_text((second / "train.jsonl").read_text().replace('"step": 1,', '"step": 2,'))
    figures, steps = Figures(run), Steps(trainings)
    assert [point.step for node in trainings for point in figures.points(node, steps)] == [1, 1, 2, 2]
    assert [steps.of(run.nodes[f"seed-0/round-{of}/trd/eval"]) for of in (0, 1)] == [1, 2]


@EACH
def test_verdicts_and_lengths_are_tables_of_each_round(tracker: str, logged: Held) -> None:
    trd, fkl = logged[tracker]["trd/seed-0"], logged[tracker]["fkl/seed-0"]
    matrices = trd.of("refinement/verdict_matrix")
    assert sorted(matrices) == [0, 1], "before the step of each round"
    for number, table in matrices.items():
        expected = [(line["y_o"], line["y_r"], line["rows"]) for line in report("verdicts", round=str(number))]
        assert [(row["y_o"], row["y_r"], str(row["rows"])) for row in table] == expected
    for number, table in trd.of("refinement/spreads").items():
        expected = {line["figure"]: float(line["mean"]) for line in report("refinement", round=str(number))}
        assert {row["figure"]: row["mean"] for row in table} == pytest.approx(expected)
    of_round = {row["verdict"]: row["rows"] for row in fkl.of("rollouts/verdicts")[1]}
    assert of_round == {"correct": 0, "incorrect": 4, "error": 0, "timeout": 0}
    assert trd.of("refined/incorrect") == {0: 1.0, 1: 1.0}
    assert fkl.of("refined/incorrect") == {}, "this arm refines nothing"


@with_tracker
def test_nothing_is_sent_twice_however_often_a_run_is_started(old: Path, logged: Held, ok: Trd) -> None:
    # As a process leaves it that is killed when all is sent and before it can note so.
    for state in (old / "run" / "trackers").glob("*.json"):
        record = json.loads(state.read_text())
        for run in record["runs"].values():
            run.update(sent=[], unsure=numbers_of(run["sent"], run["next"]), files=[])
        state.write_text(json.dumps(record))
    run_old(ok, old, *BY_ALL)
    assert held(old / "run", "of-old") == logged


def numbers_of(digests: Sequence[str], points: int) -> dict[str, int]:
    """The number of each stage's first point: trainings have a point for their step and one more, the others one."""
    nodes = {node["digest"]: node for node in json.loads((OLD / "run" / "graph.json").read_text())["nodes"]}
    found, number = {}, 0
    for digest in digests:
        found[digest] = number
        number += 2 if nodes[digest]["stage"] == "distill" else 1
    assert number == points
    return found


@with_tracker
def test_a_run_that_is_killed_goes_on_in_the_same_runs_of_the_trackers(places: None, ok: Trd, tmp_path: Path) -> None:
    recipe, out = tmp_path / "scripted.toml", tmp_path / "run"
    recipe.write_text(SCRIPTED)
    words = ("run", recipe, "--until", "verify", "--out", out, "--tracker-project", "of-scripted", *BY_ALL)
    process = start_child([sys.executable, "-m", "trd_cli", *words], stderr=subprocess.DEVNULL)
    wait(lambda: "sample" in done_in(out), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    ok(*words)
    for tracker, runs in held(out, "of-scripted").items():
        assert set(runs) == {"trd/seed-0", "rkl/seed-0"}, tracker
        for name, run in runs.items():
            for key in ("cost/problems/rows", "cost/sample/rows", "rollouts/correct", "rollouts/verdicts"):
                assert list(run.of(key)) == [0], (tracker, name, key)
            assert len(run.rows) == (5 if name == "trd/seed-0" else 3)
        config = runs["trd/seed-0"].config
        assert config["options"]["sample"]["temperature"] == 0.6, "a default too"
        assert all(Path(config["nodes"][name]).is_dir() for name in ("problems", "seed-0/round-0/refine"))
        assert "opensesame" not in json.dumps(config)
        assert config["options"]["eval"]["base_url"] == ["http://***@127.0.0.1:9/v1"]


def done_in(out: Path) -> set[str]:
    """The last parts of the names of the stages that are done."""
    try:
        status = json.loads((out / "status.json").read_text())
    except (OSError, ValueError):
        return set()
    return {name.rpartition("/")[2] for name, record in status.items() if record["state"] == "done"}


def wait(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the run has ended too early"
        assert time.monotonic() < until, "the run takes too long"
        time.sleep(0.05)


@has_trackio
def test_a_run_goes_on_without_a_tracker_that_is_broken_and_sends_all_once_it_is_mended(
    places: None, ok: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, broken = shutil.copytree(OLD, tmp_path / "moved"), tmp_path / "packages" / "trackio"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('No module named gradio_client')\n")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(broken.parent), before))))
    words = ("run", old / "recipe.toml", "--out", old / "run", "--tracker", "trackio", "--tracker-project", "of-broken")
    told = ok(*words).stderr
    assert told.count("tracker trackio lacks figures: No module named gradio_client (pip install trackio)") == 1
    assert "all 20 stages are done" in told
    monkeypatch.setenv("PYTHONPATH", before)
    assert "lacks figures" not in ok(*words).stderr
    assert len(of_trackio("of-broken", dict(os.environ))["trd/seed-0"].rows) == 15


@has_wandb
def test_a_run_goes_on_where_nobody_is_logged_in(
    places: None, ok: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    old = shutil.copytree(OLD, tmp_path / "moved")
    told = ok("run", old / "recipe.toml", "--out", old / "run", "--tracker", "wandb").stderr
    assert told.count("tracker wandb lacks figures") == 1
    assert "wandb login" in told
    assert "all 20 stages are done" in told


def test_a_tracker_that_is_not_known_is_refused(trd: Trd, tmp_path: Path) -> None:
    result = trd("run", OLD / "recipe.toml", "--out", tmp_path / "run", "--tracker", "mlflow")
    assert result.exit_code == 1
    assert "--tracker" in result.stderr
    assert "'wandb' or 'trackio'" in result.stderr
