"""Check every completion on its way into a row: its text, its ids and the rest, for all engines.

A repairable fault is repaired: parts of a message are joined, lone surrogates become U+FFFD, a missing end of turn is
added. Any other fault is the error of its own row, so that a batch never loses a good one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from numbers import Real
from typing import Any, get_args

from trd_cli.errors import counted
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, FinishReason, Request, logprob_array, token_array, well_formed
from trd_cli.redaction import one_line

_LARGEST_ID = 2**31 - 1
_LARGEST_FLOAT32 = 3.4e38
_LONGEST_REASON, _SHOWN = 2000, 20
_THOUGHTS = {"thinking", "redacted_thinking", "reasoning", "reasoning_content", "reasoning_text", "thought"}
_TEXTS = {None, "text", "output_text"}
# Keys of a message's part that hold its text, which may be a list of parts again.
_HOLDERS = ("text", "thinking", "reasoning", "reasoning_content", "content", "summary")


class Malformed(ValueError):
    """Report a value of an answer that no row can hold."""


def answered(
    requests: Iterable[Request | None],
    generate: Callable[[Iterable[Request | None]], Iterable[Completion]],
    tokenizer: Tokenizer,
    note: Callable[[str], None],
) -> Iterator[Completion]:
    """Yield exactly one checked completion for each request, in the order in which an engine yields them; see
    `matched`."""
    for completion in matched(requests, generate, note):
        yield checked(completion, tokenizer)


def matched(
    requests: Iterable[Request | None],
    generate: Callable[[Iterable[Request | None]], Iterable[Completion]],
    note: Callable[[str], None],
) -> Iterator[Completion]:
    """Yield exactly one completion for each request, as the engine gave it. None is no request, see `Engine.generate`.

    `generate` is the engine's: it takes requests as it has room for them. A request that the engine leaves unanswered
    ends as an error. A completion that answers no open request is left out, and `note` reports how many there were.
    """
    waiting: dict[str, None] = {}

    def taken() -> Iterator[Request | None]:
        for request in requests:
            if request is not None:
                waiting[request.request_id] = None
            yield request

    asked = taken()
    strangers = 0
    for completion in generate(asked):
        identity = completion.request_id if isinstance(completion, Completion) else None
        if not isinstance(identity, str) or identity not in waiting:
            strangers += 1
            continue
        del waiting[identity]
        yield completion
    if strangers:
        note(f"left out {counted(strangers, 'answer')} of the engine without an open request")
    for identity in chain(list(waiting), (request.request_id for request in asked if request is not None)):
        yield Completion(identity, error="the engine ended without an answer to this request")


def checked(completion: Completion, tokenizer: Tokenizer) -> Completion:
    """Return the completion with values that a row can hold, ids and logprobs in arrays, or else with an error."""
    if completion.error is not None:
        return _failed(completion, str(completion.error))
    try:
        text, ids = as_text(completion.text), as_ids(completion.token_ids)
        if completion.finish_reason not in get_args(FinishReason):
            raise Malformed(f"its finish_reason is {_named(completion.finish_reason)}")
    except Malformed as fault:
        return _failed(completion, f"the engine's answer is malformed: {fault}")
    logprobs = as_logprobs(completion.logprobs, len(ids))
    if completion.finish_reason == "stop":
        ids, logprobs = with_end(ids, logprobs, tokenizer)
    return replace(
        completion,
        text=text,
        token_ids=token_array(ids),
        logprobs=None if logprobs is None else logprob_array(logprobs),
        ids_exact=bool(completion.ids_exact),
    )


def as_text(value: Any) -> str:
    """Return text, or the parts of a message joined, thoughts in <think> tags; raise Malformed for anything else."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, (list, tuple)):
        return well_formed(_joined(value))
    raise Malformed(f"its text is {_named(value)}")


def as_ids(value: Any) -> list[int]:
    """Return token ids (0 to 2³¹ − 1, at least one) as plain integers; raise Malformed for anything else."""
    try:
        items = None if isinstance(value, (str, bytes, Mapping)) else list(value)
    except TypeError:
        items = None
    if not items:
        raise Malformed(f"its token ids are {_named(value)}")
    return [item if type(item) is int and 0 <= item <= _LARGEST_ID else _as_id(item) for item in items]


def as_logprobs(value: Any, count: int) -> list[float] | None:
    """Return `count` finite numbers, or None if there is not exactly one for each token."""
    try:
        given = [] if isinstance(value, (str, bytes, Mapping)) else list(value)
        is_plain = set(map(type, given)) == {float}
        found = given if is_plain else [float(i) for i in given if isinstance(i, Real) and not isinstance(i, bool)]
    except (TypeError, OverflowError):
        return None
    is_whole = len(found) == len(given) == count
    return found if is_whole and all(abs(item) <= _LARGEST_FLOAT32 for item in found) else None


def with_end(
    ids: list[int], logprobs: list[float] | None, tokenizer: Tokenizer
) -> tuple[list[int], list[float] | None]:
    """Return the ids of a response that stopped, with an end of turn as the last one.

    An id that the server did not return is added. It has no logprob, so then none are kept.
    """
    if ids and ids[-1] in tokenizer.eos_ids:
        return ids, logprobs
    return [*ids, tokenizer.end_of_turn_id], None


def _failed(completion: Completion, reason: str) -> Completion:
    # An empty reason would make a row without a response look like a good one.
    reason = reason if reason.strip() else "the engine failed without a word"
    return Completion(completion.request_id, error=one_line(well_formed(reason), _LONGEST_REASON))


def _as_id(item: Any) -> int:
    try:
        number = None if isinstance(item, bool) else operator.index(item)
    except TypeError:
        number = None
    if number is None or not 0 <= number <= _LARGEST_ID:
        raise Malformed(f"a token id is {_named(item)}")
    return number


def _joined(parts: Iterable[Any]) -> str:
    """Join the parts of a message. A thought with no text after it stays open: the response ended inside it."""
    text, in_thought = "", False
    for is_thought, piece in map(_piece, parts):
        if not piece:
            continue
        if is_thought != in_thought:
            text += "<think>\n" if is_thought else "\n</think>\n\n"
        text, in_thought = text + piece, is_thought
    return text


def _piece(part: Any) -> tuple[bool, str]:
    """Return True if a part is a thought, and its text."""
    if isinstance(part, str):
        return False, part
    if not isinstance(part, Mapping):
        raise Malformed(f"a part of its text is {_named(part)}")
    kind = part.get("type")
    is_thought = (isinstance(kind, str) and kind in _THOUGHTS) or part.get("thought") is True
    if not is_thought and not (kind is None or (isinstance(kind, str) and kind in _TEXTS)):
        raise Malformed(f"a part of its text is of type {_named(kind)}")
    held = next((part[name] for name in _HOLDERS if part.get(name) is not None), None)
    if held is None and kind == "redacted_thinking":
        return True, ""
    inner = held if isinstance(held, (list, tuple)) else [held]
    texts = [each.get("text") if isinstance(each, Mapping) else each for each in inner]
    odd = [each for each in texts if not isinstance(each, str)]
    if odd:
        raise Malformed(f"a part of its text holds {_named(odd[0])}")
    return is_thought, "".join(texts)


def _named(value: Any) -> str:
    """Name a malformed value. A long text is not shown, because half of a key would not be recognised as one."""
    if value is None:
        return "missing"
    if isinstance(value, (list, tuple, dict, str)) and not value:
        return "empty"
    is_short = isinstance(value, (bool, float)) or (isinstance(value, str) and len(value) <= _SHOWN)
    if is_short or (isinstance(value, int) and value.bit_length() <= 64):
        return f"{value!r} ({type(value).__name__})"
    return f"of the kind {type(value).__name__}"
