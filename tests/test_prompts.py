"""Prompt templates: the built-in ones and their questions, and refusals of a user's own."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import Trd
from support.tiny import write_tokenizer

from trd_cli.errors import PromptError
from trd_cli.prompting.templates import PLACEHOLDERS, Template, load_template, prompts_dir
from trd_cli.prompting.tokens import ByteTokenizer, HubTokenizer

KINDS = ("student", "vanilla-opd", "vanilla-opsd", "refine-opd", "refine-opsd")
TASKS = ("math", "code", "episode", "task")
REPOSITORY = Path(__file__).resolve().parent.parent
VALUES = {
    "problem": "How many legs have 3 cats & 2 hens <together>?",
    "attempt": "Cats have 4 legs, so 3 * 4 = 11.",
    "reference_solution": "Three cats have 12 legs and two hens 4, so 16.",
    "reference_answer": "sixteen (16)",
}

every_template = pytest.mark.parametrize("kind", KINDS)
every_task = pytest.mark.parametrize("task", TASKS)


def text_of(template: Template, **changes: str) -> str:
    """Return the content of the one message that a template renders to."""
    (message,) = template.render(VALUES | changes)
    assert message["role"] == "user"
    return message["content"]


@pytest.mark.parametrize("kind", ["bytes", "hub"])
def test_a_prompt_rendered_raw_line_is_its_text_and_one_line_break(kind: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = ByteTokenizer() if kind == "bytes" else HubTokenizer(tmp_path)
    for question in ("What is the sum?", "What is the sum?\n"):
        messages = ({"role": "user", "content": question},)
        assert tokenizer.render(messages, "raw", {}) == tokenizer.encode(question)
        assert tokenizer.render(messages, "raw-line", {}) == tokenizer.encode(question + "\n")


def own(folder: Path, text: str) -> str:
    path = folder / "own.jinja"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_there_is_a_template_for_every_kind_and_task_and_no_other() -> None:
    assert set(PLACEHOLDERS) == {*KINDS, "again"}
    names = {f"{k}-{t}.jinja" for k in KINDS for t in TASKS}
    assert {path.name for path in prompts_dir().glob("*.jinja")} == {*names, "again-episode.jinja"}


def test_a_teacher_that_is_asked_again_reads_the_replies_and_what_is_wrong() -> None:
    template = load_template("again", "episode")
    assert template.placeholders == {"done", "fault"}
    text = text_of(template, done="> go east", fault="The list ended.")
    assert "> go east" in text
    assert "The list ended." in text


@every_task
@every_template
def test_a_template_shows_all_values_of_its_kind_and_no_other(kind: str, task: str) -> None:
    template = load_template(kind, task)
    text = text_of(template)
    assert template.name == f"{kind}-{task}"
    assert text == text.strip()
    assert "{{" not in text
    shown = {name for name, value in VALUES.items() if value in text}
    assert shown == template.placeholders
    wanted = {"student": {"problem"}, "vanilla-opd": {"problem"}, "refine-opd": {"problem", "attempt"}}
    if kind in wanted:
        assert shown == wanted[kind]
    else:
        assert shown >= {"problem", "reference_solution"}


@every_template
def test_math_asks_for_a_boxed_answer_and_code_for_one_code_block(kind: str) -> None:
    assert "\\boxed{}" in text_of(load_template(kind, "math"))
    code = text_of(load_template(kind, "code"))
    assert "in a single ```python code block" in code
    assert "one complete Python program or function" in code
    assert "boxed" not in code


@every_task
def test_the_vanilla_opd_teacher_reads_what_the_student_reads(task: str) -> None:
    assert text_of(load_template("vanilla-opd", task)) == text_of(load_template("student", task))


@every_task
@pytest.mark.parametrize("kind", ["refine-opd", "refine-opsd"])
def test_a_refinement_keeps_what_is_right_and_is_the_solution_alone(kind: str, task: str) -> None:
    text = text_of(load_template(kind, task))
    assert "Rewrite" in text
    assert "Keep" in text
    assert "repair" in text
    assert "Output only the solution" in text


@every_task
@pytest.mark.parametrize("kind", ["vanilla-opsd", "refine-opsd"])
def test_who_is_shown_the_reference_must_not_tell(kind: str, task: str) -> None:
    text = text_of(load_template(kind, task))
    assert "never mention" in text.lower() or "do not mention" in text.lower()


@pytest.mark.parametrize("kind", ["vanilla-opsd", "refine-opsd"])
def test_a_problem_without_a_final_answer_has_no_line_for_it(kind: str) -> None:
    template = load_template(kind, "math")
    assert f"final answer: {VALUES['reference_answer']}" in text_of(template)
    without = text_of(template, reference_answer="")
    assert "final answer:" not in without
    assert VALUES["reference_solution"] in without


@every_task
@every_template
def test_values_are_shown_as_they_are_and_never_interpreted(kind: str, task: str) -> None:
    template = load_template(kind, task)
    sly = "{{ reference_answer }} {% if x %} {# hidden #} {{ 7 * 6 }} <b>&amp;</b> \\boxed{1} ${x}"
    for name in template.placeholders:
        text = text_of(template, **{name: sly})
        assert sly in text
        assert "42" not in text


def test_a_templates_own_file_is_used_and_named(tmp_path: Path) -> None:
    path = own(tmp_path, "Q: {{ problem }}\nA:")
    template = load_template("student", "math", path)
    assert template.name == path
    assert text_of(template) == f"Q: {VALUES['problem']}\nA:"


def test_the_digest_is_that_of_the_text_and_changes_with_it(tmp_path: Path) -> None:
    digests = set()
    for text in ("{{ problem }}", "{{ problem }} ", "{{problem}}", "{{ problem }}ü"):
        template = load_template("student", "math", own(tmp_path, text))
        assert template.sha256 == hashlib.sha256(text.encode()).hexdigest()
        digests.add(template.sha256)
    assert len(digests) == 4


def test_built_in_templates_have_the_digest_of_their_file() -> None:
    for kind in KINDS:
        for task in TASKS:
            content = (prompts_dir() / f"{kind}-{task}.jinja").read_bytes()
            assert load_template(kind, task).sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("kind", "text", "named"),
    [
        ("student", "{{ problem }} {{ hint }}", "hint"),
        ("student", "{{ problem }} {{ reference_solution }}", "reference_solution"),
        ("refine-opd", "{{ problem }} {{ attempt }} {{ reference_answer }}", "reference_answer"),
        ("vanilla-opd", "{{ problem }}{% if reference_solution %}!{% endif %}", "reference_solution"),
        ("refine-opsd", "{{ problem }} {{ Attempt }}", "Attempt"),
    ],
)
def test_a_placeholder_its_kind_does_not_have_is_refused_by_name(
    tmp_path: Path, kind: str, text: str, named: str
) -> None:
    with pytest.raises(PromptError, match=f"has the placeholder '{named}'") as refusal:
        load_template(kind, "math", own(tmp_path, text))
    assert "{{ problem }}" in str(refusal.value), "what there is should be listed"


@pytest.mark.parametrize(
    ("kind", "text", "named"),
    [
        ("student", "What?", "problem"),
        ("refine-opd", "{{ problem }}", "attempt"),
        ("refine-opsd", "{{ attempt }} {{ reference_solution }}", "problem"),
        ("student", "{# {{ problem }} #}", "problem"),
        ("student", "{% set problem = 1 %}{{ problem }}", "problem"),
    ],
)
def test_a_placeholder_its_kind_needs_is_missed_by_name(tmp_path: Path, kind: str, text: str, named: str) -> None:
    with pytest.raises(PromptError, match=f"lacks {{{{ {named} }}}}"):
        load_template(kind, "math", own(tmp_path, text))


def test_optional_placeholders_may_be_left_out(tmp_path: Path) -> None:
    template = load_template("refine-opsd", "math", own(tmp_path, "{{ problem }} {{ attempt }}"))
    assert template.placeholders == {"problem", "attempt"}


@pytest.mark.parametrize(
    "text",
    [
        "{{ problem }",
        "{% if problem %}{{ problem }}",
        "{{ problem }}{% endif %}",
        "{{ problem | no_such_filter }}",
        "{{ problem.no_such_attribute }}",
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused_before_the_first_call(tmp_path: Path, text: str) -> None:
    path = own(tmp_path, text)
    with pytest.raises(PromptError, match=re.escape(path)):
        load_template("student", "math", path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.jinja"
    latin.write_bytes("{{ problem }} für".encode("latin-1"))
    for path in (tmp_path / "missing.jinja", tmp_path, latin):
        with pytest.raises(PromptError, match=re.escape(str(path))):
            load_template("student", "math", str(path))


def test_a_refused_template_ends_a_command_in_one_line(problems: Path, trd: Trd, tmp_path: Path) -> None:
    path = own(tmp_path, "{{ problem }} {{ hint }}")
    result = trd("sample", "-m", "scripted", "-p", problems, "--prompt", path, "--out", tmp_path / "y_o")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "hint" in result.stderr
    assert not (tmp_path / "y_o").exists()


def test_the_wheel_carries_the_templates(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for path in (REPOSITORY / "prompts").glob("*.jinja"):
            assert archive.read(f"trd_cli/_prompts/{path.name}") == path.read_bytes()
        for path in (REPOSITORY / "examples/quickstart").glob("*.jinja"):
            assert archive.read(f"trd_cli/_prompts/small/{path.name}") == path.read_bytes()
