"""trd show and trd diff: one row with its lineage, and the teacher's changes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from support.sets import by_id, rows_of

from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

Trd = Callable[..., Result]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the terminal wide enough for any line."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def refined(rollouts: Path, tmp_path: Path, ok: Trd) -> Path:
    ok("refine", "--setting", "opsd", rollouts, "--shard-rows", 10, "--out", tmp_path / "y_r")
    return tmp_path / "y_r"


def rewrite(directory: Path, change: Callable[[Trajectory], Trajectory]) -> None:
    for path in list_shards(directory):
        write_shard(path, [change(row) for row in read_rows(path)])


def test_a_row_is_found_by_the_first_characters_of_its_id(rollouts: Path, ok: Trd) -> None:
    for row in (rows_of(rollouts)[0], rows_of(rollouts)[-1]):
        shown = ok("show", rollouts, "--id", row.trajectory_id[:10]).stdout
        assert row.trajectory_id in shown
        for text in (row.problem_id, row.response.split("\n")[0], row.problem, "sample", "scripted", str(row.seed)):
            assert text in shown


def test_without_an_id_the_first_row_is_shown(rollouts: Path, ok: Trd) -> None:
    assert rows_of(rollouts)[0].trajectory_id in ok("show", rollouts).stdout


def test_a_refined_row_is_shown_with_its_lineage(refined: Path, rollouts: Path, ok: Trd) -> None:
    row = rows_of(refined)[7]
    parent = by_id(rollouts)[row.parent_id]
    shown = ok("show", refined, "--id", row.trajectory_id).stdout
    assert f"parent {parent.trajectory_id[:12]}" in shown
    assert parent.response.split("\n")[0] in shown
    assert row.response.split("\n")[0] in shown
    assert str(rollouts) in shown
    assert "refined, round 0" in shown
    assert "opsd" in shown


def test_the_parents_may_have_moved(refined: Path, rollouts: Path, tmp_path: Path, ok: Trd, trd: Trd) -> None:
    rollouts.rename(tmp_path / "moved")
    alone = ok("show", refined).stdout
    assert "parent " not in alone
    assert trd("diff", refined).exit_code == 1
    assert "parent " in ok("show", refined, "--parents", tmp_path / "moved").stdout
    assert ok("diff", refined, "--parents", tmp_path / "moved").exit_code == 0


def test_verdict_reference_and_error_are_shown(rollouts: Path, ok: Trd) -> None:
    ok("verify", rollouts, "--workers", 1)
    wrong = next(row for row in rows_of(rollouts) if row.verdict == "incorrect")
    shown = ok("show", rollouts, "--id", wrong.trajectory_id).stdout
    assert f"incorrect: {wrong.extracted_answer}" in shown
    assert re.search(rf"reference +{wrong.reference_answer}\b", shown)
    rewrite(rollouts, lambda row: replace(row, response=None, response_token_ids=None, error="the engine fell over"))
    assert "error: the engine fell over" in ok("show", rollouts, "--id", wrong.trajectory_id).stdout


def test_token_ids_are_shown_when_asked_for(rollouts: Path, ok: Trd) -> None:
    row = rows_of(rollouts)[0]
    ids = " ".join(map(str, row.response_token_ids))
    assert ids in ok("show", rollouts, "--tokens").stdout
    assert ids not in ok("show", rollouts).stdout


def test_text_that_looks_like_markup_is_shown_as_it_is(rollouts: Path, ok: Trd) -> None:
    rewrite(rollouts, lambda row: replace(row, response="[bold]x[/bold] [/] \\[y] :smile:"))
    assert "[bold]x[/bold] [/] \\[y] :smile:" in ok("show", rollouts).stdout


@pytest.mark.parametrize(
    ("before", "after", "marked"),
    [
        ("2 + 2 = 5", "2 + 2 = 4", "2 + 2 = [-5-]{+4+}"),
        ("so it is 4", "it is 4", "[-so -]it is 4"),
        ("it is 4", "it is then 4", "it is {+then +}4"),
        ("the same", "the same", "the same"),
        ("", "new", "{+new+}"),
        ("[red]a[/red] 1", "[red]a[/red] 2", "[red]a[/red] [-1-]{+2+}"),
    ],
)
def test_a_diff_marks_the_words_that_changed(
    before: str, after: str, marked: str, refined: Path, rollouts: Path, ok: Trd
) -> None:
    rewrite(rollouts, lambda row: replace(row, response=before, verdict="incorrect"))
    rewrite(refined, lambda row: replace(row, response=after, verdict="correct"))
    shown = ok("diff", refined).stdout
    assert f"│ {marked} " in shown
    assert "y_o incorrect → y_r correct" in shown


def test_a_diff_holds_both_texts_whole(refined: Path, rollouts: Path, ok: Trd) -> None:
    row = rows_of(refined)[3]
    parent = by_id(rollouts)[row.parent_id]
    lines = ok("diff", refined, "--id", row.trajectory_id).stdout.splitlines()[1:-1]
    shown = "\n".join(line.strip("│ ") for line in lines)
    old = re.sub(r"\{\+.*?\+\}", "", shown, flags=re.DOTALL)
    new = re.sub(r"\[-.*?-\]", "", shown, flags=re.DOTALL)
    assert re.sub(r"\[-(.*?)-\]", r"\1", old, flags=re.DOTALL).split() == parent.response.split()
    assert re.sub(r"\{\+(.*?)\+\}", r"\1", new, flags=re.DOTALL).split() == row.response.split()


def test_a_diff_by_pipe_reads_the_path_from_standard_input(refined: Path, ok: Trd) -> None:
    assert "y_o" in ok("diff", stdin=f"{refined}\n").stdout


def test_the_same_id_prefix_in_two_sets_shows_the_first(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    shutil.copytree(rollouts, tmp_path / "copy")
    shown = ok("show", tmp_path / "copy", rollouts, "--id", rows_of(rollouts)[0].trajectory_id).stdout
    assert str(tmp_path / "copy") in shown
