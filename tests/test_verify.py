"""trd verify: verdicts by value, each row by itself, each shard whole."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import Result
from support.sets import by_id, rows_of

from trd_cli.config.grading import VerifyConfig
from trd_cli.progress import SilentProgress
from trd_cli.records import Trajectory
from trd_cli.stages import verify as stage
from trd_cli.trajectories.shards import list_shards, read_rows, read_table, shard_info, shard_path, write_shard

Trd = Callable[..., Result]
VERIFY = ("verify", "--workers", 1, "--max-errors", 1000)
VERDICT_FIELDS = ("verdict", "extracted_answer", "grader", "grader_version", "verdict_detail")
# Evaluating either takes longer than the world lasts; the first hangs inside one arithmetic operation.
ENDLESS = (r"\boxed{9^{9^{9^{9}}}}", r"\boxed{\sum_{k=1}^{10^9} \frac{1}{k^k}}")


@pytest.fixture
def template(rollouts: Path) -> Trajectory:
    return rows_of(rollouts)[0]


Make = Callable[[Sequence[tuple[str | None, str | None]]], Path]


@pytest.fixture
def answered(template: Trajectory, tmp_path: Path) -> Make:
    """Return a set of one shard, a row for each (response, reference answer); a response of None is an error row."""

    def make(pairs: Sequence[tuple[str | None, str | None]]) -> Path:
        directory = tmp_path / f"answered-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        rows = [
            replace(
                template,
                trajectory_id=f"{i:032x}",
                response=response,
                response_token_ids=None if response is None else template.response_token_ids,
                reference_answer=reference,
                error="scripted fault" if response is None else None,
            )
            for i, (response, reference) in enumerate(pairs)
        ]
        write_shard(shard_path(directory, 0), rows)
        return directory

    return make


def without_verdict(row: Trajectory) -> Trajectory:
    return replace(row, **dict.fromkeys(VERDICT_FIELDS))


def test_verdicts_are_filled_in_place_and_nothing_else_is_changed(rollouts: Path, ok: Trd) -> None:
    before = rows_of(rollouts)
    assert {row.verdict for row in before} == {None}
    result = ok(*VERIFY, rollouts)
    after = rows_of(rollouts)
    assert [without_verdict(row) for row in after] == before
    for row in after:
        right = row.response.endswith(f"\\boxed{{{row.reference_answer}}}")
        assert row.verdict == ("correct" if right else "incorrect")
        assert (row.grader, row.grader_version is None) == ("math-verify", False)
        assert f"\\boxed{{{row.extracted_answer}}}" in row.response
    counts = Counter(row.verdict for row in after)
    assert len(counts) == 2
    assert f"verdicts: {', '.join(f'{n} {verdict}' for verdict, n in counts.most_common())}" in result.stderr
    assert result.stdout.splitlines() == [str(path) for path in list_shards(rollouts)]


def test_the_other_columns_keep_every_bit(template: Trajectory, tmp_path: Path, ok: Trd) -> None:
    odd = [float("nan"), -0.0, float("-inf")]
    rows = [replace(template, trajectory_id=f"{i:032x}", logprobs=odd, verdict_detail="old") for i in range(3)]
    shard = shard_path(tmp_path, 0)
    write_shard(shard, rows, "0123456789abcdef")

    def content() -> tuple[bytes, str | None]:
        kept = read_table(shard).drop_columns(list(VERDICT_FIELDS)).replace_schema_metadata()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, kept.schema) as stream:
            stream.write_table(kept.combine_chunks())
        return sink.getvalue().to_pybytes(), shard_info(shard).set_digest

    before = content()
    ok(*VERIFY, tmp_path)
    assert {row.verdict for row in read_rows(shard)} <= {"correct", "incorrect"}
    assert content() == before


def test_verified_rows_are_not_graded_again(rollouts: Path, ok: Trd) -> None:
    ok(*VERIFY, rollouts)
    before = {path: path.stat().st_ino for path in list_shards(rollouts)}
    result = ok(*VERIFY, rollouts)
    assert {path: path.stat().st_ino for path in list_shards(rollouts)} == before
    assert result.stdout.splitlines() == [str(path) for path in before]


def test_paths_come_by_pipe_too(rollouts: Path, ok: Trd) -> None:
    shards = list_shards(rollouts)
    ok(*VERIFY, "-", stdin="".join(f"{path}\n" for path in shards[:2]))
    assert [row.verdict is None for row in rows_of(rollouts)] == [False] * 20 + [True] * 4
    ok(*VERIFY, stdin=f"{rollouts}\n")
    assert {row.verdict is None for row in rows_of(rollouts)} == {False}


def test_copies_leave_the_source_untouched(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    before = {path.name: path.read_bytes() for path in rollouts.iterdir()}
    result = ok(*VERIFY, rollouts, "--out", tmp_path / "graded")
    assert {path.name: path.read_bytes() for path in rollouts.iterdir()} == before
    copied = rows_of(tmp_path / "graded")
    assert [without_verdict(row) for row in copied] == rows_of(rollouts)
    assert {row.verdict for row in copied} == {"correct", "incorrect"}
    assert result.stdout.splitlines() == [str(path) for path in list_shards(tmp_path / "graded")]
    # The copy is a set like any other.
    ok("refine", "--setting", "opsd", tmp_path / "graded", "--subset", "correct", "--out", tmp_path / "y_r")


def test_copying_again_keeps_the_verdicts_that_are_there(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    graded = tmp_path / "graded"
    ok(*VERIFY, rollouts, "--out", graded)
    before = {path: path.stat().st_ino for path in list_shards(graded)}
    list_shards(graded)[1].unlink()
    ok(*VERIFY, rollouts, "--out", graded)
    assert len(by_id(graded)) == 24
    after = {path: path.stat().st_ino for path in list_shards(graded)}
    first, _, third = before
    assert (after[first], after[third]) == (before[first], before[third])


def test_copies_follow_a_source_whose_error_rows_were_made_again(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    """`--retry-errors` makes them in a shard of another number, or of the same one if it was the last."""
    graded, shards = tmp_path / "graded", list_shards(rollouts)
    whole = {path: read_rows(path) for path in shards}
    for path in shards[1:]:
        write_shard(path, [replace(row, response=None, error="down") for row in whole[path]])
    ok(*VERIFY, rollouts, "--out", graded)
    assert {row.verdict for row in rows_of(graded)} >= {"error"}

    shards[1].unlink()
    write_shard(shard_path(rollouts, 3), whole[shards[1]])
    write_shard(shards[2], whole[shards[2]])
    ok(*VERIFY, rollouts, "--out", graded)
    assert [without_verdict(row) for row in rows_of(graded)] == rows_of(rollouts)
    assert {row.verdict for row in rows_of(graded)} == {"correct", "incorrect"}


def test_copies_of_shards_without_run_json_can_be_gone_on_with(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    (rollouts / "run.json").unlink()
    graded = tmp_path / "graded"
    first, second, _third = list_shards(rollouts)
    ok(*VERIFY, first, second, "--out", graded)
    before = {path.name: path.stat().st_ino for path in list_shards(graded)}
    ok(*VERIFY, rollouts, "--out", graded)
    assert {row.verdict for row in rows_of(graded)} == {"correct", "incorrect"}
    assert len(by_id(graded)) == 24
    assert before.items() <= {path.name: path.stat().st_ino for path in list_shards(graded)}.items()


def test_copies_of_shards_without_run_json_may_come_one_by_one(rollouts: Path, tmp_path: Path) -> None:
    """A pipe delivers them that way."""
    (rollouts / "run.json").unlink()
    graded = tmp_path / "graded"
    waves = [[str(path)] for path in list_shards(rollouts)]
    counts = stage.run(VerifyConfig(out=str(graded), workers=1), waves, SilentProgress())
    assert counts.total() == 24
    assert [without_verdict(row) for row in rows_of(graded)] == rows_of(rollouts)


def test_copies_that_were_broken_off_before_the_first_can_be_gone_on_with(
    rollouts: Path, tmp_path: Path, ok: Trd
) -> None:
    graded = tmp_path / "graded"
    graded.mkdir()
    (graded / ".run.json.tmp").write_text("{")
    ok(*VERIFY, rollouts, "--out", graded)
    assert len(by_id(graded)) == 24


def test_copies_are_not_mixed_with_another_set_without_run_json(rollouts: Path, tmp_path: Path, trd: Trd) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_shard(shard_path(other, 0), [replace(rows_of(rollouts)[0], trajectory_id="f" * 32)])
    before = shard_path(other, 0).read_bytes()
    (rollouts / "run.json").unlink()
    assert trd(*VERIFY, rollouts, "--out", other).exit_code == 1
    assert shard_path(other, 0).read_bytes() == before


def test_an_unfinished_set_is_verified_as_far_as_it_goes_and_then_refused(rollouts: Path, trd: Trd) -> None:
    list_shards(rollouts)[1].unlink()
    result = trd(*VERIFY, rollouts)
    assert result.exit_code == 1
    assert "is unfinished: 14 of 24 rows" in result.stderr
    assert {row.verdict is None for row in rows_of(rollouts)} == {False}
    assert trd(*VERIFY, rollouts, "--allow-partial").exit_code == 0


GOLD = {
    "the same text": (r"\boxed{12}", "12", "correct"),
    "another number": (r"\boxed{13}", "12", "incorrect"),
    "a fraction for a decimal": (r"\boxed{\frac{1}{2}}", "0.5", "correct"),
    "a decimal for a fraction": (r"\boxed{0.5}", r"\frac{1}{2}", "correct"),
    "a slash for a fraction": (r"\boxed{1/2}", r"\frac{1}{2}", "correct"),
    "a fraction not reduced": (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", "correct"),
    "another fraction": (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", "incorrect"),
    "thousands in the reference": (r"\boxed{1000}", "1,000", "correct"),
    "thousands in the answer": (r"\boxed{1,000}", "1000", "correct"),
    "thousands are no pair": (r"\boxed{1}", "1,000", "incorrect"),
    "trailing zeros": (r"\boxed{3.0}", "3", "correct"),
    "a sign": (r"\boxed{-4}", "4", "incorrect"),
    "a unit in text": (r"\boxed{5\text{ apples}}", "5", "correct"),
    "a dollar sign": (r"\boxed{\$18}", "18", "correct"),
    "a root": (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", "correct"),
    "terms in another order": (r"\boxed{b+a}", "a+b", "correct"),
    "the last of two boxes": (r"\boxed{7} no, \boxed{12}", "12", "correct"),
    "only the first of two boxes": (r"\boxed{12} no, \boxed{7}", "12", "incorrect"),
    "braces inside": (r"so \boxed{\frac{10}{\frac{1}{2}}}", "20", "correct"),
    "an answer after thinking": (r"<think>\boxed{1}</think> \boxed{12}", "12", "correct"),
    "thinking that never ends": (r"<think> it is \boxed{12}", "12", "incorrect"),
    "nothing in a box": (r"the answer is 12", "12", "incorrect"),
    "an empty box": (r"\boxed{}", "12", "incorrect"),
    "an empty response": ("", "12", "incorrect"),
    "words": (r"\boxed{many}", "12", "incorrect"),
    "no reference": (r"\boxed{12}", None, "error"),
    "an empty reference": (r"\boxed{12}", "", "error"),
}


def test_answers_are_compared_by_value(answered: Make, ok: Trd) -> None:
    directory = answered([(response, reference) for response, reference, _ in GOLD.values()])
    ok(*VERIFY, directory)
    found = {name: row.verdict for name, row in zip(GOLD, rows_of(directory), strict=True)}
    assert found == {name: verdict for name, (_, _, verdict) in GOLD.items()}


def test_a_missing_answer_is_told_from_a_wrong_one(answered: Make, ok: Trd) -> None:
    directory = answered([("no box: 12", "12"), (r"\boxed{13}", "12")])
    ok(*VERIFY, directory)
    none, wrong = rows_of(directory)
    assert (none.verdict, none.verdict_detail, none.extracted_answer) == ("incorrect", "no_answer", None)
    assert (wrong.verdict, wrong.verdict_detail, wrong.extracted_answer) == ("incorrect", None, "13")


def test_lenient_takes_the_last_number_where_nothing_is_boxed(answered: Make, ok: Trd) -> None:
    pairs = [("first 5, so it is 1,200", "1200"), (r"\boxed{3}, not 1200", "1200"), ("so 12 and then 13.", "12")]
    strict, lenient = answered(pairs), answered(pairs)
    ok(*VERIFY, strict)
    ok(*VERIFY, lenient, "--lenient")
    assert [row.verdict for row in rows_of(strict)] == ["incorrect"] * 3
    assert [row.verdict for row in rows_of(lenient)] == ["correct", "incorrect", "incorrect"]
    assert rows_of(lenient)[0].extracted_answer == "1200"
    versions = {row.grader_version for directory in (strict, lenient) for row in rows_of(directory)}
    assert len(versions) == 2


def test_a_grader_with_other_options_is_refused_until_asked_to_grade_again(answered: Make, trd: Trd, ok: Trd) -> None:
    directory = answered([("so it is 12", "12"), (r"\boxed{12}", "12")])
    ok(*VERIFY, directory)
    before = rows_of(directory)
    refused = trd(*VERIFY, directory, "--lenient")
    assert refused.exit_code == 1
    assert "was graded by math-verify" in refused.stderr
    assert rows_of(directory) == before
    again = ok(*VERIFY, directory, "--lenient", "--regrade")
    assert [row.verdict for row in rows_of(directory)] == ["correct", "correct"]
    assert "1 verdict changed" in again.stderr


def test_regrading_without_a_change_changes_no_verdict(rollouts: Path, ok: Trd) -> None:
    ok(*VERIFY, rollouts)
    before = rows_of(rollouts)
    result = ok(*VERIFY, rollouts, "--regrade")
    assert rows_of(rollouts) == before
    assert "0 verdicts changed" in result.stderr
    assert "old \\ new" not in result.stderr, "a table of changes only where there are any"


def test_a_row_without_a_response_is_an_error_and_never_wrong(answered: Make, ok: Trd) -> None:
    directory = answered([(r"\boxed{12}", "12"), (None, "12"), (r"\boxed{13}", "12")])
    ok(*VERIFY, directory)
    right, failed, wrong = rows_of(directory)
    assert (right.verdict, failed.verdict, wrong.verdict) == ("correct", "error", "incorrect")
    assert failed.verdict_detail == "no response: scripted fault"


def test_a_code_row_without_tests_is_an_error_that_says_so(answered: Make, ok: Trd) -> None:
    directory = answered([("print(12)", "12"), (r"\boxed{12}", "12")])
    code, sum_ = rows_of(directory)
    write_shard(shard_path(directory, 0), [replace(code, task="code"), sum_])
    ok(*VERIFY, directory)
    code, sum_ = rows_of(directory)
    assert (code.verdict, code.verdict_detail) == ("error", "no tests")
    assert sum_.verdict == "correct"


@pytest.mark.parametrize("response", ENDLESS, ids=["in one operation", "in many"])
def test_a_row_that_hangs_the_grader_times_out_and_the_next_is_graded_right(
    response: str, answered: Make, ok: Trd
) -> None:
    directory = answered([(r"\boxed{12}", "12"), (response, "12"), (r"\boxed{\frac{24}{2}}", "12")])
    began = time.monotonic()
    result = ok(*VERIFY, directory, "--timeout", 1)
    assert [row.verdict for row in rows_of(directory)] == ["correct", "timeout", "correct"]
    assert rows_of(directory)[1].verdict_detail == "killed after 1 s"
    assert "2 correct, 1 timeout" in result.stderr
    assert time.monotonic() - began < 30


def test_a_set_is_graded_by_many_workers_as_by_one(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    shutil.copytree(rollouts, tmp_path / "copy")
    ok(*VERIFY, rollouts)
    ok("verify", "--workers", 3, tmp_path / "copy")
    assert rows_of(tmp_path / "copy") == rows_of(rollouts)


def test_a_shard_keeps_its_place_its_rows_and_their_order(rollouts: Path, ok: Trd) -> None:
    before = {path.name: [row.trajectory_id for row in read_rows(path)] for path in list_shards(rollouts)}
    ok(*VERIFY, rollouts)
    after = {path.name: [row.trajectory_id for row in read_rows(path)] for path in list_shards(rollouts)}
    assert after == before
    assert sorted(path.name for path in rollouts.iterdir() if path.name.startswith((".shard", "shard"))) == sorted(
        before
    )
