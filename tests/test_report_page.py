"""The report's page in a real browser: it loads, filters, shows differences, obeys keys and links, and fetches nothing.

Skipped where Chromium, its driver or selenium is missing; nothing is installed here.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import pairs, report_data, trajectory, write_sets

from trd_cli.records import content_hash
from trd_cli.report.data import Selection
from trd_cli.report.formulas import formulas, mathml
from trd_cli.report.page import inline_svg, write_page
from trd_cli.report.plots import plots
from trd_cli.report.trajectories import trajectories

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
EVIL = (
    "<script>window.hacked = 1</script> </script><img src=x onerror='window.hacked = 2'> <!-- "
    "\\(\\href{javascript:window.hacked=3}{y}\\) $\\text{<script>window.hacked = 4</script>}$ "
    "```html\n<b onclick='window.hacked = 5'>bold</b>\n```\nhttps://example.org/<iframe src=//example.org>"
)
ROWS = 480
KEPT = "parent_verdict = 'correct' AND verdict = 'correct'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with 480 pairs, a rollout that was not refined, and a pair whose text tries to be HTML."""
    directory = tmp_path_factory.mktemp("report")
    made = list(pairs(ROWS, 200))
    evil = trajectory("evil", 9999, problem_id="evil/<b>1</b>", response=EVIL, problem=EVIL)
    answer = replace(
        evil, trajectory_id=content_hash("evil r"), parent_id=evil.trajectory_id, stage="refined"
    )
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


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not CHROMIUM or not DRIVER:
        pytest.skip("Chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield started
    started.quit()


class Reader:
    """The page as one looks at it: `js` runs a script in it, `press` types keys, `until` waits for what a script says."""

    def __init__(self, driver: Any, page: Path) -> None:
        self.driver, self.page = driver, page

    def open(self, fragment: str = "", width: int = 1280, height: int = 900, scheme: str = "light") -> Reader:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get("about:blank")
        self.logs("browser"), self.logs("performance")
        self.driver.get(self.page.as_uri() + fragment)
        self.until("return document.documentElement.dataset.ready")
        self.until("return document.querySelector('#detail .pair')")
        return self

    def logs(self, kind: str) -> list[dict[str, Any]]:
        return self.driver.get_log(kind)

    def js(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def until(self, script: str) -> Any:
        deadline = time.monotonic() + 20
        while not (found := self.js(script)):
            assert time.monotonic() < deadline, f"never came true: {script}"
            time.sleep(0.01)
        return found

    def press(self, keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(keys)

    def shown_id(self) -> str:
        return self.js("return document.getElementById('detail').dataset.id")

    def count(self) -> str:
        return self.js("return document.getElementById('count').textContent")

    def pick(self, name: str, text: str) -> int:
        """Choose the option of a filter whose text has `text`; the number that the option gives."""
        return self.js(
            "const select = document.getElementById(arguments[0]);"
            "const option = [...select.options].find((o) => o.text.includes(arguments[1]));"
            "select.value = option.value; select.dispatchEvent(new Event('change'));"
            "return Number(option.text.split(': ').pop().replaceAll(',', ''))",
            name,
            text,
        )

    def search(self, text: str) -> None:
        self.js(
            "const field = document.getElementById('search'); field.value = arguments[0];"
            "field.dispatchEvent(new Event('input'))",
            text,
        )


@pytest.fixture
def reader(driver: Any, page: Path) -> Reader:
    return Reader(driver, page).open()


@pytest.fixture
def closed(driver: Any, page: Path) -> Callable[..., Reader]:
    return Reader(driver, page).open


def problems_said(reader: Reader) -> list[str]:
    return [entry["message"] for entry in reader.logs("browser")]


def requested(reader: Reader) -> list[str]:
    events = (json.loads(entry["message"])["message"] for entry in reader.logs("performance"))
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


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
        reader.js("try { document.body.innerHTML += '<b>x</b>'; return 'set' } catch { return 'refused' }")
        == "refused"
    )


def test_text_that_is_html_is_shown_as_text_and_does_nothing(
    closed: Callable[..., Reader], page: Path
) -> None:
    reader = closed(f"#t={content_hash('evil r')}")
    reader.js("document.querySelectorAll('#detail details').forEach((each) => { each.open = true })")
    reader.until("return document.querySelector('#detail details:last-of-type dl')")
    assert "<script>window.hacked = 1</script>" in reader.js(
        "return document.getElementById('detail').textContent"
    )
    assert reader.js("return window.hacked ?? null") is None
    assert (
        reader.js(
            "return document.querySelectorAll('#detail :is(script, img, iframe, b, [onclick], [href])').length"
        )
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
    reader.until(
        "return document.querySelector('.chips').textContent.includes('correct → incorrect (broken)')"
    )


def test_search_finds_a_problem_by_its_text_its_name_and_a_row_by_its_id(reader: Reader) -> None:
    for words, count in (
        ("garden number 17?", 4),
        ("made-up/100", 4),
        (content_hash("r5")[:16], 1),
        ("nowhere", 0),
    ):
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
    assert (
        reader.js("return document.querySelector('#detail details mfrac').getBoundingClientRect().height")
        > 10
    )
    assert "return" in reader.js(
        "return [...document.querySelectorAll('.side pre .word')].map((e) => e.textContent)"
    )


def test_prompt_reference_and_lineage_are_there_when_unfolded(reader: Reader) -> None:
    reader.js("document.querySelectorAll('#detail details').forEach((each) => { each.open = true })")
    reader.until(
        "return [...document.querySelectorAll('#detail details')].every((each) => each.children.length > 1)"
    )
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


def test_a_rollout_that_was_not_refined_says_why_it_has_no_text(closed: Callable[..., Reader]) -> None:
    reader = closed(f"#t={content_hash('lonely')}")
    assert "no room" in reader.js("return document.querySelector('.pair.single').textContent")


def test_texts_that_differ_in_everything_are_still_compared_in_time(driver: Any, tmp_path: Path) -> None:
    before = trajectory("long", 1, response=" ".join(f"a{i}" for i in range(20_000)))
    after = replace(
        before, trajectory_id=content_hash("long r"), parent_id=before.trajectory_id, stage="refined"
    )
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


def test_code_is_compared_line_by_line(reader: Reader) -> None:
    lines = reader.js(
        "return [...document.querySelectorAll('.side pre > .changed')].map((line) => line.textContent)"
    )
    assert any("v ** 2" in line for line in lines)
    assert any("v * v" in line for line in lines)
    assert "return" in reader.js(
        "return [...document.querySelectorAll('.side pre .word')].map((e) => e.textContent)"
    )


def test_a_phone_scrolls_tables_but_never_the_page_sideways(closed: Callable[..., Reader]) -> None:
    reader = closed(width=390, height=844)
    assert reader.js("return document.documentElement.scrollWidth") <= 390
    assert reader.js(
        "return [...document.querySelectorAll('.wide')].some((each) => each.scrollWidth > each.clientWidth)"
    )
    tops = reader.js(
        "return [...document.querySelectorAll('.side')].map((side) => side.getBoundingClientRect().top)"
    )
    assert tops[1] > tops[0] + 50, "y_r stands below y_o"


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


def test_a_refined_row_whose_parents_are_gone_is_shown_alone(tmp_path: Path) -> None:
    _, refined = write_sets(tmp_path, list(pairs(4, 30)))
    shutil.rmtree(tmp_path / "y_o")
    entries = list(trajectories([refined]).entries)
    assert len(entries) == 4
    assert {entry.rollout for entry in entries} == {None}


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


@pytest.mark.parametrize(
    "text", ["\\[" * 20_000, "$a" * 20_000, "\\boxed{" + "{a}" * 20_000, "```\n" * 20_000]
)
def test_text_made_to_be_slow_is_searched_in_time(text: str) -> None:
    started = time.monotonic()
    list(formulas(text))
    assert time.monotonic() - started < 10


def test_a_formula_becomes_elements_of_mathml_alone() -> None:
    assert json.loads(mathml("$x^2$")) == ["math", {"display": "inline"}, ["msup", ["mi", "x"], ["mn", "2"]]]
    for source in ("$\\href{javascript:a}{x}$", "$\\style{color:red}{x}$", "$\\text{<script>}$"):
        tree = mathml(source)
        assert not any(word in tree for word in ("href", "style", '"script'))
    assert {mathml(source) for source in ("$\\frac{$", "$\\nosuchmacro{x}$", "$" + "x" * 2000 + "$")} == {
        None
    }


def test_a_plot_in_the_page_has_ids_of_its_own() -> None:
    svg = '<?xml version="1.0"?>\n<svg><metadata>m</metadata><g id="a"/><use xlink:href="#a" clip-path="url(#a)"/></svg>'
    shown = inline_svg(svg, "p")
    assert shown == '<svg><g id="p-a"/><use xlink:href="#p-a" clip-path="url(#p-a)"/></svg>'
