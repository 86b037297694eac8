"""Rows as NeMo RL's ResponseDataset reads them from JSONL: the text of the prompt in `input`, the response in `output`.

Source: NVIDIA-NeMo/RL, docs/guides/sft.md. NeMo-Aligner, which had another layout, is no longer developed.
"""

from __future__ import annotations

from trd_cli.errors import InputError, flag
from trd_cli.exchange.answers import Answer
from trd_cli.exchange.formats.base import ABOUT, TEXT, Layout, Record, about, each


def _record(answer: Answer) -> Record:
    """Return the row. Raises InputError for a prompt that is not one message of the user."""
    if [message["role"] for message in answer.prompt] != ["user"]:
        raise InputError(
            f"the prompt of {answer.row.trajectory_id} has {len(answer.prompt)} messages",
            "one of the user, as input is a text",
            f"take {flag('format')} messages, which NeMo RL's OpenAIFormatDataset reads",
        )
    return {"input": answer.prompt[0]["content"], "output": answer.row.response, **about(answer)}


LAYOUT = Layout({"input": TEXT, "output": TEXT, **ABOUT}, each(_record))
