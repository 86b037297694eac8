"""Several servers of the openai engine: which one gets which request, and what happens while one fails."""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.local_server import Reply, Server, asking, engine_for, exact, failed
from support.sets import rows_of
from support.tiny import write_bare_model

from trd_cli.config.generating import SampleConfig
from trd_cli.engines.servers import Fault, Host, Queue, Task
from trd_cli.errors import EngineError
from trd_cli.records import Completion, Request
from trd_cli.trajectories.run_json import read_run_json, write_run_json

Serve = Callable[..., Server]
Trd = Callable[..., Result]
PROMPTS = [f"prompt {i}" for i in range(40)]

# The choice of a server


def queue_of(*hosts: Host, requests: int = 100, retries: int = 1) -> Queue:
    queue = Queue(hosts, retries)
    for i in range(requests):
        queue.put(asking(f"prompt {i}"))
    return queue


def host(name: str = "a", limit: int = 4, patience: int = 1) -> Host:
    return Host(name, limit, patience)


GONE = Fault("gone", is_passing=True, ends=EngineError("no connection", "a server", "start it"))
BROKEN = Fault("broken", "500", is_passing=True)
BUSY = Fault("busy", "429", is_passing=True, is_busy=True)
REFUSED = Fault("refused", "400")


def test_requests_are_spread_by_the_fewest_open_ones_up_to_each_servers_limit() -> None:
    a, b = host("a"), host("b", limit=2)
    order = [each.shown for each, _ in queue_of(a, b).dispatch(0.0)]
    assert order == ["a", "b", "a", "b", "a", "a"]


def test_servers_answer_in_proportion_to_their_speed_and_none_waits_while_requests_do() -> None:
    slow, fast = host("slow"), host("fast")
    seconds = {slow: 3.0, fast: 1.0}
    queue, counts, now = queue_of(slow, fast, requests=400), Counter[str](), 0.0
    open_ = [(seconds[each], number, each, task) for number, (each, task) in enumerate(queue.dispatch(now))]
    for number in range(1000, 2000):
        if not open_:
            break
        now, _, each, task = heapq.heappop(open_)
        queue.answered(each, task, 1, now)
        counts[each.shown] += 1
        following = queue.take(each, now)
        if following is not None:
            heapq.heappush(open_, (now + seconds[each], number, each, following))
    assert counts == {"fast": 300, "slow": 100}
    assert now <= 400 / (4 + 4 / 3) + seconds[slow]


def one_try(queue: Queue, each: Host, now: float) -> Task:
    task = queue.take(each, now)
    assert task is not None
    return task


def test_a_failing_server_rests_twice_as_long_each_time_and_one_answer_makes_it_whole() -> None:
    a = host("a", patience=9)
    queue, now, rests = queue_of(a), 0.0, []
    for _ in range(7):
        queue.failed(a, one_try(queue, a, now), GONE, now, now)
        assert queue.take(a, now) is None
        rests.append(queue.next_time(now))
        now += rests[-1]
    assert rests == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    trial = one_try(queue, a, now)
    assert queue.take(a, now) is None, "one request on trial"
    queue.answered(a, trial, 5, now)
    assert len(list(queue.dispatch(now))) == 4


def test_requests_that_fail_together_are_one_failure_of_their_server() -> None:
    a = host("a")
    queue = queue_of(a)
    for each, task in list(queue.dispatch(0.0)):
        queue.failed(each, task, GONE, 0.0, 1.0)
    assert a.is_left
    assert queue.next_time(1.0) == 0.5


def test_a_busy_server_gets_half_as_many_at_a_time_and_one_more_after_each_answer() -> None:
    a = host("a", limit=8)
    queue = queue_of(a)
    tasks = [task for _, task in queue.dispatch(0.0)]
    queue.failed(a, tasks[0], BUSY, 0.0, 1.0)
    for task in tasks[1:]:
        queue.answered(a, task, 1, 1.0)
    assert a.window == 8
    queue.failed(a, one_try(queue, a, 1.0), BUSY, 1.0, 1.0)
    queue.answered(a, one_try(queue, a, 2.0), 1, 2.0)
    assert len(list(queue.dispatch(2.0))) == a.window == 5


def test_a_server_is_not_asked_before_the_time_it_named_even_if_it_answers_others() -> None:
    a = host("a")
    queue = queue_of(a)
    (_, first), (_, second) = list(queue.dispatch(0.0))[:2]
    queue.failed(a, first, Fault("busy", "429", is_passing=True, wait=20.0), 0.0, 1.0)
    queue.answered(a, second, 1, 2.0)
    assert queue.take(a, 20.9) is None
    assert queue.take(a, 21.0) is not None


@pytest.mark.parametrize("fault", [BROKEN, REFUSED])
def test_a_request_ends_when_it_has_failed_at_every_server(fault: Fault) -> None:
    a, b, c = host("a"), host("b"), host("c")
    queue = queue_of(a, b, c, requests=1)
    assert not queue.failed(a, one_try(queue, a, 0.0), fault, 0.0, 0.0)
    assert queue.take(a, 0.1) is None, "another one is asked first"
    assert not queue.failed(b, one_try(queue, b, 0.1), fault, 0.1, 0.1)
    assert queue.failed(c, one_try(queue, c, 0.2), fault, 0.2, 0.2)


def test_a_request_does_not_wait_for_a_server_that_rests() -> None:
    a, b = host("a", patience=9), host("b", patience=9)
    queue = queue_of(a, b, requests=1)
    for now in (0.0, 0.5, 1.5):
        queue.failed(a, one_try(queue, a, now), GONE, now, now)
    assert not queue.failed(b, one_try(queue, b, 1.5), BROKEN, 1.5, 1.5)
    assert queue.next_time(1.5) == 0.5
    assert one_try(queue, b, 2.0), "a rests until 3.5"


def test_a_server_that_is_back_and_busy_starts_to_count_anew() -> None:
    a = host("a", patience=2)
    queue, now = queue_of(a), 0.0
    for fault in (GONE, GONE, BUSY, GONE, GONE):
        queue.failed(a, one_try(queue, a, now), fault, now, now)
        now += queue.next_time(now)
        queue.check_left()
    queue.failed(a, one_try(queue, a, now), GONE, now, now)
    with pytest.raises(EngineError, match="no connection"):
        queue.check_left()


def test_a_fault_about_the_request_alone_ends_it_at_once() -> None:
    a, b = host("a"), host("b")
    queue = queue_of(a, b, requests=1)
    assert queue.failed(a, one_try(queue, a, 0.0), Fault("too long"), 0.0, 0.0)
    assert a.has_room(0.0)


def test_a_server_that_alone_refuses_what_another_answers_is_left_alone() -> None:
    a, b = host("a"), host("b")
    queue = queue_of(a, b, requests=1)
    queue.failed(a, one_try(queue, a, 0.0), REFUSED, 0.0, 0.0)
    queue.answered(b, one_try(queue, b, 0.1), 1, 0.1)
    assert not a.has_room(0.2)
    assert a.is_left


def test_no_server_is_left_only_when_each_has_failed_too_often_or_is_out() -> None:
    a, b = host("a"), host("b")
    queue = queue_of(a, b)
    queue.exclude(a, EngineError("a answered 401", "a key", "set it"), one_try(queue, a, 0.0))
    queue.failed(b, one_try(queue, b, 0.0), GONE, 0.0, 0.0)
    queue.check_left()
    queue.failed(b, one_try(queue, b, 0.5), GONE, 0.5, 0.5)
    with pytest.raises(EngineError, match="a answered 401; no connection"):
        queue.check_left()


# The engine


def run(urls: list[str], prompts: list[str] = PROMPTS, **options: Any) -> dict[str, Completion]:
    engine = engine_for(urls, **options)
    completions = list(engine.generate([asking(prompt) for prompt in prompts]))
    engine.close()
    assert len(completions) == len(prompts), "nothing is lost or doubled"
    return {one.request_id: one for one in completions}


def echo(prompt: str, _tries: int) -> Reply:
    return exact(prompt)


def test_the_faster_of_two_servers_answers_more(serve: Serve) -> None:
    def slowly(prompt: str, _tries: int) -> Reply:
        time.sleep(0.1)
        return exact(prompt)

    fast, slow = serve(echo), serve(slowly)
    answers = run([slow.url, fast.url], batch_size=2)
    assert {name: answer.text for name, answer in answers.items()} == {prompt: prompt for prompt in PROMPTS}
    assert 0 < len(slow.received) < len(fast.received)
    assert len(slow.received) + len(fast.received) == len(PROMPTS)


def test_tokens_are_counted_for_each_server(serve: Serve) -> None:
    idle, busy = serve(failed(404, "no such model")), serve(echo)
    engine = engine_for([idle.url, busy.url], batch_size=4)
    assert engine.tokens() == [0, 0]
    assert engine.rows_at_once == 8
    list(engine.generate([asking(prompt) for prompt in PROMPTS]))
    first, second = engine.tokens()
    assert first == 0 < second
    assert engine.rows_at_once == 4


@pytest.mark.parametrize("retries", [0, 3])
def test_all_rows_come_from_the_other_server_when_one_dies(serve: Serve, retries: int) -> None:
    def mortal(prompt: str, _tries: int) -> Reply:
        if len(dying.received) == 5:
            threading.Thread(target=dying.die).start()
        return exact(prompt)

    dying, living = serve(mortal), serve(echo)
    answers = run([dying.url, living.url], batch_size=2, retries=retries)
    assert {answer.error for answer in answers.values()} == {None}
    assert set(living.prompts()) | set(dying.prompts()) == set(PROMPTS)


def test_a_server_that_comes_back_answers_again(serve: Serve) -> None:
    def when_it_is_back(prompt: str, _tries: int) -> Reply:
        if len(steady.received) == 3:
            gone.listen(gone.port)
        if len(steady.received) > 3:
            assert is_back.wait(20)
        return exact(prompt)

    def back(prompt: str, _tries: int) -> Reply:
        is_back.set()
        return exact(prompt)

    is_back = threading.Event()
    gone, steady = serve(back), serve(when_it_is_back)
    gone.die()
    answers = run([gone.url, steady.url], batch_size=1)
    assert {answer.error for answer in answers.values()} == {None}
    assert gone.received


def test_a_server_that_answers_nothing_but_errors_costs_no_row(serve: Serve) -> None:
    broken, good = serve(failed(500, "no workers")), serve(echo)
    answers = run([broken.url, good.url], batch_size=2, retries=0)
    assert {answer.error for answer in answers.values()} == {None}
    assert len(broken.received) < len(good.received)


def test_a_request_that_fails_at_every_server_is_its_rows_error(serve: Serve) -> None:
    def answer(prompt: str, _tries: int) -> Reply:
        return failed(500, "cannot") if prompt == "prompt 7" else exact(prompt)

    a, b = serve(answer), serve(answer)
    answers = run([a.url, b.url], batch_size=2, retries=0)
    assert [name for name, one in answers.items() if one.error] == ["prompt 7"]
    assert answers["prompt 7"].error == "the server answered 500: cannot"
    assert a.prompts().count("prompt 7") == b.prompts().count("prompt 7") == 1


def test_the_same_refusal_of_the_first_prompts_by_all_servers_stops_the_run(serve: Serve) -> None:
    servers = [serve(failed(400, "no top_k here")) for _ in range(2)]
    running = engine_for([server.url for server in servers]).generate([asking(prompt) for prompt in PROMPTS])
    with pytest.raises(EngineError, match=f"{servers[0].url} and {servers[1].url} did not answer .*no top_k here"):
        next(running)


MODELS = {
    "another checkpoint": ({"id": "scripted", "root": "org/one"}, {"id": "scripted", "root": "org/two"}, "one", "two"),
    "another length": (
        {"id": "scripted", "max_model_len": 512},
        {"id": "scripted", "max_model_len": 1024},
        "scripted for up to 512 tokens",
        "scripted for up to 1024 tokens",
    ),
    "another name": ({"id": "scripted"}, {"id": "other"}, "scripted", "only other"),
}


@pytest.mark.parametrize("name", MODELS)
def test_servers_of_different_models_are_refused_before_a_request_is_sent(serve: Serve, name: str) -> None:
    a, b = serve(echo), serve(echo)
    *models, first, second = MODELS[name]
    a.models, b.models = [[model] for model in models]
    with pytest.raises(EngineError, match=f"{a.url} serves {first}, and {b.url} {second}; expected one model"):
        run([a.url, b.url])
    assert a.received == b.received == []


def test_one_checkpoint_in_different_places_is_one_model(serve: Serve) -> None:
    a, b, silent = serve(echo), serve(echo), serve(echo)
    a.models = [{"id": "scripted", "root": "org/model", "max_model_len": 512}]
    b.models = [{"id": "scripted", "root": "/scratch/model/", "max_model_len": 512}]
    assert len(run([a.url, b.url, silent.url], batch_size=1)) == len(PROMPTS)


def test_requests_are_taken_as_there_is_room_for_them(serve: Serve) -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield asking(f"prompt {taken}")

    engine = engine_for([serve(echo).url, serve(echo).url], batch_size=3)
    running = engine.generate(endless())
    for finished in range(1, 51):
        assert next(running).error is None
        assert taken <= finished + 4 * 3
    running.close()
    engine.close()


def test_an_answer_is_not_kept_waiting_for_a_request_that_is_not_ready(serve: Serve) -> None:
    def requests() -> Iterator[Request | None]:
        yield asking("first")
        while not answered:
            yield None
        yield asking("second")

    answered: list[str] = []
    for completion in engine_for([serve(echo).url]).generate(requests()):
        answered.append(completion.request_id)
    assert answered == ["first", "second"]


# The command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bare_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def sample(trd: Trd, model: Path, problems: Path, tmp_path: Path) -> Callable[..., Result]:
    def command(out: str, *urls: str, retries: int = 0) -> Result:
        asked = [word for url in urls for word in ("--base-url", url)]
        how = ("--engine", "openai", "--engine-arg", f"retries={retries}", "--batch-size", 1, "--max-tokens", 8)
        return trd("sample", "-m", model, "-p", problems, *how, *asked, "--out", tmp_path / out)

    return command


def content(directory: Path) -> dict[str, Any]:
    return {row.trajectory_id: (row.response, row.response_token_ids, row.error) for row in rows_of(directory)}


def test_rows_are_the_same_with_one_and_with_two_servers(serve: Serve, sample, tmp_path: Path) -> None:
    def answer(prompt: str, _tries: int) -> Reply:
        return exact(f"{len(prompt)}")

    a, b = serve(answer), serve(answer)
    for out, urls in (("one", [a.url]), ("two", [a.url, b.url])):
        result = sample(out, *urls)
        assert result.exit_code == 0, result.stderr
    assert b.received
    assert content(tmp_path / "one") == content(tmp_path / "two")
    rates = [json.loads((tmp_path / out / "sessions.jsonl").read_text()).get("replicas") for out in ("one", "two")]
    assert rates[0] is None
    assert len(rates[1]) == 2
    digests = {json.loads((tmp_path / out / "run.json").read_text())["digest"] for out in ("one", "two")}
    assert len(digests) == 1


def test_a_server_that_refuses_the_key_is_out_with_one_note(serve: Serve, sample, tmp_path: Path) -> None:
    closed, good = serve(failed(401, "who are you?")), serve(exact())
    result = sample("out", closed.url, good.url)
    assert result.exit_code == 0, result.stderr
    notes = [line for line in result.stderr.splitlines() if closed.url in line]
    assert len(notes) == 1
    assert f"{closed.url} gets no more requests: {closed.url} answered 401 (who are you?)" in notes[0]
    assert len(closed.received) == 1
    assert {row.error for row in rows_of(tmp_path / "out")} == {None}


def test_finished_rows_are_kept_when_the_last_server_dies_and_the_same_command_goes_on(
    serve: Serve, sample, tmp_path: Path
) -> None:
    def mortal(prompt: str, _tries: int) -> Reply:
        if len(a.received) + len(b.received) == 6:
            for server in (a, b):
                server.die()
        return exact()

    a, b = serve(mortal), serve(mortal)
    result = sample("out", a.url, b.url, retries=2)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert f"no connection to {a.url} " in last
    assert f"no connection to {b.url} " in last
    kept = content(tmp_path / "out")
    assert 0 < len(kept) < 12

    run_json = read_run_json(tmp_path / "out")
    run_json["config"]["base_url"] = a.url  # as it was written while there was one server only
    write_run_json(tmp_path / "out", run_json)
    assert sample("out", serve(exact()).url, retries=2).exit_code == 0
    whole = content(tmp_path / "out")
    assert len(whole) == 12
    assert whole.items() >= kept.items()


def test_a_recipe_names_one_server_or_several() -> None:
    one, several = (
        SampleConfig(problems="p", base_url=urls).base_url for urls in ("http://a/v1", ["http://a/v1", "http://b/v1"])
    )
    assert (one, several) == (("http://a/v1",), ("http://a/v1", "http://b/v1"))
