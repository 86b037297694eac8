"""trd verify --audit: a second method that shares no code with the first, and the rows where the two differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.sets import rows_of

from trd_cli.trajectories.shards import shard_path, write_shard

VERIFY = ("verify", "--workers", 1, "--max-errors", 100, "--audit", 1)
Make = Callable[[Sequence[tuple[str, str]]], Path]


@pytest.fixture
def answered(rollouts: Path, tmp_path: Path) -> Make:
    """Make a set with a row for each (response, reference answer)."""
    row = rows_of(rollouts)[0]

    def make(pairs: Sequence[tuple[str, str]]) -> Path:
        directory = tmp_path / "answered"
        directory.mkdir(exist_ok=True)
        rows = [
            replace(row, trajectory_id=f"{n:032x}", problem_id=f"p{n}", response=response, reference_answer=reference)
            for n, (response, reference) in enumerate(pairs)
        ]
        write_shard(shard_path(directory, 0), rows)
        return directory

    return make


def listed(directory: Path) -> list[dict[str, Any]]:
    text = directory.with_name(directory.name + ".audit.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_rows_on_which_two_methods_differ_are_listed_beside_the_set(answered: Make, ok: Trd) -> None:
    directory = answered([(r"\boxed{12}", "12"), (r"\boxed{Mg}", "mg"), (r"\boxed{pi/2}", r"\frac{\pi}{2}")])
    told = ok(*VERIFY, directory).stderr
    assert "audit of 3 rows: the second method agrees on 1 of 3 (33.3%), cannot tell 0, disagrees on 2" in told
    assert str(directory) + ".audit.jsonl" in told
    common = {"task": "math"}
    assert listed(directory) == [
        {"trajectory_id": f"{1:032x}", **common, "reference": "mg", "answer": "Mg", "verdict": "incorrect", "second_verdict": "correct"},
        {"trajectory_id": f"{2:032x}", **common, "reference": r"\frac{\pi}{2}", "answer": "pi/2", "verdict": "correct", "second_verdict": "incorrect"},
    ]  # fmt: skip
    assert list(directory.glob("*.jsonl")) == []


def test_where_two_methods_agree_again_no_list_is_left(answered: Make, ok: Trd) -> None:
    directory = answered([(r"\boxed{Mg}", "mg")])
    ok(*VERIFY, directory)
    assert len(listed(directory)) == 1
    answered([(r"\boxed{12}", "12")])
    ok(*VERIFY, directory)
    assert not directory.with_name(directory.name + ".audit.jsonl").exists()


def test_references_that_are_worked_solutions_are_counted_and_named(answered: Make, ok: Trd) -> None:
    worked = "2 + 3 = 5 and 5 * 2 = 10. A: 10"
    directory = answered([(r"\boxed{10}", worked), (r"\boxed{10}", worked + "\n#### 10")])
    told = ok(*VERIFY, directory).stderr
    assert "1 rows are errors because the reference of their problem is not one answer (1 problems: p0)" in told
    assert [row.verdict for row in rows_of(directory)] == ["error", "correct"]
