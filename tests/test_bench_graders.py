"""The benchmark of the graders: its rows are as it describes them, and a busy machine fails no goal."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from trd_cli.graders import math

SCRIPT = Path(__file__).parent.parent / "examples" / "bench" / "graders.py"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_built_in_rows_all_differ_and_are_right_or_wrong_as_they_were_made(bench: dict[str, Any]) -> None:
    rows, right = bench["built_in_rows"](60, seed=5)
    assert len({(row.reference_answer, row.response) for row in rows}) == len(right) == 60
    assert [math.grade(row, False).verdict == "correct" for row in rows] == right
    assert 0 < sum(right) < 60


def test_rows_between_blocks_make_the_grader_forget_what_it_read(bench: dict[str, Any]) -> None:
    block = bench["built_in_rows"](12, seed=5)[0]
    assert bench["share_kept"]([block, block]) == bench["share_kept"]([block])


def test_a_goal_that_is_not_counted_fails_nothing(bench: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    goals = bench["Goals"]()
    goals.judge("busy", 1.0, 1.7, counted=False)
    assert goals.hold
    assert goals["busy"] == {"value": 1.0, "goal": 1.7, "ok": False, "counted": False}
    goals.judge("slow", 0.5, 0.9)
    assert not goals.hold
    assert [line.rstrip().split("  ")[-1] for line in capsys.readouterr().out.splitlines()] == [
        "not counted: fewer than two cores were free",
        "FAILS",
    ]


def test_ratios_are_medians_over_rounds(bench: dict[str, Any]) -> None:
    measured = bench["Measured"]({"a": [1.0, 2.0, 1.0], "b": [2.0, 2.0, 9.0]}, {}, [])
    assert measured.ratio("a", than="b") == 2.0


def test_recorded_rows_are_left_out_where_there_are_none(
    bench: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRD_DATA", str(tmp_path))
    assert bench["recorded_rows"]() is None
