"""Stages in workers of `trd run`: the same bytes as in processes of their own, also when a worker or the run is killed.

TRD_KILLS sets the number of kills of a test: 20 is the full form, which kills a run that trains too.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Trd
from support.children import Start, forking, start_child, wait_for
from support.sets import by_id
from support.tiny import build_model, write_bare_model, write_tokenizer

from trd_cli import keeper
from trd_cli.config.commands import RunConfig
from trd_cli.progress import NodeState
from trd_cli.prompting.tokens import HubTokenizer
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.logs import StageLog
from trd_cli.recipes.run import run
from trd_cli.recipes.slots import Placement, Task
from trd_cli.recipes.workers import Worker

KILLS = int(os.environ.get("TRD_KILLS", "1"))
SCRIPTED = """
setting = "opsd"
student = "scripted"
seeds = [0, 1]
[problems]
make = {kind = "arithmetic", n = 4}
[sample]
n = 2
engine_arg = {delay = 0.01}
shard_rows = 1
[refine]
engine_arg = {delay = 0.01}
shard_rows = 1
[verify]
workers = 1
[arms.trd]
method = "trd"
"""
GENERATING = """
engine = "transformers"
dtype = "float32"
device = "cpu"
max_tokens = 8
"""
# The second arm has another precision and an adapter: what one training sets must not be there for the next.
TINY = """
setting = "opsd"
student = "{student}"
rounds = 3
problems_per_round = 2
[problems]
make = {{kind = "arithmetic", n = 6}}
[sample]
n = 2
{generating}
[refine]
{generating}
[verify]
workers = 1
[distill]
device = "cpu"
learning_rate = 1e-2
[eval]
bench = "arithmetic:n=2,seed=2"
workers = 1
{generating}
[arms.trd]
method = "trd"
dtype = "float32"
[arms.adapter]
method = "trd"
dtype = "bfloat16"
lora = true
lora_rank = 2
"""
# Times, and what depends on the memory that a process holds.
OF_THE_MACHINE = ("seconds", "tokens_per_second", "peak_memory", "started", "finished")


def tiny_recipe(directory: Path) -> Path:
    path = directory / "recipe.toml"
    path.write_text(TINY.format(student=build_model(directory / "student"), generating=GENERATING))
    return path


def scripted_recipe(directory: Path, text: str = SCRIPTED) -> Path:
    path = directory / "recipe.toml"
    path.write_text(text)
    return path


def started(*args: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "trd_cli", *map(str, args)]
    return start_child(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers_of(run: Path) -> list[psutil.Process]:
    """Return the workers of a run, whoever started them, also those that nobody has reaped."""
    found = (p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"])
    return [p for p in found if "trd_cli.warm" in p.info["cmdline"] and f"{run.resolve()}/nodes/" in p.info["cmdline"]]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def rows_of(run: Path) -> dict[str, Any]:
    """Return the rows of every set by its directory and their ids; a model is named by its place in the run."""
    sets = {path.name: by_id(path) for kind in ("sample", "refine") for path in (run / "nodes").glob(f"{kind}-*")}
    return {
        name: {key: replace(row, model=row.model.removeprefix(str(run))) for key, row in rows.items()}
        for name, rows in sets.items()
    }


def weights_of(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in (run / "nodes").rglob("*.safetensors")}


def contents(run: Path) -> dict[str, bytes]:
    """Return the bytes of all shards, weights and scores below a run, and its training logs without times."""
    kinds = ("*.parquet", "*.safetensors", "results.csv")
    found = {str(p.relative_to(run)): p.read_bytes() for kind in kinds for p in (run / "nodes").rglob(kind)}
    for path in (run / "nodes").rglob("train.jsonl"):
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{k: v for k, v in step.items() if not any(k.find(w) >= 0 for w in OF_THE_MACHINE)} for step in steps]
        found[str(path.relative_to(run))] = json.dumps(kept).encode()
    return found


# The same bytes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return the directory of a recipe and of its run, of three rounds and two arms that train."""
    root = tmp_path_factory.mktemp("finished")
    ok("run", tiny_recipe(root), "--out", root / "run")
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Yield a function that starts a trd command in a process of its own, which has the modules loaded."""
    modules = (
        "import torch, transformers, accelerate\nfrom trd_cli.stages import distill, eval, refine, sample, verify\n"
    )
    with forking(modules, tmp_path_factory.mktemp("talk")) as starts:
        yield starts


def test_warm_stages_write_the_bytes_that_their_commands_write_alone(finished: Path, start: Start) -> None:
    run, nodes = finished / "run", json.loads((finished / "run" / "graph.json").read_text())["nodes"]
    assert {name for name, record in status(run).items() if record.get("warm")} == status(run).keys() - {"problems"}
    made = contents(run)
    last = [node for node in nodes if node["round"] == 2]
    for out in {node["out"] for node in last}:
        shutil.rmtree(run / out)
    for node in last:  # their workers have done all the others before
        command = start(*(run / word if word.startswith("nodes/") else word for word in node["argv"]))
        assert command.wait() == 0, command.stderr.read_text()
    alone = contents(run)
    assert made.keys() == alone.keys()
    assert [name for name in made if made[name] != alone[name]] == []
    kinds = [name.partition("/")[2].partition("/")[2] for name in made if name.endswith((".safetensors", ".jsonl"))]
    # Of the three students with an adapter, the last one has merged weights too.
    adapters, whole, logs = ["adapter/adapter_model.safetensors"] * 3, ["model.safetensors"] * 4, ["train.jsonl"] * 6
    assert sorted(kinds) == [*adapters, *whole, *logs]


def test_a_lost_checkpoint_is_trained_again_after_the_rounds_whose_states_are_gone(
    finished: Path, tmp_path: Path, ok: Trd
) -> None:
    run = shutil.copytree(finished / "run", tmp_path / "run", symlinks=True)
    outs = {node["name"]: run / node["out"] for node in json.loads((run / "graph.json").read_text())["nodes"]}
    trained = [name for name in outs if name.endswith("/distill")]
    rounds = [f"seed-0/round-{number}/trd/distill" for number in range(3)]
    assert [len(list(outs[name].glob("states/*"))) for name in rounds] == [0, 1, 0]
    before, times = contents(run), {name: status(run)[name]["started"] for name in trained}
    shutil.rmtree(outs[rounds[1]])
    ok("run", finished / "recipe.toml", "--out", run)
    assert contents(run) == before
    assert [name for name in trained if status(run)[name]["started"] != times[name]] == rounds[:2]
    assert [len(list(outs[name].glob("states/*"))) for name in rounds] == [0, 1, 0]


def test_each_warm_stage_has_its_own_log_and_its_own_peak_of_memory(finished: Path) -> None:
    run = finished / "run"
    logs = {path.stem: path.read_text() for path in (run / "logs").iterdir()}
    records = status(run)
    assert logs.keys() == {name.replace("/", "_") for name in records}
    for name, record in records.items():
        first, *rest = logs[name.replace("/", "_")].splitlines()
        stage = name.rpartition("/")[2].partition("-")[0]
        assert first.startswith(f"$ trd {'data' if stage == 'problems' else stage} ")
        assert rest
        assert not any(line.startswith("$ trd") for line in rest)
        assert record["peak_rss_bytes"] > 50 << 20
    grading = max(r["peak_rss_bytes"] for n, r in records.items() if "verify" in n)
    training = min(r["peak_rss_bytes"] for n, r in records.items() if n.endswith("distill"))
    assert grading != training
    assert workers_of(run) == []
    assert list((run / ".stages").iterdir()) == []


def test_off_and_a_list_choose_the_kinds_that_run_warm_and_enter_no_digest(tmp_path: Path, ok: Trd) -> None:
    shown = {}
    for number, kinds in enumerate(('"auto"', '"off"', '["verify"]')):
        path = scripted_recipe(tmp_path, f"warm = {kinds}\n{SCRIPTED}")
        said = ok("run", path, "--out", tmp_path / f"{number}", "--dry-run").stdout
        shown[kinds] = [line for line in said.splitlines() if "  nodes/" in line]
    warm = {kinds: [line.split()[1] for line in lines if line.endswith("(warm)")] for kinds, lines in shown.items()}
    names = [line.split()[1] for line in shown['"auto"']]
    assert warm['"auto"'] == [name for name in names if name != "problems"]
    assert warm['"off"'] == []
    assert warm['["verify"]'] == [name for name in names if "/verify-" in name]
    without = [[line.removesuffix("  (warm)") for line in lines] for lines in shown.values()]
    assert without[0] == without[1] == without[2]


def test_kinds_that_cannot_be_warm_are_refused(tmp_path: Path, trd: Trd) -> None:
    refused = trd("run", scripted_recipe(tmp_path, f'warm = ["problems"]\n{SCRIPTED}'), "--out", tmp_path / "run")
    assert refused.exit_code == 1
    assert '"auto", "off", or a list of sample, refine, verify, distill, eval' in refused.stderr


@dataclass
class Counts:
    """Collect the number of workers whenever a stage has begun."""

    run: Path
    workers: list[int] = field(default_factory=list)

    def show(self, states: Sequence[NodeState], changed: str) -> None:
        if next(each.state for each in states if each.name == changed) == "running":
            self.workers.append(len(workers_of(self.run)))

    def end(self) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.mark.parametrize(("need", "most"), [(0, 3), (1 << 50, 1)], ids=["room for all", "room for one"])
def test_workers_stay_as_far_as_the_estimated_memory_of_all_fits(need: int, most: int, tmp_path: Path) -> None:
    config = RunConfig.parse(
        {"recipe": str(scripted_recipe(tmp_path)), "out": str(tmp_path / "run"), "until": "verify"}
    )
    counts = Counts(tmp_path / "run")
    run(config, counts, lambda *_: None, lambda graph: {node.name: need for node in graph.nodes})
    assert max(counts.workers) == most
    assert workers_of(tmp_path / "run") == []


# Failing, interrupted, killed


def test_a_stage_that_fails_in_a_worker_is_shown_with_its_error(tmp_path: Path, trd: Trd) -> None:
    path = scripted_recipe(tmp_path, SCRIPTED.replace("delay = 0.01", "faults = 1.0", 1))
    result = trd("run", path, "--out", tmp_path / "run", "--until", "verify")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if ": failed in " in line]
    assert len(lines) == 2, "a worker that a failed stage has ended is followed by another"
    for line in lines:
        assert "trd sample: error: 8 of 8 rows ended as errors" in line
        assert line.endswith("(exit code 3)")
    assert status(tmp_path / "run")["seed-1/round-0/sample"]["exit_code"] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_an_interrupted_run_ends_its_workers_and_keeps_what_they_have_finished(
    number: signal.Signals, tmp_path: Path, ok: Trd
) -> None:
    slow = SCRIPTED.replace("delay = 0.01", "delay = 0.1", 1).replace("shard_rows = 1\n", "", 1)
    path, run = scripted_recipe(tmp_path, slow.replace("n = 4", "n = 12")), tmp_path / "run"
    process = started("run", path, "--out", run, "--until", "verify")
    wait_for(lambda: any("24 rows" in log.read_text() for log in run.glob("logs/*sample.log")))
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("trd run: error: interrupted; ")
    assert "Traceback" not in said + "".join(log.read_text() for log in run.glob("logs/*"))
    assert workers_of(run) == []
    assert list((run / ".stages").iterdir()) == []
    (directory,) = (run / "nodes").glob("sample-*")
    before = by_id(directory)
    assert 0 < len(before) < 24
    ok("run", path, "--out", run, "--until", "sample")
    after = by_id(directory)
    assert len(after) == 24
    assert before.items() <= after.items()


def test_a_worker_that_dies_while_its_stage_runs_is_replaced_once(tmp_path: Path) -> None:
    slow = SCRIPTED.replace("delay = 0.01", "delay = 0.3", 1)
    for deaths in (1, 2):
        run = tmp_path / f"run-{deaths}"
        process = started("run", scripted_recipe(tmp_path, slow), "--out", run, "--until", "sample")
        log = run / "logs" / "seed-0_round-0_sample.log"
        for death in range(deaths):
            wait_for(lambda: log.exists() and log.read_text().count(" rows") > death)  # noqa: B023
            (worker,) = workers_of(run)
            worker.kill()
        _, said = process.communicate(timeout=60)
        assert said.count("signal SIGKILL ended its worker; it goes on in a new one") == 1
        assert process.returncode == deaths - 1, said
        assert ("round-0/sample: failed in" in said) == (deaths == 2)
        assert log.read_text().count("$ trd sample") == 2
        assert workers_of(run) == []


@pytest.mark.parametrize("trains", [False, True] if "TRD_KILLS" in os.environ else [False])
def test_results_are_the_same_though_workers_and_runs_are_killed_at_random_moments(
    tmp_path: Path, ok: Trd, trains: bool
) -> None:
    path, chance = tiny_recipe(tmp_path) if trains else scripted_recipe(tmp_path), random.Random(5)
    until = () if trains else ("--until", "verify")
    ok("run", path, "--out", tmp_path / "undisturbed", *until)
    for victim in ("worker", "run"):
        run, kills = tmp_path / victim, 0
        while True:
            process = started("run", path, "--out", run, *until)
            while kills < KILLS and process.poll() is None:
                kills += strike(process, run, victim, chance, longest=10 if trains else 4)
            _, said = process.communicate()
            assert "Traceback" not in said
            if process.returncode == 0 and kills == KILLS:
                break
            if process.returncode == 0:
                run.rename(tmp_path / f"{victim}-{time.monotonic_ns()}")
        wait_for(lambda: workers_of(run) == [], 10)  # noqa: B023
        assert rows_of(run) == rows_of(tmp_path / "undisturbed")
        if trains:
            assert weights_of(run) == weights_of(tmp_path / "undisturbed")
        assert list((run / ".stages").iterdir()) == []


def strike(process: subprocess.Popen[str], run: Path, victim: str, chance: random.Random, longest: float) -> bool:
    """Kill a run or one of its workers at a random moment. Return False if it had ended before."""
    with contextlib.suppress(AssertionError):
        wait_for(lambda: workers_of(run) or process.poll() is not None, 20)
    time.sleep(chance.uniform(0, longest))
    if process.poll() is not None:
        return False
    if victim == "run":
        process.kill()
        return True
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        chance.choice(workers_of(run)).kill()
        return True
    return False


def test_a_worker_that_is_told_to_rest_while_it_ends_has_ended(tmp_path: Path) -> None:
    made = build_graph(load_recipe(scripted_recipe(tmp_path)), tmp_path / "run")
    node = next(node for node in made.nodes if node.stage == "sample")
    made.directory.mkdir()
    worker = Worker(made, node, Placement(Task(node.name)), StageLog(made, node, ["sample"]))
    worker.rest()
    assert worker.poll() is None
    worker.let_go()
    worker.rest()
    assert worker.poll() == 0
    worker.close()


# What one command leaves for the next


def test_a_command_in_a_worker_has_its_own_variables_directory_and_standard_streams(tmp_path: Path) -> None:
    worker = start_child(
        [sys.executable, "-m", "trd_cli.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    events = tmp_path / "events"
    answers = []
    for name, environment in (("a", {"TRD_EVENTS": str(events)}), ("b", {}), ("c", {"TRD_EVENTS": str(events)})):
        words = ["data", "make", "arithmetic", "--n", "3", "--out", f"{tmp_path}/{name}.parquet"]
        if name == "c":
            words = ["sample", "-m", "scripted", "-p", f"{tmp_path}/none.parquet", "--out", f"{tmp_path}/y"]
        order = {"argv": words, "log": f"{tmp_path}/{name}.log", "environment": environment}
        worker.stdin.write(json.dumps(order) + "\n")
        worker.stdin.flush()
        answers.append(json.loads(worker.stdout.readline()))
        if name == "a":
            size = events.stat().st_size if events.exists() else 0
        if name == "b":
            assert (events.stat().st_size if events.exists() else 0) == size
    assert [answer["exit_code"] for answer in answers] == [0, 0, 1]
    assert worker.wait(timeout=20) == 0, "it ends after a command that did not end well"
    assert json.loads(events.read_text().splitlines()[-1])["error"] == (tmp_path / "c.log").read_text().splitlines()[-1]
    assert "3 problems" in (tmp_path / "b.log").read_text()
    assert "Traceback" not in "".join((tmp_path / f"{name}.log").read_text() for name in "abc")


def test_a_kept_tokenizer_is_taken_for_no_other(tmp_path: Path) -> None:
    models = [tmp_path / name for name in ("a", "same", "other")]
    for path in models:
        path.mkdir()
        write_bare_model(path)
    write_tokenizer(models[2], merges=(("e", "x"), ("o", "n")))
    alone = [HubTokenizer(path).fingerprint() for path in models]
    keeper.begin()
    try:
        kept = [HubTokenizer(path).fingerprint() for path in (*models, *models)]
    finally:
        keeper.end()
    assert kept == alone + alone
    assert alone[0] == alone[1] != alone[2]
