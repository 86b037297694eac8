"""Read the replies of OpenAI-compatible servers: answers, reasons to end, complaints, and lists of models.

The known forms are those of vLLM, SGLang, llama.cpp, TGI, Ollama, LM Studio, LiteLLM, OpenRouter, Together and Mistral,
and those of Anthropic's, Google's and Cohere's models that a gateway passes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trd_cli.records import FinishReason

_STOPS = (
    "stop stopped stop_sequence stop_token stop_word stop_words stop_str end_turn end_of_turn end_of_text endoftext end_id eos "
    "eos_token eos_token_id eosfound stopstringfound complete completed"
)
_LENGTHS = (
    "length limit max_length model_length max_tokens max_new_tokens max_output_tokens max_completion_tokens token_limit "
    "model_context_window_exceeded maxpredictedtokensreached contextlengthreached"
)
_FINISHES: dict[str, FinishReason] = {
    **dict.fromkeys(_STOPS.split(), "stop"),
    **dict.fromkeys(_LENGTHS.split(), "length"),
}
_BUSY = (408, 409, 429)
# Levels of a complaint that are searched for its message.
_DEEPEST = 6
# Waiting does not help against these. The word quota alone proves nothing: Google also calls limits a minute a quota.
_NO_CREDIT = re.compile(
    r"insufficient[_ ](?:user[_ ])?(?:quota|balance|credit|fund)|credit balance is too low|out of credits|billing[_ ](?:hard|not)",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"quota|billing|credits?\b", re.IGNORECASE)
_FILTERED = re.compile(
    r"content[_ ]?filter|(?:content|usage|management)[_ ]polic|flagged (?:by|as|for)|guardrail|moderation|safety (?:reason|filter|system|setting|polic)|responsible_?ai",
    re.IGNORECASE,
)
# Filters answer with these; another status means the key, the server or its load, even if its text names a filter.
_OF_CONTENT = (200, 400, 403, 422, 451)
_TOO_LONG = re.compile(
    r"context[_ ](?:length|window|size)|too long|too many (?:input )?tokens|(?:input|prompt) (?:length|tokens)",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[^>]*>")
# A request's own number in a complaint, such as "(request id: 202502031415…)".
_NUMBER_OF_ITS_OWN = re.compile(r"\b(?=[\w-]*\d)[\w-]{10,}\b")


@dataclass(frozen=True)
class Complaint:
    """Hold a server's complaint.

    `status` is that of the answer, or the one that a body with status 200 names; `kind` is its code and type.
    """

    status: int
    reason: str
    kind: str = ""

    @property
    def is_about_credit(self) -> bool:
        """Return True if the server answers no request until somebody pays."""
        return self.status == 402 or bool(_NO_CREDIT.search(f"{self.kind} {self.reason}"))

    @property
    def is_about_quota(self) -> bool:
        """Return True if a quota is used up; it may refill with time."""
        return self.status == 429 and bool(_QUOTA.search(f"{self.kind} {self.reason}"))

    @property
    def is_about_content(self) -> bool:
        """Return True if a filter refused the text of this request."""
        return self.status in _OF_CONTENT and bool(_FILTERED.search(f"{self.kind} {self.reason}"))

    @property
    def is_about_length(self) -> bool:
        """Return True if the prompt of this request is too long."""
        return bool(_TOO_LONG.search(f"{self.kind} {self.reason}"))

    @property
    def is_passing(self) -> bool:
        """Return True if the same request may be answered a little later."""
        if self.is_about_credit or self.is_about_content:
            return False
        # A server that fails after it began to answer cannot change its status any more.
        failed_late = self.status == 200 and "invalid" not in self.kind.lower()
        return self.status in _BUSY or self.status >= 500 or failed_late

    @property
    def likeness(self) -> str:
        """Return a text that is equal for two requests with the same reason for their refusal."""
        return f"{self.status} {_NUMBER_OF_ITS_OWN.sub('', self.reason)}"


class Unreadable(ValueError):
    """Report a reply that is not JSON; `is_cut` is True if it begins like JSON, or is empty."""

    def __init__(self, reason: str, is_cut: bool) -> None:
        super().__init__(reason)
        self.is_cut = is_cut


def read_json(content: bytes) -> Any:
    """Return the JSON value of a reply's body; raise Unreadable if it is not JSON."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 at byte {error.start}", is_cut=False) from None
    except (ValueError, RecursionError) as error:
        begins = content.lstrip()[:1]
        if begins in (b"{", b"["):
            raise Unreadable(f"broken JSON of {len(content)} bytes: {error}", is_cut=True) from None
        shown = content[:200].decode("utf-8", "replace")
        raise Unreadable(f"not JSON: {shown}" if begins else "empty", is_cut=not begins) from None


def choice_of(body: Any) -> Mapping[str, Any] | None:
    """Return the first choice of an answer, or None if it has none."""
    choices = body.get("choices") if isinstance(body, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, Mapping) else None


def content_of(message: Mapping[str, Any]) -> Any:
    """Return the content of a message, after any reasoning that the server split off; None where there is neither."""
    content = message.get("content")
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    if not thoughts:
        return content
    parts = content if isinstance(content, list) else [] if content is None else [content]
    return [{"type": "thinking", "thinking": thoughts}, *parts]


def model_in(body: Any, name: str) -> str:
    """Describe the model of this name in a server's list, or the list where the name is missing; "" without a list."""
    listed = body.get("data") if isinstance(body, Mapping) else None
    models = {str(each.get("id")): each for each in listed or () if isinstance(each, Mapping)}
    if name not in models:
        return f"only {', '.join(sorted(models))}" if models else ""
    # The same checkpoint may lie in another place on each machine.
    root = str(models[name].get("root") or name).rstrip("/").rpartition("/")[2]
    length = models[name].get("max_model_len")
    return root if length is None else f"{root} for up to {length} tokens"


def complaint_in(body: Any) -> Complaint | None:
    """Return the complaint in a reply with status 200, in its body or its choice, or None."""
    choice = choice_of(body)
    if isinstance(body, Mapping) and body.get("error"):
        return complaint(200, body)
    if choice is not None:
        return complaint(200, choice) if choice.get("error") else None
    found = complaint(200, body)
    return found if found.reason else None


def complaint(status: int, body: Any) -> Complaint:
    """Return the complaint of a body that is no answer; its `reason` is "" if the body gives none.

    A number in it that is an HTTP status takes the place of 200.
    """
    while isinstance(body, list) and body:  # as Google sends it
        body = body[0]
    if isinstance(body, str):
        return Complaint(status, _TAG.sub(" ", body))
    if not isinstance(body, Mapping):
        return Complaint(status, "")
    error = body.get("error") or body.get("errors") or body.get("detail") or body
    source = error if isinstance(error, Mapping) else body
    names = ("code", "type", "status", "error_type", "error_code")
    kinds = [str(source[name]) for name in names if source.get(name) not in (None, "")]
    if status == 200:
        status = next((int(kind) for kind in kinds if re.fullmatch(r"[45]\d\d", kind)), status)
    return Complaint(status, _said(error), " ".join(kinds))


def _said(error: Any, depth: int = 0) -> str:
    """Return the message of an error: a text, an object with one, or FastAPI's list of faults and their places."""
    if isinstance(error, str) or depth > _DEEPEST:
        return error if isinstance(error, str) else ""
    if isinstance(error, list):
        return "; ".join(filter(None, (_said(each, depth + 1) for each in error)))
    if not isinstance(error, Mapping):
        return ""
    names = ("message", "Message", "msg", "detail", "error_description", "error", "title")
    text = next((_said(error[name], depth + 1) for name in names if error.get(name)), "")
    place = error.get("loc")
    if not isinstance(place, list):
        return text
    return ".".join(str(part) for part in place if part != "body") + f": {text}"


def finish_of(reason: Any) -> FinishReason | None:
    """Return "stop" or "length" for a server's reason to end, in any spelling; None for any other reason or none."""
    if isinstance(reason, Mapping):  # as SGLang's own interface has it
        reason = reason.get("type")
    if not isinstance(reason, str):
        return None
    return _FINISHES.get(reason.rpartition(".")[2].strip().lower().replace("-", "_"))


def guessed_finish(limit: int, ids: list[int] | None, used: Any, ends: frozenset[int]) -> FinishReason | None:
    """Return how an answer without a reason ended, or None if nothing tells.

    `limit` is the number of tokens that were asked for. The last of the server's own `ids` and their number tell;
    without ids, the number `used` of counted tokens does: an answer shorter than the limit ended by itself.
    """
    if ids and ids[-1] in ends:
        return "stop"
    count = len(ids) if ids else used
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return None
    if count >= limit:
        return "length"
    return None if ids else "stop"
