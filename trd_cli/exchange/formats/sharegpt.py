"""Rows as ShareGPT has them: `conversations`, each with `from` (system, human, gpt) and `value`."""

from __future__ import annotations

import pyarrow as pa

from trd_cli.exchange.answers import Answer
from trd_cli.exchange.formats.base import ABOUT, TEXT, Layout, Record, about, each

_NAMES = {"user": "human", "assistant": "gpt"}


def _record(answer: Answer) -> Record:
    turns = [{"from": _NAMES.get(m["role"], m["role"]), "value": m["content"]} for m in answer.conversation]
    return {"conversations": turns, **about(answer)}


_TURNS = pa.list_(pa.struct([("from", TEXT), ("value", TEXT)]))
LAYOUT = Layout({"conversations": _TURNS, **ABOUT}, each(_record), holds_episodes=True)
