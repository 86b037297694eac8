"""trd eval with the scripted engine: results.json agrees with the shards."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from conftest import Trd
from support.sets import iter_rows

from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.records import Problem, Trajectory
from trd_cli.trajectories.shards import list_shards, read_rows, write_problems, write_shard

SMALL, OVERLAPPING = "arithmetic:n=6,seed=5", "arithmetic:n=9,seed=5,level=1"
BOTH = f"{SMALL},{OVERLAPPING}"
FAULTS = ("--engine-arg", "faults=0.2", "--engine-arg", "accuracy=0.4")
TABLES = ("results.json", "results.md", "results.csv")
DATA = Path(os.environ.get("TRD_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return two samples of every question of two benchmarks, some of them lost to faults."""
    out = tmp_path_factory.mktemp("eval") / "k2"
    ok(
        *("eval", "scripted", "--bench", BOTH, "--k", 2, "--shard-rows", 7, "--max-errors", 30),
        *(*FAULTS, "--out", out),
    )
    return out


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return four samples of the same, generated at once."""
    out = tmp_path_factory.mktemp("eval") / "k4"
    ok("eval", "scripted", "--bench", BOTH, "--k", 4, "--max-errors", 60, *FAULTS, "--out", out)
    return out


def results_of(directory: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((directory / "results.json").read_text(), parse_constant=refuse)


def rows_of(directory: Path, source: str | None = None) -> list[Trajectory]:
    return [row for row in iter_rows(list_shards(directory)) if source in (None, row.source)]


def majority(votes: list[tuple[bool, str | None]]) -> float:
    """Return the chance that the most frequent answer is right, with ties drawn by lot.

    All correct votes are one answer; None is no vote.
    """
    counts = Counter(True if right else answer for right, answer in votes if right or answer is not None)
    most = [answer for answer, count in counts.items() if count == max(counts.values())]
    return most.count(True) / len(most) if most else 0.0


def recount(directory: Path, bench: str, k: int) -> dict[str, Any]:
    """Return a benchmark's part of results.json, without its intervals, by plain counting."""
    rows = rows_of(directory, bench)
    graded = ("correct", "incorrect")
    by_question = {
        problem.problem_id: sorted(
            (row for row in rows if row.problem_id == problem.problem_id), key=lambda row: row.sample_index
        )
        for problem in load_benchmark(bench).problems
    }
    votes = {
        name: [(row.verdict == "correct", row.extracted_answer) for row in some if row.verdict in graded]
        for name, some in by_question.items()
    }
    lengths = [len(row.response_token_ids) for row in rows if row.error is None]
    values: dict[str, list[float]] = {}
    for i in range(1, k + 1):
        firsts = ([row.verdict for row in some[:i] if row.verdict in graded] for some in by_question.values())
        values[f"avg@{i}"] = [mean(v == "correct" for v in first) for first in firsts if first]
        subsets = [list(combinations(v, i)) for v in votes.values() if len(v) >= i]
        values[f"pass@{i}"] = [mean(any(right for right, _ in c) for c in some) for some in subsets]
        values[f"maj@{i}"] = [mean(majority(list(c)) for c in some) for some in subsets]
    return {
        "values": {name: (mean(v) if v else None, len(v)) for name, v in values.items()},
        "verdicts": {v: sum(row.verdict == v for row in rows) for v in (*graded, "error", "timeout")},
        "truncated": mean(row.finish_reason == "length" for row in rows),
        "no_answer": mean(row.verdict_detail == "no_answer" for row in rows),
        "unclosed_thinking": 0.0,
        "error": mean(row.verdict == "error" for row in rows),
        "timeout": 0.0,
        "tokens": {"total": sum(lengths), "mean": mean(lengths), "median": median(lengths)},
        "questions": {name: [sum(right for right, _ in v), len(v)] for name, v in votes.items()},
        "samples": {
            name: "".join({"correct": "1", "incorrect": "0"}.get(row.verdict, ".") for row in some)
            for name, some in by_question.items()
        },
    }


def check_against_shards(directory: Path, benches: list[str], k: int) -> None:
    results = results_of(directory)
    assert (results["model"], results["k"]) == ("scripted", k)
    assert list(results["benchmarks"]) == benches
    for name, found in results["benchmarks"].items():
        expected = recount(directory, name, k)
        assert len(rows_of(directory, name)) == k * len(expected["questions"])
        assert set(found["scores"]) == set(expected["values"])
        for score, (value, questions) in expected["values"].items():
            estimate = found["scores"][score]
            assert estimate["questions"] == questions, score
            assert estimate["value"] == pytest.approx(value), score
            if value is not None:
                assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
                assert estimate["high"] - estimate["low"] > 0.05
        for key in expected.keys() - {"values", "questions", "samples"}:
            assert found[key] == pytest.approx(expected[key]), key
        for key in ("questions", "samples"):
            assert list(found[key].items()) == list(expected[key].items()), "in the benchmark's order"


def test_results_are_what_the_shards_hold(pair: Path) -> None:
    check_against_shards(pair, [SMALL, OVERLAPPING], k=2)
    verdicts = {row.verdict for row in rows_of(pair)}
    assert verdicts == {"correct", "incorrect", "error"}, "all three should occur, or the count shows little"


def test_results_of_four_samples_are_what_the_shards_hold(four: Path) -> None:
    check_against_shards(four, [SMALL, OVERLAPPING], k=4)


def test_results_say_where_questions_and_verdicts_came_from(pair: Path) -> None:
    results, benchmark = results_of(pair), load_benchmark(SMALL)
    bench = results["benchmarks"][SMALL]
    assert (results["model_revision"], results["engine"].split()[0]) == ("scripted", "scripted")
    for key in ("task", "source", "revision", "sha256", "known"):
        assert bench[key] == getattr(benchmark, key)
    row = rows_of(pair, SMALL)[0]
    assert bench["grader"] == f"{row.grader} {row.grader_version}"
    assert bench["prompt"] == row.prompt_sha256
    assert bench["sampling"] == {key: getattr(row, key) for key in ("temperature", "top_p", "top_k", "max_tokens")} | {
        "seed": 0
    }


def test_two_benchmarks_that_share_questions_share_no_row(pair: Path) -> None:
    assert len(rows_of(pair, SMALL)) == 12
    assert len(rows_of(pair, OVERLAPPING)) == 18
    shared = {row.problem_id for row in rows_of(pair, SMALL)} & {row.problem_id for row in rows_of(pair, OVERLAPPING)}
    assert shared, "the two should overlap, or nothing is tested"
    assert len({row.trajectory_id for row in rows_of(pair)}) == 30


def test_two_benchmarks_take_one_start_of_the_engine(ok: Trd, tmp_path: Path) -> None:
    result = ok("eval", "scripted", "--bench", BOTH, "--out", tmp_path / "e")
    assert result.stderr.count("loading scripted with") == 1
    assert {row.source for row in rows_of(tmp_path / "e")} == {SMALL, OVERLAPPING}


def test_an_error_is_never_a_wrong_answer(pair: Path) -> None:
    for name, bench in results_of(pair)["benchmarks"].items():
        graded = sum(of for _, of in bench["questions"].values())
        assert graded == bench["verdicts"]["correct"] + bench["verdicts"]["incorrect"]
        assert graded + bench["verdicts"]["error"] == len(rows_of(pair, name))


# Raising, lowering and repeating


@pytest.fixture
def raised(pair: Path, ok: Trd, tmp_path: Path) -> Path:
    """Return the same directory after --k was raised from 2 to 4."""
    out = shutil.copytree(pair, tmp_path / "k")
    ok("eval", "scripted", "--bench", BOTH, "--k", 4, "--max-errors", 60, *FAULTS, "--out", out)
    return out


def test_a_raised_k_generates_only_the_missing_samples(pair: Path, raised: Path) -> None:
    for shard in list_shards(pair):
        assert (raised / shard.name).read_bytes() == shard.read_bytes()
    new = [row for shard in list_shards(raised)[len(list_shards(pair)) :] for row in iter_rows([shard])]
    assert {row.sample_index for row in new} == {2, 3}
    assert len(new) == 30
    check_against_shards(raised, [SMALL, OVERLAPPING], k=4)


def test_a_raised_k_gives_the_rows_and_the_bytes_that_k_gives_at_once(raised: Path, four: Path) -> None:
    by_id = {row.trajectory_id: row for row in rows_of(raised)}
    assert by_id == {row.trajectory_id: row for row in rows_of(four)}
    for name in TABLES:
        assert (raised / name).read_bytes() == (four / name).read_bytes()


def test_rescored_results_may_go_elsewhere(pair: Path, ok: Trd, tmp_path: Path) -> None:
    before = (pair / "results.json").read_bytes()
    result = ok("eval", "--rescore", pair, "--k", 1, "--max-errors", 30, "--out", tmp_path / "one")
    assert result.stdout == f"{tmp_path / 'one' / 'results.json'}\n"
    assert (pair / "results.json").read_bytes() == before
    assert results_of(tmp_path / "one")["k"] == 1


def test_a_limit_is_in_the_results(ok: Trd, tmp_path: Path) -> None:
    ok("eval", "scripted", "--bench", SMALL, "--limit", 2, "--out", tmp_path / "e")
    assert results_of(tmp_path / "e")["benchmarks"][SMALL]["limit"] == 2
    assert "the first 2 questions" in (tmp_path / "e" / "results.md").read_text()


def test_a_lowered_k_is_refused_and_pointed_to_rescore(pair: Path, trd: Trd) -> None:
    before = (pair / "results.json").read_bytes()
    result = trd("eval", "scripted", "--bench", BOTH, "--k", 1, "--max-errors", 30, *FAULTS, "--out", pair)
    assert result.exit_code == 1
    assert f"trd eval --rescore {pair} --k 1" in result.stderr
    assert "--out" in result.stderr
    assert (pair / "results.json").read_bytes() == before


def test_other_benchmarks_are_refused_in_the_same_directory(pair: Path, trd: Trd) -> None:
    result = trd("eval", "scripted", "--bench", SMALL, "--k", 2, *FAULTS, "--out", pair)
    assert result.exit_code == 1
    assert "questions (" in result.stderr


def test_other_content_under_the_same_name_and_ids_is_refused(
    problems: Path, ok: Trd, trd: Trd, tmp_path: Path
) -> None:
    command = ("eval", "scripted", "--bench", problems, "--out", tmp_path / "e")
    ok(*command)
    changed = [replace(p, problem=p.problem + " Think.") for p in load_benchmark(str(problems)).problems]
    write_problems(problems, changed)
    result = trd(*command)
    assert result.exit_code == 1
    assert "sha256 (" in result.stderr


def test_other_sampling_is_refused_and_the_benchmarks_own_said_aloud_is_not(pair: Path, ok: Trd, trd: Trd) -> None:
    command = ("eval", "scripted", "--bench", BOTH, "--k", 2, "--max-errors", 30, *FAULTS, "--out", pair)
    result = trd(*command, "--temperature", 0.1)
    assert result.exit_code == 1
    assert "sampling (" in result.stderr
    ok(*command, "--temperature", load_benchmark(SMALL).temperature)


def test_a_finished_evaluation_run_again_changes_nothing(pair: Path, ok: Trd, tmp_path: Path) -> None:
    out = shutil.copytree(pair, tmp_path / "again")
    before = {path.name: path.stat().st_mtime_ns for path in list_shards(out)}
    result = ok("eval", "scripted", "--bench", BOTH, "--k", 2, "--max-errors", 30, *FAULTS, "--out", out)
    assert result.stdout == f"{out / 'results.json'}\n"
    assert {path.name: path.stat().st_mtime_ns for path in list_shards(out)} == before
    assert (out / "results.json").read_bytes() == (pair / "results.json").read_bytes()


def test_results_do_not_depend_on_the_size_of_the_shards(pair: Path, ok: Trd, tmp_path: Path) -> None:
    ok(
        *("eval", "scripted", "--bench", BOTH, "--k", 2, "--shard-rows", 4, "--max-errors", 30),
        *(*FAULTS, "--out", tmp_path / "e"),
    )
    for name in TABLES:
        assert (tmp_path / "e" / name).read_bytes() == (pair / name).read_bytes()


# Scoring again without a model


def test_rescoring_gives_the_same_bytes_and_starts_no_engine(four: Path, ok: Trd, tmp_path: Path) -> None:
    out = shutil.copytree(four, tmp_path / "again")
    for name in TABLES:
        (out / name).unlink()
    result = ok("eval", "--rescore", out, "--max-errors", 60)
    assert result.stdout == f"{out / 'results.json'}\n"
    assert "loading" not in result.stderr
    for name in TABLES:
        assert (out / name).read_bytes() == (four / name).read_bytes()


def test_rescoring_with_a_smaller_k_is_a_run_with_that_k(four: Path, pair: Path, ok: Trd, tmp_path: Path) -> None:
    out = shutil.copytree(four, tmp_path / "smaller")
    ok("eval", "--rescore", out, "--k", 2, "--max-errors", 30)
    for name in TABLES:
        assert (out / name).read_bytes() == (pair / name).read_bytes()
    ok("eval", "--rescore", out, "--max-errors", 60)
    assert results_of(out) == results_of(four), "all samples are still there"


def test_rescoring_with_a_larger_k_than_there_is_is_refused(four: Path, trd: Trd) -> None:
    before = (four / "results.json").read_bytes()
    result = trd("eval", "--rescore", four, "--k", 5)
    assert result.exit_code == 1
    assert "has 4 samples of every question" in result.stderr
    assert f"--k 5 and --out {four}" in result.stderr
    assert (four / "results.json").read_bytes() == before


def test_rescoring_needs_no_benchmark(problems: Path, ok: Trd, tmp_path: Path) -> None:
    ok("eval", "scripted", "--bench", problems, "--k", 2, "--out", tmp_path / "e")
    before = (tmp_path / "e" / "results.json").read_bytes()
    problems.unlink()
    ok("eval", "--rescore", tmp_path / "e")
    assert (tmp_path / "e" / "results.json").read_bytes() == before


@pytest.fixture
def answered(ok: Trd, tmp_path: Path) -> Callable[[list[str]], Path]:
    """Return an evaluation of one question with the test's own texts as samples ({} is the reference answer)."""

    def make(responses: list[str]) -> Path:
        out = tmp_path / "answered"
        ok("eval", "scripted", "--bench", "arithmetic:n=1", "--k", len(responses), "--out", out)
        for shard in list_shards(out):
            rows = [
                replace(row, response=responses[row.sample_index].replace("{}", row.reference_answer), verdict=None)
                for row in read_rows(shard)
            ]
            write_shard(shard, rows)
        return out

    return make


def only(directory: Path) -> dict[str, Any]:
    (bench,) = results_of(directory)["benchmarks"].values()
    return bench


def test_another_rule_for_answers_grades_the_stored_samples_again(
    answered: Callable[[list[str]], Path], ok: Trd
) -> None:
    out = answered(["it is {}", "\\boxed{{}}", "no idea"])
    ok("eval", "--rescore", out)
    boxed = (out / "results.json").read_bytes()
    assert list(only(out)["samples"].values()) == ["010"]
    assert only(out)["no_answer"] == pytest.approx(2 / 3)
    result = ok("eval", "--rescore", out, "--lenient")
    assert "1 verdict changed" in result.stderr
    assert list(only(out)["samples"].values()) == ["110"]
    assert "lenient" in only(out)["grader"]
    ok("eval", "--rescore", out)
    assert (out / "results.json").read_bytes() == boxed


def test_equal_wrong_answers_in_other_words_outvote_the_right_one(
    answered: Callable[[list[str]], Path], ok: Trd
) -> None:
    right, half = "\\boxed{{}}", ["\\boxed{\\frac{1}{2}}", "\\boxed{0.5}", "\\boxed{1/2}"]
    out = answered([right, right, *half])
    ok("eval", "--rescore", out)
    scores = only(out)["scores"]
    assert scores["avg@5"]["value"] == pytest.approx(0.4)
    assert scores["maj@1"]["value"] == pytest.approx(0.4)
    assert scores["maj@5"]["value"] == 0.0
    assert scores["pass@5"]["value"] == 1.0


def test_an_answer_that_is_missing_has_no_vote(answered: Callable[[list[str]], Path], ok: Trd) -> None:
    out = answered(["\\boxed{{}}", "none", "none", "none"])
    ok("eval", "--rescore", out)
    assert only(out)["scores"]["maj@4"]["value"] == 1.0
    assert only(out)["no_answer"] == 0.75


def test_a_thought_without_an_end_is_counted(answered: Callable[[list[str]], Path], ok: Trd) -> None:
    out = answered(["<think>so \\boxed{{}}", "<think>so</think>\\boxed{{}}"])
    ok("eval", "--rescore", out)
    assert only(out)["unclosed_thinking"] == 0.5
    assert list(only(out)["samples"].values()) == ["01"]


def test_a_dry_rescoring_says_what_it_would_do_and_writes_nothing(four: Path, ok: Trd, tmp_path: Path) -> None:
    out = shutil.copytree(four, tmp_path / "dry")
    (out / "results.json").unlink()
    result = ok("eval", "--rescore", out, "--k", 3, "--dry-run")
    assert "would score the first 3 of 4 samples" in result.stderr
    assert result.stdout == ""
    assert not (out / "results.json").exists()


def test_an_evaluation_cut_off_by_its_engine_goes_on_where_it_ended(ok: Trd, trd: Trd, tmp_path: Path) -> None:
    # This engine fails after every two replies: six questions take three starts.
    out = tmp_path / "e"
    command = ("eval", "scripted", "--bench", SMALL, "--engine-arg", "crash_after=2", "--out", out)
    for done in (2, 4):
        assert trd(*command).exit_code == 1
        assert len(rows_of(out)) == done
        unfinished = trd("eval", "--rescore", out)
        assert unfinished.exit_code == 1
        assert f"{out} has 0 samples of every question" in unfinished.stderr
        assert not (out / "results.json").exists()
    ok(*command)
    check_against_shards(out, [SMALL], k=1)


REFUSED = {
    "nothing to do": ((), "no --bench"),
    "a benchmark beside": (("--rescore", "{pair}", "--bench", SMALL), "--bench with --rescore"),
    "a model beside": (("scripted", "--rescore", "{pair}"), "the model with --rescore"),
    "sampling beside": (("--rescore", "{pair}", "--temperature", 0), "--temperature with --rescore"),
    "no evaluation": (("--rescore", "{here}"), "holds no evaluation"),
    "two models": (("scripted", "--model", "other", "--bench", SMALL), "--model other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name: str, pair: Path, trd: Trd, tmp_path: Path) -> None:
    arguments, said = REFUSED[name]
    result = trd("eval", *(str(a).format(pair=pair, here=tmp_path) for a in arguments))
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr


# The model, the benchmarks and their sampling


@pytest.mark.parametrize("argument", [(), ("-",)])
def test_the_model_may_come_from_standard_input(ok: Trd, tmp_path: Path, argument: tuple[str, ...]) -> None:
    out = tmp_path / "e"
    result = ok("eval", *argument, "--bench", "arithmetic:n=2", "--out", out, stdin="scripted\n")
    assert result.stdout == f"{out / 'results.json'}\n"
    assert results_of(out)["model"] == "scripted"


@pytest.mark.parametrize("words", [("--model", "scripted"), ("-m", "scripted"), ("scripted", "-m", "scripted")])
def test_the_model_may_be_given_by_its_flag(ok: Trd, tmp_path: Path, words: tuple[str, ...]) -> None:
    ok("eval", *words, "--bench", "arithmetic:n=2", "--out", tmp_path / "e")
    assert results_of(tmp_path / "e")["model"] == "scripted"


@pytest.mark.parametrize(("piped", "said"), [("scripted\nscripted\n", "2 models"), ("", "no path")])
def test_one_model_is_evaluated_at_a_time(trd: Trd, tmp_path: Path, piped: str, said: str) -> None:
    result = trd("eval", "--bench", "arithmetic:n=2", "--out", tmp_path / "e", stdin=piped)
    assert result.exit_code == 1
    assert said in result.stderr


def test_a_problem_set_is_a_benchmark_and_limit_takes_its_first_questions(
    problems: Path, ok: Trd, tmp_path: Path
) -> None:
    ok("eval", "scripted", "--bench", problems, "--limit", 5, "--out", tmp_path / "e")
    (bench,) = results_of(tmp_path / "e")["benchmarks"].values()
    assert list(bench["questions"]) == [p.problem_id for p in load_benchmark(str(problems)).problems[:5]]


def test_each_benchmark_is_sampled_in_its_own_way(problems: Path, ok: Trd, tmp_path: Path) -> None:
    ok("eval", "scripted", "--bench", f"{SMALL},{problems}", "--out", tmp_path / "e")
    used = {(row.source, row.temperature, row.top_p, row.top_k, row.max_tokens) for row in rows_of(tmp_path / "e")}
    assert {source: rest for source, *rest in used} == {
        SMALL: [0.6, 0.95, 20, 1024],
        str(problems): [0.6, 0.95, 20, 38912],
    }


def test_code_is_sampled_shorter_than_mathematics(ok: Trd, tmp_path: Path) -> None:
    tests = json.dumps({"kind": "stdin", "inputs": ["1\n"], "outputs": ["1\n"]})
    write_problems(tmp_path / "code.parquet", [Problem("c1", "mine", "code", "Echo.", tests=tests)])
    shown = ok(*("eval", "scripted", "--bench", tmp_path / "code.parquet", "--dry-run", "--out", tmp_path / "e")).stderr
    assert "1 question × 1, T 0.6, top-p 0.95, top-k 20, at most 16384 new tokens" in shown


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a directory with two published benchmarks, and set TRD_DATA to it."""
    files = ("aime25.jsonl", "HumanEvalPlus.jsonl.gz")
    if not all((DATA / "benchmarks" / name).is_file() for name in files):
        pytest.skip("there is no folder with aime25 and HumanEval+ (set TRD_DATA)")
    home = tmp_path / "data" / "benchmarks"
    home.mkdir(parents=True)
    for name in files:
        shutil.copy(DATA / "benchmarks" / name, home)
    monkeypatch.setenv("TRD_DATA", str(home.parent))
    return home


def test_mathematics_and_code_are_evaluated_by_one_command(real: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    # In a process of its own: the graders' server keeps the environment that it was started with.
    program = (sys.executable, "-m", "trd_cli", "eval")
    result = subprocess.run(
        (
            *(*program, "scripted", "--bench", "AIME-25,humaneval+", "--k", "2", "--limit", "2"),
            *("--engine-arg", "accuracy=1", "--out", out),
        ),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("loading scripted with") == 1
    assert "than trd knows" not in result.stderr
    found = results_of(out)["benchmarks"]
    assert list(found) == ["aime25", "humaneval+"], "by the names trd has for them"
    assert {row.source: row.max_tokens for row in rows_of(out)} == {"aime25": 38912, "humaneval+": 16384}
    assert all(bench["known"] for bench in found.values())
    assert list(found["aime25"]["samples"].values()) == ["11", "11"]
    assert [name for name in found["humaneval+"]["scores"] if name.startswith("maj")] == []
    # The scripted engine's program prints its answer and defines no function.
    assert list(found["humaneval+"]["samples"].values()) == ["00", "00"]
    before = (out / "results.json").read_bytes()
    subprocess.run((*program, "--rescore", out), capture_output=True, check=True)
    assert (out / "results.json").read_bytes() == before


def test_questions_that_are_not_the_published_ones_are_told(real: Path, ok: Trd, tmp_path: Path) -> None:
    path = real / "aime25.jsonl"
    path.write_text(path.read_text().replace("Find the", "Please find the", 1))
    said = ok("eval", "scripted", "--bench", "aime25", "--limit", 1, "--out", tmp_path / "e").stderr.splitlines()
    assert len([line for line in said if "aime25: other questions than trd knows by this name" in line]) == 1
    assert results_of(tmp_path / "e")["benchmarks"]["aime25"]["known"] is False


def test_sampling_that_is_given_holds_for_all_benchmarks(problems: Path, ok: Trd, tmp_path: Path) -> None:
    ok(
        *("eval", "scripted", "--bench", f"{SMALL},{problems}", "--out", tmp_path / "e"),
        *("--temperature", 1, "--top-p", 0.8, "--top-k", 0, "--max-tokens", 99),
    )
    used = {(row.temperature, row.top_p, row.top_k, row.max_tokens) for row in rows_of(tmp_path / "e")}
    assert used == {(1.0, 0.8, 0, 99)}


def test_a_context_shorter_than_what_the_benchmark_asks_for_is_told(problems: Path, ok: Trd, tmp_path: Path) -> None:
    said = ok("eval", "scripted", "--bench", problems, "--dry-run", "--out", tmp_path / "e").stderr
    assert "prompt and response end where the model's 8192 tokens do" in said
    shorter = ok(*("eval", "scripted", "--bench", problems, "--max-tokens", 100, "--dry-run", "--out", tmp_path / "e"))
    assert "prompt and response end" not in shorter.stderr


# Scores and tables


@pytest.mark.parametrize(("accuracy", "value"), [(1.0, 1.0), (0.0, 0.0)])
def test_all_right_and_all_wrong_have_an_interval_with_a_width(
    ok: Trd, tmp_path: Path, accuracy: float, value: float
) -> None:
    ok(
        *("eval", "scripted", "--bench", SMALL, "--k", 2),
        *("--engine-arg", f"accuracy={accuracy}", "--out", tmp_path / "e"),
    )
    scores = results_of(tmp_path / "e")["benchmarks"][SMALL]["scores"]
    assert set(scores) == {f"{kind}@{k}" for kind in ("avg", "pass", "maj") for k in (1, 2)}
    for score in scores.values():
        assert score["value"] == value
        assert score["low"] <= value <= score["high"]
        assert score["high"] - score["low"] > 0.1


def test_truncated_responses_are_wrong_and_their_share_is_told(ok: Trd, tmp_path: Path) -> None:
    result = ok(
        *("eval", "scripted", "--bench", SMALL, "--engine-arg", "accuracy=1", "--max-tokens", 4),
        *("--out", tmp_path / "e"),
    )
    bench = results_of(tmp_path / "e")["benchmarks"][SMALL]
    assert (bench["truncated"], bench["no_answer"]) == (1.0, 1.0)
    assert bench["scores"]["avg@1"]["value"] == 0.0
    assert bench["tokens"] == {"total": 24, "mean": 4.0, "median": 4}
    assert "truncated 100.0%, no answer 100.0%" in result.stderr


def test_a_benchmark_of_errors_alone_has_no_score_and_ends_in_exit_code_three(trd: Trd, tmp_path: Path) -> None:
    result = trd("eval", "scripted", "--bench", SMALL, "--engine-arg", "faults=1", "--out", tmp_path / "e")
    assert result.exit_code == 3
    bench = results_of(tmp_path / "e")["benchmarks"][SMALL]
    assert bench["verdicts"] == {"correct": 0, "incorrect": 0, "error": 6, "timeout": 0}
    score = bench["scores"]["avg@1"]
    assert (score["value"], score["low"], score["high"], score["questions"]) == (None, None, None, 0)
    assert bench["tokens"] == {"total": 0, "mean": 0, "median": 0}
    row, *_ = csv.DictReader((tmp_path / "e" / "results.csv").open())
    assert (row["value"], row["questions"]) == ("", "0")


def test_scores_are_shown_on_standard_error(four: Path, ok: Trd) -> None:
    said = ok("eval", "--rescore", four, "--max-errors", 60).stderr
    bench = results_of(four)["benchmarks"][SMALL]
    for text in ("avg@4", "pass@1", "pass@4", "maj@4", f"{100 * bench['scores']['avg@4']['value']:.1f} %"):
        assert text in said
    assert "pass@2" not in said
    assert ", ".join(f"{count} {verdict}" for verdict, count in bench["verdicts"].items()) in said


def test_errors_and_timeouts_are_shown_even_when_there_are_none(ok: Trd, tmp_path: Path) -> None:
    said = ok("eval", "scripted", "--bench", SMALL, "--out", tmp_path / "e").stderr
    assert "0 error, 0 timeout" in said


def test_the_csv_has_every_score_of_results(four: Path) -> None:
    lines = list(csv.DictReader((four / "results.csv").open()))
    expected = [
        (name, *score.split("@"), estimate)
        for name, bench in results_of(four)["benchmarks"].items()
        for score, estimate in bench["scores"].items()
    ]
    assert [(line["benchmark"], line["score"], line["k"]) for line in lines] == [e[:3] for e in expected]
    assert len(lines) == 2 * 3 * 4
    for line, (*_, estimate) in zip(lines, expected, strict=True):
        assert {key: float(line[key]) if line[key] else None for key in estimate} == estimate


def markdown_rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_the_markdown_agrees_with_results(four: Path) -> None:
    rows = markdown_rows((four / "results.md").read_text())
    for name, bench in results_of(four)["benchmarks"].items():
        told = [row for row in rows if row[0] == name and "@" in row[1]]
        assert [row[1] for row in told] == [*("avg@4", "pass@1", "pass@2", "pass@4"), *("maj@1", "maj@2", "maj@4")]
        for row in told:
            estimate = bench["scores"][row[1]]
            assert row[2] == f"{100 * estimate['value']:.1f} %"
            assert row[3] == f"{100 * estimate['low']:.1f} – {100 * estimate['high']:.1f}"
            assert row[-1] == str(estimate["questions"])
        (ends,) = [row for row in rows if row[0] == name and len(row) == 8]
        assert ends[1:6] == [
            f"{100 * bench[key]:.1f} %" for key in ("truncated", "no_answer", "unclosed_thinking", "error", "timeout")
        ]


def test_a_dry_run_shows_the_first_prompt_and_the_sampling_and_writes_nothing(ok: Trd, tmp_path: Path) -> None:
    result = ok("eval", "scripted", "--bench", BOTH, "--k", 3, "--dry-run", "--out", tmp_path / "e")
    assert load_benchmark(SMALL).problems[0].problem in result.stderr
    assert "would make 45 rows" in result.stderr
    for name, questions in ((SMALL, 6), (OVERLAPPING, 9)):
        assert f"{name}: {questions} questions × 3, T 0.6, top-p 0.95, top-k 20, at most 1024" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "e").exists()
