"""Pairs as TRL's preference type with an explicit prompt: `prompt`, `chosen` and `rejected` are lists of messages.

Read by TRL's DPOTrainer and its like. The columns of a trajectory are those of the chosen row; those that tell two rows
apart begin with `chosen_` and `rejected_`.
"""

from __future__ import annotations

from trd_cli.exchange.formats.base import MESSAGES, TEXT, Layout, Record, about, each
from trd_cli.exchange.pairs import Pair

_OF_BOTH = ("problem_id", "source", "task", "problem", "reference_answer")
_OF_EACH = ("trajectory_id", "stage", "model", "finish_reason", "verdict")
_SIDES = ("chosen", "rejected")


def _record(pair: Pair) -> Record:
    both = {side: about(getattr(pair, side)) for side in _SIDES}
    return {
        "prompt": [*pair.chosen.prompt],
        **{side: [*getattr(pair, side).turns] for side in _SIDES},
        **{name: both["chosen"][name] for name in _OF_BOTH},
        **{f"{side}_{name}": both[side][name] for side in _SIDES for name in _OF_EACH},
    }


LAYOUT = Layout(
    {
        **dict.fromkeys(("prompt", *_SIDES), MESSAGES),
        **dict.fromkeys(_OF_BOTH, TEXT),
        **{f"{side}_{name}": TEXT for side in _SIDES for name in _OF_EACH},
    },
    each(_record),
    renders=True,
)
