"""Rows as TRL's prompt-completion type: two lists of messages. The loss is that of the completion alone."""

from __future__ import annotations

from trd_cli.exchange.answers import Answer
from trd_cli.exchange.formats.base import ABOUT, MESSAGES, Layout, Record, about, each


def _record(answer: Answer) -> Record:
    return {"prompt": [*answer.prompt], "completion": [*answer.turns], **about(answer)}


LAYOUT = Layout({"prompt": MESSAGES, "completion": MESSAGES, **ABOUT}, each(_record), renders=True)
