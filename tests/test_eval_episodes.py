"""trd eval --env: success rate, reward, actions that were not valid and turns, with intervals over games."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.sets import rows_of

from trd_cli.records import Trajectory

ENV = "scripted:n=6,seed=3"
PLAY = ("--k", 2, "--max-turns", 6, "--engine-arg", "accuracy=0.6")


def evaluate(ok: Trd, out: Path, *more: object) -> dict[str, Any]:
    """Evaluate the scripted model; return its results."""
    ok("eval", "scripted", *PLAY, *more, "--out", out)
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return an evaluation of six games, two episodes each."""
    directory = tmp_path_factory.mktemp("eval") / "e"
    evaluate(ok, directory, "--env", ENV)
    return directory


@pytest.fixture(scope="module")
def results(made: Path) -> dict[str, Any]:
    return json.loads((made / "results.json").read_text())["benchmarks"][ENV]


def games(rows: list[Trajectory]) -> list[list[Trajectory]]:
    """Return the episodes of each game."""
    found: dict[str, list[Trajectory]] = {}
    for row in rows:
        found.setdefault(row.problem_id, []).append(row)
    return list(found.values())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_success_reward_actions_and_turns_are_means_over_games_of_means_over_episodes(
    made: Path, results: dict[str, Any]
) -> None:
    rows = rows_of(made)
    assert len(rows) == 12
    assert {row.stop_reason for row in rows} > {"solved"}, "some are solved and some are not"
    solved = mean([mean([row.stop_reason == "solved" for row in game]) for game in games(rows)])
    reward = mean([mean([row.episode_reward for row in game]) for game in games(rows)])
    turns = mean([mean([len(row.turns) for row in game]) for game in games(rows)])
    invalid = mean([mean([mean([not t.valid for t in row.turns]) for row in game]) for game in games(rows)])
    figures = results["episodes"]
    assert results["scores"]["avg@2"]["value"] == pytest.approx(solved)
    assert results["scores"]["pass@2"]["value"] >= solved
    assert "maj@2" not in results["scores"]
    assert [figures[name]["value"] for name in ("reward", "invalid_actions", "turns")] == pytest.approx(
        [reward, invalid, turns]
    )
    for estimate in (results["scores"]["avg@2"], *(figures[name] for name in ("reward", "invalid_actions", "turns"))):
        assert estimate["low"] < estimate["value"] < estimate["high"]
        assert estimate["questions"] == 6
    ends = figures["stop_reasons"]
    assert sum(ends.values()) == 12
    assert all(ends[reason] == sum(row.stop_reason == reason for row in rows) for reason in ends)


def test_tokens_are_those_that_the_model_wrote(made: Path, results: dict[str, Any]) -> None:
    rows = rows_of(made)
    assert results["tokens"]["total"] == sum(row.author.count(0) for row in rows)
    assert results["tokens"]["total"] < sum(len(row.response_token_ids) for row in rows)


def test_the_tables_have_the_figures_of_episodes(made: Path, results: dict[str, Any]) -> None:
    lines = {(row["score"], row["k"]): row for row in csv.DictReader((made / "results.csv").open())}
    assert float(lines["turns", "2"]["value"]) == results["episodes"]["turns"]["value"]
    assert float(lines["invalid_actions", "2"]["high"]) == results["episodes"]["invalid_actions"]["high"]
    text = (made / "results.md").read_text()
    assert f"| {ENV} | avg@2 |" in text
    assert f"{results['episodes']['stop_reasons']['solved']} solved" in text


def test_the_same_command_again_and_rescoring_give_the_same_bytes(made: Path, tmp_path: Path, ok: Trd) -> None:
    copy = shutil.copytree(made, tmp_path / "e")
    before = {name: (made / name).read_bytes() for name in ("results.json", "results.md", "results.csv")}
    for again in (("eval", "scripted", *PLAY, "--env", ENV, "--out", copy), ("eval", "--rescore", copy)):
        assert "making" not in ok(*again).stderr, "what rows tell of a game is not made again"
        assert {name: (copy / name).read_bytes() for name in before} == before
    ok("eval", "--rescore", copy, "--k", 1, "--out", tmp_path / "one")
    one = json.loads((tmp_path / "one" / "results.json").read_text())["benchmarks"][ENV]
    first = [len(row.turns) for row in rows_of(made) if row.sample_index == 0]
    assert one["episodes"]["turns"]["value"] == pytest.approx(mean(first))


def test_n_takes_the_place_of_the_specs_and_the_same_games_are_the_same_rows(
    made: Path, tmp_path: Path, ok: Trd
) -> None:
    few = evaluate(ok, tmp_path / "few", "--env", "scripted:seed=3", "--n", 6)
    assert list(few["benchmarks"]) == [ENV]
    assert rows_of(tmp_path / "few") == rows_of(made)


def test_the_parts_of_a_job_array_give_the_results_of_the_whole(made: Path, tmp_path: Path, ok: Trd) -> None:
    for part in ("2/2", "1/2"):
        ok("eval", "scripted", *PLAY, "--env", ENV, "--shard", part, "--out", tmp_path / "parts")
    for name in ("results.md", "results.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (made / name).read_bytes()
    assert "\teval\tcomplete\t12\t0\t" in ok("status", tmp_path / "parts").stdout


def test_a_part_makes_the_games_of_all_environments_before_it_plays_the_first(tmp_path: Path, ok: Trd) -> None:
    both = ("scripted:n=8,seed=0", "scripted:rooms=6,n=8,seed=0")
    ok("eval", "scripted", "--env", both[0], "--env", both[1], "--shard", "1/2", "--out", tmp_path)
    assert {row.source for row in rows_of(tmp_path)} == set(both)


def test_episodes_beside_a_benchmark_are_scored_with_one_start_of_the_engine(tmp_path: Path, ok: Trd) -> None:
    both = evaluate(ok, tmp_path / "e", "--bench", "arithmetic:n=4,seed=2", "--env", ENV, "--limit", 3)
    question, game = both["benchmarks"]["arithmetic:n=4,seed=2"], both["benchmarks"][ENV]
    assert (question["limit"], game["limit"]) == (3, 3)
    assert ("maj@2" in question["scores"], "episodes" in question) == (True, False)
    assert sum(game["verdicts"].values()) == sum(question["verdicts"].values()) == 6


def test_two_evaluations_are_compared_game_by_game(made: Path, tmp_path: Path, ok: Trd) -> None:
    right = evaluate(ok, tmp_path / "right", "--env", ENV, "--engine-arg", "accuracy=1")["benchmarks"][ENV]
    assert right["scores"]["avg@2"]["value"] == 1
    assert right["episodes"]["invalid_actions"]["value"] == 0
    ok("compare", made, tmp_path / "right", "--out", tmp_path / "c")
    (compared,) = json.loads((tmp_path / "c" / "compare.json").read_text())["benchmarks"].values()
    failed = [
        name
        for name, marks in json.loads((made / "results.json").read_text())["benchmarks"][ENV]["samples"].items()
        if "0" in marks
    ]
    assert compared["gained"] == failed
    assert compared["difference"]["questions"] == 6


def test_a_game_that_crashes_costs_its_rows_and_is_no_failure_of_the_model(tmp_path: Path, ok: Trd) -> None:
    env = "scripted:fault=crash,at_seed=4,at_turn=1,n=3,seed=3"
    bench = evaluate(ok, tmp_path / "e", "--env", env, "--max-errors", 2)["benchmarks"][env]
    assert bench["verdicts"]["error"] == 2
    assert bench["scores"]["avg@2"]["questions"] == bench["episodes"]["turns"]["questions"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "no --bench; expected a benchmark, --env SPEC or --rescore DIR"),
        (("--bench", "arithmetic", "--n", 3), "--n without --env"),
        (("--bench", "arithmetic", "--max-turns", 3), "--max-turns without --env"),
        (("--env", "scripted:n=2", "--env", "scripted:n=2,seed=0"), "--env has scripted:n=2,seed=0 twice"),
        (("--env", "nowhere"), "unknown environment"),
        (("--rescore", ".", "--env", "scripted"), "--env with --rescore"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    options: tuple[object, ...], said: str, tmp_path: Path, trd: Trd
) -> None:
    model = () if "--rescore" in options else ("scripted",)
    refused = trd("eval", *model, *options, *([] if "--rescore" in options else ["--out", tmp_path / "e"]))
    assert refused.exit_code == 1
    assert said in refused.stderr
    assert not (tmp_path / "e").exists()


def test_a_dry_run_shows_the_first_prompt_and_the_limits(tmp_path: Path, ok: Trd) -> None:
    said = ok("eval", "scripted", *PLAY, "--env", ENV, "--dry-run", "--out", tmp_path / "e").stderr
    assert "6 episodes × 2 of at most 6 turns; a turn: T 0.6" in said
    assert "would make 12 rows" in said
    assert "at most 64 new tokens in each of at most 6 turns" in said
    assert not (tmp_path / "e").exists()
