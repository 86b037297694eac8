"""Read `output.jsonl` or `output-rs<seed>.jsonl`, as NeMo-Skills writes it.

A row is the one of its input (`problem`, `expected_answer`, perhaps `reference_solution`) with `generation`, and where
the server tells it `finish_reason`. Where thoughts were cut off (parse_reasoning), the whole response is under
`_full_generation`, or the thoughts are under `reasoning_content`. Not covered: another key than `generation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.datasets.columns import From
from trd_cli.datasets.rows import Row
from trd_cli.datasets.values import RowFault
from trd_cli.exchange.attempts import (
    ANSWER,
    PROBLEM,
    SOLUTION,
    Attempt,
    Form,
    conversation,
    finish_in,
    raw,
    said,
    sampling_of,
)


def open_form(config: ImportRolloutsConfig, path: Path) -> Form:
    fields = {
        "problem": From((PROBLEM,)),
        "reference_answer": From((ANSWER,), optional=True),
        "reference_solution": From((SOLUTION,), optional=True),
        "problem_id": From((("problem_id", "id"),), optional=True),
    }
    return Form(fields, _attempts)


def _attempts(row: Row) -> Iterator[Attempt]:
    whole = raw(row, "_full_generation")
    text = whole if whole is not None else raw(row, "generation")
    if not isinstance(text, str):
        raise RowFault("no generation")
    if whole is None:
        text = said({"content": text, "reasoning_content": raw(row, "reasoning_content")})
    asked = raw(row, "messages")
    yield Attempt(
        text,
        finish_in(row),
        raw(row, ("model", "server.model")),
        sampling_of(row),
        [] if asked is None else [message for message in conversation(asked) if message["role"] != "assistant"],
    )
