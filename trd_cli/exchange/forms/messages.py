"""Read conversations that end in the response, or a prompt and a response in columns of their own.

`messages` (or `conversations`) with `role` and `content`, or `from` and `value`; or a problem's text or messages under
`prompt` and the like, and one or several responses under `completion`, `response` and the like. `--map` names others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.datasets.columns import From, Names
from trd_cli.datasets.importing import mapped_fields
from trd_cli.datasets.rows import Row
from trd_cli.datasets.values import RowFault
from trd_cli.exchange.attempts import (
    ANSWER,
    PROBLEM,
    SOLUTION,
    Attempt,
    Form,
    answered,
    asked,
    conversation,
    finish_in,
    raw,
    sampling_of,
    texts_of,
)

# The further fields that --map names in this form.
MORE = ("response", "finish_reason", "model")
_CONVERSATION = ("messages", "conversations", "conversation")
_RESPONSE = ("response", "responses", "completion", "completions", "generation", "generations", "output", "outputs")


def open_form(config: ImportRolloutsConfig, path: Path) -> Form:
    columns = mapped_fields(config.map, MORE)
    mapped = {
        name: columns.get(name, usual) for name, usual in zip(MORE, (_RESPONSE, "finish_reason", "model"), strict=True)
    }
    fields = {
        "problem": From(((*PROBLEM[:2], *_CONVERSATION, *PROBLEM[2:]),), _problem),
        "reference_answer": From((ANSWER,), optional=True),
        "reference_solution": From((SOLUTION,), optional=True),
        "tests": From(("tests",), optional=True),
        "problem_id": From((("problem_id", "id"),), optional=True),
        "source": From(("source",), optional=True),
        "task": From(("task",), optional=True),
    }
    return Form(fields, partial(_attempts, **mapped))


def _problem(value: object) -> str | None:
    """Return the text of a problem, or the user's one turn."""
    return value if isinstance(value, str) and not value.lstrip().startswith("[") else asked(value)


def _attempts(row: Row, response: Names, finish_reason: Names, model: Names) -> Iterator[Attempt]:
    turns = raw(row, _CONVERSATION)
    if turns is not None and raw(row, response) is None:
        *prompt, last = conversation(turns)
        if last["role"] != "assistant":
            raise RowFault("the conversation does not end with the assistant")
        texts = iter([last["content"]])
    else:
        given = raw(row, "prompt") if turns is None else turns
        prompt = [] if given is None else conversation(given)
        value = raw(row, response)
        texts = texts_of(value) if not _is_messages(value) else iter([answered(value)])
    named = raw(row, model)
    told = finish_in(row, finish_reason), named if isinstance(named, str) else None, sampling_of(row)
    yield from (Attempt(text, *told, prompt) for text in texts)


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
