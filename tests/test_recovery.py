"""trd diagnose --recover: wrong rows are cut, models go on from there, and the accuracy is told with its interval."""

from __future__ import annotations

import json
import math
import shutil
import signal
import tracemalloc
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from support.children import forking, wait_for
from support.diagnoses import positions, write_figures_of
from support.pair import ID, build_pair, write_problems_of_pair
from support.rows import refined_row
from support.sets import by_id, rows_of
from support.tiny import set_eos, write_bare_model

from trd_cli.diagnosis.continuations import cut_rows, read_cuts, recovery_figures, with_perplexities
from trd_cli.diagnosis.recovery import Continued, Prefix, quartiles, rates
from trd_cli.models import resolve_model
from trd_cli.records import Trajectory, authors_of, token_array
from trd_cli.trajectories.sets import open_sets, parent_frame
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

Trd = Callable[..., Result]
RECOVER = ("--recover", "--recover-by", "both", "--recover-temperature", 0, "--recover-max-tokens", 12, "--workers", 1)


def prefix(name: str, problem: str, cut: float, tokens: int, perplexity: float = 1.0) -> Prefix:
    return Prefix(name, problem, cut, tokens, perplexity)


def test_quartiles_are_of_the_prefixes_of_one_cut() -> None:
    low = [prefix(f"r{i}", "p", 0.2, 1, perplexity) for i, perplexity in enumerate((4.0, 1.0, 3.0, 2.0))]
    high = [prefix(f"r{i}", "p", 0.8, 4, 100.0 + i) for i in range(8)]
    assert quartiles([*low, *high]) == [4, 1, 3, 2, 1, 1, 2, 2, 3, 3, 4, 4]


def test_few_prefixes_fill_the_lower_quartiles_and_equals_go_by_their_ids() -> None:
    assert quartiles([prefix("b", "p", 0.2, 1), prefix("a", "p", 0.2, 1)]) == [3, 1]


def test_the_rate_is_the_mean_over_problems_with_an_interval_over_problems() -> None:
    prefixes = [prefix("a", "p", 0.2, 1), prefix("b", "p", 0.2, 2), prefix("c", "q", 0.2, 1)]
    verdicts = {"a": "correct correct", "b": "incorrect timeout", "c": "incorrect incorrect"}
    rows = [
        Continued(each.trajectory_id, each.tokens, verdict)
        for each in prefixes
        for verdict in verdicts[each.trajectory_id].split()
    ]
    [*_, of_all] = rates("teacher", prefixes, rows)
    by, cut, quartile, value, low, high, *counts = astuple(of_all)
    assert (by, cut, quartile) == ("teacher", None, None)
    # p has 2 right of 3 graded, q none of 2.
    assert value == pytest.approx((2 / 3 + 0) / 2)
    assert counts == [3, 2, 5, 1], "prefixes, problems, graded, ungraded"
    # Wilson's interval at 2 trials, the number of problems, with t = 12.706 for z, at the mean 1/3.
    assert (low, high) == pytest.approx((0.001367, 0.994554), abs=1e-6)


def test_all_or_nothing_has_wilsons_interval_of_the_problems() -> None:
    prefixes = [prefix(f"r{i}", f"p{i}", 0.4, 1) for i in range(4)]
    rows = [Continued(f"r{i}", 1, "correct" if i else "incorrect") for i in range(4) for _ in range(4)]
    [*_, of_all] = rates("student", prefixes, rows)
    assert of_all.value == 0.75
    # Wilson 1927 for 3 of 4 at z = 1.96: the 16 continuations are no 16 independent trials.
    assert (of_all.low, of_all.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)


def test_two_cuts_at_one_place_share_their_continuations_and_count_them_once_in_all() -> None:
    prefixes = [prefix("a", "p", 0.2, 3), prefix("a", "p", 0.4, 3), prefix("a", "p", 0.6, 5)]
    rows = [Continued("a", 3, "correct"), Continued("a", 5, "incorrect"), Continued("a", 5, "incorrect")]
    found = {(each.cut, each.quartile): each for each in rates("teacher", prefixes, rows)}
    assert [found[cut, None].value for cut in (0.2, 0.4, 0.6)] == [1.0, 1.0, 0.0]
    assert (found[None, None].prefixes, found[None, None].graded) == (2, 3)
    assert found[None, None].value == pytest.approx(1 / 3)
    assert found[0.2, 1].value == 1.0
    assert (0.2, 2) not in found, "a single prefix is the first quartile"


def test_what_is_not_graded_has_no_rate() -> None:
    [*_, of_all] = rates("teacher", [prefix("a", "p", 0.2, 3)], [Continued("a", 3, "error"), Continued("a", 3, None)])
    assert (of_all.value, of_all.low, of_all.high, of_all.graded, of_all.ungraded) == (None, None, None, 0, 2)


def test_rows_are_cut_at_the_line_break_nearest_to_each_share(tmp_path: Path) -> None:
    tokenizer = resolve_model(str(write_bare_model(tmp_path))).tokenizer()
    # A token a character. Breaks end at 3, 7 and 12 of 14; the shares are at 3, 6, 8 and 11.
    ids = token_array([*tokenizer.encode("aa\nbbb\ncccc\ndd"), *tokenizer.eos_ids])
    plain = token_array(tokenizer.encode("0123456789"))
    rows = [refined_row(0, trajectory_id=name, response_token_ids=each) for name, each in (("a", ids), ("b", plain))]
    found = [(name, share, tokens) for name, _, share, tokens in cut_rows(rows, (0.2, 0.4, 0.6, 0.8), [tokenizer])]
    assert found[:4] == [("a", 0.2, 3), ("a", 0.4, 7), ("a", 0.6, 7), ("a", 0.8, 12)]
    assert [tokens for *_, tokens in found[4:]] == [2, 4, 6, 8], "without a break at the share itself"


def test_an_end_that_one_of_both_models_knows_is_in_no_prefix(tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir()
    student = resolve_model(str(write_bare_model(tmp_path / "student"))).tokenizer()
    other = write_bare_model(tmp_path / "teacher")
    set_eos(other, [0])
    teacher = resolve_model(str(other)).tokenizer()
    [end] = student.eos_ids
    rows = [
        refined_row(0, trajectory_id=name, response_token_ids=token_array([*student.encode("a"), last]))
        for name, last in (("student", end), ("teacher", 0))
    ]
    found = [(name, tokens) for name, *_, tokens in cut_rows(rows, (0.8,), [teacher, student])]
    assert found == [("student", 1), ("teacher", 1)]


def test_a_row_that_two_sets_have_and_a_share_that_is_given_twice_are_cut_once(tmp_path: Path) -> None:
    tokenizer = resolve_model(str(write_bare_model(tmp_path))).tokenizer()
    row = refined_row(0, trajectory_id="a", response_token_ids=token_array(tokenizer.encode("0123456789")))
    assert [share for _, _, share, _ in cut_rows([row, row], (0.2, 0.5, 0.5), [tokenizer])] == [0.2, 0.5]


def test_perplexities_take_the_memory_of_one_shard(tmp_path: Path) -> None:
    tokens, count = 10_000, 30
    of_row = positions(teacher_logprob=np.full(tokens, -1.0))
    write_figures_of(tmp_path, [(refined_row(i), of_row) for i in range(count)], shard_rows=1)
    cuts = [(refined_row(i).trajectory_id, "p", 0.5, 5) for i in range(count)]
    tracemalloc.start()
    found = with_perplexities(cuts, tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [each.teacher_perplexity for each in found] == [pytest.approx(math.e)] * count
    assert most < 8 * tokens * count / 2, "running sums of all rows take 8 bytes a position"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Make graded attempts of the student, and a diagnosis of them with the recovery of both; no test changes them.

    A wrong attempt is bad, worse, ..., \\boxed{5}. Without chance the teacher turns back after bad and goes on after
    worse, and the student always goes on.
    """
    world = tmp_path_factory.mktemp("recovery")
    student, teacher = build_pair(world)
    write_problems_of_pair(world / "p.parquet", 6)
    chance = ("--temperature", 1, "--top-p", 1, "--top-k", 0, "--max-tokens", 12, "--dtype", "float32")
    ok("sample", "-m", student, "-p", world / "p.parquet", "-n", 3, *chance, "--out", world / "bare")
    shutil.copytree(world / "bare", world / "y_o")
    ok("verify", world / "y_o", "--workers", 1)
    ok("diagnose", world / "y_o", "-t", teacher, *RECOVER, "--shard-rows", 12, "--out", world / "d")
    return world


def wrong(world: Path) -> dict[str, Trajectory]:
    return {name: row for name, row in by_id(world / "y_o").items() if row.verdict == "incorrect"}


def test_the_teacher_goes_on_from_the_very_tokens_of_wrong_rows_and_turns_back_where_it_would(world: Path) -> None:
    rows, parents = by_id(world / "d" / "recovery" / "teacher").values(), wrong(world)
    assert {row.parent_id for row in rows} == {*parents}
    for row in rows:
        kept = row.prefix_tokens
        assert row.response_token_ids[:kept] == parents[row.parent_id].response_token_ids[:kept]
        assert [*authors_of(row)] == [0] * kept + [1] * (len(row.response_token_ids) - kept)
        last = row.response_token_ids[kept - 1]
        if last in (ID["bad"], ID["worse"]):  # chance may have drawn a filler
            assert (row.verdict == "correct") == (last == ID["bad"]), row.response
    assert {row.verdict for row in rows} == {"correct", "incorrect"}


def test_the_student_goes_on_in_its_own_context_and_is_wrong_again(world: Path) -> None:
    rows, parents = rows_of(world / "d" / "recovery" / "student"), wrong(world)
    assert all(row.prompt_token_ids == parents[row.parent_id].prompt_token_ids for row in rows)
    assert {(row.stage, row.verdict, row.author) for row in rows} == {("rollout", "incorrect", None)}


def test_the_perplexity_is_that_of_the_prefix_under_the_teacher(world: Path) -> None:
    parents = wrong(world)
    # The teacher's probabilities of bad after the prompt, of worse after bad, and of worse after worse.
    by_hand = {1: 0.08**-1, 2: (0.08 * 0.3) ** -0.5, 3: (0.08 * 0.3 * 0.3) ** (-1 / 3)}
    _, prefixes = read_cuts(world / "d")
    known = [
        each for each in prefixes if [*parents[each.trajectory_id].response_token_ids[:2]] == [ID["bad"], ID["worse"]]
    ]
    assert {each.tokens for each in known} >= {1, 2, 3}
    for each in known:
        if each.tokens in by_hand:
            assert each.teacher_perplexity == pytest.approx(by_hand[each.tokens], rel=2e-3)


def test_the_rates_are_in_the_results_with_their_intervals_over_problems(world: Path) -> None:
    figures = {(each.by, each.cut): each for each in recovery_figures(world / "d") if each.quartile is None}
    parents = wrong(world)
    problems = {row.problem_id for row in parents.values()}
    for cut in (0.2, 0.4, 0.6, 0.8):
        none = figures["student", cut]
        assert (none.value, none.low, none.problems, none.graded) == (0.0, 0.0, len(problems), 4 * len(parents))
    early, late = figures["teacher", 0.2], figures["teacher", 0.8]
    assert (early.low, early.value, early.high) > (late.low, late.value, late.high)
    assert early.low < early.value <= early.high
    told = json.loads((world / "d" / "diagnosis.json").read_text())["recovery"]
    assert [
        row["value"] for row in told if row["by"] == "teacher" and row["cut"] == 0.2 and row["quartile"] is None
    ] == [early.value]


def test_a_recovery_that_is_killed_goes_on_with_what_is_missing(world: Path, tmp_path: Path, ok: Trd) -> None:
    # The figures are there: only the continuations are made.
    shutil.copytree(world / "d", tmp_path / "d", ignore=shutil.ignore_patterns("recovery"))
    command = ("diagnose", world / "y_o", "-t", world / "teacher", *RECOVER, "--shard-rows", 2, "--out", tmp_path / "d")
    teacher = tmp_path / "d" / "recovery" / "teacher"
    with forking("import torch, transformers, trd_cli.stages.diagnose", tmp_path) as start:
        run = start(*command)
        wait_for(lambda: teacher.is_dir() and list_shards(teacher))
        assert run.kill() == -signal.SIGKILL
    before, whole = by_id(teacher), by_id(world / "d" / "recovery" / "teacher")
    assert 0 < len(before) < len(whole)
    assert recovery_figures(tmp_path / "d") == [], "a set that is not finished has no rate"
    ok(*command)
    assert by_id(teacher) == whole
    assert recovery_figures(tmp_path / "d") == recovery_figures(world / "d")


def test_a_recovery_makes_and_grades_only_what_is_missing(world: Path, tmp_path: Path, ok: Trd) -> None:
    shutil.copytree(world / "d", tmp_path / "d")
    teacher = tmp_path / "d" / "recovery" / "teacher"
    before = by_id(teacher)
    first, second, *others = list_shards(teacher)
    # As ends of several kinds leave a set: a shard is not written, one not graded, and the others are whole.
    ungraded = dict.fromkeys(("verdict", "extracted_answer", "grader", "grader_version", "verdict_detail"))
    digest = json.loads((teacher / "run.json").read_text())["digest"]
    write_shard(second, [replace(row, **ungraded) for row in read_rows(second)], digest)
    first.unlink()
    kept = {path: path.read_bytes() for path in others}
    ok("diagnose", world / "y_o", "-t", world / "teacher", *RECOVER, "--shard-rows", 12, "--out", tmp_path / "d")
    after = by_id(teacher)
    assert after == before
    assert {path: path.read_bytes() for path in others} == kept
    assert recovery_figures(tmp_path / "d") == recovery_figures(world / "d")


def test_a_recovery_that_is_refused_changes_nothing(world: Path, tmp_path: Path, trd: Trd) -> None:
    out = shutil.copytree(world / "d", tmp_path / "d")
    before = {path: path.read_bytes() for path in (out / "recovery").rglob("*") if path.is_file()}
    rates_before = recovery_figures(out)
    command = ("diagnose", world / "y_o", "-t", world / "teacher", *RECOVER, "--shard-rows", 12, "--out", out)
    for fewer in (("--recover-cuts", 0.5), ("--recover-limit", 1), ("--recover-temperature", 1)):
        for by in ("both", "teacher"):
            result = trd(*command, "--recover-by", by, *fewer)
            assert result.exit_code == 1, fewer
            assert {path: path.read_bytes() for path in (out / "recovery").rglob("*") if path.is_file()} == before
    assert recovery_figures(out) == rates_before


def test_what_both_have_made_stays_in_the_results_when_only_the_teacher_is_asked(
    world: Path, tmp_path: Path, ok: Trd
) -> None:
    out = shutil.copytree(world / "d", tmp_path / "d")
    command = ("diagnose", world / "y_o", "-t", world / "teacher", *RECOVER, "--recover-by", "teacher")
    ok(*command, "--shard-rows", 12, "--out", out)
    told = json.loads((out / "diagnosis.json").read_text())["recovery"]
    assert told == json.loads((world / "d" / "diagnosis.json").read_text())["recovery"]
    ok(*command, "--recover-samples", 5, "--shard-rows", 12, "--out", out)
    told = json.loads((out / "diagnosis.json").read_text())["recovery"]
    assert {row["by"] for row in told} == {"teacher"}, "the student's set lacks the fifth samples"


def test_a_row_that_is_right_by_now_leaves_the_rates_and_its_continuations_stay(
    world: Path, tmp_path: Path, ok: Trd
) -> None:
    out, y_o = shutil.copytree(world / "d", tmp_path / "d"), shutil.copytree(world / "y_o", tmp_path / "y_o")
    before = {by: by_id(out / "recovery" / by) for by in ("teacher", "student")}
    name = min(wrong(world))
    [path] = list_shards(y_o)
    rows, digest = read_rows(path), json.loads((y_o / "run.json").read_text())["digest"]
    for verdict in ("correct", "incorrect"):
        graded = [replace(row, verdict=verdict) if row.trajectory_id == name else row for row in rows]
        write_shard(path, graded, digest)
        ok("diagnose", y_o, "-t", world / "teacher", *RECOVER, "--shard-rows", 12, "--out", out)
        assert {by: by_id(out / "recovery" / by) for by in before} == before
        assert ok("status", out / "recovery" / "teacher").stdout.split("\t")[2] == "complete"
        figures = {(each.by, each.cut): each for each in recovery_figures(out) if each.quartile is None}
        assert figures["teacher", 0.2].prefixes == len(wrong(world)) - (verdict == "correct")
        assert figures["teacher", 0.2].ungraded == 0
    assert recovery_figures(out) == recovery_figures(world / "d")


def test_continuations_are_an_ordinary_set(world: Path, tmp_path: Path, ok: Trd) -> None:
    shutil.copytree(world / "d", tmp_path / "d")
    teacher = tmp_path / "d" / "recovery" / "teacher"
    count = len(rows_of(teacher))
    assert ok("status", teacher).stdout.split("\t")[1:4] == ["refine", "complete", str(count)]
    assert "0 verdicts changed" in ok("verify", "--regrade", teacher, "--workers", 1).stderr
    row = rows_of(teacher)[0]
    shown = ok("show", teacher, "--id", row.trajectory_id).stdout
    assert row.trajectory_id in shown
    assert "teacher" in shown
    for by in ("teacher", "student"):
        [source] = open_sets([str(tmp_path / "d" / "recovery" / by)])
        assert {*parent_frame(source)["parent_id"]} == {*by_id(world / "y_o")}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("bare",), "no verdict in bare; expected graded rollouts; run trd verify bare first"),
        (("y_o", "--subset", "correct"), "no wrong row among"),
        (("y_o", "--where", "stage = 'refined'"), "no row is in the subset"),
        (("y_o", "--recover-cuts", "0.5,1"), "--recover-cuts '1'; expected less than 1"),
        (("y_o", "--out", "d", "--recover-samples", 3), "that this command would not make"),
    ],
)
def test_what_cannot_be_recovered_from_is_told_in_one_line(
    words: tuple[object, ...], told: str, world: Path, trd: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    before = sorted(path for path in world.rglob("*"))
    result = trd("diagnose", "-t", "teacher", *RECOVER, *(() if "--out" in words else ("--out", "new")), *words)
    assert result.exit_code == 1
    assert told in result.stderr.splitlines()[-1]
    assert sorted(path for path in world.rglob("*")) == before
