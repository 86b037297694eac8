"""The engine that asks an OpenAI-compatible server: `vllm serve`, or a hosted API.

Not covered: streaming, tools, images, several choices a request, and the chat template's arguments (in chat mode the
server renders the messages with its own).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trd_cli.config import EngineOptions
from trd_cli.errors import EngineError
from trd_cli.models import ModelRef
from trd_cli.records import Completion, Request
from trd_cli.tokens import Tokenizer

_DEFAULT_IN_FLIGHT = 32
_CONNECT_SECONDS = 10.0
_LONGEST_REASON = 300
# What the HTTP library raises when no connection was made. By name: openai 2 uses httpx, openai 3 its successor.
_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
# vllm answers what a request leaves out from the model's generation_config.json: a row that says "no filter" must say
# so to the server too. Off is -1 to vllm and SGLang; SGLang refuses 0.
_NO_TOP_K = -1
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class _Arguments(BaseModel):
    """The keys of `--engine-arg`. `timeout` is in seconds for one try; a request has 1 + `retries` tries."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    api: Literal["completions", "chat"] = "completions"
    served_model: str | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    retries: Annotated[int, Field(ge=0)] = 5
    logprobs: bool = True


class OpenAIEngine:
    """Sends up to `batch_size` requests at a time to `base_url` (else OPENAI_BASE_URL), key in OPENAI_API_KEY.

    `api=completions` sends the prompt's token ids. A server that returns token ids (vllm's `return_token_ids`) makes
    exact rows, with logprobs, which are the model's own under vllm's default `--logprobs-mode raw_logprobs`. Where only
    text comes back, the ids are those of the text and `ids_exact` is False. `api=chat` sends the messages; what it leaves
    out (`top_k` 0, penalties) is as the server is configured.

    The client waits and tries again after 408, 409, 429, 5xx, lost connections and timeouts. What still fails is that
    row's error, but for 401, 403, 404 and a server that cannot be reached: those raise EngineError. Nothing is sent
    before the first request.
    """

    name = "openai"

    def __init__(self, model: ModelRef, tokenizer: Tokenizer, options: EngineOptions) -> None:
        import openai

        self.version: str = openai.__version__
        self._arguments = read_arguments(options.engine_arg)
        self._base_url = read_base_url(options)
        self._served_model = self._arguments.served_model or model.name
        self._tokenizer = tokenizer
        self._in_flight = options.batch_size or _DEFAULT_IN_FLIGHT
        seconds = self._arguments.timeout
        self._client = openai.OpenAI(
            base_url=self._base_url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=self._arguments.retries,
            # pool=None: waiting for a free connection is no failure of the server.
            timeout=openai.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS), pool=None),
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion a request, as they finish; raises EngineError when the server is of no use to any request.

        Closing the iterator drops the requests that have not started and waits for none of the others.
        """
        todo = deque(requests)
        done: SimpleQueue[tuple[Request, Any]] = SimpleQueue()
        # Daemon threads, not an executor's: the interpreter joins those at exit, and an open request may take an hour.
        for _ in range(min(self._in_flight, len(requests))):
            Thread(target=self._work, args=(todo, done), name="trd-openai", daemon=True).start()
        try:
            for _ in range(len(requests)):
                request, answer = done.get()
                failed = isinstance(answer, Exception)
                yield self._failure(request, answer) if failed else self._completion(request, answer)
        finally:
            todo.clear()

    def close(self) -> None:
        """Close the connections. Requests still open are abandoned: they are not tried again."""
        self._client.close()

    def _work(self, todo: deque[Request], done: SimpleQueue[tuple[Request, Any]]) -> None:
        """Answers, or the exceptions in their place, until there is nothing to do."""
        while True:
            try:
                request = todo.popleft()
            except IndexError:
                return
            try:
                done.put((request, self._ask(request)))
            except Exception as error:
                done.put((request, error))

    def _ask(self, request: Request) -> Any:
        sampling = request.sampling
        common = {
            "model": self._served_model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,  # vllm and OpenAI take any signed 64-bit integer
        }
        if self._arguments.api == "chat":
            extra = {"top_k": sampling.top_k} if sampling.top_k > 0 else {}
            messages: Any = [dict(message) for message in request.messages]
            return self._client.chat.completions.create(messages=messages, extra_body=extra, **common)
        if self._arguments.logprobs:
            common["logprobs"] = 0  # the sampled token's alone
        extra = {"return_token_ids": True, "top_k": sampling.top_k or _NO_TOP_K, **_NEUTRAL}
        prompt = [list(request.prompt_token_ids)]
        return self._client.completions.create(prompt=prompt, extra_body=extra, **common)

    def _completion(self, request: Request, answer: Any) -> Completion:
        choices = getattr(answer, "choices", None)  # a page of HTML arrives as a string
        if not choices:
            return Completion(request.request_id, error="the server's answer has no choices")
        choice = choices[0]
        finish = getattr(choice, "finish_reason", None)
        if finish not in ("stop", "length"):
            return Completion(request.request_id, error=f"the server ended with finish_reason {finish!r}")
        text = _text(choice)
        if text is None:
            return Completion(request.request_id, error="the server's answer has no text")
        ids, logprobs, exact = self._tokens(choice, text, stopped=finish == "stop")
        return Completion(request.request_id, text, ids, logprobs, finish, exact)

    def _tokens(self, choice: Any, text: str, stopped: bool) -> tuple[list[int], list[float] | None, bool]:
        """Token ids (an end-of-turn id last when `stopped`), their logprobs, and whether the server gave the ids."""
        given = getattr(choice, "token_ids", None) if self._arguments.api == "completions" else None
        ids = list(given) if given else self._tokenizer.encode(text)
        logprobs = _logprobs(choice, len(ids)) if given else None
        ended = bool(given) and ids[-1] in self._tokenizer.eos_ids
        if stopped and not ended:
            # The id that stopped it was not returned, so there is no logprob for it either.
            return [*ids, self._tokenizer.end_of_turn_id], None, bool(given)
        return ids, logprobs, bool(given)

    def _failure(self, request: Request, error: Exception) -> Completion:
        """The row's error; raises EngineError for what would fail every row, and `error` itself when it is a bug."""
        import openai

        if isinstance(error, openai.APIStatusError):
            self._check_status(error.status_code, _reason(error))
            reason = f"the server answered {error.status_code}: {_reason(error)}"
        elif isinstance(error, openai.APIConnectionError):
            self._check_reached(error.__cause__)
            reason = f"the connection was lost: {_one_line(error.__cause__ or error)}"
            if isinstance(error, openai.APITimeoutError):
                reason = f"timeout: no answer within {self._arguments.timeout:g} s"
        elif isinstance(error, (openai.OpenAIError, json.JSONDecodeError)):
            reason = f"the server's answer is unreadable: {_one_line(error)}"
        else:
            raise error
        return Completion(request.request_id, error=reason)

    def _check_status(self, status: int, reason: str) -> None:
        got = f"{self._base_url} answered {status} ({reason})"
        if status in (401, 403):
            raise EngineError(got, "a key it accepts", "set OPENAI_API_KEY")
        if status == 404:
            mend = "check --base-url (it usually ends in /v1) and --engine-arg served_model=NAME"
            raise EngineError(got, f"a server of the model {self._served_model!r}", mend)

    def _check_reached(self, cause: BaseException | None) -> None:
        if cause is not None and type(cause).__name__ in _UNREACHABLE:
            got = f"no connection to {self._base_url} ({_one_line(cause)})"
            raise EngineError(got, "a running server", "start it, or check --base-url")


def read_arguments(given: dict[str, Any]) -> _Arguments:
    """Read the keys of `--engine-arg`. Raises EngineError for one that is not known, or of another kind."""
    try:
        return _Arguments(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key, allowed = first["loc"][0], ", ".join(_Arguments.model_fields)
        if first["type"] == "extra_forbidden":
            raise EngineError(
                f"--engine-arg {key}", f"one of {allowed}", "these are all the openai engine takes"
            ) from None
        expected = first["msg"].removeprefix("Input should be ")
        raise EngineError(f"--engine-arg {key}={first['input']!r}", expected, f"change {key}") from None


def read_base_url(options: EngineOptions) -> str:
    """Return the server's address. Raises EngineError where there is none, or one that is no address."""
    url = options.base_url or os.environ.get("OPENAI_BASE_URL")
    example = "give --base-url, for example http://localhost:8000/v1"
    if not url:
        raise EngineError("--engine openai without a server", "--base-url or OPENAI_BASE_URL", example)
    if not url.startswith(("http://", "https://")):
        raise EngineError(f"the server {url!r}", "an address that begins with http:// or https://", example)
    return url


def _text(choice: Any) -> str | None:
    """The choice's text, its reasoning before it in <think> tags; left open when it ended inside the reasoning."""
    message = getattr(choice, "message", None)
    if message is None:
        return getattr(choice, "text", None)
    content = getattr(message, "content", None)
    thoughts = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if not thoughts:
        return content
    return f"<think>\n{thoughts}" + (f"\n</think>\n\n{content}" if content else "")


def _logprobs(choice: Any, count: int) -> list[float] | None:
    """The sampled tokens' logprobs (`count` of them), or None where the server did not give each one."""
    given = getattr(getattr(choice, "logprobs", None), "token_logprobs", None) or ()
    return list(given) if len(given) == count and None not in given else None


def _reason(error: Any) -> str:
    """What the server says went wrong (its JSON body's `message`), else what the client says."""
    body = error.body if isinstance(error.body, dict) else {}
    return _one_line(body.get("message") or error.message)


def _one_line(value: Any) -> str:
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
