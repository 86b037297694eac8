"""Compare the time of a round with the time at work of its stages, with warm and with cold stages.

A round is sample, verify, refine, verify and distill: 8 rows, one step of training, SmolLM2-135M in float32 on the CPU.
Time at work is what sessions.jsonl and train.jsonl say: making the rows of a set, and the steps of a training. All else
is overhead: starts, imports, loading and saving models, reading and checking files, grading. Warm rounds count from the
second on. Memory is the largest sum over all processes of a run, twice a second.

    python examples/bench/rounds.py [--quick]

`--quick` makes few and short rows, two warm rounds and one cold one. The goal is that of the full form, on two free
cores: the table shows the load of the machine at the start. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic

import psutil

from trd_cli.config.commands import RunConfig
from trd_cli.planning.memory import memory_of
from trd_cli.planning.refusals import refuse
from trd_cli.progress import NodeState
from trd_cli.recipes.run import run

GOAL = 1.15
STAGES = ("sample", "verify-rollouts", "refine", "verify-refined", "distill")
QUICKSTART = Path(__file__).parents[1] / "quickstart"
RECIPE = """
setting = "opsd"
student = "smollm2-135m"
warm = "{warm}"
rounds = {rounds}
problems_per_round = {rows}
problems = {{ make = {{ kind = "arithmetic", n = {problems}, seed = 1, level = 1 }} }}
sample = {{ dtype = "float32", device = "cpu", prompt = "{quickstart}/student.jinja", max_tokens = {sample} }}
refine = {{ dtype = "float32", device = "cpu", prompt = "{quickstart}/refine.jinja", max_tokens = {refine}, temperature = 0.0 }}
distill = {{ dtype = "float32", device = "cpu", batch_size = {rows} }}
verify = {{ workers = 1 }}
arms.trd = {{ method = "trd" }}
"""


@dataclass
class Clock:
    """The moments at which stages begin and end, and the largest memory of all processes below this one."""

    begun: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    memory: int = 0

    def show(self, states: Sequence[NodeState], changed: str) -> None:
        state = next(each.state for each in states if each.name == changed)
        if state == "running":
            self.begun.setdefault(changed, monotonic())
        elif state != "waiting":
            self.ended[changed] = monotonic()

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...

    def watch(self, done: threading.Event) -> None:
        """Look at the memory until it is done."""
        own = psutil.Process()
        while not done.wait(0.5):
            total = 0
            for child in own.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:
                    continue
            self.memory = max(self.memory, total)


@dataclass
class Round:
    """Seconds of a round and of its stages, and those at work."""

    seconds: float
    stages: dict[str, float]
    work: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.seconds / sum(self.work.values())


def rounds_of(directory: Path, warm: str, rounds: int, sizes: dict[str, int]) -> tuple[list[Round], int]:
    """Run a recipe. Return its rounds and the largest memory of its processes."""
    recipe, clock, done = directory / f"{warm}.toml", Clock(), threading.Event()
    recipe.write_text(
        RECIPE.format(warm=warm, rounds=rounds, problems=sizes["rows"] * rounds, quickstart=QUICKSTART, **sizes)
    )
    watch = threading.Thread(target=clock.watch, args=(done,))
    watch.start()
    try:
        out = run(RunConfig.parse({"recipe": str(recipe), "out": str(directory / warm)}), clock, refuse, memory_of)
    finally:
        done.set()
        watch.join()
    nodes = {node["name"]: node for node in json.loads((out / "graph.json").read_text())["nodes"]}
    made = []
    for number in range(rounds):
        names = {name.rpartition("/")[2]: name for name, node in nodes.items() if node["round"] == number}
        stages = {stage: clock.ended[names[stage]] - clock.begun[names[stage]] for stage in STAGES}
        seconds = clock.ended[names["distill"]] - clock.begun[names["sample"]]
        work = {stage: at_work(out / nodes[names[stage]]["out"]) for stage in ("sample", "refine", "distill")}
        made.append(Round(seconds, stages, work))
    return made, clock.memory


def at_work(directory: Path) -> float:
    """Return the seconds in which a set was made, or those of the steps of a training."""
    log, key = directory / "train.jsonl", "seconds"
    if not log.is_file():
        log, key = directory / "sessions.jsonl", "at_work"
    return sum(json.loads(line).get(key, 0.0) for line in log.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter rows and fewer rounds: under a minute")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    load = os.getloadavg()[0]
    sizes = {"rows": 2, "sample": 8, "refine": 8} if args.quick else {"rows": 8, "sample": 64, "refine": 48}
    with tempfile.TemporaryDirectory() as temporary:
        warm, warm_memory = rounds_of(Path(temporary), "auto", 2 if args.quick else 4, sizes)
        cold, cold_memory = rounds_of(Path(temporary), "off", 1 if args.quick else 2, sizes)
    later = warm[1:]
    print(
        f"rounds of {sizes['rows']} rows, load of the machine {load:.1f}; seconds of a stage, warm the median of {len(later)}"
    )
    print(f"{'':16} {'cold':>7} {'at work':>8} {'warm':>7} {'at work':>8} {'overhead':>9}")
    for stage in STAGES:
        wall, work = (median(each[stage] for each in of) for of in ([r.stages for r in later], works(later)))
        row = cold[-1].stages[stage], works(cold)[-1][stage], wall, work, wall - work
        print(f"{stage:16} {row[0]:7.2f} {row[1]:8.2f} {row[2]:7.2f} {row[3]:8.2f} {row[4]:9.2f}")
    first, value, beside = warm[0].ratio, median(each.ratio for each in later), cold[-1].ratio
    print(
        f"a round: cold {cold[-1].seconds:.2f}, the first warm one {warm[0].seconds:.2f}, a later one {median(r.seconds for r in later):.2f}"
    )
    print(f"a round / its work: cold {beside:.2f}, the first warm one {first:.2f}, a later one {value:.2f}")
    print(f"memory of all processes: cold {cold_memory / 2**30:.2f} GiB, warm {warm_memory / 2**30:.2f} GiB")
    told = {"name": "warm_round_vs_work", "value": round(value, 3), "goal": GOAL, "cold": round(beside, 3)}
    print(json.dumps({**told, "ok": value <= GOAL}))


def works(rounds: Sequence[Round]) -> list[dict[str, float]]:
    return [dict.fromkeys(STAGES, 0.0) | each.work for each in rounds]


if __name__ == "__main__":
    main()
