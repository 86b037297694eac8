"""Episodes as people read them: in a line, turn by turn, and y_o against y_r with their actions aligned."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from trd_cli.errors import counted
from trd_cli.records import ENDED, Environment, StopReason, Turn
from trd_cli.trajectories.alignment import Step, align
from trd_cli.trajectories.marks import STYLES, added, removed, sign, word_diff

_NO_TURN = "–"


def told_episode(turns: Sequence[Turn], reward: float | None, stop_reason: StopReason | None) -> str:
    """Return how an episode went, in a line."""
    invalid = sum(turn.valid is False for turn in turns)
    known = "unknown" if reward is None else f"{reward:g}"
    return f"{ENDED.get(stop_reason, 'not ended')} after {counted(len(turns), 'turn')}, {invalid} not valid, reward {known}"


def told_environment(environment: Environment) -> str:
    """Return what an episode was played in, in a line."""
    return f"{environment.name} {environment.version}, seed {environment.seed}, {environment.config}"


def shown_turns(turns: Sequence[Turn]) -> Text:
    """Return each turn with its number, its action and what the environment answered."""
    return Text("\n").join(_turn(number, turn) for number, turn in enumerate(turns, start=1))


def _turn(number: int, turn: Turn) -> Text:
    text = Text.assemble((f"turn {number} ", "bold"), sign(turn.role), (f"> {turn.action}", STYLES[turn.role]))
    text.append(_remarked(turn), style="bold red")
    if turn.observation is not None:
        text.append("\n").append_text(sign("environment")).append(turn.observation, STYLES["environment"])
    return text


def remarks_on(turn: Turn) -> list[str]:
    """Return what a reader should know of an action, as "not valid"; nothing of most."""
    remarks = {True: [], False: ["not valid"], None: ["not taken"]}[turn.valid]
    return [*remarks, "cut off"] if turn.finish_reason == "length" else remarks


def _remarked(turn: Turn) -> str:
    return "".join(f" · {remark}" for remark in remarks_on(turn))


def turns_diff(before: Sequence[Turn], after: Sequence[Turn]) -> Text:
    """Return both episodes as one, aligned by their actions, each with what the environment answered to it.

    Of an action that both have, the words of the answers are compared.
    """
    steps = align([turn.action for turn in before], [turn.action for turn in after])
    return Text("\n").join(_step(step, before, after) for step in steps)


def _step(step: Step, before: Sequence[Turn], after: Sequence[Turn]) -> Text:
    places = " → ".join(_NO_TURN if place is None else str(place + 1) for place in (step.before, step.after))
    old = "" if step.before is None else _told(before[step.before])
    new = "" if step.after is None else _told(after[step.after])
    text = Text.assemble((f"turn {places} · {step.change}\n", "bold"))
    if step.change == "kept":
        return text.append_text(word_diff(old, new))
    return text.append_text(Text("\n").join(part for part in (removed(old), added(new)) if part))


def _told(turn: Turn) -> str:
    action = f"> {turn.action}{_remarked(turn)}"
    return action if turn.observation is None else f"{action}\n{turn.observation}"
