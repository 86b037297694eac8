"""Print a quickstart run as tables: scores before and after, changes of verdict, tokens and seconds of each stage."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from trd_cli.evaluation.paired import paired_difference
from trd_cli.evaluation.results import correct_matrix, read_results
from trd_cli.trajectories.shards import list_shards, read_table


def main(run: Path) -> None:
    print(scores(run), refinement(run), stages(run), sep="\n\n")


def scores(run: Path) -> str:
    """Return the student's accuracy before and after, over the same questions, and the paired difference."""
    lines = ["| student | boxed accuracy | 95 % interval | questions |", "|---|---|---|---|"]
    correct: dict[str, np.ndarray] = {}
    for name in ("before", "after"):
        (bench,) = read_results(str(run / f"eval-{name}"))["benchmarks"].values()
        estimate = bench["scores"]["avg@1"]
        interval = f"{100 * estimate['low']:.1f} – {100 * estimate['high']:.1f}"
        lines.append(f"| {name} | {100 * estimate['value']:.1f} % | {interval} | {estimate['questions']} |")
        correct[name] = correct_matrix(bench["samples"])
    d = paired_difference(correct["before"], correct["after"])
    lines.append(
        f"\nPaired difference {100 * d.value:+.1f} points (95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}), "
        f"p = {d.p_value:.2g}; {len(d.gained)} questions gained, {len(d.lost)} lost."
    )
    return "\n".join(lines)


def refinement(run: Path) -> str:
    """Return the verdicts of y_o against those of the y_r made from them."""
    rollouts = columns_of(run / "y_o", ["trajectory_id", "verdict"])
    refined = columns_of(run / "y_r", ["parent_id", "verdict"])
    pairs = refined.join(rollouts, left_on="parent_id", right_on="trajectory_id", suffix="_y_o")
    counts = Counter(zip(pairs["verdict_y_o"], pairs["verdict"], strict=True))
    lines = ["| y_o → y_r | rows |", "|---|---|"]
    lines += [f"| {before} → {after} | {count} |" for (before, after), count in sorted(counts.items())]
    return "\n".join(lines)


def columns_of(directory: Path, names: list[str]) -> pl.DataFrame:
    """Return some columns of a set, their bytes checked."""
    return pl.from_arrow(pa.concat_tables(read_table(path, names) for path in list_shards(directory)))


def stages(run: Path) -> str:
    """Return response tokens and seconds of each stage, over all of its invocations."""
    lines = ["| stage | rows | response tokens | seconds |", "|---|---|---|---|"]
    for name in ("eval-before", "y_o", "y_r", "student", "eval-after"):
        sessions = [json.loads(line) for line in (run / name / "sessions.jsonl").read_text().splitlines()]
        rows, tokens, seconds = (sum(s[key] for s in sessions) for key in ("rows", "tokens", "seconds"))
        lines.append(f"| {name} | {rows} | {tokens} | {seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
