"""The report's page in a real browser: it loads, filters, shows differences, obeys keys and links, and fetches nothing.

Skipped if Chromium, its driver or selenium is missing; nothing is installed here.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.browser import Reader, problems_said, requested
from support.pages import pairs, report_data, trajectory, write_sets
from support.report_run import make_run

from trd_cli.records import Trajectory, content_hash
from trd_cli.report.data import Selection, SetRef
from trd_cli.report.plots import plots
from trd_cli.report.reader.formulas import formulas, mathml
from trd_cli.report.reader.page import inline_svg, write_page
from trd_cli.report.reader.trajectories import trajectories
from trd_cli.trajectories.run_json import write_run_json
from trd_cli.trajectories.shards import list_shards, shard_path, write_shard

EVIL = (
    "<script>window.hacked = 1</script> </script><img src=x onerror='window.hacked = 2'> <!-- "
    "\\(\\href{javascript:window.hacked=3}{y}\\) $\\text{<script>window.hacked = 4</script>}$ "
    "```html\n<b onclick='window.hacked = 5'>bold</b>\n```\nhttps://example.org/<iframe src=//example.org>"
)
ROWS = 480
KEPT = "parent_verdict = 'correct' AND verdict = 'correct'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with 480 pairs, a rollout that was not refined, and a pair whose text tries to be HTML."""
    directory = tmp_path_factory.mktemp("report")
    made = list(pairs(ROWS, 200))
    evil = trajectory("evil", 9999, problem_id="evil/<b>1</b>", response=EVIL, problem=EVIL)
    answer = replace(evil, trajectory_id=content_hash("evil r"), parent_id=evil.trajectory_id, stage="refined")
    answer = replace(
        answer, setting="opsd", response=EVIL.replace("bold", "bolder") + " As the reference solution says."
    )
    rollouts, refined = write_sets(directory, [*made, (evil, answer)])
    along_y_r = (Selection("trd-repaired", "repaired", None), Selection("trd-kept", "all", KEPT))
    sets = (
        replace(rollouts, selections=(Selection("fkl", "incorrect", None),)),
        replace(refined, selections=along_y_r),
    )
    lonely = trajectory("lonely", 7777, response=None, response_token_ids=None, error="no room", verdict=None)
    write_sets(directory / "more", [(lonely, lonely)])
    sets = (*sets, replace(sets[0], path=directory / "more" / "y_o", node="seed-1/round-0/sample", seed=1))
    data = report_data(directory, sets)
    path = directory / "report.html"
    write_page(path, replace(data, name="<i>a run</i>"), plots(data), trajectories(data.sets))
    return path


def refined_to(y_o: Trajectory, name: str, response: str, **changes: object) -> Trajectory:
    """Return a row refined from `y_o`."""
    whose = {"trajectory_id": content_hash(name), "parent_id": y_o.trajectory_id, "stage": "refined"}
    return replace(y_o, **whose, setting="opsd", response=response, **changes)


PROGRAM = "def f(n):\n\n    return n % 97  # a *comment*\n"
BEFORE = (
    f"First `a_b` and $x^2$.\n\n```python\n{PROGRAM}```\nThen:\n```\nprint(1)\n```\n\n\\[ y \\]\nDone.\n```cpp\nint x;"
)
AFTER = f"First `a_b` and $x^2$.\n\n```cpp\n{PROGRAM}```\nThen:\n```\nprint(1)\n```\n\n\\[ y \\]\nDone.\n```cpp\nint x;\n```\n"
ONE = (
    "e\u0301te 👩\u200d👩\u200d👧 🇩🇪 👍🏽 1\ufe0f\u20e3 क्षि ❤\ufe0f x\u0338 \u0301end 漢\ufe00 🏴\U000e0067\U000e007f."
)
OTHER = (
    "e\u0300te 👩\u200d👩\u200d👦 🇩🇰 👍🏿 2\ufe0f\u20e3 क्षा ❤\ufe0e x\u0337 \u0300end 漢\ufe01 🏴\U000e0068\U000e007f."
)
LONG_PROBLEM = "A long way. " * 120 + "How many wombats? " + "On and on. " * 100 + "How many numbats?"


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page on two refined sets of one rollout set with the same arms, round and seed, which share a row."""
    directory = tmp_path_factory.mktemp("twins")
    code = trajectory("code", 1, task="code", response=BEFORE)
    marked = trajectory("marked", 2, response=ONE)
    far = trajectory("far", 3, problem=LONG_PROBLEM, response="Three.")
    made = [
        (code, refined_to(code, "code r", AFTER)),
        (marked, refined_to(marked, "marked r", OTHER)),
        (far, refined_to(far, "far r", "Four.")),
    ]
    rollouts, refined = write_sets(directory, made)
    second = directory / "second"
    second.mkdir()
    write_shard(shard_path(second, 0), [made[2][1], refined_to(code, "code r 2", "Another way.")])
    long_arm = Selection("trd-on-repaired-rows-of-the-first-half-of-the-problems-only", "all", None)
    refined = replace(refined, selections=(long_arm, Selection("trd", "all", None)))
    sets = (rollouts, refined, replace(refined, node="seed-0/round-0/refine-2", path=second, selections=()))
    data = report_data(directory, sets)
    path = directory / "report.html"
    write_page(path, data, {}, trajectories(data.sets))
    return path


@pytest.fixture
def twin(driver: Any, twins: Path) -> Callable[..., Reader]:
    return Reader(driver, twins).open


@pytest.fixture
def reader(driver: Any, page: Path) -> Reader:
    return Reader(driver, page).open()


@pytest.fixture
def closed(driver: Any, page: Path) -> Callable[..., Reader]:
    return Reader(driver, page).open


def test_the_page_loads_without_a_word_in_the_console_and_asks_for_nothing_but_itself(reader: Reader) -> None:
    assert reader.js("return document.querySelectorAll('main table').length") > 4
    assert reader.js("return document.querySelectorAll('figure svg').length") > 2
    assert problems_said(reader) == []
    assert requested(reader) == [reader.page.as_uri()]


def test_the_file_names_no_address_that_a_browser_would_fetch(page: Path) -> None:
    text = page.read_text()
    for sign in ('src="', "@import", '<link rel="stylesheet', "url(http", 'href="http'):
        assert sign not in text


def test_the_policy_lets_no_request_and_no_html_from_a_script_through(reader: Reader) -> None:
    fetched = reader.driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; fetch('data:,x').then(() => done('fetched'), () => done('refused'))"
    )
    assert fetched == "refused"
    assert (
        reader.js("try { document.body.innerHTML += '<b>x</b>'; return 'set' } catch { return 'refused' }") == "refused"
    )


def test_text_that_is_html_is_shown_as_text_and_does_nothing(closed: Callable[..., Reader], page: Path) -> None:
    reader = closed(f"#t={content_hash('evil r')}")
    reader.js("document.querySelectorAll('#detail details').forEach((each) => { each.open = true })")
    reader.until("return document.querySelector('#detail details:last-of-type dl')")
    assert "<script>window.hacked = 1</script>" in reader.js("return document.getElementById('detail').textContent")
    assert reader.js("return window.hacked ?? null") is None
    assert (
        reader.js("return document.querySelectorAll('#detail :is(script, img, iframe, b, [onclick], [href])').length")
        == 0
    )
    assert reader.js("return document.querySelector('h1').textContent") == "<i>a run</i>"
    assert reader.js("return document.querySelectorAll('script:not([type])').length") == 1
    assert problems_said(reader) == []
    assert "window.hacked" not in page.read_text()


def test_filters_by_verdict_set_and_flag_let_through_as_many_as_they_say(reader: Reader) -> None:
    total = ROWS + 2
    assert reader.count() == f"{total} of {total}"
    for name, text in (
        ("change", "(repaired)"),
        ("change", "no y_r"),
        ("set", "seed 1"),
        ("flag", "talks of"),
        ("flag", "no resp"),
    ):
        count = reader.pick(name, text)
        assert reader.count() == f"{count} of {total}"
        assert 0 < count < total
        reader.pick(name, "all")
    assert reader.count() == f"{total} of {total}"


def test_rows_are_found_by_the_arm_that_trains_along_one_of_their_sides(reader: Reader) -> None:
    # A quarter of the pairs for each change of verdict; the pair that tries to be HTML has an incorrect y_o.
    for arm, count in (("trd-repaired", ROWS // 4), ("trd-kept", ROWS // 4), ("fkl", ROWS // 2 + 1)):
        assert reader.pick("arm", arm) == count
        assert reader.count() == f"{count} of {ROWS + 2}"
    reader.pick("arm", "trd-repaired")
    reader.until("return document.querySelector('.chips').textContent.includes('trained on by')")
    chips = reader.js("return document.querySelector('.chips').textContent")
    assert "trained on by fkl, trd-repaired" in chips


def test_the_first_row_let_through_is_opened_and_has_the_verdicts_asked_for(reader: Reader) -> None:
    reader.pick("change", "(broken)")
    reader.until("return document.querySelector('.chips').textContent.includes('correct → incorrect (broken)')")


def test_search_finds_a_problem_by_its_text_its_name_and_a_row_by_its_id(reader: Reader) -> None:
    for words, count in (("garden number 17?", 4), ("made-up/100", 4), (content_hash("r5")[:16], 1), ("nowhere", 0)):
        reader.search(words)
        assert reader.count() == f"{count} of {ROWS + 2}"


def test_only_the_rows_in_view_are_elements_and_scrolling_shows_the_others(reader: Reader) -> None:
    assert reader.js("return document.querySelectorAll('.row').length") < 60
    reader.js("document.getElementById('list').scrollTop = 56 * 300")
    reader.until("return document.getElementById('row-303')")
    assert reader.js("return document.querySelectorAll('.row').length") < 60


def test_a_difference_shows_what_only_one_side_has(reader: Reader) -> None:
    removed, added = (
        reader.js(f"return [...document.querySelectorAll('.pair {tag}')].map((e) => e.textContent).join(' ')")
        for tag in ("del", "ins")
    )
    assert removed
    assert "So the" in added
    assert "So the" not in removed
    same = reader.js(
        "return [...document.querySelectorAll('.side')].map((side) => { const copy = side.querySelector('.text').cloneNode(true);"
        "copy.querySelectorAll('del, ins').forEach((e) => e.remove()); return copy.textContent.replace(/\\s+/g, '') })"
    )
    assert same[0] == same[1]


def test_mathematics_is_drawn_as_mathml_and_code_is_highlighted(reader: Reader) -> None:
    assert reader.js("return document.querySelectorAll('.side math').length") > 3
    assert reader.js("return document.querySelector('#detail details mfrac').namespaceURI").endswith("MathML")
    assert reader.js("return document.querySelector('#detail details mfrac').getBoundingClientRect().height") > 10
    assert "return" in reader.js("return [...document.querySelectorAll('.side pre .word')].map((e) => e.textContent)")


def test_prompt_reference_and_lineage_are_there_when_unfolded(reader: Reader) -> None:
    reader.js("document.querySelectorAll('#detail details').forEach((each) => { each.open = true })")
    reader.until("return [...document.querySelectorAll('#detail details')].every((each) => each.children.length > 1)")
    text = reader.js("return document.getElementById('detail').textContent")
    for part in ("Rewrite this attempt", "Solve:", "Halve it", "made-up-135m", "refine-opsd", "Answer: 0"):
        assert part in text


def test_keys_walk_the_list_search_filter_and_help(reader: Reader) -> None:
    first = reader.shown_id()
    reader.press("j")
    reader.until(f"return document.getElementById('detail').dataset.id !== '{first}'")
    reader.press("k")
    reader.until(f"return document.getElementById('detail').dataset.id === '{first}'")
    reader.js("document.getElementById('list').focus()")
    reader.press("\ue015")  # arrow down
    reader.until(f"return document.getElementById('detail').dataset.id !== '{first}'")
    reader.press("/")
    assert reader.js("return document.activeElement.id") == "search"
    reader.press("j/?")
    assert reader.js("return document.getElementById('search').value") == "j/?"
    reader.press("\ue00c")  # Escape
    assert reader.js("return document.activeElement.id") != "search"
    reader.press("f")
    assert reader.js("return document.activeElement.id") == "change"
    reader.press("\ue00c")
    reader.press("?")
    assert reader.js("return document.getElementById('keys').open") is True
    reader.press("\ue00c")
    assert reader.js("return document.getElementById('keys').open") is False


def test_a_link_opens_its_row_whatever_the_filters_and_the_address_follows_the_row(
    closed: Callable[..., Reader],
) -> None:
    wanted = content_hash("r470")
    reader = closed(f"#t={wanted[:12]}")
    assert reader.shown_id() == wanted
    reader.pick("change", "(broken)")
    reader.until(f"return document.getElementById('detail').dataset.id !== '{wanted}'")
    assert reader.js("return location.hash") == f"#t={reader.shown_id()}"
    reader.js("location.hash = arguments[0]", f"t={wanted}")
    reader.until(f"return document.getElementById('detail').dataset.id === '{wanted}'")
    assert reader.count() == f"{ROWS + 2} of {ROWS + 2}"


def test_sets_of_one_label_are_told_apart_and_a_row_of_both_is_linked_to_in_its_own(
    twin: Callable[..., Reader],
) -> None:
    shared = content_hash("far r")
    reader = twin()
    options = reader.js("return [...document.getElementById('set').options].map((each) => each.text)")
    label = "all arms · round 0 · seed 0 · seed-0/round-0/refine"
    assert options == ["all", f"{label}: 3", f"{label}-2: 2"]
    for node, row in (("refine-2", 2), ("refine", 3)):
        reader.pick("set", f"{node}:")
        reader.js(f"document.getElementById('row-{0 if row == 2 else 2}').click()")
        reader.until(f"return document.getElementById('detail').dataset.id === '{shared}'")
        link = reader.js("return location.hash")
        assert link == f"#t={shared}&set=seed-0%2Fround-0%2F{node}"
        opened = twin(link)
        chips = opened.js("return [...document.querySelectorAll('.chips li')].map((each) => each.textContent)")
        assert chips[1] == f"all arms · round 0 · seed 0 · seed-0/round-0/{node}"
        assert opened.js(
            "return [...document.querySelectorAll('.row')].findIndex((e) => e.ariaSelected === 'true')"
        ) == (2 if node == "refine" else 3)
    assert twin(f"#t={content_hash('code r')}").js("return location.hash") == f"#t={content_hash('code r')}"


def test_rows_are_found_by_the_id_of_their_y_o_and_by_the_text_of_long_problems(twin: Callable[..., Reader]) -> None:
    reader = twin(f"#t={content_hash('marked')}")
    assert reader.shown_id() == content_hash("marked r")
    for words, found in (
        (content_hash("code"), 2),
        (content_hash("code")[:12].upper(), 2),
        (content_hash("code r 2"), 1),
        ("many WOMBATS?", 2),
        ("numbats", 0),
    ):
        reader.search(words)
        assert reader.count() == f"{found} of 5"
    assert LONG_PROBLEM.index("wombats") > 1000
    assert LONG_PROBLEM.index("numbats") > 2000
    assert "first 2,000 characters" in reader.js("return document.getElementById('keys').textContent")


def test_a_link_to_what_is_not_on_the_page_says_so(twin: Callable[..., Reader]) -> None:
    reader = twin()
    reader.js("location.hash = 't=0123456789ab'")
    reader.until("return document.querySelector('#detail .error')")
    assert "0123456789ab" in reader.js("return document.getElementById('detail').textContent")
    reader.press("j")
    reader.until("return document.querySelector('#detail .pair')")


def test_the_source_is_the_text_itself_and_a_changed_fence_is_marked(twin: Callable[..., Reader]) -> None:
    reader = twin(f"#t={content_hash('code r')}")
    texts = "return [...document.querySelectorAll('.side .text')].map((each) => each.textContent)"
    changed = "return ['del', 'ins'].map((tag) => [...document.querySelectorAll(`.pair ${tag}.fence`)].map((e) => e.textContent))"
    fences = [["```python\n"], ["```cpp\n", "```\n"]]
    assert reader.js(changed) == fences
    assert reader.js("return document.querySelectorAll('.side pre').length") == 6
    reader.press("m")
    reader.until("return !document.querySelector('#detail math')")
    assert reader.js(texts) == [BEFORE, AFTER]
    assert reader.js(changed) == fences
    reader.press("d")
    reader.until("return !document.querySelector('.pair del, .pair ins')")
    assert reader.js(texts) == [BEFORE, AFTER]


def test_no_mark_begins_or_ends_within_a_grapheme(twin: Callable[..., Reader]) -> None:
    reader = twin(f"#t={content_hash('marked r')}")
    assert reader.js("return document.querySelectorAll('.pair :is(del, ins)').length") > 0
    split = reader.js(
        "const split = []; for (const root of document.querySelectorAll('.side .text')) {"
        "  const whole = root.textContent, edges = new Set([whole.length]);"
        "  for (const each of new Intl.Segmenter('en').segment(whole)) edges.add(each.index);"
        "  let at = 0; for (const node of root.childNodes) {"
        "    if (!edges.has(at)) split.push(whole.slice(at - 4, at + 4)); at += node.textContent.length; }"
        "} return split"
    )
    assert split == []
    tokens = reader.js(
        "return [...document.querySelectorAll('.side')].map((e) => e.querySelectorAll('del, ins').length)"
    )
    assert min(tokens) > 0


def test_a_rollout_that_was_not_refined_says_why_it_has_no_text(closed: Callable[..., Reader]) -> None:
    reader = closed(f"#t={content_hash('lonely')}")
    assert "no room" in reader.js("return document.querySelector('.pair.single').textContent")


def test_texts_that_differ_in_everything_are_still_compared_in_time(driver: Any, tmp_path: Path) -> None:
    before = trajectory("long", 1, response=" ".join(f"a{i}" for i in range(20_000)))
    after = replace(before, trajectory_id=content_hash("long r"), parent_id=before.trajectory_id, stage="refined")
    after = replace(after, response=" ".join(f"b{i}" for i in range(20_000)))
    data = report_data(tmp_path, write_sets(tmp_path, [(before, after)]))
    write_page(tmp_path / "long.html", data, {}, trajectories(data.sets))
    reader = Reader(driver, tmp_path / "long.html")
    started = time.monotonic()
    reader.open()
    assert time.monotonic() - started < 10
    assert "marked by lines" in reader.js("return document.querySelector('.legend').textContent")


def test_marks_and_typesetting_can_be_switched_off_and_one_key_goes_from_mark_to_mark(reader: Reader) -> None:
    reader.press("n")
    assert reader.js("return document.activeElement.matches('del, ins')")
    reader.press("d")
    reader.until("return !document.querySelector('.pair del, .pair ins')")
    reader.press("m")
    reader.until("return !document.querySelector('#detail math')")
    assert "$\\boxed{" in reader.js("return document.querySelector('.side').textContent")
    reader.press("dm")
    reader.until("return document.querySelector('.pair del') && document.querySelector('.pair math')")


def test_going_from_mark_to_mark_begins_anew_with_each_trajectory(reader: Reader) -> None:
    first = (
        "const all = [...document.querySelectorAll('.pair :is(del, ins)')];"
        "const top = Math.min(...all.map((e) => e.getBoundingClientRect().top));"
        "return document.activeElement.getBoundingClientRect().top === top"
    )
    for move in (
        "document.getElementById('row-5').click()",
        "[...document.querySelectorAll('.bar button')].at(-1).click()",
    ):
        reader.press("nnn")
        assert not reader.js(first)
        before = reader.shown_id()
        reader.js(move)
        reader.until(f"return document.getElementById('detail').dataset.id !== '{before}'")
        reader.press("n")
        assert reader.js(first)


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page on a refined row that both models wrote, and on one with tokens that do not spell its text."""
    directory = tmp_path_factory.mktemp("relayed")
    code = trajectory("code", 1, task="code", response=BEFORE)
    ids = list(AFTER.encode())
    at = AFTER.index("Then")
    mixed = {"response_token_ids": ids, "author": [0] * at + [1] * (len(ids) - at)}
    other = trajectory("other", 2, response="Two.")
    refined = [refined_to(code, "code r", AFTER, **mixed), refined_to(other, "other r", "Three 👍.", **mixed)]
    sets = write_sets(directory, list(zip((code, other), refined, strict=True)))
    about = {"model": "scripted", "tokenizer": "bytes"}
    write_run_json(sets[1].path, {"format": "trd-run-1", "command": "refine", "digest": "0", "about": about})
    path = directory / "report.html"
    write_page(path, report_data(directory, sets), {}, trajectories(sets))
    return path


def test_the_parts_of_two_authors_are_marked_by_sign_and_colour(driver: Any, relayed: Path) -> None:
    reader = Reader(driver, relayed)
    for scheme in ("light", "dark"):
        reader.open(f"#t={content_hash('code r')}", scheme=scheme)
        whose = (
            "return [...document.querySelectorAll('.pair .side:last-child [data-author]')].map((e) => e.dataset.author)"
        )
        assert reader.js(whose) == ["student", "teacher"]
        text = "return document.querySelectorAll('.pair .side:last-child .by.teacher')[0].textContent"
        assert reader.js(text).startswith("Then:")
        colours = [
            reader.js("return getComputedStyle(document.querySelector(arguments[0])).color", f".pair .by.{author}")
            for author in ("student", "teacher")
        ]
        assert len(set(colours)) == 2
        assert "wrote this" in reader.js("return document.querySelectorAll('.legend')[1].textContent")
    reader.js("document.querySelectorAll('.bar button')[1].click()")
    assert reader.js("return document.querySelector('.pair .side:last-child .text').textContent") == AFTER
    assert problems_said(reader) == []


def test_authors_that_cannot_be_marked_are_told_by_their_tokens(driver: Any, relayed: Path) -> None:
    reader = Reader(driver, relayed).open(f"#t={content_hash('other r')}")
    assert reader.js("return document.querySelectorAll('[data-author]').length") == 0
    reader.js("[...document.querySelectorAll('summary')].find((e) => e.textContent === 'Lineage').click()")
    told = reader.until("return document.querySelector('#detail details:last-child dl:last-child')?.textContent")
    assert f"student {AFTER.index('Then')}, then teacher" in told
    assert "not marked" in told


def test_code_is_compared_line_by_line(reader: Reader) -> None:
    lines = reader.js("return [...document.querySelectorAll('.side pre > .changed')].map((line) => line.textContent)")
    assert any("v ** 2" in line for line in lines)
    assert any("v * v" in line for line in lines)
    assert "return" in reader.js("return [...document.querySelectorAll('.side pre .word')].map((e) => e.textContent)")


def test_a_phone_scrolls_tables_but_never_the_page_sideways(closed: Callable[..., Reader]) -> None:
    reader = closed(width=390, height=844)
    assert reader.js("return document.documentElement.scrollWidth") <= 390
    assert reader.js(
        "return [...document.querySelectorAll('.wide')].some((each) => each.scrollWidth > each.clientWidth)"
    )
    tops = reader.js("return [...document.querySelectorAll('.side')].map((side) => side.getBoundingClientRect().top)")
    assert tops[1] > tops[0] + 50, "y_r stands below y_o"


def test_scrolling_plots_can_be_reached_with_the_keyboard(closed: Callable[..., Reader]) -> None:
    reader = closed(width=390, height=844)
    reached = reader.js(
        "return [...document.querySelectorAll('.wide, .plot')].filter((e) => e.scrollWidth > e.clientWidth)"
        ".map((e) => [e.className, e.tabIndex])"
    )
    assert ["plot", 0] in reached
    assert {index for _, index in reached} == {0}


def test_long_names_of_arms_and_sets_stay_within_a_phone(twin: Callable[..., Reader]) -> None:
    for width in (390, 1280):
        reader = twin(width=width)
        assert reader.js("return document.documentElement.scrollWidth") <= width
        over = "return [...document.querySelectorAll('.chips li, .filters label, .bar')].some((e) => e.getBoundingClientRect().right > innerWidth)"
        assert reader.js(over) is False
        chips = reader.js("return document.querySelector('.chips').textContent")
        assert "trained on by trd-on-repaired-rows-of-the-first-half-of-the-problems-only, trd" in chips


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_scheme_of_the_system_and_the_button_turns_it(
    closed: Callable[..., Reader], scheme: str
) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(251, 251, 249)", "dark": "rgb(22, 23, 26)"}
    reader = closed(scheme=scheme)
    reader.js("localStorage.clear()")
    reader.open(scheme=scheme)
    assert reader.js(paper) == colours[scheme]
    reader.js("document.getElementById('theme').click()")
    other = "dark" if scheme == "light" else "light"
    assert reader.js(paper) == colours[other]
    reader.open(scheme=scheme)
    assert reader.js(paper) == colours[other], "remembered"
    reader.js("localStorage.clear()")


def test_what_can_be_used_has_a_name_and_shows_its_focus(reader: Reader) -> None:
    nameless = reader.js(
        "return [...document.querySelectorAll('button, select, input, [role=region], [role=listbox], [role=img]')]"
        ".filter((e) => !(e.textContent.trim() && e.matches('button')) && !e.ariaLabel && !e.getAttribute('aria-labelledby')"
        " && !(e.labels && e.labels.length)).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    reader.press("\ue004")  # Tab
    assert reader.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_more_trajectories_than_the_limit_are_cut_to_those_with_the_smallest_ids(tmp_path: Path) -> None:
    made = list(pairs(40, 30))
    found = trajectories(write_sets(tmp_path, made), limit=10)
    ids = {entry.row["trajectory_id"] for entry in found.entries}
    assert (found.shown, found.total) == (10, 40)
    assert ids == set(sorted(y_r.trajectory_id for _, y_r in made)[:10])


def test_of_many_rounds_the_first_and_the_last_have_a_quarter_each_and_the_others_equally_many(tmp_path: Path) -> None:
    made = list(pairs(140, 30))
    sizes = (40, 40, 20, 40)
    sets, ids = [], []
    for of, size in enumerate(sizes):
        start = sum(sizes[:of])
        part = made[start : start + size]
        both = write_sets(tmp_path / str(of), part)
        sets += [replace(each, node=f"seed-0/round-{of}/{each.kind}", round=of) for each in both]
        ids.append(sorted(y_r.trajectory_id for _, y_r in part))

    def shown(limit: int) -> list[list[str]]:
        found = trajectories(sets, limit=limit)
        assert found.by_round
        entries = list(found.entries)
        return [sorted(e.row["trajectory_id"] for e in entries if e.source.round == of) for of in range(len(sizes))]

    assert shown(24) == [each[:6] for each in ids], "with four rounds the others weigh as much"
    assert [len(each) for each in shown(110)] == [30, 30, 20, 30], "a round's lack falls to the others"
    assert shown(1000) == ids


def test_of_ten_rounds_the_ends_weigh_four_times_as_much(tmp_path: Path) -> None:
    sets = []
    for of in range(10):
        part = (
            (replace(a, trajectory_id=content_hash(f"{of} {a.seed} {a.sample_index}")), a) for a, _ in pairs(20, 30)
        )
        rollouts, _ = write_sets(tmp_path / str(of), part)
        sets.append(replace(rollouts, node=f"round-{of}", round=of))
    counts = [entry.source.round for entry in trajectories(sets, limit=32).entries]
    assert [counts.count(of) for of in range(10)] == [8, *[2] * 8, 8]


def test_long_texts_are_cut_at_a_number_of_characters_and_the_page_says_so(tmp_path: Path) -> None:
    made = list(pairs(40, 30))
    sets = write_sets(tmp_path, made, shard_rows=7)
    by_id = sorted(made, key=lambda pair: pair[1].trajectory_id)
    characters = sum(len(side.response or "") for pair in by_id[:12] for side in pair)
    for bound, rows in ((characters, 12), (characters - 1, 11), (0, 0)):
        found = trajectories(sets, characters=bound)
        ids = {entry.row["trajectory_id"] for entry in found.entries}
        assert (found.shown, found.total) == (rows, 40)
        assert ids == {y_r.trajectory_id for _, y_r in by_id[:rows]}
    path = tmp_path / "cut.html"
    write_page(path, report_data(tmp_path, sets), {}, trajectories(sets, characters=characters))
    text = path.read_text()
    assert "12 of 40 are here" in text
    assert "100,000,000 characters of y_o and y_r" in text
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_every_row_finds_its_parent_whatever_the_order_of_the_shards(tmp_path: Path) -> None:
    made = list(pairs(40, 30))
    sets = write_sets(tmp_path, made, shard_rows=7)
    shuffled = [y_o for y_o, _ in made]
    random.Random(1).shuffle(shuffled)
    for number, start in enumerate(range(0, 40, 7)):
        write_shard(shard_path(sets[0].path, number), shuffled[start : start + 7])
    entries = list(trajectories(sets).entries)
    assert [entry.row["trajectory_id"] for entry in entries] == [y_r.trajectory_id for _, y_r in made]
    assert [entry.rollout["response"] for entry in entries if entry.rollout] == [y_o.response for y_o, _ in made]


def test_rows_that_two_runs_share_are_each_shown_as_their_own_run_has_them(tmp_path: Path) -> None:
    made = list(pairs(3, 30))
    found: list[SetRef] = []
    for run in ("a", "b"):
        rollouts, refined = write_sets(tmp_path / run, made)
        chosen = replace(rollouts, selections=(Selection(f"{run}/fkl", "incorrect", None),))
        found += [chosen, *([refined] if run == "a" else [])]
    entries = list(trajectories(found).entries)
    shown = [(entry.source.path.parent.name, entry.source.kind, entry.arms) for entry in entries]
    a, b = ("a/fkl",), ("b/fkl",)
    assert shown == [
        *[("a", "refined", a), ("a", "refined", a), ("a", "refined", ())],
        *[("b", "rollout", b), ("b", "rollout", b), ("b", "rollout", ())],
    ]


def test_a_torn_shard_costs_the_page_its_own_rows_alone(tmp_path: Path) -> None:
    made = list(pairs(9, 30))
    sets = write_sets(tmp_path, made, shard_rows=3)
    for ref, number in zip(sets, (0, 2), strict=True):
        shard = shard_path(ref.path, number)
        shard.write_bytes(shard.read_bytes()[:1000])
    shown = [(e.rollout is not None, e.refined is not None) for e in trajectories(sets).entries]
    assert shown == [(False, True)] * 3 + [(True, True)] * 3 + [(True, False)] * 3


def test_a_run_with_a_torn_shard_of_rollouts_still_gets_its_page(tmp_path: Path, ok: Trd) -> None:
    run = make_run(tmp_path / "run", ok)
    whole = ok("report", run, "--out", tmp_path / "whole")
    assert 'class="notice"' not in (tmp_path / "whole" / "report.html").read_text(), whole.stderr
    (shard,) = list_shards(run / "nodes" / "sample-0")
    shard.write_bytes(shard.read_bytes()[:1000])
    told = ok("report", run, "--out", tmp_path / "torn")
    assert "shard-00000.parquet is damaged" in told.stderr
    text = (tmp_path / "torn" / "report.html").read_text()
    assert "shard-00000.parquet is damaged" in text
    assert "<dt>Trajectories</dt><dd>8</dd>" in text


def test_a_refined_row_whose_parents_are_gone_is_shown_alone(tmp_path: Path) -> None:
    _, refined = write_sets(tmp_path, list(pairs(4, 30)))
    shutil.rmtree(tmp_path / "y_o")
    entries = list(trajectories([refined]).entries)
    assert len(entries) == 4
    assert {entry.rollout for entry in entries} == {None}


def test_the_top_of_the_page_names_the_runs_and_what_is_missing_and_nothing_where_all_is_there(tmp_path: Path) -> None:
    data = report_data(tmp_path)
    arms = {"base": "a/base", "trd": "a/trd", "fkl": "b/fkl"}
    scores = [replace(score, arm=arms[score.arm]) for score in data.scores]
    scores += [replace(score, arm="b/base") for score in data.scores if score.arm == "base"]
    two = replace(
        data,
        name="a and b",
        runs=("a", "b"),
        directories=(tmp_path / "one", tmp_path / "other"),
        reference_arm=None,
        scores=tuple(scores),
        trainings=(),
        missing=("b/seed-0/round-0/fkl/eval: failed",),
        notes=("a/trd: b has no such evaluation",),
    )
    texts = []
    for each in (data, two):
        write_page(tmp_path / "report.html", each, {}, trajectories(()))
        head = (tmp_path / "report.html").read_text().partition("<header>")[2].partition("</header>")[0]
        texts.append(" ".join(re.sub("<[^>]*>", " ", head).split()))
    one, both = texts
    about = "Benchmarks math500, aime25 Rounds 1 Seeds 0"
    assert one == (f"made-up run Setting OPSD Arms base, fkl, trd Compared to trd {about} Directory {tmp_path}")
    assert both == (
        f"a and b Setting OPSD Arms base, fkl (b only), trd (a only) {about} "
        f"Directory of a {tmp_path}/one Directory of b {tmp_path}/other "
        "Missing, not finished, or not readable b/seed-0/round-0/fkl/eval: failed "
        "Notes a/trd: b has no such evaluation"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It costs $5 and $7, or $5-$7.", []),
        ("so $x^2$ and \\(y\\), then \\[z\\] and $$w$$", ["$x^2$", "\\(y\\)", "\\[z\\]", "$$w$$"]),
        ("boxed \\boxed{\\frac{1}{2}} here", ["\\boxed{\\frac{1}{2}}"]),
        ("`$a$` and\n```python\nx = '$b$'\n```\n$c$", ["$c$"]),
        ("\\begin{align*}a&=b\\end{align*}", ["\\begin{align*}a&=b\\end{align*}"]),
        ("an escaped \\$x$ and $ y $", []),
    ],
)
def test_formulas_are_found_and_prices_and_code_are_not(text: str, found: list[str]) -> None:
    assert list(formulas(text)) == found


@pytest.mark.parametrize("text", ["\\[" * 20_000, "$a" * 20_000, "\\boxed{" + "{a}" * 20_000, "```\n" * 20_000])
def test_text_made_to_be_slow_is_searched_in_time(text: str) -> None:
    started = time.monotonic()
    list(formulas(text))
    assert time.monotonic() - started < 10


def test_a_formula_becomes_elements_of_mathml_alone() -> None:
    assert json.loads(mathml("$x^2$")) == ["math", {"display": "inline"}, ["msup", ["mi", "x"], ["mn", "2"]]]
    for source in ("$\\href{javascript:a}{x}$", "$\\style{color:red}{x}$", "$\\text{<script>}$"):
        tree = mathml(source)
        assert not any(word in tree for word in ("href", "style", '"script'))
    assert {mathml(source) for source in ("$\\frac{$", "$\\nosuchmacro{x}$", "$" + "x" * 2000 + "$")} == {None}


def test_a_plot_in_the_page_has_ids_of_its_own() -> None:
    svg = (
        '<?xml version="1.0"?>\n<svg><metadata>m</metadata><g id="a"/><use xlink:href="#a" clip-path="url(#a)"/></svg>'
    )
    shown = inline_svg(svg, "p")
    assert shown == '<svg><g id="p-a"/><use xlink:href="#p-a" clip-path="url(#p-a)"/></svg>'
