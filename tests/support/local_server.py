"""Run a small real server that answers like OpenAI-compatible ones, scripted by the prompt's text, and its engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.openai import OpenAIEngine
from trd_cli.models import ModelRef
from trd_cli.prompting.tokens import ByteTokenizer
from trd_cli.records import Completion, Request, Sampling

TOKENIZER = ByteTokenizer()
END = TOKENIZER.end_of_turn_id
SAMPLING = Sampling(temperature=0.6, top_p=0.95, top_k=20, max_tokens=64)


@dataclass(frozen=True)
class Reply:
    """The server's answer; a `body` that is neither text nor bytes is sent as JSON.

    `drop` closes the connection instead; `raw` is sent unchanged, head and all, and then the connection is closed.
    """

    body: Any = ""
    status: int = 200
    content_type: str = "application/json"
    drop: bool = False
    raw: bytes | None = None


@dataclass(frozen=True)
class Received:
    prompt: str
    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]


@dataclass
class Server:
    """A server whose replies `answer(prompt, tries)` returns; `tries` counts the times this prompt has come, from 1.

    `models` is its list of models: None for a server without one.
    """

    answer: Callable[[str, int], Reply]
    received: list[Received] = field(default_factory=list)
    url: str = ""
    models: list[dict[str, Any]] | None = None
    over: threading.Event = field(default_factory=threading.Event)
    is_dead: bool = False
    _http: ThreadingHTTPServer | None = None

    def listen(self, port: int = 0) -> None:
        self._http, self.is_dead = _Quiet(("127.0.0.1", port), _handler(self)), False
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def die(self) -> None:
        """Refuse new connections and drop open ones at their next request or reply; `listen(port)` ends this."""
        if not self.is_dead:
            self.is_dead = True
            self._http.shutdown()
            self._http.server_close()

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].partition("/")[0])

    def prompts(self) -> list[str]:
        return [one.prompt for one in self.received]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = TOKENIZER.decode(body["prompt"][0]) if "prompt" in body else body["messages"][-1]["content"]
            server.received.append(Received(prompt, self.path, body, self.headers))
            self._send(server.answer(prompt, server.prompts().count(prompt)))

        def do_GET(self) -> None:
            body = {"object": "list", "data": server.models}
            self._send(failed(404, "no list") if server.models is None else Reply(body))

        def _send(self, reply: Reply) -> None:
            if reply.drop or reply.raw is not None or server.is_dead:
                self.wfile.write(reply.raw or b"")
                self.close_connection = True
                return
            sent = reply.body if isinstance(reply.body, bytes) else _encoded(reply.body)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(sent)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that hang up: they are part of the tests."""


@contextmanager
def servers() -> Iterator[Callable[..., Server]]:
    """Yield a function that starts a server from its reply, or from a function of the prompt and the try's number."""
    opened: list[Server] = []

    def start(answer: Callable[[str, int], Reply] | Reply) -> Server:
        opened.append(Server(answer if callable(answer) else lambda _prompt, _tries: answer))
        opened[-1].listen()
        return opened[-1]

    try:
        yield start
    finally:
        for server in opened:
            server.over.set()
            server.die()


def _encoded(body: Any) -> bytes:
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def completion(text: str = "ok", finish: Any = "stop", **choice: Any) -> Reply:
    return Reply({"id": "1", "choices": [{"index": 0, "text": text, "finish_reason": finish, **choice}]})


def exact(text: str = "ok", ids: list[int] | None = None, finish: str = "stop") -> Reply:
    ids = [*TOKENIZER.encode(text), END] if ids is None else ids
    return completion(text, finish, token_ids=ids, logprobs={"token_logprobs": [-0.5] * len(ids)})


def chat(content: str | None, finish: Any = "stop", **message: Any) -> Reply:
    full = {"role": "assistant", "content": content, **message}
    return Reply({"id": "1", "choices": [{"index": 0, "message": full, "finish_reason": finish}]})


def failed(status: int, message: str) -> Reply:
    return Reply({"error": {"message": message, "type": "scripted", "code": status}}, status)


def engine_for(url: str | Sequence[str] | None, batch_size: int | None = None, **arguments: Any) -> OpenAIEngine:
    options = EngineOptions(engine="openai", base_url=url or (), batch_size=batch_size, engine_arg=arguments)
    return OpenAIEngine(ModelRef("scripted", None, "x"), TOKENIZER, options)


def asking(prompt: str, sampling: Sampling = SAMPLING, seed: int = 7) -> Request:
    message = {"role": "user", "content": prompt}
    return Request(prompt, TOKENIZER.encode(prompt), sampling, seed, messages=(message,))


def ask(server: Server, *prompts: str, batch_size: int | None = None, **arguments: Any) -> dict[str, Completion]:
    engine = engine_for(server.url, batch_size, **arguments)
    completions = {one.request_id: one for one in engine.generate([asking(prompt) for prompt in prompts])}
    engine.close()
    return completions
