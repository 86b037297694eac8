"""trd refine --mode relay: who writes which token of a relayed row, where legs end, and phases that go on."""

from __future__ import annotations

import json
import math
import shutil
import signal
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import Result
from support.children import Start, forking, wait_for
from support.pair import ID, START, Table, build_table
from support.sets import by_id, rows_of
from support.tiny import build_model

from trd_cli.records import Trajectory, author_array, logprob_array, token_array
from trd_cli.relaying.response import Relay, Response, Rules, Trigger, leg_length, room_of_leg
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

Trd = Callable[..., Result]

RULES = Rules(legs=2, leg_tokens=4, leg_paragraphs=0)
MOST = 100
WORDS = {1: "so ", 2: "it ", 3: "holds", 4: "\n", 5: ".\n\n", 6: "\n\n\n", 9: "wait "}


def decode(ids) -> str:
    return "".join(WORDS[i] for i in ids)


def written(ids: list[int], author: list[int], finish: str | None = None, logprobs: list[float] | None = None):
    return Response(
        token_array(ids), author_array(author), None if logprobs is None else logprob_array(logprobs), finish
    )


def shown(response: Response) -> tuple[list[int], list[int], str | None]:
    return response.token_ids.tolist(), response.author.tolist(), response.finish_reason


def test_a_row_is_the_students_until_the_trigger_then_a_leg_then_the_students_again_and_ends_with_the_last_leg() -> (
    None
):
    relay = Relay.begun(written([1, 2, 1, 2, 3], [0] * 5, "stop", [-1, -2, -3, -4, -5]), MOST)
    assert (relay.step, relay.place) == ("score", 0)

    relay = relay.after_search(Trigger(place=2, onset=9, logprob=-0.5))
    assert (relay.step, shown(relay.response)) == ("teacher", ([1, 2, 9], [0, 0, 1], None))
    assert relay.response.logprobs == array("f", [-1, -2, -0.5])

    leg = written([1, 2, 9, 3, 3, 1], [0, 0, 1, 1, 1, 1], "length")
    relay = Relay.after_leg(leg, 3, 1, RULES, MOST, decode)
    assert (relay.step, relay.response.finish_reason) == ("student", None)

    goes_on = written([1, 2, 9, 3, 3, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, 0, 0, 0], "stop")
    relay = Relay.after_student(goes_on, 6)
    assert (relay.step, relay.place) == ("score", 6)

    relay = relay.after_search(Trigger(place=6, onset=9, logprob=0.0))
    assert shown(relay.response) == ([1, 2, 9, 3, 3, 1, 9], [0, 0, 1, 1, 1, 1, 1], None)

    leg = written([1, 2, 9, 3, 3, 1, 9, 2], [0, 0, 1, 1, 1, 1, 1, 1], "length")
    relay = Relay.after_leg(leg, 7, 2, RULES, MOST, decode)
    assert (relay.step, relay.response.finish_reason) == ("end", "length")


def test_a_row_without_a_trigger_is_the_students_and_ends_as_the_student_ended_it() -> None:
    rollout = written([1, 2, 3], [0, 0, 0], "stop", [-1, -2, -3])
    relay = Relay.begun(rollout, MOST).after_search(None)
    assert (relay.step, relay.response) == ("end", rollout)


def test_a_leg_in_which_the_teacher_ends_its_turn_ends_the_row() -> None:
    leg = written([1, 9, 3], [0, 1, 1], "stop")
    relay = Relay.after_leg(leg, 2, 1, RULES, MOST, decode)
    assert (relay.step, shown(relay.response)) == ("end", ([1, 9, 3], [0, 1, 1], "stop"))


@pytest.mark.parametrize(
    ("leg", "paragraphs", "length"),
    [
        ([9, 3, 5, 1, 5, 1], 1, 3),
        ([9, 3, 5, 1, 5, 1], 2, 5),
        ([9, 3, 5, 1, 5, 1], 3, 6),
        ([9, 3, 5, 1, 5, 1], 0, 6),
        ([9, 3, 4, 4, 1], 1, 4),
        ([9, 3, 4, 1, 4, 1], 1, 6),
        ([9, 6, 4, 1, 5], 2, 5),
    ],
    ids=["first", "second", "fewer", "not asked", "of two tokens", "line breaks alone", "a long gap is one"],
)
def test_a_leg_ends_with_its_last_blank_line(leg: list[int], paragraphs: int, length: int) -> None:
    assert leg_length(leg, Rules(2, 99, paragraphs), decode) == length


def test_what_the_teacher_wrote_after_the_last_blank_line_is_dropped_even_its_end() -> None:
    leg = written([1, 9, 5, 2, 3], [0, 1, 1, 1, 1], "stop", [-1.0, -2.0, -3.0, -4.0, -5.0])
    relay = Relay.after_leg(leg, 2, 1, Rules(2, 99, 1), MOST, decode)
    assert (relay.step, shown(relay.response)) == ("student", ([1, 9, 5], [0, 1, 1], None))
    assert relay.response.logprobs == array("f", [-1, -2, -3])


@pytest.mark.parametrize(
    ("length", "leg_tokens", "most", "room"),
    [(10, 4, 100, 3), (10, 1, 100, 0), (98, 4, 100, 2), (100, 4, 100, 0)],
    ids=["a whole leg", "the onset token alone", "the row's last tokens", "none"],
)
def test_a_leg_has_room_for_its_tokens_less_the_onset_and_no_more_than_the_row(
    length: int, leg_tokens: int, most: int, room: int
) -> None:
    assert room_of_leg(length, Rules(2, leg_tokens, 0), most) == room


def test_a_row_at_its_token_budget_ends() -> None:
    assert shown(Relay.begun(written([1, 2, 3], [0] * 3, "stop"), 2).response) == ([1, 2], [0, 0], "length")
    leg = written([1, 9, 3], [0, 1, 1], "length")
    relay = Relay.after_leg(leg, 2, 1, RULES, 3, decode)
    assert (relay.step, relay.response.finish_reason) == ("end", "length")


# The student goes round good, bad, worse. After bad the teacher turns back, and goes round three other words.
STUDENT: Table = {
    **{word: {"good": 0.97} for word in (START, "worse", "Wait", "filler0", "filler1", "filler2")},
    "good": {"bad": 0.97},
    "bad": {"worse": 0.97},
}
TEACHER: Table = STUDENT | {
    "bad": {"Wait": 0.6, "worse": 0.3},
    "Wait": {"filler0": 0.9},
    "filler0": {"filler1": 0.8},
    "filler1": {"filler2": 0.7},
    "filler2": {"filler0": 0.6},
}
GREEDY = ("--temperature", 0, "--dtype", "float32", "--device", "cpu", "--max-tokens", 14)


def words(text: str) -> list[int]:
    return [ID[{"W": "Wait", "0": "filler0", "1": "filler1", "2": "filler2"}.get(word, word)] for word in text.split()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    build_table(directory / "student", STUDENT)
    build_table(directory / "teacher", TEACHER)
    build_table(directory / "ending", TEACHER | {"filler0": {"<|end|>": 0.9}})
    (directory / "onset.txt").write_text("Wait\n")
    return directory


@pytest.fixture(scope="module")
def y_o(models: Path, tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return three rollouts, each: good bad worse good bad worse good."""
    directory = tmp_path_factory.mktemp("rollouts")
    ok("data", "make", "arithmetic", "--n", 3, "--out", directory / "p.parquet")
    args = ("-p", directory / "p.parquet", *GREEDY, "--max-tokens", 7)
    ok("sample", "-m", models / "student", *args, "--out", directory / "y_o")
    assert [row.response_token_ids for row in rows_of(directory / "y_o")] == [words("good bad worse " * 2 + "good")] * 3
    return directory / "y_o"


@pytest.fixture(scope="module")
def relay(models: Path, y_o: Path, ok: Trd) -> Callable[..., list[Trajectory]]:
    def run(out: Path, *options: object, teacher: str = "teacher", sets: Path = y_o) -> list[Trajectory]:
        words = ("refine", "--setting", "opd", "--mode", "relay", "--teacher", models / teacher, *GREEDY)
        ok(*words, "--onset", models / "onset.txt", *options, "--out", out, sets)
        return rows_of(out)

    return run


def test_a_relayed_row_by_hand(relay: Callable[..., list[Trajectory]], y_o: Path, tmp_path: Path) -> None:
    rows = relay(tmp_path / "out", "--leg-tokens", 3)
    assert sorted(row.parent_id for row in rows) == sorted(row.trajectory_id for row in rows_of(y_o))
    for row in rows:
        assert row.response_token_ids == words("good bad W 0 1 good bad W 0 1")
        assert row.author == [0, 0, 1, 1, 1, 0, 0, 1, 1, 1]
        chances = [0.97, 0.97, 0.6, 0.9, 0.8] * 2
        assert row.logprobs == pytest.approx([math.log(chance) for chance in chances], abs=1e-5)
        assert (row.stage, row.setting, row.finish_reason, row.error) == ("refined", "opd", "length", None)
        assert row.response == "good bad Wait filler0 filler1 good bad Wait filler0 filler1"


@pytest.mark.parametrize(
    ("options", "teacher", "text", "author", "finish"),
    [
        (("--legs", 1, "--leg-tokens", 3), "teacher", "good bad W 0 1", [0, 0, 1, 1, 1], "length"),
        (("--leg-tokens", 1), "teacher", "good bad W good bad W", [0, 0, 1, 0, 0, 1], "length"),
        (("--leg-tokens", 9), "ending", "good bad W 0 <|end|>", [0, 0, 1, 1, 1], "stop"),
        (("--leg-tokens", 3, "--max-tokens", 6), "teacher", "good bad W 0 1 good", [0, 0, 1, 1, 1, 0], "length"),
        (("--leg-tokens", 3, "--max-tokens", 4), "teacher", "good bad W 0", [0, 0, 1, 1], "length"),
        (("--leg-tokens", 3, "--max-tokens", 3), "teacher", "good bad W", [0, 0, 1], "length"),
        (("--max-tokens", 2), "teacher", "good bad", [0, 0], "length"),
        ((), "student", "good bad worse good bad worse good", [0] * 7, "length"),
    ],
    ids=[
        *("one leg", "onset tokens alone", "the teacher's end of turn", "budget in the student's part"),
        *("budget in a leg", "budget at the onset", "budget before the trigger", "no trigger"),
    ],
)
def test_a_row_ends_with_its_last_leg_its_budget_or_a_turn(
    relay: Callable[..., list[Trajectory]],
    tmp_path: Path,
    options: tuple[object, ...],
    teacher: str,
    text: str,
    author: list[int],
    finish: str,
) -> None:
    rows = relay(tmp_path / "out", *options, teacher=teacher)
    assert len(rows) == 3
    for row in rows:
        assert (row.response_token_ids, row.author, row.finish_reason) == (words(text), author, finish)


def test_rows_without_a_trigger_are_kept_and_counted(models: Path, y_o: Path, tmp_path: Path, ok: Trd) -> None:
    command = ("refine", "--setting", "opd", "--mode", "relay", *GREEDY, "--onset", models / "onset.txt", y_o)
    said = ok(*command, "--teacher", models / "student", "--out", tmp_path / "none").stderr
    assert "3 rows: 3 without a trigger; the teacher wrote 0.0% of the tokens" in said
    said = ok(*command, "--teacher", models / "teacher", "--leg-tokens", 3, "--out", tmp_path / "two").stderr
    assert "3 rows: 3 with 2 legs, 0 without a trigger; the teacher wrote 60.0% of the tokens" in said


PHASES = ("1-search", "1-teacher", "1-student", "2-search", "2-teacher")


@pytest.fixture(scope="module")
def whole(relay: Callable[..., list[Trajectory]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished set of relays with its phases, a row a shard."""
    out = tmp_path_factory.mktemp("whole") / "out"
    relay(out, "--leg-tokens", 3, "--shard-rows", 1)
    assert sorted(path.name for path in (out / "phases").iterdir()) == sorted(PHASES)
    return out


def test_a_damaged_file_of_triggers_is_searched_again(
    whole: Path, relay: Callable[..., list[Trajectory]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for path in out.glob("shard-*"):
        path.unlink()
    damaged = out / "phases" / "2-search" / "triggers-00000.json"
    damaged.write_text(damaged.read_text().replace("7", "8"))
    relay(out, "--leg-tokens", 3, "--shard-rows", 1)
    assert sorted(map(repr, rows_of(out))) == sorted(map(repr, rows_of(whole)))


@pytest.mark.parametrize(
    ("phase", "new", "relayed"),
    [
        ("1-student", "good bad W 0 1 good good bad worse good", "good bad W 0 1 good good bad W 0 1"),
        ("1-student", "good bad W 0 1 good worse", "good bad W 0 1 good worse"),
        ("1-teacher", "good bad W 0 2", "good bad W 0 2 good bad W 0 1"),
    ],
)
def test_a_phase_that_reads_otherwise_when_it_is_made_again_is_gone_on_from_anew(
    phase: str, new: str, relayed: str, whole: Path, relay: Callable[..., list[Trajectory]], tmp_path: Path
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    for path in out.glob("shard-*"):
        path.unlink()
    # As after a damaged shard, where chance or another device has made another text.
    path = list_shards(out / "phases" / phase)[0]
    [row] = read_rows(path)
    ids = words(new)
    author = author_array([*row.author[: row.prefix_tokens], *[phase == "1-teacher"] * (len(ids) - row.prefix_tokens)])
    changed = replace(
        row, response=new, response_token_ids=token_array(ids), author=author, logprobs=logprob_array([-1] * len(ids))
    )
    write_shard(path, [changed], json.loads((out / "phases" / phase / "run.json").read_text())["digest"])
    rows = relay(out, "--leg-tokens", 3, "--shard-rows", 1)
    assert {row.parent_id: row.response_token_ids for row in rows} == {
        row.parent_id: row.response_token_ids for row in rows_of(whole)
    } | {row.parent_id: words(relayed)}


def test_errors_are_made_again_without_the_phases_of_the_other_rows(
    whole: Path, relay: Callable[..., list[Trajectory]], tmp_path: Path
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    shutil.rmtree(out / "phases")
    path = list_shards(out)[0]
    [row] = read_rows(path)
    gone = dict.fromkeys(("response", "response_token_ids", "logprobs", "author", "finish_reason", "ids_exact"))
    digest = json.loads((out / "run.json").read_text())["digest"]
    write_shard(path, [replace(row, **gone, error="too little memory")], digest)
    rows = relay(out, "--leg-tokens", 3, "--shard-rows", 1, "--retry-errors")
    assert sorted(map(repr, rows)) == sorted(map(repr, rows_of(whole)))
    for phase in ("1-teacher", "1-student", "2-teacher"):
        assert [each.parent_id for each in rows_of(out / "phases" / phase)] == [row.parent_id]


def test_the_precision_of_the_search_is_among_what_decides_the_rows(whole: Path) -> None:
    identity = json.loads((whole / "run.json").read_text())["identity"]
    assert identity["relay"]["search_dtype"] == "float32"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return a directory with random models, and six rollouts drawn at temperature 1."""
    directory = tmp_path_factory.mktemp("drawn")
    build_model(directory / "student", seed=1)
    build_model(directory / "teacher", seed=2)
    (directory / "onset.txt").write_text("\n".join("abcdefghijklmnopqrstuvwxyz0123456789"))
    ok("data", "make", "arithmetic", "--n", 6, "--out", directory / "p.parquet")
    args = ("-p", directory / "p.parquet", *DRAWN, "--max-tokens", 24)
    ok("sample", "-m", directory / "student", *args, "--out", directory / "y_o")
    return directory


DRAWN = ("--temperature", 1, "--top-p", 1, "--top-k", 0, "--dtype", "float32", "--device", "cpu")


def test_rows_do_not_depend_on_the_size_of_shards_and_batches_or_on_parts(drawn: Path, tmp_path: Path, ok: Trd) -> None:
    command = ("refine", "--setting", "opd", "--mode", "relay", "--teacher", drawn / "teacher", *DRAWN)
    command += ("--onset", drawn / "onset.txt", "--max-tokens", 24, "--leg-tokens", 5, drawn / "y_o")
    ok(*command, "--out", tmp_path / "a")
    ok(*command, "--shard-rows", 2, "--batch-size", 1, "--out", tmp_path / "b")
    for part in ("1/2", "2/2"):
        ok(*command, "--shard", part, "--batch-size", 3, "--out", tmp_path / "c")
    first, second, third = (
        {name: replace(row, logprobs=None) for name, row in by_id(tmp_path / out).items()} for out in "abc"
    )
    assert first == second == third
    legs = {sum(1 for a, b in pairwise([0, *row.author]) if (a, b) == (0, 1)) for row in first.values()}
    assert {1, 2} & legs, "some rows are relayed"
    for row in first.values():
        parent = by_id(drawn / "y_o")[row.parent_id]
        begun = row.author.index(1) if 1 in row.author else len(row.author)
        assert row.response_token_ids[:begun] == parent.response_token_ids[:begun]


def test_the_same_model_with_the_reference_in_view_takes_over_too(drawn: Path, tmp_path: Path, ok: Trd) -> None:
    command = ("refine", "--setting", "opsd", "--mode", "relay", *DRAWN, "--onset", drawn / "onset.txt")
    ok(*command, "--max-tokens", 24, "--leg-tokens", 5, "--out", tmp_path / "out", drawn / "y_o")
    for row in rows_of(tmp_path / "out"):
        assert row.setting == "opsd"
        assert row.reference_solution in row.messages[0]["content"]
        assert len(row.prompt_token_ids) > len(row.student_prompt_token_ids)


def test_relayed_rows_are_graded_and_trained_on_as_any_other(drawn: Path, tmp_path: Path, ok: Trd) -> None:
    command = ("refine", "--setting", "opd", "--mode", "relay", "--teacher", drawn / "teacher", *DRAWN)
    command += ("--onset", drawn / "onset.txt", "--max-tokens", 24, "--leg-tokens", 5, drawn / "y_o")
    ok(*command, "--out", tmp_path / "out")
    ok("verify", tmp_path / "out", "--workers", 1)
    assert {row.verdict for row in rows_of(tmp_path / "out")} <= {"correct", "incorrect"}
    training = (
        "distill",
        "--objective",
        "sampled",
        "--teacher-context",
        "vanilla",
        "--dtype",
        "float32",
        "--device",
        "cpu",
    )
    tokens = {}
    for authors in ("all", "student", "teacher"):
        out = tmp_path / f"trained-{authors}"
        ok(*training, "--train-on", authors, "--batch-size", 6, tmp_path / "out", "--out", out)
        tokens[authors] = json.loads((out / "run.json").read_text())["about"]["tokens"]
    assert tokens["student"] + tokens["teacher"] == tokens["all"] > tokens["teacher"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--legs", 3), "--legs with --mode rewrite; expected --mode relay, which reads it"),
        (("--mode", "continue", "--onset", "x"), "--onset with --mode continue"),
        (("--mode", "relay", "--prefix", 9), "--prefix with --mode relay; expected --mode continue"),
        (("--mode", "relay", "--stream"), "--stream with --mode relay"),
        (("--mode", "relay", "--legs", 0), "--legs 0"),
        (("--mode", "relay", "--onset", "nowhere.txt"), "--onset nowhere.txt"),
        (("--mode", "relay", "--student", "scripted", "--engine", "auto"), "scripted has no weights"),
        (("--mode", "relay", "--engine", "openai"), "--mode relay with --engine openai"),
    ],
)
def test_what_cannot_be_relayed_is_refused_in_one_line(
    options: tuple[object, ...], said: str, models: Path, y_o: Path, tmp_path: Path, trd: Trd
) -> None:
    words = ("refine", "--setting", "opd", "--teacher", models / "teacher", *options)
    result = trd(*words, "--out", tmp_path / "out", y_o)
    assert result.exit_code == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("trd refine: error:")]
    assert said in line
    assert not (tmp_path / "out").exists()


def test_models_of_other_tokens_relay_nothing(drawn: Path, y_o: Path, tmp_path: Path, trd: Trd) -> None:
    words = ("refine", "--setting", "opd", "--mode", "relay", "--out", tmp_path / "out", y_o)
    for models in (("--teacher", drawn / "teacher"), ("--teacher", y_o, "--student", drawn / "student")):
        result = trd(*words, *models)
        assert result.exit_code == 1
    assert "the tokenizer of" in trd(*words, "--teacher", drawn / "teacher").stderr


def test_rollouts_drawn_in_two_ways_are_refused(models: Path, y_o: Path, tmp_path: Path, ok: Trd, trd: Trd) -> None:
    other = tmp_path / "other"
    args = ("-p", y_o.parent / "p.parquet", *GREEDY, "--temperature", 1, "--max-tokens", 4)
    ok("sample", "-m", models / "student", *args, "--out", other)
    words = ("refine", "--setting", "opd", "--mode", "relay", "--teacher", models / "teacher", y_o, other)
    result = trd(*words, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "rollouts that were drawn in 2 ways (T 0, " in result.stderr


def test_another_rule_is_another_set(models: Path, y_o: Path, whole: Path, tmp_path: Path, trd: Trd) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    words = ("refine", "--setting", "opd", "--mode", "relay", "--teacher", models / "teacher", *GREEDY)
    result = trd(*words, "--onset", models / "onset.txt", "--leg-tokens", 4, "--out", out, y_o)
    assert result.exit_code == 1
    assert "was made by another configuration: leg_tokens (3 → 4), relay (" in result.stderr


def test_a_rollout_that_is_an_error_becomes_an_error_row(
    relay: Callable[..., list[Trajectory]], y_o: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(y_o, broken)
    [path] = list_shards(broken)
    first, *others = read_rows(path)
    gone = dict.fromkeys(("response", "response_token_ids", "logprobs", "finish_reason", "ids_exact"))
    second, third = others
    strange = replace(second, response_token_ids=[*second.response_token_ids[:-1], 99])
    write_shard(path, [replace(first, **gone, error="a fault"), strange, third])
    rows = relay(tmp_path / "out", "--leg-tokens", 3, "--max-errors", 2, sets=broken)
    errors = {row.parent_id: row.error for row in rows if row.error}
    assert errors[first.trajectory_id] == "the rollout has no response: a fault"
    assert "token id 99" in errors[second.trajectory_id]
    assert [row.parent_id for row in rows if row.response] == [third.trajectory_id]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    modules = "import trd_cli.engines.transformers, trd_cli.relaying.relays, trd_cli.stages.refine"
    with forking(modules, tmp_path_factory.mktemp("talk")) as starts:
        yield starts


@pytest.mark.parametrize("phase", PHASES)
def test_a_command_that_is_killed_in_a_phase_makes_the_same_rows_when_it_is_run_again(
    phase: str,
    whole: Path,
    start: Start,
    models: Path,
    y_o: Path,
    relay: Callable[..., list[Trajectory]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    words = ("refine", "--setting", "opd", "--mode", "relay", "--teacher", models / "teacher", *GREEDY)
    words += ("--onset", models / "onset.txt", "--leg-tokens", 3, "--shard-rows", 1)
    run = start(*words, "--out", out, y_o)
    wait_for(lambda: any((out / "phases" / phase).glob("[!.]*-0000?.*")))
    assert run.kill() == -signal.SIGKILL
    assert not any(out.glob("shard-*"))
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*-0000?.*")}
    relay(out, "--leg-tokens", 3, "--shard-rows", 1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing is made twice"
    assert sorted(map(repr, rows_of(out))) == sorted(map(repr, rows_of(whole)))


def test_a_finished_set_needs_its_phases_no_more(
    whole: Path, relay: Callable[..., list[Trajectory]], tmp_path: Path
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    shutil.rmtree(out / "phases")
    relay(out, "--leg-tokens", 3, "--shard-rows", 1)
    assert not (out / "phases").exists()
    assert rows_of(out) == rows_of(whole)


def test_the_first_try_shows_what_would_be_relayed_and_writes_nothing(
    models: Path, y_o: Path, tmp_path: Path, ok: Trd
) -> None:
    words = ("refine", "--setting", "opd", "--mode", "relay", "--teacher", models / "teacher", "--dry-run")
    said = ok(*words, "--onset", models / "onset.txt", "--out", tmp_path / "out", y_o).stderr
    assert "would relay 3 rollouts" in said
    assert "at most 2 legs of 256 tokens a row" in said
    assert "onset tokens: 'Wait'" in said
    assert not (tmp_path / "out").exists()
