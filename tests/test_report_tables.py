"""The figures, tables and plots of trd report, against the run's own files and against small cases by hand."""

from __future__ import annotations

import csv
import json
import math
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from conftest import Trd, takes_long
from support.pages import report_data
from support.report_run import BENCH, NODES, ROUND, VERDICTS, evaluate, made_up, make_run, many_rounds, write_graph
from support.sets import by_hand, by_id, rows_of
from support.tiny import reference_model

from trd_cli.evaluation.paired import holm
from trd_cli.losses.fused import Figures
from trd_cli.models import resolve_model
from trd_cli.records import author_of_kind
from trd_cli.report.collect import collect
from trd_cli.report.csv_files import csv_files
from trd_cli.report.data import Refinement, ReportData, Score, Spread, Training
from trd_cli.report.drawing import COLOURS, looks_of
from trd_cli.report.logs import kl_by_position
from trd_cli.report.nll import choose
from trd_cli.report.plots import INK, is_plot, plots
from trd_cli.report.reader.page import write_page
from trd_cli.report.reader.trajectories import trajectories
from trd_cli.report.refinement import refinement_of
from trd_cli.report.round_plots import course
from trd_cli.report.scores import curves_of
from trd_cli.report.tabulate import markdown, tables
from trd_cli.report.two_runs import combine
from trd_cli.training.batches import Example, Weighting, collate
from trd_cli.training.figures import StepFigures
from trd_cli.trajectories.shards import list_shards, read_rows, shard_path, write_shard

STUDENT, TEACHER = author_of_kind("rollout"), author_of_kind("refined")
SHARES = ("truncated", "no_answer", "error", "timeout")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return a finished run of two arms. Tests read it and write elsewhere."""
    return make_run(tmp_path_factory.mktemp("run") / "tiny", ok)


@pytest.fixture(scope="module")
def data(finished: Path) -> ReportData:
    return collect(finished)


@pytest.fixture(scope="module")
def written(finished: Path, tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return the report on it, as the command writes it."""
    out = tmp_path_factory.mktemp("report")
    ok("report", finished, "--out", out)
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the run to change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def results(run: Path, arm: str) -> dict[str, Any]:
    return json.loads((run / "nodes" / f"eval-{arm}" / "results.json").read_text())


def lines_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def logged(run: Path, arm: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "nodes" / f"distill-{arm}" / "train.jsonl").read_text().splitlines()]


def the(values: Iterator[Any] | list[Any]) -> Any:
    (value,) = values
    return value


def test_each_set_knows_the_arms_that_train_along_it(data: ReportData) -> None:
    chosen = {each.kind: [(s.arm, s.subset, s.where) for s in each.selections] for each in data.sets}
    assert chosen == {"rollout": [("fkl", "all", None)], "refined": [("trd", "all", None)]}


# Scores


@pytest.mark.parametrize("arm", ["base", "trd", "fkl"])
def test_scores_are_those_of_results_json(finished: Path, data: ReportData, arm: str) -> None:
    bench = results(finished, arm)["benchmarks"][BENCH]
    shown = {s.score: s for s in data.scores if s.arm == arm}
    assert list(shown) == ["avg@2", "pass@2", "maj@2"]
    for name, score in shown.items():
        assert {key: getattr(score, key) for key in ("value", "low", "high", "questions")} == {
            key: bench["scores"][name][key] for key in ("value", "low", "high", "questions")
        }
        assert [getattr(score, key) for key in SHARES] == [bench[key] for key in SHARES]


def test_differences_are_those_of_trd_compare(finished: Path, data: ReportData, ok: Trd, tmp_path: Path) -> None:
    pairs = {("base", "trd"): "base", ("base", "fkl"): "base", ("fkl", "trd"): "fkl"}
    assert [(d.against, d.arm) for d in data.differences] == list(pairs)
    for d in data.differences:
        sides = (finished / "nodes" / f"eval-{arm}" for arm in (d.against, d.arm))
        ok("compare", *sides, "--out", tmp_path / f"{d.against}-{d.arm}")
        told = json.loads((tmp_path / f"{d.against}-{d.arm}" / "compare.json").read_text())["benchmarks"][BENCH]
        for key in ("value", "low", "high", "p_value", "questions"):
            assert getattr(d, key) == told["difference"][key]
        assert (d.gained, d.lost) == (len(told["gained"]), len(told["lost"]))


def test_p_values_are_corrected_among_those_against_the_same_thing(data: ReportData) -> None:
    trd, fkl, to_fkl = data.differences
    assert trd.p_value < fkl.p_value
    assert trd.p_holm == pytest.approx(2 * trd.p_value)
    assert fkl.p_holm == pytest.approx(max(fkl.p_value, trd.p_holm))
    assert to_fkl.p_holm == to_fkl.p_value, "alone in its family"


def test_holm_corrects_as_in_the_textbook() -> None:
    # Sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1, none below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


def test_holm_leaves_out_what_has_no_p_value() -> None:
    corrected = holm([0.01, math.nan, 0.02])
    assert math.isnan(corrected[1])
    assert [corrected[0], corrected[2]] == [0.02, 0.02]


def test_a_benchmark_of_another_content_is_not_compared_and_named(copy: Path, ok: Trd) -> None:
    shutil.rmtree(copy / "nodes" / "eval-trd")
    evaluate(ok, copy / "nodes" / "eval-trd", 0.9, 2, "arithmetic:n=20,seed=4")
    found = collect(copy)
    assert [(d.arm, d.against) for d in found.differences] == [("fkl", "base")]
    assert f"trd against base on {BENCH}: not compared, only one of them was evaluated on it" in found.notes


def test_a_curve_begins_with_the_base_model_and_takes_the_last_round_for_the_summary(data: ReportData) -> None:
    def score(arm: str, number: int | None, value: float) -> Score:
        return Score(arm, number, 0, BENCH, "avg@1", value, value, value, 20, 0.0, 0.0, 0.0, 0.0)

    told = ReportData(
        **{
            **{name: getattr(data, name) for name in ("name", "runs", "directories", "setting", "reference_arm")},
            **dict.fromkeys(("nodes", "evaluations", "differences", "refinements", "trainings", "sets", "missing"), ()),
        },
        scores=(score("base", None, 0.1), score("trd", 0, 0.3), score("trd", 1, 0.2), score("fkl", 0, 0.4)),
    )
    curves = {key: {r: s.value for r, s in curve.items()} for key, curve in curves_of(told).items()}
    assert curves == {("trd", 0, BENCH): {0: 0.1, 1: 0.3, 2: 0.2}, ("fkl", 0, BENCH): {0: 0.1, 1: 0.4}}
    assert [(s.arm, s.value) for s in told.last_scores()] == [("base", 0.1), ("trd", 0.2), ("fkl", 0.4)]
    table = the([t for t in tables(told) if t.section == "rounds"])
    assert table.rows == (
        ("trd", "0", BENCH, "10.0 %", "30.0 %", "20.0 %"),
        ("fkl", "0", BENCH, "10.0 %", "40.0 %", "–"),
    )
    assert "rounds-scores" in plots(told)
    alone = replace(told, scores=tuple(s for s in told.scores if s.arm == "trd"))
    assert "rounds-scores" in plots(alone)
    assert the([t for t in tables(alone) if t.section == "rounds"]).rows == (
        ("trd", "0", BENCH, "30.0 %", "20.0 %"),
    ), "without the base model's, too"


def test_scores_of_seeds_together_are_means_with_intervals_over_seeds_and_questions(copy: Path, ok: Trd) -> None:
    graph = json.loads((copy / "graph.json").read_text())
    again = {**next(n for n in graph["nodes"] if n["name"] == f"{ROUND}/trd/eval")}
    again |= {"name": "seed-1/round-0/trd/eval", "seed": 1, "out": "nodes/eval-trd-1"}
    graph["nodes"].append(again)
    (copy / "graph.json").write_text(json.dumps(graph))
    evaluate(ok, copy / "nodes" / "eval-trd-1", 0.4, 7)
    found = collect(copy)
    for score in ("avg@2", "pass@2"):
        of = {s.seed: s for s in found.scores if s.arm == "trd" and s.score == score}
        assert of.keys() == {0, 1, "all"}
        assert of["all"].value == pytest.approx((of[0].value + of[1].value) / 2)
        assert of["all"].questions == 20
        assert (of["all"].low, of["all"].high) == (0.0, 1.0), "two seeds that lie apart say nothing of others"
    to_base = {d.seed: d for d in found.differences if (d.arm, d.against) == ("trd", "base")}
    assert to_base["all"].value == pytest.approx((to_base[0].value + to_base[1].value) / 2)
    assert to_base["all"].k == 4
    assert to_base["all"].p_value > max(to_base[0].p_value, to_base[1].p_value)
    assert to_base["all"].family == "to base, all seeds together"
    assert to_base["all"].p_holm == to_base["all"].p_value, "a family of its own"
    assert {s.seed for s in found.last_scores() if s.arm == "fkl"} == {0}
    assert ("trd", "all", BENCH) in curves_of(found)
    said = [t.name for t in tables(found) if "a hierarchical bootstrap over seeds and questions" in t.note]
    assert said == ["scores-summary", "scores-all", "scores-differences-2"]


# Refinement


def refinement(run: Path) -> Refinement:
    return the(collect(run).refinements)


def test_the_verdict_matrix_counts_the_rows(data: ReportData) -> None:
    found = the(data.refinements)
    assert found.matrix == {
        ("incorrect", "correct"): 3,
        ("correct", "correct"): 2,
        ("correct", "incorrect"): 1,
        ("incorrect", "incorrect"): 1,
        ("incorrect", "timeout"): 1,
    }
    assert (found.rows, found.errors, found.setting) == (len(VERDICTS), 0, "opsd")
    (table,) = [t for t in tables(data) if t.name.startswith("refinement-verdicts")]
    assert table.columns == ("", "y_r correct", "y_r incorrect", "y_r timeout")
    assert table.rows == (
        ("y_o correct", "2 (25.0 %)", "1 (12.5 %)", "0 (0.0 %)"),
        ("y_o incorrect", "3 (37.5 %)", "1 (12.5 %)", "1 (12.5 %)"),
    )


def rewrite(run: Path, node: str, changes: list[dict[str, Any]]) -> None:
    """Replace fields of the first rows of a set, in stored order."""
    (shard,) = list_shards(run / "nodes" / node)
    rows = read_rows(shard)
    write_shard(shard, [replace(row, **(changes[i] if i < len(changes) else {})) for i, row in enumerate(rows)])


def in_order_of_refined(run: Path, changes: list[dict[str, Any]]) -> None:
    """Replace fields of the rollouts, given in the order of their refined rows."""
    parents = [row.parent_id for row in rows_of(run / "nodes" / "refine-0")]
    of = dict(zip(parents, changes, strict=False))
    rewrite(run, "sample-0", [of.get(row.trajectory_id, {}) for row in rows_of(run / "nodes" / "sample-0")])


def test_lengths_edits_and_prefixes_are_those_by_hand(copy: Path) -> None:
    y_o = [[1, 2, 3, 4], [5, 6], [7, 8, 9], *[[1]] * 5]
    y_r = [[1, 2, 9, 4, 5], [5, 6], [8, 9], *[[1]] * 5]
    in_order_of_refined(copy, [{"response_token_ids": ids, "logprobs": None} for ids in y_o])
    rewrite(copy, "refine-0", [{"response_token_ids": ids, "logprobs": None} for ids in y_r])
    found = refinement(copy)
    assert found.lengths["y_o"] == Spread.of([4, 2, 3, 1, 1, 1, 1, 1])
    assert found.lengths["y_r"] == Spread.of([5, 2, 2, 1, 1, 1, 1, 1])
    assert list(found.edit_distance.values) == pytest.approx(sorted([2 / 5, 0, 1 / 3, *[0] * 5]))
    assert list(found.common_prefix.values) == pytest.approx(sorted([0.5, 1, 0, *[1] * 5]))
    assert found.common_prefix.mean == pytest.approx(6.5 / 8)
    assert found.nll.keys() == {"y_r"}, "no log-probabilities are stored any more; that of y_r is the training's"


def test_the_figures_do_not_depend_on_how_many_rollouts_are_in_memory_at_a_time(copy: Path) -> None:
    (shard,) = list_shards(copy / "nodes" / "sample-0")
    rows = read_rows(shard)
    parts = [shard_path(copy / "parts", n) for n in range(3)]
    parts[0].parent.mkdir()
    for n, path in enumerate(parts):
        write_shard(path, rows[n::3])
    about = {"node": "refine-0", "arm": None, "round": 0, "seed": 0, "setting": "opsd"}
    refined = list_shards(copy / "nodes" / "refine-0")
    together = refinement_of(refined, [shard], about)
    assert together.rows == 8
    assert refinement_of(refined, parts, about, held=1) == together


def test_quantiles_are_interpolated_between_the_values() -> None:
    spread = Spread.of([10, 2, 8, 4])
    assert (spread.rows, spread.mean, list(spread.values)) == (4, 6, [2, 4, 8, 10])
    # Rank q·(n − 1) from 0: 0.15, 0.75, 1.5, 2.25 and 2.85.
    quantiles = (spread.p05, spread.p25, spread.p50, spread.p75, spread.p95)
    assert quantiles == pytest.approx((2.3, 3.5, 6, 8.5, 9.7))
    assert spread.p50 == median(spread.values)
    assert Spread.of([]) is None


def test_rows_without_a_response_are_counted_and_in_no_figure(copy: Path) -> None:
    gone = {"response": None, "response_token_ids": None, "logprobs": None, "error": "too long", "verdict": "error"}
    rewrite(copy, "refine-0", [gone])
    found = refinement(copy)
    assert (found.rows, found.errors, found.edit_distance.rows) == (8, 1, 7)
    assert found.matrix[VERDICTS[0][0], "error"] == 1


def test_the_stored_nll_is_the_mean_over_tokens(finished: Path, data: ReportData) -> None:
    found = the(data.refinements).nll
    for name, node in {"y_o": "sample-0", "y_r, refiner": "refine-0"}.items():
        logprobs = [x for row in rows_of(finished / "nodes" / node) for x in row.logprobs]
        assert (found[name].tokens, found[name].rows) == (len(logprobs), len(VERDICTS))
        assert found[name].value == pytest.approx(-fmean(logprobs))


def test_the_stored_nll_of_a_row_of_two_authors_is_that_of_the_tokens_that_each_wrote(copy: Path) -> None:
    authors = [STUDENT, TEACHER, STUDENT]
    rollout = {"response_token_ids": [4, 5, 6], "logprobs": [-1.0, -2.0, -4.0], "author": authors}
    refined = {"response_token_ids": [4, 5, 7], "logprobs": [-1.0, -2.0, -8.0], "author": authors}
    without = {"logprobs": None}
    in_order_of_refined(copy, [rollout, *[without] * 7])
    rewrite(copy, "refine-0", [refined, *[without] * 7])
    found = refinement(copy).nll
    assert (found["y_o"].value, found["y_o"].tokens) == (2.5, 2)
    assert (found["y_r, refiner"].value, found["y_r, refiner"].tokens) == (2.0, 1)


def test_the_nll_of_y_r_is_that_of_the_first_step_along_it(finished: Path, data: ReportData) -> None:
    first = logged(finished, "trd")[0]
    nll = the(data.refinements).nll["y_r"]
    assert (nll.value, nll.tokens, nll.rows) == (first["student_nll"], first["response_tokens"], first["trajectories"])
    assert nll.source == f"first step of {ROUND}/trd/distill, 4 of 8 rows"


@pytest.mark.parametrize(
    "change",
    ['"subset": "repaired"', '"where": "round = 0"', '"train_on": "teacher"', '"max_response_tokens": 5'],
)
def test_the_nll_of_y_r_is_not_taken_from_a_training_along_some_of_its_tokens(copy: Path, change: str) -> None:
    path = copy / "nodes" / "distill-trd" / "run.json"
    by_hand(path, lambda run: run["config"].update(json.loads(f"{{{change}}}")))
    assert "y_r" not in refinement(copy).nll


def test_what_is_not_known_is_a_dash(data: ReportData) -> None:
    (table,) = [t for t in tables(data) if t.name == "refinement-nll"]
    row = the([row for row in table.rows if row[1].startswith("y* ")])
    assert row[2:] == ("–", "–", "–", "–")
    assert table.columns[2:] == ("from", "nats a token", "tokens", "rows")
    assert table.numeric == {3, 4, 5}


@torch.no_grad()
def plain_nll(model: Any, prompt: list[int], response: list[int]) -> list[float]:
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].float().log_softmax(-1)
    return [-logits[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)]


def test_nll_scores_the_three_texts_of_the_same_rows_as_transformers_does(
    finished: Path, ok: Trd, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    assert "scoring 3 rows" in ok("report", finished, "--nll", 3, "--device", "cpu", "--out", out).stderr
    model, rollouts = reference_model(finished / "student"), by_id(finished / "nodes" / "sample-0")
    rows = sorted(rows_of(finished / "nodes" / "refine-0"), key=lambda row: row.trajectory_id)[:3]
    tokenizer = resolve_model(str(finished / "student")).tokenizer()
    texts = {
        "y_o": [rollouts[row.parent_id].response_token_ids for row in rows],
        "y_r": [row.response_token_ids for row in rows],
        "y*": [[*tokenizer.encode(row.reference_solution), tokenizer.end_of_turn_id] for row in rows],
    }
    told = {line["text"]: line for line in lines_of(out / "nll.csv")}
    for text, responses in texts.items():
        nats = [
            x
            for row, ids in zip(rows, responses, strict=True)
            for x in plain_nll(model, list(row.student_prompt_token_ids), list(ids))
        ]
        assert float(told[text]["value"]) == pytest.approx(fmean(nats), rel=1e-4)
        assert (int(told[text]["tokens"]), int(told[text]["rows"])) == (len(nats), 3)
    # Sampled tokens keep the score they had when they were sampled.
    stored = [x for row in rows for x in rollouts[row.parent_id].logprobs]
    assert float(told["y_o"]["value"]) == pytest.approx(-fmean(stored), rel=1e-3)
    assert "scoring" not in ok("report", finished, "--nll", 3, "--out", out).stderr, "what is scored is kept"


def test_nll_with_a_student_that_names_no_context_length_scores_what_it_wrote(copy: Path) -> None:
    settings = json.loads((copy / "student" / "config.json").read_text())
    del settings["max_position_embeddings"]
    (copy / "student" / "config.json").write_text(json.dumps(settings))
    refined = the([each for each in collect(copy).sets if each.kind == "refined"])
    assert len(choose(refined, 3, resolve_model(str(copy / "student")))) == 3


def test_nll_with_a_student_that_cannot_be_read_is_one_line_with_the_file(
    finished: Path, trd: Trd, tmp_path: Path
) -> None:
    config = finished / "student" / "config.json"
    sound = config.read_bytes()
    config.write_bytes(sound[:60])
    try:
        result = trd("report", finished, "--nll", 2, "--out", tmp_path / "report")
    finally:
        config.write_bytes(sound)
    assert result.exit_code == 1
    assert f"{config} cannot be read" in result.stderr.splitlines()[-1]


def test_nll_scores_the_first_rows_by_id_that_have_all_texts_and_fit(copy: Path) -> None:
    ids = [row.trajectory_id for row in rows_of(copy / "nodes" / "refine-0")]
    one, two, three, *others = sorted(ids)
    changes = {
        one: {"reference_solution": "too long " * 5000},
        two: {"reference_solution": None},
        three: {"response": None, "response_token_ids": None, "logprobs": None},
    }
    rewrite(copy, "refine-0", [changes.get(name, {}) for name in ids])
    parents = {row.trajectory_id: row.parent_id for row in rows_of(copy / "nodes" / "refine-0")}
    gone = {parents[others[0]]: {"response": None, "response_token_ids": None, "logprobs": None}}
    rewrite(copy, "sample-0", [gone.get(row.trajectory_id, {}) for row in rows_of(copy / "nodes" / "sample-0")])
    refined = the([each for each in collect(copy).sets if each.kind == "refined"])
    model = resolve_model(str(copy / "student"))
    chosen = {n: [row.trajectory_id for row in choose(refined, n, model)] for n in (1, 2, 9)}
    assert chosen == {1: others[1:2], 2: others[1:3], 9: others[1:]}


def test_leaks_are_shares_of_the_rows_and_exclude_what_the_attempt_had(copy: Path) -> None:
    solutions = [row.reference_solution for row in rows_of(copy / "nodes" / "refine-0")]
    said = "By the reference solution, it is 4."
    in_order_of_refined(copy, [{"response": t} for t in ("a", solutions[1], said, *["b"] * 5)])
    responses = (said, solutions[1], "the given answer", solutions[3], *["c"] * 4)
    rewrite(copy, "refine-0", [{"response": text} for text in responses])
    leaks = refinement(copy).leaks
    assert len(solutions[3].split()) > 13
    assert (leaks.rows, leaks.talks, leaks.talks_before) == (8, 1 / 8, 1 / 8)
    assert leaks.copies == {8: 1 / 8, 13: 1 / 8}, "of the two that hold y* one had it before"


def test_without_a_reference_in_view_there_are_no_leaks_to_look_for(copy: Path) -> None:
    path = copy / "nodes" / "refine-0" / "run.json"
    by_hand(path, lambda run: run["about"].update(setting="opd"))
    assert refinement(copy).leaks is None
    assert "leaks" not in markdown(collect(copy))


# Training


def test_the_divergence_is_sorted_into_tenths_of_the_response_and_by_verdict() -> None:
    rows = [
        Example("a", [1], [1], range(20), parent_verdict="correct"),
        Example("b", [1], [1], range(4), scored=[0, 2], parent_verdict="incorrect"),
        Example("c", [1], [1], range(3)),
    ]
    divergence_N = torch.arange(25, dtype=torch.float32)
    nothing_N = torch.zeros(25)
    of_positions = Figures(divergence_N, *[nothing_N] * (len(Figures._fields) - 1))
    one, two = StepFigures(), StepFigures()
    for figures in (one, two):
        figures.add(1.0, of_positions, collate(rows, Weighting.of(rows, "sequence")), rows)
    two.merge(one)
    found = two.by_tenth()
    # Twenty tokens are two a tenth; of four, the first is in tenth 1 and the third, from 50 % on, in tenth 6.
    assert found["divergence_tenths_correct"] == [2 * i + 0.5 for i in range(10)]
    assert found["positions_tenths_correct"] == [4] * 10
    assert found["divergence_tenths_incorrect"] == [20, 0, 0, 0, 0, 21, 0, 0, 0, 0]
    assert found["positions_tenths_incorrect"] == [2, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert len(found) == 4, "a row whose attempt has no verdict is in neither"


def test_tenths_of_several_steps_are_weighted_by_their_positions() -> None:
    def step(verdict: str, mean: float, positions: int) -> dict[str, Any]:
        return {
            f"divergence_tenths_{verdict}": [mean, *[0.0] * 9],
            f"positions_tenths_{verdict}": [positions, *[0] * 9],
        }

    found = kl_by_position([step("correct", 1.0, 3), step("correct", 2.0, 1), step("incorrect", 5.0, 2), {}])
    assert found == {"correct": [1.25, *[None] * 9], "incorrect": [5.0, *[None] * 9]}
    assert kl_by_position([{"loss": 1.0}]) is None


@pytest.mark.parametrize("arm", ["trd", "fkl"])
def test_the_training_is_that_of_its_log(finished: Path, data: ReportData, arm: str) -> None:
    steps = logged(finished, arm)
    training = the([t for t in data.trainings if t.arm == arm])
    assert list(training.steps) == steps
    assert len(steps) == 2
    positions = sum(sum(step.get(f"positions_tenths_{v}", ())) for step in steps for v in ("correct", "incorrect"))
    assert positions == sum(step["response_tokens"] for step in steps), "every row's attempt has a verdict"
    (table,) = [t for t in tables(data) if t.name == "training-steps"]
    row = dict(zip(table.columns, the([r for r in table.rows if r[0] == training.node]), strict=True))
    norms = [step["grad_norm"] for step in steps]
    assert (row["steps"], row["loss, first tenth"], row["loss, last tenth"]) == (
        "2",
        f"{steps[0]['loss']:.3g}",
        f"{steps[-1]['loss']:.3g}",
    )
    assert row["gradient norm, median"] == f"{median(norms):.3g}"
    assert row["gradient norm, largest"] == f"{max(norms):.3g}"


def test_a_training_is_summed_up_by_the_first_and_last_tenth_of_its_steps() -> None:
    steps = [{"loss": float(i), "trajectories": 4} for i in range(29)]
    steps += [{"loss": 100.0, "trajectories": 1, "top1_agreement": 0.5}]
    training = Training("a", "a", 0, 0, steps, None)
    assert training.mean("loss", "first") == 1.0, "of steps 0, 1 and 2"
    assert training.mean("loss", "last") == pytest.approx((4 * 27 + 4 * 28 + 100) / 9)
    assert training.mean("top1_agreement", "last") == 0.5
    assert training.mean("top1_agreement", "first") is None
    assert replace(training, steps=steps[:5]).mean("loss", "last") == 4.0, "of one step at least"


def test_the_mean_by_tenth_is_the_mean_divergence(finished: Path) -> None:
    """With equally long responses, the loss is the mean over all positions."""
    for step in logged(finished, "trd"):
        sums = [
            mean * positions
            for v in ("correct", "incorrect")
            for mean, positions in zip(
                step.get(f"divergence_tenths_{v}", ()), step.get(f"positions_tenths_{v}", ()), strict=True
            )
        ]
        assert sum(sums) / step["response_tokens"] == pytest.approx(step["loss"], rel=1e-5)


# Cost


def test_cost_is_told_by_rows_tokens_and_logs(finished: Path, data: ReportData) -> None:
    costs = {cost.name: cost for cost in data.nodes}
    assert list(costs) == [name for name, *_ in NODES]
    sample = costs[f"{ROUND}/sample"]
    rows = rows_of(finished / "nodes" / "sample-0")
    session = json.loads((finished / "nodes" / "sample-0" / "sessions.jsonl").read_text())
    assert (sample.rows, sample.tokens) == (len(rows), sum(len(row.response_token_ids) for row in rows))
    assert sample.tokens_per_second == pytest.approx(session["tokens"] / session["at_work"])
    assert sample.seconds == 1002.0, "of the process, by status.json"
    assert sample.peak_bytes == 2**33
    verify, problems = costs[f"{ROUND}/verify-rollouts"], costs["problems"]
    assert (verify.rows, verify.tokens, verify.tokens_per_second) == (8, None, None)
    assert (problems.rows, problems.tokens) == (8, None)
    steps = logged(finished, "trd")
    distill = costs[f"{ROUND}/trd/distill"]
    assert distill.tokens == sum(step["response_tokens"] for step in steps)
    assert distill.tokens_per_second == pytest.approx(distill.tokens / sum(step["seconds"] for step in steps))


# Files


def test_the_files_agree_with_each_other_and_with_results_json(finished: Path, written: Path) -> None:
    for line in lines_of(written / "scores.csv"):
        told = results(finished, line["arm"])["benchmarks"][BENCH]["scores"][line["score"]]
        assert [float(line[key]) for key in ("value", "low", "high")] == [told[k] for k in ("value", "low", "high")]
    text = (written / "report.md").read_text()
    for arm in ("base", "trd", "fkl"):
        told = results(finished, arm)["benchmarks"][BENCH]["scores"]["avg@2"]
        cell = f"{100 * told['value']:.1f} % ({100 * told['low']:.1f} – {100 * told['high']:.1f})"
        assert f"| {arm} | {cell} |" in text
    verdicts = {(line["y_o"], line["y_r"]): int(line["rows"]) for line in lines_of(written / "verdicts.csv")}
    assert verdicts == {pair: VERDICTS.count(pair) for pair in VERDICTS}
    steps = lines_of(written / "training.csv")
    assert [float(s["loss"]) for s in steps if s["arm"] == "trd"] == [s["loss"] for s in logged(finished, "trd")]
    assert len(lines_of(written / "kl_by_position.csv")) == 40
    assert {line["state"] for line in lines_of(written / "cost.csv")} == {"done"}


def test_the_same_run_gives_the_same_bytes(finished: Path, written: Path, ok: Trd, tmp_path: Path) -> None:
    assert ok("report", finished, "--out", tmp_path).stdout == f"{tmp_path}/report.html\n"
    one, two = (
        {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in (written, tmp_path)
    )
    assert one == two
    assert {"report.md", "plots/scores-arms.svg", "plots/scores-arms.png"} <= one.keys()


def test_plots_are_labelled_with_units_and_have_no_background_and_no_date(data: ReportData) -> None:
    made = plots(data)
    labels = {
        "scores-arms": {"base", "trd", "fkl", BENCH, "avg@2, %, with 95 % intervals"},
        "refinement-verdicts-1": {"correct", "incorrect", "timeout", "37.5 %", "y_r, refined", "y_o, rollout"},
        "refinement-lengths-1": {"tokens of the response", "rows", "y_o", "y_r"},
        "training-loss": {"loss, nats", "gradient norm", "optimiser step", "trd", "fkl"},
        "training-positions": {"place in the response, %", "divergence, nats", "y_o correct", "y_o incorrect"},
    }
    assert made.keys() == labels.keys()
    for name, plot in made.items():
        assert is_plot(name)
        texts = {element.text for element in ElementTree.fromstring(plot.svg_file).iter() if element.text}
        assert labels[name] <= texts
        assert "<dc:date>" not in plot.svg_file
        assert INK in plot.svg_file
        assert INK not in plot.svg
        assert "currentColor" in plot.svg
        assert plot.alt.endswith(".")
        assert plot.png.startswith(b"\x89PNG")
        # Colour type 6 of the header: with transparency.
        assert struct.unpack(">IIBB", plot.png[16:26])[3] == 6


def contrast(colour: str, luminance: float) -> float:
    """Return the contrast of a colour with a grey of this luminance, as WCAG 2 defines it."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    own = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    low, high = sorted((own, luminance))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [INK, *COLOURS])
def test_colours_are_seen_on_white_and_on_black(colour: str) -> None:
    assert min(contrast(colour, 0.0), contrast(colour, 1.0)) >= 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("arms", "seeds", "rounds"), [(1, 1, 1), (5, 3, 2), (2, 2, 4)])
def test_plots_of_many_arms_seeds_and_rounds_have_one_legend_that_fits(arms: int, seeds: int, rounds: int) -> None:
    made = plots(made_up(arms, seeds, rounds, steps=4, name="an arm of a rather long name $x"))
    assert ("rounds-scores" in made) == (rounds > 1)
    for name, plot in made.items():
        root = ElementTree.fromstring(plot.svg_file)
        legends = [e for e in root.iter() if (e.get("id") or "").startswith("legend_")]
        assert len(legends) == (name != "scores-arms" or seeds > 1)
        said = [e.text for legend in legends for e in legend.iter() if (e.text or "").strip()]
        assert len(said) == len(set(said)), "an arm or a kind of line each"
        labels = [text for text in said if text.startswith("an arm")]
        assert len(labels) == (arms if name in ("training-loss", "rounds-scores") else 0)
        assert ("one seed" in said) == (seeds > 1)
        # The panels keep their height: the legend has its own.
        _, top, width, height = map(float, root.get("viewBox").split())
        assert (top, width >= 504) == (0, True)
        assert height > {"training-loss": 4 * 100, "rounds-scores": 180}.get(name, 50)


# Many rounds

ROUNDS = 12
CURVES = ("scores-arms", "rounds-scores", "rounds-verdicts", "rounds-changes", "rounds-nll", "cost-rounds")
DETAILS = ("refinement-verdicts", "refinement-lengths", "training-loss", "training-positions")


@pytest.fixture(scope="module")
def long_run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_rounds(finished, tmp_path_factory.mktemp("long") / "run", ROUNDS)


@pytest.fixture(scope="module")
def long(long_run: Path) -> ReportData:
    return collect(long_run)


@pytest.fixture(scope="module")
def long_report(long_run: Path, tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return the report on a run of many rounds."""
    out = tmp_path_factory.mktemp("long-report")
    ok("report", long_run, "--out", out)
    return out


def test_many_rounds_are_drawn_as_curves_with_details_of_the_first_and_the_last(long_report: Path) -> None:
    assert {path.stem for path in (long_report / "plots").iterdir()} == {*CURVES, *DETAILS}
    text = (long_report / "report.md").read_text()
    last = f"seed-0/round-{ROUNDS - 1}/trd/refine"
    assert [line for line in text.splitlines() if line.startswith("### Verdicts")] == [
        f"### Verdicts y_o → y_r, {node}" for node in (f"{ROUND}/refine", last)
    ]
    assert f"round-{ROUNDS // 2}/" not in text
    assert "| after 12 |" in text
    assert f"| {last} | tokens of y_r | 8 |" in text
    assert "all rounds in kl_by_position.csv" in text


def test_the_csv_files_have_every_round(long_report: Path) -> None:
    curve = [
        line for line in lines_of(long_report / "rounds.csv") if (line["figure"], line["arm"]) == ("repaired", "trd")
    ]
    assert [(int(line["round"]), float(line["value"])) for line in curve] == [(of, 3 / 8) for of in range(ROUNDS)]
    every = {str(of) for of in range(ROUNDS)}
    for name in ("scores", "verdicts", "refinement", "nll", "leaks", "training", "kl_by_position", "cost", "rounds"):
        assert {line["round"] for line in lines_of(long_report / f"{name}.csv")} - {""} == every
    figures = {line["figure"] for line in lines_of(long_report / "rounds.csv")}
    assert {"tokens of y_o", "tokens of y_r", "nats a token of y_r", "loss", "seconds", "seconds at work"} <= figures


def test_many_rounds_are_compared_after_the_first_and_the_last_alone(long: ReportData) -> None:
    assert {d.round for d in long.differences} == {0, ROUNDS - 1}
    to_base = [d for d in long.differences if d.family == "to base"]
    assert len(to_base) == 4
    assert min(d.p_holm for d in to_base) == pytest.approx(4 * min(d.p_value for d in to_base)), "of four tests"


def test_the_trainings_of_many_rounds_are_one_curve_over_all_steps(finished: Path, long: ReportData) -> None:
    [figure, _, alt] = course(long, looks_of(long.arms()))
    losses = [step["loss"] for step in logged(finished, "trd")]
    [trd, fkl] = figure.axes[0].lines
    assert list(trd.get_xdata()) == list(range(1, 2 * ROUNDS + 1))
    assert list(trd.get_ydata()) == losses * ROUNDS
    assert len(fkl.get_xdata()) == 2 * ROUNDS
    assert {x % 2 for x in (trd.get_xdata()[i] for i in trd.get_markevery())} == {0}, "marks end a round"
    assert f"trd from {fmean(losses):.3g} to {fmean(losses):.3g}" in alt


def test_new_trainings_of_each_round_are_counted_on() -> None:
    data = made_up(1, 1, 4, steps=3)
    [line] = course(data, looks_of(data.arms()))[0].axes[0].lines
    assert list(line.get_xdata()) == list(range(1, 13))
    many = made_up(1, 1, 4, steps=300)
    [line] = course(many, looks_of(many.arms()))[0].axes[0].lines
    assert len(line.get_xdata()) == 200
    assert line.get_ydata()[0] == pytest.approx(fmean(step["loss"] for step in many.trainings[0].steps[:6]))


def test_the_nll_of_y_r_is_that_of_the_first_step_of_its_round(finished: Path, long: ReportData) -> None:
    known = logged(finished, "trd")[0]["student_nll"]
    assert [r.nll["y_r"].value for r in long.refinements] == [known] * ROUNDS


def test_the_cost_of_a_round_is_told_cold_and_warm_beside_its_time_at_work(finished: Path, long: ReportData) -> None:
    [table] = [t for t in tables(long) if t.name == "cost-rounds"]
    rows = {row[:2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    work = json.loads((finished / "nodes" / "sample-0" / "sessions.jsonl").read_text())["at_work"]
    cold, warm = (rows["sample", ran] for ran in ("cold", "warm"))
    assert (cold["stages"], cold["seconds"], cold["at work"]) == ("1", "900.0", f"{work:,.1f}")
    assert (warm["stages"], warm["seconds"], warm["beyond"]) == (str(2 * (ROUNDS - 1)), "200.0", f"{200 - work:,.1f}")
    assert rows["verify-refined", "cold"]["at work"] == "–"
    assert ("verify-refined", "warm") not in rows
    # Grading ran cold in every round: 1 + 22 times on rollouts and 1 + 11 times on refined rows.
    grading = (900 + 22 * 200) / 23 + (900 + 11 * 200) / 12
    assert rows["a round of one arm", "cold"]["seconds"] == f"{4 * 900 + grading:,.1f}"
    assert rows["a round of one arm", "warm"]["seconds"] == f"{4 * 200 + grading:,.1f}"
    assert not [
        t for t in tables(replace(long, nodes=(), refinements=(), trainings=(), scores=())) if "rounds" in t.name
    ]


def grown(arms: int, seeds: int, rounds: int, directory: Path) -> ReportData:
    """Return figures of a run of this size, with refinements and costs."""
    data, one = made_up(arms, seeds, rounds), report_data(directory)
    places = [(f"arm-{i}", seed, of) for i in range(arms) for seed in range(seeds) for of in range(rounds)]
    named = [(f"seed-{seed}/round-{of}/{arm}", arm, seed, of) for arm, seed, of in places]
    refinements = (
        replace(one.refinements[0], node=f"{name}/refine", arm=arm, arms=(arm,), seed=seed, round=of)
        for name, arm, seed, of in named
    )
    nodes = (
        replace(node, name=f"{name}/{node.stage}", arm=arm, seed=seed, round=of, at_work=50.0, warm=of > 0)
        for name, arm, seed, of in named
        for node in one.nodes[:3]
    )
    return replace(data, refinements=tuple(refinements), nodes=tuple(nodes))


@takes_long
def test_the_page_does_not_grow_with_the_rounds(tmp_path: Path) -> None:
    sizes, drawn = [], []
    for rounds in (8, 40):
        data = grown(2, 2, rounds, tmp_path)
        made = plots(data)
        write_page(tmp_path / "report.html", data, made, trajectories(()))
        sizes.append((tmp_path / "report.html").stat().st_size)
        drawn.append(made.keys())
    assert drawn == [{*CURVES, *DETAILS}] * 2
    assert sizes[1] < 1.5 * sizes[0]
    assert sizes[1] < 2**20


def test_seeds_of_the_first_and_the_last_round_are_shown_together(tmp_path: Path) -> None:
    shown = [t for t in tables(grown(1, 3, 4, tmp_path)) if t.name.startswith("refinement-verdicts")]
    assert [t.title.partition(", ")[2] for t in shown] == [f"round-{of}/arm-0/refine, all seeds" for of in (0, 3)]
    assert shown[0].rows[0][1] == "240 (20.0 %)", "of 400 rows each"


def test_three_rounds_are_shown_one_by_one(tmp_path: Path) -> None:
    data = grown(1, 1, 3, tmp_path)
    names = {f"refinement-{what}-{number}" for what in ("verdicts", "lengths") for number in (1, 2, 3)}
    assert plots(data).keys() == {*names, "scores-arms", "rounds-scores", "training-loss", "training-positions"}
    assert csv_files(data)["rounds.csv"] is None
    cold = replace(data, nodes=tuple(replace(node, warm=False) for node in data.nodes))
    assert [t.name for t in tables(cold) if t.section in ("rounds", "cost")] == ["rounds-scores", "cost-nodes"]
    assert not [t for t in tables(data) if "all rounds in" in t.note]


# Missing outputs


def set_status(run: Path, node: str, **changes: Any) -> None:
    status = json.loads((run / "status.json").read_text())
    status[node] |= changes
    (run / "status.json").write_text(json.dumps(status))


def test_a_failed_node_is_named_and_the_rest_is_reported(copy: Path, ok: Trd) -> None:
    shutil.rmtree(copy / "nodes" / "eval-trd")
    set_status(copy, f"{ROUND}/trd/eval", state="failed", exit_code=3)
    told = f"{ROUND}/trd/eval: failed with exit code 3, see logs/seed-0_round-0_trd_eval.log"
    assert told in ok("report", copy).stderr
    text = (copy / "report" / "report.md").read_text()
    assert f"- {told}" in text
    found = collect(copy)
    assert found.arms() == ["base", "fkl", "trd"]
    assert {d.arm for d in found.differences} == {"fkl"}
    assert [t.arm for t in found.trainings] == ["trd", "fkl"]


def test_a_run_that_has_only_begun_is_reported(copy: Path, ok: Trd) -> None:
    for directory in (copy / "nodes").iterdir():
        shutil.rmtree(directory)
    (copy / "status.json").unlink()
    ok("report", copy)
    found = collect(copy)
    assert found.scores == found.refinements == found.trainings == found.sets == ()
    names = [name for name, *_ in NODES]
    assert found.missing == (f"10 of 10 stages have not been run: {', '.join(names[:3])} and 7 more",)
    assert (copy / "report" / "report.html").is_file()


def test_a_training_under_way_is_told_up_to_its_last_whole_line(copy: Path) -> None:
    log = copy / "nodes" / "distill-trd" / "train.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0] + '{"step": 2, "lo')
    set_status(copy, f"{ROUND}/trd/distill", state="running")
    found = collect(copy)
    assert [len(t.steps) for t in found.trainings] == [1, 2]
    assert found.missing == (f"{ROUND}/trd/distill: running",)


def test_a_shard_that_cannot_be_read_is_named_and_the_rest_is_reported(copy: Path) -> None:
    (shard,) = list_shards(copy / "nodes" / "refine-0")
    shard.write_bytes(shard.read_bytes()[:200])
    found = collect(copy)
    assert found.refinements == ()
    assert any(line.startswith(f"{ROUND}/refine: ") and shard.name in line for line in found.missing)
    assert len(found.scores) == 9


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("problems/problems.parquet", ("problems: done, but {} is gone",)),
        ("eval-trd/results.json", (f"{ROUND}/trd/eval: done, but {{}} is gone",)),
        ("eval-trd", (f"{ROUND}/trd/eval: done, but {{}} is gone",)),
        ("distill-trd/train.jsonl", (f"{ROUND}/trd/distill: done, but {{}} is gone",)),
        ("refine-0/shard-00000.parquet", (f"{ROUND}/refine: done, but the shards of", f"{ROUND}/verify-refined: ")),
        (
            "sample-0",
            (
                f"{ROUND}/sample: done, but {{}} is gone",
                f"{ROUND}/verify-rollouts: done, but {{}} is gone",
                f"{ROUND}/refine: the rollouts that were refined are gone",
            ),
        ),
    ],
)
def test_a_finished_stage_whose_output_is_gone_is_named(copy: Path, gone: str, told: tuple[str, ...]) -> None:
    path = copy / "nodes" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    missing = collect(copy).missing
    assert len(missing) == len(told)
    for line, begin in zip(missing, told, strict=True):
        assert line.startswith(begin.format(path))


def test_a_finished_stage_with_fewer_rows_or_steps_than_it_made_is_named(copy: Path) -> None:
    (shard,) = list_shards(copy / "nodes" / "refine-0")
    write_shard(shard, read_rows(shard)[:5])
    log = copy / "nodes" / "distill-trd" / "train.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    found = collect(copy)
    assert found.missing == (
        f"{ROUND}/refine: done, but only 5 of 8 rows are there",
        f"{ROUND}/trd/distill: done, but train.jsonl has only 1 of 2 steps",
    )
    assert (the(found.refinements).rows, len(found.trainings)) == (5, 2)


def test_a_round_of_training_that_took_no_step_lacks_nothing(copy: Path) -> None:
    checkpoint = copy / "nodes" / "distill-trd"
    (checkpoint / "train.jsonl").unlink()
    by_hand(checkpoint / "run.json", lambda run: run["about"].update(steps=0))
    found = collect(copy)
    assert found.missing == ()
    assert [t.arm for t in found.trainings] == ["fkl"]


def without(path: Path, *keys: str) -> None:
    """Remove a key from a JSON file."""

    def take_out(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    by_hand(path, take_out)


@pytest.mark.parametrize(
    "keys", [("k",), ("benchmarks", BENCH, "truncated"), ("benchmarks", BENCH, "scores", "avg@2", "low")]
)
def test_results_without_a_key_are_named_and_the_rest_is_reported(copy: Path, keys: tuple[str, ...]) -> None:
    without(copy / "nodes" / "eval-trd" / "results.json", *keys)
    (told,) = collect(copy).missing
    assert told.startswith(f"{ROUND}/trd/eval: ")
    assert "results.json" in told
    assert keys == ("k",) or ".".join(keys) + ": field required" in told
    assert [(d.arm, d.against) for d in collect(copy).differences] == [("fkl", "base")]


def test_results_that_hold_other_than_k_samples_are_named(copy: Path) -> None:
    path = copy / "nodes" / "eval-trd" / "results.json"
    first = next(iter(results(copy, "trd")["benchmarks"][BENCH]["samples"]))
    by_hand(path, lambda content: content["benchmarks"][BENCH]["samples"].update({first: "1"}))
    (told,) = collect(copy).missing
    assert f"a question of {BENCH} has not 2 samples" in told


def test_many_skipped_stages_are_one_line(copy: Path) -> None:
    names = [name for name, *_ in NODES if name.startswith("seed")]
    for name in names:
        set_status(copy, name, state="skipped")
    assert collect(copy).missing == (f"8 of 10 stages were skipped: {', '.join(names[:3])} and 5 more",)


def test_a_step_with_a_wrong_value_and_one_without_any_are_named(copy: Path) -> None:
    log = copy / "nodes" / "distill-trd" / "train.jsonl"
    first, second = log.read_text().splitlines()
    log.write_text(f"{first}\n" + json.dumps({**json.loads(second), "grad_norm": "?"}) + "\n")
    log = copy / "nodes" / "distill-fkl" / "train.jsonl"
    log.write_text("{}\n" + log.read_text())
    found = collect(copy)
    assert [line.partition("; ")[0].partition(", line ")[2] for line in found.missing] == [
        "2: grad_norm: input should be a valid number, unable to parse string as a number",
        "1: step: field required",
    ]
    assert found.trainings == ()
    assert len(found.scores) == 9


@pytest.mark.parametrize("key", ["nodes", "name"])
def test_a_graph_without_a_key_is_refused_in_one_line(copy: Path, trd: Trd, key: str) -> None:
    without(copy / "graph.json", key)
    result = trd("report", copy)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"graph.json: {key}: field required" in result.stderr


def test_a_benchmark_named_like_a_broken_formula_is_drawn(copy: Path) -> None:
    for path in copy.glob("nodes/eval-*/results.json"):
        by_hand(path, lambda content: content.update(benchmarks={"$\\frac{$": content["benchmarks"][BENCH]}))
    assert "$\\frac{$" in plots(collect(copy))["scores-arms"].svg


def test_a_report_takes_the_place_of_an_earlier_one_and_of_nothing_else(copy: Path, ok: Trd) -> None:
    ok("report", copy)
    kept = [copy / "report" / name for name in ("notes.csv", "plots/own.png", "plots/training-loss-2.png")]
    for path in kept:
        path.write_text("mine")
    before = {str(p.relative_to(copy / "report")) for p in (copy / "report").rglob("*.*")}
    shutil.rmtree(copy / "nodes" / "refine-0")
    ok("report", copy)
    after = {str(p.relative_to(copy / "report")) for p in (copy / "report").rglob("*.*")}
    drawn = {f"plots/refinement-{n}-1.{kind}" for n in ("verdicts", "lengths") for kind in ("svg", "png")}
    assert before - after == {"verdicts.csv", "refinement.csv", "nll.csv", "leaks.csv", *drawn}
    assert [path.read_text() for path in kept] == ["mine"] * 3


def test_a_record_of_an_earlier_recipe_does_not_count(copy: Path) -> None:
    set_status(copy, f"{ROUND}/trd/eval", digest="of another one")
    assert collect(copy).missing == (f"1 of 10 stages have not been run: {ROUND}/trd/eval",)


def test_a_directory_that_is_no_run_is_refused(trd: Trd, tmp_path: Path) -> None:
    result = trd("report", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "is not a run directory" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_three_runs_are_refused(trd: Trd, tmp_path: Path) -> None:
    result = trd("report", "a", "b", "c")
    assert (result.exit_code, "one, or two to compare" in result.stderr) == (1, True)


# Two runs


def test_two_runs_are_compared_arm_by_arm_in_a_place_of_their_own(finished: Path, copy: Path, ok: Trd) -> None:
    write_graph(copy, name="other")
    shutil.rmtree(copy / "nodes" / "eval-fkl")
    evaluate(ok, copy / "nodes" / "eval-fkl", 0.9, 5)
    out = copy / "report-against-tiny"
    assert ok("report", finished, copy).stdout == f"{out}/report.html\n"
    assert not (copy / "report").exists(), "that of the run alone"
    between = [line for line in lines_of(out / "differences.csv") if line["family"] == "between other and tiny"]
    assert [(line["arm"], line["against"]) for line in between] == [
        ("other/trd", "tiny/trd"),
        ("other/fkl", "tiny/fkl"),
    ]
    same, changed = between
    assert float(same["value"]) == 0.0
    averages = (results(run, "fkl")["benchmarks"][BENCH]["scores"]["avg@2"]["value"] for run in (copy, finished))
    after, before = averages
    assert float(changed["value"]) == pytest.approx(after - before)
    assert float(changed["p_holm"]) == pytest.approx(min(1.0, 2 * float(changed["p_value"]))), (
        "of two: the base model is the same one"
    )
    text = (out / "report.md").read_text()
    assert text.startswith("# tiny and other\n")
    assert "- other/base against tiny/base: not compared, they are the same model" in text
    assert f"first step of {ROUND}/trd/distill, 4 of 8 rows, in other |" in text
    assert "| tiny/trd |" in text
    assert "| other/trd |" in text


def test_another_base_model_is_compared(finished: Path, copy: Path) -> None:
    path = copy / "nodes" / "eval-base" / "results.json"
    by_hand(path, lambda content: content.update(model_revision="another"))
    between = [d.arm for d in combine(collect(finished), collect(copy)).differences if "between" in d.family]
    assert between == ["copy/base", "copy/trd", "copy/fkl"]


def test_runs_of_one_name_are_told_apart_by_their_directories(finished: Path, copy: Path) -> None:
    both = combine(collect(finished), collect(copy))
    assert both.runs == ("tiny", "copy")
    assert both.arms() == ["tiny/base", "copy/base", "tiny/trd", "tiny/fkl", "copy/trd", "copy/fkl"]


def test_an_arm_that_one_run_alone_has_is_named(finished: Path, copy: Path) -> None:
    graph = json.loads((copy / "graph.json").read_text())
    for node in graph["nodes"]:
        node["arm"] = "rkl" if node["arm"] == "fkl" else node["arm"]
    (copy / "graph.json").write_text(json.dumps(graph))
    both = combine(collect(finished), collect(copy))
    assert both.notes == (
        f"tiny/{ROUND}/fkl/eval: copy has no such evaluation",
        f"copy/{ROUND}/fkl/eval: tiny has no such evaluation",
        "copy/base against tiny/base: not compared, they are the same model",
    )
    assert [d.arm for d in both.differences if d.family.startswith("between")] == ["copy/trd"]
