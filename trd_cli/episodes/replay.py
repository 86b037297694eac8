"""Refine an episode by replay: a teacher writes its commands anew, and the environment answers each of them.

The teacher reads the episode and writes a list of commands, which are taken from the start on; every reply in y_r is
the environment's own. The teacher is asked to go on, in the same conversation, where its list parts from the game:

- a command is refused, or loses the game: it is taken back, by a reset and the commands before it;
- a reply lacks the words that the teacher expected: the command stays, for it was taken;
- the list ends before the goal.

After the last list that it may write the episode ends there, and a command that was refused or lost stays in it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from trd_cli.episodes.commands import Command, commands_in
from trd_cli.episodes.contexts import Conversation, check_turns
from trd_cli.episodes.moves import Ask, AskOracle, Move, Play, Reset, Step
from trd_cli.episodes.transcript import transcript
from trd_cli.planned import row_seed
from trd_cli.prompting.rendering import Rendering, room_for_response
from trd_cli.prompting.templates import Template
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import (
    EPISODE,
    Completion,
    Message,
    Request,
    Sampling,
    StopReason,
    Trajectory,
    Turn,
    content_hash,
    well_formed,
)
from trd_cli.worlds.base import Observation

_ENDED = "The commands ended, and the goal is not reached."
_NONE = "There was no command in that."
_REFUSED = "The game refused the last command, which is taken back."
_LOST = "The last command lost the game, and is taken back."
_UNEXPECTED = "The last reply does not say what was expected: {}"


@dataclass(frozen=True, slots=True)
class Teacher:
    """Hold how a teacher is asked for commands.

    It writes at most `replays` lists for an episode of at most `max_turns` turns; `again` is the template of the
    messages in which it is asked to go on. With `is_led` its requests tell the oracle's commands, for an engine that
    reads no prompt.
    """

    tokenizer: Tokenizer
    rendering: Rendering
    again: Template
    replays: int
    max_turns: int
    max_length: int
    is_led: bool = False


@dataclass(frozen=True, slots=True)
class _Planned(Trajectory):
    """Hold a planned row, and the messages of the student's prompt, which a refined row has no column for."""

    student_messages: Sequence[Message] = ()


class Replays:
    """Plan refined episodes and play them; y_r is written in the student's form."""

    def __init__(self, teacher: Teacher, students: Tokenizer, rendering: Rendering) -> None:
        """`students` is the tokenizer that writes the student's conversations, and `rendering` that of the rollouts.

        Raises ModelError as `check_turns`, for the teacher's conversations or the student's.
        """
        check_turns(teacher.tokenizer, teacher.rendering)
        check_turns(students, rendering)
        self._teacher, self._students, self._rendering = teacher, students, rendering

    def identity(self) -> dict[str, str]:
        return {"again": self._teacher.again.sha256}

    def planned(self, row: Trajectory, rollout: Trajectory) -> Trajectory:
        """Return a planned row of the rollout as one of an episode; rows of other limits are others."""
        name = content_hash([row.trajectory_id, self._teacher.replays, self._teacher.max_turns])
        row = replace(row, trajectory_id=name, seed=row_seed(name), environment=rollout.environment)
        columns = {field.name: getattr(row, field.name) for field in fields(row)}
        return _Planned(**columns, student_messages=rollout.messages)

    def play(self, row: _Planned) -> Play:
        """Return the play of a row that `planned` made."""
        messages, ids = row.student_messages, row.student_prompt_token_ids
        return replay(row, self._teacher, lambda: Conversation(self._students, self._rendering, messages, ids))


@dataclass(slots=True)
class _Game:
    """Hold the episode so far, in the student's form, and the environment's last observation."""

    conversation: Conversation
    seen: Observation

    @property
    def turns(self) -> Sequence[Turn]:
        return self.conversation.turns


def replay(row: Trajectory, teacher: Teacher, begun: Callable[[], Conversation]) -> Play:
    """Play the refined episode of a planned row, whose prompt is the teacher's; `begun` begins the student's side.

    An environment that answers the same commands otherwise makes an error row, and so does a teacher without a command.
    """
    dialogue = Conversation(teacher.tokenizer, teacher.rendering, row.messages, row.prompt_token_ids)
    game, told = _Game(begun(), (yield Reset())), 0
    for number in range(teacher.replays):
        room = room_for_response(teacher.max_length, len(dialogue.context.token_ids), row.max_tokens)
        if not room:
            return _finished(row, game, "tokens")
        request = _request(row, number, dialogue, room, (yield from _hints(teacher)))
        completion: Completion = yield Ask(request)
        commands = commands_in(completion.text, completion.finish_reason == "length", dialogue.opens_thinking)
        outcome = yield from _take(commands, game, row, teacher, request.seed)
        if outcome in ("solved", "turns", "tokens"):
            return _finished(row, game, outcome)
        if number + 1 == teacher.replays:
            return _finished(row, game, "failed" if outcome == _LOST else "replays")
        dialogue.act(completion.token_ids, "", role="teacher", finish_reason=completion.finish_reason)
        dialogue.observe(_asking(teacher.again, game.turns[told:], outcome))
        if outcome in (_REFUSED, _LOST):
            kept = game.turns[:-1]
            game = yield from _again(kept, begun())
            if [turn.observation for turn in game.turns] != [turn.observation for turn in kept]:
                return replace(row, error="the environment answered the same commands in another way")
        told = len(game.turns)
    raise ValueError("a teacher writes at least one list")


def _hints(teacher: Teacher) -> Generator[Move, Any, dict[str, str]]:
    hints = {"task": EPISODE, "wanted": "commands"}
    if teacher.is_led:
        hints["oracle"] = "\n".join((yield AskOracle()).commands or ())
    return hints


def _request(row: Trajectory, number: int, dialogue: Conversation, room: int, hints: dict[str, str]) -> Request:
    request_id = f"{row.trajectory_id}:{number}"
    return Request(
        request_id,
        dialogue.context.token_ids,
        Sampling(row.temperature, row.top_p, row.top_k, room),
        row_seed(request_id),
        tuple(dialogue.messages),
        hints,
    )


def _take(
    commands: Sequence[Command], game: _Game, row: Trajectory, teacher: Teacher, seed: int
) -> Generator[Move, Any, str]:
    """Take commands one by one, and return how that ended: a reason to stop, or what the teacher must know."""
    for command in commands:
        if len(game.turns) >= teacher.max_turns:
            return "turns"
        if not _fits(command, game, row, teacher):
            return "tokens"
        yield from _act(command.action, game, seed)
        if game.seen.solved:
            return "solved"
        if game.seen.done:
            return _LOST
        if not game.seen.valid:
            return _REFUSED
        if not command.is_met_by(game.turns[-1].observation):
            return _UNEXPECTED.format(command.expected)
    if len(game.turns) >= teacher.max_turns:
        return "turns"
    return _ENDED if commands else _NONE


def _act(action: str, game: _Game, seed: int | None) -> Generator[Move, Any, None]:
    game.conversation.act(action, action, role="teacher", seed=seed)
    game.seen = yield Step(action)
    game.conversation.observe(well_formed(game.seen.text), game.seen.valid)


def _again(turns: Sequence[Turn], conversation: Conversation) -> Generator[Move, Any, _Game]:
    """Play turns again from the start."""
    game = _Game(conversation, (yield Reset()))
    for turn in turns:
        yield from _act(turn.action, game, turn.seed)
    return game


def _fits(command: Command, game: _Game, row: Trajectory, teacher: Teacher) -> bool:
    """Return whether the teacher's prompt has room for one more command behind it and the episode so far."""
    episode = len(game.conversation.context.token_ids) - len(row.student_prompt_token_ids)
    action = len(teacher.tokenizer.encode(command.action)) + 1
    return len(row.prompt_token_ids) + episode + action <= teacher.max_length


def _asking(again: Template, turns: Sequence[Turn], fault: str) -> str:
    """Return the message with which the teacher is asked to go on."""
    [message] = again.render({"done": transcript(turns), "fault": fault})
    return message["content"]


def _finished(row: Trajectory, game: _Game, reason: StopReason) -> Trajectory:
    if not game.turns:
        return replace(row, error="the teacher wrote no command")
    # The tokens are those of the text, and no engine's.
    return replace(
        row, **game.conversation.columns(), ids_exact=False, episode_reward=game.seen.reward, stop_reason=reason
    )
