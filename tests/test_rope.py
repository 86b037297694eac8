"""Models whose rotary factors depend on the length of a pass: a row is as it is alone, whatever rows are beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd
from support.sets import by_id, rows_of
from support.tiny import SHAPE, VOCABULARY, build_model, engine_of, reference_model

from trd_cli.engines.rope import steady_length, switch_length
from trd_cli.errors import EngineError
from trd_cli.losses.objectives import Objective
from trd_cli.models import resolve_model
from trd_cli.progress import SilentProgress
from trd_cli.records import Completion, Request, Sampling
from trd_cli.report.data import SetRef
from trd_cli.report.nll import TEXTS, choose, score
from trd_cli.training.batches import Example, Weighting, collate, split_step
from trd_cli.training.model import DistillStep, Teacher
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import write_problems

SWITCH = 64
SHORT, LONG = [1.0, 1.1, 1.3, 1.5], [4.0, 7.0, 11.0, 16.0]
GREEDY, SEEDED = Sampling(0.0, 1.0, 0, 16), Sampling(0.9, 0.95, 40, 16)
# Prompts that stay short, that begin short and outgrow the switch, that are at it, and that are long.
LENGTHS = (3, 40, 52, 62, 63, 64, 65, 90, 150, 55, 64, 12, 49)


def longrope(kind: str, switch: int = SWITCH) -> Any:
    import transformers

    rope = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
    shape = {**SHAPE, "original_max_position_embeddings": switch, "rope_scaling": rope}
    if kind == "phi3":
        return transformers.Phi3Config(**shape)
    if kind == "phi3, sliding":
        return transformers.Phi3Config(**shape, sliding_window=16)
    if kind == "phimoe":
        rope |= {"short_mscale": 1.1, "long_mscale": 1.4, "original_max_position_embeddings": switch}
        return transformers.PhimoeConfig(**shape, num_local_experts=2, num_experts_per_tok=1)
    del shape["original_max_position_embeddings"]
    rope |= {"rope_type": "longrope", "original_max_position_embeddings": switch, "factor": 32.0}
    return transformers.LlamaConfig(**shape)


KINDS = ("phi3", "phi3, sliding", "phimoe", "llama")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a model of a kind the first time it is asked for."""
    made: dict[str, Path] = {}

    def directory(kind: str) -> Path:
        if kind not in made:
            made[kind] = build_model(tmp_path_factory.mktemp("model"), config=longrope(kind))
        return made[kind]

    return directory


def requests_for(lengths: Sequence[int], sampling: Sampling) -> list[Request]:
    chance = random.Random(0)
    prompts = [[chance.randrange(4, VOCABULARY) for _ in range(n)] for n in lengths]
    return [Request(f"row {i}", prompt, sampling, seed=i) for i, prompt in enumerate(prompts)]


def run(directory: Path, requests: Sequence[Request], batch_size: int) -> dict[str, Completion]:
    done = list(engine_of(directory, batch_size).generate(requests))
    assert sorted(c.request_id for c in done) == sorted(r.request_id for r in requests)
    return {c.request_id: c for c in done}


def tokens(done: dict[str, Completion]) -> dict[str, list[int]]:
    return {name: list(completion.token_ids) for name, completion in done.items()}


# Which models these are


def test_where_the_factors_change_is_read_from_the_configuration(
    directories: Callable[[str], Path], tmp_path: Path
) -> None:
    for kind in KINDS:
        config = resolve_model(str(directories(kind))).architecture().get_text_config()
        assert (switch_length(config), steady_length(config)) == (SWITCH, None)
    for scaling, steady in (
        (None, None),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024}, None),
        ({"rope_type": "linear", "factor": 2.0}, None),
        ({"rope_type": "dynamic", "factor": 2.0}, 2048),
    ):
        directory = build_model(tmp_path / str(scaling and scaling["rope_type"]), rope_scaling=scaling)
        config = resolve_model(str(directory)).architecture().get_text_config()
        assert (switch_length(config), steady_length(config)) == (None, steady)


# Sampling


@pytest.mark.parametrize("kind", ["phi3", "phi3, sliding", "phimoe"])
def test_greedy_is_transformers_generate_of_each_row_alone(directories: Callable[[str], Path], kind: str) -> None:
    directory, requests = directories(kind), requests_for(LENGTHS, GREEDY)
    model, expected = reference_model(directory), {}
    for request in requests:
        prompt = torch.tensor([request.prompt_token_ids])
        whole = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        expected[request.request_id] = whole[0, prompt.shape[1] :].tolist()
    assert tokens(run(directory, requests, batch_size=7)) == expected


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_changes_no_token(directories: Callable[[str], Path], kind: str, sampling: Sampling) -> None:
    requests = requests_for(LENGTHS, sampling)
    engine = engine_of(directories(kind), 1)
    alone = {c.request_id: list(c.token_ids) for r in requests for c in engine.generate([r])}
    for batch_size in (3, 16):
        assert tokens(run(directories(kind), requests, batch_size)) == alone
    some = requests[::-3]
    assert tokens(run(directories(kind), some, 16)) == {r.request_id: alone[r.request_id] for r in some}


@pytest.mark.parametrize("kind", KINDS)
def test_each_logprob_is_that_of_a_fresh_pass_over_the_row_so_far(
    directories: Callable[[str], Path], kind: str
) -> None:
    requests = requests_for(LENGTHS, SEEDED)
    done, model = run(directories(kind), requests, batch_size=6), reference_model(directories(kind))
    grown = 0
    for request in requests:
        completion = done[request.request_id]
        before = list(request.prompt_token_ids)
        grown += len(before) <= SWITCH < len(before) + len(completion.token_ids)
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            with torch.no_grad():
                expected = model(torch.tensor([before])).logits[0, -1].log_softmax(-1)[token].item()
            assert logprob == pytest.approx(expected, abs=1e-4)
            before.append(token)
    assert grown >= 5, "several rows should outgrow the short factors"


def test_a_row_that_ends_at_the_switch_is_not_read_again(directories: Callable[[str], Path]) -> None:
    (request,) = requests_for([SWITCH - 3], replace(GREEDY, max_tokens=4))
    engine = engine_of(directories("phi3"), 4)
    widths: list[int] = []
    engine.model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    (completion,) = engine.generate([request])
    assert len(completion.token_ids) == 4
    assert widths == [SWITCH - 3, 1, 1, 1]
    widths.clear()
    (completion,) = engine.generate([replace(request, sampling=replace(GREEDY, max_tokens=6))])
    assert widths == [SWITCH - 3, 1, 1, 1, SWITCH + 1, 1]


def test_short_rows_are_handed_on_before_long_ones_are_begun(directories: Callable[[str], Path]) -> None:
    requests = requests_for([100, 5], GREEDY)
    completions = engine_of(directories("phi3"), 2).generate(requests)
    assert next(completions).request_id == "row 1"
    assert next(completions).request_id == "row 0"


def dynamic(directory: Path, longest: int) -> Path:
    rope = {"rope_type": "dynamic", "factor": 4.0}
    return build_model(directory, rope_scaling=rope, max_position_embeddings=longest)


def test_factors_that_grow_do_not_within_the_length_that_the_model_names(tmp_path: Path) -> None:
    directory = dynamic(tmp_path / "model", 128)
    requests = requests_for((3, 112, 40, 90, 112, 64), SEEDED)
    alone = tokens(run(directory, requests, batch_size=1))
    assert tokens(run(directory, requests, batch_size=4)) == alone


def test_longer_rows_of_such_a_model_are_refused_in_one_line(tmp_path: Path) -> None:
    directory = dynamic(tmp_path / "model", 128)
    with pytest.raises(EngineError, match=r"dynamic rotary factors.* 129 tokens.*--engine vllm"):
        list(engine_of(directory, 4).generate(requests_for((3, 113), GREEDY)))


# Training


def examples_at(lengths: Sequence[tuple[int, int]]) -> list[Example]:
    """Return rows of which student and teacher read so many tokens."""
    chance = random.Random(1)

    def ids(n: int) -> list[int]:
        return [chance.randrange(4, VOCABULARY) for _ in range(n)]

    made = []
    for i, (student, teacher) in enumerate(lengths):
        response = ids(chance.randrange(2, 9))
        own, other = (ids(n + 1 - len(response)) for n in (student, teacher))
        made.append(Example(f"row {i:02}", own, other, response))
    return made


# Both short, at the switch, one side of each beyond it, both beyond it.
READ = [(20, 30), (64, 64), (63, 65), (65, 64), (64, 70), (66, 66), (61, 100), (60, 64), (100, 110), (12, 66)]


def accumulated(models: Sequence[Any], groups: Sequence[Sequence[Example]]) -> tuple[float, torch.Tensor]:
    """Return loss and gradient of a step that is cut into these micro-batches."""
    student, teacher = models
    student.zero_grad()
    step, total = DistillStep(student, Teacher(teacher), Objective(), torch.float32), 0.0
    weighting = Weighting.of([e for group in groups for e in group], "sequence")
    for group in groups:
        loss, _ = step(collate(group, weighting))
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["phi3", "llama"])
def test_loss_and_gradient_are_those_of_each_row_alone_however_a_step_is_cut(tmp_path: Path, kind: str) -> None:
    models = [reference_model(build_model(tmp_path / str(seed), seed, config=longrope(kind))) for seed in (0, 1)]
    rows = examples_at(READ)
    alone, expected = accumulated(models, [[row] for row in rows])
    counts = set()
    for max_tokens, processes in ((1, 1), (150, 1), (150, 2), (4096, 1), (4096, 3)):
        groups = split_step(rows, max_tokens, processes, (SWITCH, SWITCH)).groups
        counts.add(len(groups))
        loss, gradient = accumulated(models, groups)
        assert loss == pytest.approx(alone, rel=1e-5)
        torch.testing.assert_close(gradient, expected, atol=2e-6, rtol=1e-4)
    assert len(counts) >= 3
    mixed, _ = accumulated(models, split_step(rows, 4096).groups)
    assert mixed != pytest.approx(alone, rel=1e-3), "the factors should matter"


def test_rows_are_kept_apart_at_the_switch_of_each_side(tmp_path: Path) -> None:
    rows = examples_at(READ)
    for switches in ((SWITCH, SWITCH), (SWITCH, None), (None, SWITCH), (30, 66)):
        for group in split_step(rows, 4096, switches=switches).groups:
            sides = {tuple(s is not None and n > s for n, s in zip(e.read, switches, strict=True)) for e in group}
            assert len(sides) == 1
    assert split_step(rows, 4096).groups == split_step(rows, 4096, switches=(10_000, 10_000)).groups


ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 20)
TRAIN = ("--dtype", "float32", "--device", "cpu", "--lr", 1e-2, "--batch-size", 6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return a Phi-3, its rollouts and its refined rows, on both sides of its switch for student and teacher."""
    root = tmp_path_factory.mktemp("world")
    problems = root / "p.parquet"
    ok("data", "make", "arithmetic", "--n", 12, "--out", problems)
    ok("sample", "-m", build_model(root / "probe"), "-p", problems, *ENGINE, "--out", root / "probed")
    lengths = sorted(len(row.prompt_token_ids) for row in rows_of(root / "probed"))
    build_model(root / "model", config=longrope("phi3", switch=lengths[6] + 19))
    ok("sample", "-m", root / "model", "-p", problems, *ENGINE, "--out", root / "y_o")
    ok("refine", root / "y_o", "--setting", "opsd", *ENGINE, "--out", root / "y_r")
    return root


def losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "train.jsonl").read_text().splitlines()]


def test_the_rows_of_trd_sample_do_not_depend_on_the_batch(world: Path, ok: Trd, tmp_path: Path) -> None:
    ok("sample", "-m", world / "model", "-p", world / "p.parquet", *ENGINE, "--batch-size", 1, "--out", tmp_path)
    one, many = by_id(tmp_path), by_id(world / "y_o")
    assert {i: row.response_token_ids for i, row in one.items()} == {
        i: row.response_token_ids for i, row in many.items()
    }


def test_the_losses_of_trd_distill_do_not_depend_on_the_micro_batch(world: Path, ok: Trd, tmp_path: Path) -> None:
    for setting in ("--setting", "opsd"), ("--method", "trd"):
        source = world / ("y_o" if "opsd" in setting else "y_r")
        found = []
        for size in (1, 400, 100_000):
            out = tmp_path / f"{setting[1]} {size}"
            ok("distill", source, *setting, *TRAIN, "--max-tokens-per-batch", size, "--out", out)
            found.append(losses(out))
        assert found[1] == pytest.approx(found[0], rel=1e-4)
        assert found[2] == pytest.approx(found[0], rel=1e-4)
    ok("distill", world / "y_o", "--setting", "opsd", *TRAIN, "--selfcheck")


def test_the_reports_likelihoods_are_those_of_each_row_alone(world: Path) -> None:
    refined = SetRef("refine", None, 0, None, "refined", world / "y_r", parents=(world / "y_o",))
    model, student = resolve_model(str(world / "model")), reference_model(world / "model")
    chosen = choose(refined, 12, model)
    found = score(refined, 12, model, "cpu", SilentProgress())
    for i, text in enumerate(TEXTS):
        nats, count = 0.0, 0
        for row in chosen:
            prompt, response = list(row.prompt), list(row.response_ids[i])
            with torch.no_grad():
                logits = student(torch.tensor([[*prompt, *response[:-1]]])).logits[0, len(prompt) - 1 :]
            nats += torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum").item()
            count += len(response)
        assert found[text].value == pytest.approx(nats / count, rel=1e-5)


def test_rows_longer_than_steady_factors_allow_are_cut_to_that_length(ok: Trd, tmp_path: Path) -> None:
    """The model's factors grow, and its configuration file leaves its length to transformers: 2,048."""
    model, problems = dynamic(tmp_path / "model", 2048), tmp_path / "p.parquet"
    ok("data", "make", "arithmetic", "--n", 2, "--out", problems)
    long = [replace(p, reference_solution="and so on, " * 500) for p in read_problems(problems)]
    write_problems(problems, long)
    ok("sample", "-m", model, "-p", problems, *ENGINE, "--out", tmp_path / "y_o")
    config = json.loads((model / "config.json").read_text())
    del config["max_position_embeddings"]
    (model / "config.json").write_text(json.dumps(config))
    options = ("--setting", "opsd", "--model", model, "--max-length", 100_000, "--dry-run")
    said = ok("distill", tmp_path / "y_o", *TRAIN, *options, "--out", tmp_path / "c").stderr
    assert "cut the reference in the teacher's context of 2 of 2 rows, to 2048 tokens" in said
