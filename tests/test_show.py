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

from trd_cli.prompting.authors import Span, author_spans
from trd_cli.prompting.tokens import ByteTokenizer
from trd_cli.records import AUTHORS, Trajectory
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


def test_what_would_be_a_command_to_the_terminal_is_shown_by_a_sign(rollouts: Path, ok: Trd) -> None:
    rewrite(rollouts, lambda row: replace(row, response="a\x00b\x1b[31mred\x9b0m", error="\x1b]0;title"))
    shown = ok("show", rollouts).stdout
    assert "a␀b␛[31mred\ufffd0m" in shown
    assert "␛]0;title" in shown
    assert not {"\x00", "\x1b", "\x9b"} & set(shown)


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


STUDENT, TEACHER = AUTHORS.index("student"), AUTHORS.index("teacher")


def by_both(row: Trajectory, response: str = "It is 5. No: it is 4.", students: int = 8) -> Trajectory:
    """Return the row with a response in the scripted engine's bytes, of which the student wrote the first ones."""
    ids = [*response.encode(), ByteTokenizer.end_of_turn_id]
    authors = [STUDENT] * students + [TEACHER] * (len(ids) - students)
    return replace(row, response=response, response_token_ids=ids, author=authors, logprobs=None)


def test_the_parts_of_two_authors_begin_with_a_sign_without_colours(refined: Path, ok: Trd) -> None:
    rewrite(refined, by_both)
    shown = ok("show", refined).stdout
    assert "⟨student⟩It is 5.⟨teacher⟩ No: it is 4." in shown
    assert re.search(r"authors +student 8, then teacher 14", shown)


def test_the_parts_of_two_authors_have_colours_where_there_are_colours(
    refined: Path, ok: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(refined, by_both)
    monkeypatch.setenv("FORCE_COLOR", "1")
    student, teacher = re.findall("\x1b\\[([0-9;]+)m[^\x1b]*(?:It is 5|No: it is 4)", ok("show", refined).stdout)[-2:]
    assert student != teacher
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟨student⟩" in ok("show", refined).stdout


def test_a_diff_has_the_signs_of_the_authors_of_y_r(refined: Path, rollouts: Path, ok: Trd) -> None:
    rewrite(rollouts, lambda row: replace(row, response="It is 5."))
    rewrite(refined, by_both)
    assert "⟨student⟩It is 5.{+⟨teacher⟩ No: it is 4.+}" in ok("diff", refined).stdout
    # Also inside a word.
    rewrite(refined, lambda row: by_both(row, students=4))
    assert "⟨student⟩It i⟨teacher⟩s 5.{+ No: it is 4.+}" in ok("diff", refined).stdout


def test_a_row_of_its_usual_author_has_no_sign(refined: Path, ok: Trd) -> None:
    for command in ("show", "diff"):
        assert "⟨" not in ok(command, refined).stdout
        assert "authors" not in ok(command, refined).stdout


def test_authors_that_cannot_be_marked_are_told_by_their_tokens(refined: Path, ok: Trd) -> None:
    rewrite(refined, lambda row: replace(by_both(row), response="another text than the tokens spell"))
    for command in ("show", "diff"):
        assert "authors are not marked" in ok(command, refined).stdout
    assert re.search(r"authors +student 8, then teacher 14", ok("show", refined).stdout)
    (refined / "run.json").unlink()
    rewrite(refined, by_both)
    shown = ok("show", refined).stdout
    assert "authors are not marked" in shown
    assert "It is 5. No: it is 4." in shown


def test_a_character_of_several_tokens_is_its_last_authors() -> None:
    text = "aé"
    spans = author_spans(text, list(text.encode()), [STUDENT, STUDENT, TEACHER], ByteTokenizer())
    assert spans == [Span("student", 0, 1), Span("teacher", 1, 2)]
    assert author_spans(text, list(b"ae"), [STUDENT, TEACHER], ByteTokenizer()) is None
