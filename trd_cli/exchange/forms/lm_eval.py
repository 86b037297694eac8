"""Read `samples_<task>_<date>.jsonl`, as lm-evaluation-harness writes it with --log_samples.

A row has `doc`, `target`, `arguments` (the prompt, as text or as JSON of messages, and how to generate), `resps` and
`filter`. Each filter of a task has rows of its own with the same responses, which are taken once. The model's name is
in `results_<date>.json` beside it. Not covered: tasks that compare likelihoods, which have no response.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.datasets.columns import From
from trd_cli.datasets.rows import Row
from trd_cli.datasets.values import RowFault
from trd_cli.exchange.attempts import ANSWER, PROBLEM, SOLUTION, Attempt, Form, conversation, raw, sampling_of
from trd_cli.exchange.beside import json_beside

_NAME = re.compile(r"samples_(?P<task>.+?)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+?)\.jsonl(?:\.gz)?")


def open_form(config: ImportRolloutsConfig, path: Path) -> Form:
    name = _NAME.fullmatch(path.name)
    results = json_beside(path.with_name(f"results_{name['date']}.json")) if name else {}
    fields = {
        "problem": From((_inside_doc(PROBLEM),)),
        "reference_answer": From((("target", *_inside_doc(ANSWER)),), optional=True),
        "reference_solution": From((_inside_doc(SOLUTION),), optional=True),
    }
    return Form(fields, partial(_attempts, model=results.get("model_name")), source=name["task"] if name else None)


def _inside_doc(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"doc.{name}" for name in names)


def _attempts(row: Row, model: str | None) -> Iterator[Attempt]:
    prompt, how = _arguments(raw(row, "arguments"))
    responses = raw(row, "resps")
    if not isinstance(responses, list) or not responses:
        raise RowFault("no resps")
    of_row = list(chain.from_iterable(each if isinstance(each, list) else [each] for each in responses))
    if not all(isinstance(text, str) for text in of_row):
        raise RowFault("resps are likelihoods, not responses")
    messages = [] if prompt is None else conversation(prompt)
    for place, text in enumerate(of_row):
        yield Attempt(text, None, model, sampling_of(how), messages, key=f"{row.get('doc_id')}/{place}")


def _arguments(value: Any) -> tuple[Any, Any]:
    """Return the prompt and how to generate, which newer versions keep under names and older ones in a list."""
    calls = list(value.values()) if isinstance(value, Mapping) else value
    first = calls[0] if isinstance(calls, list) and calls else None
    if isinstance(first, Mapping):
        prompt, how = first.get("arg_0"), first.get("arg_1")
    else:
        prompt, how = (*first, None, None)[:2] if isinstance(first, list) else (first, None)
    is_wrapped = isinstance(prompt, list) and prompt and isinstance(prompt[0], str)
    return prompt[0] if is_wrapped else prompt, how
