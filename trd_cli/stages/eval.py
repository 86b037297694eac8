"""trd eval: sample k attempts at every question of some benchmarks, grade them, and score with intervals."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import numpy as np

from trd_cli.config import EvalConfig
from trd_cli.core.metrics import Estimate, avg_at_k, pass_at_k
from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.generation import Backend, Outcome, Rendering, ShardFiller, plan_rollouts, preview, templates_for
from trd_cli.graders.pool import GraderOptions
from trd_cli.grading import ShardGrader
from trd_cli.records import Problem, Trajectory, content_hash
from trd_cli.reporting import Report, WithoutResults
from trd_cli.run_dir import RunDir, write_text
from trd_cli.shards import iter_rows


def run(config: EvalConfig, backend: Backend, report: Report) -> dict[str, Any] | None:
    """Generate and grade what is missing, write `results.json`, and return it (None for a dry run).

    `results.json` has, by benchmark, `scores` (avg@k and pass@1 … pass@k, each value, low, high, questions), counts of
    `verdicts`, shares of `truncated` and `no_answer`, response `tokens` (mean, median), and `questions`: for each problem id
    the number of correct and of graded samples, in the order of the benchmark.
    """
    benchmarks = {name: _questions(name, config.limit) for name in split_benchmarks(config.bench)}
    problems = [problem for questions in benchmarks.values() for problem in questions]
    templates = templates_for("student", (p.task for p in problems), config.prompt)
    rendering = Rendering(config.render or "chat", config.chat_template_kwargs or {})
    planned = plan_rollouts(problems, config.k, templates, rendering, backend, config)
    identity = config.identity() | {
        "questions": {
            name: content_hash([p.problem_id for p in questions], 16)
            for name, questions in benchmarks.items()
        },
        "prompt": {task: template.sha256 for task, template in templates.items()},
        **rendering.identity(),
        **backend.identity(),
    }
    run_dir = RunDir(config.out, "eval", identity, config.model_dump(mode="json"), about=backend.about())
    if config.dry_run:
        report.note(preview(planned[0], len(planned), run_dir.path))
        return None
    quiet = WithoutResults(report)
    with run_dir:
        with ShardFiller(run_dir, backend, config, quiet, len(planned)) as filler:
            filler.expect(planned)
            filler.fill(planned)
        options = GraderOptions(config.lenient, config.timeout, config.workers)
        # The samples are this command's own: verdicts of another grader are simply made anew.
        with ShardGrader(options, quiet, "stale") as grader:
            report.start("grade", len(planned))
            for shard in run_dir.shards():
                grader.fill(shard, shard)
            report.end()
        results = _results(config, backend, benchmarks, run_dir)
        write_text(run_dir.path / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        report.result(run_dir.path / "results.json")
    return results


def check_errors(results: dict[str, Any], allowed: float) -> None:
    """Raise TooManyRowErrors when more samples than `allowed` ended without being graded correct or incorrect."""
    counts = Counter[str]()
    for bench in results["benchmarks"].values():
        counts.update(bench["verdicts"])
    Outcome(rows=counts.total(), errors=counts["error"] + counts["timeout"]).check_errors(allowed)


def split_benchmarks(text: str) -> list[str]:
    """Names in a comma-separated list, where `arithmetic:n=200,seed=2` is one: a KEY=VALUE belongs to the name before it."""
    names: list[str] = []
    for part in text.split(","):
        if "=" in part and ":" not in part and names:
            names[-1] += "," + part
        else:
            names.append(part)
    return [name.strip() for name in names]


def _questions(name: str, limit: int | None) -> list[Problem]:
    """The benchmark's questions, their source set to its name as typed: so two benchmarks never share a row."""
    return [replace(problem, source=name) for problem in load_benchmark(name)[:limit]]


def _results(
    config: EvalConfig, backend: Backend, benchmarks: dict[str, list[Problem]], run_dir: RunDir
) -> dict[str, Any]:
    by_question: dict[tuple[str, str], list[Trajectory]] = {}
    for row in iter_rows(run_dir.shards()):
        by_question.setdefault((row.source, row.problem_id), []).append(row)
    scored = {
        name: _score([by_question[name, problem.problem_id] for problem in questions], config.k)
        for name, questions in benchmarks.items()
    }
    return {
        "model": backend.model.name,
        "model_revision": backend.model.revision,
        "k": config.k,
        "benchmarks": scored,
    }


def _score(rows_QK: Sequence[Sequence[Trajectory]], k: int) -> dict[str, Any]:
    value = {"correct": 1.0, "incorrect": 0.0}
    correct_QK = np.array([[value.get(row.verdict, np.nan) for row in rows] for rows in rows_QK])
    rows = [row for rows in rows_QK for row in rows]
    lengths = [len(row.response_token_ids) for row in rows if row.response_token_ids is not None]
    return {
        "scores": {
            f"avg@{k}": _json_ready(avg_at_k(correct_QK)),
            **{f"pass@{i}": _json_ready(pass_at_k(correct_QK, i)) for i in range(1, k + 1)},
        },
        "verdicts": dict(sorted(Counter(row.verdict for row in rows).items())),
        "truncated": sum(row.finish_reason == "length" for row in rows) / len(rows),
        "no_answer": sum(row.verdict_detail == "no_answer" for row in rows) / len(rows),
        "tokens": {
            "total": sum(lengths),
            "mean": sum(lengths) / max(1, len(lengths)),
            "median": median(lengths) if lengths else 0,
        },
        "questions": {
            rows[0].problem_id: [
                sum(row.verdict == "correct" for row in rows),
                sum(row.verdict in value for row in rows),
            ]
            for rows in rows_QK
        },
    }


def _json_ready(estimate: Estimate) -> dict[str, Any]:
    """JSON has no NaN: a score without graded samples is null."""
    return {
        name: (None if isinstance(x, float) and math.isnan(x) else x) for name, x in asdict(estimate).items()
    }
