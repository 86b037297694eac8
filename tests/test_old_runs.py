"""A run that an earlier version made, in tests/golden/run: it is read, resumed and reported as then.

The run has two rounds of two arms of a random model. It was made in /tmp/old, which its records and rows name; tests
use copies elsewhere. One of its four checkpoints has its weights. `report` has the tables of that version.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.sets import by_hand

from trd_cli.recipes.done import Status, done_nodes, forget
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.state import state_of

OLD = Path(__file__).parent / "golden" / "run"
MADE_IN = "/tmp/old"
ROUND = "seed-0/round-0"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the recipe, its model and its run."""
    return shutil.copytree(OLD, tmp_path / "moved")


def graph_of(old: Path) -> dict[str, dict[str, Any]]:
    """The nodes of the run by name, without the command lines, which name the model by its path."""
    nodes = json.loads((old / "run" / "graph.json").read_text())["nodes"]
    return {node["name"]: {key: value for key, value in node.items() if key != "argv"} for node in nodes}


def again(old: Path, name: str) -> tuple[Path, list[str]]:
    """The output of a node in the copy, and the command that made it."""
    nodes = json.loads((old / "run" / "graph.json").read_text())["nodes"]
    (node,) = (node for node in nodes if node["name"] == name)
    words = [str(old / "run" / w) if w.startswith("nodes/") else w.replace(MADE_IN, str(old)) for w in node["argv"]]
    return old / "run" / node["out"], words


def files(directory: Path, pattern: str = "*") -> dict[str, bytes]:
    """All files but locks."""
    found = (path for path in directory.rglob(pattern) if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def table(path: Path) -> list[list[float | str]]:
    return [[_value(cell) for cell in line] for line in csv.reader(path.read_text().splitlines())]


def _value(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def test_an_old_run_is_done_and_running_it_again_changes_none_of_its_outputs(old: Path, ok: Trd) -> None:
    outputs, nodes, states = files(old / "run" / "nodes"), graph_of(old), (old / "run" / "status.json").read_bytes()
    assert "all 20 stages are done" in ok("run", old / "recipe.toml", "--out", old / "run").stderr
    assert files(old / "run" / "nodes") == outputs
    assert (old / "run" / "status.json").read_bytes() == states
    assert graph_of(old) == nodes


def test_the_commands_of_an_old_run_find_their_outputs_whole(old: Path, ok: Trd) -> None:
    """Each stage comes to the digest that its directory has, and to the rows that are in it."""
    for stage in ("sample", "verify-rollouts", "refine", "trd/distill", "fkl/distill", "trd/eval"):
        out, words = again(old, f"{ROUND}/{stage}")
        rows, logs, run = files(out, "*.parquet"), files(out, "*.jsonl"), json.loads((out / "run.json").read_text())
        ok(*words)
        assert (files(out, "*.parquet"), files(out, "*.jsonl")) == (rows, logs), stage
        after = json.loads((out / "run.json").read_text())
        assert list(after) == list(run)
        for key in ("format", "command", "digest", "identity", "about", "created", "rows_expected"):
            assert after[key] == run[key], (stage, key)


def test_an_unfinished_old_set_is_filled_up(old: Path, ok: Trd) -> None:
    out, words = again(old, f"{ROUND}/sample")
    (out / "shard-00001.parquet").unlink()
    graph = build_graph(load_recipe(old / "recipe.toml"), old / "run")
    missing = {node.name for node in graph.nodes} - done_nodes(graph, graph.nodes)
    assert missing == {f"{ROUND}/sample", f"{ROUND}/verify-rollouts"}, "what was made from them stays"
    assert "4 rows, 3 done before" in ok(*words).stderr


def test_what_was_made_from_a_removed_output_is_told_by_the_sources_in_its_record(old: Path) -> None:
    """Outputs of earlier recipes go with what they were made from; a name elsewhere in a record is no source."""
    graph = build_graph(load_recipe(old / "recipe.toml"), old / "run")
    refined, checkpoint, scores = (again(old, f"{ROUND}/{name}")[0] for name in ("refine", "trd/distill", "trd/eval"))
    earlier, later = checkpoint.with_name("distill-aaaaaaaaaa"), scores.with_name("eval-aaaaaaaaaa")
    rollouts = refined.with_name("sample-aaaaaaaaaa")
    shutil.copytree(checkpoint, earlier)
    shutil.copytree(scores, later)
    shutil.copytree(again(old, f"{ROUND}/sample")[0], rollouts)
    model = f"{MADE_IN}/run/nodes/{earlier.name}"
    by_hand(later / "run.json", lambda run: run["config"].update(model=model))
    by_hand(rollouts / "run.json", lambda run: run["identity"].update(note=f"nodes/{refined.name}"))
    forget(graph, graph.made_from([f"{ROUND}/refine"]), Status(old / "run"))
    assert not any(path.exists() for path in (refined, checkpoint, scores, earlier, later))
    assert rollouts.is_dir()


def test_every_reader_of_an_old_set_sees_that_a_shard_is_gone(old: Path, ok: Trd, trd: Trd) -> None:
    out, _ = again(old, f"{ROUND}/sample")
    assert state_of(out).is_finished
    (out / "shard-00001.parquet").unlink()
    state = state_of(out)
    assert (state.is_finished, state.rows, state.expected) == (False, 3, 4)
    refused = trd("refine", out, "--setting", "opsd", "--teacher", old / "student", "--out", old / "y_r")
    assert "is unfinished: 3 of 4 rows" in refused.stderr
    assert "done, but only 3 of 4 rows are there" in ok("report", old / "run", "--out", old / "report").stderr


def test_every_reader_of_an_old_checkpoint_sees_that_its_training_has_not_ended(old: Path, trd: Trd) -> None:
    out, _ = again(old, f"{ROUND}/trd/distill")
    assert state_of(out).is_finished
    by_hand(out / "run.json", lambda run: run["about"].pop("finished"))
    assert not state_of(out).is_finished
    graph = build_graph(load_recipe(old / "recipe.toml"), old / "run")
    assert f"{ROUND}/trd/distill" not in done_nodes(graph, graph.nodes)
    assert "is an unfinished checkpoint" in trd("eval", out, "--bench", "arithmetic:n=2", "--dry-run").stderr


def test_what_old_stages_tell_is_read_and_written_as_it_stands(old: Path) -> None:
    for path in (old / "run" / "nodes").glob("*/run.json"):
        run = read_run_json(path.parent)
        told = About.of(run).record(run["command"])
        assert (list(told), told) == (list(run["about"]), run["about"]), path


def test_a_benchmark_in_the_record_of_another_version_is_read_as_far_as_it_is_known() -> None:
    about = About.of({"about": {"benchmarks": {"aime25": {"task": "math", "source": "s", "of_tomorrow": 1}}}})
    assert (about.benchmarks["aime25"].source, about.benchmarks["aime25"].limit) == ("s", None)


def test_an_old_row_is_shown_with_its_parent(old: Path, ok: Trd) -> None:
    refined, rollouts = (again(old, f"{ROUND}/{stage}")[0] for stage in ("refine", "sample"))
    shown = ok("show", refined, "--parents", rollouts).stdout
    for text in ("refined, round 0, sample 0, opsd", "parent ", "incorrect"):
        assert text in shown


def test_an_old_run_is_reported_in_the_same_tables(old: Path, tmp_path: Path, ok: Trd) -> None:
    out = tmp_path / "report"
    ok("report", old / "run", "--out", out)
    expected = {path.name: path for path in (OLD / "report").iterdir()}
    assert {path.name for path in out.glob("*.csv")} == expected.keys()
    for name, path in expected.items():
        found, recorded = table(out / name), table(path)
        # Later versions have more columns.
        columns = [found[0].index(title) for title in recorded[0]]
        for line, wanted in zip(([line[i] for i in columns] for line in found), recorded, strict=True):
            # Another machine may round the last digit otherwise.
            assert line == [pytest.approx(v, rel=1e-9, abs=1e-12) if isinstance(v, float) else v for v in wanted], name
