"""The value that every form of responses gives, and what the forms share: messages, ends, sampling parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trd_cli.datasets.columns import From, Names, found
from trd_cli.datasets.conversations import role_of
from trd_cli.datasets.rows import Row
from trd_cli.datasets.values import RowFault, opened
from trd_cli.engines.border import Malformed, as_text
from trd_cli.engines.replies import content_of, finish_of
from trd_cli.records import FinishReason, Message

# Columns of a problem in files that name none of their own.
PROBLEM = ("problem", "question", "prompt", "input", "query", "instruction")
ANSWER = ("expected_answer", "reference_answer", "ground_truth", "final_answer", "answer")
SOLUTION = ("reference_solution", "solution")
_LARGEST = 2**31 - 1
# The least and the most value of a sampling parameter; what lies outside, such as a max_tokens of -1, tells nothing.
_RANGES = {"temperature": (0, 1e9), "top_p": (1e-9, 1), "top_k": (-1, _LARGEST), "max_tokens": (1, _LARGEST)}
# Other spellings of a sampling parameter.
_SPELLINGS = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "max_tokens": (
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_gen_toks"),
        "tokens_to_generate",
    ),
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """Hold one response made elsewhere, byte by byte, or `error`, the reason why there is none.

    None stands for what the file does not tell; a `model` that is no text tells nothing. `sampling` has the known ones
    of temperature, top_p, top_k, max_tokens. `messages` are what the model was asked. `key` tells the samples of a file
    apart: a response that comes again there under the same key is a copy.
    """

    text: str | None
    finish_reason: FinishReason | None = None
    model: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    messages: Sequence[Message] = ()
    key: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Form:
    """Describe how rows are read: the origin of a problem's fields, and the responses of a row.

    `attempts` raises RowFault for a row without a response that can be taken. `completed` adds what stands in another
    file. `problems` names the benchmark of a form whose rows have no problem, `source` the set of problems where the
    file does not have its name.
    """

    fields: Mapping[str, From]
    attempts: Callable[[Row], Iterable[Attempt]]
    completed: Callable[[Row], Row] = lambda row: row
    problems: str | None = None
    source: str | None = None


def raw(row: Row, names: Names) -> Any:
    """Return the first value under these names that is not None, unchanged; None without one."""
    names = (names,) if isinstance(names, str) else names
    return next((value for name in names for _, value in found(row, name) if value is not None), None)


def texts_of(value: Any) -> Iterator[str]:
    """Yield a response, or each one of a list; raises RowFault for anything else."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        yield from value
    else:
        raise RowFault("no response" if value is None or value == [] else f"the response is a {type(value).__name__}")


def conversation(value: Any) -> list[Message]:
    """Return a prompt or a conversation as messages; a text is one message of the user.

    Thoughts that a server split off are put before their text, in `<think>` tags. Raises RowFault for anything else.
    """
    turns = opened(value)
    if isinstance(turns, str):
        return [{"role": "user", "content": as_text(turns)}]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowFault("no prompt" if not turns else f"the prompt is a {type(turns).__name__}, not messages")
    return [{"role": role_of(turn), "content": said(turn)} for turn in turns]


def said(message: Mapping[str, Any]) -> str:
    """Return the text of a message; raises RowFault where it has other content, such as an image or a call."""
    held = message if "content" in message or "value" not in message else {**message, "content": message["value"]}
    try:
        return as_text(content_of(held))
    except Malformed as fault:
        raise RowFault(f"a message cannot be taken: {fault}") from None


def asked(value: Any) -> str | None:
    """Return the problem in a prompt: the user's one turn. Raises RowFault for several turns."""
    if value is None:
        return None
    turns = [message["content"] for message in conversation(value) if message["role"] == "user"]
    if len(turns) > 1:
        raise RowFault(f"{len(turns)} turns of the user, not one: name the problem with --map problem=COLUMN")
    return turns[0] if turns else None


def answered(value: Any) -> str:
    """Return the one response in a completion: a text, or the assistant's one message. Raises RowFault for several."""
    if isinstance(value, str):
        return value
    messages = conversation(value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise RowFault(f"a completion of {len(messages)} messages, not of one answer")
    return messages[0]["content"]


def sampling_of(told: Any) -> dict[str, float]:
    """Return the parameters among these that trd knows too; greedy search has temperature 0, a `top_k` of -1 is 0."""
    if not isinstance(told, Mapping):
        return {}
    values = {
        name: next((told[n] for n in names if _is_within(told.get(n), *_RANGES[name])), None)
        for name, names in _SPELLINGS.items()
    }
    if told.get("do_sample") is False:
        values["temperature"] = 0.0
    known = {name: value for name, value in values.items() if value is not None}
    if "top_k" in known:
        known["top_k"] = max(0, known["top_k"])
    return {name: float(v) if name in ("temperature", "top_p") else int(v) for name, v in known.items()}


def _is_within(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def finish_in(row: Row, names: Names = "finish_reason") -> FinishReason | None:
    """Return how a response ended by the first of these columns that tells it."""
    return finish_of(raw(row, names))
