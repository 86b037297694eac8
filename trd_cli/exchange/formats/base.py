"""What all layouts have in common: how one is declared, and the columns of a trajectory that go along.

No such column is ever null: where a row has no value it holds "". A reader that infers types from the first rows, as
`datasets` does for JSON, then finds the same ones in all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from trd_cli.config.exchanging import ExportConfig
from trd_cli.exchange.answers import Answer

Record = dict[str, Any]
# From answers (or pairs) to records; rows that the layout cannot hold are counted by reason.
Records = Callable[[Iterable[Any], Counter[str], ExportConfig], Iterator[Record]]

TEXT, NUMBER = pa.string(), pa.int64()
MESSAGES = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))
_OF_A_ROW = (
    *("trajectory_id", "problem_id", "parent_id", "source", "task", "stage", "setting", "round", "sample_index"),
    *("model", "finish_reason", "verdict", "problem", "reference_answer"),
)
_NUMBERS = ("round", "sample_index")
ABOUT: Mapping[str, pa.DataType] = {
    **{name: NUMBER if name in _NUMBERS else TEXT for name in _OF_A_ROW},
    "parent_verdict": TEXT,
}


@dataclass(frozen=True)
class Layout:
    """Declare a layout: its columns, the way to them, and the columns of a row that it reads beside the usual.

    `renders` if its reader gives the column `chat_template_kwargs` of a row to the chat template.
    """

    columns: Mapping[str, pa.DataType]
    records: Records
    reads: tuple[str, ...] = ()
    holds_episodes: bool = False
    renders: bool = False


def each(record: Callable[[Any], Record]) -> Records:
    """Return the way to the records of a layout that takes every row."""
    return lambda items, left_out, config: map(record, items)


def about(answer: Answer) -> Record:
    """Return the columns of `ABOUT`."""
    values = {name: getattr(answer.row, name) for name in _OF_A_ROW}
    values["parent_verdict"] = answer.parent and answer.parent.verdict
    return {name: "" if value is None else value for name, value in values.items()}
