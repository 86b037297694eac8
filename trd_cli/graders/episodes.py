"""Grade episodes by what their environments said; the second opinion plays their actions again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from trd_cli.errors import counted
from trd_cli.graders.base import Grade
from trd_cli.records import Environment, Turn, Verdict, well_formed
from trd_cli.trajectories.episode_columns import episode_figures, light_turns
from trd_cli.worlds.base import Failure, Observation, Result
from trd_cli.worlds.registry import refusal
from trd_cli.worlds.workers import Workers

NAME = "environment"
# Columns of an episode.
READ = ("environment", "turns", "stop_reason", "episode_reward")


def grades(table: pa.Table) -> Iterator[Grade]:
    """Yield the grade of every row of a table of episodes: correct if the environment's goal was reached."""
    turns = episode_figures(table)["turns"]
    columns = (table["stop_reason"].to_pylist(), turns.to_pylist(), table["episode_reward"].to_pylist())
    for reason, count, reward in zip(*columns, strict=True):
        if reason is None:
            yield Grade("error", detail="the row does not tell how its episode ended")
        else:
            detail = f"{reason} after {counted(count or 0, 'turn')}, reward {reward or 0.0:g}"
            yield Grade("correct" if reason == "solved" else "incorrect", detail=detail)


@dataclass
class _Again:
    """An episode that is played again: the turns that are left of it."""

    left: deque[Turn]
    last: Turn | None = None


def refusals(table: pa.Table) -> set[str]:
    """Return the reasons why episodes of these rows cannot be played on this machine."""
    environments = {each["name"] + each["version"]: Environment(**each) for each in table["environment"].to_pylist()}
    return {reason for each in environments.values() if (reason := refusal(each))}


def second_opinions(table: pa.Table, workers: Workers) -> list[Verdict | None]:
    """Return what comes of playing the actions of each row again.

    It is "error" where an observation is another one than the row's, and None where the environment fails here.
    """
    environments = [Environment(**each) for each in table["environment"].to_pylist()]
    turns = [[turn for turn in row or () if turn.valid is not None] for row in light_turns(table["turns"])]
    waiting = deque(range(len(environments)))
    under_way: dict[int, _Again] = {}
    found: dict[int, Verdict | None] = {}
    while waiting or under_way:
        while waiting and len(under_way) < workers.room:
            row = waiting.popleft()
            under_way[row] = _Again(deque(turns[row]))
            workers.start(row, environments[row])
        for row, result in workers.ready():
            again = under_way[row]
            if _goes_on(again, result):
                again.last = again.left.popleft()
                workers.step(row, again.last.action)
            else:
                found[row] = _verdict(again, result)
                del under_way[row]
                workers.end(row)
    return [found[row] for row in range(len(environments))]


def _goes_on(again: _Again, result: Result) -> bool:
    return isinstance(result, Observation) and _agrees(again, result) and bool(again.left) and not result.done


def _agrees(again: _Again, result: Observation) -> bool:
    return again.last is None or again.last.observation in (None, well_formed(result.text))


def _verdict(again: _Again, result: Result) -> Verdict | None:
    if isinstance(result, Failure):
        return None
    if again.left or not _agrees(again, result):
        return "error"
    return "correct" if result.solved else "incorrect"
