"""From a stage's options and a row to its prompt: the template, the values that fill it, and the room it has.

Every stage that renders a prompt, and `trd plan` and the previews, which say beforehand what it will be, ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig
from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.config.generating import RefineConfig, RenderOptions, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import PromptError
from trd_cli.prompting.templates import FAMILIES, Template, load_template
from trd_cli.prompting.tokens import Render, Tokenizer
from trd_cli.records import Message, Problem, Task, Trajectory

# One task of each family of templates.
TASKS: tuple[Task, ...] = FAMILIES


@dataclass(frozen=True)
class Rendering:
    """The way from messages to token ids: the mode, and arguments of the chat template."""

    mode: Render = "chat"
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def recorded(cls, mode: Render | None, kwargs: Mapping[str, Any] | None) -> Rendering:
        """Return the rendering that a set records of its rows; None is the default."""
        return cls(mode or "chat", kwargs or {})

    def with_options(self, options: RenderOptions) -> Rendering:
        """Return the rendering that a stage's options ask for; this one fills in what they leave open."""
        kwargs = options.chat_template_kwargs
        return Rendering(options.render or self.mode, self.kwargs if kwargs is None else kwargs)

    def identity(self) -> dict[str, Any]:
        return {"render": self.mode, "chat_template_kwargs": dict(self.kwargs)}

    def token_ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a prompt. Raises ModelError for a chat template that cannot render it."""
        return tokenizer.render(messages, self.mode, self.kwargs)

    def unread(self, tokenizer: Tokenizer) -> str | None:
        """Describe the arguments that the chat template does not read, or return None if there are none."""
        if self.mode != "chat":
            return f"--render {self.mode} reads no {', '.join(self.kwargs)}" if self.kwargs else None
        known = tokenizer.template_names()
        unread = [name for name in self.kwargs if name not in known]
        if not unread:
            return None
        # Every template is given special tokens; nobody passes them.
        listed = sorted(name for name in known if not name.endswith("_token"))
        reads = f"it reads {', '.join(listed)}" if listed else "it reads no argument"
        return f"the chat template does not read {', '.join(unread)}: {reads}"


def template_kind(config: Config, setting: str, along: str | None = None) -> str | None:
    """Return the kind of template (a key of `PLACEHOLDERS`) of a stage's prompts, or None for a stage without prompts.

    In training it is that of the teacher's context for rows of the kind `along` (default: as the options say).
    """
    if isinstance(config, (SampleConfig, EvalConfig, ImportRolloutsConfig)):
        return "student"
    if isinstance(config, RefineConfig):
        return f"refine-{setting}" if config.mode == "rewrite" else f"vanilla-{setting}"
    if isinstance(config, DistillConfig):
        return f"{config.teacher_context_kind(along)}-{setting}"
    return None


def template_for(config: Config, setting: str, task: Task, along: str | None = None) -> Template:
    """Return the template that a stage renders for a task. Raises PromptError for one that cannot be used."""
    return load_template(template_kind(config, setting, along), task, config.prompt)


def template_that_made(config: DistillConfig, setting: str, task: Task, sha256: str) -> Template | None:
    """Return the template with this digest from which trd refine made a prompt, or None where it is not at hand.

    A teacher that rewrites has one of its own; one that goes on from a prefix reads the vanilla context. Raises
    PromptError for a template of `config` that is neither.
    """
    templates, failures = [], []
    for kind in ("refine", "vanilla"):
        try:
            templates.append(load_template(f"{kind}-{setting}", task, config.prompt))
        except PromptError as error:
            failures.append(error)
    if not templates:
        raise failures[0]
    return next((template for template in templates if template.sha256 == sha256), None)


def templates_for(config: Config, setting: str = "", tasks: Iterable[Task] = TASKS) -> dict[Task, Template]:
    """Return the template of each task; none for a stage without prompts, or whose rows bring their prompts along.

    Only `RefineConfig` and `DistillConfig` have templates by setting. Raises PromptError for one that cannot be used.
    """
    stored = isinstance(config, DistillConfig) and config.takes_stored_prompt()
    if stored or template_kind(config, setting) is None:
        return {}
    return {task: template_for(config, setting, task) for task in dict.fromkeys(tasks)}


def values_of(row: Problem | Trajectory, attempt: str = "") -> dict[str, str]:
    """Return the value of every placeholder: the problem, its reference ("" where it has none) and the attempt."""
    return {
        "problem": row.problem,
        "reference_solution": row.reference_solution or "",
        "reference_answer": row.reference_answer or "",
        "attempt": attempt,
    }


def room_for_prompt(window: int, max_tokens: int) -> int:
    """Return the tokens that a refinement prompt may have: the window less the response, and half of it at least."""
    return window - min(max_tokens, window // 2)


def room_for_response(window: int, prompt_tokens: int, max_tokens: int) -> int:
    """Return the tokens that a response may have: as many as asked for, and no more than the prompt leaves."""
    return max(0, min(max_tokens, window - prompt_tokens))
