"""Replies of other servers: reasons to end, complaints, bodies that are cut, and faults of every request."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
from support.tiny import END as TINY_END
from support.tiny import OTHER_END, set_eos, write_tokenizer

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.openai import OpenAIEngine
from trd_cli.errors import EngineError
from trd_cli.models import ModelRef
from trd_cli.prompting.tokens import HubTokenizer
from trd_cli.records import Completion

# Reasons to end

STOPS = [
    "stop",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
    "STOP",
    "FinishReason.STOP",
    "COMPLETE",
    "eosFound",
    "end_of_text",
    "endoftext",
]
LENGTHS = [
    "length",
    "max_tokens",
    "MAX_TOKENS",
    "model_length",
    "max_new_tokens",
    "token_limit",
    "FinishReason.MAX_TOKENS",
]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *((reason, "stop") for reason in [*STOPS, {"type": "stop", "matched": 2}]),
        *((reason, "length") for reason in [*LENGTHS, {"type": "length", "length": 64}]),
    ],
)
def test_a_reason_to_end_is_understood_whatever_the_server_calls_it(serve, reason, finish):
    answer = ask(serve(completion("ok", reason)), "a")["a"]
    ids = [*TOKENIZER.encode("ok"), *([END] if finish == "stop" else [])]
    assert answer == Completion("a", "ok", ids, None, finish, ids_exact=False)


REFUSALS = {
    **{f"{r}": (r, repr(r)) for r in ("content_filter", "SAFETY", "refusal", "tool_calls", "pause_turn", 7)},
    "an abort": ({"type": "abort", "message": "gone"}, "'abort'"),
    "a list": (["stop"], "of the kind list"),
    "an object": ({"type": {}}, "of the kind dict"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_reason_that_is_no_end_of_a_response_is_the_rows_error(serve, name):
    reason, shown = REFUSALS[name]
    answer = ask(serve(completion("no", reason)), "a")["a"]
    assert answer == Completion("a", error=f"the server ended with finish_reason {shown}")


@pytest.mark.parametrize("nothing", [None, ""])
@pytest.mark.parametrize(
    ("ids", "used", "finish"),
    [
        ([1, 2, END], None, "stop"),
        ([1] * SAMPLING.max_tokens, None, "length"),
        ([1, 2], 2, None),
        (None, SAMPLING.max_tokens, "length"),
        (None, 5, "stop"),
        (None, 0, None),
        (None, "5", None),
        (None, None, None),
    ],
)
def test_without_a_reason_the_tokens_tell_or_the_row_is_an_error(serve, nothing, ids, used, finish):
    reply = completion("ok", nothing, **({"token_ids": ids} if ids else {}))
    reply.body["usage"] = None if used is None else {"completion_tokens": used}
    answer = ask(serve(reply), "a")["a"]
    if finish is None:
        error = "the server gave no finish_reason, and nothing else tells how its answer ended"
        assert answer == Completion("a", error=error)
    else:
        assert (answer.finish_reason, answer.text, answer.error) == (finish, "ok", None)
        assert (answer.token_ids[-1] == END) == (finish == "stop")
        assert answer.token_ids.count(END) == (finish == "stop")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HubTokenizer:
    """Return a tokenizer that knows two ends of a response."""
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    set_eos(directory, [TINY_END, OTHER_END])
    return HubTokenizer(directory)


def ask_with(tokenizer: HubTokenizer, url: str, **arguments: Any) -> Completion:
    options = EngineOptions(engine="openai", base_url=url, engine_arg=arguments)
    engine = OpenAIEngine(ModelRef("scripted", None, "x"), tokenizer, options)
    (answer,) = engine.generate([asking("a")])
    engine.close()
    return answer


@pytest.mark.parametrize("end", [TINY_END, OTHER_END])
def test_exact_ids_that_end_in_any_known_end_get_no_second_one(serve, tokenizer, end):
    reply = completion("ok", "stop", token_ids=[7, 8, end], logprobs={"token_logprobs": [-1.0, -2.0, -3.0]})
    answer = ask_with(tokenizer, serve(reply).url)
    assert (answer.token_ids, answer.logprobs) == ([7, 8, end], [-1.0, -2.0, -3.0])


@pytest.mark.parametrize("tail", ["", "<|end|>", "<|eos|>", "<|end|>\n", "<|end|><|eos|>"])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_text_that_stopped_gets_one_end_of_turn_also_where_the_server_left_its_name_in(serve, tokenizer, tail, api):
    say = chat if api == "chat" else completion
    answer = ask_with(tokenizer, serve(say(f"the end{tail}")).url, api=api)
    assert (answer.text, answer.token_ids) == ("the end", [*tokenizer.encode("the end"), TINY_END])


# Complaints

BODIES = {
    "OpenAI": (400, {"error": {"message": "bad top_k", "type": "invalid_request_error", "code": None}}),
    "vLLM": (400, {"object": "error", "message": "bad top_k", "type": "BadRequestError", "param": None, "code": 400}),
    "TGI": (422, {"error": "bad top_k", "error_type": "validation"}),
    "FastAPI, a text": (422, {"detail": "bad top_k"}),
    "Google": (400, [{"error": {"code": 400, "message": "bad top_k", "status": "INVALID_ARGUMENT"}}]),
    "Anthropic": (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "bad top_k"}}),
    "an error in a message": (400, {"error": {"error": {"message": "bad top_k"}}}),
    "only a message": (400, {"message": "bad top_k"}),
    "plain text": (400, "bad top_k"),
    "a page": (400, "<html><body>\n<h1>bad top_k</h1></body></html>"),
    "with status 200": (200, {"error": {"message": "bad top_k", "code": 400}}),
    "in the choice": (200, {"choices": [{"text": "", "error": {"message": "bad top_k", "code": 400}}]}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_complaint_is_told_in_whatever_form_it_comes(serve, name):
    status, body = BODIES[name]
    server = serve(Reply(body, status))
    said = 422 if status == 422 else 400
    assert ask(server, "a")["a"] == Completion("a", error=f"the server answered {said}: bad top_k")
    assert len(server.received) == 1, "what is wrong with a request is not asked again"


def test_fastapis_list_says_what_is_wrong_where(serve):
    detail = [
        {"loc": ["body", "top_k"], "msg": "Input should be at least 1", "type": "greater_than_equal"},
        {"loc": ["body", "prompt", 0], "msg": "Input should be a string", "type": "string_type"},
    ]
    error = "the server answered 422: top_k: Input should be at least 1; prompt.0: Input should be a string"
    assert ask(serve(Reply({"detail": detail}, 422)), "a")["a"].error == error


DEEP = '{"error":' * 400 + "1" + "}" * 400


@pytest.mark.parametrize(
    "body",
    [{}, [], {"error": {}}, {"detail": [1]}, {"error": 5}, {"code": 400}, None, 3, [[[]]], DEEP],
    ids=lambda body: str(body)[:20],
)
def test_a_complaint_that_says_nothing_is_still_the_rows_error(serve, body):
    assert ask(serve(Reply(body, 400)), "a")["a"].error.startswith("the server answered 400: ")


@pytest.mark.parametrize(
    "error",
    [
        {"message": "upstream failed", "code": 502},
        {"message": "slow down", "code": 429},
        {"message": "Overloaded", "type": "overloaded_error"},
        "CUDA out of memory",
    ],
    ids=str,
)
def test_an_error_with_status_200_is_asked_again_and_then_the_rows_error(serve, error):
    server = serve(lambda prompt, tries: exact() if prompt == "a" and tries == 2 else Reply({"error": error}))
    # One after the other: the failures in a row of two rows at once could use up the server's own retries.
    answers = ask(server, "a", retries=1) | ask(server, "b", retries=1)
    assert answers["a"].text == "ok"
    message = error if isinstance(error, str) else error["message"]
    assert answers["b"].error.startswith("the server answered ")
    assert answers["b"].error.endswith(f": {message}")
    assert server.prompts().count("b") == 2


# Bodies that are cut off, or of another kind

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CUT = {
    "shorter than its Content-Length": HEAD + b'Content-Length: 500\r\n\r\n{"choices": [{"te',
    "a Content-Length that is too small": HEAD + b'Content-Length: 9\r\n\r\n{"choices": [{"text": "ok"}]}',
    "a chunk that breaks off": HEAD + b'Transfer-Encoding: chunked\r\n\r\n20\r\n{"choices": [{"te',
    "chunks without an end": HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"cho\r\n',
    "closed in the middle": HEAD + b'Connection: close\r\n\r\n{"choices": [{"te',
    "empty": HEAD + b"Content-Length: 0\r\n\r\n",
    "no head": b"HTT",
    "no gzip": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("name", CUT)
def test_a_body_that_is_cut_off_is_asked_for_again_and_then_the_rows_error(serve, name):
    server = serve(lambda prompt, tries: exact() if prompt == "a" and tries == 2 else Reply(raw=CUT[name]))
    # One after the other: the failures in a row of two rows at once could use up the server's own retries.
    answers = ask(server, "a", retries=1) | ask(server, "b", retries=1)
    assert answers["a"].text == "ok"
    assert answers["b"].text is None
    kinds = ("the server's answer is unreadable: ", "the connection was lost: ")
    assert answers["b"].error.startswith(kinds)
    assert len(answers["b"].error) > len("the server's answer is unreadable: ")
    assert server.prompts().count("b") == 2


ODD = {
    "not UTF-8": b'{"choices": [{"text": "caf\xe9", "finish_reason": "stop"}]}',
    "a page": b"<html>log in</html>",
    "too deep": b"[" * 100_000,
    "a number of 5,000 digits": b'{"choices": [{"text": "x", "token_ids": [' + b"1" * 5000 + b"]}]}",
}


@pytest.mark.parametrize("name", ODD)
def test_a_body_that_cannot_be_read_is_its_rows_error_and_the_others_finish(serve, name):
    server = serve(lambda prompt, _tries: Reply(ODD[name]) if prompt == "bad" else exact(prompt))
    answers = ask(server, "bad", "good", retries=0)
    # The process sets how many digits Python reads; a longer number may also be read, but it is no id.
    assert re.match("the server's answer is (unreadable|malformed): ", answers["bad"].error)
    assert answers["good"].text == "good"


CHOICES: dict[str, dict[str, Any]] = {
    "a number for text": {"text": 12},
    "an object for text": {"text": {"a": 1}},
    "true for text": {"text": True},
    "ids that are texts": {"text": "ok", "token_ids": ["5", "6"]},
    "ids that are one text": {"text": "ok", "token_ids": "56"},
    "an id that is no whole number": {"text": "ok", "token_ids": [5, 6.5]},
    "an id that is missing": {"text": "ok", "token_ids": [5, None]},
    "an id that is true": {"text": "ok", "token_ids": [True, 5]},
    "an id below zero": {"text": "ok", "token_ids": [-1]},
    "an id beyond 32 bits": {"text": "ok", "token_ids": [2**31]},
    "ids in an object": {"text": "ok", "token_ids": {"0": 5}},
    "a number for ids": {"text": "ok", "token_ids": 5},
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_malformed_answer_is_its_rows_error_and_the_others_finish(serve, name):
    bad = Reply({"choices": [{"finish_reason": "stop", **CHOICES[name]}]})
    answers = ask(serve(lambda prompt, _tries: bad if prompt == "bad" else exact(prompt)), "bad", "good")
    assert answers["bad"].error.startswith("the server's answer is malformed: ")
    assert answers["good"].text == "good"


@pytest.mark.parametrize(
    "logprobs",
    [5, "no", [1.0], {"token_logprobs": 3}, {"token_logprobs": {"a": 1}}, {"token_logprobs": ["-1", "-2"]}]
    + [{"token_logprobs": [-0.5, odd]} for odd in ("x", True, None, float("nan"), float("-inf"), 10**400)],
    ids=str,
)
def test_logprobs_that_are_no_numbers_are_dropped_and_the_row_is_kept(serve, logprobs):
    answer = ask(serve(completion("ok", token_ids=[1, END], logprobs=logprobs)), "a")["a"]
    assert (answer.token_ids, answer.logprobs, answer.error) == ([1, END], None, None)


PARTS = {
    "text alone": ([{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}], "four"),
    "thinking in parts": (
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": "2"}, {"type": "text", "text": "+2"}]},
            {"type": "text", "text": "4"},
        ],
        "<think>\n2+2\n</think>\n\n4",
    ),
    "thinking as text": (
        [{"type": "thinking", "thinking": "2+2", "signature": "x"}, {"type": "text", "text": "4"}],
        "<think>\n2+2\n</think>\n\n4",
    ),
    "a thought marked so": ([{"text": "2+2", "thought": True}, {"text": "4"}], "<think>\n2+2\n</think>\n\n4"),
    "a thought that is hidden": ([{"type": "redacted_thinking", "data": "…"}, {"type": "text", "text": "4"}], "4"),
    "a thought that nothing follows": ([{"type": "thinking", "thinking": "2+"}], "<think>\n2+"),
    "plain texts": (["fo", "ur"], "four"),
    "half of a pair in each": (["\ud83d", "\ude42 \ud800"], "\U0001f642 \ufffd"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_message_in_parts_is_joined_with_thoughts_in_tags(serve, name):
    parts, text = PARTS[name]
    answer = ask(serve(chat(parts)), "a", api="chat")["a"]
    assert (answer.text, answer.token_ids) == (text, [*TOKENIZER.encode(text), END])


@pytest.mark.parametrize(
    "parts", [[5], [None], [{"type": "image_url"}], [{"type": "text"}], [[]], [{"text": 5}]], ids=str
)
def test_a_part_that_is_no_text_is_the_rows_error(serve, parts):
    answer = ask(serve(chat(parts)), "a", api="chat")["a"]
    assert answer.error.startswith("the server's answer is malformed: a part of its text ")


def test_reasoning_beside_a_message_in_parts_comes_first(serve):
    reply = chat([{"type": "text", "text": "4"}], reasoning_content="2+2")
    assert ask(serve(reply), "a", api="chat")["a"].text == "<think>\n2+2\n</think>\n\n4"


def test_a_refusal_beside_an_empty_message_is_told(serve):
    answer = ask(serve(chat(None, refusal="I cannot help")), "a", api="chat")["a"]
    assert answer.error == "the server's answer has no text: the model refused (I cannot help)"


# Faults of every request

NO_CREDIT = {
    "402": failed(402, "Insufficient Balance"),
    "a quota as 429": Reply(
        {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, 429
    ),
    "credit as 400": failed(400, "Your credit balance is too low to access the API"),
    "402 in a body with 200": Reply({"error": {"message": "no credits", "code": 402}}),
}


@pytest.mark.parametrize("name", NO_CREDIT)
def test_credit_that_is_used_up_stops_at_once_and_what_was_finished_is_handed_on(serve, name):
    server = serve(lambda prompt, _tries: NO_CREDIT[name] if prompt == "b" else exact(prompt))
    running = engine_for(server.url, batch_size=1).generate([asking(prompt) for prompt in "abcdef"])
    assert next(running).text == "a"
    with pytest.raises(EngineError, match=r"answered 4\d\d .*expected an account with credit"):
        list(running)
    assert server.prompts().count("b") == 1, "waiting does not help"


def test_a_quota_that_waiting_might_help_against_is_waited_for_and_then_stops(serve):
    error = {"code": 429, "message": "You exceeded your current quota", "status": "RESOURCE_EXHAUSTED"}
    server = serve(Reply([{"error": error}], 429))
    with pytest.raises(EngineError, match=r"answered 429 .*quota"):
        ask(server, "a", retries=2)
    assert len(server.received) == 3


ALIKE = {
    "a parameter": failed(400, "Unsupported parameter: 'max_tokens' (request id: 2025{n:08d})"),
    "FastAPI": Reply({"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs", "n": "{n}"}]}, 422),
    "a wrong address": Reply("<html>welcome</html>"),
    "a broken server": failed(500, "no workers"),
    "another API": Reply({"hello": "world"}),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_the_first_prompts_are_all_refused_for_stops_the_run_and_makes_no_row(serve, name):
    def answer(prompt: str, _tries: int) -> Reply:
        reply = ALIKE[name]
        message = reply.body.get("error", {}).get("message") if isinstance(reply.body, dict) else None
        return failed(reply.status, message.format(n=ord(prompt))) if message else reply

    running = engine_for(serve(answer).url, retries=0).generate([asking(prompt) for prompt in "abcdefgh"])
    with pytest.raises(EngineError, match=r"first 3 prompts, each time the same.*run the same command again"):
        next(running)


OF_ITS_OWN = {
    "too long": failed(400, "This model's maximum context length is 8 tokens"),
    "filtered": Reply(
        {"error": {"message": "The response was filtered", "code": "content_filter", "status": 400}}, 400
    ),
    "flagged": failed(403, "Your input was flagged by moderation"),
    "for safety": failed(400, "Invalid prompt: we have limited access to this content for safety reasons"),
    "malformed": Reply({"choices": [{"text": 5, "finish_reason": "stop"}]}),
    "a reason to end": completion("no", "content_filter"),
}


@pytest.mark.parametrize("name", OF_ITS_OWN)
def test_what_is_wrong_with_single_rows_never_stops_a_run(serve, name):
    answers = ask(serve(OF_ITS_OWN[name]), *"abcdef")
    assert all(answer.error for answer in answers.values())
    assert len(answers) == 6


def test_one_answer_among_the_first_prompts_makes_the_refusals_errors_of_their_rows(serve):
    bad = failed(400, "bad parameter")
    server = serve(lambda prompt, _tries: exact(prompt) if prompt == "c" else bad)
    answers = ask(server, *"abcdef", batch_size=1)
    assert list(answers) == list("abcdef")
    assert {name for name, answer in answers.items() if answer.error is None} == {"c"}


def test_a_few_rows_that_are_all_there_are_never_stop_a_run(serve):
    """Cover a set where only errors are tried again, which leaves such rows."""
    answers = ask(serve(failed(400, "bad parameter")), *"abc")
    assert [answer.error for answer in answers.values()] == ["the server answered 400: bad parameter"] * 3


def test_several_attempts_at_one_prompt_are_no_evidence_about_the_others(serve):
    requests = [asking("a", seed=i) for i in range(5)] + [asking("b")]
    running = engine_for(serve(failed(400, "bad parameter")).url, batch_size=1).generate(requests)
    assert len(list(running)) == 6
