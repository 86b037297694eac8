"""The lab's recipes plan, its rounds are a fair comparison, and its page tells claims by figures computed by hand."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Trd
from support.report_run import evaluate
from support.tiny import build_model

from trd_cli.config.training import DistillConfig
from trd_cli.evaluation.seeds import difference_over_seeds
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.rounds import problems_a_round, sampling_of, total_steps

LAB = Path(__file__).parent.parent / "examples" / "lab"
sys.path.insert(0, str(LAB))

import claims as of_claims  # noqa: E402
import page  # noqa: E402
from figures import Onset, Scores, behind, difference, first_wrong, shares  # noqa: E402
from world import World  # noqa: E402

RECIPES = sorted(path.stem for path in LAB.glob("*.toml") if path.stem != "lab")
BASELINES = {"fkl", "fkl-clip", "rkl", "rkl-topk", "sampled", "sft", "jsd", "eopd", "fastopd", "scope", "relay"}
PROBLEM = "4a3b1c7d2e5"  # the largest digit is c's


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as run.sh makes it, with tiny models and few problems."""
    directory = tmp_path_factory.mktemp("lab")
    for name in ("teacher", "student", "student-weak", "student-strong"):
        (directory / "models").mkdir(exist_ok=True)
        build_model(directory / "models" / name, seed=len(name))
    import world

    for seed, name in enumerate(("train", "held-out", "harder")):
        out = directory / "problems" / f"{name}.parquet"
        words = ["make", "--n", "480" if name == "train" else "8", "--seed", str(seed), "--out", str(out)]
        world.main([*words, *(["--near-ties"] if name == "harder" else [])])
    return directory


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(LAB))
    monkeypatch.syspath_prepend(str(LAB))
    return place


def recipe(name: str) -> Recipe:
    return load_recipe(LAB / f"{name}.toml")


def test_these_are_the_recipes() -> None:
    of_setting = {f"{s}{form}" for s in ("opd", "opsd") for form in ("", "-rounds")}
    assert set(RECIPES) == of_setting | {"opd-quick", "knobs", "knobs-weak", "knobs-strong"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_graph_and_scores_every_arm_once_a_seed(name: str, here: Path) -> None:
    of = recipe(name)
    nodes = build_graph(of, Path("run")).nodes
    scored = [(node.arm, node.seed) for node in nodes if node.stage == "eval"]
    assert sorted(scored[1:]) == sorted((arm, seed) for arm in of.arms for seed in of.seeds)
    assert scored[0] == (None, None), "the student before training, once"
    rollouts = {node.out for node in nodes if node.stage == "sample" and node.round == 0}
    assert len(rollouts) == len(of.seeds), "all arms of a seed begin with the same rollouts"


@pytest.mark.parametrize("setting", ["opd", "opsd"])
def test_one_round_and_ten_have_the_same_steps_rows_and_problems(setting: str, here: Path) -> None:
    one, ten = recipe(setting), recipe(f"{setting}-rounds")
    assert (one.rounds, ten.rounds) == (1, 10)
    assert len(one.seeds) >= 5
    assert len(ten.seeds) >= 3
    assert {"trd", "trd-repaired"} | BASELINES == set(one.arms)
    for arm in ten.arms:
        assert total_steps(one, arm) == total_steps(ten, arm) == 30
        assert one.rounds * problems_a_round(one, arm) == ten.rounds * problems_a_round(ten, arm) == 480
        assert one.training(arm) == ten.training(arm)
    assert sampling_of(one) == sampling_of(ten)
    assert one.eval["k"] == 4


@pytest.mark.parametrize("setting", ["opd", "opsd"])
def test_teachers_along_y_o_read_no_attempt_and_turn_back_as_their_prompt_says(setting: str, here: Path) -> None:
    of = recipe(setting)
    for arm in BASELINES - {"sft"}:
        config = DistillConfig.parse(of.training(arm))
        assert config.teacher_context == "vanilla" or config.method == "relay"
        assert Path(config.prompt).name == f"vanilla-{setting}-{'q60' if arm == 'relay' else 'q30'}.jinja"
        assert Path(config.prompt).is_file()


def test_the_grid_moves_the_student_and_the_share_of_turning_back(here: Path) -> None:
    students = {name: Path(recipe(name).student).name for name in page.STUDENTS}
    assert students == {"knobs-weak": "student-weak", "knobs": "student", "knobs-strong": "student-strong"}
    for name in page.STUDENTS:
        assert {f"{rival}-{share}" for rival in ("fkl", "rkl") for share in page.SHARES} | {"trd"} == set(
            recipe(name).arms
        )


# Claims


def scores(name: str, **arms: list[list[list[float]]]) -> Scores:
    """Return scores of arms: seeds of questions of samples. An arm `base` has one seed, None.

    Wrong answers turn back.
    """
    correct = {
        arm: {(None if arm == "base" else s): {"held-out": np.array(rows)} for s, rows in enumerate(seeds)}
        for arm, seeds in arms.items()
    }
    turned = {
        arm: {seed: {bench: 1.0 - rows.mean(axis=1) for bench, rows in of.items()} for seed, of in by_seed.items()}
        for arm, by_seed in correct.items()
    }
    return Scores(name, "opd", correct, turned)


def test_a_difference_is_over_the_seeds_that_both_runs_have() -> None:
    one = scores("one", trd=[[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]], base=[[[0, 0], [1, 0]]])
    ten = scores("ten", trd=[[[1, 1], [0, 1]], [[1, 1], [1, 0]]])
    found = difference(one, "trd", ten, "trd", "held-out", "avg")
    # Seeds 0 and 1: (1 + 0.5)/2 − 0.5/2 = 0.5 and (1 + 0.5)/2 − 1/2 = 0.25.
    assert found.value == pytest.approx(0.375)
    assert difference(one, "base", one, "trd", "held-out", "pass").value == pytest.approx(-1 / 6), (
        "1, 1, 0 less 1, halved"
    )
    assert difference(one, "fkl", one, "trd", "held-out", "avg") is None
    assert difference(one, "trd", ten, "trd", "held-out", "turned").value == pytest.approx(-0.375)


def claim(name: str, lean: float, p_value: float) -> of_claims.Claim:
    return of_claims.Claim(name, "opd", name, "points", lean, lean - 1, lean + 1, lean, p_value)


def test_verdicts_follow_from_p_values_corrected_for_their_number() -> None:
    made = [claim("a", 4.0, 0.01), claim("b", -4.0, 0.001), claim("c", 4.0, 0.03), claim("d", 0.0, 0.0001)]
    found = {c.name: (round(c.p_holm, 6), c.verdict) for c in of_claims.judged(made)}
    assert found == {
        "d": (0.0004, of_claims.UNDECIDED),
        "b": (0.003, of_claims.NOT),
        "a": (0.02, of_claims.HELD),
        "c": (0.03, of_claims.HELD),
    }
    many = of_claims.judged([*made, *(claim(f"e{i}", 1.0, 0.5) for i in range(10))])
    assert many[0].verdict == of_claims.UNDECIDED, "0.01 of fourteen is no finding"
    assert of_claims.judged([claim("f", 1.0, float("nan"))])[0].verdict == of_claims.UNDECIDED
    untested = replace(claim("g", 1.0, 0.0), p_value=None, verdict=of_claims.NO_TEST)
    assert of_claims.judged([untested, claim("a", 4.0, 0.04)]) == [
        untested,
        replace(claim("a", 4.0, 0.04), p_holm=0.04, verdict=of_claims.HELD),
    ], "what is not tested is not counted"


def told(forward: float, positions: float) -> str:
    """Return the verdict of a diagnosis in which every problem has these shares behind the first wrong step."""
    sums = np.array([[[forward, 1.0], [positions, 1.0]]] * 5)
    (found,) = of_claims.judged(list(of_claims.of_shares("opd", Onset(*shares(sums), 0.9, positions, 0.3, 0.0))))
    return found.verdict


def test_a_share_of_kl_is_judged_against_that_of_the_positions_and_a_half() -> None:
    assert told(0.9, 0.6) == of_claims.HELD
    assert told(0.55, 0.6) == of_claims.NOT, "more than a half, and less than an even spread"
    assert told(0.4, 0.2) == of_claims.NOT, "more than an even spread, and no half"


def test_the_first_wrong_token_is_where_the_right_answer_does_not_go_on() -> None:
    right = "Cc7C7d2D9e5E4a3A7"
    assert World.parse(PROBLEM).solution == right
    assert first_wrong(PROBLEM, right) == 9, "none of its nine tokens"
    assert first_wrong(PROBLEM, "Bb1B1c7C8") == 0, "another route"
    assert first_wrong(PROBLEM, "Cc7C7d2D8e5E3") == 4, "a wrong sum"
    assert first_wrong(PROBLEM, "Cc7C7") == 3, "a beginning of the right answer"
    assert first_wrong(PROBLEM, "Bb1!" + right) == 0
    assert first_wrong(PROBLEM, "Cc7!" + right) == 12, "turning back from a right beginning is no wrong step"


def test_positions_behind_a_wrong_step_end_where_the_answer_turns_back() -> None:
    """A position's prefix is what stands before it: that of the wrong token is right, that of the `!` wrong."""
    assert behind(PROBLEM, "Bb1B1c7", 5).tolist() == [False, True, True, True, True]
    assert behind(PROBLEM, "Bb1!Cc7", 6).tolist() == [False, True, True, False, False, False]
    assert not behind(PROBLEM, "Cc7C7", 4).any()


def test_shares_of_sums_are_over_problems() -> None:
    sums = np.array([[[3, 4], [2.5, 4]], [[3, 4], [2.5, 4]]], dtype=float)
    by_half, beyond_positions = shares(sums)
    assert [(s.value, s.low, s.high) for s in (by_half, beyond_positions)] == [(0.75,) * 3] * 2
    assert [s.beyond for s in (by_half, beyond_positions)] == [0.25, 0.125]


# The page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """A made-up run of OPD with evaluations alone: base right at 0.2, fkl at 0.5, trd at 0.9."""
    directory = tmp_path_factory.mktemp("made")
    run, bench = directory / "runs" / "opd", directory / "held-out.parquet"
    ok("data", "make", "arithmetic", "--n", 20, "--seed", 3, "--out", bench)
    nodes, status = [], {}
    for number, (arm, seed, accuracy) in enumerate(
        [(None, None, 0.2), *(("fkl", s, 0.5) for s in (0, 1)), *(("trd", s, 0.9) for s in (0, 1))]
    ):
        evaluate(ok, run / "nodes" / f"eval-{number}", accuracy, number, str(bench))
        name = f"seed-{seed}/round-0/{arm}/eval" if arm else "base/eval"
        nodes.append(
            {
                **{"name": name, "stage": "eval", "arm": arm, "arms": [arm] if arm else [], "seed": seed},
                **{
                    "round": 0 if arm else None,
                    "out": f"nodes/eval-{number}",
                    "inputs": [],
                    "digest": name,
                    "argv": [],
                },
            }
        )
        status[name] = {"state": "done", "digest": name, "seconds": 1.0, "exit_code": 0}
    graph = {"format": "trd-graph-1", "name": "opd", "recipe": {"setting": "opd", "seeds": [0, 1]}, "nodes": nodes}
    (run / "graph.json").write_text(json.dumps(graph))
    (run / "status.json").write_text(json.dumps(status))
    return directory


def test_the_page_has_claims_scores_and_agreement(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page.main([str(made)])
    assert capsys.readouterr().out == f"{made / 'page.html'}\n"
    told = json.loads((made / "claims.json").read_text())
    assert [(c["setting"], c["name"]) for c in told] == [("opd", "pass"), ("opd", "trd fkl"), ("opd", "trd base")]
    lab = of_claims.Lab.read(made)
    avg = {arm: lab.scores["opd"].matrix(arm, "held-out", "avg") for arm in ("fkl", "trd")}
    expected = difference_over_seeds(avg["fkl"], avg["trd"], are_paired=True)
    assert told[1]["value"] == pytest.approx(100 * expected.value)
    assert told[1]["p_value"] == expected.p_value
    text = (made / "table.md").read_text()
    assert "| trd beats fkl | opd |" in text
    assert "### Scores, opd" in text
    html = (made / "page.html").read_text()
    assert "trd improves the student" in html
    assert "<script" not in html
    again = tmp_path / "again"
    shutil.copytree(made, again)
    other = [{**c, "verdict": "held" if c["name"] == "pass" else "did not hold"} for c in told]
    (again / "claims.json").write_text(json.dumps(other))
    page.main([str(made), "--against", str(again)])
    assert "### Verdicts here and in the other run" in (made / "table.md").read_text()


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [
        ("held", "held", "the same"),
        ("held", "did not hold", "opposite"),
        ("held", "undecided", "decided in one alone"),
    ],
)
def test_verdicts_of_two_runs_agree_or_not(one: str, other: str, agreed: str) -> None:
    here = [replace(claim("pass", 1.0, 0.01), verdict=one)]
    ((_, _, said),) = of_claims.agreement(here, [{"setting": "opd", "name": "pass", "verdict": other}])
    assert said == agreed
    assert of_claims.agreement(here, [{"setting": "opsd", "name": "pass", "verdict": other}]) == []
