"""How fast our vLLM engine is beside a bare `LLM.generate`, on the same prompts and the same loaded model.

    python examples/bench/vllm_engine.py --quick

The two take turns (A B, B A, A B, ...) on requests of mixed prompt and response lengths, greedy, with an empty prefix cache
each time; the medians of tokens a second are compared. Ours also returns each token's log-probability and streams; the
bare call does neither. Needs vLLM. The last line of the output is one JSON object.
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

from trd_cli.config import EngineOptions
from trd_cli.engines.vllm import VllmEngine
from trd_cli.models import resolve_model
from trd_cli.records import Request, Sampling
from trd_cli.tokens import Tokenizer

GOAL = 0.95
_WORDS = (
    "sum the marbles in each box then halve what is left and say how many remain for the last child".split()
)


def make_requests(count: int, tokenizer: Tokenizer) -> list[Request]:
    """Chat prompts of about 40 to 200 tokens; at most 8 to 64 new tokens each."""
    chance = random.Random(0)
    requests = []
    for number in range(count):
        text = f"{number}: " + " ".join(chance.choices(_WORDS, k=chance.randint(5, 160)))
        prompt = tokenizer.render([{"role": "user", "content": text}], "chat", {})
        sampling = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=chance.randint(8, 64))
        requests.append(Request(f"r{number}", prompt, sampling, seed=number))
    return requests


def run_ours(engine: VllmEngine, requests: list[Request]) -> int:
    """Tokens made."""
    return sum(len(completion.token_ids or ()) for completion in engine.generate(requests))


def run_bare(llm: Any, requests: list[Request]) -> int:
    """Tokens made, by vLLM alone with its defaults."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
    params = [SamplingParams(temperature=0.0, max_tokens=request.sampling.max_tokens) for request in requests]
    return sum(len(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False))


def alternate(
    ways: dict[str, Callable[[], int]], rounds: int, reset: Callable[[], object]
) -> dict[str, list[float]]:
    """Tokens a second of each way in each round; the order of the two turns round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways) if number % 2 == 0 else list(reversed(ways))
        for name in names:
            reset()
            started = time.perf_counter()
            tokens = ways[name]()
            speeds[name].append(tokens / (time.perf_counter() - started))
            print(f"round {number + 1}/{rounds} {name}: {speeds[name][-1]:.1f} tokens/s", file=sys.stderr)
    return speeds


def report(speeds: dict[str, list[float]]) -> float:
    """Print the table; returns ours over bare, by the medians."""
    print(f"{'':16} {'median':>9} {'least':>9} {'most':>9}   tokens/s")
    for name, values in speeds.items():
        print(f"{name:16} {median(values):9.1f} {min(values):9.1f} {max(values):9.1f}")
    ratio = median(speeds["trd vllm"]) / median(speeds["LLM.generate"])
    print(f"ratio {ratio:.3f}, goal {GOAL}")
    return ratio


def main(
    model: Annotated[str, typer.Option(help="Directory, Hub name or smollm2-135m.")] = "smollm2-135m",
    quick: Annotated[bool, typer.Option(help="Under a minute of measuring on two CPU cores.")] = False,
) -> None:
    """Measure, print the table, and end with the JSON line."""
    count, rounds = (48, 4) if quick else (256, 6)
    found = resolve_model(model)
    tokenizer = found.tokenizer()
    engine = VllmEngine(found, tokenizer, EngineOptions(engine="vllm"))
    try:
        requests = make_requests(count, tokenizer)
        run_bare(engine.llm, requests[:8])
        ways = {
            "LLM.generate": lambda: run_bare(engine.llm, requests),
            "trd vllm": lambda: run_ours(engine, requests),
        }
        ratio = report(alternate(ways, rounds, engine.llm.reset_prefix_cache))
    finally:
        engine.close()
    line = {
        "name": "vllm_engine_vs_bare_generate",
        "value": round(ratio, 4),
        "goal": GOAL,
        "ok": ratio >= GOAL,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    typer.run(main)
