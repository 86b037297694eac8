"""trd plan and trd run refuse a stage's faults with the stage's own reason before anything is generated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import Trd
from support.tiny import SHAPE, build_model

ON_CPU = ("--dtype", "float32", "--device", "cpu")
FEW = ("--max-tokens", 6)
Recipe = Callable[..., Path]


@dataclass(frozen=True)
class World:
    """A model, its rollouts and refined rows. Only read."""

    model: Path
    problems: Path
    rollouts: Path
    refined: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    root = tmp_path_factory.mktemp("refusals")
    made = World(build_model(root / "model"), root / "p.parquet", root / "y_o", root / "y_r")
    engine = ("--engine", "transformers", *ON_CPU, *FEW)
    ok("data", "make", "arithmetic", "--n", 3, "--seed", 1, "--out", made.problems)
    ok("sample", "-m", made.model, "-p", made.problems, *engine, "--out", made.rollouts)
    ok("refine", "--setting", "opsd", made.rollouts, *engine, "--out", made.refined)
    return made


@pytest.fixture
def recipe(world: World, tmp_path: Path) -> Recipe:
    """Write a sound recipe, with changes to its sections; `arm` are options of its one arm."""

    def recipe(student: Path = world.model, arm: dict[str, Any] | None = None, **sections: Any) -> Path:
        few = {"max_tokens": 6, "engine": "transformers", "device": "cpu"}
        values = {
            "setting": "opsd",
            "student": str(student),
            "problems": {"file": str(world.problems)},
            "sample": few | sections.pop("sample", {}),
            "refine": few | sections.pop("refine", {}),
            "eval": few | {"bench": "arithmetic:n=2,seed=2"} | sections.pop("eval", {}),
            "distill": {"device": "cpu"},
            "arms": {"x": {"method": "trd"} | (arm or {})},
            **sections,
        }
        (tmp_path / "recipe.toml").write_text(tomli_w.dumps(values))
        return tmp_path / "recipe.toml"

    return recipe


def reason_of(result: Any) -> str:
    """Return the first part of a command's refusal, without what it expected and how to mend it."""
    assert result.exit_code == 1, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    return line.partition("error: ")[2].partition("; expected ")[0]


def refusals_of(trd: Trd, recipe: Path, tmp_path: Path) -> tuple[str, str]:
    """Return the refusals of a recipe by trd plan and by trd run; nothing is generated."""
    planned = trd("plan", recipe, "--run", tmp_path / "run", "--out", tmp_path / "plan.json")
    assert planned.exit_code == 1, planned.stdout
    findings = json.loads((tmp_path / "plan.json").read_text())["findings"]
    run = trd("run", recipe, "--out", tmp_path / "run")
    assert run.exit_code == 1
    assert not (tmp_path / "run").exists()
    errors = [finding["what"] for finding in findings if finding["level"] == "error"]
    return "\n".join(errors), run.stderr.splitlines()[-1]


def test_a_sound_recipe_is_refused_by_neither_and_what_is_done_is_asked_of_nothing(
    recipe: Recipe, trd: Trd, tmp_path: Path
) -> None:
    """A run may be finished on another machine than it was begun on."""
    run = ("--out", tmp_path / "run", "--until", "sample")
    assert trd("plan", recipe(), "--run", tmp_path / "run").exit_code == 0
    assert trd("run", recipe(), *run).exit_code == 0
    elsewhere = recipe(sample={"device": "xpu"})
    assert trd("run", elsewhere, *run).exit_code == 0
    assert "device xpu" in reason_of(trd("run", elsewhere, *run, "--from", "sample"))


# Models


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Gemma2Config", {"query_pre_attn_scalar": 8}),
        ("CohereConfig", {}),
        ("GraniteConfig", {"logits_scaling": 8.0}),
        ("FalconH1Config", {"lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
        ("PhiConfig", {}),
    ],
)
def test_a_model_that_distill_refuses_is_refused_before_anything_is_sampled(
    world: World, recipe: Recipe, trd: Trd, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    import transformers

    config = getattr(transformers, name)(**{**SHAPE, **changes})
    model = build_model(tmp_path / "model", config=config)
    distill = trd("distill", world.refined, "-m", model, *ON_CPU, "--out", tmp_path / "c")
    reason = reason_of(distill)
    assert "transforms its logits" in reason or "has a bias on its output head" in reason
    for told in refusals_of(trd, recipe(student=model), tmp_path):
        assert reason in told


def test_a_head_s_bias_is_told_by_the_names_of_the_weights_alone(
    world: World, recipe: Recipe, trd: Trd, tmp_path: Path
) -> None:
    """The configuration of this model has no head with a bias; its weights do."""
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(world.model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.bias"] = weights["lm_head.weight"][:, 0].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "has a bias on its output head" in reason_of(trd("distill", world.refined, "-m", model, *ON_CPU))
    for told in refusals_of(trd, recipe(student=model), tmp_path):
        assert f"{model} has a bias on its output head" in told


def test_a_teacher_counts_as_the_student_does(world: World, recipe: Recipe, trd: Trd, tmp_path: Path) -> None:
    from transformers import GraniteConfig

    teacher = build_model(tmp_path / "teacher", config=GraniteConfig(**SHAPE, logits_scaling=8.0))
    for told in refusals_of(trd, recipe(setting="opd", teacher=str(teacher)), tmp_path):
        assert f"{teacher} transforms its logits (logits_scaling)" in told


def test_a_teacher_of_other_tokens_is_refused_by_trd_run_too(
    world: World, recipe: Recipe, trd: Trd, tmp_path: Path
) -> None:
    from support.tiny import write_tokenizer

    teacher = shutil.copytree(world.model, tmp_path / "teacher")
    write_tokenizer(teacher, merges=(("e", "x"), ("o", "n")))
    for told in refusals_of(trd, recipe(setting="opd", teacher=str(teacher)), tmp_path):
        assert f"the tokenizers of {world.model} and {teacher} differ in" in told


def test_a_directory_without_weights_is_an_error_where_the_stages_run(
    world: World, recipe: Recipe, trd: Trd, tmp_path: Path
) -> None:
    bare = shutil.copytree(world.model, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    planned = trd("plan", recipe(student=bare), "--run", tmp_path / "run")
    assert planned.exit_code == 0
    assert f"warning {bare} has no weights" in planned.stdout
    assert f"{bare} has no weights" in reason_of(trd("run", recipe(student=bare), "--out", tmp_path / "run"))


# Options


@dataclass(frozen=True)
class Case:
    """Options of a stage on the command line, the same in a recipe, and the word that the refusals share."""

    stage: str
    flags: tuple[object, ...]
    word: str
    arm: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)


LONG = {"max_model_len": 9000}
CASES = {
    "a window that the model does not have, to sample": Case(
        "sample", ("--max-model-len", 9000), "2048", sections={"sample": LONG}
    ),
    "a window that the model does not have, to refine": Case(
        "refine", ("--max-model-len", 9000), "2048", sections={"refine": LONG}
    ),
    "a window that the model does not have, to evaluate": Case(
        "eval", ("--max-model-len", 9000), "2048", sections={"eval": LONG}
    ),
    "the scripted engine for a real model": Case(
        "sample", ("--engine", "scripted"), "engine scripted with", sections={"sample": {"engine": "scripted"}}
    ),
    "an argument that an option stands for": Case(
        "eval", ("--engine-arg", "dtype=float32"), "arg dtype", sections={"eval": {"engine_arg": {"dtype": "x"}}}
    ),
    "an argument that transformers does not take": Case(
        "refine",
        ("--engine-arg", "no_such_argument=1"),
        "unexpected keyword argument 'no_such_argument'",
        sections={"refine": {"engine_arg": {"no_such_argument": 1}}},
    ),
    "an attention that the engine has no masks for": Case(
        "eval",
        ("--engine-arg", "attn_implementation=flex_attention"),
        "attention flex_attention",
        sections={"eval": {"engine_arg": {"attn_implementation": "flex_attention"}}},
    ),
    "an attention there is not": Case(
        "distill", ("--attn-implementation", "telepathy"), "telepathy", {"attn_implementation": "telepathy"}
    ),
    "an adapter on no layer": Case(
        "distill",
        ("--lora", "--lora-targets", "nope"),
        "Target modules {'nope'} not found",
        {"lora": True, "lora_targets": ["nope"]},
    ),
    "an adapter on the head": Case(
        "distill",
        ("--lora", "--lora-targets", "lm_head"),
        "with the output head",
        {"lora": True, "lora_targets": ["lm_head"]},
    ),
    "an adapter on a norm": Case(
        "distill",
        ("--lora", "--lora-targets", "input_layernorm"),
        "is not supported",
        {"lora": True, "lora_targets": ["input_layernorm"]},
    ),
    "a mask that is no token": Case("distill", ("--mask-tokens", "<|no|>"), "<|no|>", {"mask_tokens": ["<|no|>"]}),
}


def stage_command(world: World, stage: str) -> tuple[object, ...]:
    engine = ("--engine", "transformers", "--device", "cpu", *FEW)
    return {
        "sample": ("sample", "-m", world.model, "-p", world.problems, *engine),
        "refine": ("refine", "--setting", "opsd", world.rollouts, *engine),
        "eval": ("eval", world.model, "--bench", "arithmetic:n=2,seed=2", *engine),
        "distill": ("distill", world.refined, *ON_CPU),
    }[stage]


@pytest.mark.parametrize("name", CASES)
def test_an_option_that_a_stage_refuses_is_refused_before_anything_is_sampled(
    world: World, recipe: Recipe, trd: Trd, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    assert case.word in trd(*stage_command(world, case.stage), *case.flags, "--out", tmp_path / "o").stderr
    for told in refusals_of(trd, recipe(arm=case.arm, **case.sections), tmp_path):
        assert case.word in told.replace("2,048", "2048")
        assert case.stage in told or case.stage == "distill"


LACKING = {
    "an engine": Case("eval", ("--engine", "vllm"), "vllm is not installed", sections={"eval": {"engine": "vllm"}}),
    "a server": Case(
        "eval", ("--engine", "openai"), "openai without a server", sections={"eval": {"engine": "openai"}}
    ),
    "a device to evaluate on": Case("eval", ("--device", "xpu"), "xpu", sections={"eval": {"device": "xpu"}}),
    "a device to train on": Case("distill", ("--device", "xpu"), "device xpu", {"device": "xpu"}),
    "a tracker": Case("distill", ("--tracker", "wandb"), "tracker wandb", {"tracker": ["wandb"]}),
    "an attention's package": Case(
        "distill",
        ("--attn-implementation", "flash_attention_2"),
        "FlashAttention2",
        {"attn_implementation": "flash_attention_2"},
    ),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_this_machine_lacks_is_a_warning_of_a_plan_and_refused_by_a_run(
    world: World, recipe: Recipe, trd: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = LACKING[name]
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    there = trd(*stage_command(world, case.stage), *case.flags, "--out", tmp_path / "o")
    if there.exit_code == 0 or (name == "a tracker" and find_spec("wandb")):
        pytest.skip(f"{name} is here")
    assert case.word.lower() in there.stderr.lower()
    is_warned_of_and_refused(trd, recipe(arm=case.arm, **case.sections), tmp_path, case.word)


def is_warned_of_and_refused(trd: Trd, recipe: Path, tmp_path: Path, word: str) -> None:
    """Assert that trd plan warns, and that trd run refuses before anything is generated."""
    planned = trd("plan", recipe, "--run", tmp_path / "run").stdout
    (line,) = [line for line in planned.splitlines() if word in line]
    assert line.strip().startswith("warning ")
    assert word in reason_of(trd("run", recipe, "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_sandbox_that_is_not_to_be_had_counts_where_programs_are_graded(
    recipe: Recipe, trd: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    question = {"id": "a", "problem": "Print 1.", "tests": {"inputs": [""], "outputs": ["1\n"]}}
    (tmp_path / "code.jsonl").write_text(json.dumps(question) + "\n")
    code = {"sandbox": "bwrap", "bench": f"{tmp_path / 'code.jsonl'}:code"}
    is_warned_of_and_refused(trd, recipe(eval=code), tmp_path, "sandbox bwrap")
    assert trd("plan", recipe(eval={"sandbox": "bwrap"}), "--run", tmp_path / "run").exit_code == 0


def test_the_names_that_a_template_does_not_read_are_a_warning_of_a_plan(
    recipe: Recipe, trd: Trd, tmp_path: Path
) -> None:
    written = recipe(eval={"chat_template_kwargs": {"enable_thinking": False}})
    planned = trd("plan", written, "--run", tmp_path / "run")
    assert planned.exit_code == 0
    (line,) = [line for line in planned.stdout.splitlines() if "enable_thinking" in line]
    assert line.startswith("  warning")
    assert "the chat template does not read enable_thinking: it reads no argument" in line
