"""Methods, adapters, teachers and the log, through trd distill on tiny models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd
from support.sets import iter_rows
from support.tiny import build_model, reference_model
from test_distill import ENGINE, TRAIN, World, edited, log_of, refusal, run_json, weights, world

from trd_cli.config.training import METHODS, NEEDED, DistillConfig
from trd_cli.losses.objectives import OBJECTIVES
from trd_cli.records import Problem, Trajectory
from trd_cli.trajectories.shards import list_shards, write_problems

__all__ = ["world"]  # the fixture, for this module too
Weights = dict[str, torch.Tensor]
LORA = ("--lora", "--lora-rank", 4, "--lora-alpha", 8)


def identity(directory: Path) -> dict[str, Any]:
    return run_json(directory)["identity"]


# Methods


@pytest.fixture(scope="module")
def graded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the rollouts with verdicts: two of each problem, every third row correct."""
    verdicts = ("correct", "incorrect", "incorrect")
    return edited(
        world.rollouts, tmp_path_factory.mktemp("graded") / "y_o", lambda i, row: replace(row, verdict=verdicts[i % 3])
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_options_it_stands_for(
    world: World, graded: Path, ok: Trd, tmp_path: Path, method: str
) -> None:
    source = world.by_student if METHODS[method]["stage"] == "refined" else graded
    setting = () if method in ("trd", "opsd-clip") else ("--setting", "opsd")
    own = ("--max-response-tokens", 5) if method in NEEDED else ()
    spelled = [word for key, value in METHODS[method].items() for word in (f"--{key.replace('_', '-')}", value)]
    ok("distill", source, *TRAIN, *setting, *own, "--method", method, "--out", tmp_path / "named")
    ok("distill", source, *TRAIN, *setting, *own, *spelled, "--out", tmp_path / "spelled")
    assert identity(tmp_path / "named") == identity(tmp_path / "spelled")
    assert identity(tmp_path / "named") | METHODS[method] == identity(tmp_path / "named")
    assert weights(tmp_path / "named")["lm_head.weight"].equal(weights(tmp_path / "spelled")["lm_head.weight"])


def test_a_method_that_leaves_a_choice_to_the_user_asks_for_it(world: World, trd: Trd, tmp_path: Path) -> None:
    options = ("--method", "fastopd", "--setting", "opsd")
    line = refusal(trd("distill", world.rollouts, *TRAIN, *options, "--out", tmp_path / "c"))
    assert "--method fastopd without --max-response-tokens; expected" in line


def test_fastopd_trains_on_the_head_of_each_rollout_as_if_sampling_had_stopped_there(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    def head(number: int, row: Trajectory) -> Trajectory:
        first, ended = row.response_token_ids[:5], len(row.response_token_ids) <= 5
        reason = row.finish_reason if ended else "length"
        return replace(row, response_token_ids=first, finish_reason=reason, logprobs=None)

    prefixes = edited(world.rollouts, tmp_path / "y_o", head)
    options = (*TRAIN, "--method", "fastopd", "--max-response-tokens", 5, "--setting", "opsd")
    for name, source in (("head", world.rollouts), ("prefixes", prefixes)):
        ok("distill", source, *options, "--out", tmp_path / name)
    head_of, all_of = log_of(tmp_path / "head")[0], log_of(tmp_path / "prefixes")[0]
    assert head_of["response_tokens"] == all_of["response_tokens"] <= 5 * 12
    assert (head_of["loss"], head_of["grad_norm"]) == (all_of["loss"], all_of["grad_norm"])


def test_a_flag_goes_before_the_method() -> None:
    config = DistillConfig.parse({"method": "fkl-clip", "clip_position": 0.3, "stage": "refined"})
    assert (config.clip_position, config.stage, config.teacher_context) == (0.3, "refined", "vanilla")


def test_without_a_method_the_loss_is_forward_kl_and_nothing_is_clipped() -> None:
    config = DistillConfig.parse({})
    assert (config.objective, config.clip_position, config.clip_entry) == ("forward-kl", None, None)


def test_the_help_lists_every_method_with_what_it_sets(ok: Trd) -> None:
    _, _, shown = ok("distill", "--help").stdout.partition("the options they set:\n")
    flags = {"stage": "--kind"}
    expected: list[str] = []
    for name, sets in METHODS.items():
        pairs = [(flags.get(key, f"--{key.replace('_', '-')}"), str(value)) for key, value in sets.items()]
        expected += [name, *(word for pair in pairs for word in pair)]
    assert shown.partition("\n\n")[0].split() == expected


def test_the_objectives_of_the_methods_exist() -> None:
    assert {sets["objective"] for sets in METHODS.values()} <= set(OBJECTIVES)


# Objectives


@pytest.fixture(scope="module")
def eight_rows(world: World, ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return eight refined rows with short contexts: attention over long ones would take most of a step's time."""
    root = tmp_path_factory.mktemp("eight_rows")
    problems = [Problem(f"p{i}", "sums", "math", f"{i} + {i + 2}?", reference_answer=f"{2 * i + 2}") for i in range(8)]
    write_problems(root / "p.parquet", problems)
    (root / "student.jinja").write_text("{{ problem }}")
    (root / "teacher.jinja").write_text("{{ problem }} {{ attempt }}")
    asked = ("-p", root / "p.parquet", "--prompt", root / "student.jinja")
    ok("sample", "-m", world.student, *asked, *ENGINE, "--out", root / "y_o")
    refined = ("--setting", "opd", "--teacher", world.teacher, "--prompt", root / "teacher.jinja")
    ok("refine", root / "y_o", *refined, *ENGINE, "--out", root / "y_r")
    return root / "y_r"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_on_eight_rows_the_loss_falls_below_a_tenth_of_its_start(
    eight_rows: Path, ok: Trd, tmp_path: Path, objective: str
) -> None:
    estimator = ("--estimator", "k2") if objective == "sampled" else ()
    options = (*TRAIN, "--epochs", 160, "--batch-size", 8, "--lr", 1e-2, "--weight-decay", 0)
    ok("distill", eight_rows, *options, "--objective", objective, *estimator, "--out", tmp_path / "c")
    log = log_of(tmp_path / "c")
    assert {line["trajectories"] for line in log} == {8}
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]


def test_the_token_reduction_weighs_rows_by_their_length(world: World, ok: Trd, tmp_path: Path) -> None:
    losses = {}
    for reduction in ("sequence", "token"):
        options = (*TRAIN, "--batch-size", 12, "--reduction", reduction)
        ok("distill", world.by_teacher, *options, "--out", tmp_path / reduction)
        losses[reduction] = log_of(tmp_path / reduction)[0]
    # Both are made from the same positions; the plain mean over them is that of the token reduction.
    assert losses["token"]["divergence_p50"] == losses["sequence"]["divergence_p50"]
    lengths = {len(row.response_token_ids) for row in iter_rows(list_shards(world.by_teacher))}
    assert (losses["token"]["loss"] != losses["sequence"]["loss"]) == (len(lengths) > 1)


# Adapters


@pytest.fixture(scope="module")
def adapted(world: World, ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a student trained by an adapter, in OPSD: the teacher is the same model without it."""
    out = tmp_path_factory.mktemp("adapted") / "c"
    ok("distill", world.by_student, *TRAIN, *LORA, "--epochs", 4, "--batch-size", 4, "--lr", 1e-2, "--out", out)
    return out


def test_an_adapter_stands_beside_the_weights_it_is_merged_into(world: World, adapted: Path) -> None:
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        merged = reference_model(adapted)(ids).logits
        beside = peft_logits(world.student, adapted / "adapter", ids)
        before = reference_model(world.student)(ids).logits
    torch.testing.assert_close(merged, beside, atol=1e-5, rtol=1e-4)
    assert (merged - before).abs().max() > 1e-2


def peft_logits(model: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    from peft import PeftModel

    return PeftModel.from_pretrained(reference_model(model), adapter)(ids).logits


def test_an_adapter_of_an_embedding_is_merged_where_the_head_is_another_weight(
    world: World, ok: Trd, trd: Trd, tmp_path: Path
) -> None:
    targets = ("--lora-targets", "embed_tokens", "--lora-targets", "q_proj", "--lr", 1e-2)
    options = (*TRAIN, *LORA, *targets, "--epochs", 4)
    ok("distill", world.by_student, *options, "--out", tmp_path / "c")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        merged, before = (reference_model(m)(ids).logits for m in (tmp_path / "c", world.student))
        beside = peft_logits(world.student, tmp_path / "c" / "adapter", ids)
    torch.testing.assert_close(merged, beside, atol=1e-5, rtol=1e-4)
    assert (merged - before).abs().max() > 1e-2
    tied = build_model(tmp_path / "tied", tie_word_embeddings=True)
    command = ("distill", world.by_teacher, "-m", tied, *options, "--out", tmp_path / "d")
    assert "--lora-targets with an embedding that is the output head too" in refusal(trd(*command))


def test_an_adapter_changes_linear_layers_alone(world: World, adapted: Path) -> None:
    before, after = weights(world.student), weights(adapted)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if "_proj." in name}
    config = json.loads((adapted / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_only_named_layers_are_adapted_and_wrong_names_are_refused(
    world: World, ok: Trd, trd: Trd, tmp_path: Path
) -> None:
    options = (*TRAIN, *LORA, "--lr", 1e-2)
    ok("distill", world.by_teacher, *options, "--lora-targets", "q_proj", "--out", tmp_path / "c")
    before, after = weights(world.student), weights(tmp_path / "c")
    assert all(("q_proj" in name) != before[name].equal(after[name]) for name in before)
    line = refusal(trd("distill", world.by_teacher, *options, "--lora-targets", "no_such", "--out", tmp_path / "d"))
    assert "--lora-targets no_such" in line


def test_with_an_adapter_the_student_starts_as_its_own_teacher(world: World, ok: Trd, tmp_path: Path) -> None:
    """A fresh adapter changes nothing: in equal contexts the first loss is 0, without a second copy of the model."""
    equal = ("--kind", "rollout", "--setting", "opsd", "--prompt", "same.jinja")
    (tmp_path / "same.jinja").write_text((Path(__file__).parent.parent / "prompts/student-math.jinja").read_text())
    equal = (*equal[:-1], tmp_path / "same.jinja")
    options = (*TRAIN, *LORA, "--epochs", 3, "--lr", 1e-2, "--weight-decay", 0)
    ok("distill", world.rollouts, *options, *equal, "--out", tmp_path / "c")
    assert [line["loss"] for line in log_of(tmp_path / "c")] == [0.0] * 3
    before, after = weights(world.student), weights(tmp_path / "c")
    assert all(tensor.equal(after[name]) for name, tensor in before.items())


def test_the_teacher_without_the_adapter_is_the_student_before_training(world: World, ok: Trd, tmp_path: Path) -> None:
    options = (*TRAIN, *LORA, "--epochs", 3, "--batch-size", 4, "--lr", 1e-2)
    ok("distill", world.by_student, *options, "--out", tmp_path / "off")
    ok("distill", world.by_student, *options, "--teacher", copy_of(world.student, tmp_path), "--out", tmp_path / "copy")
    off, copy = ([line["loss"] for line in log_of(tmp_path / name)] for name in ("off", "copy"))
    assert off == pytest.approx(copy, rel=1e-5)
    assert off[0] != off[-1]


def copy_of(model: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(model, tmp_path / "second"))


# The teacher over rounds


@pytest.fixture(scope="module")
def second_round(world: World, adapted: Path, ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return refined rows of the trained student's own attempts."""
    root = tmp_path_factory.mktemp("round")
    ok("data", "make", "arithmetic", "--n", 4, "--out", root / "p.parquet")
    ok("sample", "-m", adapted, "-p", root / "p.parquet", "--round", 1, *ENGINE, "--out", root / "y_o")
    ok("refine", root / "y_o", "--setting", "opsd", *ENGINE, "--out", root / "y_r")
    return root / "y_r"


@pytest.mark.parametrize("adapter", [(), LORA], ids=["all weights", "adapter"])
def test_the_teacher_is_the_first_student_or_that_of_the_round(
    world: World, adapted: Path, second_round: Path, ok: Trd, tmp_path: Path, adapter: tuple[Any, ...]
) -> None:
    first = {}
    for name, options in {
        "initial": ("--teacher-weights", "initial"),
        "by name": ("--teacher", world.student),
        "round": (),
        "by name too": ("--teacher", copy_of(adapted, tmp_path)),
    }.items():
        ok("distill", second_round, *TRAIN, *adapter, *options, "--out", tmp_path / name)
        first[name] = log_of(tmp_path / name)[0]["loss"]
    assert first["initial"] == pytest.approx(first["by name"], rel=1e-5)
    assert first["round"] == pytest.approx(first["by name too"], rel=1e-5)
    assert abs(first["initial"] - first["round"]) > 1e-3


@pytest.mark.parametrize("adapter", [(), LORA], ids=["all weights", "adapter"])
def test_an_averaged_teacher_follows_the_student(
    world: World, ok: Trd, tmp_path: Path, adapter: tuple[Any, ...]
) -> None:
    options = (*TRAIN, *adapter, "--epochs", 4, "--batch-size", 4, "--lr", 1e-3)
    losses = {}
    for name, teacher in {
        "fixed": (),
        "still": ("--teacher-weights", "ema", "--ema-decay", 0.9999999),
        "at once": ("--teacher-weights", "ema", "--ema-decay", 0.0000001),
    }.items():
        ok("distill", world.by_student, *options, *teacher, "--out", tmp_path / name)
        losses[name] = [line["loss"] for line in log_of(tmp_path / name)]
    assert losses["still"] == pytest.approx(losses["fixed"], rel=1e-4)
    assert losses["at once"][0] == pytest.approx(losses["fixed"][0], rel=1e-4)
    assert losses["at once"][-1] != pytest.approx(losses["fixed"][-1], rel=1e-4)


def test_the_next_round_goes_on_from_the_average(world: World, ok: Trd, tmp_path: Path) -> None:
    ema = (*TRAIN, "--batch-size", 4, "--lr", 1e-2, "--teacher-weights", "ema", "--ema-decay", 0.8)
    ok("distill", world.by_student, *ema, "--out", tmp_path / "first")
    average, last = weights(tmp_path / "first" / "ema"), weights(tmp_path / "first")
    start = weights(world.student)
    # After three steps the start still weighs 0.8³, and the average lies between it and the last weights.
    assert all(not average[n].equal(last[n]) and not average[n].equal(start[n]) for n in start)
    second = ("distill", world.by_student, *TRAIN, "--model", tmp_path / "first", "--batch-size", 4)
    for name, options in {
        "ema": ("--teacher-weights", "ema"),
        "by name": ("--teacher", tmp_path / "first" / "ema"),
        "round": (),
    }.items():
        ok(*second, *options, "--out", tmp_path / name)
    ema_loss, named, of_round = (log_of(tmp_path / n)[0]["loss"] for n in ("ema", "by name", "round"))
    assert ema_loss == pytest.approx(named, rel=1e-5)
    assert abs(ema_loss - of_round) > 1e-4


def test_teacher_weights_are_for_a_student_that_teaches_itself(world: World, trd: Trd, tmp_path: Path) -> None:
    line = refusal(trd("distill", world.by_teacher, *TRAIN, "--teacher-weights", "ema", "--out", tmp_path / "c"))
    assert "--teacher-weights ema with another teacher than the student" in line


# The log


def test_every_step_tells_how_student_and_teacher_stand(world: World, ok: Trd, tmp_path: Path) -> None:
    ok("verify", world.rollouts, "--out", tmp_path / "y_o")
    clip = ("--clip-position", 3.0)
    ok(
        "distill",
        world.by_teacher,
        "--parents",
        tmp_path / "y_o",
        *TRAIN,
        *clip,
        "--batch-size",
        4,
        "--out",
        tmp_path / "c",
    )
    for line in log_of(tmp_path / "c"):
        quantiles = [line[f"divergence_{name}"] for name in ("p50", "p95", "p99", "max")]
        assert quantiles == sorted(quantiles)
        assert quantiles[-1] <= 3.0
        assert 0 < line["clipped"] < 1
        for name in ("student", "teacher"):
            assert line[f"{name}_nll"] > 0
            assert 0 < line[f"{name}_entropy"] < math.log(280)
        assert 0 <= line["top1_agreement"] <= 1
        assert 0 < line["teacher_top32_mass"] < 1
        assert 0 <= line["padding"] <= 0.1
        assert line["peak_memory_gib"] > 0.01
        assert line["read_tokens_per_second"] > line["response_tokens_per_second"] > 0
        verdicts = [name.removeprefix("loss_parent_") for name in line if name.startswith("loss_parent_")]
        assert verdicts == ["incorrect"]
        assert line["loss_parent_incorrect"] == pytest.approx(line["loss"], rel=1e-5)


def test_a_tracker_gets_the_same_figures(world: World, ok: Trd, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "c"
    ok("distill", world.by_teacher, *TRAIN, "--batch-size", 4, "--tracker", "tensorboard", "--out", out)
    events = EventAccumulator(str(out / "trd"))
    events.Reload()
    tracked = [(event.step, event.value) for event in events.Scalars("loss")]
    assert tracked == [(line["step"], pytest.approx(line["loss"])) for line in log_of(out)]


def test_a_tracker_that_is_not_installed_is_refused(world: World, trd: Trd, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    try:
        import wandb  # noqa: F401
    except ImportError:
        line = refusal(trd("distill", world.by_teacher, *TRAIN, "--tracker", "wandb", "--out", tmp_path / "c"))
        assert "pip install wandb" in line
    else:
        pytest.skip("wandb is installed")


def test_a_loss_that_explodes_ends_the_run_and_names_the_rows(world: World, trd: Trd, tmp_path: Path) -> None:
    options = (*TRAIN, "--batch-size", 4, "--lr", 3, "--max-grad-norm", 1e9, "--max-loss", 1.5, "--epochs", 4)
    line = refusal(trd("distill", world.by_teacher, *options, "--out", tmp_path / "c"))
    assert "a loss of at most" in line
    failed = len(log_of(tmp_path / "c")) + 1
    assert f"at step {failed};" in line
    ids = {row.trajectory_id[:12] for row in iter_rows(list_shards(world.by_teacher))}
    named = line.split("rows of the step: ")[1].split(", ")
    assert len(named) == 4
    assert set(named) <= ids


# The self-check


@pytest.mark.parametrize("options", [(), ("--dtype", "float32"), (*LORA, "--dtype", "float32")])
@pytest.mark.parametrize("objective", [*OBJECTIVES])
def test_the_selfcheck_passes_and_prints_its_numbers(
    world: World, ok: Trd, tmp_path: Path, objective: str, options: tuple[Any, ...]
) -> None:
    arguments = ("--device", "cpu", "--objective", objective, *options, "--selfcheck", "--out", tmp_path / "c")
    result = ok("distill", world.by_student, *arguments)
    lines = [line for line in result.stderr.splitlines() if "(at most" in line]
    vanishes = objective != "likelihood"
    assert [line.split(": ")[1].split()[0] for line in lines] == ["ok"] * (7 if vanishes else 4)
    zeros = [line.split(": ")[-1].split(" (")[0] for line in lines if "equal contexts" in line]
    assert zeros == ["0", "0"] * vanishes
    assert not (tmp_path / "c").exists()
    assert result.stdout == ""


def test_the_selfcheck_holds_where_rows_are_routed_by_their_verdicts(
    world: World, graded: Path, ok: Trd, tmp_path: Path
) -> None:
    options = (*TRAIN, "--method", "scope", "--setting", "opd", "--teacher", world.teacher, "--selfcheck")
    result = ok("distill", graded, *options)
    lines = [line for line in result.stderr.splitlines() if "(at most" in line]
    assert [line.split(": ")[1].split()[0] for line in lines] == ["ok"] * 7


def test_the_selfcheck_ends_in_an_error_where_the_loss_is_off(world: World, trd: Trd, tmp_path: Path) -> None:
    """k3 overflows float32 where a teacher is likelier by 90 nats; the check exists for such models."""
    sharp = with_weights(world.teacher, tmp_path, lambda tensors: {"lm_head.weight": tensors["lm_head.weight"] * 300})
    options = ("--dtype", "float32", "--device", "cpu", "--objective", "sampled", "--estimator", "k3")
    models = ("--model", sharp, "--teacher", world.teacher)
    result = trd("distill", world.by_student, *options, *models, "--selfcheck")
    assert result.exit_code == 1
    assert "OFF" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("trd distill: error: selfcheck: ")


def with_weights(model: Path, tmp_path: Path, change: Callable[[Weights], Weights]) -> Path:
    """Return a copy of a model with some of its weights changed."""
    from safetensors.torch import load_file, save_file

    copy = copy_of(model, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | change(tensors), copy / "model.safetensors", metadata={"format": "pt"})
    return copy


# Options that would be ignored or misread are refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lora-rank", 8), "--lora-rank with all weights trained; expected --lora"),
        (("--beta", 0.3), "--beta with --objective forward-kl; expected jsd"),
        (("--method", "jsd", "--top-k", 5), "--top-k with --objective jsd; expected forward-kl-topk or"),
        (("--top-k-mode", "tail"), "--top-k-mode with --objective forward-kl"),
        (("--estimator", "k3"), "--estimator with --objective forward-kl; expected sampled"),
        (("--entropy-threshold", 1.0), "--entropy-threshold with --objective forward-kl"),
        (
            ("--weight-temperature", 2),
            "--weight-temperature with --row-weights equal; expected --row-weights perplexity",
        ),
        (("--ema-decay", 0.5), "--ema-decay with --teacher-weights round"),
        (("--objective", "entropy-gated", "--entropy-threshold", "nan"), "--entropy-threshold nan"),
        (("--setting", "opsd"), "--setting opsd along rows that were refined for opd"),
        (("--lora", "--lora-targets", "lm_head"), "--lora-targets with the output head"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(
    world: World, trd: Trd, tmp_path: Path, options: tuple[Any, ...], said: str
) -> None:
    line = refusal(trd("distill", world.by_teacher, *TRAIN, *options, "--out", tmp_path / "c"))
    assert said in line


def test_a_method_that_asks_for_the_student_as_teacher_says_so(world: World, trd: Trd, tmp_path: Path) -> None:
    options = ("--method", "opsd-clip", "--teacher", world.teacher)
    line = refusal(trd("distill", world.rollouts, *TRAIN, *options, "--out", tmp_path / "c"))
    assert "--method opsd-clip, which sets --teacher-weights initial" in line


def test_samples_that_are_not_the_students_own_are_said_to_bias_the_estimate(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    sampled = (*TRAIN, "--method", "sampled", "--setting", "opsd", "--dry-run")
    assert "12 of 12 rows were not drawn from the student" in ok("distill", world.rollouts, *sampled).stderr
    ok("data", "make", "arithmetic", "--n", 2, "--out", tmp_path / "p.parquet")
    own = ("--temperature", 1, "--top-p", 1, "--top-k", 0, "--out", tmp_path / "y_o")
    ok("sample", "-m", world.student, "-p", tmp_path / "p.parquet", *ENGINE, *own)
    assert "not drawn" not in ok("distill", tmp_path / "y_o", *sampled).stderr


def test_a_raised_limit_goes_on_from_the_last_good_state(world: World, trd: Trd, ok: Trd, tmp_path: Path) -> None:
    command = ("distill", world.by_teacher, *TRAIN, "--batch-size", 4, "--lr", 3, "--max-grad-norm", 1e9)
    command = (*command, "--epochs", 4, "--save-steps", 1, "--out", tmp_path / "c")
    line = refusal(trd(*command, "--max-loss", 1.5))
    assert f"to go on from the last good state, {tmp_path / 'c' / 'states'}" in line
    failed = len(log_of(tmp_path / "c"))
    said = ok(*command, "--max-loss", 1e9).stderr
    assert f"going on after step {failed}" in said
    assert [record["step"] for record in log_of(tmp_path / "c")] == list(range(1, 13))


def test_float16_checkpoints_stay_float16(world: World, ok: Trd, tmp_path: Path) -> None:
    half = copy_of(world.student, tmp_path)
    reference_model(world.student).half().save_pretrained(half)
    ok("distill", world.by_teacher, *TRAIN, "--model", half, "--out", tmp_path / "c")
    assert {tensor.dtype for tensor in weights(tmp_path / "c").values()} == {torch.float16}


def test_a_filter_does_not_change_what_is_trained_along(world: World, trd: Trd, tmp_path: Path) -> None:
    both = ("distill", world.rollouts, world.by_student, *TRAIN, "--model", world.student)
    line = refusal(trd(*both, "--where", "parent_id IS NULL", "--out", tmp_path / "c"))
    assert "no refined row in" in line


def test_a_method_along_other_rows_than_there_are_says_which_it_wants(world: World, trd: Trd, tmp_path: Path) -> None:
    options = ("--method", "fkl", "--teacher", world.teacher)
    line = refusal(trd("distill", world.by_teacher, *TRAIN, *options, "--out", tmp_path / "c"))
    assert "--method fkl trains along rollout rows" in line


def test_a_preview_tells_one_ablation_from_another(world: World, ok: Trd) -> None:
    said = {
        options: ok("distill", world.by_student, *TRAIN, *options, "--dry-run").stderr.splitlines()[-1]
        for options in (
            ("--method", "trd"),
            ("--method", "trd", "--teacher-context", "vanilla"),
            ("--method", "trd", "--clip-position", "0.5", "--reduction", "token"),
        )
    }
    assert len(set(said.values())) == 3
    assert "forward-kl, along refined" in said[("--method", "trd")]
    assert (
        "clip position 0.5, reduction token"
        in said[("--method", "trd", "--clip-position", "0.5", "--reduction", "token")]
    )
