"""Read the output of OpenAI's batch API, as vllm run-batch writes it too; its requests are joined by `custom_id`.

A line has `custom_id` and either `response`, with the body of a chat completion, of a completion or of a response, or
`error`. The input file, which `--requests` names, has the body of each request: prompt, model and sampling. Without it
`--problems` joins by custom_id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.datasets.columns import From
from trd_cli.datasets.rows import Row, row_of
from trd_cli.datasets.values import RowFault
from trd_cli.engines.replies import complaint, finish_of
from trd_cli.errors import InputError
from trd_cli.exchange.attempts import Attempt, Form, asked, conversation, said, sampling_of
from trd_cli.records import FinishReason

_ASKED = ("messages", "prompt", "input")


def open_form(config: ImportRolloutsConfig, path: Path) -> Form:
    requests = Requests(Path(config.requests)) if config.requests else None
    fields = {
        "problem": From((tuple(f"request.{name}" for name in _ASKED),), asked),
        "problem_id": From(("custom_id",), optional=True),
    }
    return Form(fields, _attempts, partial(_completed, requests=requests))


def _completed(row: Row, requests: Requests | None) -> Row:
    return {**row, "request": requests.body(row.get("custom_id"))} if requests else row


class Requests:
    """Find the body of a request in a batch's input file; in memory is the place of each line.

    Raises InputError for a file that cannot be read, or without any request.
    """

    def __init__(self, path: Path) -> None:
        # None stands under a custom_id of several requests.
        self._places: dict[str, int | None] = {}
        try:
            self._file = open(path, "rb")  # noqa: SIM115 (read until the command ends)
        except OSError as error:
            raise InputError(
                f"cannot read {path}: {error.strerror}", "the batch's input file", "check --requests"
            ) from None
        place = 0
        for line in self._file:
            row = row_of(line.decode("utf-8", "replace")) if line.strip() else None
            if isinstance(row, Mapping) and "custom_id" in row:
                name = str(row["custom_id"])
                self._places[name] = None if name in self._places else place
            place += len(line)
        if not self._places:
            raise InputError(
                f"{path} has no request with a custom_id", "the batch's input file, not compressed", "check --requests"
            )

    def body(self, custom_id: Any) -> Mapping[str, Any]:
        """Return the body of the request with this id; raises RowFault without one."""
        place = self._places.get(name := str(custom_id))
        if place is None:
            how = "several requests have" if name in self._places else "no request has"
            raise RowFault(f"{how} the custom_id {custom_id!r}")
        self._file.seek(place)
        body = row_of(self._file.readline().decode("utf-8", "replace")).get("body")
        return body if isinstance(body, Mapping) else {}


def _attempts(row: Row) -> Iterator[Attempt]:
    given, response = row.get("request"), row.get("response")
    request = given if isinstance(given, Mapping) else {}
    prompt = next((request[name] for name in _ASKED if request.get(name)), None)
    told = {"sampling": sampling_of(request), "messages": [] if prompt is None else conversation(prompt)}
    body = response.get("body") if isinstance(response, Mapping) else None
    outputs = list(_outputs(body)) if isinstance(body, Mapping) else []
    if not outputs:
        status = response.get("status_code", 200) if isinstance(response, Mapping) else 200
        reason = complaint(status, row.get("error") or body or {}).reason
        yield Attempt(None, model=request.get("model"), error=reason or "the batch has no answer", **told)
    for place, (text, finish) in enumerate(outputs):
        key = f"{row.get('id')}/{row.get('custom_id')}/{place}"
        yield Attempt(text, finish, body.get("model") or request.get("model"), key=key, **told)


def _outputs(body: Mapping[str, Any]) -> Iterator[tuple[str, FinishReason | None]]:
    """Yield each answer in a body, and how it ended."""
    for choice in _objects(body.get("choices")):
        message = choice.get("message")
        held = message if isinstance(message, Mapping) else {"content": choice.get("text")}
        yield said(held), finish_of(choice.get("finish_reason"))
    messages = [item for item in _objects(body.get("output")) if item.get("type") == "message"]
    if messages:
        parts = [part for message in messages for part in _objects(message.get("content"))]
        details = body.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, Mapping) else None
        yield said({"content": parts}), finish_of(reason or body.get("status"))


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
