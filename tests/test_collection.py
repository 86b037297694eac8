"""The suite collects the same tests wherever and whenever it starts: processes that share the work must agree on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import takes_long

ROOT = Path(__file__).parent.parent
PARTS = ("examples", "prompts", "tests", "trd_cli", "README.md", "pyproject.toml")
DATA = os.environ.get("TRD_DATA", str(ROOT.parent / "shared" / "data"))


def collected(root: Path, home: Path, **more: str) -> list[str]:
    """Return the ids of all tests of a checkout in the order in which a new process collects them."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    home.mkdir()
    apart = {"HOME": str(home), "TMPDIR": str(home), "TRD_DATA": DATA, "PYTHONPATH": str(root)}
    done = subprocess.run(
        # Without the rewriting of assertions, which takes half of the time and no part in the collection.
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q", "--assert=plain", "-p", "no:cacheprovider"),
            root / "tests",
        ],
        cwd=root,
        env=own | apart | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


@takes_long
def test_neither_clock_nor_path_nor_hash_seed_nor_process_change_which_tests_there_are(tmp_path: Path) -> None:
    copy = tmp_path / "a checkout at another place"
    copy.mkdir()
    for part in PARTS:
        source, target = ROOT / part, copy / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    # Seconds pass between the two, and their local times are 26 hours apart.
    here = collected(ROOT, tmp_path / "one", PYTHONHASHSEED="1", TZ="Etc/GMT-14")
    there = collected(copy, tmp_path / "two", PYTHONHASHSEED="2", TZ="Etc/GMT+12")
    assert f"tests/{Path(__file__).name}::" in "\n".join(here)
    differing = [pair for pair in zip(here, there, strict=False) if pair[0] != pair[1]]
    assert differing == []
    assert len(here) == len(there)
