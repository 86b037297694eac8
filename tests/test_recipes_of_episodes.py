"""Recipes with episodes, beside problems or in place of them: their graph, what they refuse, and their plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Trd
from support.tiny import build_model

from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.nodes import Graph
from trd_cli.recipes.rounds import steps_a_round

HEAD = 'setting = "opsd"\nstudent = "scripted"\n'
PROBLEMS = '[problems]\nmake = { kind = "arithmetic", n = 8, seed = 1 }\n'
EPISODES = '[episodes]\nenv = "scripted:n=12,seed=5"\n'
ARMS = '[arms.trd]\nmethod = "trd"\n[arms.rkl]\nmethod = "rkl"\n'
MIX = "[distill]\nbatch_size = 8\nmix = { math = 0.25, scripted = 0.75 }\n"


def graph(directory: Path, text: str) -> Graph:
    path = directory / "recipe.toml"
    path.write_text(text)
    return build_graph(load_recipe(path), directory / "run")


def names(made: Graph, stage: str) -> list[str]:
    return [node.name.removeprefix("seed-0/round-0/") for node in made.nodes if node.stage == stage]


def test_a_recipe_of_episodes_alone_samples_refines_and_trains_along_them(tmp_path: Path) -> None:
    made = graph(tmp_path, HEAD + EPISODES + "sample = { max_turns = 7 }\n[sample]\nmax_tokens = 32\n" + ARMS)
    assert names(made, "problems") == []
    assert (names(made, "sample"), names(made, "refine")) == (["sample"], ["refine"])
    [sample] = [node.config for node in made.nodes if isinstance(node.config, SampleConfig)]
    assert (sample.env, sample.problems, sample.max_turns, sample.max_tokens) == ("scripted:n=12,seed=5", None, 7, 32)


def test_problems_and_episodes_are_two_sets_of_one_training(tmp_path: Path) -> None:
    text = HEAD + PROBLEMS + EPISODES + 'refine = { engine = "scripted", max_tokens = 99 }\n[refine]\nmax_tokens = 50\n'
    made = graph(tmp_path, text + MIX + ARMS)
    assert names(made, "sample") == ["sample", "episodes/sample"]
    assert names(made, "refine") == ["refine", "episodes/refine"]
    refining = {node.source: node.config for node in made.nodes if isinstance(node.config, RefineConfig)}
    assert (refining["problems"].max_tokens, refining["episodes"].max_tokens) == (50, 99)
    assert (refining["problems"].engine, refining["episodes"].engine) == ("auto", "scripted")
    for arm, kind in (("trd", "refined"), ("rkl", "rollouts")):
        [trained] = [node for node in made.nodes if node.stage == "distill" and node.arm == arm]
        read = {f"seed-0/round-0/{of}verify-{kind}" for of in ("", "episodes/")}
        assert {made[name].out for name in read} == set(trained.config.inputs)
        assert read <= set(trained.inputs)
        assert trained.config.mix == {"math": 0.25, "scripted": 0.75}
        assert DistillConfig.parse({"mix": [w for w in trained.argv if "=" in w]}).mix == trained.config.mix
    rollouts = {made[f"seed-0/round-0/{of}sample"].out for of in ("", "episodes/")}
    assert rollouts == {*next(node for node in made.nodes if node.name.endswith("trd/distill")).config.parents}


def slices(made: Graph) -> set[tuple[str, int, int, int]]:
    """Return the source, the round, and the slice of the source of each set of rollouts of the first arm."""
    drawn = [n for n in made.nodes if n.stage == "sample" and n.arm in (None, "trd")]
    return {(node.source, node.round, node.config.skip, node.config.limit) for node in drawn}


def test_rounds_take_as_many_of_each_as_their_steps_and_the_mix_need(tmp_path: Path) -> None:
    episodes = EPISODES.replace("n=12", "n=24")
    made = graph(tmp_path, HEAD + "rounds = 2\nsteps_per_round = 2\n" + PROBLEMS + episodes + MIX + ARMS)
    of_problems = {("problems", 0, 0, 4), ("problems", 1, 4, 4)}
    assert slices(made) == of_problems | {("episodes", 0, 0, 12), ("episodes", 1, 12, 12)}


def test_without_steps_a_pass_is_over_the_rows_of_both(tmp_path: Path) -> None:
    text = HEAD + "rounds = 2\nproblems_per_round = 3\n" + PROBLEMS + EPISODES + "per_round = 6\nsample = { n = 2 }\n"
    made = graph(tmp_path, text + "[distill]\nbatch_size = 4\n" + ARMS)
    of_problems = {("problems", 0, 0, 3), ("problems", 1, 3, 3)}
    assert slices(made) == of_problems | {("episodes", 0, 0, 6), ("episodes", 1, 6, 6)}
    assert steps_a_round(made.recipe, "trd") == 4, "3 + 2 · 6 rows in steps of 4"


def test_another_environment_is_another_set_and_prompts_of_mathematics_do_not_count_for_it(tmp_path: Path) -> None:
    one = graph(tmp_path, HEAD + PROBLEMS + EPISODES + ARMS)
    other = graph(tmp_path, HEAD + PROBLEMS + EPISODES.replace("n=12", "n=6") + ARMS)
    same = {node.name for node in one.nodes if node.digest == other[node.name].digest}
    assert "seed-0/round-0/refine" in same
    assert not {"seed-0/round-0/episodes/sample", "seed-0/round-0/trd/distill"} & same
    alone = graph(tmp_path, HEAD + PROBLEMS + ARMS)
    assert alone["seed-0/round-0/refine"].digest == one["seed-0/round-0/refine"].digest


def test_an_evaluation_may_play_episodes_with_or_without_a_benchmark(tmp_path: Path) -> None:
    text = HEAD + EPISODES + ARMS + '[eval]\nenv = "scripted:n=3,seed=99"\n'
    for more, bench in (("", None), ('bench = "arithmetic:n=4"\n', "arithmetic:n=4")):
        evaluated = [n.config for n in graph(tmp_path, text + more).nodes if isinstance(n.config, EvalConfig)]
        assert {(config.env, config.bench) for config in evaluated} == {(("scripted:n=3,seed=99",), bench)}


WRONG = {
    "an arm of that name": (
        HEAD + PROBLEMS + EPISODES + ARMS.replace("trd]", "episodes]"),
        "[arms.episodes]; expected another name",
    ),
    "neither": (HEAD + ARMS, "no [problems]"),
    "an environment that is none": (
        HEAD + EPISODES.replace("scripted:", "zork:") + ARMS,
        "[episodes] env zork:n=12,seed=5: unknown environment",
    ),
    "an environment among the options": (
        HEAD + EPISODES + '[sample]\nenv = "scripted"\n' + ARMS,
        "[sample] env; expected env in the table [episodes]",
    ),
    "an unknown key": (HEAD + EPISODES + "turns = 3\n" + ARMS, "turns"),
    "a wrong option of episodes": (
        HEAD + PROBLEMS + EPISODES + "sample = { max_turns = 0 }\n" + ARMS,
        "[episodes.sample] max_turns = 0",
    ),
    "an option of episodes for problems": (HEAD + PROBLEMS + "[sample]\nmax_turns = 3\n" + ARMS, "max_turns"),
    "shares that are no whole": (
        HEAD + EPISODES + "[distill]\nmix = { math = 0.5 }\n" + ARMS,
        "mix math=0.5, which come to 0.5",
    ),
    "steps without shares": (
        HEAD + "steps_per_round = 1\n" + PROBLEMS + EPISODES + ARMS,
        "steps_per_round = 1 with problems and episodes, and arm trd without mix",
    ),
    "no share": (
        HEAD + "steps_per_round = 1\n" + PROBLEMS + EPISODES + "[distill]\nmix = { math = 1 }\n" + ARMS,
        "[distill] mix, which has no share for episodes",
    ),
    "too few episodes": (
        HEAD + "rounds = 3\n" + EPISODES + "per_round = 5\n" + ARMS,
        "3 rounds of 5 episodes, and there are 12; expected at least 15 episodes",
    ),
    "two lengths of a round": (
        HEAD + "steps_per_round = 1\n" + EPISODES + "per_round = 5\n" + ARMS,
        "[episodes] per_round with steps_per_round = 1",
    ),
    "episodes that are continued": (
        HEAD + EPISODES + '[arms.trd]\nmethod = "trd"\nrefine = { mode = "continue" }\n',
        '[arms.trd] along episodes that are refined with mode = "continue"',
    ),
}


@pytest.mark.parametrize(("text", "told"), WRONG.values(), ids=WRONG)
def test_a_recipe_of_episodes_that_cannot_be_is_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        graph(tmp_path, text)
    line = re.sub("\x00(.*?)\x00", r"\1", str(refused.value))
    assert told in line
    assert "\n" not in line


def test_a_plan_tells_of_the_episodes(tmp_path: Path, ok: Trd) -> None:
    build_model(tmp_path / "model")
    path = tmp_path / "recipe.toml"
    short = "[sample]\nmax_tokens = 16\n[refine]\nmax_tokens = 16\n"
    path.write_text(HEAD.replace("scripted", "model") + PROBLEMS + EPISODES + MIX + short + ARMS)
    planned = ok("plan", path, "--run", tmp_path / "run").stdout
    assert "12 episodes of scripted, at most 30 turns of 16 tokens" in planned
    path.write_text(HEAD.replace("scripted", "model") + EPISODES + ARMS)
    planned = ok("plan", path, "--run", tmp_path / "run").stdout
    assert "12 episodes of scripted, at most 30 turns of 64 tokens\n" in planned
    assert "one sequence of 2,048 tokens in flight" in planned, "an episode may fill the model's context"
