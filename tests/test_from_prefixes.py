"""trd sample --from and trd refine --mode continue: rows that go on from the exact ids of a prefix of others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.children import Start, forking, wait_for
from support.local_server import Server, completion
from support.sets import by_id, rows_of
from support.tiny import END, VOCABULARY, build_model

from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.errors import UserError
from trd_cli.models import resolve_model
from trd_cli.prompting.prefixes import cut
from trd_cli.prompting.templates import load_template
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.records import AUTHORS, Cut, Trajectory, author_array, authors_of
from trd_cli.redaction import visible
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

STUDENT, TEACHER = AUTHORS.index("student"), AUTHORS.index("teacher")
TINY = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu")
GREEDY = (*TINY, "--temperature", 0, "--max-tokens", 24)
SCRIPTED = ("sample", "-m", "scripted")
WARM = """
import trd_cli.engines.scripted
from trd_cli.stages import refine, sample
"""


@dataclass(frozen=True)
class World:
    """Two models of one family, of which a third of the tokens end a response, and greedy rollouts of the student."""

    student: Path
    teacher: Path
    problems: Path
    greedy: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    root = tmp_path_factory.mktemp("world")
    ends = [END, *range(100, VOCABULARY, 8)]
    made = World(
        build_model(root / "student", eos=ends), build_model(root / "teacher", seed=1, eos=ends), root / "p", root / "y"
    )
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 1, "--out", made.problems)
    ok("sample", "-m", made.student, "-p", made.problems, *GREEDY, "--out", made.greedy)
    assert {row.finish_reason for row in rows_of(made.greedy)} == {"stop", "length"}
    return made


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Yield a function that starts a trd command; end every command that is left."""
    with forking(WARM, tmp_path_factory.mktemp("talk")) as starts:
        yield starts


@pytest.fixture(scope="module")
def y_o(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return 24 verified scripted rollouts in three shards; one is an error."""
    root = tmp_path_factory.mktemp("scripted")
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 1, "--out", root / "p.parquet")
    ok(*SCRIPTED, "-p", root / "p.parquet", "-n", 2, "--shard-rows", 10, "--out", root / "y_o")
    ok("verify", root / "y_o", "--workers", 1)
    return root / "y_o"


def changed(source: Path, target: Path, change: Callable[[Trajectory], Trajectory]) -> Path:
    """Return a copy of a set with its rows changed."""
    shutil.copytree(source, target)
    for path in list_shards(target):
        write_shard(path, [change(row) for row in read_rows(path)])
    return target


def refused(trd: Trd, *args: Any) -> str:
    """Run a command that must be refused before anything is written, and return its one line."""
    result = trd(*args)
    assert (result.exit_code, result.stdout) == (1, ""), result.stderr
    [line] = result.stderr.splitlines()
    return line


# The ids that are given, and those that follow


@pytest.mark.parametrize("prefix", [("--prefix", "0.4"), ("--prefix", 3), ("--prefix", "0.6", "--at-line-break")])
def test_a_greedy_row_gone_on_with_from_its_own_prefix_is_the_row_itself(
    prefix: tuple[Any, ...], world: World, tmp_path: Path, ok: Trd
) -> None:
    ok("sample", "-m", world.student, "--from", world.greedy, *prefix, *GREEDY, "--out", tmp_path / "on")
    parents, tokenizer = by_id(world.greedy), resolve_model(str(world.student)).tokenizer()
    rows = rows_of(tmp_path / "on")
    assert {row.parent_id for row in rows} == {
        name for name, row in parents.items() if len(row.response_token_ids) > 3 or prefix[1] != 3
    }
    where = SampleConfig(from_sets=("x",), prefix=str(prefix[1]), at_line_break=len(prefix) == 3).cut
    for row in rows:
        parent = parents[row.parent_id]
        length = len(parent.response_token_ids)
        assert row.response_token_ids[:length] == parent.response_token_ids
        assert row.logprobs[:length] == pytest.approx(parent.logprobs, abs=1e-5)
        assert len(row.logprobs) == len(row.response_token_ids)
        assert row.prefix_tokens == cut(parent.response_token_ids, tokenizer, where) > 0
        assert row.prompt_token_ids == parent.prompt_token_ids
        if parent.finish_reason == "stop":
            assert (row.response, row.finish_reason) == (parent.response, "stop")
        else:
            assert row.finish_reason == "stop" or len(row.response_token_ids) == row.prefix_tokens + 24, "24 new ones"


def test_the_prefix_is_given_as_the_ids_that_were_sampled_not_as_their_text(
    world: World, tmp_path: Path, ok: Trd
) -> None:
    tokenizer = resolve_model(str(world.student)).tokenizer()
    single = [tokenizer.vocabulary()[letter] for letter in "thethe"]
    assert len(tokenizer.encode("thethe")) < len(single), "encoded again, other ids would stand for this text"

    def spelt(row: Trajectory) -> Trajectory:
        return replace(row, response="thethe", response_token_ids=[*single, END], logprobs=None, finish_reason="stop")

    source = changed(world.greedy, tmp_path / "spelt", spelt)
    ok("sample", "-m", world.student, "--from", source, "--prefix", "1.0", *GREEDY, "--out", tmp_path / "on")
    for row in rows_of(tmp_path / "on"):
        assert (row.prefix_tokens, row.response_token_ids[:6]) == (6, single)
        assert row.response.startswith("thethe")
        assert row.response == tokenizer.decode(row.response_token_ids)
        assert row.logprobs is None, "those of the prefix are not known"


@pytest.mark.parametrize("setting", ["opd", "opsd"])
def test_the_teacher_goes_on_in_the_context_in_which_it_would_answer_itself(
    setting: str, world: World, tmp_path: Path, ok: Trd
) -> None:
    teacher = world.teacher if setting == "opd" else world.student
    out, own = tmp_path / "y_r", tmp_path / "own"
    command = ("refine", "--setting", setting, "--teacher", teacher, "--mode", "continue", world.greedy)
    ok(*command, *GREEDY, "--prefix", "0.5", "--out", out)
    ok("verify", out, "--workers", 1)
    parents, tokenizer = by_id(world.greedy), resolve_model(str(teacher)).tokenizer()
    rows = rows_of(out)
    assert len(rows) > 6
    for row in rows:
        parent = parents[row.parent_id]
        content = load_template(f"vanilla-{setting}", "math").render(
            {name: getattr(row, name) for name in ("problem", "reference_solution", "reference_answer")}
        )
        assert list(row.messages) == list(content)
        assert row.prompt_token_ids == tokenizer.render(content, "chat", {})
        assert (row.prompt_token_ids == parent.prompt_token_ids) == (setting == "opd")
        assert row.student_prompt_token_ids == parent.prompt_token_ids
        assert row.response_token_ids[: row.prefix_tokens] == parent.response_token_ids[: row.prefix_tokens]
        new = len(row.response_token_ids) - row.prefix_tokens
        assert row.author == [STUDENT] * row.prefix_tokens + [TEACHER] * new
        assert len(row.logprobs) == len(row.response_token_ids)
        assert (row.stage, row.setting, row.sample_index, row.round) == ("refined", setting, parent.sample_index, 0)
        assert row.verdict is not None
    # The new ids and their log-probabilities are those that the teacher gives to prompt and prefix as one prompt.
    whole = changed(out, own, lambda row: row)
    assert_greedy(teacher, rows_of(whole))
    student, context, response = trained_on(ok, out, setting, world)
    first = next(row for row in rows if visible(row.response) in response)
    assert first.messages[0]["content"] in context
    assert first.problem in student
    assert (first.reference_solution in context) == (setting == "opsd")


def assert_greedy(directory: Path, rows: list[Trajectory]) -> None:
    """Assert that each new token of the rows is the likeliest one after all before it, with that log-probability."""
    import torch
    from support.tiny import reference_model

    model = reference_model(directory)
    for row in rows:
        ids = torch.tensor([[*row.prompt_token_ids, *row.response_token_ids]])
        first = len(row.prompt_token_ids) + row.prefix_tokens
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)[first - 1 : -1]
        assert logprobs.argmax(-1).tolist() == row.response_token_ids[row.prefix_tokens :]
        assert logprobs.max(-1).values.tolist() == pytest.approx(row.logprobs[row.prefix_tokens :], abs=1e-4)


def trained_on(ok: Trd, source: Path, setting: str, world: World) -> tuple[str, str, str]:
    """Return what student and teacher read before the first row that is trained on, and what both score."""
    said = ok("distill", source, "--dtype", "float32", "--device", "cpu", "--dry-run").stderr
    parts = ("student reads (", "teacher reads (", "both score (", "would train ")
    places = [said.index(part) for part in parts]
    student, teacher, response = (said[a:b] for a, b in pairwise(places))
    return student, teacher, response.partition("\n")[2].strip("\n")


@pytest.mark.parametrize("is_exact", [True, False])
def test_a_server_is_sent_prompt_and_prefix_as_ids_and_only_its_own_text_is_tokenised(
    is_exact: bool, world: World, tmp_path: Path, ok: Trd, serve: Callable[..., Server]
) -> None:
    ids = [8, 9, 10, END]
    with_ids = {"token_ids": ids, "logprobs": {"token_logprobs": [-0.5] * 4}}
    server = serve(completion("ing", **(with_ids if is_exact else {})))
    engine = ("--engine", "openai", "--base-url", server.url)
    command = ("sample", "-m", world.student, "--from", world.greedy, "--prefix", 5, "--limit", 3, *engine)
    ok(*command, "--out", tmp_path / "on")
    tokenizer, parents = resolve_model(str(world.student)).tokenizer(), by_id(world.greedy)
    rows = rows_of(tmp_path / "on")
    sent = [one.body["prompt"][0] for one in server.received]
    assert sorted(sent) == sorted([*row.prompt_token_ids, *row.response_token_ids[:5]] for row in rows)
    for row in rows:
        assert row.response_token_ids[:5] == parents[row.parent_id].response_token_ids[:5]
        assert row.response_token_ids[5:] == (ids if is_exact else [*tokenizer.encode("ing"), END])
        assert row.ids_exact == is_exact
        assert (row.logprobs is not None) == is_exact


# Which rows, and whose


def test_each_row_of_the_subset_gets_so_many_rows_that_point_back_to_it(y_o: Path, tmp_path: Path, ok: Trd) -> None:
    ok(*SCRIPTED, "--from", y_o, "--subset", "incorrect", "--prefix", 12, "-n", 3, "--out", tmp_path / "on")
    parents, rows = by_id(y_o), rows_of(tmp_path / "on")
    wrong = [name for name, row in parents.items() if row.verdict == "incorrect"]
    assert sorted((row.parent_id, row.sample_index) for row in rows) == sorted((p, i) for p in wrong for i in range(3))
    assert len({row.seed for row in rows}) == len({row.trajectory_id for row in rows}) == len(rows)
    for row in rows:
        parent = parents[row.parent_id]
        assert (row.stage, row.round, row.setting, row.author) == ("rollout", parent.round, None, None)
        assert (row.prefix_tokens, row.response_token_ids[:12]) == (12, parent.response_token_ids[:12])
        assert row.logprobs[:12] == parent.logprobs[:12]
        assert len(row.logprobs) == len(row.response_token_ids)
        assert row.response.startswith(parent.response[:12])
        assert row.response != parent.response
        for same in ("problem_id", "reference_answer", "messages", "prompt_token_ids", "prompt_sha256"):
            assert getattr(row, same) == getattr(parent, same)
        assert row.student_prompt_token_ids is None
    assert json.loads((tmp_path / "on" / "run.json").read_text())["rows_expected"] == 3 * len(wrong)


def test_rows_gone_on_with_are_graded_refined_and_compared_with_their_parents(
    y_o: Path, tmp_path: Path, ok: Trd
) -> None:
    on, y_r = tmp_path / "on", tmp_path / "y_r"
    ok(*SCRIPTED, "--from", y_o, "--prefix", "0.5", "--engine-arg", "accuracy=0.6", "--out", on)
    ok("verify", on, "--workers", 1)
    wrong = {name for name, row in by_id(y_o).items() if row.verdict == "incorrect"}
    repaired = [row for row in rows_of(on) if row.verdict == "correct" and row.parent_id in wrong]
    assert repaired
    ok("refine", "--setting", "opsd", on, "--subset", "repaired", "--out", y_r)
    parents = {row.trajectory_id: row for row in repaired}
    rows = rows_of(y_r)
    assert {row.parent_id for row in rows} == parents.keys()
    assert {row.student_prompt_token_ids == parents[row.parent_id].prompt_token_ids for row in rows} == {True}


def test_a_refined_row_is_gone_on_with_after_the_students_prompt_and_its_tokens_keep_their_authors(
    y_o: Path, tmp_path: Path, ok: Trd
) -> None:
    y_r, on, again = tmp_path / "y_r", tmp_path / "on", tmp_path / "again"
    ok("refine", "--setting", "opsd", "--mode", "continue", "--prefix", 10, y_o, "--out", y_r)
    ok(*SCRIPTED, "--from", y_r, "--prefix", 15, "--out", on)
    for row in rows_of(on):
        assert row.stage == "rollout"
        assert row.prompt_token_ids == by_id(y_r)[row.parent_id].student_prompt_token_ids
        assert row.author[:15] == [STUDENT] * 10 + [TEACHER] * 5
        assert set(row.author[15:]) == {STUDENT}
    ok(*SCRIPTED, "--from", on, "--prefix", 10, "--out", again)
    assert {row.author for row in rows_of(again)} == {None}, "all of them are the student's"


def test_a_row_with_authors_of_its_own_keeps_them_when_the_teacher_goes_on(y_o: Path, tmp_path: Path, ok: Trd) -> None:
    def mixed(row: Trajectory) -> Trajectory:
        return replace(row, author=author_array([2] * 4 + [0] * (len(row.response_token_ids) - 4)))

    source = changed(y_o, tmp_path / "mixed", mixed)
    ok("refine", "--setting", "opsd", "--mode", "continue", "--prefix", 6, source, "--out", tmp_path / "y_r")
    for row in rows_of(tmp_path / "y_r"):
        assert row.author[:7] == [2, 2, 2, 2, 0, 0, 1]
        assert list(authors_of(row)) == row.author


def test_a_row_that_ends_before_the_prefix_does_is_left_out_and_counted(y_o: Path, tmp_path: Path, ok: Trd) -> None:
    lengths = {name: len(row.response_token_ids) - 1 for name, row in by_id(y_o).items()}
    limit = sorted(lengths.values())[8]
    long = {name for name, length in lengths.items() if length >= limit}
    short = len(lengths) - len(long)
    assert 0 < short < 9
    note = f"left out {short} of 24 rows: a response of less than {limit} tokens before its end"
    for name, command in {
        "sample": (*SCRIPTED, "--from", y_o, "-n", 2),
        "refine": ("refine", "--setting", "opsd", "--mode", "continue", y_o),
    }.items():
        result = ok(*command, "--prefix", limit, "--out", tmp_path / name)
        assert note in result.stderr
        rows = rows_of(tmp_path / name)
        assert {row.parent_id for row in rows} == long
        assert ok("status", tmp_path / name).stdout.split("\t")[2:4] == ["complete", str(len(rows))]
        assert note in ok(*command, "--prefix", limit, "--out", tmp_path / name).stderr, "resumed, it says so again"


def test_the_end_of_the_turn_is_never_given(y_o: Path, tmp_path: Path, ok: Trd) -> None:
    ok(*SCRIPTED, "--from", y_o, "--prefix", "1.0", "--max-tokens", 5, "--out", tmp_path / "on")
    for row in rows_of(tmp_path / "on"):
        parent = by_id(y_o)[row.parent_id]
        assert row.response_token_ids[:-5] == parent.response_token_ids[:-1]
        assert (row.finish_reason, row.max_tokens) == ("length", 5)


def test_a_row_without_a_response_and_one_without_room_end_as_errors(y_o: Path, tmp_path: Path, trd: Trd) -> None:
    first = rows_of(y_o)[0].trajectory_id

    def fail(row: Trajectory) -> Trajectory:
        gone = {"response": None, "response_token_ids": None, "logprobs": None, "finish_reason": None}
        return replace(row, **gone, error="scripted fault") if row.trajectory_id == first else row

    source = changed(y_o, tmp_path / "broken", fail)
    result = trd(*SCRIPTED, "--from", source, "--prefix", 8, "--max-errors", 1, "--out", tmp_path / "on")
    assert result.exit_code == 0
    [failed] = [row for row in rows_of(tmp_path / "on") if row.error is not None]
    assert (failed.parent_id, failed.error) == (first, "the rollout has no response: scripted fault")
    assert (failed.response_token_ids, failed.logprobs, failed.author) == (None, None, None)

    room = len(rows_of(y_o)[0].prompt_token_ids) + 12
    command = ("--from", y_o, "--max-model-len", room, "--max-errors", 24)
    assert trd(*SCRIPTED, *command, "--prefix", 9, "--out", tmp_path / "tight").exit_code == 0
    for row in rows_of(tmp_path / "tight"):
        read = len(row.prompt_token_ids) + 9
        if read >= room:
            assert row.error == f"prompt too long: {read} tokens, the model takes {room}"
        else:
            assert len(row.response_token_ids) == 9 + room - read, "the new tokens end where the context does"


def test_a_slice_has_the_same_rows_for_every_prefix_and_in_parts(y_o: Path, tmp_path: Path, ok: Trd) -> None:
    command = (*SCRIPTED, "--from", y_o, "--skip", 3, "--limit", 9, "-n", 2)
    expected = sorted(by_id(y_o))[3:12]
    for prefix in (5, "0.8"):
        ok(*command, "--prefix", prefix, "--out", tmp_path / f"on-{prefix}")
        assert sorted({row.parent_id for row in rows_of(tmp_path / f"on-{prefix}")}) == expected
    for part in ("2/3", "1/3", "3/3"):
        ok(*command, "--prefix", 5, "--shard", part, "--out", tmp_path / "parts")
    assert by_id(tmp_path / "parts") == by_id(tmp_path / "on-5")


# Runs that end early, and other ways to the same rows


MODES = {
    "sample": (*SCRIPTED, "-n", 2, "--prefix", "0.4", "--from"),
    "refine": ("refine", "--setting", "opsd", "--mode", "continue", "--prefix", "0.4"),
}


@pytest.fixture(scope="module", params=MODES)
def whole(request: pytest.FixtureRequest, y_o: Path, ok: Trd) -> tuple[tuple[Any, ...], Path]:
    """Return a command that goes on from prefixes, and the rows that it makes undisturbed."""
    command = (*MODES[request.param], y_o, "--shard-rows", 7)
    out = y_o.parent / f"whole-{request.param}"
    ok(*command, "--out", out)
    return command, out


def test_what_a_kill_leaves_is_finished_by_the_same_command(
    whole: tuple[tuple[Any, ...], Path], tmp_path: Path, ok: Trd, start: Start
) -> None:
    command, undisturbed = whole
    out = tmp_path / "out"
    run = start(*command, "--engine-arg", "delay=0.05", "--out", out)
    wait_for(lambda: list_shards(out) if out.is_dir() else [])
    run.kill()
    before = by_id(out)
    assert 0 < len(before) < len(by_id(undisturbed))
    ok(*command, "--engine-arg", "delay=0.05", "--out", out)
    after = by_id(out)
    assert after == by_id(undisturbed)
    assert before.items() <= after.items()


def test_parts_make_the_rows_of_the_whole(whole: tuple[tuple[Any, ...], Path], tmp_path: Path, ok: Trd) -> None:
    command, undisturbed = whole
    for part in ("2/2", "1/2"):
        ok(*command, "--shard", part, "--out", tmp_path / "parts")
    assert by_id(tmp_path / "parts") == by_id(undisturbed)
    assert ok("status", tmp_path / "parts").stdout.splitlines()[0].split("\t")[2] == "complete"


def test_replicas_make_the_rows_of_one_engine(whole: tuple[tuple[Any, ...], Path], tmp_path: Path, ok: Trd) -> None:
    command, undisturbed = whole
    ok(*command, "--replicas", 2, "--out", tmp_path / "several")
    assert by_id(tmp_path / "several") == by_id(undisturbed)


def test_paths_from_a_pipe_make_the_rows_of_a_named_set(
    whole: tuple[tuple[Any, ...], Path], y_o: Path, tmp_path: Path, ok: Trd
) -> None:
    command, undisturbed = whole
    piped = [("-" if word == y_o else word) for word in command]
    paths = "".join(f"{path}\n" for path in list_shards(y_o))
    ok(*piped, "--out", tmp_path / "piped", stdin=paths)
    assert by_id(tmp_path / "piped") == by_id(undisturbed)
    if command[0] == "refine":
        ok(*piped, "--stream", "--out", tmp_path / "stream", stdin=paths)
        assert by_id(tmp_path / "stream") == by_id(undisturbed)


def test_more_rows_a_prefix_add_to_those_that_are_there_and_fewer_are_refused(
    y_o: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    command = (*SCRIPTED, "--from", y_o, "--prefix", 7, "--out", tmp_path / "on")
    ok(*command)
    before = by_id(tmp_path / "on")
    ok(*command, "-n", 2)
    assert len(by_id(tmp_path / "on")) == 2 * len(before)
    assert before.items() <= by_id(tmp_path / "on").items()
    assert "holds 24 rows that this command would not make" in refused(trd, *command)
    assert "holds" in refused(trd, *command, "-n", 2, "--limit", 3)


def test_other_prefixes_make_other_rows_and_are_refused_in_a_set_that_is_there(
    y_o: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    seen: set[str] = set()
    for number, prefix in enumerate([(7,), (8,), ("0.5",), ("0.5", "--at-line-break")]):
        command = (*SCRIPTED, "--from", y_o, "--prefix", *prefix)
        ok(*command, "--out", tmp_path / f"on-{number}")
        rows = by_id(tmp_path / f"on-{number}")
        assert not rows.keys() & seen
        seen |= rows.keys()
    assert "prefix (7 → 9)" in refused(trd, *SCRIPTED, "--from", y_o, "--prefix", 9, "--out", tmp_path / "on-0")


def test_a_preview_shows_how_much_is_given_and_writes_nothing(y_o: Path, tmp_path: Path, ok: Trd) -> None:
    said = ok(*SCRIPTED, "--from", y_o, "--prefix", 7, "-n", 3, "--dry-run", "--out", tmp_path / "on").stderr
    assert "then 7 tokens of the response" in said
    assert "would make 72 rows with scripted" in said
    assert not (tmp_path / "on").exists()
    nothing = ok(*SCRIPTED, "--from", y_o, "--prefix", 7, "--where", "round = 9", "--out", tmp_path / "on").stderr
    assert "no row is in the subset: nothing to go on from" in nothing


# Refusals


def test_what_cannot_be_gone_on_with_is_refused_in_one_line(
    world: World, y_o: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    def refusal(*words: Any) -> str:
        line = refused(trd, *words, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return line

    on = ("--from", y_o, "--prefix", 7)
    chat = ("--engine", "openai", "--base-url", "http://localhost:9/v1", "--engine-arg", "api=chat")
    refine = ("refine", "--setting", "opsd", "--mode")
    for command in (("sample", "-m", world.student), (*refine, "continue"), (*refine, "relay")):
        taken = (*command, *chat, *(on if command[0] == "sample" else (world.greedy,)))
        assert "openai with api=chat, which takes no token ids to go on from; expected a server that" in refusal(*taken)
    assert "the tokenizer of scripted is not the one that wrote" in refusal(
        *SCRIPTED, "--from", world.greedy, "--prefix", 7
    )
    half = shutil.copytree(y_o, tmp_path / "half")
    list_shards(half)[-1].unlink()
    assert "half is unfinished: 20 of 24 rows" in refusal(*SCRIPTED, "--from", half, "--prefix", 7)
    ok(*SCRIPTED, "--from", half, "--prefix", 7, "--allow-partial", "--out", tmp_path / "partial")
    assert "no such file or directory" in refusal(*SCRIPTED, "--from", tmp_path / "none", "--prefix", 7)


PLAIN = (*SCRIPTED, "-p", "p.parquet")
REFUSED = {
    "neither": (SCRIPTED, "no --problems; expected a problem set, --env SPEC or --from SET"),
    "both": ((*PLAIN, "--from", "y"), "--problems with --from"),
    "no prefix": ((*SCRIPTED, "--from", "y"), "--from without --prefix"),
    "no prefix, but a break": ((*SCRIPTED, "--from", "y", "--at-line-break"), "--from without --prefix"),
    "no number": ((*SCRIPTED, "--from", "y", "--prefix", "half"), "--prefix half; expected a number of tokens, as 64"),
    "too much": ((*SCRIPTED, "--from", "y", "--prefix", "1.5"), "--prefix 1.5; expected"),
    "a template": ((*SCRIPTED, "--from", "y", "--prefix", 7, "--render", "raw"), "--render with --from"),
    "a round": ((*SCRIPTED, "--from", "y", "--prefix", 7, "--round", 1), "--round with --from"),
    "a filter": ((*SCRIPTED, "--from", "y", "--prefix", 7, "--max-prompt-tokens", 9), "--max-prompt-tokens with"),
    "a subset": ((*PLAIN, "--subset", "correct"), "--subset without --from"),
    "a prefix": ((*PLAIN, "--prefix", "0.5"), "--prefix without --from"),
    "rewritten": (("refine", "--setting", "opsd", "--prefix", "0.5", "y"), "--prefix with --mode rewrite"),
    "a break": (("refine", "--setting", "opsd", "--at-line-break", "y"), "--at-line-break with --mode rewrite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_do_not_go_together_are_refused_by_name(name: str, trd: Trd) -> None:
    words, said = REFUSED[name]
    assert said in refused(trd, *words)


def test_an_open_prefix_is_half_of_the_response_and_a_recipes_number_is_read(y_o: Path, tmp_path: Path) -> None:
    unset = RefineConfig.parse({"setting": "opsd", "mode": "continue"})
    given = RefineConfig.parse({"setting": "opsd", "mode": "continue", "prefix": 0.5})
    assert unset == given
    assert unset.cut == Cut(share=0.5)
    assert "--prefix" not in unset.flags()
    assert RefineConfig.parse({"setting": "opsd", "mode": "continue", "prefix": 64}).cut == Cut(tokens=64)
    rewriting = RefineConfig.parse({"setting": "opsd"})
    assert rewriting.cut is None
    assert not {"mode", "prefix", "at_line_break"} & rewriting.identity().keys(), "identities of earlier runs stay"


# Training, recipes and plans


def test_training_reads_the_context_of_the_continuation_and_cuts_its_reference_alone(
    world: World, tmp_path: Path, ok: Trd
) -> None:
    out = tmp_path / "y_r"
    ok("refine", "--setting", "opsd", "--mode", "continue", world.greedy, *GREEDY, "--out", out)
    rows = rows_of(out)
    room = min(len(row.prompt_token_ids) for row in rows)
    longest = max(len(row.response_token_ids) for row in rows)
    train = ("distill", out, "--dtype", "float32", "--device", "cpu", "--dry-run")
    assert "cut the" not in ok(*train).stderr
    said = ok(*train, "--max-length", room + longest - 20).stderr
    assert f"cut the reference in the teacher's context of {len(rows)} of {len(rows)} rows" in said


def recipe_of(directory: Path, refine: str, arm: str) -> Path:
    path = directory / "recipe.toml"
    path.write_text(
        'setting = "opsd"\nstudent = "scripted"\n[problems]\nmake = { kind = "arithmetic", n = 4, seed = 1 }\n'
        f'[refine]\n{refine}\n[arms.as-all]\nmethod = "trd"\n[arms.own]\nmethod = "trd"\nrefine = {{ {arm} }}\n'
    )
    return path


def test_an_arm_of_a_recipe_may_go_on_from_prefixes_of_its_own(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, 'mode = "continue"', "prefix = 64, at_line_break = true")
    graph = build_graph(load_recipe(recipe), tmp_path)
    nodes = {node.arm: node for node in graph.nodes if node.stage == "refine"}
    cuts = {arm: node.config.cut for arm, node in nodes.items()}
    assert list(cuts.values()) == [Cut(share=0.5), Cut(tokens=64, at_line_break=True)]
    words = " ".join(nodes["own"].argv)
    assert "--mode continue" in words
    assert "--prefix 64 --at-line-break" in words


@pytest.mark.parametrize(
    ("refine", "arm", "said"),
    [
        ("prefix = 0.4", "", r"\[refine\] prefix with mode rewrite"),
        ("", "prefix = 0.4", r"\[arms.own.refine\] prefix with mode rewrite"),
        ('mode = "continue"\nprefix = 0.4', 'mode = "rewrite"', r"\[arms.own.refine\] prefix with mode rewrite"),
        ('mode = "continue"', "prefix = 1.5", r"\[arms.own.refine\] prefix 1.5; expected a number of tokens"),
        ('prompt = "refine.jinja"', 'mode = "continue"', r"refine.jinja has the placeholder 'attempt'"),
        ("[sample]\nprefix = 0.4", "", r"\[sample\] prefix; expected the table \[problems\]"),
    ],
)
def test_a_recipe_with_a_prefix_that_nothing_reads_is_refused(
    refine: str, arm: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refine.jinja").write_text("{{ problem }} {{ attempt }}")
    with pytest.raises(UserError, match=said):
        build_graph(load_recipe(recipe_of(tmp_path, refine, arm)), tmp_path)
