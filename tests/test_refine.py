"""trd refine: the teacher's prompt, the origin of each row, and the choice of rollouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from support.sets import by_hand, by_id, iter_rows, rows_of

from trd_cli.config.generating import RefineConfig
from trd_cli.engines.scripted import ScriptedEngine
from trd_cli.errors import InputError
from trd_cli.models import resolve_model
from trd_cli.planned import Backend
from trd_cli.progress import SilentProgress
from trd_cli.records import Trajectory
from trd_cli.stages import refine as stage
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.sets import iter_selected, open_sets
from trd_cli.trajectories.shards import list_shards, read_rows, write_problems, write_shard

Trd = Callable[..., Result]
OPSD = ("refine", "--setting", "opsd")
OPD = ("refine", "--setting", "opd", "--teacher", "scripted")


@pytest.fixture
def graded(rollouts: Path, ok: Trd) -> Path:
    """Return the rollouts, verified: some correct, some incorrect."""
    ok("verify", rollouts, "--workers", 1)
    assert {row.verdict for row in rows_of(rollouts)} == {"correct", "incorrect"}
    return rollouts


def text_of(row: Trajectory) -> str:
    """Return the prompt as the model reads it."""
    return bytes(i for i in row.prompt_token_ids if i < 256).decode()


def changed(source: Path, target: Path, change: Callable[[Trajectory], Trajectory]) -> Path:
    """Return a copy of a set with its rows changed."""
    shutil.copytree(source, target)
    for path in list_shards(target):
        write_shard(path, [change(row) for row in read_rows(path)])
    return target


@pytest.mark.parametrize("setting", ["opd", "opsd"])
def test_each_rollout_gets_one_refined_row_that_points_back_to_it(
    setting: str, rollouts: Path, tmp_path: Path, ok: Trd
) -> None:
    out = tmp_path / "y_r"
    ok("refine", "--setting", setting, "--teacher", "scripted", rollouts, "--out", out)
    parents, refined = by_id(rollouts), by_id(out)
    assert sorted(row.parent_id for row in refined.values()) == sorted(parents)
    for row in refined.values():
        parent = parents[row.parent_id]
        assert (row.stage, row.setting, row.attempt_tokens_trimmed, row.error) == ("refined", setting, 0, None)
        for same in ("problem_id", "problem", "sample_index", "round", "reference_answer", "source", "task"):
            assert getattr(row, same) == getattr(parent, same)
        assert row.student_prompt_token_ids == parent.prompt_token_ids
        assert row.prompt_token_ids != parent.prompt_token_ids
        [message] = row.messages
        assert parent.problem in message["content"]
        assert parent.response in message["content"]
        assert (parent.reference_solution in message["content"]) == (setting == "opsd")
        assert message["content"] in text_of(row)
    assert refined.keys() & parents.keys() == set()
    assert len({row.seed for row in refined.values()}) == len(refined)


@pytest.mark.parametrize("mode", ["rewrite", "continue", "relay"])
def test_rollouts_of_two_students_or_of_two_renderings_are_not_refined_together(
    mode: str, rollouts: Path, tmp_path: Path, trd: Trd
) -> None:
    for name, about in {"older": {"model_revision": "0"}, "raw": {"render": "raw"}}.items():
        shutil.copytree(rollouts, tmp_path / name)
        by_hand(tmp_path / name / "run.json", lambda run, about=about: run["about"].update(about))
    command = (*OPD, "--mode", mode, rollouts, "--out", tmp_path / "out")
    result = trd(*command, tmp_path / "older")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{rollouts} and {tmp_path / 'older'} differ in model_revision; expected sets made alike" in result.stderr
    assert "differ in render;" in trd(*command, tmp_path / "raw").stderr
    if mode == "rewrite":
        assert trd(*command, tmp_path / "raw", "--render", "chat", "--dry-run").exit_code == 0


def test_opd_never_shows_the_reference_anywhere_in_the_prompt(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    marked = changed(rollouts, tmp_path / "marked", lambda r: replace(r, reference_solution="SECRET y*"))
    ok(*OPD, marked, "--out", tmp_path / "opd")
    ok(*OPSD, marked, "--out", tmp_path / "opsd")
    assert {"SECRET y*" in text_of(row) for row in rows_of(tmp_path / "opd")} == {False}
    assert {"SECRET y*" in text_of(row) for row in rows_of(tmp_path / "opsd")} == {True}


def test_opsd_without_a_reference_solution_is_an_error_row_and_the_others_finish(
    problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    first, second, *others = read_problems(problems)
    lacking = [replace(first, reference_solution=None), replace(second, reference_solution=""), *others]
    write_problems(tmp_path / "lacking.parquet", lacking)
    ok("sample", "-m", "scripted", "-p", tmp_path / "lacking.parquet", "--out", tmp_path / "y_o")
    assert trd(*OPSD, tmp_path / "y_o", "--out", tmp_path / "y_r").exit_code == 3
    failed = {row.problem_id: row for row in rows_of(tmp_path / "y_r") if row.error is not None}
    assert failed.keys() == {first.problem_id, second.problem_id}
    for row in failed.values():
        assert row.error == "the problem has no reference_solution"
        assert (row.response, row.parent_id is None) == (None, False)
    assert len(rows_of(tmp_path / "y_r")) == 12
    ok(*OPD, tmp_path / "y_o", "--out", tmp_path / "opd")


def test_a_rollout_that_is_an_error_becomes_an_error_row(rollouts: Path, tmp_path: Path, trd: Trd) -> None:
    first = rows_of(rollouts)[0].trajectory_id

    def fail(row: Trajectory) -> Trajectory:
        gone = {"response": None, "response_token_ids": None, "logprobs": None, "finish_reason": None}
        return replace(row, **gone, error="scripted fault") if row.trajectory_id == first else row

    broken = changed(rollouts, tmp_path / "broken", fail)
    assert trd(*OPSD, broken, "--max-errors", 1, "--out", tmp_path / "y_r").exit_code == 0
    [row] = [row for row in rows_of(tmp_path / "y_r") if row.error is not None]
    assert (row.parent_id, row.error) == (first, "the rollout has no response: scripted fault")


@pytest.fixture
def long_attempts(problems: Path, tmp_path: Path, ok: Trd) -> Path:
    """Return rollouts of about 400 words."""
    out = tmp_path / "long"
    args = ("-p", problems, "--engine-arg", "length=400", "--max-tokens", 4000)
    ok("sample", "-m", "scripted", *args, "--out", out)
    return out


def test_an_attempt_too_long_is_trimmed_at_its_tail_and_problem_and_reference_stay_whole(
    long_attempts: Path, tmp_path: Path, ok: Trd
) -> None:
    limit, answer = 1600, 500
    room = limit - answer
    ok(*OPSD, long_attempts, "--max-model-len", limit, "--max-tokens", answer, "--out", tmp_path / "y_r")
    parents = by_id(long_attempts)
    rows = rows_of(tmp_path / "y_r")
    assert len(rows) == 12
    for row in rows:
        parent = parents[row.parent_id]
        kept = len(parent.response_token_ids) - row.attempt_tokens_trimmed
        head = bytes(i for i in parent.response_token_ids[:kept] if i < 256).decode().strip()
        assert row.attempt_tokens_trimmed > 0
        assert head in row.messages[0]["content"]
        assert parent.response not in row.messages[0]["content"]
        assert parent.problem in row.messages[0]["content"]
        assert parent.reference_solution in row.messages[0]["content"]
        assert "Rewrite the draft" in row.messages[0]["content"]
        assert room - 8 <= len(row.prompt_token_ids) <= room, "no more is cut than must be"
        assert row.error is None
        assert len(row.response_token_ids) <= answer


def test_where_problem_and_reference_alone_are_too_long_the_row_is_an_error(
    long_attempts: Path, tmp_path: Path, trd: Trd
) -> None:
    result = trd(*OPSD, long_attempts, "--max-model-len", 300, "--out", tmp_path / "y_r")
    assert result.exit_code == 3
    assert {row.error.startswith("prompt too long: ") for row in rows_of(tmp_path / "y_r")} == {True}


def test_an_attempt_that_fits_is_shown_as_it_stands(long_attempts: Path, tmp_path: Path, ok: Trd) -> None:
    ok(*OPSD, long_attempts, "--out", tmp_path / "y_r")
    assert {row.attempt_tokens_trimmed for row in rows_of(tmp_path / "y_r")} == {0}


def test_paths_come_by_argument_by_dash_or_by_pipe_with_the_same_rows(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    piped = "".join(f"{path}\n" for path in list_shards(rollouts))
    ok(*OPSD, rollouts, "--out", tmp_path / "argument")
    ok(*OPSD, "--out", tmp_path / "pipe", stdin=piped)
    ok(*OPSD, "-", "--out", tmp_path / "dash", stdin=piped)
    ok(*OPSD, *list_shards(rollouts), "--out", tmp_path / "shards")
    ok(*OPSD, "--stream", "--out", tmp_path / "stream", stdin=piped)
    expected = by_id(tmp_path / "argument")
    assert len(expected) == 24
    for name in ("pipe", "dash", "shards", "stream"):
        assert by_id(tmp_path / name) == expected, name


def test_a_stream_continues_what_a_plain_run_began(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    ok(*OPSD, rollouts, "--out", tmp_path / "whole")
    out, shards = tmp_path / "y_r", list_shards(rollouts)
    ok(*OPSD, "--stream", "--allow-partial", "--out", out, stdin=f"{shards[0]}\n")
    assert len(by_id(out)) == 10
    result = ok(*OPSD, "--stream", "--out", out, stdin="".join(f"{path}\n" for path in shards))
    assert by_id(out) == by_id(tmp_path / "whole")
    assert result.stdout.splitlines() == [str(path) for path in list_shards(out)]
    ok(*OPSD, rollouts, "--out", out)
    assert by_id(out) == by_id(tmp_path / "whole")


def test_a_stream_that_ends_before_its_set_is_finished_is_refused(rollouts: Path, tmp_path: Path, trd: Trd) -> None:
    half = tmp_path / "half"
    shutil.copytree(rollouts, half)
    last = list_shards(half)[-1]
    last.unlink()
    result = trd(*OPSD, "--stream", "--out", tmp_path / "y_r", stdin="".join(f"{p}\n" for p in list_shards(half)))
    assert result.exit_code == 1
    assert "half is unfinished: 20 of 24 rows" in result.stderr
    assert len(by_id(tmp_path / "y_r")) == 20, "what was made is kept"


def scripted_backend(name: str) -> Backend:
    model = resolve_model(name)
    config = RefineConfig(setting="opsd")
    return Backend(
        model, model.tokenizer(), "scripted", "1", 8192, lambda note: ScriptedEngine(model.tokenizer(), config)
    )


def test_a_path_that_comes_twice_in_a_stream_is_refined_once(rollouts: Path, tmp_path: Path) -> None:
    shards = [str(path) for path in list_shards(rollouts)]
    config = RefineConfig(setting="opsd", stream=True, out=str(tmp_path / "y_r"))
    waves = [[shards[0]], [shards[0], shards[1]], [str(rollouts)], [shards[2]]]
    outcome = stage.run(config, waves, scripted_backend, SilentProgress())
    assert (outcome.generated, outcome.rows) == (24, 24)
    assert len(by_id(tmp_path / "y_r")) == 24


def test_a_refined_row_depends_on_its_attempt_its_setting_and_the_sampling(
    rollouts: Path, tmp_path: Path, ok: Trd
) -> None:
    variants: Mapping[str, list[object]] = {
        "opsd": [*OPSD],
        "opd": [*OPD],
        "cold": [*OPSD, "--temperature", 0],
        "seed": [*OPSD, "--seed", 1],
    }
    seen: set[str] = set()
    for name, command in variants.items():
        ok(*command, rollouts, "--out", tmp_path / name)
        ids = by_id(tmp_path / name).keys()
        assert not ids & seen, name
        seen |= ids


def test_the_set_says_which_rollouts_which_student_and_which_teacher_made_it(
    rollouts: Path, tmp_path: Path, ok: Trd
) -> None:
    ok(*OPSD, rollouts, "--out", tmp_path / "y_r")
    run = json.loads((tmp_path / "y_r" / "run.json").read_text())
    [source] = run["inputs"]
    digest = json.loads((rollouts / "run.json").read_text())["digest"]
    assert (source["path"], source["digest"], source["command"]) == (str(rollouts), digest, "sample")
    assert (run["about"]["student"], run["about"]["model"], run["about"]["setting"]) == ("scripted", "scripted", "opsd")
    assert run["rows_expected"] == 24


def test_the_teacher_is_prompted_as_the_student_was_unless_told_otherwise(
    problems: Path, tmp_path: Path, ok: Trd
) -> None:
    ok("sample", "-m", "scripted", "-p", problems, "--render", "raw", "--out", tmp_path / "y_o")
    ok(*OPSD, tmp_path / "y_o", "--out", tmp_path / "as_student")
    ok(*OPSD, tmp_path / "y_o", "--render", "chat", "--out", tmp_path / "chat")
    assert {256 in row.prompt_token_ids for row in rows_of(tmp_path / "as_student")} == {False}
    assert {256 in row.prompt_token_ids for row in rows_of(tmp_path / "chat")} == {True}


def test_the_input_set_is_never_touched(graded: Path, tmp_path: Path, ok: Trd) -> None:
    before = {path.name: path.read_bytes() for path in graded.iterdir()}
    ok(*OPSD, graded, "--subset", "incorrect", "--out", tmp_path / "y_r")
    assert {path.name: path.read_bytes() for path in graded.iterdir()} == before


def test_only_the_subset_is_refined(graded: Path, tmp_path: Path, ok: Trd) -> None:
    for verdict in ("correct", "incorrect"):
        ok(*OPSD, graded, "--subset", verdict, "--out", tmp_path / verdict)
        expected = {row.trajectory_id for row in rows_of(graded) if row.verdict == verdict}
        assert {row.parent_id for row in rows_of(tmp_path / verdict)} == expected


def test_where_narrows_the_subset(graded: Path, tmp_path: Path, ok: Trd) -> None:
    condition = "sample_index = 1 AND response LIKE '%boxed%'"
    ok(*OPSD, graded, "--subset", "correct", "--where", condition, "--out", tmp_path / "y_r")
    expected = {r.trajectory_id for r in rows_of(graded) if r.verdict == "correct" and r.sample_index == 1}
    assert expected
    assert {row.parent_id for row in rows_of(tmp_path / "y_r")} == expected


def test_a_subset_without_rows_is_said_and_is_no_failure(graded: Path, tmp_path: Path, ok: Trd) -> None:
    result = ok(*OPSD, graded, "--where", "round = 9", "--out", tmp_path / "y_r")
    assert result.stdout == ""
    assert "no row is in the subset: nothing to refine" in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "is_chosen"),
    [("--subset", "incorrect", False), ("--where", "verdict = 'correct'", False), ("--where", "verdict IS NULL", True)],
)
def test_verdicts_are_asked_of_graded_rows_alone(
    rollouts: Path, tmp_path: Path, trd: Trd, option: str, value: str, is_chosen: bool
) -> None:
    result = trd(*OPSD, rollouts, option, value, "--out", tmp_path / "y_r")
    if is_chosen:
        assert len(rows_of(tmp_path / "y_r")) == len(rows_of(rollouts))
        return
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"trd refine: error: {option} {value}, and no row of {rollouts} is graded; expected rows with verdicts; "
        "run trd verify on the set"
    )
    assert not (tmp_path / "y_r").exists()


def test_an_unfinished_set_is_taken_when_asked_for(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    list_shards(rollouts)[1].unlink()
    ok(*OPSD, rollouts, "--allow-partial", "--out", tmp_path / "y_r")
    assert {row.parent_id for row in rows_of(tmp_path / "y_r")} == by_id(rollouts).keys()


@pytest.fixture
def refined(graded: Path, tmp_path: Path, ok: Trd) -> Path:
    """Return the refined rows, verified."""
    out = tmp_path / "y_r"
    ok(*OPSD, graded, "--out", out)
    ok("verify", out, "--workers", 1)
    return out


PARENT_AND_OWN = {
    "repaired": ("incorrect", "correct"),
    "broken": ("correct", "incorrect"),
    "kept": ("correct", "correct"),
    "unrepaired": ("incorrect", "incorrect"),
}


def test_the_four_subsets_partition_the_refined_rows_as_a_plain_count_does(refined: Path, graded: Path) -> None:
    parents = by_id(graded)
    expected: dict[str, set[str]] = {name: set() for name in PARENT_AND_OWN}
    for row in rows_of(refined):
        pair = (parents[row.parent_id].verdict, row.verdict)
        [name] = [name for name, verdicts in PARENT_AND_OWN.items() if verdicts == pair]
        expected[name].add(row.trajectory_id)
    assert all(expected.values()), "the scripted engine gives rows of all four kinds"
    sets = open_sets([str(refined)])
    found = {name: {row.trajectory_id for row in iter_selected(sets, name)} for name in PARENT_AND_OWN}
    assert found == expected


def test_where_reads_the_parents_columns(refined: Path, graded: Path) -> None:
    parents = by_id(graded)
    sets = open_sets([str(refined)])
    chosen = list(
        iter_selected(sets, where="parent_response <> response AND parent_extracted_answer = reference_answer")
    )
    expected = [row for row in iter_rows(list_shards(refined)) if parents[row.parent_id].verdict == "correct"]
    assert chosen == expected
    assert list(iter_selected(sets, "repaired", "parent_verdict = 'correct'")) == []


def test_parents_that_moved_are_found_where_they_are_said_to_be(refined: Path, graded: Path, tmp_path: Path) -> None:
    sets = open_sets([str(refined)])
    expected = list(iter_selected(sets, "repaired"))
    graded.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"parents of .* were not found.*--parents"):
        list(iter_selected(sets, "repaired"))
    assert list(iter_selected(sets, "repaired", parents=[str(tmp_path / "moved")])) == expected
    assert len(list(iter_selected(sets, "correct"))) > 0, "a row's own verdict needs no parent"


def test_a_parent_that_is_missing_is_named(refined: Path, graded: Path) -> None:
    lost = read_rows(list_shards(graded)[0])
    list_shards(graded)[0].unlink()
    with pytest.raises(InputError, match="was not found") as refused:
        list(iter_selected(open_sets([str(refined)]), "repaired"))
    assert any(row.trajectory_id in str(refused.value) for row in lost)
