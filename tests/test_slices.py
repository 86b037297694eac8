"""trd sample on a slice of a problem set, and without problems that are too long: the rows of each run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Trd
from support.sets import by_id

from trd_cli.prompting.tokens import ByteTokenizer
from trd_cli.trajectories.problem_sets import read_problems

SCRIPTED = ("sample", "-m", "scripted")


def generated(directory: Path) -> list[int]:
    return [json.loads(line)["rows"] for line in (directory / "sessions.jsonl").read_text().splitlines()]


def ids(directory: Path) -> list[str]:
    """Return ids of the problems that the rows are about, in order."""
    return sorted({row.problem_id for row in by_id(directory).values()})


@pytest.fixture
def lengths(problems: Path, tmp_path: Path, ok: Trd) -> dict[str, tuple[int, int]]:
    """Return the numbers of tokens of each problem's rendered prompt and of its reference solution."""
    ok(*SCRIPTED, "-p", problems, "--out", tmp_path / "all")
    rows = by_id(tmp_path / "all").values()
    encode = ByteTokenizer().encode
    return {r.problem_id: (len(r.prompt_token_ids), len(encode(r.reference_solution))) for r in rows}


def test_slices_share_no_problem_and_together_are_the_set(problems: Path, tmp_path: Path, ok: Trd) -> None:
    order = [problem.problem_id for problem in read_problems(problems)]
    for number in range(3):
        out = tmp_path / str(number)
        ok(*SCRIPTED, "-p", problems, "--skip", 5 * number, "--limit", 5, "--out", out)
        assert ids(out) == sorted(order[5 * number : 5 * number + 5])


def test_a_row_does_not_depend_on_the_slice_it_is_in(problems: Path, tmp_path: Path, ok: Trd) -> None:
    ok(*SCRIPTED, "-p", problems, "--out", tmp_path / "all")
    ok(*SCRIPTED, "-p", problems, "--skip", 7, "--out", tmp_path / "rest")
    rest = by_id(tmp_path / "rest")
    assert len(rest) == 5
    assert {i: row for i, row in by_id(tmp_path / "all").items() if i in rest} == rest


def test_a_slice_beyond_the_end_is_refused(problems: Path, tmp_path: Path, trd: Trd) -> None:
    result = trd(*SCRIPTED, "-p", problems, "--skip", 12, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"--skip 12, and {problems} has 12 problems" in result.stderr
    assert not (tmp_path / "out").exists()


def test_another_slice_does_not_go_into_the_same_directory(problems: Path, tmp_path: Path, trd: Trd) -> None:
    out = tmp_path / "out"
    assert trd(*SCRIPTED, "-p", problems, "--limit", 5, "--out", out).exit_code == 0
    result = trd(*SCRIPTED, "-p", problems, "--limit", 5, "--skip", 2, "--out", out)
    assert result.exit_code == 1
    assert "holds 2 rows that this command would not make" in result.stderr
    assert trd(*SCRIPTED, "-p", problems, "--limit", 7, "--out", out).exit_code == 0, "a longer one goes on"
    assert generated(out) == [5, 2]


def test_long_prompts_and_references_are_left_out_counted_and_said(
    problems: Path, lengths: dict[str, tuple[int, int]], tmp_path: Path, ok: Trd
) -> None:
    prompt, reference = (sorted(tokens[i] for tokens in lengths.values())[7] for i in (0, 1))
    limits = ("--max-prompt-tokens", prompt, "--max-reference-tokens", reference)
    result = ok(*SCRIPTED, "-p", problems, *limits, "--out", tmp_path / "out")
    kept = {name for name, (p, r) in lengths.items() if p <= prompt and r <= reference}
    assert ids(tmp_path / "out") == sorted(kept)
    assert 0 < len(kept) < 12
    long = sum(p > prompt for p, _ in lengths.values()), sum(r > reference for _, r in lengths.values())
    assert min(long) > 0
    for count, what in zip(long, (f"a prompt of more than {prompt}", "a reference solution"), strict=True):
        assert f"left out {count} of 12 problems: {what}" in result.stderr


def test_the_filter_works_within_the_slice(
    problems: Path, lengths: dict[str, tuple[int, int]], tmp_path: Path, ok: Trd
) -> None:
    order = [problem.problem_id for problem in read_problems(problems)][4:8]
    limit = sorted(lengths[name][0] for name in order)[1]
    ok(*SCRIPTED, *("-p", problems, "--skip", 4, "--limit", 4, "--max-prompt-tokens", limit, "--out", tmp_path / "out"))
    assert ids(tmp_path / "out") == sorted(name for name in order if lengths[name][0] <= limit)


def test_a_wider_filter_goes_on_and_a_narrower_one_is_refused(
    problems: Path, lengths: dict[str, tuple[int, int]], tmp_path: Path, trd: Trd
) -> None:
    ordered = sorted(prompt for prompt, _ in lengths.values())
    narrow = sum(prompt <= ordered[3] for prompt in ordered)
    command = (*SCRIPTED, "-p", problems, "--out", tmp_path / "out", "--max-prompt-tokens")
    assert trd(*command, ordered[3]).exit_code == 0
    assert trd(*command, ordered[-1]).exit_code == 0
    assert generated(tmp_path / "out") == [narrow, 12 - narrow]
    result = trd(*command, ordered[3])
    assert result.exit_code == 1
    assert f"holds {12 - narrow} rows that this command would not make" in result.stderr


def test_a_filter_that_leaves_nothing_is_refused(problems: Path, tmp_path: Path, trd: Trd) -> None:
    result = trd(*SCRIPTED, "-p", problems, "--max-prompt-tokens", 3, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "0 of 12 problems short enough" in result.stderr
    assert not (tmp_path / "out").exists()
