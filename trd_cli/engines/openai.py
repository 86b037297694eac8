"""The engine that asks OpenAI-compatible servers: `vllm serve`, or a hosted API.

Not covered: streaming, tools, images, several choices a request, and the chat template's arguments (in chat mode the
server renders the messages with its own).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.connection import Connection
from trd_cli.engines.server import read_arguments, read_servers
from trd_cli.engines.servers import Fault, Host, Queue, Task
from trd_cli.errors import EngineError, flag
from trd_cli.models import ModelRef
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request

_DEFAULT_IN_FLIGHT = 32
# If so many different first prompts fail alike and more are to come, the fault concerns every request: the run stops.
_FIRST_PROMPTS = 3
# Seconds after which requests are asked for again if none was ready.
_TICK = 0.1
# A thread hands on a request that has ended with its completion or its last fault, or an exception that ends all, or
# None where only the queue has changed.
_Event = tuple[Request, Completion | Fault] | Exception | None


class OpenAIEngine:
    """Send requests to the servers of `base_url` (else OPENAI_BASE_URL), with the key in OPENAI_API_KEY.

    Each server has up to `batch_size` of them at a time, and as many again are taken ahead; `servers` divides them.

    `api=completions` sends the prompt's token ids. A server that returns token ids (vllm's `return_token_ids`) makes
    exact rows, with logprobs, which are the model's own under vllm's default `--logprobs-mode raw_logprobs`. Where only
    text comes back, it is tokenized, and `ids_exact` is False. `api=chat` sends the messages; the server's
    configuration decides all that it leaves out (`top_k` 0, penalties).

    A request is tried again, at another server if there is one, after 408, 409, 429, 5xx, lost connections, timeouts, a
    body that is cut off, and an error in a body with status 200. If the last try fails, the row gets the error. A
    server that refuses the key or lacks the model (401 to 405), or has no credit, gets no more requests. One that
    cannot be reached or has used up a quota is asked again from time to time. EngineError is raised where no server is
    left, where two servers have different models, and for the same refusal of the first three prompts. No request is
    sent before the first completion is asked for.
    """

    name = "openai"

    def __init__(self, model: ModelRef, tokenizer: Tokenizer, options: EngineOptions) -> None:
        import openai

        self.version: str = openai.__version__
        arguments, servers = read_arguments(options.engine_arg), read_servers(options.base_url)
        served_model = arguments.served_model or model.name
        secrets = frozenset().union(*(server.secrets for server in servers))
        limit = options.batch_size or _DEFAULT_IN_FLIGHT
        self._retries = arguments.retries
        self._connections = {
            Host(server.shown, limit, arguments.retries): Connection(
                server, served_model, tokenizer, arguments, secrets
            )
            for server in servers
        }
        self._is_compared = False
        self._queue = Queue((), 0)

    @property
    def rows_at_once(self) -> int:
        return sum(host.limit for host in self._connections if host.is_left)

    def tokens(self) -> list[int]:
        """Return the response tokens of each of several servers so far."""
        return [host.tokens for host in self._connections] if len(self._connections) > 1 else []

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Yield one completion a request, as they finish; raise EngineError if no server can answer any.

        If the iterator is closed, requests that have not started are dropped, and the others are not waited for.
        """
        source, opening, left = _Source(requests), _Opening(), 0
        queue = self._queue = Queue(tuple(self._connections), self._retries)
        done: SimpleQueue[_Event] = SimpleQueue()
        try:
            while not opening.is_hopeless and (left or not source.has_ended):
                if source.is_ready and queue.is_short() and done.empty():
                    request = source.take()
                    if request is not None:
                        self._compare_models()
                        opening.begins(request)
                        queue.put(request)
                        left += 1
                    self._start(queue, done, time.monotonic())
                    continue
                event = self._next(queue, done, math.inf if source.has_ended else _TICK)
                source.is_ready = not source.has_ended
                if isinstance(event, Exception):
                    yield from _responses(done)
                    raise event
                if event is not None:
                    left -= 1
                    yield from opening.ends(*event)
            if opening.is_hopeless:
                raise self._all_alike(opening.reason)
            yield from opening.rest()
        finally:
            queue.close()

    def close(self) -> None:
        """Close the connections. Open requests are abandoned and not tried again."""
        self._queue.close()
        for connection in self._connections.values():
            connection.close()

    def _next(self, queue: Queue, done: SimpleQueue[_Event], seconds: float) -> _Event:
        """Wait at most so many seconds for the next event and return it, or the EngineError that no server is left."""
        now = time.monotonic()
        self._start(queue, done, now)
        seconds = min(seconds, queue.next_time(now))
        try:
            event = done.get(timeout=None if seconds == math.inf else seconds)
            if event is None:
                queue.check_left()
            return event
        except Empty:
            return None
        except EngineError as error:
            return error

    def _start(self, queue: Queue, done: SimpleQueue[_Event], now: float) -> None:
        """Start a thread for each request that a server has room for; it goes on until the server gets no other."""
        # Daemon threads, not an executor's: the interpreter joins those at exit, and an open request may take an hour.
        for host, task in queue.dispatch(now):
            Thread(target=self._work, args=(queue, host, task, done), name="trd-openai", daemon=True).start()

    def _work(self, queue: Queue, host: Host, task: Task | None, done: SimpleQueue[_Event]) -> None:
        while task is not None:
            done.put(self._try(queue, host, task))
            task = queue.take(host, time.monotonic())

    def _try(self, queue: Queue, host: Host, task: Task) -> _Event:
        sent = time.monotonic()
        try:
            self._check_model(host)
            completion = self._connections[host].complete(task.request)
        except Fault as fault:
            is_over = queue.failed(host, task, fault, sent, time.monotonic())
            return (task.request, fault) if is_over else None
        except EngineError as error:
            queue.exclude(host, error, task)
            return None
        except Exception as error:
            return error
        queue.answered(host, task, len(completion.token_ids), time.monotonic())
        return task.request, completion

    def _compare_models(self) -> None:
        """Ask each of several servers for its model; raise EngineError if two of them differ."""
        if len(self._connections) == 1 or self._is_compared:
            return
        threads = [Thread(target=self._ask_model, args=(host,), daemon=True) for host in self._connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for host in self._connections:
            if host.model is not None:
                self._check_model(host)
        self._is_compared = True

    def _check_model(self, host: Host) -> None:
        """Ask a server that has been away for its model; raise EngineError if another server has a different one."""
        if len(self._connections) > 1 and host.model is None:
            host.model = self._connections[host].model()
        other = next((each for each in self._connections if each.model and each.model != host.model), None)
        if host.model and other is not None:
            got = f"{host.shown} serves {host.model}, and {other.shown} {other.model}"
            raise EngineError(got, "one model on all servers", f"start them alike, or leave one {flag('base_url')} out")

    def _ask_model(self, host: Host) -> None:
        # One that cannot be reached now is asked before its first request.
        with contextlib.suppress(Fault):
            host.model = self._connections[host].model()

    def _all_alike(self, reason: str) -> EngineError:
        asked = " and ".join(host.shown for host in self._connections)
        got = f"{asked} did not answer one of the first {_FIRST_PROMPTS} prompts, each time the same: {reason}"
        mend = "change what it names (an option, --engine-arg, --base-url, the server's own settings) and run the same command again"
        return EngineError(got, "requests that it answers", mend)


class _Source:
    """Take requests from an iterator that gives None if none is ready yet."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._requests = iter(requests)
        self.is_ready, self.has_ended = True, False

    def take(self) -> Request | None:
        """Return the next request, or None if there is none now; it is then not ready."""
        request = next(self._requests, self)
        self.has_ended = request is self
        self.is_ready = isinstance(request, Request)
        return request if self.is_ready else None


class _Opening:
    """Hold back the errors of the first requests until one is answered or fails for another reason.

    If the first different prompts all fail alike, all others would too. Then these are no errors of rows, and none is
    yielded.
    """

    def __init__(self) -> None:
        self._prompts: set[tuple[int, ...]] = set()
        self._waiting: set[str] = set()
        self._held: list[Completion] = []
        self._is_over = self._is_followed = False
        self._likeness: str | None = None
        self.reason = ""

    @property
    def is_hopeless(self) -> bool:
        """Return True if all first prompts failed alike, and there are others."""
        return self._is_followed and not self._is_over and not self._waiting

    def begins(self, request: Request) -> None:
        """Record that a request is sent."""
        prompt = tuple(request.prompt_token_ids)
        if self._is_over or self._is_followed or prompt in self._prompts:
            return
        if len(self._prompts) == _FIRST_PROMPTS:
            self._is_followed = True
        else:
            self._prompts.add(prompt)
            self._waiting.add(request.request_id)

    def ends(self, request: Request, answer: Completion | Fault) -> list[Completion]:
        """Return the completions that may be yielded now, perhaps with an error of this request among them."""
        if isinstance(answer, Completion):
            return [*self.rest(), answer]
        failed = Completion(request.request_id, error=answer.reason)
        if self._is_over or answer.likeness is None or self._likeness not in (None, answer.likeness):
            return [*self.rest(), failed]
        self._likeness, self.reason = answer.likeness, answer.reason
        self._held.append(failed)
        self._waiting.discard(request.request_id)
        return []

    def rest(self) -> list[Completion]:
        """Return the errors that were held back; from now on none is."""
        self._is_over, held, self._held = True, self._held, []
        return held


def _responses(done: SimpleQueue[_Event]) -> Iterator[Completion]:
    """Yield the responses that have arrived."""
    with contextlib.suppress(Empty):
        while True:
            event = done.get_nowait()
            if isinstance(event, tuple) and isinstance(event[1], Completion):
                yield event[1]
