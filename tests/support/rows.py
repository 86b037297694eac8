"""Refined rows by hand: sets to train on that no model has to make."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.tiny import VOCABULARY

from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import shard_path, write_shard


def refined_row(number: int, **changes: Any) -> Trajectory:
    """Return a row of opsd with ids of a tiny model, without text; its parent is `parent-NUMBER`."""
    chance = random.Random(number)

    def ids(count: int) -> list[int]:
        return [chance.randrange(4, VOCABULARY) for _ in range(count)]

    fields: dict[str, Any] = dict.fromkeys(Trajectory.__dataclass_fields__)
    fields |= {"trajectory_id": f"row-{(7 * number) % 1000:04}", "parent_id": f"parent-{number}"}
    fields |= {"problem_id": "p", "round": 0, "sample_index": number, "stage": "refined", "setting": "opsd"}
    fields |= {
        "source": "s",
        "task": "math",
        "problem": "x",
        "messages": (),
        "prompt_template": "",
        "prompt_sha256": "",
    }
    fields |= {"prompt_token_ids": ids(12 + number % 5), "student_prompt_token_ids": ids(5 + number % 3)}
    fields |= {"response": "y", "response_token_ids": ids(3 + number % 7), "finish_reason": "length"}
    fields |= {"model": "m", "model_revision": "", "engine": "by hand", "engine_version": ""}
    fields |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 99, "seed": 0}
    return Trajectory(**{**fields, **changes})


def write_set(directory: Path, shards: Sequence[Sequence[Trajectory]]) -> Path:
    """Write a set without run.json."""
    directory.mkdir()
    for number, rows in enumerate(shards):
        write_shard(shard_path(directory, number), rows)
    return directory
