"""The recipes in examples/recipes: each parses, agrees with its papers, and runs scripted up to training."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import Trd
from support.sets import iter_rows
from support.tiny import build_model

from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.nodes import Graph
from trd_cli.recipes.recipe import Recipe
from trd_cli.training.trainer import rate_at
from trd_cli.trajectories.shards import list_shards

RECIPES = Path(__file__).parent.parent / "examples" / "recipes"
ROOM = RECIPES.parent.parent / "trd_cli" / "recipes"
PAPER = RECIPES / "paper"
# Parts that other recipes extend.
PARTS = {PAPER / f"{name}.toml" for name in ("base", "opd", "opsd", "math", "code", "arms", "arms-opd", "arms-opsd")}
WHOLE = sorted(path for path in RECIPES.rglob("*.toml") if path not in PARTS)
STUDENTS = {"qwen3-1.7b": "Qwen/Qwen3-1.7B", "qwen3-4b": "Qwen/Qwen3-4B-Instruct-2507", "qwen3-8b": "Qwen/Qwen3-8B"}
MATRIX = [
    (setting, task, size)
    for setting in ("opd", "opsd")
    for task in ("math", "code")
    for size in STUDENTS
    if setting == "opsd" or size != "qwen3-8b"
]


def short(path: Path) -> str:
    return path.relative_to(RECIPES).with_suffix("").as_posix()


def graph_of(path: Path, directory: Path = Path("run")) -> Graph:
    return build_graph(load_recipe(path), directory)


def one(graph: Graph, kind: type, arm: str | None = None) -> Any:
    """Return the configuration of the only node of a kind, or of an arm's one."""
    configs = [n.config for n in graph.nodes if isinstance(n.config, kind) and (arm is None or n.arm == arm)]
    assert len(configs) == 1
    return configs[0]


def paper(setting: str, task: str, size: str) -> Path:
    return PAPER / f"{setting}-{task}-{size}.toml"


def test_these_are_the_recipes() -> None:
    others = {
        "cpu-rounds",
        "cpu-smoke",
        "fu2026",
        "fu2026-multitask",
        "on-policy-40",
        "prefix-smoke",
        "released-code",
        "subset-ablation",
        "textworld-smoke",
    }
    assert {short(path) for path in WHOLE} == {short(paper(*each)) for each in MATRIX} | others
    assert all(path.is_file() for path in PARTS)


@pytest.mark.parametrize("page", [RECIPES / "README.md", ROOM / "README.md"], ids=["recipes", "room"])
def test_the_recipes_in_the_readmes_are_recipes(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    path, arms = tmp_path / "recipe.toml", set()
    for text in blocks:
        path.write_text(text.replace('"paper/', f'"{PAPER}/').replace('"examples/', f'"{RECIPES.parent}/'))
        arms |= set(load_recipe(path).arms)
    assert arms & {"jsd", "cold"}


# Facts of arXiv 2606.08432 and its released scripts


@pytest.mark.parametrize(("setting", "task", "size"), MATRIX)
def test_the_paper_s_models_problems_and_arms(setting: str, task: str, size: str) -> None:
    recipe: Recipe = load_recipe(paper(setting, task, size))
    assert (recipe.setting, recipe.student, recipe.rounds) == (setting, STUDENTS[size], 1)
    assert recipe.teacher == ("Qwen/Qwen3-8B" if setting == "opd" else None)
    preset, file = {"math": ("deepscaler", "agentica-org/DeepScaleR-Preview-Dataset"), "code": ("taco", "BAAI/TACO")}[
        task
    ]
    assert (recipe.problems["import"]["preset"], recipe.problems["import"]["file"]) == (preset, file)
    assert set(recipe.arms) == {"fkl", "fkl-clip", "rkl", "rkl-topk", "trd"}


@pytest.mark.parametrize(("setting", "task", "size"), MATRIX)
def test_the_paper_s_generation(setting: str, task: str, size: str) -> None:
    graph = graph_of(paper(setting, task, size))
    sample, refine = one(graph, SampleConfig), one(graph, RefineConfig)
    for config in (sample, refine):
        assert (config.temperature, config.top_p, config.top_k, config.max_tokens) == (0.6, 0.95, 20, 16384)
    assert (sample.n, sample.max_prompt_tokens, sample.max_model_len) == (1, 2048, 18432)
    assert sample.max_reference_tokens == {"opd": None, "opsd": 4096}[setting]
    assert refine.max_model_len == {"opd": 34816, "opsd": 38912}[setting]


@pytest.mark.parametrize(("setting", "task", "size"), MATRIX)
def test_the_paper_s_update(setting: str, task: str, size: str) -> None:
    graph = graph_of(paper(setting, task, size))
    trainings = {n.arm: n.config for n in graph.nodes if isinstance(n.config, DistillConfig)}
    assert len(trainings) == 5
    for config in trainings.values():
        assert (config.lora, config.lora_rank, config.lora_alpha, config.lora_dropout) == (True, 64, 128.0, 0.05)
        assert config.lora_targets == ()
        assert (config.learning_rate, config.warmup_ratio, config.min_lr_ratio) == (5e-6, 0.1, 0.1)
        assert (config.weight_decay, config.max_grad_norm, config.batch_size, config.epochs) == (0.005, 1.0, 128, 1)
        assert (config.subset, config.reduction, config.eos) == ("all", "sequence", True)
        assert config.teacher_weights == {"opd": "round", "opsd": "initial"}[setting]
    lengths = {arm: config.max_length for arm, config in trainings.items()}
    along_y_o, along_y_r = {"opd": (18432, 34816), "opsd": (22528, 38912)}[setting]
    assert lengths == {**dict.fromkeys(trainings, along_y_o), "trd": along_y_r}


def test_the_paper_s_variants() -> None:
    graph = graph_of(paper("opd", "math", "qwen3-1.7b"))

    def variant(arm: str) -> tuple[Any, ...]:
        config = one(graph, DistillConfig, arm)
        return config.objective, config.stage, config.teacher_context, config.clip_position

    assert variant("fkl") == ("forward-kl", "rollout", "vanilla", None)
    assert variant("fkl-clip") == ("forward-kl", "rollout", "vanilla", 0.1)
    assert variant("rkl") == ("reverse-kl", "rollout", "vanilla", None)
    assert variant("rkl-topk") == ("reverse-kl-topk", "rollout", "vanilla", None)
    assert one(graph, DistillConfig, "rkl-topk").top_k == 32
    assert variant("trd") == ("forward-kl", "refined", "refine", None)


@pytest.mark.parametrize(("setting", "task", "size"), MATRIX)
def test_the_paper_s_evaluation(setting: str, task: str, size: str) -> None:
    graph = graph_of(paper(setting, task, size))
    evaluations = [n.config for n in graph.nodes if isinstance(n.config, EvalConfig)]
    assert len(evaluations) == 6, "the starting model and five arms"
    for config in evaluations:
        assert (config.temperature, config.top_p, config.k) == (0.6, 0.95, 16)
        assert (config.bench, config.max_tokens) == {
            "math": ("aime24,aime25,hmmt25,beyondaime,amobench", 38912),
            "code": ("humaneval+,mbpp+,livecodebench", 16384),
        }[task]


@pytest.mark.parametrize("path", [paper("opd", "math", "qwen3-4b"), RECIPES / "subset-ablation.toml"], ids=short)
def test_the_arms_share_one_set_of_rollouts_and_one_of_refined_rows(path: Path) -> None:
    stages = [node.stage for node in graph_of(path).nodes]
    assert (stages.count("sample"), stages.count("refine"), stages.count("verify")) == (1, 1, 2)
    assert stages.count("distill") == len(load_recipe(path).arms)


def test_the_ablation_has_four_subsets_along_y_r_and_two_along_y_o() -> None:
    graph = graph_of(RECIPES / "subset-ablation.toml")
    arms = {(n.config.stage, n.config.subset) for n in graph.nodes if isinstance(n.config, DistillConfig)}
    refined = {("refined", subset) for subset in ("all", "correct", "incorrect", "repaired")}
    assert arms == refined | {("rollout", "correct"), ("rollout", "incorrect")}


def test_the_released_code_renders_raw_text_averages_over_tokens_and_trains_on_no_end() -> None:
    graph, papers = graph_of(RECIPES / "released-code.toml"), graph_of(paper("opd", "math", "qwen3-1.7b"))
    assert (one(graph, SampleConfig).render, one(graph, RefineConfig).render) == ("raw-line", "raw-line")
    own = {"reduction": "token", "eos": False, "lora_dropout": 0.0}
    for arm in load_recipe(RECIPES / "released-code.toml").arms:
        assert differing(one(graph, DistillConfig, arm), one(papers, DistillConfig, arm)) == own
    assert differing(one(graph, SampleConfig), one(papers, SampleConfig)) == {"render": "raw-line"}
    assert differing(one(graph, RefineConfig), one(papers, RefineConfig)) == {"render": "raw-line"}


def differing(one: Any, other: Any) -> dict[str, Any]:
    """Return the options in which two configurations of a stage differ, with the first one's values, except paths."""
    ours, theirs = one.model_dump(), other.model_dump()
    return {key: ours[key] for key in ours.keys() - {"inputs", "parents", "out"} if ours[key] != theirs[key]}


def test_fu_et_al_compare_the_sampled_token_with_the_teacher_s_top_32() -> None:
    graph = graph_of(RECIPES / "fu2026.toml")
    sample = one(graph, SampleConfig)
    assert (sample.temperature, sample.top_p, sample.top_k, sample.max_tokens) == (1.0, 0.9, 0, 16384)
    assert (sample.n, sample.max_prompt_tokens, sample.max_model_len) == (1, 2048, 18432)
    one_token, top_k = (one(graph, DistillConfig, arm) for arm in ("sampled", "top-k"))
    for config in (one_token, top_k):
        assert (config.learning_rate, config.batch_size, config.mask_tokens) == (2e-6, 128, ("special",))
        # Equation 6 is a mean over the tokens of a batch; there is no warm-up, and the rate is constant.
        assert (config.reduction, config.warmup_ratio, config.min_lr_ratio) == ("token", 0.0, 1.0)
        assert (config.weight_decay, config.max_grad_norm, config.epochs) == (0.01, 1.0, 1)
        assert (config.lora, config.temperature, config.eos, config.max_length) == (False, 1.0, True, 18432)
        assert {rate_at(i, 50, config.warmup_ratio, config.min_lr_ratio) for i in range(50)} == {1.0}
    assert (one_token.objective, one_token.estimator) == ("sampled", "k1")
    assert (top_k.objective, top_k.top_k, top_k.top_k_mode) == ("reverse-kl-topk", 32, "renormalise")
    assert not [n for n in graph.nodes if n.stage == "refine"]


def test_the_multi_task_runs_of_fu_et_al_take_half_of_each_step_from_either_task() -> None:
    graph, of_one_task = graph_of(RECIPES / "fu2026-multitask.toml"), graph_of(RECIPES / "fu2026.toml")
    drawn = {n.source: n.config for n in graph.nodes if isinstance(n.config, SampleConfig)}
    assert (drawn["problems"].limit, drawn["episodes"].limit, drawn["problems"].max_tokens) == (3200, 3200, 16384)
    assert (drawn["episodes"].max_turns, drawn["episodes"].max_tokens, drawn["episodes"].top_p) == (30, 512, 0.9)
    for arm in ("sampled", "top-k"):
        own = differing(one(graph, DistillConfig, arm), one(of_one_task, DistillConfig, arm))
        assert own == {"learning_rate": 1e-6, "mix": {"math": 0.5, "episode": 0.5}, "steps": 50}
        assert len(one(graph, DistillConfig, arm).inputs) == 2


def test_the_smoke_run_has_five_arms_of_the_embedded_model_and_questions_of_its_own() -> None:
    recipe = load_recipe(RECIPES / "cpu-smoke.toml")
    assert (recipe.student, recipe.setting, recipe.rounds, len(recipe.arms)) == ("smollm2-135m", "opsd", 1, 5)
    made = recipe.problems["make"]
    assert made["seed"] != 2
    assert "seed=2" in recipe.eval["bench"]


def test_the_answers_to_prefix_failure_run_on_rows_of_the_smoke_run_s_size() -> None:
    graph, smoke = graph_of(RECIPES / "prefix-smoke.toml"), load_recipe(RECIPES / "cpu-smoke.toml")
    assert [node.stage for node in graph.nodes].count("sample") == 1
    drawn = one(graph, SampleConfig)
    assert drawn.n * graph.recipe.problems["make"]["n"] == smoke.problems["make"]["n"]
    trainings = {n.arm: n.config for n in graph.nodes if isinstance(n.config, DistillConfig)}
    assert {arm: config.method for arm, config in trainings.items()} == {
        **{name: name for name in ("trd", "sampled", "fastopd", "scope", "relay")},
        "continued": "trd",
    }
    refined = {
        graph[name].config.mode
        for config in trainings
        for name in graph.needed_by([f"seed-0/round-0/{config}/distill"])
        if graph[name].stage == "refine"
    }
    assert refined == {"rewrite", "continue", "relay"}
    for arm in ("sampled", "fastopd", "scope"):
        assert not trainings[arm].is_drawn_otherwise("rollout", drawn.temperature, drawn.top_p, drawn.top_k)
    assert trainings["fastopd"].max_response_tokens < drawn.max_tokens
    # The teacher of the loss reads what it read when it wrote its legs.
    vanilla = (RECIPES.parent.parent / "prompts" / "vanilla-opsd-math.jinja").resolve()
    for arm in ("relay", "continued"):
        assert Path(one(graph, RefineConfig, arm).prompt) == vanilla


def test_forty_rounds_are_the_paper_s_update_as_one_training_on_chunks_of_its_problems() -> None:
    path, papers = RECIPES / "on-policy-40.toml", graph_of(paper("opd", "math", "qwen3-1.7b"))
    recipe, graph = load_recipe(path), graph_of(path)
    assert (recipe.rounds, list(recipe.arms), recipe.is_continued) == (40, ["rkl", "trd"], True)
    for arm in recipe.arms:
        trainings = [node.config for node in graph.nodes if node.stage == "distill" and node.arm == arm]
        assert len(trainings) == 40
        for config in trainings:
            once = {key for key in differing(config, one(papers, DistillConfig, arm)) if key != "model"}
            assert once - {"continue_from"} == {"steps", "total_steps"}
            assert (config.steps, config.total_steps, config.batch_size) == (7, 280, 128)
        assert [config.continue_from is None for config in trainings] == [True] + [False] * 39
    slices = [(n.config.skip, n.config.limit) for n in graph.nodes if n.stage == "sample" and n.arm in (None, "trd")]
    assert slices == [(896 * number, 896) for number in range(40)]
    assert 40 * 896 <= 40_315, "the problems of DeepScaleR"
    assert {n.config.temperature for n in graph.nodes if n.stage == "sample"} == {0.6}


def test_the_rounds_on_a_cpu_are_six_of_one_arm_of_the_smoke_run() -> None:
    graph = graph_of(RECIPES / "cpu-rounds.toml")
    steps = [(n.config.steps, n.config.total_steps) for n in graph.nodes if n.stage == "distill"]
    assert steps == [(4, 24)] * 6
    smoke = one(graph_of(RECIPES / "cpu-smoke.toml"), DistillConfig, "trd-repaired")
    first = next(n.config for n in graph.nodes if n.stage == "distill")
    assert differing(first, smoke) == {"steps": 4, "total_steps": 24}
    assert {n.config.bench for n in graph.nodes if n.stage == "eval"} == {"arithmetic:n=20,seed=2"}


# With the scripted engine

ROWS = {
    "math": {"problem": "What is 3 + 4?", "solution": "3 + 4 = 7.", "answer": "7"},
    "code": {
        "question": "Print the sum of two numbers.",
        "starter_code": "",
        "solutions": json.dumps(["print(sum(map(int, input().split())))"]),
        "input_output": json.dumps({"inputs": ["1 2"], "outputs": ["3"]}),
    },
}


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Path]:
    """Enter a run directory: the nodes' paths are relative to it."""
    before, run = Path.cwd(), tmp_path / "run"
    run.mkdir()
    os.chdir(run)
    yield run
    os.chdir(before)


def scripted(path: Path, directory: Path) -> Path:
    """Return a recipe that differs only in its models and in a few problems that are here."""
    recipe = load_recipe(path)
    own: dict[str, Any] = {"extends": str(path), "student": "scripted"}
    if recipe.teacher:
        own["teacher"] = "scripted"
    if recipe.episodes:
        own |= {"episodes": {"env": "scripted:n=4"}, "distill": {"batch_size": 4}}
        own |= {"steps_per_round": 1} if recipe.steps_per_round else {}
    if "make" in (recipe.problems or {}):
        own["problems"] = {"make": {"n": 4 if recipe.rounds == 1 else 96}}
    elif recipe.problems:
        task = {"deepscaler": "math", "taco": "code"}[recipe.problems["import"]["preset"]]
        file = directory / "rows.jsonl"
        file.write_text(json.dumps(ROWS[task]) + "\n")
        own["problems"] = {"import": {"file": str(file)}}
    written = directory / "scripted.toml"
    written.write_text(tomli_w.dumps(own))
    return written


@pytest.mark.parametrize("path", WHOLE, ids=short)
def test_a_recipe_shows_its_graph_and_its_first_prompts(path: Path, ok: Trd, tmp_path: Path) -> None:
    shown = ok("run", scripted(path, tmp_path), "--dry-run", "--until", "distill", "--out", tmp_path / "run").stdout
    for arm in load_recipe(path).arms:
        assert f"seed-0/round-0/{arm}/distill" in shown
    assert len(shown.partition("──")[0].splitlines()) < 30
    assert "teacher reads:" in shown
    assert not (tmp_path / "run").exists()


def test_forty_rounds_have_a_plan_that_one_reads(ok: Trd, tmp_path: Path) -> None:
    models = {name: str(build_model(tmp_path / name)) for name in ("student", "teacher")}
    own = {
        "extends": str(RECIPES / "on-policy-40.toml"),
        **models,
        "problems": {"make": {"kind": "arithmetic", "n": 35_840, "seed": 1}},
        # What a model of 2,048 tokens takes.
        "sample": {"max_tokens": 64, "max_model_len": 512},
        "refine": {"max_tokens": 64, "max_model_len": 1024},
        "eval": False,
    }
    (tmp_path / "own.toml").write_text(tomli_w.dumps(own))
    rates = ("--sample-rate", 5000, "--train-rate", 1000)
    lines = ok("plan", tmp_path / "own.toml", "--run", tmp_path / "run", *rates).stdout.splitlines()
    assert len(lines) < 45
    assert "  ok      arm rkl, trd: 40 rounds of 7 steps (896 problems), one training of 280 steps" in lines
    assert any(f"distill: at most {2 * 280 * 128 * 64:,} response tokens" in line for line in lines)
    assert any("1 device " in line and "hours" in line for line in lines)


@pytest.mark.parametrize("path", WHOLE, ids=short)
def test_a_recipe_s_rows_are_made_by_the_scripted_engine(path: Path, ok: Trd, tmp_path: Path, inside: Path) -> None:
    graph = graph_of(scripted(path, tmp_path), inside)
    stages = ("problems", "sample", "verify", "refine")
    # A relay compares two real models at every token.
    relayed = graph.made_from(
        n.name for n in graph.nodes if isinstance(n.config, RefineConfig) and n.config.mode == "relay"
    )
    # A later round needs the student of the one before.
    made = [n for n in graph.nodes if n.stage in stages and not n.round and n.name not in relayed]
    assert len(made) >= 3
    for node in made:
        ok(*node.argv)
    for node in made:
        assert any(graph.path(node).glob("*.parquet"))


def test_a_prompt_of_the_released_code_ends_in_one_line_break(ok: Trd, tmp_path: Path, inside: Path) -> None:
    graph = graph_of(scripted(RECIPES / "released-code.toml", tmp_path), inside)
    for node in graph.nodes:
        if node.stage in ("problems", "sample", "verify", "refine"):
            ok(*node.argv)
    for stage in ("sample", "refine"):
        (node,) = [node for node in graph.nodes if node.stage == stage]
        for row in iter_rows(list_shards(graph.path(node))):
            text = bytes(row.prompt_token_ids.tolist()).decode()
            assert text == row.messages[0]["content"] + "\n"
            assert not row.messages[0]["content"].endswith("\n")
