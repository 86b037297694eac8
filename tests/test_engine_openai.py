"""The openai engine against a small real server on this machine, scripted by the prompt's text."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata

import pytest
from support.local_server import (
    END,
    SAMPLING,
    TOKENIZER,
    Reply,
    ask,
    asking,
    chat,
    completion,
    engine_for,
    exact,
    failed,
)

from trd_cli.errors import EngineError
from trd_cli.records import Completion, Request, Sampling

# Requests


def test_the_prompt_is_sent_as_token_ids_with_the_rows_own_sampling_and_seed(serve):
    server = serve(exact())
    largest = 2**63 - 1
    request = asking("hello", Sampling(temperature=0.7, top_p=0.8, top_k=5, max_tokens=9), seed=largest)
    list(engine_for(server.url).generate([request]))
    (sent,) = server.received
    assert sent.path == "/v1/completions"
    assert sent.body["model"] == "scripted"
    assert sent.body["prompt"] == [TOKENIZER.encode("hello")]
    expected = {"temperature": 0.7, "top_p": 0.8, "top_k": 5, "max_tokens": 9, "seed": largest}
    assert {key: sent.body[key] for key in expected} == expected
    assert sent.body["return_token_ids"] is True
    assert sent.body["stop_token_ids"] == sorted(TOKENIZER.eos_ids)
    assert sent.body["logprobs"] == 0


def test_filters_that_are_off_are_switched_off_on_the_server_too(serve):
    server = serve(exact())
    list(engine_for(server.url).generate([asking("a", Sampling(1.0, 1.0, 0, 8))]))
    body = server.received[0].body
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0.0, 1.0)
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.0, 0.0)


def test_chat_sends_the_messages_and_no_extension_of_vllm_but_top_k(serve):
    server = serve(chat("hi"))
    unfiltered = asking("b", Sampling(1.0, 1.0, 0, 8))
    list(engine_for(server.url, batch_size=1, api="chat").generate([asking("a"), unfiltered]))
    filtered_sent, unfiltered_sent = server.received
    assert filtered_sent.path == "/v1/chat/completions"
    assert filtered_sent.body["messages"] == [{"role": "user", "content": "a"}]
    standard = {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
    assert set(filtered_sent.body) == standard | {"top_k"}
    assert set(unfiltered_sent.body) == standard


def test_served_model_replaces_the_models_name(serve):
    server = serve(exact())
    ask(server, "a", served_model="qwen")
    assert server.received[0].body["model"] == "qwen"


def test_logprobs_that_are_not_wanted_are_not_asked_for(serve):
    server = serve(completion("ok", token_ids=[*TOKENIZER.encode("ok"), END]))
    answer = ask(server, "a", logprobs=False)["a"]
    assert "logprobs" not in server.received[0].body
    assert answer.ids_exact
    assert answer.logprobs is None


@pytest.mark.parametrize(("key", "sent"), [("sk-mine", "Bearer sk-mine"), ("", "Bearer none")])
def test_the_key_comes_from_the_environment_and_may_be_absent(serve, monkeypatch, key, sent):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server = serve(exact())
    ask(server, "a")
    assert server.received[0].headers["Authorization"] == sent


def test_the_server_may_be_named_by_the_environment(serve, monkeypatch):
    server = serve(exact("found"))
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    (answer,) = engine_for(None).generate([asking("a")])
    assert answer.text == "found"


# Answers


def test_returned_token_ids_are_kept_exactly_with_their_logprobs(serve):
    ids = [300, 301, END]  # the text would encode to other ids
    answer = ask(serve(exact("ok", ids)), "a")["a"]
    assert answer == Completion("a", "ok", ids, [-0.5, -0.5, -0.5], "stop", ids_exact=True)


def test_a_response_cut_at_its_length_gets_no_end_of_turn(serve):
    answer = ask(serve(exact("ok", [300, 301], finish="length")), "a")["a"]
    assert answer == Completion("a", "ok", [300, 301], [-0.5, -0.5], "length", ids_exact=True)


def test_an_end_of_turn_the_server_left_out_is_added_and_costs_the_logprobs(serve):
    answer = ask(serve(exact("ok", [300, 301])), "a")["a"]
    assert answer == Completion("a", "ok", [300, 301, END], None, "stop", ids_exact=True)


@pytest.mark.parametrize("logprobs", [[-0.5], [-0.5, None, -0.5], [], None])
def test_logprobs_that_are_not_one_a_token_are_dropped(serve, logprobs):
    reply = completion("ok", token_ids=[1, 2, END], logprobs={"token_logprobs": logprobs})
    answer = ask(serve(reply), "a")["a"]
    assert (answer.token_ids, answer.logprobs) == ([1, 2, END], None)


@pytest.mark.parametrize(("finish", "tail"), [("stop", [END]), ("length", [])])
def test_text_without_token_ids_is_tokenised_here_and_marked_inexact(serve, finish, tail):
    reply = completion("né", finish, logprobs={"token_logprobs": [-0.5]})
    answer = ask(serve(reply), "a")["a"]
    assert answer == Completion("a", "né", [*TOKENIZER.encode("né"), *tail], None, finish, ids_exact=False)


def test_a_chat_answer_is_tokenised_here_and_marked_inexact(serve):
    answer = ask(serve(chat("four")), "a", api="chat")["a"]
    assert answer == Completion("a", "four", [*TOKENIZER.encode("four"), END], None, "stop", ids_exact=False)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_that_a_server_splits_off_is_put_back_before_the_answer(serve, key):
    answer = ask(serve(chat("4", **{key: "2+2"})), "a", api="chat")["a"]
    assert answer.text == "<think>\n2+2\n</think>\n\n4"
    assert answer.token_ids == [*TOKENIZER.encode(answer.text), END]


def test_reasoning_cut_at_its_length_stays_open(serve):
    answer = ask(serve(chat(None, "length", reasoning="2+")), "a", api="chat")["a"]
    assert (answer.text, answer.finish_reason) == ("<think>\n2+", "length")


@pytest.mark.parametrize(
    ("arguments", "reply", "error"),
    [
        ({}, completion("no", "content_filter"), "the server ended with finish_reason 'content_filter'"),
        ({"api": "chat"}, chat(None, "tool_calls"), "the server ended with finish_reason 'tool_calls'"),
        ({"api": "chat"}, chat(None), "the server's answer has no text"),
        ({}, Reply({"id": "1", "choices": []}), "the server's answer has no choices"),
        ({}, Reply({"id": "1", "choices": ["hi"]}), "the server's answer has no choices"),
        ({}, Reply([5]), "the server's answer has no choices"),
        ({}, Reply({"detail": "?"}), "the server answered 200 with an error: ?"),
        (
            {},
            Reply("<html>welcome</html>", content_type="text/html"),
            "the server's answer is unreadable: not JSON: <html>welcome</html>",
        ),
    ],
)
def test_an_answer_that_is_no_response_becomes_an_error_row(serve, arguments, reply, error):
    assert ask(serve(reply), "a", retries=0, **arguments)["a"] == Completion("a", error=error)


def test_an_answer_that_is_broken_json_becomes_an_error_row(serve):
    answer = ask(serve(Reply('{"choices": [')), "a", retries=0)["a"]
    assert answer.text is None
    assert answer.error.startswith("the server's answer is unreadable: ")


# Failures


def test_a_busy_server_is_asked_again(serve):
    server = serve(lambda _prompt, tries: exact() if tries == 3 else failed(429, "busy"))
    assert ask(server, "a", retries=2)["a"].text == "ok"
    assert server.prompts() == ["a", "a", "a"]


def test_a_request_that_always_fails_becomes_an_error_row_and_the_others_finish(serve):
    server = serve(lambda prompt, _tries: failed(500, "out\nof luck") if prompt == "bad" else exact(prompt))
    answers = ask(server, "a", "bad", "c", retries=1)
    assert answers["bad"] == Completion("bad", error="the server answered 500: out of luck")
    assert (answers["a"].text, answers["c"].text) == ("a", "c")
    assert server.prompts().count("bad") == 2


def test_a_request_the_server_refuses_becomes_an_error_row_at_once(serve):
    server = serve(failed(400, "maximum context length is 8"))
    assert ask(server, "a")["a"].error == "the server answered 400: maximum context length is 8"
    assert len(server.received) == 1


def test_a_long_complaint_is_cut_to_one_short_line(serve):
    error = ask(serve(failed(422, "x" * 5000)), "a")["a"].error
    assert len(error) < 400
    assert error.endswith("x…")


def test_a_timed_out_request_becomes_an_error_row(serve):
    def answer(prompt: str, _tries: int) -> Reply:
        if prompt == "slow":
            server.over.wait(20)
        return exact(prompt)

    server = serve(answer)
    answers = ask(server, "slow", "quick", timeout=0.3, retries=0)
    assert answers["slow"] == Completion("slow", error="timeout: no answer within 0.3 s")
    assert answers["quick"].text == "quick"


def test_a_connection_lost_on_one_request_becomes_an_error_row(serve):
    server = serve(lambda prompt, _tries: Reply("", drop=True) if prompt == "bad" else exact(prompt))
    answers = ask(server, "bad", "good", retries=0)
    assert answers["bad"].error.startswith("the connection was lost: ")
    assert answers["good"].text == "good"


def test_a_wrong_model_stops_the_run_and_what_was_finished_is_handed_on(serve):
    server = serve(lambda prompt, _tries: failed(404, "no such model") if prompt == "b" else exact(prompt))
    running = engine_for(server.url, batch_size=1).generate([asking(prompt) for prompt in "abcdef"])
    assert next(running).text == "a"
    with pytest.raises(EngineError) as raised:
        list(running)
    assert f"{server.url} answered 404 (no such model)" in str(raised.value)
    assert "served_model" in raised.value.mend


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_stops_the_run(serve, status):
    with pytest.raises(EngineError, match=f"answered {status} .*OPENAI_API_KEY"):
        ask(serve(failed(status, "who are you?")), "a")


def test_a_server_that_is_not_there_stops_the_run():
    with socket.create_server(("127.0.0.1", 0)) as closed_at_once:
        gone = f"http://127.0.0.1:{closed_at_once.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match=f"no connection to {gone}.*expected a running server"):
        list(engine_for(gone, retries=0).generate([asking("a")]))


def test_a_request_that_cannot_be_sent_is_raised_as_the_fault_it_is(serve):
    faulty = Request("a", [object()], SAMPLING, seed=0)
    with pytest.raises(TypeError):
        list(engine_for(serve(exact()).url).generate([faulty]))


# Many at once


def test_as_many_requests_are_open_as_batch_size_allows_and_never_more(serve):
    together, lock = threading.Barrier(3), threading.Lock()
    now_open = most_open = 0

    def answer(prompt: str, _tries: int) -> Reply:
        nonlocal now_open, most_open
        with lock:
            now_open += 1
            most_open = max(most_open, now_open)
        together.wait(10)  # breaks and fails the test unless three are open at a time
        with lock:
            now_open -= 1
        return exact(prompt)

    answers = ask(serve(answer), *"abcdefghi", batch_size=3)
    assert {answer.text for answer in answers.values()} == set("abcdefghi")
    assert most_open == 3


def test_completions_are_handed_on_as_they_finish(serve):
    def answer(prompt: str, _tries: int) -> Reply:
        if prompt == "slow":
            first_came.wait(10)
        return exact(prompt)

    first_came = threading.Event()
    running = engine_for(serve(answer).url, batch_size=2).generate([asking(p) for p in ("slow", "a", "b")])
    assert [next(running).text, next(running).text] == ["a", "b"]
    first_came.set()
    assert [one.text for one in running] == ["slow"]


def test_closing_early_starts_no_more_and_waits_for_nothing(serve):
    def answer(prompt: str, _tries: int) -> Reply:
        if prompt == "slow":
            held.release()
            server.over.wait(20)
        elif prompt == "a":
            are_waiting.wait(20)  # an engine that has an answer hands it on before it takes another request
        return exact(prompt)

    def requests() -> Iterator[Request]:
        yield from map(asking, ("a", "slow", "slow"))
        are_waiting.set()
        yield from (asking(f"late {i}") for i in range(50))

    held, are_waiting = threading.Semaphore(0), threading.Event()
    server = serve(answer)
    engine = engine_for(server.url, batch_size=2)
    running = engine.generate(requests())
    assert next(running).text == "a"
    assert held.acquire(timeout=10)
    assert held.acquire(timeout=10)  # both workers now wait for the server
    started = time.monotonic()
    running.close()
    engine.close()
    assert time.monotonic() - started < 1
    server.over.set()
    time.sleep(0.1)
    assert sorted(set(server.prompts())) == ["a", "slow"]


_PROGRAM = """
from trd_cli.config.generating import EngineOptions
from trd_cli.engines.openai import OpenAIEngine
from trd_cli.models import ModelRef
from trd_cli.records import Request, Sampling
from trd_cli.prompting.tokens import ByteTokenizer

tokenizer = ByteTokenizer()
engine = OpenAIEngine(ModelRef("scripted", None, "x"), tokenizer, EngineOptions(base_url="{url}"))
requests = [Request(p, tokenizer.encode(p), Sampling(1.0, 1.0, 0, 8), seed=0) for p in ("slow", "quick")]
running = engine.generate(requests)
print(next(running).text)
raise KeyboardInterrupt
"""


def test_the_program_ends_while_a_request_is_still_open(serve):
    def answer(prompt: str, _tries: int) -> Reply:
        if prompt == "slow":
            server.over.wait(30)
        return exact(prompt)

    server = serve(answer)
    program = _PROGRAM.format(url=server.url)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=25)
    assert ended.stdout == "quick\n"
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")
    assert not server.over.is_set()


def test_no_requests_make_no_completions():
    assert list(engine_for("http://127.0.0.1:9/v1").generate([])) == []


# Settings


def test_the_engine_names_itself_and_the_package_that_does_the_work():
    engine = engine_for("http://127.0.0.1:9/v1")
    assert (engine.name, engine.version) == ("openai", metadata.version("openai"))


def test_an_engine_without_a_server_is_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(EngineError, match=r"without a server.*give --base-url"):
        engine_for(None)


def test_a_server_without_a_scheme_is_refused_before_anything_is_sent():
    with pytest.raises(EngineError, match=r"'localhost:8000/v1'.*http://"):
        engine_for("localhost:8000/v1")


def test_an_unknown_engine_argument_is_refused_and_the_known_ones_are_named():
    with pytest.raises(EngineError, match=r"temprature.*api, served_model, timeout, retries, logprobs"):
        engine_for("http://127.0.0.1:9/v1", temprature=1)


@pytest.mark.parametrize(
    ("key", "value"), [("api", "responses"), ("timeout", 0), ("timeout", "soon"), ("retries", -1), ("logprobs", 3)]
)
def test_an_engine_argument_of_the_wrong_kind_is_refused_by_name(key, value):
    with pytest.raises(EngineError, match=f"--engine-arg {key}={value!r}; expected .*; change {key}"):
        engine_for("http://127.0.0.1:9/v1", **{key: value})
