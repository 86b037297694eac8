"""trd eval with the scripted engine: what results.json says is what the shards hold."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from conftest import Trd

from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.errors import InputError
from trd_cli.records import Trajectory
from trd_cli.shards import iter_rows, list_shards
from trd_cli.stages.eval import split_benchmarks

SMALL, OVERLAPPING = "arithmetic:n=6,seed=5", "arithmetic:n=9,seed=5,level=1"
BOTH = f"{SMALL},{OVERLAPPING}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Two samples of every question of two benchmarks, some of them lost to faults."""
    out = tmp_path_factory.mktemp("eval") / "k2"
    ok(
        *("eval", "scripted", "--bench", BOTH, "--k", 2, "--shard-rows", 7, "--max-errors", 30),
        *FAULTS,
        "--out",
        out,
    )
    return out


FAULTS = ("--engine-arg", "faults=0.2", "--engine-arg", "accuracy=0.4")


def results_of(directory: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((directory / "results.json").read_text(), parse_constant=refuse)


def rows_of(directory: Path, source: str | None = None) -> list[Trajectory]:
    return [row for row in iter_rows(list_shards(directory)) if source in (None, row.source)]


def recount(directory: Path, bench: str, k: int) -> dict[str, Any]:
    """A benchmark's part of results.json, less its intervals, by plain counting."""
    rows = rows_of(directory, bench)
    by_question = {
        problem.problem_id: [row for row in rows if row.problem_id == problem.problem_id]
        for problem in load_benchmark(bench)
    }
    graded = {
        name: [row.verdict == "correct" for row in some if row.verdict in ("correct", "incorrect")]
        for name, some in by_question.items()
    }
    lengths = [len(row.response_token_ids) for row in rows if row.error is None]
    values = {
        f"avg@{k}": (mean(mean(g) for g in graded.values() if g), sum(bool(g) for g in graded.values()))
    }
    for i in range(1, k + 1):
        enough = [mean(any(c) for c in combinations(g, i)) for g in graded.values() if len(g) >= i]
        values[f"pass@{i}"] = (mean(enough) if enough else None, len(enough))
    return {
        "values": values,
        "verdicts": dict(Counter(row.verdict for row in rows)),
        "truncated": mean(row.finish_reason == "length" for row in rows),
        "no_answer": mean(row.verdict_detail == "no_answer" for row in rows),
        "tokens": {"total": sum(lengths), "mean": mean(lengths), "median": median(lengths)},
        "questions": {name: [sum(g), len(g)] for name, g in graded.items()},
    }


def check_against_shards(directory: Path, benches: list[str], k: int) -> None:
    results = results_of(directory)
    assert (results["model"], results["k"]) == ("scripted", k)
    assert list(results["benchmarks"]) == benches
    for name, found in results["benchmarks"].items():
        expected = recount(directory, name, k)
        assert len(rows_of(directory, name)) == k * len(expected["questions"])
        assert list(found["scores"]) == list(expected["values"])
        for score, (value, questions) in expected["values"].items():
            estimate = found["scores"][score]
            assert estimate["questions"] == questions
            if value is None:
                assert estimate == {"value": None, "low": None, "high": None, "questions": 0}
                continue
            assert estimate["value"] == pytest.approx(value)
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
            assert estimate["high"] - estimate["low"] > 0.05
        for key in ("verdicts", "truncated", "no_answer", "tokens"):
            assert found[key] == pytest.approx(expected[key]), key
        assert list(found["questions"].items()) == list(expected["questions"].items()), (
            "in the benchmark's order"
        )


def test_results_are_what_the_shards_hold(pair: Path) -> None:
    check_against_shards(pair, [SMALL, OVERLAPPING], k=2)
    verdicts = {row.verdict for row in rows_of(pair)}
    assert verdicts == {"correct", "incorrect", "error"}, "all three should occur, or the count shows little"


def test_two_benchmarks_that_share_questions_share_no_row(pair: Path) -> None:
    assert len(rows_of(pair, SMALL)) == 12
    assert len(rows_of(pair, OVERLAPPING)) == 18
    shared = {row.problem_id for row in rows_of(pair, SMALL)} & {
        row.problem_id for row in rows_of(pair, OVERLAPPING)
    }
    assert shared, "the two should overlap, or nothing is tested"
    assert len({row.trajectory_id for row in rows_of(pair)}) == 30


def test_an_error_is_never_a_wrong_answer(pair: Path) -> None:
    for name, bench in results_of(pair)["benchmarks"].items():
        graded = sum(of for _, of in bench["questions"].values())
        assert graded == bench["verdicts"]["correct"] + bench["verdicts"]["incorrect"]
        assert graded + bench["verdicts"]["error"] == len(rows_of(pair, name))


@pytest.fixture
def raised(pair: Path, ok: Trd, tmp_path: Path) -> Path:
    """The same directory after --k was raised from 2 to 4."""
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


def test_a_raised_k_gives_the_rows_that_k_gives_at_once(raised: Path, ok: Trd, tmp_path: Path) -> None:
    ok("eval", "scripted", "--bench", BOTH, "--k", 4, "--max-errors", 60, *FAULTS, "--out", tmp_path / "once")
    by_id = {row.trajectory_id: row for row in rows_of(raised)}
    assert by_id == {row.trajectory_id: row for row in rows_of(tmp_path / "once")}
    assert results_of(raised) == results_of(tmp_path / "once")


def test_a_lowered_k_is_refused(pair: Path, trd: Trd) -> None:
    before = (pair / "results.json").read_bytes()
    result = trd("eval", "scripted", "--bench", BOTH, "--k", 1, "--max-errors", 30, *FAULTS, "--out", pair)
    assert result.exit_code == 1
    assert "--out" in result.stderr
    assert (pair / "results.json").read_bytes() == before


def test_other_benchmarks_are_refused_in_the_same_directory(pair: Path, trd: Trd) -> None:
    result = trd("eval", "scripted", "--bench", SMALL, "--k", 2, *FAULTS, "--out", pair)
    assert result.exit_code == 1
    assert "questions (" in result.stderr


def test_a_finished_evaluation_run_again_changes_nothing(pair: Path, ok: Trd, tmp_path: Path) -> None:
    out = shutil.copytree(pair, tmp_path / "again")
    before = {path.name: path.stat().st_mtime_ns for path in list_shards(out)}
    result = ok("eval", "scripted", "--bench", BOTH, "--k", 2, "--max-errors", 30, *FAULTS, "--out", out)
    assert result.stdout == f"{out / 'results.json'}\n"
    assert {path.name: path.stat().st_mtime_ns for path in list_shards(out)} == before
    assert results_of(out) == results_of(pair)


@pytest.mark.parametrize("argument", [(), ("-",)])
def test_the_model_may_come_from_standard_input(ok: Trd, tmp_path: Path, argument: tuple[str, ...]) -> None:
    out = tmp_path / "e"
    result = ok("eval", *argument, "--bench", "arithmetic:n=2", "--out", out, stdin="scripted\n")
    assert result.stdout == f"{out / 'results.json'}\n"
    assert results_of(out)["model"] == "scripted"


@pytest.mark.parametrize(("piped", "said"), [("scripted\nscripted\n", "2 models"), ("", "no path")])
def test_one_model_is_evaluated_at_a_time(trd: Trd, tmp_path: Path, piped: str, said: str) -> None:
    result = trd("eval", "--bench", "arithmetic:n=2", "--out", tmp_path / "e", stdin=piped)
    assert result.exit_code == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("arithmetic", ["arithmetic"]),
        ("arithmetic:n=200,seed=2", ["arithmetic:n=200,seed=2"]),
        ("arithmetic:n=5,test.parquet", ["arithmetic:n=5", "test.parquet"]),
        ("a.parquet,b.parquet", ["a.parquet", "b.parquet"]),
        ("arithmetic:n=5,seed=1,arithmetic:n=6,level=2", ["arithmetic:n=5,seed=1", "arithmetic:n=6,level=2"]),
        (
            "a.parquet,arithmetic:seed=3,level=2,b.parquet",
            ["a.parquet", "arithmetic:seed=3,level=2", "b.parquet"],
        ),
        (" arithmetic:n=5 , a.parquet ", ["arithmetic:n=5", "a.parquet"]),
    ],
)
def test_a_list_of_benchmarks_is_split_at_the_commas_between_them(text: str, names: list[str]) -> None:
    assert split_benchmarks(text) == names


@pytest.mark.parametrize(
    "name",
    ["gsm8k", "arithmetic:n=many", "arithmetic:size=3", "arithmetic:n", "", "missing.parquet"],
)
def test_a_benchmark_there_is_not_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError):
        load_benchmark(name)


def test_a_problem_set_is_a_benchmark_and_limit_takes_its_first_questions(
    problems: Path, ok: Trd, tmp_path: Path
) -> None:
    ok("eval", "scripted", "--bench", problems, "--limit", 5, "--out", tmp_path / "e")
    (bench,) = results_of(tmp_path / "e")["benchmarks"].values()
    assert list(bench["questions"]) == [p.problem_id for p in load_benchmark(str(problems))[:5]]


@pytest.mark.parametrize(("accuracy", "value"), [(1.0, 1.0), (0.0, 0.0)])
def test_all_right_and_all_wrong_have_an_interval_with_a_width(
    ok: Trd, tmp_path: Path, accuracy: float, value: float
) -> None:
    ok(
        "eval",
        "scripted",
        "--bench",
        SMALL,
        "--k",
        2,
        "--engine-arg",
        f"accuracy={accuracy}",
        "--out",
        tmp_path / "e",
    )
    for score in results_of(tmp_path / "e")["benchmarks"][SMALL]["scores"].values():
        assert score["value"] == value
        assert score["low"] <= value <= score["high"]
        assert score["high"] - score["low"] == pytest.approx(0.39, abs=0.01), "Wilson's for six questions"


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


def test_a_benchmark_of_errors_alone_has_no_score_and_ends_in_exit_code_three(
    trd: Trd, tmp_path: Path
) -> None:
    result = trd("eval", "scripted", "--bench", SMALL, "--engine-arg", "faults=1", "--out", tmp_path / "e")
    assert result.exit_code == 3
    bench = results_of(tmp_path / "e")["benchmarks"][SMALL]
    assert bench["verdicts"] == {"error": 6}
    assert bench["scores"]["avg@1"] == {"value": None, "low": None, "high": None, "questions": 0}
    assert bench["tokens"] == {"total": 0, "mean": 0, "median": 0}


def test_an_evaluation_cut_off_by_its_engine_goes_on_where_it_ended(
    ok: Trd, trd: Trd, tmp_path: Path
) -> None:
    # This engine fails after every two replies: six questions take three starts.
    command = ("eval", "scripted", "--bench", SMALL, "--engine-arg", "crash_after=2", "--out", tmp_path / "e")
    for done in (2, 4):
        assert trd(*command).exit_code == 1
        assert len(rows_of(tmp_path / "e")) == done
        assert not (tmp_path / "e" / "results.json").exists()
    ok(*command)
    check_against_shards(tmp_path / "e", [SMALL], k=1)


def test_scores_are_shown_on_standard_error(pair: Path, ok: Trd, tmp_path: Path) -> None:
    out = shutil.copytree(pair, tmp_path / "shown")
    said = ok("eval", "scripted", "--bench", BOTH, "--k", 2, "--max-errors", 30, *FAULTS, "--out", out).stderr
    bench = results_of(out)["benchmarks"][SMALL]
    for text in ("avg@2", "pass@1", "pass@2", f"{100 * bench['scores']['avg@2']['value']:.1f} %"):
        assert text in said
    assert ", ".join(f"{count} {verdict}" for verdict, count in bench["verdicts"].items()) in said


def test_a_dry_run_shows_the_first_prompt_and_writes_nothing(ok: Trd, tmp_path: Path) -> None:
    result = ok("eval", "scripted", "--bench", SMALL, "--k", 3, "--dry-run", "--out", tmp_path / "e")
    assert load_benchmark(SMALL)[0].problem in result.stderr
    assert "would make 18 rows" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "e").exists()
