"""Every command in README, and every script it names, exists and parses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from trd_cli.cli import app
from trd_cli.config.training import METHODS
from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.graders.base import Question
from trd_cli.graders.code import CodeOptions, grade

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """Return the `trd` invocations in README's shell blocks, one for each command of a pipe."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").replace("|\n", "| ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"\s\|\s", line)]
    return [part for part in parts if part.startswith("trd ")]


def parse(words: list[str]) -> None:
    """Raise click.UsageError if a command line is not one of trd's."""
    command, name = typer.main.get_command(app), "trd"
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


def test_readme_has_the_commands_it_is_about() -> None:
    assert {shlex.split(c)[1] for c in commands()} >= {"data", "sample", "verify", "refine", "distill", "eval", "diff"}


@pytest.mark.parametrize("line", commands())
def test_a_command_in_readme_parses(line: str) -> None:
    parse(shlex.split(line)[1:])


def test_the_table_of_methods_says_what_each_sets() -> None:
    along = {"y_r": "refined", "y_o": "rollout"}
    found: dict[str, dict[str, str]] = {}
    table = README.split("| `--method` |")[1].split("\n\n")[0].splitlines()[2:]
    for line in table:
        name, objective, stage, context, besides, _ = [cell.strip() for cell in line.strip("| ").split(" | ")]
        sets = {"objective": objective.strip("`"), "stage": along[stage], "teacher_context": context}
        sets |= dict(re.findall(r"`(\w+)` ([\w.]+)", besides))
        found[name.strip("`")] = sets
    assert found == {name: {k: str(v) for k, v in sets.items()} for name, sets in METHODS.items()}


def test_a_wrong_command_does_not_parse() -> None:
    with pytest.raises(Exception, match="--no-such-flag"):
        parse(["sample", "--no-such-flag"])


def test_paths_that_readme_names_exist() -> None:
    for path in re.findall(r"`((?:examples|tests|prompts|trd_cli)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path


def test_the_questions_in_readme_are_a_benchmark_of_each_task(tmp_path: Path) -> None:
    rows = README.split("```json\n")[1].split("```")[0].splitlines()
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
