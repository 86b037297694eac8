"""Every README says what is there: its commands parse, its tables are the code's, its paths, links and flags exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
import typer
from conftest import Trd
from support import manual

from trd_cli.cli import app
from trd_cli.config.base import Subset
from trd_cli.config.generating import EngineName
from trd_cli.config.grading import GraderConfig
from trd_cli.config.training import METHODS
from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.datasets.presets import PRESETS
from trd_cli.exchange.export import LAYOUTS
from trd_cli.exchange.forms.registry import FORMS
from trd_cli.graders.base import Question
from trd_cli.graders.code import CodeOptions, grade
from trd_cli.losses.objectives import OBJECTIVES
from trd_cli.prompting.templates import PLACEHOLDERS

ROOT = Path(__file__).parent.parent
ROOMS = ("examples", "prompts", "tests", "trd_cli")
PAGES = [ROOT / "README.md", *(page for room in ROOMS for page in sorted((ROOT / room).rglob("README.md")))]
# Of the scripts in examples/, of pip and ray, and of every command.
OTHER_FLAGS = {"--quick", "--upgrade", "--no-deps", "--num-gpus", "--help", "--version", "--install-completion"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(place: str) -> str:
    return (ROOT / place / "README.md").read_text()


def commands(page: Path) -> list[str]:
    """Return the `trd` invocations in a page's shell blocks, one for each command of a pipe."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").replace("|\n", "| ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"\s\|\s", line.partition("    #")[0])]
    trained = [part.partition(" -m trd_cli ")[2] for part in parts if " -m trd_cli " in part]
    return [part for part in parts if part.startswith("trd ")] + [f"trd {part}" for part in trained]


def cells(page: str, head: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this head."""
    table = page.split(f"| {head} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")] for line in table]


def named(page: str, head: str) -> list[str]:
    """Return all names in backticks in the first column of a table."""
    return [name for row in cells(page, head) for name in re.findall(r"`([^`]+)`", row[0])]


def parse(words: list[str]) -> None:
    """Raise click.UsageError if a command line is not one of trd's."""
    command, name = typer.main.get_command(app), "trd"
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


# Commands


def test_readme_has_the_commands_it_is_about() -> None:
    shown = {shlex.split(c)[1] for c in commands(ROOT / "README.md")}
    assert shown >= {"data", "sample", "verify", "refine", "distill", "eval"}


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_a_command_in_a_readme_parses(line: str) -> None:
    parse(shlex.split(line)[1:])


def test_a_wrong_command_does_not_parse() -> None:
    with pytest.raises(Exception, match="--no-such-flag"):
        parse(["sample", "--no-such-flag"])


def test_the_table_of_commands_has_them_all() -> None:
    assert sorted(named(text_of("."), "command")) == sorted(name for name, _ in manual.commands())


def test_the_manual_of_options_is_as_generated() -> None:
    assert manual.renewed() == manual.PAGE.read_text(), f"renew it with: {manual.RENEW}"


# Tables


def test_the_table_of_methods_says_what_each_sets() -> None:
    along = {"y_r": "refined", "y_o": "rollout"}
    found: dict[str, dict[str, str]] = {}
    for name, objective, stage, context, besides, _ in cells(text_of("trd_cli/losses"), "`--method`"):
        sets = {"objective": objective.strip("`"), "stage": along[stage], "teacher_context": context}
        sets |= dict(re.findall(r"`(\w+)` ([\w.]+)", besides))
        found[name.strip("`")] = sets
    assert found == {name: {k: str(v) for k, v in sets.items()} for name, sets in METHODS.items()}


@pytest.mark.parametrize(
    ("place", "head", "known"),
    [
        ("trd_cli/losses", "`--objective`", OBJECTIVES),
        ("trd_cli/datasets", "`--preset`", PRESETS),
        ("trd_cli/engines", "`--engine`", get_args(EngineName)),
        ("trd_cli/trajectories", "`--subset`", get_args(Subset)),
        ("trd_cli/exchange", "`--format`", LAYOUTS),
        ("trd_cli/exchange", "form", FORMS),
        ("trd_cli/graders", "`--sandbox`", set(get_args(GraderConfig.model_fields["sandbox"].annotation)) - {"auto"}),
    ],
    ids=lambda value: value.strip("`") if isinstance(value, str) else "",
)
def test_the_table_of_an_option_has_all_its_values(place: str, head: str, known: object) -> None:
    assert sorted(named(text_of(place), head)) == sorted(known)


def test_the_table_of_templates_has_every_kind_with_its_placeholders() -> None:
    found = {
        kind: set(re.findall(r"`(\w+)`", placeholders)) for kind, _, placeholders in cells(text_of("prompts"), "kind")
    }
    assert found == {kind: set(placeholders) for kind, placeholders in PLACEHOLDERS.items()}


def test_the_table_of_benchmarks_has_every_script() -> None:
    assert sorted(named(text_of("examples"), "script")) == sorted(
        p.name for p in (ROOT / "examples/bench").glob("*.py")
    )


# Paths, links, flags


@each_page
def test_the_paths_that_a_readme_names_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    below_root = re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`", text)
    assert [path for path in below_root if not (ROOT / path).exists()] == []
    beside = re.findall(r"`(\w+\.(?:py|toml|sh))[ `]", text)
    places = (page.parent, ROOT / "examples/bench", ROOT / "examples/recipes")
    assert [name for name in beside if not any((place / name).exists() for place in places)] == []


@each_page
def test_what_a_readme_says_is_in_a_file_is_there(page: Path) -> None:
    for name, file in re.findall(r"`([\w.]+)`\s+(?:of|in)\s+`([\w./]+\.py)`", page.read_text()):
        path = ROOT / file if "/" in file else page.parent / file
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", path.read_text()), f"{name} in {file}"


@each_page
def test_the_links_of_a_readme_lead_to_files_and_headings(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if not link.startswith("http")]
    for link in links:
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
        anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not heading or heading in anchors, link


@each_page
def test_the_flags_that_a_readme_names_are_flags_of_a_command(page: Path) -> None:
    known = OTHER_FLAGS | set(re.findall(r"`(--[a-z][\w-]*)", manual.PAGE.read_text().replace("/", "` `")))
    quoted = [word for code in re.findall(r"`([^`\n]+)`", page.read_text()) for word in code.split()]
    flags = {word for word in quoted if re.fullmatch(r"--[a-z][a-z-]*", word)}
    assert flags - known == set()


def test_the_tree_in_readme_has_every_room_and_nothing_else() -> None:
    tree = re.search(r"## Where things are\n\n(.*?)\n\n## ", text_of("."), re.DOTALL)[1].splitlines()
    below = [line.split()[0] for line in tree if line.startswith("      ")]
    above = [line.split()[0] for line in tree if not line.startswith("      ")]
    assert [name for name in (*above, *(f"trd_cli/{name}" for name in below)) if not (ROOT / name).exists()] == []
    rooms = {f"{path.parent.name}/" for path in (ROOT / "trd_cli").glob("*/__init__.py")}
    assert rooms <= set(below)


def test_the_questions_in_a_readme_are_a_benchmark_of_each_task(tmp_path: Path) -> None:
    rows = text_of("trd_cli/datasets").split("```json\n")[1].split("```")[0].splitlines()
    (tmp_path / "m.jsonl").write_text(rows[0])
    (tmp_path / "c.jsonl").write_text("\n".join(rows[1:]))
    (sum_,) = load_benchmark(f"{tmp_path}/m.jsonl:math").problems
    assert (sum_.problem_id, sum_.reference_answer) == ("m-sum-1", "2")
    fed, called = load_benchmark(f"{tmp_path}/c.jsonl:code").problems
    for problem, program in ((fed, "print(sum(map(int, input().split())))"), (called, "add = int.__add__")):
        answer = Question("code", f"```python\n{program}\n```", None, problem.tests)
        assert grade(answer, CodeOptions()).verdict == "correct"
        wrong = Question("code", "```python\nadd = max\nprint(0)\n```", None, problem.tests)
        assert grade(wrong, CodeOptions()).verdict == "incorrect"


def test_the_set_in_a_readme_is_read_by_polars_as_it_shows(problems: Path, ok: Trd, tmp_path: Path) -> None:
    ok("sample", "-m", "scripted", "-p", problems, "--out", tmp_path / "runs" / "y_r")
    (block,) = re.findall(r"```python\n(.*?)```", text_of("trd_cli/trajectories"), re.DOTALL)
    program = block + "print(rows.height > 0)"
    shown = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout == "True\n"
