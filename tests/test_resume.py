"""The same command again finishes the missing rows, and only those: after faults, crashes and torn shards."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result
from support.sets import by_id, rows_of
from support.tiny import END, write_bare_model

from trd_cli.trajectories.shards import list_shards, read_rows

Trd = Callable[..., Result]
SCRIPTED = ("sample", "-m", "scripted", "-n", 2)


def generated(directory: Path) -> list[int]:
    """Return the number of rows of each invocation, from `sessions.jsonl`."""
    return [json.loads(line)["rows"] for line in (directory / "sessions.jsonl").read_text().splitlines()]


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# Rows that fail


def test_faults_become_error_rows_and_are_counted(problems: Path, tmp_path: Path, trd: Trd) -> None:
    out = tmp_path / "y_o"
    result = trd(*SCRIPTED, "-p", problems, "--engine-arg", "faults=0.3", "--out", out)
    rows = rows_of(out)
    failed = [row for row in rows if row.error is not None]
    assert len(rows) == 24
    assert 0 < len(failed) < 24
    assert {(row.error, row.response, row.response_token_ids) for row in failed} == {("scripted fault", None, None)}
    assert result.exit_code == 3
    assert f"{len(failed)} of 24 rows ended as errors, 1 allowed" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("trd sample: error: ")
    assert "Traceback" not in result.stderr


def test_error_rows_are_made_again_only_when_asked(problems: Path, tmp_path: Path, trd: Trd) -> None:
    out = tmp_path / "y_o"
    command = (*SCRIPTED, "-p", problems, "--engine-arg", "faults=0.3", "--shard-rows", 5, "--out", out)
    trd(*command)
    before = by_id(out)
    good = {i: row for i, row in before.items() if row.error is None}
    assert trd(*command).exit_code == 3
    assert generated(out) == [24], "the second run had nothing to do"
    assert trd(*command, "--retry-errors").exit_code == 3, "the script fails for the same rows again"
    assert by_id(out) == before
    assert generated(out) == [24, 24 - len(good)]


@dataclass
class Server:
    """An OpenAI-compatible server that fails every third request until it is mended."""

    url: str = ""
    mended: bool = False
    asked: list[list[int]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body["prompt"][0])
            if state.mended or len(state.asked) % 3:
                ids = [len(state.asked) + 4, END]
                choice = {"index": 0, "text": "ok", "finish_reason": "stop", "token_ids": ids}
                status, answer = 200, {"id": "1", "choices": [choice]}
            else:
                status, answer = 400, {"error": {"message": "overloaded"}}
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bare_model(tmp_path_factory.mktemp("model"))


def test_a_retry_that_succeeds_replaces_exactly_the_error_rows(
    server: Server, model: Path, problems: Path, tmp_path: Path, trd: Trd, ok: Trd
) -> None:
    engine = ("--engine", "openai", "--base-url", server.url, "--engine-arg", "retries=0", "--batch-size", 1)
    y_o, y_r = tmp_path / "y_o", tmp_path / "y_r"
    sample = ("sample", "-m", model, "-p", problems, "-n", 2, "--shard-rows", 5, *engine, "--out", y_o)
    refine = ("refine", "--setting", "opsd", y_o, *engine, "--max-tokens", 64, "--out", y_r)
    assert trd(*sample).exit_code == 3
    before = by_id(y_o)
    failed = {i for i, row in before.items() if row.error is not None}
    assert len(failed) == 8
    server.mended = True
    assert trd(*refine).exit_code == 3, "a rollout without a response cannot be refined"
    assert sum(row.error is not None for row in rows_of(y_r)) == 8

    ok(*sample, "--retry-errors")
    after = by_id(y_o)
    assert after.keys() == before.keys()
    assert {i: row for i, row in after.items() if i not in failed} == {
        i: row for i, row in before.items() if i not in failed
    }
    assert {(after[i].error, after[i].response) for i in failed} == {(None, "ok")}
    assert generated(y_o) == [24, 8]
    assert not [p for p in list_shards(y_o) if not read_rows(p)], "no shard is left empty"

    ok(*refine, "--retry-errors")
    assert {row.parent_id for row in rows_of(y_r)} == after.keys()
    assert {row.error for row in rows_of(y_r)} == {None}
    assert len(by_id(y_r)) == 24


def test_a_retry_that_is_broken_off_is_owed_without_asking(problems: Path, tmp_path: Path, trd: Trd) -> None:
    out = tmp_path / "y_o"
    script = ("--engine-arg", "faults=0.3", "--engine-arg", "crash_after=4")
    command = (*SCRIPTED, "-p", problems, *script, "--max-errors", 24, "--out", out)
    for _ in range(5):
        assert trd(*command).exit_code == 1
    assert trd(*command).exit_code == 0
    before = by_id(out)
    errors = sum(row.error is not None for row in before.values())
    assert errors > 4
    assert trd(*command, "--retry-errors").exit_code == 1
    assert len(by_id(out)) == 24 - errors + 4
    while trd(*command).exit_code == 1:
        pass
    assert by_id(out) == before


# Runs that stop


def test_an_engine_that_crashes_keeps_what_was_finished_and_every_run_goes_on(
    problems: Path, tmp_path: Path, trd: Trd, ok: Trd
) -> None:
    out, whole = tmp_path / "y_o", tmp_path / "whole"
    ok(*SCRIPTED, "-p", problems, "--out", whole)
    command = (*SCRIPTED, "-p", problems, "--engine-arg", "crash_after=7", "--shard-rows", 4, "--out", out)
    for done in (7, 14, 21):
        result = trd(*command)
        assert (result.exit_code, len(by_id(out))) == (1, done)
        assert result.stderr.splitlines()[-1].startswith("trd sample: error: the scripted engine crashed; expected")
        assert "Traceback" not in result.stderr
        assert result.stdout.splitlines() == [str(path) for path in list_shards(out)]
    last = ok(*command)
    assert last.stdout.splitlines() == [str(path) for path in list_shards(out)]
    # An engine's arguments are no part of a row's own identity: the script gives the same replies.
    assert by_id(out) == by_id(whole)
    assert generated(out) == [7, 7, 7, 3]


def test_a_set_that_stopped_half_way_is_refused_by_the_next_stage(problems: Path, tmp_path: Path, trd: Trd) -> None:
    out = tmp_path / "y_o"
    trd(*SCRIPTED, "-p", problems, "--engine-arg", "crash_after=7", "--out", out)
    result = trd("refine", "--setting", "opsd", out, "--out", tmp_path / "y_r")
    assert result.exit_code == 1
    assert f"{out} is unfinished: 7 of 24 rows" in result.stderr
    assert not (tmp_path / "y_r").exists()


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"whole but for its tail"], ids=["empty", "head only", "cut"])
def test_a_torn_shard_is_owed_again(damage: bytes, rollouts: Path, problems: Path, ok: Trd) -> None:
    before = by_id(rollouts)
    torn = list_shards(rollouts)[1]
    torn.write_bytes(torn.read_bytes()[:-50] if damage.startswith(b"whole") else damage)
    result = ok(*SCRIPTED, "-p", problems, "--out", rollouts)
    assert by_id(rollouts) == before
    assert generated(rollouts)[-1] == 10
    assert str(torn) not in result.stdout.split()
    assert len(result.stdout.split()) == 3


def test_leftovers_of_a_killed_write_are_cleared_away(rollouts: Path, problems: Path, ok: Trd) -> None:
    (rollouts / ".shard-00003.parquet.tmp").write_bytes(b"half a shard")
    (rollouts / ".run.json.tmp").write_text("{")
    ok(*SCRIPTED, "-p", problems, "--out", rollouts)
    assert not [name for name in names(rollouts) if name.endswith(".tmp")]


def test_a_directory_left_before_its_first_row_is_taken_up(
    rollouts: Path, problems: Path, tmp_path: Path, ok: Trd
) -> None:
    for name, content in {"bare": None, "locked": {".lock": ""}, "begun": {".lock": "", ".run.json.tmp": "{"}}.items():
        (tmp_path / name).mkdir()
        for file, text in (content or {}).items():
            (tmp_path / name / file).write_text(text)
        ok(*SCRIPTED, "-p", problems, "--out", tmp_path / name)
        assert by_id(tmp_path / name) == by_id(rollouts)


# Refusals


def test_another_configuration_is_refused_with_the_keys_that_differ(rollouts: Path, problems: Path, trd: Trd) -> None:
    before = {path.name: path.read_bytes() for path in rollouts.iterdir()}
    result = trd(*SCRIPTED, "-p", problems, "--seed", 3, "--render", "raw", "--out", rollouts)
    assert result.exit_code == 1
    assert "render (chat → raw), seed (0 → 3)" in result.stderr
    assert "temperature" not in result.stderr
    assert {path.name: path.read_bytes() for path in rollouts.iterdir()} == before


def test_other_problems_are_refused(rollouts: Path, tmp_path: Path, ok: Trd, trd: Trd) -> None:
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 2, "--out", tmp_path / "other.parquet")
    result = trd(*SCRIPTED, "-p", tmp_path / "other.parquet", "--out", rollouts)
    assert result.exit_code == 1
    assert "problems (" in result.stderr


def test_what_does_not_change_a_row_may_change_between_runs(rollouts: Path, problems: Path, ok: Trd) -> None:
    before = by_id(rollouts)
    list_shards(rollouts)[0].unlink()
    how = ("--shard-rows", 3, "--batch-size", 5, "--max-errors", 1, "--shard-minutes", 1)
    ok(*SCRIPTED, "-p", problems, *how, "--out", rollouts)
    assert by_id(rollouts) == before


def test_a_directory_in_use_is_refused(rollouts: Path, problems: Path, trd: Trd) -> None:
    with open(rollouts / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = trd(*SCRIPTED, "-p", problems, "--out", rollouts)
    assert result.exit_code == 1
    assert f"{rollouts} is in use by another process" in result.stderr
    assert trd(*SCRIPTED, "-p", problems, "--out", rollouts).exit_code == 0


def test_a_shard_of_another_version_is_refused_and_kept(rollouts: Path, problems: Path, trd: Trd) -> None:
    import pyarrow.parquet as pq

    path = list_shards(rollouts)[0]
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"trd.schema_version": b"7"}), path)
    before = path.read_bytes()
    result = trd(*SCRIPTED, "-p", problems, "--out", rollouts)
    assert result.exit_code == 1
    assert f"{path} has schema version 7" in result.stderr
    assert path.read_bytes() == before


def test_a_shard_is_closed_early_when_its_time_is_up(problems: Path, tmp_path: Path, ok: Trd) -> None:
    ok(*SCRIPTED, "-p", problems, "--limit", 2, "--shard-minutes", 0, "--out", tmp_path / "y_o")
    assert [len(read_rows(path)) for path in list_shards(tmp_path / "y_o")] == [1, 1, 1, 1]
