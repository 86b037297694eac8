"""Compare two replicas of a model with one engine: tokens per second, one thread each.

Same model, same greedy requests with prompts and responses of mixed lengths, same batch size. One engine runs in this
process, as without `--replicas`; two run in worker processes, which this one drives. The two ways take turns, and the
median of each counts. Loading the model is left out. Two free cores are needed for a fair ratio: the table shows the
load of the machine at the start.

    python examples/bench/replicas.py [--quick]

`--quick` asks fewer and shorter questions: under a minute on two free cores. The last line of the output is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from statistics import median

# torch reads it when it is loaded, here and in the workers.
os.environ["OMP_NUM_THREADS"] = "1"

from trd_cli.config.generating import EngineOptions
from trd_cli.datasets.arithmetic import make_arithmetic
from trd_cli.engines.base import Engine
from trd_cli.engines.starting import start_engine
from trd_cli.models import resolve_model
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Request, Sampling

GOAL, REPLICAS = 1.6, 2
ASKS = ("Answer in one short sentence.", "Explain every step in detail, then check the result.")


def requests(tokenizer: Tokenizer, count: int, max_tokens: int) -> list[Request]:
    """Make greedy requests of mixed prompt and response length."""
    made = []
    for i, problem in enumerate(make_arithmetic(count, seed=3, level=2)):
        messages = [{"role": "user", "content": f"{problem.problem}\n{ASKS[i % len(ASKS)]}"}]
        ids = tokenizer.render(messages, "chat", {})
        made.append(Request(str(i), ids, Sampling(0.0, 1.0, 0, max_tokens), seed=i))
    return made


def rate(engine: Engine, todo: list[Request]) -> tuple[float, dict[str, list[int]]]:
    """Return the tokens a second of one pass over the requests, and the tokens of each."""
    began = time.perf_counter()
    made = {each.request_id: list(each.token_ids) for each in engine.generate(todo)}
    return sum(map(len, made.values())) / (time.perf_counter() - began), made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer prompts and shorter responses: under a minute")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    count, max_tokens, rounds = (96, 16, 1) if args.quick else (256, 64, 3)
    load = os.getloadavg()[0]
    model = resolve_model(args.model)
    tokenizer = model.tokenizer()
    todo = requests(tokenizer, count, max_tokens)
    options = {"dtype": "float32", "device": "cpu", "batch_size": args.batch_size}
    ways = [EngineOptions(**options), EngineOptions(**options, replicas=REPLICAS)]
    engines = [start_engine("transformers", model, tokenizer, each) for each in ways]
    try:
        for engine in engines:
            rate(engine, todo[:REPLICAS])
        while 0 in engines[1].tokens():  # until each worker has loaded the model and made a row
            rate(engines[1], todo[: 2 * REPLICAS])
        passes = [[rate(engine, todo) for engine in engines] for _ in range(rounds)]
    finally:
        for engine in engines:
            engine.close()
    one, several = (median(each[way][0] for each in passes) for way in (0, 1))
    same = all(each[0][1] == each[1][1] for each in passes)
    value = median(each[1][0] / each[0][0] for each in passes)
    print(f"{count} prompts, at most {max_tokens} tokens, batches of {args.batch_size}, load of the machine {load:.1f}")
    print(f"one engine      {one:7.1f} tok/s")
    print(f"{REPLICAS} replicas      {several:7.1f} tok/s, {'the same tokens' if same else 'OTHER TOKENS'}")
    ok = value >= GOAL and same
    print(json.dumps({"name": "replicas_vs_one", "value": round(value, 3), "goal": GOAL, "same": same, "ok": ok}))


if __name__ == "__main__":
    main()
