"""Rows as conversations: `messages`, each with `role` and `content`, the last one an assistant's.

Read by TRL's SFTTrainer, verl's SFT dataset, NeMo RL's OpenAIFormatDataset, and most other trainers.
"""

from __future__ import annotations

from trd_cli.exchange.answers import Answer
from trd_cli.exchange.formats.base import ABOUT, MESSAGES, Layout, Record, about, each


def _record(answer: Answer) -> Record:
    return {"messages": answer.conversation, **about(answer)}


LAYOUT = Layout({"messages": MESSAGES, **ABOUT}, each(_record), holds_episodes=True, renders=True)
