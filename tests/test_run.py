"""trd run: whole recipes through the command, with real stage processes; run again, redone in part, failing, killed.

Most recipes here use the scripted student and end before training. `test_two_rounds_…` trains tiny random models.
TRD_KILLS sets the number of kills of a test: 20 is the full form, in which the trained run is compared with an
undisturbed one.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.children import start_child, wait_for
from support.sets import by_id, flip, iter_rows
from support.tiny import build_model

from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

ROOT = Path(__file__).parent.parent
KILLS = os.environ.get("TRD_KILLS")
BASE = """
setting = "opsd"
student = "scripted"
[problems]
make = {kind = "arithmetic", n = 4}
[sample]
n = 2
shard_rows = 3
[verify]
workers = 1
"""
TRD_ARM = '[arms.trd]\nmethod = "trd"\n'
FKL_ARM = '[arms.fkl]\nmethod = "fkl"\n'
SIX = "".join(
    f'[arms.{name}]\nmethod = "trd"\n{keeps}\n'
    for name, keeps in {
        "all": "",
        "correct": 'subset = "correct"',
        "incorrect": 'subset = "incorrect"',
        "repaired": 'subset = "repaired"',
        "attempt-correct": "where = \"parent_verdict = 'correct'\"",
        "attempt-incorrect": "where = \"parent_verdict = 'incorrect'\"",
    }.items()
)
UP_TO_VERIFY = ("--until", "verify")
NODES = ("problems", "sample", "verify-rollouts", "refine", "verify-refined")


def written(directory: Path, text: str) -> Path:
    path = directory / "recipe.toml"
    path.write_text(text)
    return path


def sets_of(run: Path, stage: str) -> list[Path]:
    return sorted((run / "nodes").glob(f"{stage}-*"))


def sessions(directory: Path) -> list[int]:
    """Return the number of rows that each invocation generated."""
    return [json.loads(line)["rows"] for line in (directory / "sessions.jsonl").read_text().splitlines()]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def files(directory: Path) -> dict[str, tuple[int, int]]:
    """Return every file below, with its time and size."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): (p.stat().st_mtime_ns, p.stat().st_size) for p in found}


def rows_in(run: Path) -> dict[str, dict[str, Trajectory]]:
    """Return the rows of every trajectory set of a run, by the set's directory and their ids."""
    return {path.name: by_id(path) for stage in ("sample", "refine") for path in sets_of(run, stage)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return a run of six subset arms up to its verdicts. Tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("finished")
    path = written(root, BASE + SIX)
    assert ok("run", path, "--out", root / "run", *UP_TO_VERIFY).stdout == f"{root / 'run'}\n"
    return root / "run"


def copied(run: Path, target: Path) -> Path:
    """Return the run in another place, with the times of its files."""
    subprocess.run(["cp", "-a", str(run), str(target)], check=True)
    return target


def command(run: Path, *more: object) -> tuple[object, ...]:
    return ("run", run / "recipe.toml", "--out", run, *UP_TO_VERIFY, *more)


# Outputs


def test_six_subset_arms_sample_and_refine_once(finished: Path) -> None:
    graph = json.loads((finished / "graph.json").read_text())
    assert sum(node["stage"] == "distill" for node in graph["nodes"]) == 6
    for stage in ("sample", "refine"):
        (directory,) = sets_of(finished, stage)
        assert sessions(directory) == [8], "one invocation made all rows"
        assert {row.verdict for row in by_id(directory).values()} == {"correct", "incorrect"}


def test_a_finished_stage_is_on_record_with_its_time_its_memory_and_its_log(finished: Path) -> None:
    records = status(finished)
    assert [name.rpartition("/")[2] for name in records] == list(NODES)
    for name, record in records.items():
        assert (record["state"], record["exit_code"]) == ("done", 0)
        assert 0 < record["seconds"] < 120
        assert 2e7 < record["peak_rss_bytes"] < 1e10
        log = finished / "logs" / f"{name.replace('/', '_')}.log"
        assert log.read_text().startswith("$ trd ")
    refine = (finished / "logs" / "seed-0_round-0_refine.log").read_text()
    assert "refine 8/8 · " in refine


def test_running_again_changes_no_file(finished: Path, ok: Trd) -> None:
    before = files(finished)
    result = ok(*command(finished))
    assert files(finished) == before
    assert result.stdout == f"{finished}\n"
    assert result.stderr == f"trd run: {finished}: the 5 stages asked for, of 11, are done\n"


def test_what_is_done_is_read_from_the_outputs(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    (run / "status.json").unlink()
    before = files(run / "nodes"), files(run / "logs")
    ok(*command(run))
    assert (files(run / "nodes"), files(run / "logs")) == before
    assert {record["state"] for record in status(run).values()} == {"done"}


def test_a_shard_that_is_lost_is_made_again_and_nothing_else(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    (directory,) = sets_of(run, "refine")
    kept = files(sets_of(run, "sample")[0])
    lost = list_shards(directory)[0]
    count = len(read_rows(lost))
    lost.unlink()
    ok(*command(run))
    assert sessions(directory) == [8, count]
    assert by_id(directory) == by_id(sets_of(finished, "refine")[0])
    assert files(sets_of(run, "sample")[0]) == kept


def test_damaged_rows_that_a_stage_would_read_are_made_again_first(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    (rollouts,), (refined,) = sets_of(run, "sample"), sets_of(run, "refine")
    flip(list_shards(rollouts)[0], "messages.list.element.content")
    list_shards(refined)[0].unlink()
    ok(*command(run))
    assert sessions(rollouts) == [8, 3]
    assert rows_in(run) == rows_in(finished)


def test_a_damaged_problem_set_that_a_stage_would_read_is_made_again_first(
    finished: Path, tmp_path: Path, ok: Trd
) -> None:
    run = copied(finished, tmp_path / "run")
    flip(sets_of(run, "problems")[0] / "problems.parquet", "problem")
    list_shards(sets_of(run, "sample")[0])[0].unlink()
    ok(*command(run))
    assert rows_in(run) == rows_in(finished)


def test_verdicts_of_another_recipe_are_not_taken_for_those_of_this_one(
    finished: Path, tmp_path: Path, ok: Trd
) -> None:
    run = copied(finished, tmp_path / "run")
    own = '[arms.{0}]\nmethod = "trd"\nsample = {{temperature = 0.3}}\n'
    lenient = BASE.replace("[verify]", "[verify]\nlenient = true")
    ok("run", written(tmp_path, lenient + own.format("a")), "--out", run, *UP_TO_VERIFY)
    ok("run", written(tmp_path, BASE + own.format("b")), "--out", run, *UP_TO_VERIFY)
    assert len(sets_of(run, "sample")) == 2, "both arms have the same rows"
    graders = {row.grader_version for rows in rows_in(run).values() for row in rows.values()}
    assert not any("lenient" in grader for grader in graders)


def test_a_set_whose_verdicts_are_nobody_s_is_graded_again(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    (directory,) = sets_of(run, "refine")
    (directory / "verdicts.json").unlink()
    shard = list_shards(directory)[0]
    write_shard(shard, [replace(row, verdict="timeout", grader_version="0") for row in read_rows(shard)])
    ok(*command(run))
    assert rows_in(run) == rows_in(finished)


# Doing a part


def test_from_does_a_stage_again_with_what_comes_of_it(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    before = files(run / "nodes")
    started = {name: record["started"] for name, record in status(run).items()}
    ok(*command(run, "--from", "refine"))
    after = files(run / "nodes")
    assert {name for name in before if after.get(name) == before[name]} == {
        name for name in before if not name.startswith("refine-")
    }
    (refined,) = sets_of(run, "refine")
    assert sessions(refined) == [8], "the set is a new one"
    assert rows_in(run) == rows_in(finished)
    again = {name.rpartition("/")[2] for name, r in status(run).items() if r["started"] != started[name]}
    assert again == {"refine", "verify-refined"}
    assert sorted(path.name for path in (run / "nodes").iterdir()) == sorted(
        path.name for path in (finished / "nodes").iterdir()
    )


def test_from_takes_away_what_an_earlier_recipe_made_of_the_same_rows(tmp_path: Path, ok: Trd) -> None:
    run = tmp_path / "run"
    hot = BASE + "[refine]\ntemperature = 1.0\n" + TRD_ARM
    ok("run", written(tmp_path, hot), "--out", run, *UP_TO_VERIFY)
    earlier = sets_of(run, "refine")
    path = written(tmp_path, BASE + TRD_ARM)
    ok("run", path, "--out", run, *UP_TO_VERIFY)
    assert len(sets_of(run, "refine")) == 2
    ok("run", path, "--out", run, *UP_TO_VERIFY, "--from", "sample")
    assert len(sets_of(run, "refine")) == 1
    assert not set(earlier) & set(sets_of(run, "refine")), "it was made of rollouts that are gone"


def test_from_verify_takes_away_what_an_earlier_recipe_chose_by_the_verdicts(tmp_path: Path, ok: Trd) -> None:
    run = tmp_path / "run"
    chosen = BASE + "[refine]\nsubset = 'incorrect'\n" + TRD_ARM
    ok("run", written(tmp_path, chosen), "--out", run, *UP_TO_VERIFY)
    (by_verdict,) = sets_of(run, "refine")
    path = written(tmp_path, BASE + TRD_ARM)
    ok("run", path, "--out", run, *UP_TO_VERIFY)
    (all_rows,) = set(sets_of(run, "refine")) - {by_verdict}
    ok("run", path, "--out", run, *UP_TO_VERIFY, "--from", "verify")
    assert sets_of(run, "refine") == [all_rows]


def test_from_verify_grades_again_what_is_there(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    for directory in (*sets_of(run, "sample"), *sets_of(run, "refine")):
        shard = list_shards(directory)[0]
        turned = {"correct": "incorrect", "incorrect": "correct"}
        write_shard(shard, [replace(row, verdict=turned[row.verdict]) for row in read_rows(shard)])
    assert rows_in(run) != rows_in(finished)
    ok(*command(run, "--from", "verify"))
    assert rows_in(run) == rows_in(finished)
    assert [sessions(path) for path in (*sets_of(run, "sample"), *sets_of(run, "refine"))] == [[8], [8]]


def test_other_grading_options_grade_again_and_generate_nothing(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    recipe = (run / "recipe.toml").read_text()
    path = written(tmp_path, recipe.replace("[verify]\n", "[verify]\nlenient = true\n"))
    ok("run", path, "--out", run, *UP_TO_VERIFY)
    graders = {row.grader_version for rows in rows_in(run).values() for row in rows.values()}
    assert len(graders) == 1
    assert "lenient" in graders.pop()
    assert [sessions(path) for path in (*sets_of(run, "sample"), *sets_of(run, "refine"))] == [[8], [8]]
    before = files(run)
    ok("run", path, "--out", run, *UP_TO_VERIFY)
    assert files(run) == before


def test_until_and_only_leave_out_the_rest(tmp_path: Path, ok: Trd) -> None:
    own = '[arms.{0}]\nmethod = "trd"\nrefine = {{temperature = 0.{0}}}\n'
    path = written(tmp_path, BASE + own.format(1) + own.format(2) + own.format(3))
    run = tmp_path / "run"
    ok("run", path, "--out", run, "--until", "sample")
    assert [p.name.partition("-")[0] for p in sorted((run / "nodes").iterdir())] == ["problems", "sample"]
    ok("run", path, "--out", run, "--until", "refine", "--only", "1", "--only", "3")
    assert len(sets_of(run, "refine")) == 2
    assert {name.split("/")[-2] for name in status(run) if name.endswith("refine")} == {"1", "3"}
    (sampled,) = sets_of(run, "sample")
    assert sessions(sampled) == [8]


def test_from_with_only_does_not_take_rows_away_from_other_arms(finished: Path, tmp_path: Path, trd: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    before = files(run)
    result = trd(*command(run, "--from", "sample", "--only", "all"))
    assert result.exit_code == 1
    assert "also attempt-correct, attempt-incorrect, correct, incorrect, repaired" in result.stderr
    assert files(run) == before


def test_from_a_stage_that_the_run_does_not_have_is_refused(finished: Path, trd: Trd) -> None:
    result = trd(*command(finished, "--from", "eval"))
    assert result.exit_code == 1
    assert "--from eval; expected one of problems, sample, verify, refine" in result.stderr


def test_a_dry_run_shows_the_graph_and_the_prompts_and_changes_nothing(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    before = files(run)
    shown = ok(
        "run",
        run / "recipe.toml",
        "--out",
        run,
        "--from",
        "refine",
        "--only",
        "all",
        "--dry-run",
        *(f"--only={arm}" for arm in ("correct", "incorrect", "repaired", "attempt-correct", "attempt-incorrect")),
    ).stdout
    assert files(run) == before
    lines = [line.split()[:2] for line in shown.splitlines() if line.startswith("  ")]
    states = {name.rpartition("/")[2]: state for state, name in lines[:5]}
    assert states == dict(zip(NODES, ("done", "done", "done", "again", "again"), strict=True))
    assert "── seed-0/round-0/refine, by its own --dry-run" in shown
    attempts = [row.response for row in iter_rows(list_shards(sets_of(run, "sample")[0]))]
    assert any(attempt in shown for attempt in attempts), "the teacher is shown a real attempt"
    assert "── seed-0/round-0/all/distill, from its template (its inputs are not there yet)" in shown
    assert "⟨the student's attempt y_o⟩" in shown


def test_a_dry_run_of_nothing_renders_the_first_problem(tmp_path: Path, ok: Trd) -> None:
    path = written(tmp_path, BASE + TRD_ARM + FKL_ARM)
    shown = ok("run", path, "--out", tmp_path / "run", "--dry-run").stdout
    assert not (tmp_path / "run").exists()
    assert "7 stages in" in shown
    assert "0 done, 7 to run" in shown
    ok("data", "make", "arithmetic", "--n", 4, "--out", tmp_path / "p.parquet")
    from trd_cli.trajectories.problem_sets import read_problems

    first = read_problems(tmp_path / "p.parquet")[0]
    assert shown.count(first.problem) == 6, "sample, refine, and both models of two arms"
    assert shown.count("teacher reads:") == 2, "two arms whose teachers read different prompts"
    assert "for your eyes only" in shown


# Failures

FAILING = '[arms.bad]\nmethod = "trd"\nrefine = {engine_arg = {crash_after = 3}}\n'


def test_a_failing_arm_does_not_stop_the_others(tmp_path: Path, trd: Trd, ok: Trd) -> None:
    path = written(tmp_path, BASE + FAILING + TRD_ARM)
    run = tmp_path / "run"
    result = trd("run", path, "--out", run, *UP_TO_VERIFY)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    log = run / "logs" / "seed-0_round-0_bad_refine.log"
    assert last.startswith("trd run: error: 1 of 7 stages failed, 1 skipped for it: ")
    assert f"seed-0/round-0/bad/refine ({log})" in last
    assert result.stdout == ""
    assert "the scripted engine crashed" in log.read_text()
    states = {name: record["state"] for name, record in status(run).items()}
    assert states.pop("seed-0/round-0/bad/refine") == "failed"
    assert states.pop("seed-0/round-0/bad/verify-refined") == "skipped"
    assert set(states.values()) == {"done"}
    assert {"seed-0/round-0/refine", "seed-0/round-0/verify-refined"} <= states.keys()
    made = files(run / "nodes")
    assert trd("run", path, "--out", run, *UP_TO_VERIFY).exit_code == 1, "tried again"
    after = files(run / "nodes")
    bad = status(run)["seed-0/round-0/bad/refine"]["digest"][:10]
    assert {name for name in made if bad not in name} == {name for name in after if bad not in name}
    written(tmp_path, BASE + FAILING.replace("crash_after = 3", "length = 3") + TRD_ARM)
    ok("run", path, "--out", run, *UP_TO_VERIFY)
    assert {name: t for name, t in files(run / "nodes").items() if name in made and bad not in name} == {
        name: t for name, t in made.items() if bad not in name
    }


def test_too_many_error_rows_fail_a_stage_until_more_are_allowed(tmp_path: Path, trd: Trd, ok: Trd) -> None:
    faulty = BASE.replace("[sample]", "[sample]\nengine_arg = {faults = 0.5}") + TRD_ARM
    path, run = written(tmp_path, faulty), tmp_path / "run"
    for _ in range(2):
        assert trd("run", path, "--out", run, "--until", "sample").exit_code == 1
        assert status(run)["seed-0/round-0/sample"]["exit_code"] == 3
    written(tmp_path, faulty.replace("[sample]", "[sample]\nmax_errors = 100"))
    ok("run", path, "--out", run, "--until", "sample")
    (directory,) = sets_of(run, "sample")
    assert sessions(directory) == [8], "no row was generated again"


def test_a_set_with_too_many_errors_is_not_done_whatever_is_on_record(tmp_path: Path, trd: Trd) -> None:
    faulty = BASE.replace("[sample]", "[sample]\nengine_arg = {faults = 0.5}") + TRD_ARM
    path, run = written(tmp_path, faulty), tmp_path / "run"
    assert trd("run", path, "--out", run, "--until", "sample").exit_code == 1
    (run / "status.json").unlink()
    result = trd("run", path, "--out", run, "--until", "sample")
    assert result.exit_code == 1
    assert "rows ended as errors" in result.stderr


def test_a_model_without_weights_is_refused_before_anything_is_generated(tmp_path: Path, trd: Trd) -> None:
    path, run = written(tmp_path, BASE + TRD_ARM), tmp_path / "run"
    result = trd("run", path, "--out", run)
    assert result.exit_code == 1
    assert "scripted has no weights" in result.stderr
    assert not run.exists()


def test_a_second_run_in_the_same_directory_is_refused(finished: Path, tmp_path: Path, trd: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    with open(run / ".lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = trd(*command(run))
    assert result.exit_code == 1
    assert "in use by another trd run" in result.stderr
    assert trd(*command(run)).exit_code == 0


def test_a_directory_with_other_files_is_refused(tmp_path: Path, trd: Trd) -> None:
    path = written(tmp_path, BASE + TRD_ARM)
    for out, reason in ((tmp_path, "holds other files (recipe.toml)"), (path, "is a file")):
        (tmp_path / "notes.txt").write_text("mine")
        result = trd("run", path, "--out", out)
        assert result.exit_code == 1
        assert reason in result.stderr or "holds other files (notes.txt)" in result.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.toml", "notes.txt"}


def test_the_stages_that_an_earlier_run_left_behind_are_ended_first(finished: Path, tmp_path: Path, ok: Trd) -> None:
    run = copied(finished, tmp_path / "run")
    import psutil

    left = {}
    (run / ".stages").mkdir(exist_ok=True)
    for name in ("refine", "sample"):
        with open(run / ".stages" / f"{name}.lock", "w+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            left[name] = start_child(["sleep", "300"], pass_fds=[lock.fileno()])
            created = psutil.Process(left[name].pid).create_time()
            lock.write(json.dumps({"node": f"seed-0/round-0/{name}", "pid": left[name].pid, "created": created}))
    result = ok(*command(run))
    for name, process in left.items():
        assert f"waiting for the end of seed-0/round-0/{name}" in result.stderr
        assert process.wait(timeout=1) == -signal.SIGTERM
    assert list((run / ".stages").iterdir()) == []


def test_a_stage_tells_its_run_rows_and_errors_as_json(
    problems: Path, tmp_path: Path, trd: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events"
    monkeypatch.setenv("TRD_EVENTS", str(events))
    assert trd("sample", "-m", "scripted", "-p", problems, "--out", tmp_path / "y_o").exit_code == 0
    first, *_, last = [json.loads(line)["work"] for line in events.read_text().splitlines()]
    assert (first["what"], first["total"], first["rows"]) == ("sample", 12, 0)
    assert (last["before"], last["rows"], last["total"]) == (0, 12, 12)
    refused = trd("sample", "-m", "scripted", "-p", tmp_path / "none.parquet", "--out", tmp_path / "y")
    error = json.loads(events.read_text().splitlines()[-1])["error"]
    assert error == refused.stderr.splitlines()[-1]


def test_a_failed_stage_is_shown_with_its_error_whatever_its_log_ends_with(tmp_path: Path, trd: Trd) -> None:
    path = written(tmp_path, BASE.replace("n = 2", "n = 2\nengine_arg = {faults = 1.0}") + TRD_ARM)
    shown = trd("run", path, "--out", tmp_path / "run", "--until", "sample").stderr
    (line,) = [line for line in shown.splitlines() if ": failed in " in line]
    assert "trd sample: error: 8 of 8 rows ended as errors" in line
    assert line.endswith("(exit code 3)")


# Interrupted and killed


def started(*args: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "trd_cli", *map(str, args)]
    return start_child(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def stages_of(run: Path) -> list[int]:
    """Return the trd processes that work in a run's directory, whoever started them."""
    import psutil

    found = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    mark = f"{run.resolve()}/nodes/"
    return [p.pid for p in found if any(mark in word for word in p.info["cmdline"])]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_an_interrupted_run_ends_its_stage_and_goes_on_from_there(
    number: signal.Signals, tmp_path: Path, ok: Trd
) -> None:
    slow = BASE.replace("[sample]", "[sample]\nengine_arg = {delay = 0.2}").replace("shard_rows = 3", "") + TRD_ARM
    path, run = written(tmp_path, slow.replace("n = 4", "n = 12")), tmp_path / "run"
    process = started("run", path, "--out", run, *UP_TO_VERIFY)
    wait_for(lambda: any("24 rows" in p.read_text() for p in run.glob("logs/*sample.log")))
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("trd run: error: interrupted; ")
    assert "Traceback" not in said
    assert stages_of(run) == []
    (directory,) = sets_of(run, "sample")
    assert 0 < len(by_id(directory)) < 24
    assert status(run)["seed-0/round-0/sample"]["state"] == "waiting"
    written(tmp_path, slow.replace("n = 4", "n = 12"))
    ok("run", path, "--out", run, "--until", "sample")
    first, second = sessions(directory)
    assert first + second == len(by_id(directory)) == 24


def survive(
    path: Path, more: tuple[str, ...], run: Path, kills: int, seed: int, longest: float, log: Path | None = None
) -> int:
    """Kill a run at random moments and run it again until it is done; return the number of kills.

    Existing rows stay, and by the engine's `log` none is generated again.
    """
    chance, made = random.Random(seed), 0
    before: dict[str, dict[str, Trajectory]] = {}
    finished: list[tuple[int, set[str]]] = []
    while True:
        process = started("run", path, "--out", run, *more)
        if made < kills:
            try:
                _, said = process.communicate(timeout=chance.uniform(0.3, longest))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                made += 1
                after = rows_in(run)
                for name, rows in before.items():
                    for identity, row in rows.items():
                        there = after[name][identity]
                        assert row in (there, replace(there, **UNGRADED)), "what was done is still done"
                before = after
                # The rows are read first: one that is generated in between is in neither.
                finished.append((len(generated(log)), {name for rows in after.values() for name in rows}))
                continue
        else:
            _, said = process.communicate()
        assert process.returncode == 0, said
        assert "Traceback" not in said
        for position, names in finished:
            assert not names & set(generated(log)[position:]), "what was finished was generated again"
        return made


def generated(log: Path | None) -> list[str]:
    """Return ids of the rows in the order in which the scripted engine made them."""
    return log.read_text().split() if log is not None and log.exists() else []


UNGRADED = dict.fromkeys(("verdict", "extracted_answer", "grader", "grader_version", "verdict_detail"), None)


def check_nothing_twice(run: Path) -> None:
    for stage in ("sample", "refine"):
        for directory in sets_of(run, stage):
            assert sum(sessions(directory)) <= len(by_id(directory))
    assert stages_of(run) == []
    assert not list((run / "nodes").glob(".*"))


TWO_SLOTS = 'devices = ["cpu", "cpu"]\n'


@pytest.mark.parametrize("devices", [TWO_SLOTS, *[""] * bool(KILLS)], ids=["two-slots", *["one-slot"] * bool(KILLS)])
def test_rows_survive_that_their_run_is_killed_at_any_moment(devices: str, tmp_path: Path, ok: Trd) -> None:
    log = tmp_path / "engine.log"
    engine = f'engine_arg = {{delay = 0.03, log = "{log}"}}\nshard_rows = 1\n'
    slow = BASE.replace("[sample]", f"[sample]\n{engine}").replace("shard_rows = 3\n", "")
    text = "seeds = [0, 1]\n" + devices + slow + f"[refine]\n{engine}" + TRD_ARM
    path = written(tmp_path, text + '[arms.own]\nmethod = "trd"\nrefine = {top_k = 5}\n')
    ok("run", path, "--out", tmp_path / "undisturbed", *UP_TO_VERIFY)
    assert len(generated(log)) == len(set(generated(log))) == 48, "2 seeds, 8 rollouts, refined in 2 ways"
    kills, made, round_number = int(KILLS or 2), 0, 0
    while made < kills:
        run = tmp_path / f"run-{round_number}"
        log.unlink(missing_ok=True)
        made += survive(path, UP_TO_VERIFY, run, kills - made, seed=round_number, longest=4, log=log)
        round_number += 1
        assert rows_in(run) == rows_in(tmp_path / "undisturbed")
        for name in ("graph.json", "recipe.toml"):
            assert (run / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
        assert {r["state"] for r in status(run).values()} == {"done"}
        check_nothing_twice(run)


TINY = """
setting = "opsd"
student = "{student}"
devices = ["cpu", "cpu"]
rounds = 2
problems_per_round = 2
[problems]
make = {{kind = "arithmetic", n = 4}}
[sample]
n = 2
engine = "transformers"
dtype = "float32"
device = "cpu"
max_tokens = 8
shard_rows = 1
[refine]
engine = "transformers"
dtype = "float32"
device = "cpu"
max_tokens = 8
shard_rows = 1
[verify]
workers = 1
[distill]
dtype = "float32"
device = "cpu"
learning_rate = 1e-2
[arms.trd]
method = "trd"
teacher_weights = "initial"
[arms.fkl]
method = "fkl"
subset = "incorrect"
"""


def test_two_rounds_of_two_arms_train_from_student_to_student_though_their_run_is_killed(
    tmp_path: Path, ok: Trd
) -> None:
    path = written(tmp_path, TINY.format(student=build_model(tmp_path / "student")))
    run = tmp_path / "run"
    kills = int(KILLS or 1)
    assert survive(path, (), run, kills, seed=3, longest=20) <= kills
    check_nothing_twice(run)
    graph = {node["name"]: node for node in json.loads((run / "graph.json").read_text())["nodes"]}
    assert len(sets_of(run, "sample")) == 3, "one for both arms, then one each"
    for arm in ("trd", "fkl"):
        first, second = (run / graph[f"seed-0/round-{r}/{arm}/distill"]["out"] for r in (0, 1))
        records = [json.loads((path / "run.json").read_text()) for path in (first, second)]
        assert [record["about"]["finished"] for record in records] == [True, True]
        assert [record["about"]["student"] for record in records] == [str(tmp_path / "student")] * 2
        assert records[1]["config"]["continue_from"] == str(first.resolve())
        assert records[1]["about"]["steps_before"] == records[0]["about"]["steps"]
        rollouts = by_id(run / graph[f"seed-0/round-1/{arm}/sample"]["out"])
        assert {(row.round, row.model) for row in rollouts.values()} == {(1, str(first.resolve()))}
    early, late = (
        {row.problem_id for row in by_id(run / graph[name]["out"]).values()}
        for name in ("seed-0/round-0/sample", "seed-0/round-1/fkl/sample")
    )
    assert len(early) == len(late) == 2
    assert not early & late, "every round has problems of its own"
    before = files(run)
    assert "all 15 stages are done" in ok("run", path, "--out", run).stderr
    assert files(run) == before
    if KILLS:
        ok("run", path, "--out", tmp_path / "undisturbed")
        assert responses(run) == responses(tmp_path / "undisturbed")
        assert (run / "graph.json").read_bytes() == (tmp_path / "undisturbed" / "graph.json").read_bytes()


def responses(run: Path) -> dict[str, dict[str, Any]]:
    """Return the generated texts and their verdicts, with models named by their place in the run."""
    found = rows_in(run)
    return {
        name: {i: (row.response_token_ids, row.verdict, row.problem_id) for i, row in rows.items()}
        for name, rows in found.items()
    }


# On a terminal


def test_a_terminal_shows_a_table_of_all_stages(tmp_path: Path) -> None:
    path = written(tmp_path, TWO_SLOTS + BASE + TRD_ARM)
    main, other = pty.openpty()
    words = [sys.executable, "-m", "trd_cli", "run", str(path), "--out", str(tmp_path / "run"), "--until", "sample"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    process = start_child(words, stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    shown = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # the last writer has gone
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "0 of 2 stages done" in text
    assert "2 of 2 stages done" in text
    assert "seed-0/round-0/sample" in text
    assert "8/8" in text
    assert re.search(r"stage +state +devices +rows", text)
    assert re.search(r"seed-0/round-0/sample +.*running.* +cpu ", text)
