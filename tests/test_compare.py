"""trd compare: paired differences between two evaluations, as the command prints and writes them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from conftest import Trd
from rich.console import Console

from trd_cli.config.commands import CompareConfig
from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.evaluation import compare
from trd_cli.progress import SilentProgress
from trd_cli.trajectories.shards import write_problems

BENCH, OTHER = "arithmetic:n=40,seed=3", "arithmetic:n=7,seed=4"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Make two evaluations on the same forty questions: `weak` is right at 0.3 of its samples, `strong` at 0.8.

    They have different seeds: with the same one, the scripted engine is right wherever it was at a lower accuracy.
    """
    home = tmp_path_factory.mktemp("compare")
    evaluate(ok, home / "weak", 0.3, BENCH, 2)
    evaluate(ok, home / "strong", 0.8, BENCH, 2, "--seed", 1)
    return home


def evaluate(ok: Trd, out: Path, accuracy: float, bench: str, k: int = 1, *more: object) -> None:
    ok(
        *("eval", "scripted", "--bench", bench, "--k", k, "--engine-arg", f"accuracy={accuracy}"),
        *("--max-errors", 999, *more, "--out", out),
    )


def compared(ok: Trd, tmp_path: Path, *arguments: object) -> dict[str, Any]:
    ok("compare", *arguments, "--out", tmp_path / "compared")
    return json.loads((tmp_path / "compared" / "compare.json").read_text())


def samples_of(run: Path, bench: str = BENCH) -> dict[str, str]:
    return json.loads((run / "results.json").read_text())["benchmarks"][bench]["samples"]


def share(marks: str) -> float:
    return marks.count("1") / len(marks)


def test_a_better_model_is_seen_to_be_better(runs: Path, ok: Trd, tmp_path: Path) -> None:
    comparison = compared(ok, tmp_path, runs / "weak", runs / "strong")
    bench = comparison["benchmarks"][BENCH]
    difference = bench["difference"]
    assert (comparison["k"], bench["questions"], difference["questions"]) == (2, 40, 40)
    assert difference["p_value"] < 0.001
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert difference["value"] == pytest.approx(bench["b"]["value"] - bench["a"]["value"])
    assert 0 < bench["needed_questions"] < 40, "fewer would have done"


def test_gained_and_lost_are_the_questions_whose_share_rose_and_fell(runs: Path, ok: Trd, tmp_path: Path) -> None:
    bench = compared(ok, tmp_path, runs / "weak", runs / "strong")["benchmarks"][BENCH]
    a, b = samples_of(runs / "weak"), samples_of(runs / "strong")
    assert bench["gained"] == [name for name in a if share(b[name]) > share(a[name])]
    assert bench["lost"] == [name for name in a if share(b[name]) < share(a[name])]
    assert bench["gained"]
    assert bench["lost"], "both should occur, or the order shows little"
    assert bench["difference"]["value"] == pytest.approx(mean(share(b[n]) - share(a[n]) for n in a))


def test_the_other_way_round_is_the_same_with_the_other_sign(runs: Path, ok: Trd, tmp_path: Path) -> None:
    forth = compared(ok, tmp_path, runs / "weak", runs / "strong")["benchmarks"][BENCH]
    back = compared(ok, tmp_path, runs / "strong", runs / "weak")["benchmarks"][BENCH]
    assert back["difference"]["value"] == -forth["difference"]["value"]
    assert back["difference"]["p_value"] == pytest.approx(forth["difference"]["p_value"], abs=0.01)
    assert (back["gained"], back["lost"]) == (forth["lost"], forth["gained"])


def test_a_run_does_not_differ_from_itself(runs: Path, ok: Trd, tmp_path: Path) -> None:
    bench = compared(ok, tmp_path, runs / "weak", runs / "weak")["benchmarks"][BENCH]
    assert bench["difference"]["value"] == 0.0
    assert bench["difference"]["p_value"] == 1.0
    assert (bench["gained"], bench["lost"]) == ([], [])
    assert (bench["needed_questions"], bench["needed_samples"]) == (None, None)


def test_the_table_is_markdown_in_a_pipe_and_the_same_in_its_file(runs: Path, ok: Trd, tmp_path: Path) -> None:
    result = ok("compare", runs / "weak", runs / "strong", "--out", tmp_path / "c")
    assert result.stdout == (tmp_path / "c" / "compare.md").read_text()
    bench = json.loads((tmp_path / "c" / "compare.json").read_text())["benchmarks"][BENCH]
    (row,) = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if BENCH + " |" in line]
    assert row[1] == f"{100 * bench['a']['value']:.1f} %"
    assert row[2] == f"{100 * bench['b']['value']:.1f} %"
    assert row[3] == f"{100 * bench['difference']['value']:+.1f} pp"
    assert row[6:8] == [str(len(bench["gained"])), str(len(bench["lost"]))]
    assert f"{BENCH}, lost: {', '.join(bench['lost'])}" in result.stdout


def test_a_narrow_terminal_shows_every_number(runs: Path) -> None:
    config = CompareConfig(a=str(runs / "weak"), b=str(runs / "strong"))
    comparison = compare.run(config, SilentProgress())
    shown = io.StringIO()
    Console(file=shown, width=80).print(compare.for_a_terminal(comparison))
    bench = comparison["benchmarks"][BENCH]
    for number in (bench["a"]["value"], bench["b"]["value"]):
        assert f"{100 * number:.1f} %" in shown.getvalue()
    assert f"{100 * bench['difference']['low']:+.1f} to" in shown.getvalue()
    assert f"{bench['needed_questions']} questions" in shown.getvalue()
    assert f"and {len(bench['gained']) - 10} more" in " ".join(shown.getvalue().split())


def test_the_csv_agrees_with_the_json(runs: Path, ok: Trd, tmp_path: Path) -> None:
    comparison = compared(ok, tmp_path, runs / "weak", runs / "strong")
    (line,) = csv.DictReader((tmp_path / "compared" / "compare.csv").open())
    bench = comparison["benchmarks"][BENCH]
    assert line["benchmark"] == BENCH
    assert {key: float(line[key]) for key in bench["difference"]} == bench["difference"]
    assert (float(line["a"]), float(line["b"])) == (bench["a"]["value"], bench["b"]["value"])
    assert (int(line["gained"]), int(line["lost"])) == (len(bench["gained"]), len(bench["lost"]))


def test_without_out_nothing_is_written(runs: Path, ok: Trd, tmp_path: Path) -> None:
    before = sorted(runs.rglob("*"))
    assert ok("compare", runs / "weak" / "results.json", runs / "strong").stdout.startswith("A: scripted (")
    assert sorted(runs.rglob("*")) == before


def test_two_comparisons_of_the_same_runs_are_the_same_bytes(runs: Path, ok: Trd, tmp_path: Path) -> None:
    for name in ("one", "other"):
        ok("compare", runs / "weak", runs / "strong", "--out", tmp_path / name)
    for file in ("compare.json", "compare.md", "compare.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


# How many samples


def test_a_smaller_k_compares_the_first_samples(runs: Path, ok: Trd, tmp_path: Path) -> None:
    bench = compared(ok, tmp_path, runs / "weak", runs / "strong", "--k", 1)["benchmarks"][BENCH]
    a, b = samples_of(runs / "weak"), samples_of(runs / "strong")
    assert bench["a"]["value"] == pytest.approx(mean(marks[0] == "1" for marks in a.values()))
    assert bench["gained"] == [name for name in a if (a[name][0], b[name][0]) == ("0", "1")]
    assert bench["lost"] == [name for name in a if (a[name][0], b[name][0]) == ("1", "0")]


def test_a_k_that_one_of_them_does_not_have_is_refused(runs: Path, trd: Trd) -> None:
    result = trd("compare", runs / "weak", runs / "strong", "--k", 3)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "at most 2" in result.stderr


def test_of_unequal_numbers_of_samples_the_first_of_each_are_compared(runs: Path, ok: Trd, tmp_path: Path) -> None:
    evaluate(ok, tmp_path / "one", 0.3, BENCH, 1)
    result = ok("compare", tmp_path / "one", runs / "weak", "--out", tmp_path / "c")
    assert "A has 1 samples of each question, B has 2: the first 1 are compared" in result.stderr
    comparison = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert comparison["k"] == 1
    assert comparison["benchmarks"][BENCH]["difference"]["value"] == 0.0, "the first samples are the same rows"


def test_a_question_that_one_run_lost_to_errors_is_in_no_difference(runs: Path, ok: Trd, tmp_path: Path) -> None:
    evaluate(ok, tmp_path / "faulty", 0.8, BENCH, 1, "--engine-arg", "faults=0.5")
    bench = compared(ok, tmp_path, runs / "weak", tmp_path / "faulty", "--k", 1)["benchmarks"][BENCH]
    graded = [name for name, marks in samples_of(tmp_path / "faulty").items() if marks != "."]
    assert bench["difference"]["questions"] == len(graded) < bench["questions"] == 40
    assert set(bench["gained"]) | set(bench["lost"]) <= set(graded)


# Evaluations that can be compared


def test_several_benchmarks_are_compared_one_by_one_and_their_number_is_said(ok: Trd, tmp_path: Path) -> None:
    evaluate(ok, tmp_path / "a", 0.3, f"{OTHER},{BENCH}")
    evaluate(ok, tmp_path / "b", 0.8, f"{OTHER},{BENCH}")
    comparison = compared(ok, tmp_path, tmp_path / "a", tmp_path / "b")
    assert list(comparison["benchmarks"]) == [OTHER, BENCH], "in the order of A"
    said = ok("compare", tmp_path / "a", tmp_path / "b").stdout
    assert "There are 2 comparisons; the p-values are not corrected for that." in said


def test_benchmarks_of_one_run_alone_are_left_out_and_named(runs: Path, ok: Trd, tmp_path: Path) -> None:
    evaluate(ok, tmp_path / "a", 0.3, f"{OTHER},{BENCH}", 2)
    result = ok("compare", tmp_path / "a", runs / "strong", "--out", tmp_path / "c")
    assert f"left out: {OTHER}" in result.stderr
    comparison = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert (list(comparison["benchmarks"]), comparison["left_out"]) == ([BENCH], [OTHER])
    assert "comparisons" not in result.stdout


def test_runs_without_a_common_benchmark_are_refused(runs: Path, ok: Trd, trd: Trd, tmp_path: Path) -> None:
    evaluate(ok, tmp_path / "a", 0.3, OTHER)
    result = trd("compare", tmp_path / "a", runs / "weak")
    assert (result.exit_code, result.stdout) == (1, "")
    for text in (OTHER, BENCH, "a benchmark in both"):
        assert text in result.stderr


def test_a_benchmark_whose_content_has_changed_is_refused(problems: Path, ok: Trd, trd: Trd, tmp_path: Path) -> None:
    evaluate(ok, tmp_path / "a", 0.3, str(problems))
    changed = [replace(p, problem=p.problem + " Think.") for p in load_benchmark(str(problems)).problems]
    write_problems(problems, changed)
    evaluate(ok, tmp_path / "b", 0.3, str(problems))
    result = trd("compare", tmp_path / "a", tmp_path / "b")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the same content in both" in result.stderr


def test_another_part_of_a_benchmark_is_refused(runs: Path, ok: Trd, trd: Trd, tmp_path: Path) -> None:
    evaluate(ok, tmp_path / "a", 0.3, BENCH, 2, "--limit", 39)
    result = trd("compare", tmp_path / "a", runs / "weak")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "39 questions in A and 40 in B" in result.stderr


def test_other_sampling_and_another_grader_are_told(runs: Path, ok: Trd, tmp_path: Path) -> None:
    evaluate(ok, tmp_path / "a", 0.3, BENCH, 2, "--temperature", 1, "--lenient")
    said = ok("compare", tmp_path / "a", runs / "weak").stderr
    assert f"{BENCH}: temperature is 1.0 in A, 0.6 in B" in said
    assert f"{BENCH}: grader is" in said
    assert "top_p is" not in said
    assert ok("compare", runs / "weak", runs / "strong").stderr == ""


def test_what_is_no_evaluation_is_refused(runs: Path, trd: Trd, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("hello")
    old = json.loads((runs / "weak" / "results.json").read_text())
    del old["format"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    for name, said in (("nowhere", "no such file"), ("text.json", "text.json is not"), ("old.json", "--rescore")):
        result = trd("compare", tmp_path / name, runs / "weak")
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr


def test_a_rescored_run_is_compared_as_it_is_now(runs: Path, ok: Trd, tmp_path: Path) -> None:
    shutil.copytree(runs / "weak", tmp_path / "a")
    ok("eval", "--rescore", tmp_path / "a", "--k", 1)
    assert compared(ok, tmp_path, tmp_path / "a", runs / "strong")["k"] == 1
