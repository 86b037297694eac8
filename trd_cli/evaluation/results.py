"""results.json: the scores of a model, made from an evaluation directory and read again.

The results are a function of the directory (the benchmarks in `run.json`, the rows in the shards), of k and of the
graders' equivalence classes, so scoring again gives the same bytes.

    format, trd                         version of this layout, and of trd
    checksum                            a hash of all else (`trd_cli.records`)
    model, model_revision, engine, k
    benchmarks: {name: {
      task, source, revision, sha256, known     where the questions came from; `known`: their hash is the one trd knows
                                                (null: trd knows none)
      limit                                     how many of its questions were asked, the first ones; null: all
      sampling {temperature, top_p, top_k, max_tokens, seed}, prompt, grader
      scores: {"avg@j", "pass@j", and for math "maj@j", for every j from 1 to k: {
        value, low, high (95 %), stderr, stderr_within, questions}}     null where there is nothing to score
                                                                        HumanEval+, MBPP+: also "base_avg@j",
                                                                        "base_pass@j", by the original tests alone
      verdicts: {correct, incorrect, error, timeout}                    counts of samples
      truncated, no_answer, unclosed_thinking, error, timeout           shares of samples
      tokens: {total, mean, median}                                     of the responses
      questions: {problem id: [correct, graded]}                        in the benchmark's order
      samples: {problem id: "10.1"}     in the order of sampling: 1 correct, 0 incorrect, . no verdict (error, timeout)
    }}

Not covered: rows of other stages. Results of a version before this layout are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.compute as pc

from trd_cli import __version__
from trd_cli.errors import DamagedFile, InputError
from trd_cli.evaluation.metrics import Estimate, avg_at_k, maj_at_k, pass_at_k
from trd_cli.graders.answers import thinking_is_open
from trd_cli.graders.base import NO_ANSWER
from trd_cli.graders.evalplus import BASE_PASSED
from trd_cli.graders.evalplus import NAME as EVALPLUS
from trd_cli.graders.thinking import TAIL, Prompts
from trd_cli.records import is_intact, with_checksum
from trd_cli.trajectories.run_json import Asked
from trd_cli.trajectories.shards import SCHEMA, read_table

FORMAT = "trd-results-1"
FILE = "results.json"
VERDICTS = ("correct", "incorrect", "error", "timeout")
_MARK = {"correct": "1", "incorrect": "0"}
_VALUE = {"1": 1.0, "0": 0.0, ".": math.nan}

# Wrong answers of each question to the number of each answer's equivalence class, as `GraderPool.classes`.
Classify = Callable[[Sequence[Sequence[str]]], Iterable[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold the columns of a row that scoring reads. `tokens` is None where there is no response."""

    source: str
    problem_id: str
    sample_index: int
    model: str
    model_revision: str
    engine: str
    engine_version: str
    prompt_sha256: str
    finish_reason: str | None
    verdict: str | None
    extracted_answer: str | None
    grader: str | None
    grader_version: str | None
    verdict_detail: str | None
    tokens: int | None
    open_thinking: bool


# Those that are columns.
_COLUMNS = tuple(field.name for field in fields(Sample) if field.name in SCHEMA.names)
# Benchmark → problem id → sample index → sample.
Samples = Mapping[str, Mapping[str, Mapping[int, Sample]]]


def read_samples(shards: Iterable[Path]) -> Samples:
    """Read all samples of an evaluation; neither token ids nor texts stay in memory."""
    found: dict[str, dict[str, dict[int, Sample]]] = {}
    prompts = Prompts()
    for path in shards:
        table = read_table(path, [*_COLUMNS, "response", "response_token_ids", "prompt_token_ids", "ids_exact"])
        lengths = pc.list_value_length(table["response_token_ids"]).to_pylist()
        texts = (text.as_py() for text in table["response"])
        ends = (ids.values[-TAIL:].to_pylist() for ids in table["prompt_token_ids"])
        exact = table["ids_exact"].to_pylist()
        rows = zip(table.select(_COLUMNS).to_pylist(), lengths, texts, ends, exact, strict=True)
        for row, tokens, text, end, is_exact in rows:
            opened = prompts.open_thinking(row["model"], end, text or "", is_exact, row["finish_reason"])
            sample = Sample(**row, tokens=tokens, open_thinking=thinking_is_open(text or "", opened))
            found.setdefault(sample.source, {}).setdefault(sample.problem_id, {})[sample.sample_index] = sample
    return found


def samples_there(benchmarks: Mapping[str, Asked], shards: Iterable[Path]) -> int:
    """Return the largest k such that every question has its first k samples."""
    there: dict[tuple[str, str], set[int]] = {}
    for path in shards:
        columns = read_table(path, ["source", "problem_id", "sample_index"]).to_pydict()
        for *question, index in zip(columns["source"], columns["problem_id"], columns["sample_index"], strict=True):
            there.setdefault(tuple(question), set()).add(index)
    indices_Q = (there.get((name, q), set()) for name, asked in benchmarks.items() for q in asked.questions)
    return min((next(i for i in count() if i not in indices) for indices in indices_Q), default=0)


def build_results(benchmarks: Mapping[str, Asked], samples: Samples, k: int, classify: Classify) -> dict[str, Any]:
    """Return the content of results.json, from the first `k` samples of every question.

    All of the k samples must be there and graded.
    """
    chosen = {
        name: [[samples[name][question][i] for i in range(k)] for question in asked.questions]
        for name, asked in benchmarks.items()
    }
    rows = [row for rows_QK in chosen.values() for rows_K in rows_QK for row in rows_K]
    # All benchmarks at once, so that the workers who compare start once.
    math_QK = [rows_K for name, rows_QK in chosen.items() if _votes(benchmarks[name]) for rows_K in rows_QK]
    classes_QK = iter(_classes(math_QK, classify))
    return {
        "format": FORMAT,
        "trd": __version__,
        "model": rows[0].model,
        "model_revision": rows[0].model_revision,
        "engine": _distinct(f"{row.engine} {row.engine_version}" for row in rows),
        "k": k,
        "benchmarks": {
            name: _benchmark(
                benchmarks[name],
                rows_QK,
                np.array([next(classes_QK) for _ in rows_QK]) if _votes(benchmarks[name]) else None,
            )
            for name, rows_QK in chosen.items()
        },
    }


def _votes(asked: Asked) -> bool:
    """Return whether samples can agree on an answer; two programs never do."""
    return asked.task == "math"


def _benchmark(asked: Asked, rows_QK: Sequence[Sequence[Sample]], classes_QK: np.ndarray | None) -> dict[str, Any]:
    rows = [row for rows_K in rows_QK for row in rows_K]
    marks = {rows_K[0].problem_id: "".join(_MARK.get(r.verdict, ".") for r in rows_K) for rows_K in rows_QK}
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    lengths = [row.tokens for row in rows if row.tokens is not None]
    return {
        **{key: getattr(asked, key) for key in ("task", "source", "revision", "sha256", "known", "limit", "sampling")},
        "prompt": _distinct(row.prompt_sha256 for row in rows),
        "grader": _distinct(f"{row.grader} {row.grader_version}" for row in rows),
        "scores": {name: json_ready(asdict(e)) for name, e in _all_scores(marks, rows_QK, classes_QK)},
        "verdicts": counts,
        "truncated": sum(row.finish_reason == "length" for row in rows) / len(rows),
        "no_answer": sum(row.verdict_detail == NO_ANSWER for row in rows) / len(rows),
        "unclosed_thinking": sum(row.open_thinking for row in rows) / len(rows),
        "error": counts["error"] / len(rows),
        "timeout": counts["timeout"] / len(rows),
        "tokens": {
            "total": sum(lengths),
            "mean": sum(lengths) / max(1, len(lengths)),
            "median": median(lengths) if lengths else 0,
        },
        "questions": {name: [mark.count("1"), len(mark) - mark.count(".")] for name, mark in marks.items()},
        "samples": marks,
    }


def _all_scores(
    marks: Mapping[str, str], rows_QK: Sequence[Sequence[Sample]], classes_QK: np.ndarray | None
) -> Iterable[tuple[str, Estimate]]:
    yield from _scores(correct_matrix(marks), classes_QK)
    if any(row.grader == EVALPLUS for rows_K in rows_QK for row in rows_K):
        base = {rows_K[0].problem_id: "".join(map(_base_mark, rows_K)) for rows_K in rows_QK}
        yield from ((f"base_{name}", estimate) for name, estimate in _scores(correct_matrix(base), None))


def _base_mark(row: Sample) -> str:
    """Return the mark by EvalPlus's base tests, which its grader names in the detail of a failure."""
    passed = row.verdict == "incorrect" and (row.verdict_detail or "").startswith(BASE_PASSED)
    return "1" if passed else _MARK.get(row.verdict, ".")


def _scores(correct_QK: np.ndarray, classes_QK: np.ndarray | None) -> Iterable[tuple[str, Estimate]]:
    ks = range(1, correct_QK.shape[1] + 1)
    yield from ((f"avg@{j}", avg_at_k(correct_QK, j)) for j in ks)
    yield from ((f"pass@{j}", pass_at_k(correct_QK, j)) for j in ks)
    if classes_QK is not None:
        yield from ((f"maj@{j}", maj_at_k(correct_QK, classes_QK, j)) for j in ks)


def correct_matrix(marks: Mapping[str, str]) -> np.ndarray:
    """Return `samples` of results.json as correct_QK: 1.0, 0.0, NaN without a verdict; questions in their order."""
    return np.array([[_VALUE[mark] for mark in marks_K] for marks_K in marks.values()])


def _classes(rows_QK: Sequence[Sequence[Sample]], classify: Classify) -> list[list[int]]:
    """Return classes_QK: correct samples of a question are class 0, equal wrong answers share a class, -1 is no answer.

    Answers with the same text are equal by any grader. A single wrong answer is compared with nothing.
    """
    texts_QU = [
        list(dict.fromkeys(row.extracted_answer for row in rows_K if _is_wrong_answer(row))) for rows_K in rows_QK
    ]
    several = [texts for texts in texts_QU if len(texts) > 1]
    compared = iter(list(classify(several)) if several else ())
    class_Q = [
        dict(zip(texts, next(compared) if len(texts) > 1 else range(len(texts)), strict=True)) for texts in texts_QU
    ]
    return [[_class_of(row, classes) for row in rows_K] for rows_K, classes in zip(rows_QK, class_Q, strict=True)]


def _is_wrong_answer(row: Sample) -> bool:
    return row.verdict == "incorrect" and row.extracted_answer is not None


def _class_of(row: Sample, classes: Mapping[str, int]) -> int:
    if row.verdict == "correct":
        return 0
    if _is_wrong_answer(row):
        return 1 + classes[row.extracted_answer]
    return -1


def _distinct(values: Iterable[str]) -> str:
    """Return one value where all agree, and several where more than one version has filled the directory."""
    return ", ".join(sorted(set(values)))


def json_ready(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with null for NaN, which JSON does not have."""
    return {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in values.items()}


def results_text(results: Mapping[str, Any]) -> str:
    """Return the text of results.json, with its checksum; raises ValueError for a NaN."""
    return json.dumps(with_checksum(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _is_whole(results: Any) -> bool:
    """Return whether this is the layout above, as far as its readers go."""
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        return False
    benchmarks = results.get("benchmarks")
    if not isinstance(benchmarks, dict) or not {"model", "model_revision", "k"} <= results.keys():
        return False
    needed = {"sha256", "sampling", "prompt", "grader", "scores", "samples"}
    return all(isinstance(bench, dict) and needed <= bench.keys() for bench in benchmarks.values())


def read_results(name: str) -> dict[str, Any]:
    """Return the results in an evaluation directory or a results.json.

    Raises InputError where there are none of this layout, DamagedFile where they are not as they were written.
    """
    path = Path(name) / FILE if Path(name).is_dir() else Path(name)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"no such file: {path}",
            f"a directory of trd eval or its {FILE}",
            "check the path, or finish the evaluation",
        ) from None
    except (OSError, ValueError):
        results = None
    if not _is_whole(results):
        raise InputError(
            f"{path} is not of this trd's layout",
            f"one of format {FORMAT}",
            "score its directory with trd eval --rescore, or evaluate again",
        )
    if not is_intact(results):
        raise DamagedFile(
            f"{path} does not match its checksum", "what trd wrote", "score its directory with trd eval --rescore"
        )
    return results
