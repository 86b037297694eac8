"""Episodes that a model plays: what it reads before each turn, the rows that hold it, and commands that are ended.

TRD_KILLS sets the number of kills of a test: 20 is the full form.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd
from support.children import Start, alive, forking, gone, wait_for
from support.sets import by_id, rows_of
from support.tiny import CHAT_TEMPLATE, END, OTHER_END, build_model, engine_of, reference_model, write_tokenizer

from trd_cli.episodes.actions import command_of
from trd_cli.episodes.contexts import Conversation, check_turns, contexts_of_turns
from trd_cli.errors import ModelError
from trd_cli.prompting.rendering import Rendering
from trd_cli.prompting.tokens import ByteTokenizer, HubTokenizer, Tokenizer
from trd_cli.records import AUTHORS, Request, Sampling, Trajectory, Turn
from trd_cli.trajectories.shards import list_shards
from trd_cli.worlds import scripted

KILLS = int(os.environ.get("TRD_KILLS", "1"))
CHAT = Rendering()
FIRST = ({"role": "user", "content": "the goal and the hall"},)
SAID = "{{ message['content'] }}"
# It takes the thinking out of earlier turns, as templates of thinking models do.
STRIPPING = CHAT_TEMPLATE.replace(
    SAID, "{{ message['content'].split('</think>')[-1] if message['role'] == 'assistant' else message['content'] }}"
)


def tokenizer_of(directory: Path, template: str | None = CHAT_TEMPLATE) -> HubTokenizer:
    directory.mkdir(exist_ok=True)
    write_tokenizer(directory, chat_template=template)
    return HubTokenizer(directory)


@pytest.fixture(params=["bytes", "hub"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else tokenizer_of(tmp_path)


def written_by(talk: Conversation, author: str, tokenizer: Tokenizer) -> str:
    """Return the text of the tokens that an author wrote."""
    columns = talk.columns()
    pairs = zip(columns["response_token_ids"], columns["author"], strict=True)
    return tokenizer.decode([i for i, code in pairs if AUTHORS[code] == author])


# Contexts


def test_a_model_reads_its_own_ids_and_what_the_template_writes_around_them(tokenizer: Tokenizer) -> None:
    talk = Conversation(tokenizer, CHAT, FIRST)
    talk.act("go east", "go east")
    talk.observe(" a room\n\n", valid=True)
    # These ids are not those that the text itself has.
    spelt = [i for letter in "the hall" for i in tokenizer.encode(letter)]
    talk.act([*spelt, tokenizer.end_of_turn_id], "the hall", finish_reason="stop")
    talk.observe("nothing", valid=False)
    read = list(talk.context.token_ids)
    history = [
        *({"role": "assistant", "content": "go east"}, {"role": "user", "content": " a room\n\n"}),
        *({"role": "assistant", "content": "the hall"}, {"role": "user", "content": "nothing"}),
    ]
    whole = tokenizer.render([*FIRST, *history], "chat", {})
    assert tokenizer.decode(read) == tokenizer.decode(whole)
    place = talk.turns[1].start + len(tokenizer.render(FIRST, "chat", {}))
    assert read[place : place + len(spelt)] == spelt
    usual = tokenizer.encode("the hall")
    assert read[:place] + usual + read[place + len(spelt) :] == whole
    assert talk.context.is_whole
    assert written_by(talk, "student", tokenizer) == "go eastthe hall"
    assert written_by(talk, "environment", tokenizer) == " a room\n\n", "the last observation is of no action yet"


def test_a_turn_that_was_cut_is_ended_by_the_template_and_one_that_ended_is_not_ended_twice(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path)
    tokenizer.eos_ids |= {OTHER_END}
    counts = {}
    for last in (None, END, OTHER_END):
        talk = Conversation(tokenizer, CHAT, FIRST)
        talk.act([*tokenizer.encode("go"), *([] if last is None else [last])], "go")
        talk.observe("here")
        after = list(talk.context.token_ids)[len(tokenizer.render(FIRST, "chat", {})) :]
        counts[last] = [i for i in after if i in tokenizer.eos_ids]
    assert counts == {None: [END, END], END: [END, END], OTHER_END: [OTHER_END, END]}, "the last ends the observation"


def test_where_the_template_strips_thinking_the_model_reads_the_templates_own_rendering(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, STRIPPING)
    said = ["<think>hm, east</think>go east", "<think>the lamp</think>take lamp", "look"]
    talk, history = Conversation(tokenizer, CHAT, FIRST), list(FIRST)
    for number, reply in enumerate(said):
        assert list(talk.context.token_ids) == tokenizer.render(history, "chat", {})
        assert talk.context.is_whole == (number == 0)
        action = command_of(reply)
        talk.act(reply, action)
        talk.observe(f"room {number}")
        history += [{"role": "assistant", "content": reply}, {"role": "user", "content": f"room {number}"}]
    contexts = [turn.context_token_ids for turn in talk.turns]
    assert contexts[0] is None
    assert "hm" not in tokenizer.decode(contexts[1])
    assert "hm" in tokenizer.decode(talk.columns()["response_token_ids"]), "the response stays one piece after another"
    assert written_by(talk, "environment", tokenizer) == "room 0room 1"
    assert [turn.action for turn in talk.turns] == ["go east", "take lamp", "look"]


def test_after_a_rewritten_turn_sampled_ids_are_kept_again(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, STRIPPING)
    talk = Conversation(tokenizer, CHAT, FIRST)
    spelt = [i for letter in "the hall" for i in tokenizer.encode(letter)]
    talk.act("<think>hm</think>go", "go")
    talk.observe("one")
    talk.act([*spelt, END], "the hall")
    talk.observe("two")
    read = list(talk.context.token_ids)
    assert any(read[i : i + len(spelt)] == spelt for i in range(len(read)))
    assert not talk.context.is_whole


@pytest.mark.parametrize(("mode", "after"), [("raw", ""), ("raw-line", "\n")])
def test_without_a_template_an_observation_stands_behind_a_blank_line(
    tokenizer: Tokenizer, mode: str, after: str
) -> None:
    talk = Conversation(tokenizer, Rendering(mode), FIRST)
    talk.act(tokenizer.encode("go\n"), "go")
    talk.observe("a room")
    prompt = tokenizer.render(FIRST, mode, {})
    assert list(talk.context.token_ids) == prompt + tokenizer.encode("go\n") + tokenizer.encode(f"\n\na room{after}")


def test_a_teachers_contexts_have_its_own_first_messages_and_the_same_turns(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, STRIPPING)
    talk = Conversation(tokenizer, CHAT, FIRST)
    for number in range(3):
        talk.act(f"<think>hm</think>go {number}", f"go {number}")
        talk.observe(f"room {number}")
    row = empty_row(messages=FIRST, **talk.columns())
    prompt = tokenizer.render(FIRST, "chat", {})
    own = [t.context_token_ids or [*prompt, *row.response_token_ids[: t.start]] for t in row.turns]
    assert list(map(list, contexts_of_turns(tokenizer, CHAT, FIRST, row))) == list(map(list, own))
    teachers = [{"role": "user", "content": "the way is east"}]
    for mine, theirs in zip(own, contexts_of_turns(tokenizer, CHAT, teachers, row), strict=True):
        begun = tokenizer.render(teachers, "chat", {})
        assert list(theirs) == [*begun, *list(mine)[len(prompt) :]]


def empty_row(**columns: object) -> Trajectory:
    return Trajectory(**{**dict.fromkeys(Trajectory.__dataclass_fields__), **columns})


def test_a_template_without_answers_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    only_users = CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] if loop.first else '' }}")
    with pytest.raises(ModelError, match="does not show an assistant's turn"):
        check_turns(tokenizer_of(tmp_path, only_users), CHAT)


@pytest.mark.parametrize(
    ("reply", "opened", "command"),
    [
        ("go east", False, "go east"),
        ("\n\n  > take lamp \nThen I win.", False, "take lamp"),
        (">\n>go", False, "go"),
        ("<think>go west\n</think>\n\nlook\n", False, "look"),
        ("it is east</think>go east", True, "go east"),
        ("it is east", True, ""),
        ("<think>it is", False, ""),
        (" \n", False, ""),
    ],
)
def test_the_command_is_the_first_line_after_the_thinking(reply: str, opened: bool, command: str) -> None:
    assert command_of(reply, opened) == command


# A model that plays

SPEC = "scripted:n=6,rooms=3"
SAMPLING = ("--max-turns", 4, "--max-tokens", 8, "--temperature", 1, "--top-k", 0, "--top-p", 1, "--dtype", "float32")
# The model answers after an empty thought, which no earlier turn has, as in templates with their thinking switched off.
THOUGHTLESS = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n</think>\n{% endif %}")


@pytest.fixture(scope="module", params=["appending", "rewriting"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model, in turn one whose template keeps earlier answers and one whose template changes them."""
    path = tmp_path_factory.mktemp("model") / request.param
    build_model(path, seed=3, eos=[END, OTHER_END])
    if request.param == "rewriting":
        write_tokenizer(path, chat_template=THOUGHTLESS)
    return path


def play(ok: Trd, model: object, out: Path, *more: object) -> Path:
    ok("sample", "-m", model, "--env", SPEC, *SAMPLING, "--device", "cpu", "--out", out, *more)
    return out


@pytest.fixture(scope="module")
def played(model: Path, ok: Trd) -> Path:
    return play(ok, model, model.parent / "played", "-n", 2, "--batch-size", 5)


def contexts(row: Trajectory) -> list[list[int]]:
    """Return what the student read before each turn, as a row holds it."""
    so_far = [[*row.prompt_token_ids, *row.response_token_ids[: turn.start]] for turn in row.turns]
    own = [turn.context_token_ids for turn in row.turns]
    return [list(each if ids is None else ids) for ids, each in zip(own, so_far, strict=True)]


def reply_of(row: Trajectory, turn: Turn) -> list[int]:
    return list(row.response_token_ids[turn.start : turn.end])


def read_naively(row: Trajectory, tokenizer: Any, keeps: bool) -> list[list[int]]:
    """Return what a model has to read before each turn: by hand, or as the template itself renders it."""
    found, ids, history = [], list(row.prompt_token_ids), list(row.messages)
    for turn in row.turns:
        found.append(ids)
        reply = reply_of(row, turn)
        text = tokenizer.decode(reply, skip_special_tokens=True)
        history += [{"role": "assistant", "content": text}, {"role": "user", "content": turn.observation}]
        between = f"\n<|start|>user\n{turn.observation}<|end|>\n<|start|>assistant\n"
        ended = "" if reply[-1] in (END, OTHER_END) else "<|end|>"
        if keeps:
            ids = [*ids, *reply, *tokenizer.encode(ended + between)]
        else:
            ids = tokenizer.apply_chat_template(history, add_generation_prompt=True, return_dict=True)["input_ids"]
    return found


def test_each_turn_reads_what_the_template_makes_of_the_turns_before_it(model: Path, played: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, keeps = AutoTokenizer.from_pretrained(model), model.name == "appending"
    asked, said, rows = [], {}, rows_of(played)
    for row in rows:
        for number, (turn, ids) in enumerate(zip(row.turns, read_naively(row, tokenizer, keeps), strict=True)):
            assert contexts(row)[number] == ids
            assert (turn.context_token_ids is None) == (keeps or number == 0)
            name = f"{row.trajectory_id}:{number}"
            asked.append(Request(name, ids, Sampling(1.0, 1.0, 0, 8), turn.seed))
            said[name] = reply_of(row, turn)
    assert len(rows) == 12
    assert {turn.finish_reason for row in rows for turn in row.turns} == {"stop", "length"}
    # Nothing but these ids and the turn's seed decides what the model says.
    engine = engine_of(model, batch_size=8)
    assert {done.request_id: done.token_ids for done in engine.generate(asked)} == said


def test_the_log_probabilities_of_a_row_are_those_of_its_turns_one_by_one(model: Path, played: Path) -> None:
    net = reference_model(model)

    def logprobs(ids: Sequence[int]) -> torch.Tensor:
        """Return the log-probability of each id but the first."""
        with torch.inference_mode():
            found = net(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return found.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    row = rows_of(played)[0]
    whole, prompt = logprobs([*row.prompt_token_ids, *row.response_token_ids]), len(row.prompt_token_ids)
    for turn, context in zip(row.turns, contexts(row), strict=True):
        one_by_one = logprobs([*context, *reply_of(row, turn)])[len(context) - 1 :]
        in_the_row = whole[prompt + turn.start - 1 : prompt + turn.end - 1]
        is_whole = turn.context_token_ids is None
        assert torch.allclose(in_the_row, one_by_one, atol=1e-4) == is_whole


def test_rows_do_not_depend_on_batches_workers_and_parts(model: Path, played: Path, ok: Trd) -> None:
    parts = model.parent / "parts"
    play(ok, model, parts, "-n", 2, "--shard", "2/2", "--batch-size", 1, "--env-workers", 1)
    play(ok, model, parts, "-n", 2, "--shard", "1/2", "--batch-size", 3, "--env-workers", 3)
    assert by_id(parts) == by_id(played)


def test_a_row_is_the_episode_of_its_environment(played: Path) -> None:
    for row in rows_of(played):
        world = scripted.make(rooms=3)
        assert world.reset(row.environment.seed) == row.problem
        assert [world.step(turn.action).text for turn in row.turns] == [turn.observation for turn in row.turns]
        assert (row.stop_reason, row.episode_reward) == ("turns", world.score().reward)
        assert row.problem_id.startswith("scripted-")
        assert row.reference_solution.endswith("take lamp")
        spans = {i for turn in row.turns for i in range(turn.start, turn.end)}
        assert {i for i, code in enumerate(row.author) if AUTHORS[code] == "student"} == spans
        assert row.turns[-1].end == len(row.response_token_ids)
        assert row.response.startswith(f"> {row.turns[0].action}")
        assert row.finish_reason == row.turns[-1].finish_reason


# The ends of episodes, and of commands

RIGHT = ("sample", "-m", "scripted", "--engine-arg", "accuracy=1")


def test_an_episode_that_reaches_its_goal_is_solved_and_one_without_room_ends_by_its_tokens(
    ok: Trd, tmp_path: Path
) -> None:
    ok(*RIGHT, "--env", "scripted:n=5", "--out", tmp_path / "solved")
    for row in rows_of(tmp_path / "solved"):
        assert (row.stop_reason, row.episode_reward, row.error) == ("solved", 1.0, None)
        assert [turn.action for turn in row.turns] == row.reference_solution.splitlines()
    shown = ok("sample", "-m", "scripted", "--engine-arg", "accuracy=0", "--env", SPEC, "--out", tmp_path / "wrong")
    assert "6 out of turns" in shown.stderr
    assert " · 180 turns, " in shown.stderr
    ok(*RIGHT, "--env", "scripted:n=6,rooms=30", "--max-model-len", 600, "--out", tmp_path / "short")
    ends = {row.stop_reason: row for row in rows_of(tmp_path / "short")}
    assert ends.keys() == {"solved", "tokens"}
    cut = ends["tokens"]
    assert len(cut.prompt_token_ids) + len(cut.response_token_ids) < 600
    assert cut.turns[-1].end == len(cut.response_token_ids)


@pytest.mark.parametrize(
    ("fault", "turn", "reason"),
    [("hang", 1, "gave no answer within 1 s"), ("crash", 0, "SIGKILL"), ("crash", 2, "SIGKILL")],
)
def test_an_environment_that_fails_costs_its_row_alone(
    fault: str, turn: int, reason: str, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    spec = f"scripted:n=5,fault={fault},at_seed=3,at_turn={turn}"
    command = (*RIGHT, "--env", spec, "--env-timeout", 1, "--env-workers", 2, "--out", tmp_path / "y_o")
    result = trd(*command)
    assert result.exit_code == 3
    for row in rows_of(tmp_path / "y_o"):
        if row.environment.seed == 3:
            assert reason in row.error
            assert row.turns is row.response is row.response_token_ids is None
        else:
            assert (row.stop_reason, row.error) == ("solved", None)
    ok(*command, "--retry-errors", "--max-errors", 1)
    assert len(rows_of(tmp_path / "y_o")) == 5


WAITING = """
import pathlib, time
from trd_cli.worlds.base import Score, Step

class Door:
    def reset(self, seed):
        self.seed, self.turn = seed, 0
        with open("resets", "a") as file:
            file.write("x")
        return "A door."

    def step(self, action):
        self.turn += 1
        if self.seed == 0:  # it answers when all others have ended
            until = time.monotonic() + 50
            while len(list(pathlib.Path(".").glob("ended-*"))) < 3 and time.monotonic() < until:
                time.sleep(0.02)
        elif self.turn == 3:
            pathlib.Path(f"ended-{self.seed}").touch()
        return Step("Open.", done=self.turn == 3)

    def score(self):
        return Score(float(self.turn), self.turn == 3)

def make():
    return Door()
"""


def test_a_slow_episode_does_not_hold_the_others_up(ok: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("doors.py").write_text(WAITING)
    command = (*RIGHT, "--engine-arg", "log=log", "--env", "doors:make:n=4", "--env-workers", 4, "--out", "y_o")
    ok(*command)
    rows = {row.environment.seed: row for row in rows_of(tmp_path / "y_o")}
    asked = Path("log").read_text().split()
    assert asked[-2:] == [f"{rows[0].trajectory_id}:1", f"{rows[0].trajectory_id}:2"]
    assert len(asked) == 12
    assert {row.stop_reason for row in rows.values()} == {"solved"}
    resets = Path("resets").read_text()
    assert len(resets) == 8, "each is begun once to be planned and once to be played"
    ok(*command)
    assert Path("resets").read_text() == resets, "what is done is not begun again"


HANGING = "scripted:n=2,fault=hang,at_seed=0,at_turn=1"


def test_what_is_finished_is_written_while_an_environment_hangs(start: Start, tmp_path: Path) -> None:
    limits = ("--env-workers", 2, "--env-timeout", 600, "--shard-rows", 1)
    running = start("sample", "-m", "scripted", *limits, "--env", HANGING, "--out", tmp_path / "y_o")
    wait_for(lambda: shards_of(tmp_path / "y_o"))
    running.kill()
    assert [row.environment.seed for row in rows_of(tmp_path / "y_o")] == [1]


WARM = """
import trd_cli.engines.scripted
import trd_cli.episodes.sampling
from trd_cli.stages import sample
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with forking(WARM, tmp_path_factory.mktemp("talk")) as starts:
        yield starts


SLOWLY = ("-n", 3, "--engine-arg", "delay=0.005", "--shard-rows", 2, "--env", "scripted:n=8", "--max-turns", 6)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "y_o"
    ok("sample", "-m", "scripted", *SLOWLY, "--out", path)
    return path


def shards_of(directory: Path) -> int:
    return len(list_shards(directory)) if directory.is_dir() else 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_command_that_is_ended_at_any_moment_leaves_no_process_and_comes_to_the_same_rows(
    number: signal.Signals, start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    chance, expected, out, sessions = random.Random(5), by_id(undisturbed), tmp_path / "y_o", []
    there: dict[str, Trajectory] = {}
    for kill in range(KILLS):
        if there == expected:
            out = tmp_path / f"y_o-{kill}"
        begun = shards_of(out)
        run = start("sample", "-m", "scripted", *SLOWLY, "--out", out)
        sessions.append(run.pid)
        if kill % 2 == 0:  # into the work; the others may fall into the start
            wait_for(lambda out=out, begun=begun, pid=run.pid: shards_of(out) > begun or not alive(pid))
        time.sleep(chance.uniform(0, 0.4))
        code = run.kill(number)
        assert code in (0, 130, -number), run.stderr.read_text()
        assert gone(sessions, 10), "no process outlives its command"
        there = by_id(out) if out.is_dir() else {}
        assert there.items() <= expected.items()
    assert start("sample", "-m", "scripted", *SLOWLY, "--out", out).wait() == 0
    assert by_id(out) == expected


def test_more_episodes_and_attempts_are_added_to_those_that_are_there(ok: Trd, trd: Trd, tmp_path: Path) -> None:
    out = tmp_path / "y_o"
    ok(*RIGHT, "--env", "scripted:n=2", "--out", out)
    before = by_id(out)
    ok(*RIGHT, "--env", "scripted:n=3", "-n", 2, "--out", out)
    assert before.items() <= by_id(out).items()
    assert len(by_id(out)) == 6
    refused = trd(*RIGHT, "--env", "scripted:n=3,rooms=5", "-n", 2, "--out", out)
    assert refused.exit_code == 1
    assert "environment" in refused.stderr
    assert trd(*RIGHT, "--env", "scripted:n=3", "-n", 2, "--max-turns", 9, "--out", out).exit_code == 1
    ok(*RIGHT, "--env", "scripted:n=5", "--skip", 1, "--limit", 3, "--out", tmp_path / "slice")
    assert sorted(row.environment.seed for row in rows_of(tmp_path / "slice")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--env", "scripted", "--problems", "p.parquet"), "--problems with --env"),
        (("--env", "nowhere"), "unknown environment"),
        (("--env", "scripted:n=2", "--skip", 2), "--skip 2, and --env has 2 episodes"),
        (("--problems", "p.parquet", "--max-turns", 3), "--max-turns without --env"),
        (("--env", "scripted", "--prefix", 3), "--prefix without --from"),
        (("--env", "scripted:n=1", "--max-model-len", 9), "every prompt is too long"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(
    options: tuple[object, ...], said: str, trd: Trd, tmp_path: Path
) -> None:
    result = trd("sample", "-m", "scripted", *options, "--out", tmp_path / "y_o")
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert said in line
    assert not (tmp_path / "y_o").exists()


def test_no_model_goes_on_from_within_an_episode(undisturbed: Path, trd: Trd, tmp_path: Path) -> None:
    result = trd("sample", "-m", "scripted", "--from", undisturbed, "--prefix", 0.5, "--out", tmp_path / "z")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"episodes in {undisturbed}" in result.stderr
    assert not (tmp_path / "z").exists()


def test_a_dry_run_shows_the_first_prompt_and_plays_nothing(ok: Trd, tmp_path: Path) -> None:
    shown = ok(*RIGHT, "--env", "scripted:n=2", "--out", tmp_path / "y_o", "--dry-run").stderr
    assert "Find the lamp" in shown
    assert "would make 2 rows" in shown
    assert "at most 64 new tokens in each of at most 30 turns" in shown
    assert not (tmp_path / "y_o").exists()
