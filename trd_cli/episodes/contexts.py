"""What a model reads before each of its actions in an episode, and who wrote each token of it.

Between two actions stands what the chat template writes there: the end of the turn, the observation as a user's
message, and the beginning of the next turn. It is the text that the template's rendering of the whole conversation has
after the text so far, and it alone is tokenised: what a model wrote keeps its ids. So the model reads the prompt and
all of the response so far.

A template may rewrite what was said: some take the thinking out of earlier turns, or spaces. Then the rendering does
not begin with the text so far. The model reads this rendering, tokenised as a whole, and the turn holds it as
`context_token_ids`; each action after it keeps its ids until the template rewrites again. The response of the row stays
one piece after another.

In the raw modes there is no template: an observation stands between blank lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trd_cli.episodes.transcript import transcript
from trd_cli.errors import ModelError
from trd_cli.graders.answers import OPEN
from trd_cli.prompting.chat_templates import PROBE
from trd_cli.prompting.rendering import Rendering
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import (
    AUTHORS,
    FinishReason,
    Message,
    Trajectory,
    Turn,
    author_array,
    token_array,
    well_formed,
)

_TEMPLATE, _ENVIRONMENT = AUTHORS.index("template"), AUTHORS.index("environment")
# An answer and the words after it, which no template has: the text around them is the template's.
_ANSWER, _WORDS = "heliotrope", "quicksilver lanterns"


@dataclass(frozen=True, slots=True)
class Piece:
    """Hold what is written between two actions, as ids with a code of an author for each."""

    token_ids: Sequence[int]
    author: Sequence[int]


@dataclass(frozen=True, slots=True)
class Context:
    """Hold what a model reads before an action. `is_whole` if it is the row's prompt and its response so far."""

    text: str
    token_ids: Sequence[int]
    is_whole: bool


class Conversation:
    """Write an episode turn by turn: `act`, `observe`, `act` …

    `context` is what the model reads before the next action. An observation becomes a part of the response with the
    action after it, so that the response always ends with an action.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rendering: Rendering,
        messages: Sequence[Message],
        prompt_token_ids: Sequence[int] | None = None,
    ) -> None:
        """Begin with the first messages; their ids are rendered where they are not given."""
        self._tokenizer, self._rendering = tokenizer, rendering
        self._messages = list(messages)
        ids = rendering.token_ids(tokenizer, messages) if prompt_token_ids is None else prompt_token_ids
        text = tokenizer.write(messages, rendering.mode, rendering.kwargs)
        self._context: Context | None = Context(text, token_array(ids), True)
        self._piece: Piece | None = None
        self._turns: list[Turn] = []
        self._ids, self._author = token_array(()), author_array(())

    @property
    def context(self) -> Context:
        """Return what the model reads before the next action; the last one has been answered by an observation."""
        if self._context is None:
            self._piece, self._context = self._go_on()
        return self._context

    @property
    def opens_thinking(self) -> bool:
        """Return whether what the model reads begins its thinking."""
        return self.context.text.rstrip().endswith(OPEN)

    @property
    def messages(self) -> Sequence[Message]:
        return self._messages

    @property
    def turns(self) -> Sequence[Turn]:
        return self._turns

    def act(
        self,
        reply: Sequence[int] | str,
        action: str,
        *,
        role: str = "student",
        finish_reason: FinishReason | None = "stop",
        seed: int | None = None,
    ) -> None:
        """Add a reply, from which the command `action` was taken: the ids as sampled, or a text that ends its turn."""
        if isinstance(reply, str):
            reply = [*self._tokenizer.encode(reply), self._tokenizer.end_of_turn_id]
        read, piece = self.context, self._piece
        if piece is not None:
            self._ids.extend(piece.token_ids)
            self._author.extend(piece.author)
        start = len(self._ids)
        self._ids.extend(reply)
        self._author.extend([AUTHORS.index(role)] * len(reply))
        own = None if read.is_whole else read.token_ids
        self._turns.append(Turn(role, action, None, start, len(self._ids), None, finish_reason, seed, own))
        text = well_formed(self._tokenizer.decode(reply))
        self._messages.append({"role": "assistant", "content": text})
        self._read = Context(read.text + text, token_array([*read.token_ids, *reply]), read.is_whole)
        self._context = self._piece = None

    def observe(self, observation: str, valid: bool | None = None) -> None:
        """Add what the environment answered to the last action."""
        self._turns[-1] = replace(self._turns[-1], observation=observation, valid=valid)
        self._messages.append({"role": "user", "content": observation})

    def columns(self) -> dict[str, Any]:
        """Return the columns of the row that hold the episode so far."""
        return {
            "response": transcript(self._turns),
            "response_token_ids": self._ids,
            "author": self._author,
            "finish_reason": self._turns[-1].finish_reason if self._turns else None,
            "turns": tuple(self._turns),
        }

    def _go_on(self) -> tuple[Piece, Context]:
        """Return what follows the last action, and what the model reads then."""
        before, after = self._around()
        written = f"{before}{self._messages[-1]['content']}{after}"
        text = self._read.text + written
        if self._rendering.mode == "chat":
            text = self._tokenizer.write(self._messages, "chat", self._rendering.kwargs)
        is_appended = text.startswith(self._read.text)
        if is_appended:
            written = text[len(self._read.text) :]
        piece = self._piece_of(written, len(before), len(written) - len(after))
        if is_appended:
            ids = token_array([*self._read.token_ids, *piece.token_ids])
            return piece, Context(text, ids, self._read.is_whole)
        return piece, Context(text, token_array(self._rendering.token_ids(self._tokenizer, self._messages)), False)

    def _piece_of(self, written: str, start: int, end: int) -> Piece:
        """Return the ids of what stands between two actions; its characters `start` to `end` are the environment's."""
        ids = self._tokenizer.encode(written)
        author = [_ENVIRONMENT if start < place <= end else _TEMPLATE for place in self._tokenizer.ends(written)]
        skipped = self._written_end(ids)
        return Piece(token_array(ids[skipped:]), author_array(author[skipped:]))

    def _written_end(self, ids: Sequence[int]) -> int:
        """Return how many of the first ids only end a turn that the model has ended itself, with that or another id."""
        ends = self._tokenizer.eos_ids
        if self._read.token_ids[-1] not in ends:
            return 0
        first = next((place for place, token in enumerate(ids) if token in ends), None)
        return 0 if first is None or self._tokenizer.decode(ids[:first]).strip() else first + 1

    def _around(self) -> tuple[str, str]:
        """Return the text between an action and the observation, and that between the observation and an action."""
        if self._rendering.mode != "chat":
            return "\n\n", "\n" if self._rendering.mode == "raw-line" else ""
        return _around(self._tokenizer, self._rendering, self._messages[:-2])


def _around(tokenizer: Tokenizer, rendering: Rendering, messages: Sequence[Message]) -> tuple[str, str]:
    """Return the text that a chat template writes between an answer and the next message, and that after the message.

    Raises ModelError for a template that does not write both.
    """
    turn = [{"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _WORDS}]
    before, shown, after = tokenizer.write([*messages, *turn], rendering.mode, rendering.kwargs).rpartition(_WORDS)
    _, answered, between = before.rpartition(_ANSWER)
    if not (shown and answered):
        raise ModelError(
            "the chat template does not show an assistant's turn and the message after it",
            "a template for conversations of many turns",
            "use another model, or --render raw",
        )
    return between, after


def check_turns(tokenizer: Tokenizer, rendering: Rendering) -> None:
    """Raise ModelError for a chat template that cannot write an episode of several turns."""
    if rendering.mode == "chat":
        _around(tokenizer, rendering, PROBE)


def contexts_of_turns(
    tokenizer: Tokenizer, rendering: Rendering, first: Sequence[Message], row: Trajectory
) -> list[Sequence[int]]:
    """Return what a model reads before each action of a row if its conversation begins with the messages `first`.

    With the messages that the row's actions were sampled after, these are the contexts that they were sampled in.
    """
    conversation = Conversation(tokenizer, rendering, first)
    found: list[Sequence[int]] = []
    for turn in row.turns or ():
        found.append(conversation.context.token_ids)
        conversation.act(row.response_token_ids[turn.start : turn.end], turn.action)
        conversation.observe(turn.observation or "")
    return found


def writes_as_sampled(tokenizer: Tokenizer, rendering: Rendering, row: Trajectory) -> bool:
    """Return whether a tokenizer writes what a rollout's actions were sampled after, and knows their ends of turn."""
    response = row.response_token_ids
    if any(response[turn.end - 1] not in tokenizer.eos_ids for turn in row.turns if turn.finish_reason == "stop"):
        return False
    read = [[*row.prompt_token_ids]]
    for turn in row.turns:
        own = turn.context_token_ids
        read.append([*row.prompt_token_ids, *response[: turn.start]] if own is None else [*own])
    written = [
        rendering.token_ids(tokenizer, row.messages),
        *contexts_of_turns(tokenizer, rendering, row.messages, row),
    ]
    return [[*ids] for ids in written] == read
