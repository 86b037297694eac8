"""What the teacher reads before a response, and how it is cut where it does not fit:

the attempt's tail, then the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trd_cli.config.training import DistillConfig
from trd_cli.generation import templates_for
from trd_cli.prompting.templates import Template
from trd_cli.prompting.tokens import Tokenizer, fit_attempt
from trd_cli.records import Message, Trajectory
from trd_cli.trajectories.sets import InputSet

_TASKS = ("math", "code")
# What may be cut, in this order; the problem never is.
_MAY_GO = {"attempt": "attempt", "reference_solution": "reference"}
_MARK = "\ue000"  # of the private use area: in no text


@dataclass(frozen=True)
class Asked:
    """A teacher's prompt as ids, and the parts of it that had to be cut."""

    token_ids: Sequence[int]
    cut: tuple[str, ...] = ()


class Asking:
    """Makes the teacher's prompt of each row: as refine stored it, or rendered from a template."""

    def __init__(self, config: DistillConfig, source: InputSet, tokenizer: Tokenizer, limit: int) -> None:
        """`limit` is the most tokens a row may have, its response included."""
        self._config, self._source, self._tokenizer, self._limit = config, source, tokenizer, limit
        self._templates: dict[str, dict[str, Template]] = {}

    def ask(self, row: Trajectory, response_tokens: int) -> Asked | str:
        """The prompt of a row, with room for its response, or why there is none."""
        room = self._limit - response_tokens
        context = self._config.teacher_context or ("refine" if row.stage == "refined" else "vanilla")
        if context == "refine" and row.stage == "refined":
            if len(row.prompt_token_ids) <= room:
                return Asked(row.prompt_token_ids)
            values = _values(row) | {"attempt": _MARK}
            setting = row.setting
        else:
            setting = self._config.setting or row.setting or "opd"
            if setting == "opsd" and not row.reference_solution:
                return "no reference solution"
            values = _values(row) | {"attempt": row.response or ""}
        too_long = too_long_for(self._limit, "the teacher's context and the response")
        if self._config.overflow == "error" and values["attempt"] == _MARK:
            return too_long
        template = self._template(f"{context}-{setting}", row)
        if values["attempt"] == _MARK:
            attempt = _attempt_in(row, template, values)
            if attempt is None:
                return f"{too_long}, and the template that made the context is not at hand (--prompt) to cut it"
            values["attempt"] = attempt
        ids = self._rendered(template.render(values))
        if len(ids) <= room:
            return Asked(ids)
        if self._config.overflow == "error":
            return too_long
        return self._cut(template, values, room) or too_long

    def _template(self, kind: str, row: Trajectory) -> Template:
        if kind not in self._templates:
            self._templates[kind] = templates_for(kind, _TASKS, self._config.prompt)
        return self._templates[kind][row.task]

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        kwargs = self._source.about.chat_template_kwargs or {}
        return self._tokenizer.render(messages, self._source.about.render or "chat", kwargs)

    def _cut(self, template: Template, values: dict[str, Any], room: int) -> Asked | None:
        cut: list[str] = []
        for name, called in _MAY_GO.items():
            if name not in template.placeholders or not values[name]:
                continue

            def ids_with(text: str, name: str = name, values: dict[str, Any] = values) -> list[int]:
                return self._rendered(template.render({**values, name: text}))

            text = fit_attempt(self._tokenizer, values[name], ids_with, room) or ""
            values = {**values, name: text}
            cut.append(called)
            ids = ids_with(text)
            if len(ids) <= room:
                return Asked(ids, tuple(cut))
        return None


def too_long_for(limit: int, what: str) -> str:
    """Why a row is left out."""
    return f"{what} are longer than {limit} tokens (--max-length, or what the models take)"


def _values(row: Trajectory) -> dict[str, str]:
    return {
        "problem": row.problem,
        "reference_solution": row.reference_solution or "",
        "reference_answer": row.reference_answer or "",
    }


def _attempt_in(row: Trajectory, template: Template, values: dict[str, str]) -> str | None:
    """The attempt as refine showed it, which may be less than the student wrote;

    None where another template was used.
    """
    if template.sha256 != row.prompt_sha256:
        return None
    content = row.messages[0]["content"]
    before, _, after = template.render(values)[0]["content"].partition(_MARK)
    fits = len(before) + len(after) <= len(content) and content.startswith(before) and content.endswith(after)
    return content[len(before) : len(content) - len(after)] if fits else None
