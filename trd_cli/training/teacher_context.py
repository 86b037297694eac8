"""The prompt that the teacher reads before a response, cut where it does not fit.

The attempt's tail is cut first, then the reference's; the problem never is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

from trd_cli.config.training import DistillConfig
from trd_cli.prompting.rendering import Rendering, template_for, template_that_made, values_of
from trd_cli.prompting.templates import Template
from trd_cli.prompting.tokens import Tokenizer, fit_attempt
from trd_cli.records import Message, Trajectory

# The placeholders that may be cut, in this order, and their names in messages.
_MAY_GO = {"attempt": "attempt", "reference_solution": "reference"}
_MARK = "\ue000"  # of the private use area: in no text


@dataclass(frozen=True)
class TeacherPrompt:
    """A teacher's prompt as ids, as messages (None where they have not been read), and its parts that had to be cut."""

    token_ids: Sequence[int]
    messages: Sequence[Message] | None
    cut: tuple[str, ...] = ()


class TeacherPrompts:
    """Make the teacher's prompt of each row: as refine stored it, or rendered from a template."""

    def __init__(self, config: DistillConfig, tokenizer: Tokenizer, limit: int) -> None:
        """`limit` is the most tokens a row may have, its response included."""
        self._config, self._tokenizer, self._limit = config, tokenizer, limit
        self._template = cache(lambda setting, task, along: template_for(config, setting, task, along))
        self._stored_by = cache(partial(template_that_made, config))

    def prompt_of(self, row: Trajectory, response_tokens: int, rendering: Rendering) -> TeacherPrompt | str | None:
        """Return the prompt of a row, with room for its response, or why there is none.

        `rendering` is that of the row's set. Return None where the prompt must be cut and the row's texts have not been
        read.
        """
        room = self._limit - response_tokens
        is_stored = self._config.takes_stored_prompt(row.stage)
        setting = row.setting if is_stored else self._config.setting_of(row.setting)
        if is_stored and len(row.prompt_token_ids) <= room:
            return TeacherPrompt(row.prompt_token_ids, row.messages)
        if not is_stored and (lacking := self._template(setting, row.task, row.stage).lacks(row)):
            return f"no {lacking.replace('_', ' ')}"
        too_long = too_long_for(self._limit, "the teacher's context and the response")
        if is_stored and self._config.overflow == "error":
            return too_long
        if row.problem is None:
            return None
        if is_stored:
            template = self._stored_by(setting, row.task, row.prompt_sha256)
            attempt = None if template is None else _attempt_in(row, template)
            if attempt is None:
                return f"{too_long}, and the template that made the context is not at hand (--prompt) to cut it"
        else:
            template, attempt = self._template(setting, row.task, row.stage), row.response or ""
        values = values_of(row, attempt)
        messages = template.render(values)
        ids = rendering.token_ids(self._tokenizer, messages)
        if len(ids) <= room:
            return TeacherPrompt(ids, messages)
        if self._config.overflow == "error":
            return too_long
        return self._cut(template, values, room, rendering) or too_long

    def _cut(self, template: Template, values: dict[str, str], room: int, rendering: Rendering) -> TeacherPrompt | None:
        cut: list[str] = []
        for name, called in _MAY_GO.items():
            if name not in template.placeholders or not values[name]:
                continue

            def ids_with(text: str, name: str = name, values: dict[str, str] = values) -> list[int]:
                return rendering.token_ids(self._tokenizer, template.render({**values, name: text}))

            text = fit_attempt(self._tokenizer, values[name], ids_with, room) or ""
            values = {**values, name: text}
            cut.append(called)
            ids = ids_with(text)
            if len(ids) <= room:
                return TeacherPrompt(ids, template.render(values), tuple(cut))
        return None


def too_long_for(limit: int, what: str) -> str:
    """Return the reason why a row that is too long is left out."""
    return f"{what} are longer than {limit} tokens (--max-length, or what the models take)"


def _attempt_in(row: Trajectory, template: Template) -> str | None:
    """Return the attempt as the stored prompt of this template shows it, "" where it shows none.

    It may be shorter than what the student wrote. Return None for a prompt that the template does not make.
    """
    content = row.messages[0]["content"]
    before, _, after = template.render(values_of(row, _MARK))[0]["content"].partition(_MARK)
    fits = len(before) + len(after) <= len(content) and content.startswith(before) and content.endswith(after)
    return content[len(before) : len(content) - len(after)] if fits else None
