"""The benchmark scripts can be loaded, and that of a GPU runs whole on a CPU, with the few packages it asks for."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import takes_long

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples" / "bench").glob("*.py"))
# Python runs a module of this name first; this one imitates a machine without these packages.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

ABSENT = {"pyarrow", "polars", "typer", "rich", "datasets", "jinja2", "openai", "math_verify", "evalplus"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_can_be_loaded_and_has_a_quick_form(script: Path) -> None:
    loaded = runpy.run_path(str(script))
    assert "main" in loaded
    assert "--quick" in loaded["__doc__"]


@takes_long
def test_the_check_of_a_gpu_runs_on_a_cpu_and_finds_all_equal(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    variables = {
        **own,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, str(ROOT / "examples" / "bench" / "gpu.py")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"]
    assert {goal["ok"] for goal in report["goals"].values()} == {True}
    assert any(name.endswith("sharded off by") for name in report["goals"])
    steps = [name for name in report["figures"] if name.endswith("tokens a second")]
    assert len(steps) == 4, "all weights and an adapter, recomputed and not"


def test_the_growth_of_memory_is_measured_through_the_commands_themselves(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "bench" / "scale.py"), "--short", "80", "--long", "0"]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=600, check=False
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if report["ok"] else 1), done.stderr
    peaks = [goal["value"] for name, goal in report["goals"].items() if name.endswith(": MiB")]
    assert len(peaks) == 3
    assert min(peaks) > 50, "each loads Arrow"
    assert not list(tmp_path.iterdir()), "its files are removed"
