"""The transformers engine against transformers' own generate, one row at a time, on tiny random models."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd, takes_long
from support.sets import iter_rows
from support.tiny import (
    END,
    OTHER_END,
    SHAPE,
    VOCABULARY,
    build_model,
    engine_of,
    llama_config,
    reference_model,
    set_eos,
)

from trd_cli.errors import EngineError
from trd_cli.records import Completion, Request, Sampling
from trd_cli.trajectories.shards import list_shards

GREEDY = Sampling(0.0, 1.0, 0, 24)
SEEDED = Sampling(0.9, 0.95, 40, 24)
LENGTHS = (3, 40, 1, 17, 120, 5, 64, 9, 33, 2, 250, 12, 8, 90, 21, 6, 11, 55, 30, 4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("tiny"))


def requests_for(lengths: Sequence[int], sampling: Sampling) -> list[Request]:
    """Return random prompts of these lengths; ids and seeds count up."""
    chance = random.Random(0)
    prompts = [[chance.randrange(4, VOCABULARY) for _ in range(n)] for n in lengths]
    return [Request(f"row {i}", prompt, sampling, seed=i) for i, prompt in enumerate(prompts)]


def run(directory: Path, requests: Sequence[Request], batch_size: int = 4, **options: Any) -> dict[str, Completion]:
    """Return completions by request id; fail if one is missing or came twice."""
    done = list(engine_of(directory, batch_size, **options).generate(requests))
    assert sorted(c.request_id for c in done) == sorted(r.request_id for r in requests)
    return {c.request_id: c for c in done}


def token_ids(completions: dict[str, Completion]) -> dict[str, list[int]]:
    return {name: list(completion.token_ids) for name, completion in completions.items()}


def generated(directory: Path, requests: Sequence[Request], eos: list[int] | None = None) -> dict[str, list[int]]:
    """Return the tokens of transformers' own greedy generate for each prompt alone."""
    model = reference_model(directory)
    found = {}
    for request in requests:
        prompt = torch.tensor([request.prompt_token_ids])
        whole = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.sampling.max_tokens,
            do_sample=False,
            eos_token_id=eos or [END],
            pad_token_id=0,
        )
        found[request.request_id] = whole[0, prompt.shape[1] :].tolist()
    return found


def test_greedy_is_transformers_generate_token_by_token(tiny: Path) -> None:
    requests = requests_for(LENGTHS, GREEDY)
    expected = generated(tiny, requests)
    assert len({tuple(ids) for ids in expected.values()}) == len(requests), "the reference should not be trivial"
    assert token_ids(run(tiny, requests)) == expected


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_the_batch_size_changes_no_token(tiny: Path, sampling: Sampling) -> None:
    requests = requests_for(LENGTHS, sampling)
    alone = token_ids(run(tiny, requests, batch_size=1))
    for batch_size in (3, 16):
        assert token_ids(run(tiny, requests, batch_size)) == alone


def test_a_row_does_not_depend_on_which_others_are_asked_for(tiny: Path) -> None:
    requests = requests_for(LENGTHS, SEEDED)
    together = token_ids(run(tiny, requests))
    assert token_ids(run(tiny, requests[::-3])) == {r.request_id: together[r.request_id] for r in requests[::-3]}


def test_two_seeds_give_two_responses_and_one_seed_the_same(tiny: Path) -> None:
    first = requests_for([9], SEEDED)[0]
    same, other = replace(first, request_id="same"), replace(first, request_id="other", seed=77)
    done = token_ids(run(tiny, [first, same, other]))
    assert done["row 0"] == done["same"] != done["other"]


def test_a_second_call_starts_afresh(tiny: Path) -> None:
    engine, requests = engine_of(tiny, 4), requests_for(LENGTHS[:7], SEEDED)
    first, second = ({c.request_id: c for c in engine.generate(requests)} for _ in range(2))
    assert first == second


def test_no_request_gives_no_completion(tiny: Path) -> None:
    assert list(engine_of(tiny).generate([])) == []


def test_rows_are_handed_on_as_they_finish(tiny: Path) -> None:
    long, short = requests_for([20, 10], GREEDY)
    long = replace(long, sampling=replace(GREEDY, max_tokens=60))
    short = replace(short, sampling=replace(GREEDY, max_tokens=2))
    engine = engine_of(tiny, 2)
    passes: list[int] = []
    engine.model.register_forward_pre_hook(lambda *_: passes.append(1))
    completions = engine.generate([long, short])
    assert next(completions).request_id == short.request_id
    assert len(passes) <= 4, "the long row should not have been waited for"
    assert next(completions).request_id == long.request_id


def test_a_freed_slot_is_given_to_a_waiting_prompt(tiny: Path) -> None:
    # Two slots: one long row, and nine short ones that must take turns beside it.
    requests = [
        replace(r, sampling=replace(GREEDY, max_tokens=40 if i == 0 else 3))
        for i, r in enumerate(requests_for([30, *[10] * 9], GREEDY))
    ]
    engine = engine_of(tiny, 2)
    widths: list[int] = []
    engine.model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    order = [c.request_id for c in engine.generate(requests)]
    assert order[-1] == "row 0"
    assert max(widths) == 2
    assert len(widths) < 60, "the short rows should run beside the long one"


def test_many_more_requests_than_slots_all_come_back_right(tiny: Path) -> None:
    chance = random.Random(1)
    requests = [
        replace(r, sampling=replace(GREEDY, max_tokens=chance.randrange(1, 20)))
        for r in requests_for([chance.randrange(1, 60) for _ in range(60)], GREEDY)
    ]
    assert token_ids(run(tiny, requests, batch_size=5)) == generated(tiny, requests)


def test_a_row_that_outgrows_the_cache_keeps_what_it_has_seen(tiny: Path) -> None:
    # The cache grows in steps of some hundred tokens: these rows cross several of them while decoding.
    requests = requests_for([230, 5, 500], replace(GREEDY, max_tokens=60))
    assert token_ids(run(tiny, requests, batch_size=3)) == generated(tiny, requests)


def test_prompts_too_long_to_be_read_together_are_read_in_turn(tiny: Path) -> None:
    requests = requests_for([1500, 1400, 1600, 3, 900, 1], replace(GREEDY, max_tokens=5))
    assert token_ids(run(tiny, requests, batch_size=6)) == generated(tiny, requests)


def test_one_token_is_made_when_one_is_asked_for(tiny: Path) -> None:
    requests = requests_for(LENGTHS, replace(GREEDY, max_tokens=1))
    done = run(tiny, requests)
    assert token_ids(done) == generated(tiny, requests)
    assert {(len(c.token_ids), c.finish_reason) for c in done.values()} == {(1, "length")}


@pytest.fixture
def stops_early(tiny: Path, tmp_path: Path) -> tuple[Path, list[Request], int]:
    """Return a copy of the model in which a token that greedy rows produce early ends a turn, too."""
    requests = requests_for(LENGTHS, GREEDY)
    rows = generated(tiny, requests).values()
    common = max(range(VOCABULARY), key=lambda token: sum(token in ids[1:] for ids in rows))
    copy = shutil.copytree(tiny, tmp_path / "stops")
    set_eos(copy, [END, common])
    return copy, requests, common


def test_an_end_of_turn_stops_a_row_and_is_its_last_token(stops_early: tuple[Path, list[Request], int]) -> None:
    directory, requests, end = stops_early
    done = run(directory, requests)
    assert token_ids(done) == generated(directory, requests, [END, end])
    stopped = [c for c in done.values() if c.finish_reason == "stop"]
    assert 2 <= len(stopped) < len(done), "some rows should stop and some should not"
    for completion in done.values():
        ids = list(completion.token_ids)
        assert (ids[-1] in (END, end)) == (completion.finish_reason == "stop")
        assert not {END, end} & set(ids[:-1])
        assert (len(ids) == GREEDY.max_tokens) or completion.finish_reason == "stop"


def test_an_end_of_turn_as_the_last_allowed_token_is_a_stop(stops_early: tuple[Path, list[Request], int]) -> None:
    directory, requests, _ = stops_early
    longest = max(
        (c for c in run(directory, requests).values() if c.finish_reason == "stop"), key=lambda c: len(c.token_ids)
    )
    (request,) = [r for r in requests if r.request_id == longest.request_id]
    exact = replace(request, sampling=replace(GREEDY, max_tokens=len(longest.token_ids)))
    assert run(directory, [exact])[request.request_id].finish_reason == "stop"


def test_text_is_the_tokens_without_the_special_ones(stops_early: tuple[Path, list[Request], int]) -> None:
    directory, requests, _ = stops_early
    set_eos(directory, [END, OTHER_END])
    engine = engine_of(directory)
    for completion in engine.generate(
        [replace(r, sampling=replace(SEEDED, temperature=3.0, top_k=0, top_p=1.0)) for r in requests]
    ):
        assert "<|" not in completion.text
        from_ids = [i for i in completion.token_ids if i > OTHER_END]
        assert completion.text == reference_tokenizer(directory).decode(from_ids)


def reference_tokenizer(directory: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory))


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_logprobs_are_those_of_a_fresh_forward_pass_over_the_whole_row(tiny: Path, sampling: Sampling) -> None:
    requests = requests_for(LENGTHS, sampling)
    done, model = run(tiny, requests), reference_model(tiny)
    for request in requests:
        completion = done[request.request_id]
        whole = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
        with torch.no_grad():
            logprobs = model(whole).logits[0, len(request.prompt_token_ids) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_rows_of_one_call_may_be_sampled_differently(tiny: Path) -> None:
    ways = [
        GREEDY,
        SEEDED,
        replace(SEEDED, top_k=0),
        replace(SEEDED, temperature=1.5, max_tokens=7),
        Sampling(0.5, 0.5, 3, 30),
    ]
    requests = [replace(r, sampling=ways[i % len(ways)]) for i, r in enumerate(requests_for(LENGTHS, GREEDY))]
    mixed = token_ids(run(tiny, requests, batch_size=7))
    for way in ways:
        same_way = [r for r in requests if r.sampling == way]
        assert token_ids(run(tiny, same_way, batch_size=1)) == {r.request_id: mixed[r.request_id] for r in same_way}


def with_shape(name: str, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**{**SHAPE, **changes})

    return make


_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
ARCHITECTURES = {
    "tied embeddings": with_shape("LlamaConfig", tie_word_embeddings=True),
    "all layers slide": with_shape("MistralConfig", sliding_window=8),
    "some layers slide": with_shape("Qwen3Config", use_sliding_window=True, **_MIXED),
    "sliding with two rotary bases": with_shape("Gemma3TextConfig", query_pre_attn_scalar=8, **_MIXED),
    "soft-capped attention, eager": with_shape("Gemma2Config", query_pre_attn_scalar=8, **_MIXED),
    "a window never reached": with_shape(
        "Qwen2Config", use_sliding_window=True, max_window_layers=0, sliding_window=4096
    ),
    "learned positions": lambda: _gpt2(),
}


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.35,
        bos_token_id=None,
        eos_token_id=END,
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_kind_of_attention_equals_generate(tmp_path: Path, kind: str) -> None:
    directory = build_model(tmp_path / "model", config=ARCHITECTURES[kind]())
    requests = requests_for((3, 30, 1, 12, 7, 60), GREEDY)
    assert token_ids(run(directory, requests, batch_size=3)) == generated(directory, requests)


@pytest.mark.parametrize(
    "config", [llama_config, ARCHITECTURES["all layers slide"], ARCHITECTURES["some layers slide"]]
)
def test_eager_attention_gives_the_same_tokens(tmp_path: Path, config: Callable[[], Any]) -> None:
    directory = build_model(tmp_path / "model", config=config())
    requests = requests_for((3, 30, 1, 12, 7, 60), GREEDY)
    eager = run(directory, requests, batch_size=3, engine_arg={"attn_implementation": "eager"})
    assert token_ids(eager) == generated(directory, requests)


@pytest.mark.parametrize(
    "config",
    [
        with_shape("Lfm2Config", layer_types=["conv", "full_attention"]),
        with_shape(
            "Qwen3NextConfig",
            layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=2,
            linear_num_key_heads=1,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
        ),
    ],
    ids=["convolution", "linear attention"],
)
def test_a_model_whose_cache_is_not_keys_and_values_is_refused(tmp_path: Path, config: Callable[[], Any]) -> None:
    directory = build_model(tmp_path / "model", config=config())
    with pytest.raises(EngineError, match="layers; expected attention layers only; use --engine vllm"):
        engine_of(directory)


@pytest.mark.parametrize(
    "options",
    [
        {"engine_arg": {"no_such_argument": 1}},
        {"engine_arg": {"attn_implementation": "no_such_attention"}},
        {"device": "no_such_device"},
    ],
)
def test_what_transformers_does_not_take_is_an_engine_error(tiny: Path, options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="--engine-arg"):
        engine_of(tiny, **options)


def test_weights_that_cannot_be_read_are_an_engine_error(tiny: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EngineError, match="transformers cannot load"):
        engine_of(broken)


@pytest.mark.model
@pytest.mark.parametrize("temperature", [0.6, pytest.param(0, marks=takes_long)], ids=["seeded", "greedy"])
def test_smollm2_writes_the_same_rows_for_every_batch_size(
    ok: Trd, problems: Path, tmp_path: Path, temperature: float
) -> None:
    rows = []
    for batch_size in (1, 16):
        out = tmp_path / f"batch {batch_size}"
        ok(
            *("sample", "-m", "smollm2-135m", "-p", problems, "--limit", 5, "--max-tokens", 16),
            *("--temperature", temperature, "--engine", "transformers", "--dtype", "float32", "--device", "cpu"),
            *("--batch-size", batch_size, "--out", out),
        )
        rows.append([replace(row, logprobs=None) for row in iter_rows(list_shards(out))])
    assert len(rows[0]) == 5
    assert rows[0] == rows[1]
