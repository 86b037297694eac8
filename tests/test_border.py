"""Completions of any engine on their way into rows: mended, or their own row's error; no good row is ever lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from support.sets import by_id, rows_of

from trd_cli.config.generating import SampleConfig
from trd_cli.engines.border import checked
from trd_cli.errors import EngineError
from trd_cli.models import resolve_model
from trd_cli.planned import Backend
from trd_cli.progress import SilentProgress
from trd_cli.prompting.tokens import ByteTokenizer
from trd_cli.records import Completion, Problem, Request, Trajectory, content_hash, logprob_array, token_array
from trd_cli.stages import sample
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import list_shards, read_rows, shard_path, write_problems, write_shard

Trd = Callable[..., Result]
TOKENIZER = ByteTokenizer()
END = TOKENIZER.end_of_turn_id
GOOD = Completion("x", "ok", token_array([*TOKENIZER.encode("ok"), END]), logprob_array([-0.5, -0.5, -0.5]), "stop")


@dataclass
class Foreign:
    """An engine from outside trd; `answer` makes its reply to a request."""

    answer: Callable[[int, Request], Any]
    name: str = "foreign"
    version: str = "1"

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for count, request in enumerate(requests):
            answer = self.answer(count, request)
            yield from answer if isinstance(answer, list) else [answer]

    def close(self) -> None: ...


def good(request: Request) -> Completion:
    return replace(GOOD, request_id=request.request_id)


def sampled(
    problems: Path, out: Path, answer: Callable[[int, Request], Any], **options: Any
) -> tuple[list[Trajectory], SilentProgress]:
    """Return the rows of `trd sample` with a foreign engine."""
    model, report = resolve_model("scripted"), SilentProgress()
    backend = Backend(model, model.tokenizer(), "foreign", "1", 8192, lambda note: Foreign(answer))
    config = SampleConfig(problems=str(problems), out=str(out), max_errors=1000, **options)
    sample.run(config, (), backend, report)
    return rows_of(out), report


# Mended values


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("caf\u00e9 \U0001f642", "caf\u00e9 \U0001f642"),
        ("half \ud800.", "half \ufffd."),
        ("\udc00", "\ufffd"),
        ("\ud83d\ude42", "\U0001f642"),
        ("nul \0 in it", "nul \0 in it"),
        ("", ""),
        ([], ""),
        (["fo", "ur"], "four"),
        (({"type": "thinking", "thinking": "2+2"}, {"type": "text", "text": "4"}), "<think>\n2+2\n</think>\n\n4"),
        (
            [{"type": "text", "text": "so"}, {"type": "reasoning", "text": "hm"}, {"text": "4"}],
            "so<think>\nhm\n</think>\n\n4",
        ),
    ],
)
def test_text_is_kept_as_utf8_holds_it_and_parts_are_joined(text: Any, kept: str) -> None:
    assert checked(replace(GOOD, text=text), TOKENIZER) == replace(GOOD, text=kept)


@pytest.mark.parametrize(
    "ids", [(5, END), range(END - 1, END + 1), np.array([5, END]), np.array([5, END], np.uint16), [np.int64(5), END]]
)
def test_ids_of_any_kind_of_whole_number_are_kept_in_four_bytes_each(ids: Any) -> None:
    found = checked(replace(GOOD, token_ids=ids, logprobs=None), TOKENIZER).token_ids
    assert found == token_array(int(i) for i in ids)


@pytest.mark.parametrize("logprobs", [(-1, -2.5, -0.5), np.array([-1, -2.5, -0.5], np.float32)])
def test_logprobs_of_any_kind_of_number_are_kept_in_four_bytes_each(logprobs: Any) -> None:
    found = checked(replace(GOOD, logprobs=logprobs), TOKENIZER).logprobs
    assert found == logprob_array([-1.0, -2.5, -0.5])


BAD_LOGPROBS = {
    "none": None,
    "too few": [-0.5],
    "too many": [-0.5] * 4,
    "nan": [-0.5, float("nan"), -0.5],
    "infinite": [-0.5, float("-inf"), -0.5],
    "beyond float32": [-0.5, -1e300, -0.5],
    "one missing": [-0.5, None, -0.5],
    "texts": ["-1", "-1", "-1"],
    "one text": "abc",
    "an object": {0: -1.0, 1: -1.0, 2: -1.0},
    "a number": 3,
    "true": [True, True, True],
}


@pytest.mark.parametrize("name", BAD_LOGPROBS)
def test_logprobs_that_are_not_one_finite_number_a_token_are_dropped(name: str) -> None:
    assert checked(replace(GOOD, logprobs=BAD_LOGPROBS[name]), TOKENIZER) == replace(GOOD, logprobs=None)


def test_an_end_that_is_missing_after_stop_is_added_once_and_never_after_length() -> None:
    short = replace(GOOD, token_ids=token_array([5, 6]), logprobs=logprob_array([-1.0, -1.0]))
    assert checked(short, TOKENIZER) == replace(short, token_ids=token_array([5, 6, END]), logprobs=None)
    assert checked(replace(short, finish_reason="length"), TOKENIZER) == replace(short, finish_reason="length")


# Errors of rows

BAD: dict[str, dict[str, Any]] = {
    "no text": {"text": None},
    "a number for text": {"text": 12},
    "bytes for text": {"text": b"ok"},
    "an object for text": {"text": {"text": "ok"}},
    "a part that is a number": {"text": ["ok", 5]},
    "a part that is a picture": {"text": [{"type": "image_url", "image_url": "x"}]},
    "a part without text": {"text": [{"type": "text"}]},
    "no ids": {"token_ids": None},
    "empty ids": {"token_ids": []},
    "ids in a text": {"token_ids": "12"},
    "texts for ids": {"token_ids": ["1", "2"]},
    "an id below zero": {"token_ids": [1, -1]},
    "an id beyond 32 bits": {"token_ids": [1, 2**31]},
    "an id that is true": {"token_ids": [1, True]},
    "an id with a fraction": {"token_ids": [1.5]},
    "an id that is a float": {"token_ids": np.array([1.0, 2.0])},
    "an id that is missing": {"token_ids": [1, None]},
    "lists of ids": {"token_ids": [[1, 2]]},
    "a number for ids": {"token_ids": 5},
    "no reason to end": {"finish_reason": None},
    "an unknown reason to end": {"finish_reason": "eos"},
    "a reason that is a list": {"finish_reason": ["stop"]},
}


def test_one_malformed_answer_is_its_rows_error_and_all_others_are_written(tmp_path: Path, ok: Trd) -> None:
    problems = tmp_path / "p.parquet"
    ok("data", "make", "arithmetic", "--n", 2 * len(BAD), "--out", problems)
    names = list(BAD)

    def answer(count: int, request: Request) -> Completion:
        return replace(good(request), **BAD[names[count // 2]]) if count % 2 else good(request)

    rows, _ = sampled(problems, tmp_path / "out", answer)
    assert len(list_shards(tmp_path / "out")) == 1
    failed = [row for row in rows if row.error is not None]
    assert len(failed) == len(BAD)
    assert {row.error.partition(": ")[0] for row in failed} == {"the engine's answer is malformed"}
    assert {(row.response, row.response_token_ids, row.finish_reason) for row in failed} == {(None, None, None)}
    assert {row.response for row in rows if row.error is None} == {"ok"}
    assert len(rows) == 2 * len(BAD)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        ("half \ud800", "half \ufffd"),
        (ValueError("no \udfff"), "no \ufffd"),
        ("", "the engine failed without a word"),
        (" \n", "the engine failed without a word"),
        ("two\nlines", "two lines"),
    ],
)
def test_an_engines_own_error_is_kept_as_text_and_never_empty(error: Any, kept: str) -> None:
    assert checked(Completion("x", error=error), TOKENIZER) == Completion("x", error=kept)


# Answers and requests that do not match


def test_every_request_gets_one_row_whatever_the_engine_answers(problems: Path, tmp_path: Path) -> None:
    def answer(count: int, request: Request) -> Any:
        if count == 0:
            return [good(request), replace(good(request), text="a second answer")]
        if count == 1:
            return replace(good(request), request_id="nobody asked")
        if count == 2:
            return []
        if count == 3:
            return [None, "text", replace(good(request), request_id=["a"]), good(request)]
        return good(request)

    rows, report = sampled(problems, tmp_path / "out", answer)
    assert len(by_id(tmp_path / "out")) == len(rows) == 12
    assert {row.response for row in rows} == {"ok", None}
    errors = [row.error for row in rows if row.error is not None]
    assert errors == ["the engine ended without an answer to this request"] * 2
    assert "left out 5 answers of the engine without an open request" in report.notes


def test_an_engine_that_ends_early_leaves_error_rows_that_a_retry_replaces(problems: Path, tmp_path: Path) -> None:
    rows, _ = sampled(problems, tmp_path / "out", lambda count, request: good(request) if count < 5 else [])
    assert sum(row.error is not None for row in rows) == 7
    rows, _ = sampled(problems, tmp_path / "out", lambda _, request: good(request), retry_errors=True)
    assert [row.error for row in rows] == [None] * 12


def test_an_engine_that_fails_leaves_its_unanswered_requests_owed(problems: Path, tmp_path: Path) -> None:
    def answer(count: int, request: Request) -> Completion:
        if count == 5:
            raise EngineError("gone", "a running engine", "run again")
        return good(request)

    with pytest.raises(EngineError):
        sampled(problems, tmp_path / "out", answer)
    assert [row.error for row in rows_of(tmp_path / "out")] == [None] * 5


# The writer


@pytest.fixture
def row(rollouts: Path) -> Trajectory:
    return read_rows(list_shards(rollouts)[0])[0]


UNWRITABLE: dict[str, dict[str, Any]] = {
    "a number for text": {"response": 12},
    "ids that are texts": {"response_token_ids": ["x"]},
    "an id beyond 32 bits": {"response_token_ids": [2**40]},
    "an object": {"logprobs": object()},
    "a required column that is empty": {"problem": None},
    "a required number that is a text": {"seed": "x"},
    "messages that are a text": {"messages": "hi"},
    "a required list of another kind": {"prompt_token_ids": ["x"]},
}


def test_rows_that_no_table_holds_become_error_rows_beside_the_good_ones(row: Trajectory, tmp_path: Path) -> None:
    rows = [replace(row, trajectory_id=f"{i:032x}") for i in range(2 * len(UNWRITABLE))]
    for i, changes in enumerate(UNWRITABLE.values()):
        rows[2 * i] = replace(rows[2 * i], **changes)
    path = shard_path(tmp_path, 0)
    written = write_shard(path, rows)
    there = read_rows(path)
    assert [r.trajectory_id for r in there] == [r.trajectory_id for r in rows]
    assert [r.error for r in there] == [r.error for r in written]
    assert there[1::2] == rows[1::2]
    for bad, changes in zip(there[::2], UNWRITABLE.values(), strict=True):
        (column,) = changes
        assert bad.error == f"could not be written: no table holds its {column}"
        assert (bad.response, bad.response_token_ids, bad.finish_reason) == (None, None, None)


def test_text_in_a_row_that_utf8_cannot_hold_is_mended_on_writing(row: Trajectory, tmp_path: Path) -> None:
    message = {"role": "user", "content": "\ud83d\ude42 \ud800"}
    odd = replace(row, problem="p\ud800", messages=[message], verdict_detail="\udfff")
    write_shard(shard_path(tmp_path, 0), [row, odd])
    first, second = read_rows(shard_path(tmp_path, 0))
    mended = [{"role": "user", "content": "\U0001f642 \ufffd"}]
    assert first == row
    assert second == replace(odd, problem="p\ufffd", messages=mended, verdict_detail="\ufffd")


def test_a_verdict_that_cannot_be_written_leaves_the_response(row: Trajectory, tmp_path: Path) -> None:
    graded = replace(row, verdict="correct", extracted_answer=12, grader="g", grader_version="1")
    write_shard(shard_path(tmp_path, 0), [graded])
    (there,) = read_rows(shard_path(tmp_path, 0))
    detail = "could not be written: no table holds its extracted_answer"
    assert there == replace(graded, verdict="error", extracted_answer=None, verdict_detail=detail)
    assert there.response == row.response


# Problems


@pytest.mark.parametrize("bench", ["{file}:math", "aime25"])
def test_half_of_a_surrogate_pair_in_a_benchmarks_json_spoils_no_evaluation(
    bench: str, tmp_path: Path, trd: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "benchmarks" / "aime25.jsonl"
    questions = [{"id": f"{i}", "problem": f"What is {i} + 1?", "answer": f"{i + 1}"} for i in range(30)]
    questions[3] |= {"id": "half \ud800", "problem": "What is \ud800 1 + 1?", "answer": "2\udfff"}
    file.parent.mkdir()
    file.write_text("".join(json.dumps(question) + "\n" for question in questions))
    monkeypatch.setenv("TRD_DATA", str(tmp_path))
    out = tmp_path / "out"
    result = trd(*("eval", "scripted", "--bench", bench.format(file=file), "--limit", 5, "--workers", 1, "--out", out))
    assert result.exit_code == 0, result.stderr
    rows = [row for row in rows_of(out) if "\ufffd" in row.problem_id]
    assert [(row.problem, row.reference_answer, row.error) for row in rows] == [
        ("What is \ufffd 1 + 1?", "2\ufffd", None)
    ]


def test_a_problem_is_well_formed_in_all_its_text() -> None:
    odd = Problem("i\ud800", "s\ud800", "code", "p\ud83d\ude42", None, "\ud800", '{"a": "\udfff"}')
    kept = Problem("i\ufffd", "s\ufffd", "code", "p\U0001f642", None, "\ufffd", '{"a": "\ufffd"}')
    assert odd.well_formed() == kept
    assert kept.well_formed() == kept


def test_a_response_with_odd_characters_is_graded_and_its_verdict_written(
    row: Trajectory, tmp_path: Path, ok: Trd
) -> None:
    tests = {"kind": "call", "fn_name": "f", "inputs": [["\ud800"]], "outputs": ["\udfff"]}
    programs = ["def f(x): return x", "def f(x): raise ValueError('\\udc00' + x)", "def f(x): return '\\udfff'"]
    rows = [replace(row, response="\\boxed{\ufffd\0 \U0001f642}")]
    rows += [
        replace(row, task="code", tests=json.dumps(tests), response=f"```python\n{program}\n```")
        for program in programs
    ]
    rows = [replace(each, trajectory_id=content_hash(i)) for i, each in enumerate(rows)]
    write_shard(shard_path(tmp_path, 0), rows)
    ok("verify", "--workers", 1, "--max-errors", 1000, tmp_path)
    graded = read_rows(shard_path(tmp_path, 0))
    assert [each.verdict for each in graded[:3]] == ["incorrect"] * 3
    assert graded[3].verdict == "correct"


def test_a_set_of_odd_problems_is_written_or_refused_but_never_half(problems: Path, tmp_path: Path) -> None:
    odd = [replace(problem, problem="\U0001f642\0") for problem in read_problems(problems)]
    write_problems(tmp_path / "odd.parquet", odd)
    rows, _ = sampled(tmp_path / "odd.parquet", tmp_path / "out", lambda _, request: good(request))
    assert {row.problem for row in rows} == {"\U0001f642\0"}
