"""Compare our vLLM engine with a bare `LLM.generate`, on the same requests and the same loaded model.

    python examples/bench/vllm_engine.py --quick

Requests have mixed prompt and response lengths, are greedy, and meet an empty prefix cache each time. The ways take
turns, in an order that changes from round to round. The result is the median over the rounds of ours over bare, in
tokens a second, because the machine's load changes less within a round. Bare also returns the log-probability of each
token, which a row needs. Without --quick the table shows bare without them too: computing them is vLLM's work, and
costs about 5 % on a model as small as the embedded one, with its large vocabulary. Needs vLLM. The last line of the
output is one JSON object.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any

import typer

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.vllm import VllmEngine
from trd_cli.models import resolve_model
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Request, Sampling

GOAL = 0.95
OURS, BARE, BARER = "trd vllm", "LLM.generate", "  no logprobs"
_WORDS = ["sum", "the", "marbles", "in", "each", "box", "then", "halve", "what", "is", "left", "over"]


def make_requests(count: int, tokenizer: Tokenizer) -> list[Request]:
    """Make chat prompts of about 40 to 130 tokens; at most 6 to 24 new tokens each, or 64 where there are many."""
    chance = random.Random(0)
    requests = []
    for number in range(count):
        text = f"{number}: " + " ".join(chance.choices(_WORDS, k=chance.randint(5, 90)))
        prompt = tokenizer.render([{"role": "user", "content": text}], "chat", {})
        sampling = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=chance.randint(6, 24 if count < 32 else 64))
        requests.append(Request(f"r{number}", prompt, sampling, seed=number))
    return requests


def run_ours(engine: VllmEngine, requests: list[Request]) -> int:
    """Count the tokens made."""
    return sum(len(completion.token_ids or ()) for completion in engine.generate(requests))


def run_bare(llm: Any, requests: list[Request], logprobs: int | None) -> int:
    """Count the tokens made by vLLM alone with its defaults."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
    limits = [request.sampling.max_tokens for request in requests]
    params = [SamplingParams(temperature=0.0, max_tokens=limit, logprobs=logprobs) for limit in limits]
    return sum(len(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False))


def ways(engine: VllmEngine, requests: list[Request], quick: bool) -> dict[str, Callable[[], int]]:
    barer = {} if quick else {BARER: lambda: run_bare(engine.llm, requests, None)}
    return {**barer, BARE: lambda: run_bare(engine.llm, requests, 0), OURS: lambda: run_ours(engine, requests)}


def take_turns(runs: dict[str, Callable[[], int]], rounds: int, reset: Callable[[], object]) -> dict[str, list[float]]:
    """Measure the tokens a second of each way, round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else list(reversed(runs)):
            reset()
            started = time.perf_counter()
            tokens = runs[name]()
            speeds[name].append(tokens / (time.perf_counter() - started))
            print(f"round {number + 1}/{rounds} {name.strip()}: {speeds[name][-1]:.1f} tokens/s", file=sys.stderr)
    return speeds


def report(speeds: dict[str, list[float]]) -> float:
    """Print the table and return the median of ours over bare."""
    print(f"{'tokens/s':16} {'median':>8} {'least':>8} {'most':>8}   ours over it")
    ratios = {}
    for name, values in speeds.items():
        ratios[name] = median(ours / other for ours, other in zip(speeds[OURS], values, strict=True))
        print(f"{name:16} {median(values):8.1f} {min(values):8.1f} {max(values):8.1f}   {ratios[name]:.3f}")
    return ratios[BARE]


def main(
    model: Annotated[str, typer.Option(help="Directory, Hub name or smollm2-135m.")] = "smollm2-135m",
    quick: Annotated[bool, typer.Option(help="Under a minute of measuring on two CPU cores.")] = False,
) -> None:
    """Measure, print the table, and end with the JSON line."""
    count, rounds = (8, 14) if quick else (64, 6)
    found = resolve_model(model)
    tokenizer = found.tokenizer()
    engine = VllmEngine(found, tokenizer, EngineOptions(engine="vllm"))
    try:
        requests = make_requests(count, tokenizer)
        take_turns(ways(engine, requests[:2], quick), 1, engine.llm.reset_prefix_cache)  # compiles, allocates
        ratio = report(take_turns(ways(engine, requests, quick), rounds, engine.llm.reset_prefix_cache))
    finally:
        engine.close()
    line = {"name": "vllm_engine_vs_bare_generate", "value": round(ratio, 4), "goal": GOAL, "ok": ratio >= GOAL}
    print(json.dumps(line))


if __name__ == "__main__":
    typer.run(main)
