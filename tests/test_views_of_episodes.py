"""Episodes as people see them: trd show, trd diff, the reader of the report's page, and the figures of a report."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Trd
from support.browser import Reader, problems_said
from support.pages import report_data, write_sets
from support.rows import episode, refined_row, write_set

from trd_cli.evaluation.metrics import mean_of
from trd_cli.records import content_hash
from trd_cli.report.reader.page import write_page
from trd_cli.report.reader.trajectories import trajectories
from trd_cli.report.refinement import refinement_of
from trd_cli.trajectories.alignment import align
from trd_cli.trajectories.episode_columns import episode_figures, light_turns, written_tokens
from trd_cli.trajectories.run_json import write_run_json
from trd_cli.trajectories.shards import OF_A_RESPONSE, list_shards, read_table

Y_O = episode(
    "y_o",
    [
        ("take lamp", "You take the brass lamp.", True),
        ("eat lamp", "You can't do that.", False),
        ("go west", "A wall.", True),
        ("wait", "Time passes.", True),
        ("go up", None, None),
    ],
    "tokens",
    reference_solution="go east\nopen door",
    verdict="incorrect",
    verdict_detail="out of luck",
    grader="environment",
    grader_version="1",
)
Y_R = episode(
    "y_r",
    [
        ("take lamp", "You take the old lamp.", True),
        ("go east", "A hall.", True),
        ("wait", "Time passes.", True),
        ("open door", "You win!", True),
    ],
    "solved",
    stage="refined",
    setting="opsd",
    parent_id=Y_O.trajectory_id,
    student_prompt_token_ids=[1, 2, 3],
    verdict="correct",
)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the terminal wide enough for any line."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the sets y_o and y_r of one episode."""
    directory = tmp_path_factory.mktemp("episodes")
    write_set(directory / "y_o", [[Y_O]])
    write_set(directory / "y_r", [[Y_R]])
    inputs = [{"path": str(directory / "y_o"), "digest": "0"}]
    write_run_json(
        directory / "y_r", {"format": "trd-run-1", "command": "refine", "digest": "1", "about": {}, "inputs": inputs}
    )
    return directory


def lines_of(shown: str) -> list[str]:
    return [line.strip("│ ") for line in shown.splitlines()]


def test_an_episode_is_shown_turn_by_turn_with_authors_and_what_was_not_valid(sets: Path, ok: Trd) -> None:
    shown = ok("show", sets / "y_o").stdout
    start = lines_of(shown).index("turn 1 ⟨student⟩> take lamp")
    assert lines_of(shown)[start : start + 4] == [
        "turn 1 ⟨student⟩> take lamp",
        "⟨environment⟩You take the brass lamp.",
        "turn 2 ⟨student⟩> eat lamp · not valid",
        "⟨environment⟩You can't do that.",
    ]
    assert "turn 5 ⟨student⟩> go up · not taken" in shown
    assert re.search(r"environment +scripted 1, seed 7, {\"rooms\":3}", shown)
    assert re.search(r"episode +out of tokens after 5 turns, 1 not valid, reward 0", shown)
    assert re.search(r"authors +student 10, environment 16, template 12", shown)
    assert re.search(r"oracle +go east, open door", shown)
    assert re.search(r"verdict +incorrect: out of luck \(environment 1\)", shown)


def test_a_refined_episode_is_shown_with_the_turns_of_its_parent(sets: Path, ok: Trd) -> None:
    shown = ok("show", sets / "y_r").stdout
    assert "turn 2 ⟨student⟩> eat lamp · not valid" in shown
    assert "turn 4 ⟨teacher⟩> open door" in shown
    assert "not marked" not in shown


def test_the_authors_of_turns_have_colours_where_there_are_colours(
    sets: Path, ok: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = ok("show", sets / "y_o").stdout
    action, observation = (re.search(f"\x1b\\[([0-9;]+)m{text}", shown)[1] for text in ("> take lamp", "You take the"))
    assert action != observation


def test_text_of_an_environment_that_looks_like_markup_is_shown_as_it_is(tmp_path: Path, ok: Trd) -> None:
    row = episode("markup", [("[bold]x[/bold]", "[/] \\[y] :smile:", True)])
    shown = ok("show", write_set(tmp_path / "set", [[row]])).stdout
    assert "> [bold]x[/bold]" in shown
    assert "⟨environment⟩[/] \\[y] :smile:" in shown


def test_a_diff_of_episodes_aligns_their_actions_and_compares_the_answers_to_kept_ones(sets: Path, ok: Trd) -> None:
    shown = lines_of(ok("diff", sets / "y_r").stdout)
    assert "y_o incorrect → y_r correct" in shown[0]
    assert shown[1:-1] == [
        "turn 1 → 1 · kept",
        "> take lamp",
        "You take the [-brass-]{+old+} lamp.",
        "turn 2 → 2 · changed",
        "[-> eat lamp · not valid",
        "You can't do that.-]",
        "{+> go east",
        "A hall.+}",
        "turn 3 → – · removed",
        "[-> go west",
        "A wall.-]",
        "turn 4 → 3 · kept",
        "> wait",
        "Time passes.",
        "turn 5 → 4 · changed",
        "[-> go up · not taken-]",
        "{+> open door",
        "You win!+}",
    ]


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("", "", []),
        ("ab", "ab", ["kept", "kept"]),
        ("abc", "ac", ["kept", "removed", "kept"]),
        ("ac", "abbc", ["kept", "added", "added", "kept"]),
        ("axc", "ayzc", ["kept", "changed", "added", "kept"]),
        ("axyc", "azc", ["kept", "changed", "removed", "kept"]),
        ("", "ab", ["added", "added"]),
    ],
)
def test_the_steps_of_two_episodes_have_every_turn_of_both_in_order(
    before: str, after: str, changes: list[str]
) -> None:
    steps = align(before, after)
    assert [step.change for step in steps] == changes
    assert [step.before for step in steps if step.before is not None] == list(range(len(before)))
    assert [step.after for step in steps if step.after is not None] == list(range(len(after)))
    assert all(before[s.before] == after[s.after] for s in steps if s.change == "kept")


EVIL = "<img src=x onerror='window.hacked = 1'> $x^2$ `b`\n```html\n<b>bold</b>\n```"
LONE = episode("lone", [(EVIL, EVIL, False)], problem=EVIL, problem_id="scripted-<b>2</b>")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with an episode and its refinement, one whose y_r failed, and one alone that tries to be HTML."""
    directory = tmp_path_factory.mktemp("page")
    tried = replace(Y_O, trajectory_id=content_hash("tried"))
    lost = replace(Y_R, trajectory_id=content_hash("lost"), parent_id=tried.trajectory_id, error="no room")
    lost = replace(lost, **dict.fromkeys((*OF_A_RESPONSE, "verdict")))
    sets = write_sets(directory, [(Y_O, Y_R), (tried, lost)])
    alone, _ = write_sets(directory / "more", [(LONE, LONE)])
    sets = (*sets, replace(alone, node="seed-1/round-0/sample", seed=1))
    write_page(directory / "report.html", report_data(directory, sets), {}, trajectories(sets))
    return directory / "report.html"


def turns_of(reader: Reader) -> list[list[str]]:
    """Return the lines of each turn on the page: about it, its action, its observation; [] for an empty place."""
    script = (
        "return [...document.querySelectorAll('.pair .turn')].map((t) => [...t.children].map((e) => e.textContent))"
    )
    return reader.js(script)


def test_the_page_has_the_turns_of_y_o_beside_those_of_y_r_that_they_belong_to(driver: Any, page: Path) -> None:
    reader = Reader(driver, page).open(f"#t={Y_R.trajectory_id}")
    assert turns_of(reader)[:6] == [
        ["y_o · turn 1 · kept", "> take lamp", "You take the brass lamp."],
        ["y_r · turn 1 · kept", "> take lamp", "You take the old lamp."],
        ["y_o · turn 2 · changed · ⚑ not valid", "> eat lamp", "You can't do that."],
        ["y_r · turn 2 · changed", "> go east", "A hall."],
        ["y_o · turn 3 · removed", "> go west", "A wall."],
        [],
    ]
    marked = "return [...document.querySelectorAll(`.pair ${arguments[0]}`)].map((e) => e.textContent.trim())"
    assert reader.js(marked, "del") == ["brass", "> eat lamp", "> go west", "> go up"]
    assert reader.js(marked, "ins") == ["old", "> go east", "> open door"]
    heads = "return [...document.querySelectorAll('.side')].map((side) => side.textContent)"
    before, after = reader.js(heads)
    assert "10 written by the model" in before
    assert "out of tokens after 5 turns, 1 not valid, reward 0" in before
    assert "solved after 4 turns, 0 not valid, reward 1" in after
    reader.press("d")
    reader.until("return !document.querySelector('.pair del')")
    assert problems_said(reader) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_turns_that_belong_together_stand_side_by_side_and_on_a_phone_below_one_another(
    driver: Any, page: Path, scheme: str
) -> None:
    places = "return [...document.querySelectorAll('.pair .turn')].slice(0, 2).map((t) => t.getBoundingClientRect().toJSON())"
    reader = Reader(driver, page).open(f"#t={Y_R.trajectory_id}", scheme=scheme)
    before, after = reader.js(places)
    assert before["top"] == after["top"]
    assert before["right"] <= after["left"]
    colours = "return ['.by.student', '.by.teacher', '.by.environment', '.row'].map((s) => getComputedStyle(document.querySelector(s)).color)"
    assert len(set(reader.js(colours))) == 4
    reader.open(f"#t={Y_R.trajectory_id}", width=390, height=844, scheme=scheme)
    before, after = reader.js(places)
    assert before["bottom"] <= after["top"]
    assert reader.js("return document.documentElement.scrollWidth") <= 390


def test_an_episode_alone_and_one_whose_refinement_failed_are_shown_whole(driver: Any, page: Path) -> None:
    reader = Reader(driver, page).open(f"#t={LONE.trajectory_id}")
    assert turns_of(reader) == [["turn 1 · ⚑ not valid", f"> {EVIL}", EVIL]]
    assert reader.js("return document.querySelector('#detail details .text').textContent") == EVIL
    assert reader.js("return document.querySelectorAll('#detail :is(img, b, math)').length") == 0
    assert reader.js("return window.hacked ?? null") is None
    reader.open(f"#t={content_hash('lost')}")
    assert [turn[1] for turn in turns_of(reader) if turn] == [f"> {turn.action}" for turn in Y_O.turns]
    assert reader.js("return document.querySelector('.pair .error').textContent") == "no room"
    assert reader.pick("flag", "not valid") == 3
    assert problems_said(reader) == []


def test_lengths_and_edits_of_a_refinement_are_of_the_tokens_that_models_wrote(sets: Path) -> None:
    about = {"node": "refine", "arm": None, "round": 0, "seed": 0, "setting": "opsd"}
    found = refinement_of(list_shards(sets / "y_r"), list_shards(sets / "y_o"), about)
    assert found.matrix == {("incorrect", "correct"): 1}
    assert (found.lengths["y_o"].mean, found.lengths["y_r"].mean) == (10, 8)
    assert (found.edit_distance.mean, found.common_prefix.mean) == (pytest.approx(0.2), 0.8)
    before, after = ({name: spread.mean for name, spread in side.items()} for side in found.episodes.values())
    assert before == {"reward": 0, "invalid_actions": 1 / 4, "turns": 5}
    assert after == {"reward": 1, "invalid_actions": 0, "turns": 4}
    assert found.leaks is None, "an episode's commands are to be the reference's"


def test_tokens_turns_and_actions_are_counted_by_row_also_where_others_are_no_episodes(tmp_path: Path) -> None:
    plain = replace(refined_row(1), response_token_ids=[1, 2, 3])
    relayed = replace(plain, author=[0, 1, 1])
    lost = replace(plain, response=None, response_token_ids=None, error="no room")
    shard = list_shards(write_set(tmp_path / "mixed", [[plain, Y_O, lost, relayed, Y_R]]))[0]
    table = read_table(shard)
    assert written_tokens(table).to_pylist() == [3, 10, None, 3, 8]
    figures = {name: column.to_pylist() for name, column in episode_figures(table).items()}
    assert figures == {
        "reward": [None, 0, None, None, 1],
        "invalid_actions": [None, 1 / 4, None, None, 0],
        "turns": [None, 5, None, None, 4],
    }
    assert list(light_turns(table["turns"])) == [None, list(Y_O.turns), None, None, list(Y_R.turns)]


def test_the_means_of_episodes_and_their_intervals_are_over_games() -> None:
    # Means of the games 1, 3 and 2: the mean 2, s = 1, t = 4.303 for two degrees of freedom.
    turns = mean_of(np.array([[1.0, 1.0], [2.0, 4.0], [2.0, np.nan], [np.nan, np.nan]]), are_scores=False)
    assert (turns.value, turns.questions) == (2.0, 3)
    assert (turns.low, turns.high) == (
        pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3),
        pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3),
    )
    shares = mean_of(np.array([[0.0], [0.0], [0.0]]), are_scores=True)
    assert (shares.value, shares.low) == (0, 0)
    assert 0 < shares.high < 1, "three games without such an action do not show that there is none"
    for values in ([[7.0, 9.0]], [[8.0], [8.0]]):
        same = mean_of(np.array(values), are_scores=False)
        assert same.value == 8
        assert np.isnan([same.low, same.high]).all(), "one game, or games without a difference, show no spread"
