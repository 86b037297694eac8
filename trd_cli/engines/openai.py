"""The engine that asks an OpenAI-compatible server: `vllm serve`, or a hosted API.

Not covered: streaming, tools, images, several choices a request, and the chat template's arguments (in chat mode the
server renders the messages with its own).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.border import Malformed, as_ids, as_logprobs, as_text, with_end
from trd_cli.engines.replies import (
    Complaint,
    Unreadable,
    choice_of,
    complaint,
    complaint_in,
    finish_of,
    guessed_finish,
    read_json,
)
from trd_cli.engines.server import header_value, read_server
from trd_cli.errors import EngineError, flag
from trd_cli.models import ModelRef
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request
from trd_cli.redaction import one_line

_DEFAULT_IN_FLIGHT = 32
_CONNECT_SECONDS = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
_LONGEST_REASON = 300
# If so many different first prompts fail alike and more are to come, the fault concerns every request: the run stops.
_FIRST_PROMPTS = 3
# The HTTP library's errors of a failed connection. By name: openai 2 uses httpx, openai 3 its successor.
_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
# vllm takes missing options from the model's generation_config.json, so a request must switch the filter off itself.
# Off is -1 to vllm and SGLang; SGLang refuses 0.
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


class _Fault(Exception):
    """Report why one request has no answer.

    Two faults of equal `likeness` have the same reason; with None a fault is like no other.
    """

    def __init__(self, reason: str, likeness: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.likeness = reason, likeness


class OpenAIEngine:
    """Send up to `batch_size` requests at a time to `base_url` (else OPENAI_BASE_URL), with the key in OPENAI_API_KEY.

    `api=completions` sends the prompt's token ids. A server that returns token ids (vllm's `return_token_ids`) makes
    exact rows, with logprobs, which are the model's own under vllm's default `--logprobs-mode raw_logprobs`. Where only
    text comes back, it is tokenized, and `ids_exact` is False. `api=chat` sends the messages; the server's
    configuration decides all that it leaves out (`top_k` 0, penalties).

    The client waits and tries again after 408, 409, 429, 5xx, lost connections, timeouts, a body that is cut off, and
    an error in a body with status 200. If the last try fails, the row gets the error. A fault that concerns every
    request raises EngineError: 401 to 405, a used-up quota or credit, an unreachable server, and the same refusal of
    the first three prompts. No request is sent before the first completion is asked for.
    """

    name = "openai"

    def __init__(self, model: ModelRef, tokenizer: Tokenizer, options: EngineOptions) -> None:
        import openai

        self.version: str = openai.__version__
        self._arguments = read_arguments(options.engine_arg)
        self._server = read_server(options.base_url)
        self._served_model = self._arguments.served_model or model.name
        self._tokenizer = tokenizer
        self._ends = [token for token, i in tokenizer.vocabulary().items() if i in tokenizer.eos_ids]
        self._in_flight = self.rows_at_once = options.batch_size or _DEFAULT_IN_FLIGHT
        self._closed = Event()
        seconds = self._arguments.timeout
        connection = {
            "base_url": self._server.url,
            "api_key": self._server.key,
            "organization": header_value("OPENAI_ORG_ID") or None,
            "project": header_value("OPENAI_PROJECT_ID") or None,
            "default_query": self._server.query,
            "max_retries": self._arguments.retries,
            # pool=None: a wait for a free connection is no failure of the server.
            "timeout": openai.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS), pool=None),
        }
        try:
            self._client = _client_class()(**connection)
        except Exception as error:  # proxies in the environment can raise any kind
            got = f"no client for {self._server.shown}: {self._line(error)}"
            raise EngineError(got, "an address and proxies it can use", "check --base-url and *_PROXY") from None

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield one completion a request, as they finish; raise EngineError if the server can answer no request.

        If the iterator is closed, requests that have not started are dropped, and the others are not waited for.
        """
        todo = deque(requests)
        done: SimpleQueue[tuple[Request, Any]] = SimpleQueue()
        # Daemon threads, not an executor's: the interpreter joins those at exit, and an open request may take an hour.
        for _ in range(min(self._in_flight, len(requests))):
            Thread(target=self._work, args=(todo, done), name="trd-openai", daemon=True).start()
        opening = _Opening(requests)
        try:
            for _ in range(len(requests)):
                request, answer = done.get()
                if isinstance(answer, _Fault):
                    failed = Completion(request.request_id, error=answer.reason)
                    yield from opening.refused(failed, answer.likeness)
                    if opening.is_hopeless:
                        raise self._all_alike(answer)
                elif isinstance(answer, Exception):
                    yield from _responses(done)
                    raise answer
                else:
                    yield from opening.answered(answer)
            yield from opening.rest()
        finally:
            todo.clear()

    def close(self) -> None:
        """Close the connections. Open requests are abandoned and not tried again."""
        self._closed.set()
        self._client.close()

    def _work(self, todo: deque[Request], done: SimpleQueue[tuple[Request, Any]]) -> None:
        """Put completions, or exceptions in their place, into `done` until no request is left."""
        while True:
            try:
                request = todo.popleft()
            except IndexError:
                return
            try:
                done.put((request, self._completion(request, self._ask(request))))
            except Exception as error:
                done.put((request, error))

    def _ask(self, request: Request) -> Any:
        """Return the JSON of the answer after one or more tries; raise _Fault or EngineError."""
        retries, wait = self._arguments.retries, _FIRST_WAIT
        while True:
            reply = self._send(request, retries)
            try:
                body = read_json(reply.http_response.content)
                found = complaint_in(body)
                if found is None:
                    return body
                fault, is_passing = self._refusal(found), found.is_passing
            except Unreadable as error:
                fault, is_passing = self._unreadable(error), error.is_cut
            retries -= reply.retries_taken + 1
            if not is_passing or retries < 0 or self._closed.wait(wait):
                raise fault
            wait = min(2 * wait, _LONGEST_WAIT)

    def _send(self, request: Request, retries: int) -> Any:
        """Return the raw reply; raise _Fault or EngineError if none has status 200."""
        import openai

        client = self._client
        if retries != self._arguments.retries:
            client = client.with_options(max_retries=retries)
        try:
            if self._arguments.api == "chat":
                return client.chat.completions.with_raw_response.create(**self._chat(request))
            return client.completions.with_raw_response.create(**self._completions(request))
        except openai.APIStatusError as error:
            raise self._refusal(_complaint_of(error.response)) from None
        except openai.APITimeoutError:
            raise _Fault(f"timeout: no answer within {self._arguments.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise self._lost(error.__cause__ or error) from None
        except openai.OpenAIError as error:
            raise _Fault(f"the client failed: {self._line(error)}") from None

    def _common(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        return {
            "model": self._served_model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,  # vllm and OpenAI take any signed 64-bit integer
        }

    def _chat(self, request: Request) -> dict[str, Any]:
        top_k = request.sampling.top_k
        messages = [dict(message) for message in request.messages]
        extra = {"top_k": top_k} if top_k > 0 else {}
        return {**self._common(request), "messages": messages, "extra_body": extra}

    def _completions(self, request: Request) -> dict[str, Any]:
        extra = {
            "return_token_ids": True,
            "top_k": request.sampling.top_k or _NO_TOP_K,
            # A base model's own list lacks the token that ends a turn of its template.
            "stop_token_ids": sorted(self._tokenizer.eos_ids),
            **_NEUTRAL,
        }
        logprobs = {"logprobs": 0} if self._arguments.logprobs else {}  # the sampled token's alone
        prompt = [list(request.prompt_token_ids)]
        return {**self._common(request), **logprobs, "prompt": prompt, "extra_body": extra}

    def _completion(self, request: Request, body: Any) -> Completion:
        choice = choice_of(body)
        if choice is None:
            raise _Fault("the server's answer has no choices", "no choices")
        try:
            return self._response(request, choice, body.get("usage"))
        except Malformed as fault:
            raise _Fault(f"the server's answer is malformed: {self._line(fault)}") from None

    def _response(self, request: Request, choice: Mapping[str, Any], usage: Any) -> Completion:
        """Return the response in a choice.

        Raises _Fault if it did not end well or has no text, and Malformed if a value has another type.
        """
        given = choice.get("token_ids") if self._arguments.api == "completions" else None
        ids = as_ids(given) if given else None
        reason = choice.get("finish_reason")
        finish = finish_of(reason)
        if reason in (None, ""):
            used = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
            finish = guessed_finish(request.sampling.max_tokens, ids, used, self._tokenizer.eos_ids)
            if finish is None:
                raise _Fault("the server gave no finish_reason, and nothing else tells how its answer ended")
        if finish is None:
            told = reason.get("type") if isinstance(reason, Mapping) else reason
            shown = repr(told) if isinstance(told, (str, int)) else f"of the kind {type(told).__name__}"
            raise _Fault(f"the server ended with finish_reason {self._line(shown)}")
        text = as_text(self._content(choice))
        exact = ids is not None
        if exact:
            logprobs = as_logprobs(_logprobs(choice), len(ids))
        else:
            text = self._without_end(text) if finish == "stop" else text
            ids, logprobs = self._tokenizer.encode(text), None
        if finish == "stop":
            ids, logprobs = with_end(ids, logprobs, self._tokenizer)
        return Completion(request.request_id, text, ids, logprobs, finish, exact)

    def _content(self, choice: Mapping[str, Any]) -> Any:
        """Return the text of a choice or its parts, after any reasoning that the server split off."""
        message = choice.get("message")
        if not isinstance(message, Mapping):
            content, message = choice.get("text"), {}
        else:
            content = message.get("content")
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        if thoughts:
            parts = content if isinstance(content, list) else [] if content is None else [content]
            return [{"type": "thinking", "thinking": thoughts}, *parts]
        if content is None:
            refused = message.get("refusal")
            said = f": the model refused ({self._line(refused)})" if refused else ""
            raise _Fault(f"the server's answer has no text{said}")
        return content

    def _without_end(self, text: str) -> str:
        """Return the text without the names of end tokens that some servers leave at its end.

        `with_end` adds the id, once.
        """
        bare = text.rstrip()
        end = next((end for end in self._ends if bare.endswith(end)), None)
        return text if end is None else self._without_end(bare.removesuffix(end))

    def _refusal(self, found: Complaint) -> Exception:
        """Return a complaint as the fault of one request, or as an EngineError if every request would meet it."""
        reason = self._line(found.reason or "without a reason")
        got = f"{self._server.shown} answered {found.status} ({reason})"
        if not found.is_about_content:
            if found.is_about_credit or found.is_about_quota:
                mend = "top it up, or wait until the quota is renewed, and run the same command again"
                return EngineError(got, "an account with credit and quota left", mend)
            if found.status in (401, 403):
                return EngineError(got, "a key it accepts", "set OPENAI_API_KEY")
            if found.status in (404, 405):
                mend = "check --base-url (it usually ends in /v1) and --engine-arg served_model=NAME"
                return EngineError(got, f"a server of the model {self._served_model!r}", mend)
        of_its_own = found.is_about_content or found.is_about_length
        said = f"{found.status} with an error" if found.status == 200 else f"{found.status}"
        return _Fault(f"the server answered {said}: {reason}", None if of_its_own else found.likeness)

    def _all_alike(self, fault: _Fault) -> EngineError:
        got = f"{self._server.shown} did not answer one of the first {_FIRST_PROMPTS} prompts, each time the same: {fault.reason}"
        mend = "change what it names (an option, --engine-arg, --base-url, the server's own settings) and run the same command again"
        return EngineError(got, "requests that it answers", mend)

    def _unreadable(self, error: Exception) -> _Fault:
        reason = f"the server's answer is unreadable: {self._line(error)}"
        return _Fault(reason, reason)

    def _lost(self, cause: BaseException) -> Exception:
        kind = type(cause).__name__
        if kind in _UNREACHABLE:
            got = f"no connection to {self._server.shown} ({self._line(cause)})"
            return EngineError(got, "a running server", "start it, or check --base-url")
        if kind == "LocalProtocolError":  # its message quotes the header
            variables = "OPENAI_API_KEY, OPENAI_ORG_ID and OPENAI_PROJECT_ID"
            return EngineError("a header that cannot be sent", "printable ASCII", f"set {variables} again")
        if kind == "DecodingError":
            return self._unreadable(cause)
        reason = f"the connection was lost: {self._line(cause)}"
        return _Fault(reason, reason)

    def _line(self, value: Any) -> str:
        """Return one line of at most 300 characters, without keys."""
        return one_line(value, _LONGEST_REASON, self._server.secrets)


class _Opening:
    """Hold back the errors of the first requests until one is answered or fails for another reason.

    If the first different prompts all fail alike, all others would too. Then these are no errors of rows, and none is
    yielded.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        first: dict[tuple[int, ...], str] = {}
        for request in requests:
            first.setdefault(tuple(request.prompt_token_ids), request.request_id)
            if len(first) > _FIRST_PROMPTS:
                break
        self._waiting = set(list(first.values())[:_FIRST_PROMPTS] if len(first) > _FIRST_PROMPTS else ())
        self._held: list[Completion] = []
        self._is_over = not self._waiting
        self._likeness: str | None = None

    @property
    def is_hopeless(self) -> bool:
        return not self._is_over and not self._waiting

    def refused(self, completion: Completion, likeness: str | None) -> list[Completion]:
        """Return the completions that may be yielded now, perhaps with this error among them."""
        if self._is_over or likeness is None or self._likeness not in (None, likeness):
            return self.answered(completion)
        self._likeness = likeness
        self._held.append(completion)
        self._waiting.discard(completion.request_id)
        return []

    def answered(self, completion: Completion) -> list[Completion]:
        """Return this completion after the errors that were held back, which now belong to their rows."""
        return [*self.rest(), completion]

    def rest(self) -> list[Completion]:
        """Return the errors that were held back; from now on none is."""
        self._is_over, held, self._held = True, self._held, []
        return held


def _client_class() -> type:
    import openai

    class Client(openai.OpenAI):
        """Does not wait and try again where only paying helps."""

        def _should_retry(self, response: Any) -> bool:
            return super()._should_retry(response) and not _complaint_of(response).is_about_credit

    return Client


def _complaint_of(response: Any) -> Complaint:
    try:
        body = read_json(response.content)
    except Unreadable:
        body = response.text
    found = complaint(response.status_code, body)
    return found if found.reason else complaint(response.status_code, response.text)


def _responses(done: SimpleQueue[tuple[Request, Any]]) -> Iterator[Completion]:
    """Yield the responses that have arrived."""
    while True:
        try:
            _, answer = done.get_nowait()
        except Empty:
            return
        if isinstance(answer, Completion):
            yield answer


def _logprobs(choice: Mapping[str, Any]) -> Any:
    """Return the logprobs of the sampled tokens, as the server gives them."""
    given = choice.get("logprobs")
    return given.get("token_logprobs") if isinstance(given, Mapping) else None


def read_arguments(given: dict[str, Any]) -> _Arguments:
    """Return the keys of `--engine-arg`; raise EngineError for an unknown key or a value of another type."""
    try:
        return _Arguments(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key, allowed = first["loc"][0], ", ".join(_Arguments.model_fields)
        if first["type"] == "extra_forbidden":
            raise EngineError(
                f"{flag('engine_arg')} {key}", f"one of {allowed}", "these are all the openai engine takes"
            ) from None
        expected = first["msg"].removeprefix("Input should be ")
        raise EngineError(f"{flag('engine_arg')} {key}={first['input']!r}", expected, f"change {key}") from None
