"""Refined rows by hand: sets to train on that no model has to make."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.tiny import VOCABULARY

from trd_cli.records import AUTHORS, EPISODE, Environment, StopReason, Trajectory, Turn, author_array, content_hash
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


def episode(
    name: str, played: Sequence[tuple[str, str | None, bool | None]], stop_reason: StopReason = "failed", **changes: Any
) -> Trajectory:
    """Return a rollout of an episode with these actions, observations and marks of validity.

    An action has two tokens; three of the template's and four of the environment's are between two actions.
    """
    between = [*[AUTHORS.index("template")] * 2, *[AUTHORS.index("environment")] * 4, AUTHORS.index("template")]
    writer = AUTHORS.index("teacher" if changes.get("stage") == "refined" else "student")
    authors = [code for _ in played for code in (*between, writer, writer)][len(between) :]
    turns = [
        Turn(AUTHORS[writer], action, observation, 9 * i, 9 * i + 2, valid, "stop", i)
        for i, (action, observation, valid) in enumerate(played)
    ]
    told = "\n".join(f"> {action}\n{observation or ''}".rstrip() for action, observation, _ in played)
    fields: dict[str, Any] = {"parent_id": None, "stage": "rollout", "setting": None, "student_prompt_token_ids": None}
    fields |= {"task": EPISODE, "source": "scripted", "problem": "You are in a hall.", "finish_reason": "stop"}
    fields |= {"trajectory_id": content_hash(name), "problem_id": "scripted-1", "prompt_template": "student-episode"}
    fields |= {"response": told, "response_token_ids": [5] * len(authors), "author": author_array(authors)}
    fields |= {"turns": turns, "environment": Environment("scripted", "1", '{"rooms":3}', 7)}
    fields |= {"stop_reason": stop_reason, "episode_reward": float(stop_reason == "solved")}
    return refined_row(0, **{**fields, **changes})


def write_set(directory: Path, shards: Sequence[Sequence[Trajectory]]) -> Path:
    """Write a set without run.json."""
    directory.mkdir()
    for number, rows in enumerate(shards):
        write_shard(shard_path(directory, number), rows)
    return directory
