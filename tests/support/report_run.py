"""Make a run directory like one of trd run, by the commands themselves on tiny models, with verdicts that are known."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from conftest import Trd
from support.sets import by_hand
from support.tiny import build_model

from trd_cli.records import Verdict
from trd_cli.report.data import ALL_SEEDS, ReportData, Score, Seed, Training
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 24)
TRAIN = ("--dtype", "float32", "--device", "cpu", "--batch-size", 4, "--lr", 1e-3)
BENCH = "arithmetic:n=20,seed=3"
# y_o and y_r of each row, in the order of the refined set's shards.
VERDICTS: tuple[tuple[Verdict | None, Verdict | None], ...] = (
    *[("incorrect", "correct")] * 3,
    *[("correct", "correct")] * 2,
    ("correct", "incorrect"),
    ("incorrect", "incorrect"),
    ("incorrect", "timeout"),
)
ROUND = "seed-0/round-0"
# Name, directory, inputs, arm.
NODES = (
    ("problems", "problems", (), None),
    ("base/eval", "eval-base", (), None),
    (f"{ROUND}/sample", "sample-0", ("problems",), None),
    (f"{ROUND}/verify-rollouts", "sample-0", (f"{ROUND}/sample",), None),
    (f"{ROUND}/refine", "refine-0", (f"{ROUND}/sample",), None),
    (f"{ROUND}/verify-refined", "refine-0", (f"{ROUND}/refine",), None),
    (f"{ROUND}/trd/distill", "distill-trd", (f"{ROUND}/verify-refined", f"{ROUND}/verify-rollouts"), "trd"),
    (f"{ROUND}/trd/eval", "eval-trd", (f"{ROUND}/trd/distill",), "trd"),
    (f"{ROUND}/fkl/distill", "distill-fkl", (f"{ROUND}/verify-rollouts",), "fkl"),
    (f"{ROUND}/fkl/eval", "eval-fkl", (f"{ROUND}/fkl/distill",), "fkl"),
)


def make_run(directory: Path, ok: Trd) -> Path:
    """Make one finished round of OPSD with two arms.

    Evaluations are scripted: base right at 0.2, fkl at 0.5, trd at 0.9.
    """
    nodes = directory / "nodes"
    student, problems = build_model(directory / "student"), nodes / "problems" / "problems.parquet"
    ok("data", "make", "arithmetic", "--n", len(VERDICTS), "--out", problems)
    ok("sample", "-m", student, "-p", problems, *ENGINE, "--out", nodes / "sample-0")
    ok("refine", nodes / "sample-0", "--setting", "opsd", *ENGINE, "--out", nodes / "refine-0")
    set_verdicts(nodes)
    ok("distill", nodes / "refine-0", "--method", "trd", *TRAIN, "--out", nodes / "distill-trd")
    along = ("--method", "fkl", "--setting", "opsd", *TRAIN)
    ok("distill", nodes / "sample-0", *along, "--out", nodes / "distill-fkl")
    for number, (name, accuracy) in enumerate({"base": 0.2, "fkl": 0.5, "trd": 0.9}.items()):
        evaluate(ok, nodes / f"eval-{name}", accuracy, number)
    write_graph(directory)
    return directory


def evaluate(ok: Trd, out: Path, accuracy: float, seed: int, bench: str = BENCH) -> None:
    """Evaluate with a seed of its own.

    With the same one, the scripted engine is right wherever it was at a lower accuracy.
    """
    options = ("--engine-arg", f"accuracy={accuracy}", "--seed", seed, "--max-errors", 999)
    ok("eval", "scripted", "--bench", bench, "--k", 2, *options, "--out", out)


def set_verdicts(nodes: Path) -> None:
    """Give rollouts and refined rows the verdicts of VERDICTS."""
    of_parent: dict[str, Verdict | None] = {}
    refined = [row for shard in list_shards(nodes / "refine-0") for row in read_rows(shard)]
    (shard,) = list_shards(nodes / "refine-0")
    for row, (before, _) in zip(refined, VERDICTS, strict=True):
        of_parent[row.parent_id] = before
    write_shard(shard, [replace(row, verdict=after) for row, (_, after) in zip(refined, VERDICTS, strict=True)])
    (shard,) = list_shards(nodes / "sample-0")
    rows = read_rows(shard)
    write_shard(shard, [replace(row, verdict=of_parent[row.trajectory_id]) for row in rows])


def write_graph(directory: Path, name: str = "tiny") -> None:
    """Write graph.json and status.json with every node done; a node's `seconds` are its place in the graph."""
    entries, status = [], {}
    for number, (node, folder, inputs, arm) in enumerate(NODES):
        whose = (
            {"arm": arm, "arms": [arm] if arm else ["trd", "fkl"], "round": 0, "seed": 0}
            if node.startswith("seed")
            else {"arm": None, "arms": ["trd", "fkl"], "round": None, "seed": None}
        )
        stage = node.rpartition("/")[2].partition("-")[0]
        entry = {
            "name": node,
            "stage": stage,
            **whose,
            "out": f"nodes/{folder}",
            "inputs": list(inputs),
            "digest": str(number),
            "argv": [],
        }
        entries.append(entry)
        status[node] = {
            "state": "done",
            "seconds": 1000.0 + number,
            "peak_rss_bytes": 2**33,
            "exit_code": 0,
            "digest": str(number),
        }
    recipe = {"name": name, "setting": "opsd", "reference_arm": "fkl", "seeds": [0], "rounds": 1}
    graph = {"format": "trd-graph-1", "name": name, "recipe": recipe, "nodes": entries}
    (directory / "graph.json").write_text(json.dumps(graph))
    (directory / "status.json").write_text(json.dumps(status))


def many_rounds(run: Path, directory: Path, rounds: int) -> Path:
    """Make a run of many rounds, each with a copy of the outputs of `run`, which has one.

    Trainings go on from round to round. All stages run in workers, which the first round starts, but for trd verify.
    """
    graph = json.loads((run / "graph.json").read_text())
    first, once = ([n for n in graph["nodes"] if (n["round"] == 0) == of_round] for of_round in (True, False))
    nodes, status = [], {}
    for node in once:
        shutil.copytree(run / node["out"], directory / node["out"])
        nodes.append(node)
        status[node["name"]] = {"state": "done", "digest": node["digest"], "seconds": 10.0}
    for of, node in product(range(rounds), first):
        # In the first round arms share rows.
        for arm in (
            [node["arm"]] if node["arm"] or not of else ["trd", *(["fkl"] if "refine" not in node["out"] else [])]
        ):
            made = _in_round(node, of, arm)
            nodes.append(made)
            own = node["stage"] != "verify"
            status[made["name"]] = {
                "state": "done",
                "digest": made["digest"],
                # Longer than the stages of `run` ever took.
                "seconds": 200.0 if of else 900.0,
                "warm": own,
                "starts_worker": own and of == 0,
            }
            if own:
                shutil.copytree(
                    run / node["out"], directory / made["out"], ignore=shutil.ignore_patterns("*.safetensors")
                )
            if node["stage"] == "distill":
                _continue(directory / made["out"], of)
    directory.joinpath("graph.json").write_text(json.dumps({**graph, "nodes": nodes}))
    directory.joinpath("status.json").write_text(json.dumps(status))
    return directory


def _in_round(node: dict[str, Any], of: int, arm: str | None) -> dict[str, Any]:
    """Return the node of another round, for one arm or, without its name, for all."""

    def name(text: str) -> str:
        last = text.removeprefix(f"{ROUND}/")
        shared = last != text and "/" not in last
        return f"seed-0/round-{of}/{arm}/{last}" if shared and of else text.replace(ROUND, f"seed-0/round-{of}")

    own = node["arm"] is None and arm is not None
    out, inputs = f"{node['out']}-{of}{f'-{arm}' if own else ''}", [name(text) for text in node["inputs"]]
    whose = {"arm": arm, "arms": [arm] if arm else node["arms"], "round": of}
    return {**node, **whose, "name": name(node["name"]), "out": out, "inputs": inputs, "digest": name(node["name"])}


def _continue(checkpoint: Path, of: int) -> None:
    """Number the steps of a training as those of one that goes on in round `of`."""
    log = checkpoint / "train.jsonl"
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    moved = [{**step, "step": step["step"] + of * len(steps)} for step in steps]
    log.write_text("".join(json.dumps(step) + "\n" for step in moved))
    by_hand(checkpoint / "run.json", lambda run: run["about"].update(steps_before=of * len(steps)))


def made_up(arms: int, seeds: int, rounds: int, steps: int = 40, name: str = "arm") -> ReportData:
    """Return scores and trainings of a run of this size, drawn at random, the same each time."""
    draw = random.Random(f"{arms} {seeds} {rounds}")
    scores = [_score("base", None, None, 0.2)]
    trainings = []
    for i, seed, of in product(range(arms), range(seeds), range(rounds)):
        arm, level = f"{name}-{i}", 0.3 + 0.1 * i + 0.1 * of
        scores.append(_score(arm, of, seed, level + draw.uniform(-0.05, 0.05)))
        if seeds > 1 and seed == 0:
            scores.append(_score(arm, of, ALL_SEEDS, level))
        logged = [_step(draw, number, 1.5 - level) for number in range(1, steps + 1)]
        tenths = {v: [level + 0.02 * t + draw.random() / 9 for t in range(10)] for v in ("correct", "incorrect")}
        node = f"seed-{seed}/round-{of}/{arm}/distill"
        trainings.append(Training(node, arm, of, seed, logged, tenths))
    of_run = ("made-up", ("made-up",), (Path("made-up"),), "opsd", None)
    return ReportData(*of_run, (), (), tuple(scores), (), (), tuple(trainings), (), ())


def _score(arm: str, number: int | None, seed: Seed, value: float) -> Score:
    return Score(arm, number, seed, BENCH, "avg@1", value, value - 0.08, value + 0.08, 20, 0.0, 0.0, 0.0, 0.0)


def _step(draw: random.Random, number: int, level: float) -> dict[str, float]:
    loss = level * (0.3 + 1 / number**0.5) + draw.random() / 5
    known = {"step": number, "loss": loss, "divergence_p50": loss / 4, "divergence_p95": 3 * loss}
    return known | {"grad_norm": 4 * loss + draw.random(), "trajectories": 4}
