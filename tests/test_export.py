"""trd export: the rows of each layout and whose prompt they have, pairs of preference, files, and their consumers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from conftest import Trd
from support.rows import episode, refined_row, write_set
from support.tiny import build_model

from trd_cli.exchange.pairs import matched
from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import read_rows, write_shard

ONE = "What is 1 + 1?\n\nGive the answer in \\boxed{}."
TWO = "What is 2 + 2?\n\nGive the answer in \\boxed{}."
RIGHT = "<think>\nTwo ones.\n</think>\n\nIt is \\boxed{2}."
WRONG = "It is \\boxed{3}."
FORMATS = ("messages", "prompt-completion", "sharegpt", "verl", "nemo", "preference")
SINGLE = ("prompt-completion", "verl", "nemo", "preference")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rollout(name: str, response: str | None, verdict: str | None = None, **changes: Any) -> Trajectory:
    """Return a student's row for the first problem, or that of `changes`."""
    fields: dict[str, Any] = {"stage": "rollout", "setting": None, "parent_id": None, "student_prompt_token_ids": None}
    fields |= {"trajectory_id": name, "problem_id": "one", "problem": "What is 1 + 1?", "messages": [user(ONE)]}
    fields |= {"response": response, "verdict": verdict, "reference_answer": "2", "finish_reason": "stop"}
    fields |= {"source": "sums", "model": "student", "sample_index": 0}
    return refined_row(0, **{**fields, **changes})


def refined(name: str, parent: Trajectory, response: str | None, verdict: str | None, **changes: Any) -> Trajectory:
    """Return a teacher's row, with the teacher's prompt."""
    fields: dict[str, Any] = {"stage": "refined", "setting": "opd", "trajectory_id": name, "verdict": verdict}
    fields |= {"parent_id": parent.trajectory_id, "messages": [user(f"Refine this: {parent.response}")]}
    fields |= {"response": response, "model": "teacher", "student_prompt_token_ids": [1]}
    return replace(parent, **{**fields, **changes})


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """Return y_o and y_r: one attempt is repaired, one broken."""
    attempts = [
        rollout("o1", WRONG, "incorrect"),
        rollout("o2", "\\boxed{4}", "correct", problem_id="two", problem="What is 2 + 2?", messages=[user(TWO)]),
    ]
    # In another order than their parents.
    made = [refined("r2", attempts[1], "\\boxed{5}", "incorrect"), refined("r1", attempts[0], RIGHT, "correct")]
    return write_set(tmp_path / "y_o", [attempts]), write_set(tmp_path / "y_r", [made[:1], made[1:]])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def exported(ok: Trd, *words: Any, out: Path) -> list[dict[str, Any]]:
    ok("export", *words, "--out", out)
    return lines(out)


# Layouts

ABOUT_R1 = {
    **{"trajectory_id": "r1", "problem_id": "one", "parent_id": "o1", "source": "sums", "task": "math"},
    **{"stage": "refined", "setting": "opd", "round": 0, "sample_index": 0, "model": "teacher"},
    **{"finish_reason": "stop", "verdict": "correct", "problem": "What is 1 + 1?", "reference_answer": "2"},
    **{"parent_verdict": "incorrect"},
}
EXPECTED: dict[str, dict[str, Any]] = {
    "messages": {"messages": [user(ONE), said(RIGHT)], **ABOUT_R1},
    "prompt-completion": {"prompt": [user(ONE)], "completion": [said(RIGHT)], **ABOUT_R1},
    "sharegpt": {"conversations": [{"from": "human", "value": ONE}, {"from": "gpt", "value": RIGHT}], **ABOUT_R1},
    "nemo": {"input": ONE, "output": RIGHT, **ABOUT_R1},
    "verl": {
        "data_source": "sums",
        "prompt": [user(ONE)],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {
            **{"split": "train", "index": 0, "problem_id": "one", "trajectory_id": "r1", "question": "What is 1 + 1?"},
            **{"answer": "2", "solution": "", "verdict": "correct"},
        },
    },
    "preference": {
        **{"prompt": [user(ONE)], "chosen": [said(RIGHT)], "rejected": [said(WRONG)]},
        **{"problem_id": "one", "source": "sums", "task": "math", "problem": "What is 1 + 1?", "reference_answer": "2"},
        **{"chosen_trajectory_id": "r1", "chosen_stage": "refined", "chosen_model": "teacher"},
        **{"chosen_finish_reason": "stop", "chosen_verdict": "correct"},
        **{"rejected_trajectory_id": "o1", "rejected_stage": "rollout", "rejected_model": "student"},
        **{"rejected_finish_reason": "stop", "rejected_verdict": "incorrect"},
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_repaired_row_in_each_layout_is_what_was_written_by_hand(
    tmp_path: Path, ok: Trd, sets: tuple[Path, Path], name: str
) -> None:
    y_o, y_r = sets
    words = ("export", y_r, "--parents", y_o, "--subset", "repaired", "--format", name, "--out")
    ok(*words, tmp_path / "rows.jsonl")
    ok(*words, tmp_path / "rows.parquet")
    assert lines(tmp_path / "rows.jsonl") == [EXPECTED[name]]
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == [EXPECTED[name]]


def test_a_rollout_has_its_own_prompt_and_no_value_is_null(tmp_path: Path, ok: Trd, sets: tuple[Path, Path]) -> None:
    first, _ = exported(ok, sets[0], "--format", "messages", out=tmp_path / "rows.jsonl")
    assert first["messages"] == [user(ONE), said(WRONG)]
    assert (first["parent_id"], first["setting"], first["parent_verdict"]) == ("", "", "")
    assert None not in first.values()


def test_a_row_that_went_on_from_a_refined_one_has_the_prompt_of_the_first_rollout(
    tmp_path: Path, ok: Trd, sets: tuple[Path, Path]
) -> None:
    y_o, y_r = sets
    (parent,) = read_rows(y_r / "shard-00001.parquet")
    went_on = rollout("on", "It is \\boxed{2}", "correct", parent_id=parent.trajectory_id, messages=())
    on = write_set(tmp_path / "on", [[went_on]])
    words = ("--parents", y_r, "--parents", y_o, "--format", "messages")
    (row,) = exported(ok, on, *words, out=tmp_path / "rows.jsonl")
    assert row["messages"] == [user(ONE), said("It is \\boxed{2}")]


def test_a_refined_row_whose_rollout_is_gone_is_refused_and_nothing_is_written(
    tmp_path: Path, trd: Trd, sets: tuple[Path, Path]
) -> None:
    (tmp_path / "rows.jsonl").write_text("kept\n")
    result = trd("export", sets[1], "--format", "messages", "--out", tmp_path / "rows.jsonl")
    assert result.exit_code == 1
    assert "the parent o2 of the row r2 was not found" in result.stderr
    assert "--parents DIR" in result.stderr
    assert (tmp_path / "rows.jsonl").read_text() == "kept\n"


def test_rows_without_a_response_are_left_out_and_counted(tmp_path: Path, ok: Trd) -> None:
    rows = [rollout("a", RIGHT), rollout("b", None, error="too long"), rollout("c", ""), rollout("d", WRONG)]
    result = ok("export", write_set(tmp_path / "y_o", [rows]), "--format", "nemo", "--out", tmp_path / "rows.jsonl")
    assert [row["trajectory_id"] for row in lines(tmp_path / "rows.jsonl")] == ["a", "d"]
    assert "2 rows in" in result.stderr
    assert "of 4 rows" in result.stderr
    assert "left out: 1 row ended as an error" in result.stderr
    assert "left out: 1 row without a response" in result.stderr


def test_a_subset_in_which_nothing_is_left_is_refused_and_leaves_the_file_as_it_was(
    tmp_path: Path, trd: Trd, sets: tuple[Path, Path]
) -> None:
    (tmp_path / "rows.jsonl").write_text("kept\n")
    where = ("--where", "finish_reason = 'length'")
    result = trd("export", sets[0], *where, "--format", "messages", "--out", tmp_path / "rows.jsonl")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "none of 0 rows can be exported" in result.stderr
    assert (tmp_path / "rows.jsonl").read_text() == "kept\n"


def test_a_prompt_of_several_messages_is_no_text_for_nemo(tmp_path: Path, trd: Trd, ok: Trd) -> None:
    row = rollout("a", RIGHT, messages=[{"role": "system", "content": "Be brief."}, user(ONE)])
    y_o = write_set(tmp_path / "y_o", [[row]])
    result = trd("export", y_o, "--format", "nemo", "--out", tmp_path / "rows.jsonl")
    assert result.exit_code == 1
    assert "the prompt of a has 2 messages" in result.stderr
    (found,) = exported(ok, y_o, "--format", "sharegpt", out=tmp_path / "rows.jsonl")
    assert [turn["from"] for turn in found["conversations"]] == ["system", "human", "gpt"]


def test_verl_has_each_problem_once_with_tests_for_code_and_without_those_it_cannot_score(
    tmp_path: Path, ok: Trd
) -> None:
    tests = '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"]}'
    rows = [
        rollout("a", RIGHT, reference_solution="1 + 1 = 2"),
        rollout("b", WRONG, sample_index=1),
        rollout("c", "print(2)", problem_id="two", task="code", reference_answer=None, tests=tests),
        rollout("d", "?", problem_id="three", reference_answer=None),
    ]
    y_o = write_set(tmp_path / "y_o", [rows])
    result = ok("export", y_o, "--format", "verl", "--split", "test", "--out", tmp_path / "rows.jsonl")
    first, second = lines(tmp_path / "rows.jsonl")
    assert (first["extra_info"]["solution"], first["extra_info"]["split"]) == ("1 + 1 = 2", "test")
    assert (second["ability"], second["reward_model"]["ground_truth"]) == ("code", tests)
    assert [row["extra_info"]["index"] for row in (first, second)] == [0, 1]
    assert "left out: 1 row of a problem that is there already" in result.stderr
    assert "left out: 1 row without a reference answer or tests" in result.stderr


# Episodes

PLAYED = [("go east", "You are in a cellar.", True), ("take lamp", "You win.", True)]


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_an_episode_is_a_conversation_that_ends_with_its_last_action(tmp_path: Path, ok: Trd, name: str) -> None:
    y_o = write_set(tmp_path / "y_o", [[episode("e", PLAYED, "solved", messages=[user("You are in a hall.")])]])
    (row,) = exported(ok, y_o, "--format", name, out=tmp_path / "rows.jsonl")
    turns = row.get("messages") or [
        {"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": turn["value"]}
        for turn in row["conversations"]
    ]
    told = [user("You are in a hall."), said("go east"), user("You are in a cellar."), said("take lamp")]
    assert turns == told


@pytest.mark.parametrize("name", SINGLE)
def test_a_layout_of_one_response_refuses_episodes_by_one_line(tmp_path: Path, trd: Trd, name: str) -> None:
    rows = [rollout("a", RIGHT, "correct"), episode("e", PLAYED, messages=[user("You are in a hall.")])]
    y_o = write_set(tmp_path / "y_o", [rows])
    result = trd("export", y_o, "--format", name, "--out", tmp_path / "rows.jsonl")
    assert result.exit_code == 1
    assert "--format messages or sharegpt" in result.stderr
    assert result.stderr.count("error") == 1
    assert not (tmp_path / "rows.jsonl").exists()


def test_actions_have_what_the_model_wrote_where_its_tokenizer_is_here(tmp_path: Path, ok: Trd) -> None:
    ok("sample", "-m", "scripted", "--env", "scripted:n=2,rooms=3", "--out", tmp_path / "y_o")
    rows = exported(ok, tmp_path / "y_o", "--format", "messages", out=tmp_path / "rows.jsonl")
    for stored, row in zip(read_rows(tmp_path / "y_o" / "shard-00000.parquet"), rows, strict=True):
        actions = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert actions == [turn.action for turn in stored.turns]
        assert row["messages"][0] == stored.messages[0]


# Pairs


@pytest.mark.parametrize(
    ("right", "wrong", "pairs"),
    [
        ("ab", "xy", ["ax", "by", "ay", "bx"]),
        ("a", "xyz", ["ax", "ay", "az"]),
        ("abc", "x", ["ax", "bx", "cx"]),
        ("ab", "xyz", ["ax", "by", "ay", "bz", "az", "bx"]),
    ],
)
def test_right_and_wrong_samples_are_matched_so_that_each_is_used_as_often(
    right: str, wrong: str, pairs: Sequence[str]
) -> None:
    assert ["".join(pair) for pair in matched(right, wrong)] == pairs


def test_only_right_over_wrong_makes_a_refined_pair_and_the_others_are_counted(tmp_path: Path, ok: Trd) -> None:
    verdicts = ["correct", "incorrect", "timeout", None]
    cases = [(o, r) for o in verdicts for r in verdicts]
    attempts = [rollout(f"o{i}", f"{i}", o, problem_id=f"p{i}") for i, (o, _) in enumerate(cases)]
    made = [refined(f"r{i}", attempts[i], f"new {i}", r) for i, (_, r) in enumerate(cases)]
    y_o, y_r = write_set(tmp_path / "y_o", [attempts]), write_set(tmp_path / "y_r", [made])
    result = ok("export", y_r, "--parents", y_o, "--format", "preference", "--out", tmp_path / "rows.jsonl")
    (row,) = lines(tmp_path / "rows.jsonl")
    assert (row["chosen_trajectory_id"], row["rejected_trajectory_id"]) == ("r4", "o4")
    assert "left out: 1 row y_o correct, y_r correct" in result.stderr
    assert "left out: 1 row y_o not graded, y_r correct" in result.stderr
    assert result.stderr.count("left out: 1 row") == 15


def test_samples_of_a_problem_and_prompt_are_paired_by_index_and_each_text_counts_once(tmp_path: Path, ok: Trd) -> None:
    rows = [
        rollout("w2", "wrong 2", "incorrect", sample_index=2),
        rollout("r5", "right 5", "correct", sample_index=5),
        rollout("w4", "wrong 2", "incorrect", sample_index=4),
        rollout("r3", "right 3", "correct", sample_index=3),
        rollout("w1", "wrong 1", "incorrect", sample_index=1),
        # Another prompt for the same problem, and a problem with right samples alone.
        rollout("w6", "wrong 6", "incorrect", sample_index=6, messages=[user("1 + 1?")]),
        rollout("r7", "right 7", "correct", problem_id="two"),
        rollout("e8", "late", "timeout"),
    ]
    y_o = write_set(tmp_path / "y_o", [rows[:3], rows[3:]])
    result = ok("export", y_o, "--format", "preference", "--out", tmp_path / "rows.jsonl")
    pairs = [(row["chosen_trajectory_id"], row["rejected_trajectory_id"]) for row in lines(tmp_path / "rows.jsonl")]
    assert pairs == [("r3", "w1"), ("r5", "w2"), ("r3", "w2"), ("r5", "w1")]
    assert "left out: 2 rows of problems without both right and wrong samples" in result.stderr
    assert "left out: 1 row with the verdict timeout" in result.stderr
    assert "or with the text of another sample" in result.stderr
    few = exported(ok, y_o, "--format", "preference", "--max-pairs", 1, out=tmp_path / "rows.jsonl")
    assert [(row["chosen_trajectory_id"], row["rejected_trajectory_id"]) for row in few] == pairs[:1]


def test_a_text_with_both_verdicts_is_in_no_pair(tmp_path: Path, ok: Trd) -> None:
    rows = [
        rollout("r1", "same", "correct", sample_index=0),
        rollout("w1", "same", "incorrect", sample_index=1),
        rollout("r2", "right", "correct", sample_index=2),
        rollout("w2", "wrong", "incorrect", sample_index=3),
    ]
    (pair,) = exported(ok, write_set(tmp_path / "y_o", [rows]), "--format", "preference", out=tmp_path / "rows.jsonl")
    assert (pair["chosen_trajectory_id"], pair["rejected_trajectory_id"]) == ("r2", "w2")


def test_rows_that_were_cut_off_are_told_and_can_be_left_out(tmp_path: Path, ok: Trd) -> None:
    rows = [rollout("a", "whole"), rollout("b", "cut", finish_reason="length", sample_index=1)]
    words = ("export", write_set(tmp_path / "y_o", [rows]), "--format", "messages", "--out", tmp_path / "rows.jsonl")
    said = ok(*words).stderr
    assert "1 row with a response that was cut off" in said
    assert "--where \"finish_reason = 'stop'\" leaves them out" in said
    assert "cut off" not in ok(*words, "--where", "finish_reason = 'stop'").stderr
    assert [row["trajectory_id"] for row in lines(tmp_path / "rows.jsonl")] == ["a"]


def test_pairs_of_a_problem_are_at_most_as_many_as_asked_for(tmp_path: Path, ok: Trd) -> None:
    attempts = [rollout(f"o{i}", f"{i}", "incorrect", sample_index=i) for i in range(6)]
    made = [refined(f"r{i}", attempt, f"new {i}", "correct") for i, attempt in enumerate(attempts)]
    y_o, y_r = write_set(tmp_path / "y_o", [attempts]), write_set(tmp_path / "y_r", [made])
    words = (y_r, "--parents", y_o, "--format", "preference")
    assert len(exported(ok, *words, out=tmp_path / "rows.jsonl")) == 4
    assert len(exported(ok, *words, "--max-pairs", 6, out=tmp_path / "rows.jsonl")) == 6


def test_both_kinds_of_pairs_can_be_made_of_rows_that_are_given_together(
    tmp_path: Path, ok: Trd, sets: tuple[Path, Path]
) -> None:
    y_o, y_r = sets
    rows = [rollout("a", "right", "correct"), rollout("b", "wrong", "incorrect", sample_index=1)]
    more = write_set(tmp_path / "more", [rows])
    words = (more, y_r, "--parents", y_o, "--format", "preference")
    (pair,) = exported(ok, *words, out=tmp_path / "rows.jsonl")
    assert pair["chosen_trajectory_id"] == "r1"
    (pair,) = exported(ok, *words, "--pairs", "samples", out=tmp_path / "rows.jsonl")
    assert pair["chosen_trajectory_id"] == "a"


def test_options_of_pairs_with_another_format_are_refused(tmp_path: Path, trd: Trd, sets: tuple[Path, Path]) -> None:
    for option in (("--pairs", "samples"), ("--max-pairs", 2)):
        result = trd("export", sets[0], "--format", "messages", *option, "--out", tmp_path / "rows.jsonl")
        assert result.exit_code == 1
        assert f"{option[0]} with --format messages" in result.stderr


# Files


@pytest.fixture
def graded(ok: Trd, rollouts: Path) -> Path:
    ok("verify", rollouts)
    return rollouts


def test_a_directory_has_files_of_so_many_rows_which_are_the_rows_of_one_file(
    tmp_path: Path, ok: Trd, graded: Path
) -> None:
    words = ("export", graded, "--format", "messages")
    result = ok(*words, "--file-rows", 10, "--split", "test", "--out", tmp_path / "made")
    names = [f"test-0000{number}.parquet" for number in range(3)]
    assert result.stdout.split() == [str(tmp_path / "made" / name) for name in names]
    ok(*words, "--out", tmp_path / "rows.jsonl")
    tables = [pq.read_table(tmp_path / "made" / name) for name in names]
    assert [table.num_rows for table in tables] == [10, 10, 4]
    assert [row for table in tables for row in table.to_pylist()] == lines(tmp_path / "rows.jsonl")


def test_the_same_command_again_does_nothing_and_another_is_refused(
    tmp_path: Path, ok: Trd, trd: Trd, graded: Path
) -> None:
    words = ("export", graded, "--format", "sharegpt", "--file-type", "jsonl", "--out", tmp_path / "made")
    first = ok(*words)
    stamp = (tmp_path / "made" / "train-00000.jsonl").stat()
    again = ok(*words)
    assert "nothing to do" in again.stderr
    assert again.stdout == first.stdout
    assert (tmp_path / "made" / "train-00000.jsonl").stat() == stamp
    other = trd(*words, "--subset", "correct")
    assert other.exit_code == 1
    assert "holds another export: subset (all → correct)" in other.stderr
    assert (tmp_path / "made" / "train-00000.jsonl").stat() == stamp


def test_files_are_made_anew_where_a_verdict_or_a_file_has_changed(tmp_path: Path, ok: Trd, graded: Path) -> None:
    made = tmp_path / "made"
    words = (
        "export",
        graded,
        "--format",
        "messages",
        "--where",
        "verdict = 'correct'",
        "--file-rows",
        1,
        "--out",
        made,
    )
    ok(*words)
    before = sorted(made.glob("*.parquet"))
    assert len(before) > 1
    shard = graded / "shard-00000.parquet"
    ids = {row.trajectory_id for row in read_rows(shard)}
    write_shard(shard, [replace(row, verdict="incorrect") for row in read_rows(shard)])
    ok(*words)
    after = sorted(made.glob("*.parquet"))
    assert len(after) < len(before)
    assert not ids & {pq.read_table(path)["trajectory_id"][0].as_py() for path in after}
    after[0].unlink()
    ok(*words)
    assert sorted(made.glob("*.parquet")) == after


def test_a_directory_with_other_files_and_a_shard_of_the_set_are_not_overwritten(
    tmp_path: Path, trd: Trd, graded: Path
) -> None:
    before = {path: path.read_bytes() for path in graded.iterdir()}
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".export.json").write_text("{}")
    for out, why in (
        (graded, "holds other files"),
        (graded / "shard-00000.parquet", "is a shard of the set"),
        (tmp_path / "odd", "is not what trd wrote"),
    ):
        result = trd("export", graded, "--format", "messages", "--out", out)
        assert result.exit_code == 1
        assert why in result.stderr
    assert {path: path.read_bytes() for path in graded.iterdir()} == before


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, ok: Trd, graded: Path, ending: str) -> None:
    for name in "ab":
        ok("export", graded, "--format", "preference", "--out", tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--out", "rows.json"), "a name in .jsonl or .parquet"),
        (("--out", "rows.jsonl.gz"), "a name in .jsonl or .parquet"),
        (("--out", "rows.JSONL"), "a name in .jsonl or .parquet"),
        (("--out", "hf://datasets/own/rows"), "a place on this machine"),
        (("--out", "rows.jsonl", "--file-type", "parquet"), "one type"),
        (("--out", "rows", "--split", "a/b"), "--split"),
    ],
)
def test_names_that_cannot_be_are_refused(trd: Trd, graded: Path, words: Sequence[str], why: str) -> None:
    result = trd("export", graded, "--format", "messages", *words)
    assert result.exit_code == 1
    assert why in result.stderr


def test_a_set_that_is_not_finished_is_refused_unless_asked_for(
    tmp_path: Path, trd: Trd, ok: Trd, graded: Path
) -> None:
    (graded / "shard-00002.parquet").unlink()
    words = ("export", graded, "--format", "messages", "--out", tmp_path / "rows.jsonl")
    assert trd(*words).exit_code == 1
    ok(*words, "--allow-partial")
    assert len(lines(tmp_path / "rows.jsonl")) == 20


def test_paths_come_from_a_pipe_and_a_refined_set_finds_its_rollouts(tmp_path: Path, ok: Trd, graded: Path) -> None:
    shards = ok("refine", graded, "--setting", "opsd", "--out", tmp_path / "y_r").stdout
    ok("export", "--format", "messages", "--out", tmp_path / "rows.jsonl", stdin=ok("verify", stdin=shards).stdout)
    prompts = {row.trajectory_id: row.messages for path in graded.glob("*.parquet") for row in read_rows(path)}
    rows = lines(tmp_path / "rows.jsonl")
    assert len(rows) == 24
    assert all(row["messages"][:-1] == prompts[row["parent_id"]] for row in rows)


# Consumers


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return a directory with y_o and y_r, graded, and a tiny model."""
    at = tmp_path_factory.mktemp("made")
    ok("data", "make", "arithmetic", "--n", 8, "--seed", 1, "--out", at / "problems.parquet")
    scripted = ("--engine-arg", "accuracy=0.5")
    ok("sample", "-m", "scripted", "-p", at / "problems.parquet", "-n", 3, *scripted, "--out", at / "y_o")
    ok("verify", at / "y_o")
    ok("refine", at / "y_o", "--setting", "opsd", "--engine-arg", "accuracy=0.9", "--out", at / "y_r")
    ok("verify", at / "y_r")
    (at / "tiny").mkdir()
    build_model(at / "tiny")
    return at


@pytest.mark.parametrize("name", FORMATS)
def test_datasets_loads_files_and_directories_with_the_same_types(
    tmp_path: Path, ok: Trd, made: Path, name: str
) -> None:
    words = ("export", made / "y_r", "--format", name)
    files = {"json": tmp_path / "rows.jsonl", "parquet": tmp_path / "rows.parquet"}
    for path in files.values():
        ok(*words, "--out", path)
    json_, parquet = (
        datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        for kind, path in files.items()
    )
    assert json_.features == parquet.features
    assert json_.to_list() == parquet.to_list() == lines(files["json"])
    for kind in ("jsonl", "parquet"):
        at = tmp_path / kind
        ok(*words, "--file-rows", 5, "--file-type", kind, "--split", "test", "--out", at)
        loaded = datasets.load_dataset(str(at), cache_dir=str(tmp_path / "cache"))
        assert [*loaded] == ["test"]
        assert loaded["test"].features == parquet.features
        assert len(loaded["test"]) == len(parquet)


@pytest.fixture(scope="module")
def trl_arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("trl", reason="needs trl (the extra `test`)")
    return {
        **{"output_dir": str(tmp_path_factory.mktemp("trl")), "max_steps": 1, "per_device_train_batch_size": 2},
        **{"use_cpu": True, "bf16": False, "report_to": "none"},
        **{"save_strategy": "no", "disable_tqdm": True, "max_length": 512},
    }


def loaded(ok: Trd, made: Path, tmp_path: Path, name: str, *words: Any) -> datasets.Dataset:
    ok("export", made / "y_r", "--format", name, *words, "--out", tmp_path / "rows.parquet")
    return datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "rows.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )


@pytest.mark.parametrize("name", ["messages", "prompt-completion"])
def test_the_sft_trainer_of_trl_takes_a_step_along_the_responses(
    tmp_path: Path, ok: Trd, made: Path, trl_arguments: dict[str, Any], name: str
) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = loaded(ok, made, tmp_path, name)
    trainer = SFTTrainer(str(made / "tiny"), SFTConfig(**trl_arguments), train_dataset=rows)
    assert trainer.train().training_loss > 0
    first, response = trainer.train_dataset[0], rows[0][name.split("-")[-1]][-1]["content"]
    text = trainer.processing_class.decode(first["input_ids"])
    assert f"<|start|>user\n{rows[0]['problem']}" in text
    assert text.endswith(f"<|start|>assistant\n{response}<|end|>\n")
    if name == "prompt-completion":
        learnt = [token for token in first["labels"] if token != -100]
        assert trainer.processing_class.decode(learnt) == f"{response}<|end|>\n"


def test_the_dpo_trainer_of_trl_takes_a_step_on_pairs(
    tmp_path: Path, ok: Trd, made: Path, trl_arguments: dict[str, Any]
) -> None:
    from trl import DPOConfig, DPOTrainer

    rows = loaded(ok, made, tmp_path, "preference")
    trainer = DPOTrainer(str(made / "tiny"), args=DPOConfig(**trl_arguments), train_dataset=rows)
    # A model that is its own reference prefers nothing yet.
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)
    first, decode = trainer.train_dataset[0], trainer.processing_class.decode
    assert decode(first["prompt_ids"]).endswith("<|start|>assistant\n")
    for side in ("chosen", "rejected"):
        assert decode(first[f"{side}_ids"]) == f"{rows[0][side][0]['content']}<|end|>\n"


def test_arguments_of_the_students_chat_template_go_along_in_the_column_that_trl_reads(
    tmp_path: Path, ok: Trd, problems: Path
) -> None:
    from transformers import AutoTokenizer

    tiny = tmp_path / "tiny"
    tiny.mkdir()
    build_model(tiny)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\n{%", "assistant\n{% if calm %}calm {% endif %}{%"
    )
    tokenizer.save_pretrained(tiny)
    sampling = ("--max-tokens", 3, "--dtype", "float32", "--device", "cpu", "--chat-template-kwargs", "calm=true")
    ok("sample", "-m", tiny, "-p", problems, "--limit", 2, *sampling, "--out", tmp_path / "y_o")
    rows = exported(ok, tmp_path / "y_o", "--format", "messages", out=tmp_path / "rows.jsonl")
    assert [row["chat_template_kwargs"] for row in rows] == [{"calm": True}] * len(rows)
    (stored, *_) = read_rows(tmp_path / "y_o" / "shard-00000.parquet")
    rendered = tokenizer.apply_chat_template(
        rows[0]["messages"][:-1], add_generation_prompt=True, return_dict=False, **rows[0]["chat_template_kwargs"]
    )
    assert [*rendered] == [*stored.prompt_token_ids]
    result = ok("export", tmp_path / "y_o", "--format", "sharegpt", "--out", tmp_path / "rows.jsonl")
    assert "arguments of the chat template are not in the rows" in result.stderr


def test_verl_reads_prompts_rewards_and_indices_of_its_layout(tmp_path: Path, ok: Trd, made: Path) -> None:
    """Does what RLHFDataset.__getitem__ and the reward manager do with a row (verl/utils/dataset/rl_dataset.py)."""
    from transformers import AutoTokenizer

    rows = loaded(ok, made, tmp_path, "verl")
    tokenizer = AutoTokenizer.from_pretrained(str(made / "tiny"))
    assert len(rows) == 8
    for number, row in enumerate(rows):
        assert isinstance(row["prompt"], list)
        assert len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True)) > 0
        extra = row.get("extra_info", {})
        assert (extra.get("index", 0), extra.get("tools_kwargs", {})) == (number, {})
        assert row["reward_model"]["ground_truth"] == extra["answer"]
        assert row["reward_model"]["style"] == "rule"
        assert (row["data_source"], row["ability"]) == ("arithmetic", "math")


def test_nemo_rl_makes_the_conversation_of_the_columns_it_reads(tmp_path: Path, ok: Trd, made: Path) -> None:
    """Does what ResponseDataset.format_data does (nemo_rl/data/datasets/response_datasets/response_dataset.py)."""
    of_nemo = loaded(ok, made, tmp_path, "nemo")
    conversations = loaded(ok, made, tmp_path, "messages")["messages"]
    assert "messages" not in of_nemo.column_names
    assert [[user(row["input"]), said(row["output"])] for row in of_nemo] == [*conversations]


@pytest.mark.parametrize("preset", ["messages", "sharegpt"])
def test_an_export_is_imported_again_as_problems_with_worked_solutions(
    tmp_path: Path, ok: Trd, made: Path, preset: str
) -> None:
    words = ("--subset", "correct", "--where", "sample_index = 0")
    rows = exported(ok, made / "y_r", *words, "--format", preset, out=tmp_path / "rows.jsonl")
    ok("data", "import", tmp_path / "rows.jsonl", "--preset", preset, "--out", tmp_path / "back.parquet")
    back = pq.read_table(tmp_path / "back.parquet").to_pylist()
    turns = [[*next(iter(row.values()))] for row in rows]
    texts = [[turn.get("content") or turn["value"] for turn in some] for some in turns]
    assert [[row["problem"], row["reference_solution"]] for row in back] == texts
    assert [row["reference_answer"] for row in back] == [row["reference_answer"] for row in rows]


def test_the_problems_of_an_export_for_verl_are_the_ones_that_were_sampled(tmp_path: Path, ok: Trd, made: Path) -> None:
    ok("export", made / "y_o", "--format", "verl", "--out", tmp_path / "rows.parquet")
    columns = "problem=extra_info.question,problem_id=extra_info.problem_id,source=data_source"
    words = ("--preset", "verl", "--map", columns, "--out", tmp_path / "back.parquet")
    ok("data", "import", tmp_path / "rows.parquet", *words)
    back, sampled = (
        sorted(pq.read_table(path).to_pylist(), key=lambda row: row["problem_id"])
        for path in (tmp_path / "back.parquet", made / "problems.parquet")
    )
    assert back == sampled


def test_more_rows_than_are_read_at_once_keep_their_order_and_their_parents(tmp_path: Path, ok: Trd) -> None:
    attempts = [rollout(f"o{i:03}", f"{i}", "incorrect", messages=[user(f"Question {i}")]) for i in range(600)]
    made = [refined(f"r{i:03}", attempt, f"new {i}", "correct") for i, attempt in enumerate(attempts)]
    shards = [[*islice(attempts, start, start + 50)] for start in range(0, 600, 50)]
    y_o, y_r = write_set(tmp_path / "y_o", shards), write_set(tmp_path / "y_r", [made[::-1][:400], made[::-1][400:]])
    rows = exported(ok, y_r, "--parents", y_o, "--format", "messages", out=tmp_path / "rows.jsonl")
    numbers = [*range(599, -1, -1)]
    assert [row["messages"] for row in rows] == [[user(f"Question {i}"), said(f"new {i}")] for i in numbers]
