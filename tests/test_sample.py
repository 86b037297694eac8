"""trd sample: what a row's identity depends on, and what it does not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from support.children import start_child
from support.sets import by_id, rows_of

from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import list_shards, read_rows, write_problems

ROOT = Path(__file__).parent.parent
Trd = Callable[..., Result]
SCRIPTED = ("sample", "-m", "scripted")


@pytest.mark.parametrize("shard_rows", [1, 7, 1000])
def test_a_rows_content_does_not_depend_on_the_shard_size(
    shard_rows: int, rollouts: Path, problems: Path, tmp_path: Path, ok: Trd
) -> None:
    out = tmp_path / "other"
    ok(*SCRIPTED, "-p", problems, "-n", 2, "--shard-rows", shard_rows, "--out", out)
    assert by_id(out) == by_id(rollouts)
    sizes = [len(read_rows(path)) for path in list_shards(out)]
    assert sizes == {1: [1] * 24, 7: [7, 7, 7, 3], 1000: [24]}[shard_rows]


def test_a_rows_content_does_not_depend_on_the_order_of_the_problems(
    rollouts: Path, problems: Path, tmp_path: Path, ok: Trd
) -> None:
    shuffled = read_problems(problems)
    random.Random(3).shuffle(shuffled)
    assert shuffled != read_problems(problems)
    write_problems(tmp_path / "shuffled.parquet", shuffled)
    out = tmp_path / "other"
    ok(*SCRIPTED, "-p", tmp_path / "shuffled.parquet", "-n", 2, "--out", out)
    assert by_id(out) == by_id(rollouts)


def test_equal_work_gives_equal_files(rollouts: Path, problems: Path, tmp_path: Path, ok: Trd) -> None:
    out = tmp_path / "again"
    ok(*SCRIPTED, "-p", problems, "-n", 2, "--shard-rows", 10, "--out", out)
    assert [p.read_bytes() for p in list_shards(out)] == [p.read_bytes() for p in list_shards(rollouts)]


def test_every_attempt_has_a_seed_and_an_id_of_its_own(rollouts: Path) -> None:
    rows = rows_of(rollouts)
    assert len({row.seed for row in rows}) == 24
    assert len({row.trajectory_id for row in rows}) == 24
    assert sorted((row.problem_id, row.sample_index) for row in rows) == sorted(
        (problem, i) for problem in {row.problem_id for row in rows} for i in (0, 1)
    )
    texts = {(row.problem_id, row.response) for row in rows}
    assert len(texts) == 24, "two attempts at a problem are not the same text"


def test_a_row_holds_its_problem_and_what_was_asked(rollouts: Path, problems: Path) -> None:
    known = {problem.problem_id: problem for problem in read_problems(problems)}
    for row in rows_of(rollouts):
        problem = known[row.problem_id]
        assert (row.problem, row.reference_answer, row.reference_solution) == (
            problem.problem,
            problem.reference_answer,
            problem.reference_solution,
        )
        assert (row.stage, row.round, row.setting, row.parent_id, row.error) == ("rollout", 0, None, None, None)
        [message] = row.messages
        assert message["role"] == "user"
        assert message["content"].startswith(problem.problem)
        assert problem.problem in bytes(i for i in row.prompt_token_ids if i < 256).decode()
        assert len(row.logprobs) == len(row.response_token_ids)
        assert (row.finish_reason, row.response_token_ids[-1]) == ("stop", 257)


CHANGES = {
    "seed": ["--seed", 5],
    "temperature": ["--temperature", 0.7],
    "top_p": ["--top-p", 0.5],
    "top_k": ["--top-k", 3],
    "max_tokens": ["--max-tokens", 100],
    "round": ["--round", 1],
    "render": ["--render", "raw"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_tokens_changes_every_rows_identity(
    name: str, rollouts: Path, problems: Path, tmp_path: Path, ok: Trd
) -> None:
    out = tmp_path / "other"
    ok(*SCRIPTED, "-p", problems, "-n", 2, *CHANGES[name], "--out", out)
    assert by_id(out).keys() & by_id(rollouts).keys() == set()


def test_a_raised_n_generates_only_what_is_missing(rollouts: Path, problems: Path, ok: Trd) -> None:
    before = {path: path.read_bytes() for path in list_shards(rollouts)}
    result = ok(*SCRIPTED, "-p", problems, "-n", 5, "--out", rollouts)
    assert {path: path.read_bytes() for path in before} == before
    rows = by_id(rollouts)
    assert len(rows) == 60
    [new] = [path for path in list_shards(rollouts) if path not in before]
    assert {row.sample_index for row in read_rows(new)} == {2, 3, 4}
    assert result.stdout.split() == [str(path) for path in (*before, new)]
    assert json.loads((rollouts / "sessions.jsonl").read_text().splitlines()[-1])["rows"] == 36


def test_a_raised_limit_generates_only_what_is_missing(problems: Path, tmp_path: Path, ok: Trd) -> None:
    part, whole = tmp_path / "part", tmp_path / "whole"
    ok(*SCRIPTED, "-p", problems, "--limit", 5, "--out", part)
    assert len(by_id(part)) == 5
    ok(*SCRIPTED, "-p", problems, "--out", part)
    ok(*SCRIPTED, "-p", problems, "--out", whole)
    assert by_id(part) == by_id(whole)


def test_a_lowered_n_is_refused_and_changes_nothing(rollouts: Path, problems: Path, trd: Trd) -> None:
    before = {path.name: path.read_bytes() for path in rollouts.iterdir()}
    result = trd(*SCRIPTED, "-p", problems, "-n", 1, "--out", rollouts)
    assert result.exit_code == 1
    assert "holds 12 rows that this command would not make" in result.stderr
    assert {path.name: path.read_bytes() for path in rollouts.iterdir()} == before


def test_a_refused_command_drops_no_error_row_and_writes_no_lost_record(
    problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    out = tmp_path / "out"
    command = (*SCRIPTED, "-p", problems, "--engine-arg", "faults=0.5", "--max-errors", 100, "--out", out)
    ok(*command, "-n", 2)
    assert any(row.error for row in rows_of(out))
    (out / "run.json").unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = trd(*command, "-n", 1, "--retry-errors")
    assert "rows that this command would not make" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def with_one_long_problem(problems: Path, path: Path, length: int) -> str:
    """Write the problem set with a third problem of `length` characters; return that problem's id."""
    changed = read_problems(problems)
    changed[2] = replace(changed[2], problem="x" * length)
    write_problems(path, changed)
    return changed[2].problem_id


def test_a_prompt_too_long_becomes_an_error_row_and_the_others_finish(problems: Path, tmp_path: Path, trd: Trd) -> None:
    long_id = with_one_long_problem(problems, tmp_path / "long.parquet", 9000)
    result = trd(*SCRIPTED, "-p", tmp_path / "long.parquet", "--out", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    [failed] = [row for row in rows if row.error is not None]
    assert failed.problem_id == long_id
    assert failed.error.startswith("prompt too long: 9")
    assert failed.error.endswith("tokens, the model takes 8192")
    assert (failed.response, failed.response_token_ids, failed.finish_reason) == (None, None, None)
    assert sum(row.response is not None for row in rows) == 11
    assert result.exit_code == 3, "one in twelve is more than the default share"
    assert "1 of 12 rows ended as errors, 0 allowed (--max-errors 0.05)" in result.stderr


@pytest.mark.parametrize(("allowed", "code"), [("1", 0), ("0", 3), ("0.1", 0), ("0.05", 3)])
def test_max_errors_is_a_count_or_below_1_a_share(
    allowed: str, code: int, problems: Path, tmp_path: Path, trd: Trd
) -> None:
    with_one_long_problem(problems, tmp_path / "long.parquet", 9000)
    args = (*SCRIPTED, "-p", tmp_path / "long.parquet", "--max-errors", allowed, "--out", tmp_path / "out")
    assert trd(*args).exit_code == code
    assert trd(*args).exit_code == code, "a finished set says the same again"


def test_a_response_is_cut_where_the_models_context_ends(problems: Path, tmp_path: Path, ok: Trd) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    args = (*SCRIPTED, "-p", problems, "--engine-arg", "length=60")
    ok(*args, "--out", whole)
    longest = max(len(row.prompt_token_ids) for row in rows_of(whole))
    ok(*args, "--max-model-len", longest + 50, "--out", cut)
    full = by_id(whole)
    for row in rows_of(cut):
        room = longest + 50 - len(row.prompt_token_ids)
        expected = full[row.trajectory_id].response_token_ids
        assert row.response_token_ids == expected[:room]
        assert row.finish_reason == ("length" if len(expected) > room else "stop")
    assert any(row.finish_reason == "length" for row in rows_of(cut))


def test_standard_output_has_one_path_a_finished_shard_also_for_those_of_before(
    rollouts: Path, problems: Path, ok: Trd
) -> None:
    shards = [str(path) for path in list_shards(rollouts)]
    assert len(shards) == 3
    again = ok(*SCRIPTED, "-p", problems, "-n", 2, "--out", rollouts)
    assert again.stdout.splitlines() == shards
    more = ok(*SCRIPTED, "-p", problems, "-n", 3, "--shard-rows", 8, "--out", rollouts)
    assert more.stdout.splitlines() == [str(path) for path in list_shards(rollouts)]
    assert more.stdout.splitlines()[:3] == shards
    assert len(list_shards(rollouts)) == 5


def test_a_finished_set_is_not_generated_again(rollouts: Path, problems: Path, ok: Trd) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in list_shards(rollouts)}
    again = ok(*SCRIPTED, "-p", problems, "-n", 2, "--out", rollouts)
    assert {path.name: path.stat().st_mtime_ns for path in list_shards(rollouts)} == before
    assert "loading" not in again.stderr


def test_without_out_the_directory_is_named_by_the_configuration(
    problems: Path, tmp_path: Path, ok: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, same, other = (
        Path(ok(*SCRIPTED, "-p", problems, "--seed", seed).stdout.strip()).parent for seed in (0, 0, 1)
    )
    assert first == same != other
    assert first.parent == Path("trd-runs")
    assert first.name.startswith("sample-")


def test_run_json_says_what_made_the_rows(rollouts: Path) -> None:
    run = json.loads((rollouts / "run.json").read_text())
    assert (run["command"], run["rows_expected"]) == ("sample", 24)
    assert (run["config"]["n"], run["config"]["temperature"], run["config"]["model"]) == (2, 0.6, "scripted")
    assert "n" not in run["identity"]
    assert run["identity"]["temperature"] == 0.6
    assert {"trd", "python", "pyarrow"} <= run["versions"].keys()
    assert (run["about"]["model"], run["about"]["tokenizer"]) == ("scripted", "bytes")


def test_the_template_of_each_row_is_known_by_its_digest(problems: Path, tmp_path: Path, ok: Trd) -> None:
    import hashlib

    own = tmp_path / "own.jinja"
    own.write_text("Solve: {{ problem }}")
    ok(*SCRIPTED, "-p", problems, "--limit", 1, "--prompt", own, "--out", tmp_path / "out")
    [row] = rows_of(tmp_path / "out")
    assert row.messages[0]["content"] == f"Solve: {row.problem}"
    assert row.prompt_template == str(own)
    assert row.prompt_sha256 == hashlib.sha256(own.read_bytes()).hexdigest()


def test_a_reader_that_leaves_early_does_not_stop_the_work(problems: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "trd_cli.cli", *SCRIPTED, "-p", str(problems), "--shard-rows", "3"]
    process = start_child(
        [*command, "--engine-arg", "delay=0.01", "--out", str(out)],
        cwd=ROOT,
        env=os.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == str(out / "shard-00000.parquet")
    process.stdout.close()
    _, talk = process.communicate()
    assert process.returncode == 0
    assert len(by_id(out)) == 12
    assert "Traceback" not in talk
    assert "the next command in the pipe has ended" in talk
