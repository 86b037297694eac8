"""Token ids that a model has no embedding for are the error of their own row, wherever rows meet a model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.sets import by_id, rows_of
from support.tiny import VOCABULARY, build_model, write_tokenizer

from trd_cli.models import ModelRef, resolve_model
from trd_cli.records import Trajectory
from trd_cli.report.data import SetRef
from trd_cli.report.nll import choose
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import list_shards, read_rows, write_problems, write_shard

ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 12)
TRAIN = ("--dtype", "float32", "--device", "cpu")
# The tokenizer has this token, but the embedding does not.
STRANGE = "<|strange|>"


@dataclass(frozen=True)
class World:
    """A model whose tokenizer has one token more than its embedding; problems and rows, the first with that token."""

    model: Path
    problems: Path
    rollouts: Path
    refined: Path


def with_a_token_more(directory: Path) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    assert tokenizer.add_tokens([STRANGE]) == 1
    tokenizer.save_pretrained(directory)
    assert tokenizer.convert_tokens_to_ids(STRANGE) == VOCABULARY
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(build_model(root / "model"), root / "p.parquet", root / "y_o", root / "y_r")
    with_a_token_more(made.model)
    ok("data", "make", "arithmetic", "--n", 6, "--out", made.problems)
    ok("sample", "-m", made.model, "-p", made.problems, *ENGINE, "--out", made.rollouts)
    ok("refine", made.rollouts, "--setting", "opsd", *ENGINE, "--out", made.refined)
    return made


def edited(source: Path, target: Path, change: Callable[[Trajectory], Trajectory]) -> Path:
    """Return a copy of a set with its first row by id changed."""
    shutil.copytree(source, target)
    first = min(by_id(target))
    for shard in list_shards(target):
        rows = read_rows(shard)
        write_shard(shard, [change(row) if row.trajectory_id == first else row for row in rows])
    return target


# Sampling


def test_a_prompt_with_such_a_token_is_an_error_row_and_the_others_are_sampled(
    world: World, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    first, *others = read_problems(world.problems)
    write_problems(tmp_path / "p.parquet", [replace(first, problem=f"{STRANGE} {first.problem}"), *others])
    command = ("sample", "-m", world.model, "-p", tmp_path / "p.parquet", *ENGINE, "--out", tmp_path / "y_o")
    assert trd(*command).exit_code == 3, "one of six is more than a twentieth"
    rows = {row.problem_id: row for row in rows_of(tmp_path / "y_o")}
    said = rows[first.problem_id].error
    assert said == f"the prompt has the token id {VOCABULARY}, and {world.model} has embeddings for {VOCABULARY} ids"
    assert all(rows[problem.problem_id].error is None for problem in others)
    ok(*command, "--max-errors", 1)


def test_an_attempt_with_such_a_token_is_an_error_row_of_trd_refine(world: World, trd: Trd, tmp_path: Path) -> None:
    rollouts = edited(world.rollouts, tmp_path / "y_o", lambda row: replace(row, response=f"{STRANGE} is the answer"))
    assert trd("refine", rollouts, "--setting", "opsd", *ENGINE, "--out", tmp_path / "y_r").exit_code == 3
    errors = {row.parent_id: row.error for row in rows_of(tmp_path / "y_r")}
    assert [parent for parent, error in errors.items() if error] == [min(by_id(rollouts))]
    assert f"the token id {VOCABULARY}" in errors[min(by_id(rollouts))]


def test_a_question_with_such_a_token_is_an_error_row_of_trd_eval(world: World, trd: Trd, tmp_path: Path) -> None:
    questions = [
        {"id": "a", "problem": f"What is {STRANGE}?", "answer": "2"},
        {"id": "b", "problem": "What is 1 + 1?", "answer": "2"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    result = trd("eval", world.model, "--bench", f"{tmp_path}/q.jsonl:math", *ENGINE, "--out", tmp_path / "e")
    assert result.exit_code == 3
    assert sorted(row.error is None for row in rows_of(tmp_path / "e")) == [False, True]


@pytest.mark.parametrize("where", ["config.json", "text_config", "transformers' default"])
def test_how_many_ids_a_model_knows_is_read_where_its_configuration_says_it(
    world: World, tmp_path: Path, where: str
) -> None:
    directory = shutil.copytree(world.model, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    if where == "text_config":
        config = {"text_config": {"vocab_size": config.pop("vocab_size")}, **config}
    elif where != "config.json":
        del config["vocab_size"]
    (directory / "config.json").write_text(json.dumps(config))
    rows = resolve_model(str(directory)).embedding_rows
    assert rows == (32000 if where == "transformers' default" else VOCABULARY)


def test_a_tokenizer_alone_which_will_do_for_a_server_tells_of_no_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert ModelRef("a", tmp_path, "r").embedding_rows is None


# Training


def changed(name: str, at: int, token: int) -> Callable[[Trajectory], Trajectory]:
    def change(row: Trajectory) -> Trajectory:
        ids = list(getattr(row, name))
        ids[at] = token
        return replace(row, **{name: ids, "logprobs": None})

    return change


CASES = {
    "the student's prompt": ("student_prompt_token_ids", 3),
    "the teacher's context": ("prompt_token_ids", 3),
    "the response": ("response_token_ids", 0),
}


@pytest.mark.parametrize("token", [VOCABULARY, 10**6, -1, -(10**6)])
@pytest.mark.parametrize("what", CASES)
def test_a_row_with_such_an_id_is_left_out_and_counted_and_the_others_are_trained_on(
    world: World, ok: Trd, tmp_path: Path, what: str, token: int
) -> None:
    refined = edited(world.refined, tmp_path / "y_r", changed(*CASES[what], token))
    options = ("--selfcheck",) if token == VOCABULARY else ("--dry-run",)
    said = ok("distill", refined, *TRAIN, *options, "--out", tmp_path / "c").stderr
    assert f"left out 1 of 6 rows: {what} has a token id that {world.model} has no embedding for" in said


def test_along_rollouts_too_and_the_run_ends_well(world: World, ok: Trd, tmp_path: Path) -> None:
    rollouts = edited(world.rollouts, tmp_path / "y_o", changed("response_token_ids", 0, VOCABULARY))
    said = ok("distill", rollouts, *TRAIN, "--setting", "opsd", "--out", tmp_path / "c").stderr
    assert "left out 1 of 6 rows: the response has" in said
    assert json.loads((tmp_path / "c" / "run.json").read_text())["about"]["trajectories"] == 5


def resized(source: Path, target: Path, rows: int) -> Path:
    """Return the model with an embedding and a head of so many rows."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, target)
    model = AutoModelForCausalLM.from_pretrained(str(source))
    model.resize_token_embeddings(rows)
    model.save_pretrained(target)
    return target


@pytest.mark.parametrize("smaller", ["student", "teacher"])
def test_a_response_must_be_known_to_both_models_and_each_prompt_to_its_own(
    world: World, ok: Trd, tmp_path: Path, smaller: str
) -> None:
    larger = resized(world.model, tmp_path / "larger", VOCABULARY + 8)
    models = (world.model, larger) if smaller == "student" else (larger, world.model)

    def said(name: str, change: Callable[[Trajectory], Trajectory]) -> Sequence[str]:
        refined = edited(world.refined, tmp_path / name, change)
        options = ("--model", models[0], "--teacher", models[1])
        out = ok("distill", refined, *TRAIN, *options, "--dry-run", "--out", tmp_path / "c").stderr
        return re.findall(r"left out .*", out)

    def line(what: str) -> list[str]:
        return [f"left out 1 of 6 rows: {what} has a token id that {world.model} has no embedding for"]

    assert said("response", changed("response_token_ids", 0, VOCABULARY)) == line("the response")
    for what, of in (("the student's prompt", "student"), ("the teacher's context", "teacher")):
        expected = line(what) if of == smaller else []
        assert said(of, changed(*CASES[what], VOCABULARY)) == expected


# The report's likelihoods


@pytest.mark.parametrize("name", ["student_prompt_token_ids", "response_token_ids"])
def test_the_reports_likelihoods_are_of_rows_that_the_student_knows(world: World, tmp_path: Path, name: str) -> None:
    refined = edited(world.refined, tmp_path / "y_r", changed(name, 0, VOCABULARY))
    chosen: Any = choose(set_of(refined, world.rollouts), 9, resolve_model(str(world.model)))
    assert [row.trajectory_id for row in chosen] == sorted(by_id(refined))[1:]


def set_of(directory: Path, parents: Path) -> SetRef:
    return SetRef("refine", None, 0, None, "refined", directory, parents=(parents,))
