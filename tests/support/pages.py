"""Make up a run for a report: figures of two arms, and rollouts and refined rows with mathematics and code in them.

    python tests/support/pages.py OUT [ROWS] [TOKENS]

writes OUT/report.html with ROWS trajectories of about TOKENS tokens each (10,000 and 1,000) and prints time, memory and
size.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from trd_cli.records import Trajectory, content_hash
from trd_cli.report.data import (
    Difference,
    Leaks,
    Nll,
    NodeCost,
    Refinement,
    ReportData,
    Score,
    SetRef,
    Spread,
    Training,
)
from trd_cli.trajectories.shards import shard_path, write_shard

SHARD = 500
CODE = "```python\ndef total(values):\n    # sum of squares\n    return sum(v ** 2 for v in values if v > {0})\n```\n"
LINES = (
    "We add ${0}$ and ${1}$, so that $x_{{{0}}} = \\frac{{{0}}}{{{1}}}$ holds for every step.\n",
    "Let $n$ be the number of ways; then \\(n = \\binom{{{0}}}{{2}}\\) and the rest follows from symmetry.\n",
    "\\[ \\sum_{{i=1}}^{{{0}}} i^2 = \\frac{{{0}({0}+1)(2\\cdot{0}+1)}}{{6}} \\]\n",
    "Checking the arithmetic once more: {0} times {1} costs $5 and $7, which is what was asked for.\n",
    "Therefore the area of triangle $ABC$ is $\\sqrt{{{0}}} \\cdot \\pi$, and this agrees with the bound above.\n",
    CODE,
)
PAIRS = (("incorrect", "correct"), ("incorrect", "incorrect"), ("correct", "correct"), ("correct", "incorrect"))


def _text(draw: random.Random, tokens: int, answer: int) -> str:
    lines, length = [LINES[0].format(7, 3), CODE.format(draw.randint(2, 999))], 0
    while length < tokens * 3.2:
        lines.append(draw.choice(LINES).format(draw.randint(2, 999), draw.randint(2, 99)))
        length += len(lines[-1])
    return "\n".join(lines) + f"\nThe answer is $\\boxed{{{answer}}}$."


def _edited(draw: random.Random, text: str, answer: int) -> str:
    lines = text.replace("v ** 2", "v * v", 1).split("\n")
    for _ in range(max(1, len(lines) // 6)):
        at = draw.randrange(len(lines))
        if not lines[at].startswith(("```", "    ", "def")):
            lines[at] = draw.choice(LINES[:-1]).format(draw.randint(2, 999), draw.randint(2, 99)).strip()
    return "\n".join(lines[:-1]) + f"\nSo the answer is $\\boxed{{{answer}}}$."


def trajectory(name: str, number: int, **changes: object) -> Trajectory:
    """Return a graded rollout on problem `number`, with `changes` to its fields."""
    plain = Trajectory(
        trajectory_id=content_hash(name),
        problem_id=f"made-up/{number}",
        parent_id=None,
        round=0,
        sample_index=0,
        stage="rollout",
        setting=None,
        source="made-up",
        task="math",
        problem=f"What is $\\frac{{{2 * number}}}{{2}}$, for garden number {number}?",
        reference_answer=str(number),
        reference_solution=f"Halve it: \\[ {2 * number} / 2 = {number}. \\] It is \\boxed{{{number}}}.",
        tests=None,
        messages=[{"role": "user", "content": f"Solve: $\\frac{{{2 * number}}}{{2}}$"}],
        prompt_token_ids=[1] * 20,
        prompt_template="student",
        prompt_sha256="0" * 64,
        student_prompt_token_ids=None,
        attempt_tokens_trimmed=None,
        response="",
        response_token_ids=[1, 2],
        logprobs=None,
        finish_reason="stop",
        ids_exact=True,
        model="made-up-135m",
        model_revision="1",
        engine="scripted",
        engine_version="1",
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        max_tokens=2048,
        seed=number,
        verdict="incorrect",
        extracted_answer=str(number + 1),
        grader="math",
        grader_version="1",
    )
    return replace(plain, **changes)


def pairs(rows: int, tokens: int) -> Iterator[tuple[Trajectory, Trajectory]]:
    """Yield y_o and y_r of `rows` rollouts, four a problem, with every change of verdict."""
    draw = random.Random(0)
    for i in range(rows):
        number, (before, after) = i // 4, PAIRS[i % 4]
        text = _text(draw, tokens, number if before == "correct" else number + 1)
        ids = [1] * (len(text) // 3)
        y_o = trajectory(f"o{i}", number, sample_index=i % 4, response=text, response_token_ids=ids, verdict=before)
        better = _edited(draw, text, number if after == "correct" else number + 1)
        y_r = replace(
            y_o,
            trajectory_id=content_hash(f"r{i}"),
            parent_id=y_o.trajectory_id,
            stage="refined",
            setting="opsd",
            response=better,
            response_token_ids=[1] * (len(better) // 3),
            messages=[{"role": "user", "content": f"Rewrite this attempt:\n{text}"}],
            prompt_template="refine-opsd",
            verdict=after,
        )
        yield y_o, y_r


def write_sets(
    directory: Path, made: Iterable[tuple[Trajectory, Trajectory]], shard_rows: int = SHARD
) -> tuple[SetRef, SetRef]:
    """Write the rollouts and the refined rows as two sets, a shard of each at a time; return a report's references."""
    paths = [directory / "y_o", directory / "y_r"]
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
    left = iter(made)
    for number in count():
        shard = list(islice(left, shard_rows))
        if not shard:
            break
        for path, rows in zip(paths, zip(*shard, strict=True), strict=True):
            write_shard(shard_path(path, number), rows)
    return (
        SetRef("seed-0/round-0/sample", None, 0, 0, "rollout", paths[0]),
        SetRef("seed-0/round-0/refine", None, 0, 0, "refined", paths[1], (paths[0],)),
    )


def report_data(directory: Path, sets: tuple[SetRef, ...] = ()) -> ReportData:
    """Return invented figures of a run of two arms and two rounds."""
    return ReportData(
        name="made-up run",
        runs=("made-up run",),
        directories=(directory,),
        setting="opsd",
        reference_arm="trd",
        nodes=tuple(_nodes()),
        evaluations=(),
        scores=tuple(_scores()),
        differences=tuple(_differences()),
        refinements=(_refinement(),),
        trainings=tuple(_trainings()),
        sets=sets,
        missing=(),
    )


def _evaluated() -> Iterator[tuple[str, int | None, int | None, str, float]]:
    """Yield arm, round, seed, benchmark and mean score of each evaluation."""
    for arm, at in (("base", 0.1), ("fkl", 0.14), ("trd", 0.22)):
        for bench in ("math500", "aime25"):
            for step in (None,) if arm == "base" else (0, 1):
                yield arm, step, None if arm == "base" else 0, bench, at + 0.05 * (step or 0)


def _scores() -> Iterator[Score]:
    shares = {"truncated": 0.031, "no_answer": 0.12, "error": 0.0, "timeout": 0.002}
    for *place, value in _evaluated():
        for score in ("avg@4", "pass@4"):
            yield Score(*place, score, value, value - 0.03, value + 0.035, 200, **shares)


def _differences() -> Iterator[Difference]:
    for *place, value in _evaluated():
        if place[0] != "base":
            to_base = (value - 0.1, value - 0.14, value - 0.06, 0.0004, 0.0016, 31, 7, 200)
            yield Difference(*place, "base", "base", 4, *to_base)


def _refinement() -> Refinement:
    spread = Spread.of([x / 40 for x in range(41)])
    return Refinement(
        node="seed-0/round-0/refine",
        arm=None,
        round=0,
        seed=0,
        setting="opsd",
        rows=400,
        errors=2,
        matrix=dict(zip(PAIRS, (210, 90, 80, 20), strict=True)),
        lengths={side: Spread.of([float(x) for x in range(40, 900, 7)]) for side in ("y_o", "y_r")},
        edit_distance=spread,
        common_prefix=spread,
        nll={"y_o": Nll(0.41, 90000, 400, "the sampler"), "y_r": Nll(0.93, 80000, 400, "step 1")},
        leaks=Leaks(400, 0.02, 0.005, {8: 0.11, 13: 0.03}),
    )


def _trainings() -> Iterator[Training]:
    steps = [
        {"step": i, "loss": 1.2 / i, "grad_norm": 0.8, "trajectories": 16, "divergence_p50": 0.2} for i in range(1, 30)
    ]
    tenths = {"correct": [0.3 - 0.02 * i for i in range(10)], "incorrect": [0.5 - 0.03 * i for i in range(10)]}
    for arm in ("fkl", "trd"):
        for of in (0, 1):
            yield Training(f"seed-0/round-{of}/{arm}/distill", arm, of, 0, steps, tenths)


def _nodes() -> Iterator[NodeCost]:
    for stage, arm in (("sample", None), ("refine", None), ("distill", "trd"), ("distill", "fkl")):
        yield NodeCost(
            f"seed-0/round-0/{stage}", stage, arm, 0, 0, "done", 400, 90000, 61.5, 1463.4, peak_bytes=3 << 30
        )


def main(out: str, rows: str = "10000", tokens: str = "1000") -> None:
    from trd_cli.report.plots import plots
    from trd_cli.report.reader.page import write_page
    from trd_cli.report.reader.trajectories import trajectories

    directory = Path(out)
    data = report_data(directory, write_sets(directory, pairs(int(rows), int(tokens))))
    started = time.monotonic()
    write_page(directory / "report.html", data, plots(data), trajectories(data.sets))
    seconds, size = time.monotonic() - started, (directory / "report.html").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{rows} trajectories: {seconds:.1f} s, {size / 2**20:.1f} MiB, peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
