"""Keys reach no row, no file and no message: neither OPENAI_API_KEY's nor one in an address or an argument."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result
from support.local_server import Received, Reply, Server, exact, failed
from support.sets import rows_of
from support.tiny import write_bare_model

from trd_cli.errors import EngineError, InputError
from trd_cli.redaction import one_line, scrubbed, without_secrets

ROOT = Path(__file__).parent.parent
Trd = Callable[..., Result]
KEY = "sk-test-5up3rs3cr3tk3y0123456789"
PASSWORD = "pa55w0rd"
SENT = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
ASKING = ("--engine", "openai", "--engine-arg", "retries=0", "--max-errors", 1000, "--max-tokens", 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bare_model(tmp_path_factory.mktemp("model"))


def assert_hidden(secrets: tuple[str, ...], result: Result, out: Path) -> None:
    """Assert that no secret, nor half of one, is in the output, in a file, or in a row."""
    shown = result.stdout + result.stderr
    files = [path for path in out.rglob("*") if path.is_file()]
    rows = rows_of(out) if list(out.glob("shard-*")) else []
    for secret in secrets:
        for part in (secret, secret[: len(secret) // 2 + 4]):
            assert part not in shown
            assert [path for path in files if part.encode() in path.read_bytes()] == []
            assert part not in "".join(map(repr, rows))


def at(server: Server, user: str = "", query: str = "") -> str:
    return server.url.replace("://", f"://{user}") + query


def echo(status: int, form: str) -> Callable[[list[Received]], Reply]:
    """Return the reply of a careless server: the header, or the query, that it got."""

    def reply(received: list[Received]) -> Reply:
        last = received[-1]
        said = f"{last.headers['Authorization']} at {last.path}"
        bodies = {
            "an error": {"error": {"message": f"refused: {said}"}},
            "a detail": {"detail": [{"loc": ["header", "authorization"], "msg": said, "input": said}]},
            "text": f"refused: {said}",
            "long": f"{'x' * 260} {said} {'y' * 300}",
            "a reason to end": {"choices": [{"text": "", "finish_reason": said}]},
            "a part": {"choices": [{"text": [{"type": said}], "finish_reason": "stop"}]},
            "ids": {"choices": [{"text": "", "token_ids": last.headers["Authorization"]}]},
        }
        return Reply(bodies[form], status)

    return reply


ECHOES = [
    *((status, "an error") for status in (200, 400, 401, 402, 403, 404, 422, 429, 500)),
    *((400, form) for form in ("a detail", "text", "long")),
    (200, "text"),
    (200, "a reason to end"),
    (200, "a part"),
    (200, "ids"),
]
HELD = [(held, 401, "an error") for held in ("an address", "a query")]
HELD += [(held, 400, "long") for held in ("an address", "a query")]


@pytest.mark.parametrize(("held", "status", "form"), [*(("a variable", *e) for e in ECHOES), *HELD])
def test_a_server_that_repeats_the_key_puts_it_nowhere(
    serve,
    model: Path,
    problems: Path,
    tmp_path: Path,
    trd: Trd,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    form: str,
    held: str,
) -> None:
    server = serve(lambda _prompt, _tries: echo(status, form)(server.received))
    monkeypatch.setenv("OPENAI_API_KEY", KEY if held == "a variable" else "")
    url = {
        "a variable": server.url,
        "an address": at(server, f"user:{PASSWORD}@"),
        "a query": at(server, query=f"?api_key={KEY}"),
    }[held]
    out = tmp_path / "out"
    result = trd("sample", "-m", model, "-p", problems, "--limit", 2, *ASKING, "--base-url", url, "--out", out)
    assert server.received
    headers = [one.headers["Authorization"] for one in server.received]
    assert headers[0] == {"a variable": f"Bearer {KEY}", "an address": f"Basic {SENT}"}.get(held, "Bearer none")
    assert (f"api_key={KEY}" in server.received[0].path) == (held == "a query")
    assert result.exit_code in (0, 1)
    assert_hidden((KEY, PASSWORD, SENT), result, out)
    if result.exit_code:
        assert len([line for line in result.stderr.splitlines() if "error:" in line]) == 1
    else:
        assert all(row.error for row in rows_of(out))


@pytest.mark.parametrize("around", ["{}\n", " {}", "\t{}\r\n", "{}\u2028", "{}\x1f"])
def test_space_around_a_key_is_left_out(
    serve, model: Path, problems: Path, tmp_path: Path, ok: Trd, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", around.format(KEY))
    server = serve(exact())
    ok("sample", "-m", model, "-p", problems, *ASKING, "--base-url", server.url, "--out", tmp_path / "out")
    assert {one.headers["Authorization"] for one in server.received} == {f"Bearer {KEY}"}
    assert {row.error for row in rows_of(tmp_path / "out")} == {None}


UNFIT = {
    "a space": "a b",
    "a line break": "a\nb",
    "a control character": "a\x07b",
    "a letter that is not ASCII": "a\u00e9b",
    "a dash that a word processor made": "a\u2013b",
    "a space of no width": "ab\u200b",
}


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"])
@pytest.mark.parametrize("name", UNFIT)
def test_a_key_that_no_header_can_carry_is_refused_in_one_line_before_anything_is_sent(
    serve,
    model: Path,
    problems: Path,
    tmp_path: Path,
    trd: Trd,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, UNFIT[name].replace("a", KEY).replace("b", PASSWORD))
    server, out = serve(exact()), tmp_path / "out"
    result = trd("sample", "-m", model, "-p", problems, *ASKING, "--base-url", server.url, "--out", out)
    assert result.exit_code == 1
    assert server.received == []
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"trd sample: error: {variable} holds a ")
    assert last.endswith(f"set {variable} again")
    assert_hidden((KEY, PASSWORD), result, out)


def test_an_address_with_a_password_is_shown_without_it_where_no_server_is(
    model: Path, problems: Path, tmp_path: Path, trd: Trd
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_at_once:
        port = closed_at_once.getsockname()[1]
    out = tmp_path / "out"
    for user in (f"user:{PASSWORD}@", f"{KEY}@"):
        url = f"http://{user}127.0.0.1:{port}/v1?token={KEY}"
        other = url.replace("/v1", "/v2")
        servers = ("--base-url", url, "--base-url", other)
        result = trd("sample", "-m", model, "-p", problems, *ASKING, *servers, "--out", out)
        assert result.exit_code == 1
        assert f"no connection to http://***@127.0.0.1:{port}/v1 " in result.stderr
        assert_hidden((KEY, PASSWORD), result, out)
        base_url = json.loads((out / "run.json").read_text())["config"]["base_url"]
        assert base_url == [f"http://***@127.0.0.1:{port}/{v}?token=***" for v in ("v1", "v2")]


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{PASSWORD}/x@127.0.0.1:9/v1",
        f"http://user:{PASSWORD}#x@127.0.0.1:9/v1",
        f"http://user:{PASSWORD}@",
        f"http://user:{PASSWORD}@[::1/v1",
        f"http://user:{PASSWORD}@127.0.0.1:port/v1",
        f"user:{PASSWORD}@127.0.0.1:9/v1",
        f"http://user:{PASSWORD}@127.0.0.1:9 /v1",
        f"http://user:{PASSWORD}@127.0.0.1:9/v\x071",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(
    model: Path, problems: Path, tmp_path: Path, trd: Trd, url: str
) -> None:
    result = trd(*("sample", "-m", model, "-p", problems, *ASKING, "--base-url", url, "--out", tmp_path / "out"))
    assert result.exit_code == 1
    assert "the server '" in result.stderr
    assert_hidden((PASSWORD,), result, tmp_path / "out")


def test_an_address_in_the_environment_may_end_in_a_line_break(
    serve, model: Path, problems: Path, tmp_path: Path, ok: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(exact())
    monkeypatch.setenv("OPENAI_BASE_URL", at(server, f"user:{PASSWORD}@") + "\n")
    result = ok("sample", "-m", model, "-p", problems, *ASKING, "--out", tmp_path / "out")
    assert server.received[0].headers["Authorization"] == f"Basic {SENT}"
    assert_hidden((PASSWORD, SENT), result, tmp_path / "out")


@pytest.mark.parametrize(
    ("engine", "argument"),
    [
        ("openai", f"api_key={KEY}"),
        ("openai", f"timeout={KEY}"),
        ("openai", KEY),
        ("openai", f'headers={{"api_key": "{KEY}"}}'),
        ("scripted", f"api_key={KEY}"),
        ("transformers", f"token={KEY}"),
        ("transformers", f"hf_token={KEY}"),
    ],
)
def test_an_engine_argument_that_is_a_key_is_shown_and_written_nowhere(
    model: Path, problems: Path, tmp_path: Path, trd: Trd, engine: str, argument: str
) -> None:
    name = "scripted" if engine == "scripted" else model
    how = ("--engine", engine, "--base-url", "http://127.0.0.1:9/v1", "--engine-arg", argument)
    result = trd("sample", "-m", name, "-p", problems, *how, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert_hidden((KEY,), result, tmp_path / "out")


def test_another_token_for_the_same_model_does_not_change_a_set(problems: Path, tmp_path: Path) -> None:
    from trd_cli.config.generating import SampleConfig

    first, second, other = (
        SampleConfig(problems=str(problems), engine_arg=arguments).identity()
        for arguments in ({"token": KEY}, {"token": PASSWORD}, {"eos_token": "x"})
    )
    assert first == second != other
    assert first["engine_arg"] == {"token": "***"}
    assert other["engine_arg"] == {"eos_token": "x"}


def test_a_runs_directory_holds_no_key_of_its_recipe_and_its_stages_have_it(serve, model: Path, tmp_path: Path) -> None:
    def answer(_prompt: str, tries: int) -> Reply:
        said = server.received[-1].headers["Authorization"]
        return exact() if len(server.received) % 2 else failed(400, f"refused: {said}")

    server = serve(answer)
    url = at(server, f"user:{PASSWORD}@", f"?api_key={KEY}")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'setting = "opsd"\nstudent = "{model}"\n[problems]\nmake = {{kind = "arithmetic", n = 4}}\n'
        f'[sample]\nengine = "openai"\nbase_url = "{url}"\nmax_errors = 100\nbatch_size = 1\n'
        '[sample.engine_arg]\nretries = 0\n[arms.trd]\nmethod = "trd"\n'
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "trd_cli", "run", str(recipe), "--until", "sample", "--out", str(out)]
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OPENAI_API_KEY": KEY}, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert {one.headers["Authorization"] for one in server.received} == {f"Basic {SENT}"}
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"recipe.toml", "graph.json", "run.json"} <= {path.name for path in files}
    assert [path for path in files if path.suffix == ".log"]
    for secret in (KEY, PASSWORD, SENT):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
        assert secret not in ran.stdout + ran.stderr
        assert not any(secret in repr(row) for set_ in (out / "nodes").glob("sample-*") for row in rows_of(set_))
    [rows] = [rows_of(set_) for set_ in (out / "nodes").glob("sample-*")]
    assert {row.error for row in rows} == {None, "the server answered 400: refused: Basic ***"}


@pytest.mark.parametrize("token", ["hf_5up3rs3cr3tt0k3n", "hf_5up3rs3cr3tt0k3n\u00e9"], ids=["ASCII", "another"])
def test_a_hub_that_repeats_the_token_puts_it_nowhere(problems: Path, tmp_path: Path, token: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            said = f"who is {self.headers['Authorization']}?"
            asked.append(said)
            self.send_response(401)
            self.send_header("X-Error-Message", said)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = answer

        def log_message(self, *_: object) -> None: ...

    asked: list[str] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{http.server_port}", "HF_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [sys.executable, "-m", "trd_cli", "sample", "-m", "owner/model", "-p", str(problems)],
        cwd=ROOT,
        env=os.environ | hub | {"HF_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=120,
    )
    http.shutdown()
    http.server_close()
    assert any(token in said for said in asked) or not token.isascii()
    assert ran.returncode == 1
    assert "owner/model" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert token[:19] not in ran.stdout + ran.stderr


# The owner of the rule


def test_secrets_are_known_by_value_and_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "v4lu3-0f-4-k3y\n")
    monkeypatch.setenv("MODE", "v4lu3-0f-4-m0d3")
    assert scrubbed("it is v4lu3-0f-4-k3y and v4lu3-0f-4-m0d3") == "it is *** and v4lu3-0f-4-m0d3"
    assert scrubbed("pass 'word' but no wordy", ["word"]) == "pass '***' but no wordy"
    assert scrubbed("see http://u:p@host/v1?key=abc&n=1") == "see http://***@host/v1?key=***&n=1"
    assert scrubbed("api_key=abc max_tokens=5 eos_token=x") == "api_key=*** max_tokens=5 eos_token=x"
    assert scrubbed("wrote abc@4 and def") == "wrote abc@4 and def"
    assert scrubbed("arithmetic:n=20.scores.avg@2.low") == "arithmetic:n=20.scores.avg@2.low"
    assert scrubbed("there is none", ["none"]) == "there is none"


def test_a_line_is_cut_after_its_secrets_are_hidden() -> None:
    assert one_line("a " + KEY * 3, 10, [KEY]) == "a *******…"
    assert one_line(f"{'x' * 20} {KEY}", 24, [KEY]) == "x" * 20 + " ***"


def test_only_secrets_of_a_record_are_hidden() -> None:
    record = {"api_key": "abc", "token": True, "max_tokens": 5, "list": ["http://u:p@h/", None], "key": "k"}
    hidden = {"api_key": "***", "token": True, "max_tokens": 5, "list": ["http://***@h/", None], "key": "k"}
    assert without_secrets(record) == hidden


def test_an_error_for_people_hides_what_it_quotes() -> None:
    error = InputError(f"--x token={KEY}", "http://u:p@h/v1", f"ask {KEY}")
    assert str(error) == "--x token=***; expected http://***@h/v1; ask ***"
    assert EngineError(error.got, error.expected, error.mend).args == error.args
