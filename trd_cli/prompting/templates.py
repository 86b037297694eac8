"""Prompt templates: files in `prompts/`, filled with jinja2, checked before the first call."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jinja2
import jinja2.meta
from jinja2 import nodes

from trd_cli.atomic import read_text_once
from trd_cli.errors import PromptError
from trd_cli.records import EPISODE, Message, Problem, Task, Trajectory, well_formed

# Placeholders that a template of each kind may use. It must use those marked True.
PLACEHOLDERS: dict[str, dict[str, bool]] = {
    "student": {"problem": True},
    "vanilla-opd": {"problem": True},
    "vanilla-opsd": {"problem": True, "reference_solution": False, "reference_answer": False},
    "refine-opd": {"problem": True, "attempt": True},
    "refine-opsd": {"problem": True, "attempt": True, "reference_solution": False, "reference_answer": False},
    # For episodes alone: a further message in the conversation that a refinement prompt begins.
    "again": {"done": True, "fault": True},
}
_REFERENCES = ("reference_solution", "reference_answer")
# Templates are written for each of these; any task that is not one of the first three is of the last.
OTHER = "task"
FAMILIES = ("math", "code", EPISODE, OTHER)
_PACKAGE = Path(__file__).parents[1]
_ENVIRONMENT = jinja2.Environment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


def prompts_dir() -> Path:
    """Return the directory of the built-in templates: in the installed package, or beside it in a checkout."""
    packaged = _PACKAGE / "_prompts"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "prompts"


def small_prompts_dir() -> Path:
    """Return the directory of `student.jinja` and `refine.jinja` for SmolLM2-135M, which follows an example better."""
    packaged = _PACKAGE / "_prompts" / "small"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "examples" / "quickstart"


@dataclass(frozen=True)
class Template:
    """A checked template. `sha256` is the digest of its text and goes into every row it renders."""

    name: str
    text: str
    placeholders: frozenset[str]

    @cached_property
    def sha256(self) -> str:
        return _digest(self.text)

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """Return the references of which a problem must have one; () where the template shows none.

        A reference that is shown only inside an {% if %} of its own may be absent where another is there.
        """
        bare = {*_bare(_ENVIRONMENT.parse(self.text), frozenset())}
        shown = [name for name in _REFERENCES if name in self.placeholders]
        return tuple([name for name in shown if name in bare][:1] or shown)

    def lacks(self, row: Problem | Trajectory) -> str | None:
        """Return the references that a row would need to have one of; None where it has one."""
        if not self.needed or any(getattr(row, name) for name in self.needed):
            return None
        return " and no ".join(self.needed)

    def render(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        """Return the messages of one prompt: a single user turn. Every placeholder must be in `values`."""
        text = well_formed(_compiled(self.text).render(**values))
        return ({"role": "user", "content": text.strip()},)


def _bare(node: nodes.Node, asked: frozenset[str]) -> Iterator[str]:
    """Yield the names that a template uses, but for those inside an {% if %} that asks for the same name."""
    if isinstance(node, nodes.Name):
        if node.name not in asked:
            yield node.name
    elif isinstance(node, nodes.If) and isinstance(node.test, nodes.Name):
        for child in node.body:
            yield from _bare(child, asked | {node.test.name})
        for child in (*node.elif_, *node.else_):
            yield from _bare(child, asked)
    else:
        for child in node.iter_child_nodes():
            yield from _bare(child, asked)


@functools.cache
def _compiled(text: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(text)


def digest_of(override: str) -> str:
    """Return the digest of the template in the file that --prompt names, as `Template.sha256`."""
    return _digest(_text_of(Path(override)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text_of(path: Path) -> str:
    try:
        return read_text_once(path)
    except UnicodeDecodeError:
        raise PromptError(f"prompt {path} is not UTF-8", "a text file", "save it as UTF-8") from None
    except OSError as error:
        raise PromptError(f"prompt {path}: {error.strerror}", "a template file", "check --prompt") from None


def family_of(task: Task) -> str:
    """Return the one of `FAMILIES` whose templates a task has."""
    return task if task in FAMILIES else OTHER


def deciding_families(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """Return the families whose templates count in the identity of rows of these tasks.

    Those of mathematics and code always do, as before there were others.
    """
    return tuple(dict.fromkeys(("math", "code", *sorted({family_of(task) for task in tasks}))))


def load_template(kind: str, task: Task, override: str | None = None) -> Template:
    """Return the template of `kind` (a key of `PLACEHOLDERS`) for `task`, from `override` or from the built-in files.

    Raises PromptError for a file that is missing, is no template, or has other placeholders than its kind takes.
    """
    path = Path(override) if override else prompts_dir() / f"{kind}-{family_of(task)}.jinja"
    text = _text_of(path)
    allowed = PLACEHOLDERS[kind]
    try:
        found = frozenset(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(
            f"{path}, line {error.lineno}: {error.message}", "a jinja2 template", "mend the file"
        ) from None
    unknown, missing = (
        sorted(found - set(allowed)),
        sorted(n for n, must in allowed.items() if must and n not in found),
    )
    listed = ", ".join(f"{{{{ {name} }}}}" for name in allowed)
    if unknown:
        raise PromptError(f"{path} has the placeholder {unknown[0]!r}", f"only {listed}", "mend the file")
    if missing:
        raise PromptError(f"{path} lacks {{{{ {missing[0]} }}}}", f"a {kind} template with {listed}", "mend the file")
    template = Template(path.stem if override is None else well_formed(str(path)), text, found)
    try:
        template.render(dict.fromkeys(allowed, "text"))
    except (jinja2.TemplateError, TypeError) as error:
        raise PromptError(f"{path} cannot be filled: {error}", f"text with {listed}", "mend the file") from None
    return template
