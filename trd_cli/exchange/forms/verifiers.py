"""Read `results.jsonl`, as vf-eval of verifiers saves it, with the `metadata.json` beside it.

A row has `prompt` and `completion` (messages, or text), `answer`, `info`, `example_id`, `is_truncated` and `error`;
metadata.json has `model`, `sampling_args` and `env_id`. The rollouts of an example are rows of their own. Not covered:
completions of several turns or with calls of tools, and `traces.jsonl` of verifiers v1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.datasets.columns import From
from trd_cli.datasets.rows import Row
from trd_cli.exchange.attempts import Attempt, Form, answered, asked, conversation, raw, sampling_of
from trd_cli.exchange.beside import json_beside


def open_form(config: ImportRolloutsConfig, path: Path) -> Form:
    metadata = json_beside(path.with_name("metadata.json"))
    fields = {
        "problem": From((("prompt",),), asked),
        "reference_answer": From((("answer", "info.answer", "info.ground_truth"),), optional=True),
        "reference_solution": From((("info.solution", "info.reference_solution"),), optional=True),
        "tests": From(("info.tests",), optional=True),
    }
    name = metadata.get("env_id")
    return Form(fields, partial(_attempts, metadata=metadata), source=name if isinstance(name, str) else None)


def _attempts(row: Row, metadata: Mapping[str, Any]) -> Iterator[Attempt]:
    error, completion, cut = raw(row, "error"), raw(row, "completion"), raw(row, "is_truncated")
    told = {"model": raw(row, "model") or metadata.get("model"), "messages": conversation(raw(row, "prompt"))}
    arguments = metadata.get("sampling_args")
    if isinstance(arguments, Mapping):
        inside = arguments.get("extra_body")
        told["sampling"] = sampling_of({**(inside if isinstance(inside, Mapping) else {}), **arguments})
    if error and not completion:
        yield Attempt(None, error=_reason(error), **told)
        return
    finish = None if not isinstance(cut, bool) else "length" if cut else "stop"
    yield Attempt(answered(completion), finish, **told)


def _reason(error: Any) -> str:
    return str(error.get("error_chain_str") or error.get("error")) if isinstance(error, Mapping) else str(error)
