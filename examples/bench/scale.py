"""Measure how memory and time grow with the size of a set: peak memory, and processor seconds a row.

Short rows, with the scripted engine: `trd sample` of 4 attempts a problem, `trd verify` and `trd refine` of what it
made, at 100,000 and at 1,000,000 rows. Rows of 8,000 tokens: `trd sample`, `trd refine`, and the part of `trd distill`
that reads the rows, at 1,000 and at 10,000 rows. Each stage is a process of its own, started through the command line
(distill's reading through the function that it calls, with a model of a few weights). Memory is the peak of its
resident memory, and time the processor time of all its threads; those of the graders' workers are left out. A row's
time is that of the larger set, less that of the smaller one, over the rows that it has more.

Goals: sample, verify and refine stay below 600 MiB at the larger number of short rows, and within 1.2 times their own
peak at the smaller one; refine and distill's reading take at most 200 MiB more for 10,000 long rows than for 1,000; a
row takes at most 1.2 times as long in the larger set as in the smaller one; long rows go through the driver at 200,000
tokens a second or more on one core (the engine's own work is included); and distill stores a token in at most 6 bytes.

    python examples/bench/scale.py [--quick] [--short ROWS] [--long ROWS]

`--quick` takes 2,000 and 20,000 short rows, 100 and 1,000 long ones; 0 rows leave a part out. All files are
temporary, and 10,000 long rows take about 1 GiB below TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# This process stays small: a new process begins with the peak of the one that starts it. Packages load in the others.

# The larger set of each pair, and the share of its rows that the smaller one has.
SHORT, LONG = 1_000_000, 10_000
QUICK_SHORT, QUICK_LONG = 20_000, 1_000
SHARE = 10
ATTEMPTS = 4
# Words of the scripted engine's replies; its tokens are bytes, 4.7 a word.
SHORT_WORDS, LONG_WORDS = 4, 1700
SCRIPTED, TEACHER = ("-m", "scripted"), ("--setting", "opd", "--teacher", "scripted")
MOST_MIB, MOST_GROWTH, MOST_MORE_MIB, LEAST_TOKENS, MOST_BYTES = 600, 1.2, 200, 200_000, 6
MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Hold the peak memory of a process in MiB, its processor seconds, and the tokens that it generated or stored.

    `size` is the number of bytes that it stored them in.
    """

    mib: float
    seconds: float
    tokens: int = 0
    size: int = 0


@dataclass(frozen=True)
class Pair:
    """Hold the costs of one stage for a smaller and a larger set, and their numbers of rows."""

    rows: tuple[int, int]
    costs: tuple[Cost, Cost]

    @property
    def growth(self) -> float:
        return self.costs[1].mib / self.costs[0].mib

    @property
    def more_mib(self) -> float:
        return self.costs[1].mib - self.costs[0].mib

    @property
    def seconds_a_row(self) -> float:
        return (self.costs[1].seconds - self.costs[0].seconds) / (self.rows[1] - self.rows[0])

    @property
    def slower(self) -> float:
        """Return a row's time in the larger set over its time in the smaller one."""
        return self.seconds_a_row / (self.costs[0].seconds / self.rows[0])

    @property
    def tokens_a_second(self) -> float:
        small, large = self.costs
        return (large.tokens - small.tokens) / (large.seconds - small.seconds)


class Goals(dict[str, dict[str, Any]]):
    """Hold each figure with its goal: at most, or for a rate at least, the number `goal`."""

    def at_most(self, name: str, value: float, goal: float) -> None:
        self[name] = {"value": round(value, 3), "goal": goal, "ok": value <= goal}

    def at_least(self, name: str, value: float, goal: float) -> None:
        self[name] = {"value": round(value), "goal": goal, "ok": value >= goal}

    @property
    def missed(self) -> list[str]:
        return [name for name, goal in self.items() if not goal["ok"]]


def run(words: Sequence[str | int | Path], log: Path) -> Cost:
    """Run a program to its end, its output in `log`; raises SystemExit with the last lines where it fails."""
    text = [sys.executable, *map(str, words)]
    with open(log, "wb") as file:
        streams = [(os.POSIX_SPAWN_DUP2, file.fileno(), number) for number in (1, 2)]
        process = os.posix_spawn(sys.executable, text, os.environ, file_actions=streams)
        _, status, usage = os.wait4(process, 0)
    if code := os.waitstatus_to_exitcode(status):
        last = log.read_text(errors="replace").splitlines()[-5:]
        raise SystemExit("\n".join([f"{' '.join(text[1:])} ended with {code}:", *last]))
    return Cost(usage.ru_maxrss * 1024 / MIB, usage.ru_utime + usage.ru_stime)


def trd(*words: str | int | Path, log: Path) -> Cost:
    return run(["-m", "trd_cli", *words], log)


def generated(stage: str, out: Path, *words: str | int | Path, log: Path) -> Cost:
    cost = trd(stage, *words, "--out", out, log=log)
    return replace(cost, tokens=json.loads((out / "sessions.jsonl").read_text())["tokens"])


def short_rows(rows: int, place: Path) -> Iterator[tuple[str, Cost]]:
    """Yield the cost of each stage over so many short rows."""
    log, problems, y_o = place / "log", place / "problems.parquet", place / "y_o"
    run([__file__, "--write-problems", problems, rows // ATTEMPTS], log)
    engine = ("--engine-arg", f"length={SHORT_WORDS}")
    yield "sample", generated("sample", y_o, *SCRIPTED, "-p", problems, "-n", ATTEMPTS, *engine, log=log)
    yield "verify", trd("verify", y_o, log=log)
    yield "refine", generated("refine", place / "y_r", *TEACHER, *engine, y_o, log=log)


def long_rows(rows: int, place: Path) -> Iterator[tuple[str, Cost]]:
    """Yield the cost of each stage over so many rows of 8,000 tokens."""
    log, problems, y_o, y_r = place / "log", place / "problems.parquet", place / "y_o", place / "y_r"
    run([__file__, "--write-problems", problems, rows], log)
    engine = ("--engine-arg", f"length={LONG_WORDS}", "--max-tokens", 9000, "--max-model-len", 32768)
    yield "sample", generated("sample", y_o, *SCRIPTED, "-p", problems, "-n", 1, *engine, log=log)
    yield "refine", generated("refine", y_r, *TEACHER, *engine, y_o, log=log)
    # A set that names the scripted model cannot be trained on; one without run.json names none.
    (y_r / "run.json").unlink()
    model, stored = place / "model", place / "examples"
    run([__file__, "--write-model", model], log)
    cost = run([__file__, "--read", y_r, model, stored], log)
    tokens = int(log.read_text().splitlines()[-1])
    yield "distill's reading", replace(cost, tokens=tokens, size=stored.stat().st_size)


def measure(stages: Callable[[int, Path], Iterator[tuple[str, Cost]]], rows: int) -> dict[str, Pair]:
    """Measure each stage with a tenth of the rows and with all of them, and nothing without rows.

    Each set is removed before the next is made.
    """
    found: dict[str, list[Cost]] = {}
    sizes = (rows // SHARE, rows)
    for size in filter(None, sizes):
        place = Path(tempfile.mkdtemp(prefix="trd-scale-"))
        try:
            for name, cost in stages(size, place):
                tokens = f"{cost.tokens / size:>9,.0f} tokens a row" if cost.tokens else ""
                print(f"    {name:<18}{size:>10,} rows{cost.mib:>8.0f} MiB{cost.seconds:>9.1f} s{tokens}", flush=True)
                found.setdefault(name, []).append(cost)
        finally:
            shutil.rmtree(place)
    return {name: Pair(sizes, (small, large)) for name, (small, large) in found.items()}


def judged(short: dict[str, Pair], long: dict[str, Pair]) -> Goals:
    goals = Goals()
    for name, pair in short.items():
        goals.at_most(f"{name}: MiB", pair.costs[1].mib, MOST_MIB)
        goals.at_most(f"{name}: growth of the peak", pair.growth, MOST_GROWTH)
        goals.at_most(f"{name}: growth of a row's time", pair.slower, MOST_GROWTH)
    for name, pair in long.items():
        if name == "sample":
            goals.at_least("tokens a second on one core", pair.tokens_a_second, LEAST_TOKENS)
        else:
            goals.at_most(f"{name}, long rows: MiB more", pair.more_mib, MOST_MORE_MIB)
        if size := pair.costs[1].size:
            goals.at_most(f"{name}: bytes a stored token", size / pair.costs[1].tokens, MOST_BYTES)
    return goals


def write_problems(path: Path, count: int) -> None:
    """Write a problem set of short sums."""
    from trd_cli.records import Problem
    from trd_cli.trajectories.shards import write_problems

    write_problems(path, [Problem(f"p-{i}", "bench", "math", f"{i} + 1 = ?", str(i + 1)) for i in range(count)])


def write_model(directory: Path) -> None:
    """Write a model of a few weights that reads 32,768 tokens, with SmolLM2's tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from trd_cli.models import EMBEDDED, resolve_model

    embedded = resolve_model(EMBEDDED)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=embedded.embedding_rows, max_position_embeddings=32768, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    for path in embedded.path.iterdir():
        if not (directory / path.name).exists():
            (directory / path.name).symlink_to(path)


def read(directory: str, model: str, stored: Path) -> None:
    """Read a set as distill does, and print how many tokens it has stored."""
    from trd_cli.config.training import DistillConfig
    from trd_cli.models import resolve_model
    from trd_cli.progress import SilentProgress
    from trd_cli.stages import distill
    from trd_cli.trajectories.sets import open_sets

    config = DistillConfig.parse({"inputs": [directory], "model": model, "teacher": model, "setting": "opd"})
    with open(stored, "x+b") as file:
        _, _, examples = distill.read(config, open_sets([directory]), resolve_model, SilentProgress(), file)
    print(examples.about["places"]["ids"][2])


def main(short_size: int, long_size: int) -> bool:
    print("Short rows")
    short = measure(short_rows, short_size)
    print("Rows of 8,000 tokens")
    goals = judged(short, measure(long_rows, long_size))
    for name, goal in goals.items():
        print(f"    {name:<46}{goal['value']:>12,} (goal {goal['goal']:,}){'' if goal['ok'] else '  MISSED'}")
    report = {"name": "scale", "value": len(goals.missed), "goal": 0, "ok": not goals.missed, "goals": goals}
    print(json.dumps(report))
    return report["ok"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SHORT:,} short rows and {QUICK_LONG:,} long ones")
    parser.add_argument("--short", type=int, metavar="ROWS", help=f"the larger number of short rows ({SHORT:,})")
    parser.add_argument("--long", type=int, metavar="ROWS", help=f"the larger number of long rows ({LONG:,})")
    parser.add_argument("--write-problems", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write-model", help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_problems:
        write_problems(Path(options.write_problems[0]), int(options.write_problems[1]))
    elif options.write_model:
        write_model(Path(options.write_model))
    elif options.read:
        read(options.read[0], options.read[1], Path(options.read[2]))
    else:
        usual = (QUICK_SHORT, QUICK_LONG) if options.quick else (SHORT, LONG)
        asked = (options.short, options.long)
        is_met = main(*(size if given is None else given for given, size in zip(asked, usual, strict=True)))
        sys.exit(0 if is_met else 1)
