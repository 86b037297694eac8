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

from trd_cli.recipes.done import done_nodes
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe

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
        for line, wanted in zip(table(out / name), table(path), strict=True):
            # Another machine may round the last digit otherwise.
            assert line == [pytest.approx(v, rel=1e-9, abs=1e-12) if isinstance(v, float) else v for v in wanted], name
