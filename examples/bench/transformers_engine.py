"""Compare the transformers engine with plain `generate()` in static batches: tokens per second.

Same model, same prompts, same batch size, greedy, one process; the two take turns and the median of each counts.
Prompts and responses have mixed lengths: half of the questions ask for one sentence, half for a step-by-step solution.
Only tokens up to and with a row's end-of-turn count. For `generate()` the prompts are sorted by length first, which
favours it.

    python examples/bench/transformers_engine.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from trd_cli.config.generating import SampleConfig
from trd_cli.datasets.arithmetic import make_arithmetic
from trd_cli.engines.transformers import TransformersEngine
from trd_cli.models import resolve_model
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Request, Sampling

GOAL = 1.3
ASKS = ("Answer in one short sentence.", "Explain every step in detail, then check the result.")


def requests(tokenizer: Tokenizer, count: int, max_tokens: int) -> list[Request]:
    """Make greedy requests of mixed prompt and response length."""
    made = []
    for i, problem in enumerate(make_arithmetic(count, seed=3, level=2)):
        messages = [{"role": "user", "content": f"{problem.problem}\n{ASKS[i % len(ASKS)]}"}]
        ids = tokenizer.render(messages, "chat", {})
        made.append(Request(str(i), ids, Sampling(0.0, 1.0, 0, max_tokens), seed=i))
    return made


def static_batches(engine: TransformersEngine, tokenizer: Tokenizer, todo: Sequence[Request], size: int) -> int:
    """Count the response tokens that plain `generate()` makes, batch after batch, padded on the left."""
    ordered = sorted(todo, key=lambda r: len(r.prompt_token_ids))
    pad, total = tokenizer.end_of_turn_id, 0
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        longest = max(len(r.prompt_token_ids) for r in batch)
        ids = torch.tensor([[pad] * (longest - len(r.prompt_token_ids)) + list(r.prompt_token_ids) for r in batch])
        mask = torch.tensor([[0] * (longest - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids) for r in batch])
        out = engine.model.generate(
            ids, attention_mask=mask, max_new_tokens=batch[0].sampling.max_tokens, do_sample=False, pad_token_id=pad
        )
        for row in out[:, longest:].tolist():
            total += row.index(pad) + 1 if pad in row else len(row)
    return total


def slots(engine: TransformersEngine, todo: Sequence[Request]) -> int:
    """Count the response tokens that the engine makes."""
    return sum(len(completion.token_ids) for completion in engine.generate(todo))


def rate(work: Callable[[], int]) -> float:
    """Return the tokens per second of one call."""
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer prompts and shorter responses: under a minute")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    count, max_tokens, rounds = (32, 96, 1) if args.quick else (96, 256, 3)
    model = resolve_model(args.model)
    tokenizer = model.tokenizer()
    options = SampleConfig(problems="", batch_size=args.batch_size, dtype=args.dtype)
    engine = TransformersEngine(model, tokenizer, options)
    todo = requests(tokenizer, count, max_tokens)
    slots(engine, todo[:2])
    ours, plain = [], []
    for _ in range(rounds):
        plain.append(rate(lambda: static_batches(engine, tokenizer, todo, args.batch_size)))
        ours.append(rate(lambda: slots(engine, todo)))
    value = median(o / p for o, p in zip(ours, plain, strict=True))
    print(
        f"{count} prompts, at most {max_tokens} tokens, {args.batch_size} in flight, {args.dtype}, {torch.get_num_threads()} threads"
    )
    print(f"generate() in static batches  {median(plain):7.1f} tok/s")
    print(f"transformers engine           {median(ours):7.1f} tok/s")
    print(
        json.dumps(
            {"name": "transformers_engine_vs_generate", "value": round(value, 3), "goal": GOAL, "ok": value >= GOAL}
        )
    )


if __name__ == "__main__":
    main()
