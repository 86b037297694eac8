"""One try at one OpenAI-compatible server: the request it gets, and its answer or the fault."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from trd_cli.engines.border import Malformed, as_ids, as_logprobs, as_text, with_end
from trd_cli.engines.replies import (
    Complaint,
    Unreadable,
    choice_of,
    complaint,
    complaint_in,
    content_of,
    finish_of,
    guessed_finish,
    model_in,
    read_json,
)
from trd_cli.engines.server import Arguments, Server, header_value
from trd_cli.engines.servers import Fault
from trd_cli.errors import EngineError
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request
from trd_cli.redaction import one_line

_CONNECT_SECONDS = 10.0
_LONGEST_REASON = 300
# A server that asks for more patience is asked again after this many seconds.
_LONGEST_WAIT = 120.0
# The HTTP library's errors of a failed connection. By name: openai 2 uses httpx, openai 3 its successor.
_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
# vllm takes missing options from the model's generation_config.json, so a request must switch the filter off itself.
# Off is -1 to vllm and SGLang; SGLang refuses 0.
_NO_TOP_K = -1
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class Connection:
    """Ask one server, once for each call. `secrets` are those of all servers; no message shows them."""

    def __init__(
        self, server: Server, model: str, tokenizer: Tokenizer, arguments: Arguments, secrets: Collection[str]
    ) -> None:
        import openai

        self.shown = server.shown
        self._model, self._tokenizer, self._arguments, self._secrets = model, tokenizer, arguments, secrets
        self._ends = [token for token, i in tokenizer.vocabulary().items() if i in tokenizer.eos_ids]
        seconds = arguments.timeout
        connection = {
            "base_url": server.url,
            "api_key": server.key,
            "organization": header_value("OPENAI_ORG_ID") or None,
            "project": header_value("OPENAI_PROJECT_ID") or None,
            "default_query": server.query,
            "max_retries": 0,  # another server may be better
            # pool=None: a wait for a free connection is no failure of the server.
            "timeout": openai.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS), pool=None),
        }
        try:
            self._client = openai.OpenAI(**connection)
        except Exception as error:  # proxies in the environment can raise any kind
            got = f"no client for {self.shown}: {self._line(error)}"
            raise EngineError(got, "an address and proxies it can use", "check --base-url and *_PROXY") from None

    def close(self) -> None:
        self._client.close()

    def complete(self, request: Request) -> Completion:
        """Return the server's completion. Raises Fault, or EngineError if the server can answer no request."""
        if self._arguments.api == "chat":
            ask = partial(self._client.chat.completions.with_raw_response.create, **self._chat(request))
        else:
            ask = partial(self._client.completions.with_raw_response.create, **self._completions(request))
        return self._completion(request, self._body(ask))

    def model(self) -> str:
        """Describe the model that the server has, "" if it does not tell; raise Fault if it cannot be reached."""
        ask = partial(self._client.models.with_raw_response.list, timeout=_CONNECT_SECONDS)
        try:
            return model_in(self._body(ask), self._model)
        except EngineError:  # a key for completions alone, or no list
            return ""
        except Fault as fault:
            if fault.ends is not None:
                raise
            return ""

    def _body(self, ask: Callable[[], Any]) -> Any:
        """Return the JSON of an answer; raise Fault or EngineError if there is none."""
        response = self._sent(ask)
        try:
            body = read_json(response.content)
        except Unreadable as error:
            raise self._unreadable(error, error.is_cut, _told_wait(response)) from None
        found = complaint_in(body)
        if found is not None:
            raise self._refusal(found, _told_wait(response))
        return body

    def _sent(self, ask: Callable[[], Any]) -> Any:
        """Return the HTTP response; raise Fault or EngineError if none has status 200."""
        import openai

        try:
            return ask().http_response
        except openai.APIStatusError as error:
            raise self._refusal(_complaint_of(error.response), _told_wait(error.response)) from None
        except openai.APIConnectionError as error:
            raise self._lost(error.__cause__ or error, isinstance(error, openai.APITimeoutError)) from None
        except openai.OpenAIError as error:
            raise Fault(f"the client failed: {self._line(error)}") from None

    def _common(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        return {
            "model": self._model,
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
            raise Fault("the server's answer has no choices", "no choices")
        try:
            return self._response(request, choice, body.get("usage"))
        except Malformed as fault:
            raise Fault(f"the server's answer is malformed: {self._line(fault)}") from None

    def _response(self, request: Request, choice: Mapping[str, Any], usage: Any) -> Completion:
        """Return the response in a choice.

        Raises Fault if it did not end well or has no text, and Malformed if a value has another type.
        """
        given = choice.get("token_ids") if self._arguments.api == "completions" else None
        ids = as_ids(given) if given else None
        reason = choice.get("finish_reason")
        finish = finish_of(reason)
        if reason in (None, ""):
            used = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
            finish = guessed_finish(request.sampling.max_tokens, ids, used, self._tokenizer.eos_ids)
            if finish is None:
                raise Fault("the server gave no finish_reason, and nothing else tells how its answer ended")
        if finish is None:
            told = reason.get("type") if isinstance(reason, Mapping) else reason
            shown = repr(told) if isinstance(told, (str, int)) else f"of the kind {type(told).__name__}"
            raise Fault(f"the server ended with finish_reason {self._line(shown)}")
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
            message = {"content": choice.get("text")}
        content = content_of(message)
        if content is None:
            refused = message.get("refusal")
            said = f": the model refused ({self._line(refused)})" if refused else ""
            raise Fault(f"the server's answer has no text{said}")
        return content

    def _without_end(self, text: str) -> str:
        """Return the text without the names of end tokens that some servers leave at its end.

        `with_end` adds the id, once.
        """
        bare = text.rstrip()
        end = next((end for end in self._ends if bare.endswith(end)), None)
        return text if end is None else self._without_end(bare.removesuffix(end))

    def _refusal(self, found: Complaint, wait: float) -> Exception:
        """Return a complaint as a fault, or as an EngineError if the server would answer every request so."""
        reason = self._line(found.reason or "without a reason")
        got = f"{self.shown} answered {found.status} ({reason})"
        ends = None
        if not found.is_about_content:
            if found.is_about_credit or found.is_about_quota:
                mend = "top it up, or wait until the quota is renewed, and run the same command again"
                ends = EngineError(got, "an account with credit and quota left", mend)
            elif found.status in (401, 403):
                return EngineError(got, "a key it accepts", "set OPENAI_API_KEY")
            elif found.status in (404, 405):
                mend = "check --base-url (it usually ends in /v1) and --engine-arg served_model=NAME"
                return EngineError(got, f"a server of the model {self._model!r}", mend)
        if ends is not None and not found.is_passing:
            return ends
        is_its_own = found.is_about_content or found.is_about_length
        said = f"{found.status} with an error" if found.status == 200 else f"{found.status}"
        likeness = None if is_its_own else found.likeness
        is_busy = found.status == 429
        return Fault(f"the server answered {said}: {reason}", likeness, found.is_passing, is_busy, wait, ends)

    def _unreadable(self, error: BaseException, is_passing: bool, wait: float = 0.0) -> Fault:
        reason = f"the server's answer is unreadable: {self._line(error)}"
        return Fault(reason, reason, is_passing, wait=wait)

    def _lost(self, cause: BaseException, is_late: bool) -> Exception:
        kind = type(cause).__name__
        if kind in _UNREACHABLE:
            got = f"no connection to {self.shown} ({self._line(cause)})"
            ends = EngineError(got, "a running server", "start it, or check --base-url")
            return Fault(got, is_passing=True, ends=ends)
        if kind == "LocalProtocolError":  # its message quotes the header
            variables = "OPENAI_API_KEY, OPENAI_ORG_ID and OPENAI_PROJECT_ID"
            return EngineError("a header that cannot be sent", "printable ASCII", f"set {variables} again")
        if is_late:
            return Fault(f"timeout: no answer within {self._arguments.timeout:g} s", is_passing=True)
        if kind == "DecodingError":
            return self._unreadable(cause, is_passing=True)
        reason = f"the connection was lost: {self._line(cause)}"
        return Fault(reason, reason, is_passing=True)

    def _line(self, value: Any) -> str:
        """Return one line of at most 300 characters, without keys."""
        return one_line(value, _LONGEST_REASON, self._secrets)


def _complaint_of(response: Any) -> Complaint:
    try:
        body = read_json(response.content)
    except Unreadable:
        body = response.text
    found = complaint(response.status_code, body)
    return found if found.reason else complaint(response.status_code, response.text)


def _told_wait(response: Any) -> float:
    """Return the seconds after which a server wants to be asked again, 0 if it names none (a date counts as none)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(response.headers.get(name, "")) * unit
        except ValueError:
            continue
        if seconds > 0:
            return min(seconds, _LONGEST_WAIT)
    return 0.0


def _logprobs(choice: Mapping[str, Any]) -> Any:
    """Return the logprobs of the sampled tokens, as the server gives them."""
    given = choice.get("logprobs")
    return given.get("token_logprobs") if isinstance(given, Mapping) else None
