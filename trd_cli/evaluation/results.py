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
      tokens: {total, mean, median}                                     of the responses, those that the model wrote
      episodes: {reward, invalid_actions (share), turns: {value, low, …}, stop_reasons: {solved, failed, turns, …}}
                                                                        of a benchmark of episodes alone
      questions: {problem id: [correct, graded]}                        in the benchmark's order
      samples: {problem id: "10.1"}     in the order of sampling: 1 correct, 0 incorrect, . no verdict (error, timeout)
    }}
    means: {name: {benchmarks: [their names], scores: as above}}        of groups of several benchmarks, as the tasks of
                                                                        reasoning-gym; not there without a group

Not covered: rows of other stages. Results of a version before this layout are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_cli import __version__
from trd_cli.errors import DamagedFile, InputError
from trd_cli.evaluation.metrics import Estimate, avg_at_k, maj_at_k, mean_of, mean_of_groups, pass_at_k
from trd_cli.evaluation.samples import first_samples
from trd_cli.graders.base import NO_ANSWER
from trd_cli.graders.evalplus import BASE_PASSED
from trd_cli.graders.evalplus import NAME as EVALPLUS
from trd_cli.records import ENDED, EPISODE, is_intact, with_checksum
from trd_cli.trajectories.episode_columns import FIGURES
from trd_cli.trajectories.run_json import Asked

FORMAT = "trd-results-1"
FILE = "results.json"
VERDICTS = ("correct", "incorrect", "error", "timeout")
_MARK = {"correct": b"1", "incorrect": b"0"}
_VALUE = {"1": 1.0, "0": 0.0, ".": math.nan}

# Wrong answers of each question to the number of each answer's equivalence class, as `GraderPool.classes`.
Classify = Callable[[Iterable[Sequence[str]]], Iterable[Sequence[int]]]


def build_results(benchmarks: Mapping[str, Asked], samples: pa.Table, k: int, classify: Classify) -> dict[str, Any]:
    """Return the content of results.json, from the first `k` samples of every question in `read_samples`'s table.

    All of the k samples must be there and graded.
    """
    chosen = {name: first_samples(samples, name, asked.questions, k) for name, asked in benchmarks.items()}
    # All benchmarks at once, so that the workers who compare start once.
    voting = [rows for name, rows in chosen.items() if _votes(benchmarks[name])]
    classes_QK = _classes(pa.concat_tables(voting), k, classify) if voting else np.empty((0, k))
    ends = np.cumsum([len(rows) // k for rows in voting])[:-1]
    parts = iter(np.split(classes_QK, ends))
    every = pa.concat_tables(list(chosen.values()))
    results = {
        name: _benchmark(benchmarks[name], rows, k, next(parts) if _votes(benchmarks[name]) else None)
        for name, rows in chosen.items()
    }
    means = _means(benchmarks, results)
    return {
        "format": FORMAT,
        "trd": __version__,
        "model": every["model"][0].as_py(),
        "model_revision": every["model_revision"][0].as_py(),
        "engine": _distinct(every, "engine", "engine_version"),
        "k": k,
        "benchmarks": results,
        **({"means": means} if means else {}),
    }


def _means(benchmarks: Mapping[str, Asked], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mean scores of each group of several benchmarks, in which each weighs the same."""
    groups: dict[str, list[str]] = {}
    for name, asked in benchmarks.items():
        if asked.group is not None:
            groups.setdefault(asked.group, []).append(name)
    return {
        group: {"benchmarks": names, "scores": _mean_scores([results[name]["scores"] for name in names])}
        for group, names in groups.items()
        if len(names) > 1
    }


def _mean_scores(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def known(estimate: Mapping[str, Any]) -> Estimate:
        return Estimate(**{name: math.nan if value is None else value for name, value in estimate.items()})

    return {name: json_ready(asdict(mean_of_groups([known(each[name]) for each in scores]))) for name in scores[0]}


def _votes(asked: Asked) -> bool:
    """Return whether samples can agree on an answer; two programs never do."""
    return asked.task == "math"


def _benchmark(asked: Asked, rows: pa.Table, k: int, classes_QK: np.ndarray | None) -> dict[str, Any]:
    """Return a benchmark's part of the results. `rows` are its Q × k samples, those of a question together."""
    marks = dict(zip(asked.questions, _marks(rows, k), strict=True))
    counts = {verdict: _count(pc.equal(rows["verdict"], verdict)) for verdict in VERDICTS}
    return {
        **{key: getattr(asked, key) for key in ("task", "source", "revision", "sha256", "known", "limit", "sampling")},
        "prompt": _distinct(rows, "prompt_sha256"),
        "grader": _distinct(rows, "grader", "grader_version"),
        "scores": {name: json_ready(asdict(e)) for name, e in _all_scores(marks, rows, k, classes_QK)},
        "verdicts": counts,
        "truncated": _count(pc.equal(rows["finish_reason"], "length")) / len(rows),
        "no_answer": _count(pc.equal(rows["verdict_detail"], NO_ANSWER)) / len(rows),
        "unclosed_thinking": _count(rows["open_thinking"]) / len(rows),
        "error": counts["error"] / len(rows),
        "timeout": counts["timeout"] / len(rows),
        "tokens": _lengths(rows["tokens"].drop_null().to_numpy()),
        **({"episodes": _episodes(rows, k)} if asked.task == EPISODE else {}),
        "questions": {name: [mark.count("1"), len(mark) - mark.count(".")] for name, mark in marks.items()},
        "samples": marks,
    }


def _episodes(rows: pa.Table, k: int) -> dict[str, Any]:
    """Return the figures of a benchmark of episodes, and how many ended for each reason; errors have no figures."""
    figures = {}
    for name in FIGURES:
        values_QK = rows[name].to_numpy().astype(np.float64).reshape(-1, k)
        # An environment's rewards may have any bounds; mostly these are those of a score.
        are_scores = name != "turns" and not ((values_QK < 0) | (values_QK > 1)).any()
        figure = mean_of(values_QK, are_scores=bool(are_scores))
        if name == "turns":  # no episode has fewer than none
            figure = replace(figure, low=float(np.maximum(figure.low, 0)))
        figures[name] = json_ready(asdict(figure))
    ends = {reason: _count(pc.equal(rows["stop_reason"], reason)) for reason in ENDED}
    return {**figures, "stop_reasons": ends}


def _count(mask: pa.ChunkedArray) -> int:
    return pc.sum(mask).as_py() or 0


def _lengths(lengths: np.ndarray) -> dict[str, float]:
    total, middle = int(lengths.sum(dtype=np.int64)), np.sort(lengths)[(len(lengths) - 1) // 2 : len(lengths) // 2 + 1]
    return {
        "total": total,
        "mean": total / max(1, len(lengths)),
        "median": median(middle.tolist()) if len(lengths) else 0,
    }


def _all_scores(
    marks: Mapping[str, str], rows: pa.Table, k: int, classes_QK: np.ndarray | None
) -> Iterable[tuple[str, Estimate]]:
    yield from _scores(correct_matrix(marks), classes_QK)
    if _count(pc.equal(rows["grader"], EVALPLUS)):
        base = dict(zip(marks, _marks(rows, k, _base_passed(rows)), strict=True))
        yield from ((f"base_{name}", estimate) for name, estimate in _scores(correct_matrix(base), None))


def _marks(rows: pa.Table, k: int, also_right: np.ndarray | None = None) -> list[str]:
    """Return the marks of each question's samples, by their verdicts; those of `also_right` count as right too."""
    marks = np.full(len(rows), b".")
    for verdict, mark in _MARK.items():
        marks[_mask(pc.equal(rows["verdict"], verdict))] = mark
    if also_right is not None:
        marks[also_right] = _MARK["correct"]
    return [marks_K.tobytes().decode() for marks_K in marks.reshape(-1, k)]


def _base_passed(rows: pa.Table) -> np.ndarray:
    """Return which failures passed EvalPlus's base tests; its grader says so in the detail."""
    details = rows["verdict_detail"].cast(pa.string())
    return _mask(pc.and_(pc.equal(rows["verdict"], "incorrect"), pc.starts_with(details, BASE_PASSED)))


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(values, False).to_numpy()


def _scores(correct_QK: np.ndarray, classes_QK: np.ndarray | None) -> Iterable[tuple[str, Estimate]]:
    ks = range(1, correct_QK.shape[1] + 1)
    yield from ((f"avg@{j}", avg_at_k(correct_QK, j)) for j in ks)
    yield from ((f"pass@{j}", pass_at_k(correct_QK, j)) for j in ks)
    if classes_QK is not None:
        yield from ((f"maj@{j}", maj_at_k(correct_QK, classes_QK, j)) for j in ks)


def correct_matrix(marks: Mapping[str, str]) -> np.ndarray:
    """Return `samples` of results.json as correct_QK: 1.0, 0.0, NaN without a verdict; questions in their order."""
    return np.array([[_VALUE[mark] for mark in marks_K] for marks_K in marks.values()])


def _classes(rows: pa.Table, k: int, classify: Classify) -> np.ndarray:
    """Return classes_QK: correct samples of a question are class 0, equal wrong answers share a class, -1 is no answer.

    Answers with the same text are equal by any grader. A single wrong answer is compared with nothing.
    """
    classes_QK = np.where(_mask(pc.equal(rows["verdict"], "correct")), 0, -1).reshape(-1, k)
    several = (list(texts) for texts in _wrong_answers(rows, k) if len(texts) > 1)
    compared = iter(classify(several)) if any(len(texts) > 1 for texts in _wrong_answers(rows, k)) else iter(())
    for classes_K, texts in zip(classes_QK, _wrong_answers(rows, k), strict=True):
        numbers = next(compared) if len(texts) > 1 else range(len(texts))
        for number, places in zip(numbers, texts.values(), strict=True):
            classes_K[places] = 1 + number
    return classes_QK


def _wrong_answers(rows: pa.Table, k: int) -> Iterator[dict[str, list[int]]]:
    """Yield the wrong answers of each question, in order, with the numbers of the samples that gave them."""
    for start in range(0, len(rows), k):
        samples_K = rows.slice(start, k)
        found: dict[str, list[int]] = {}
        answers = zip(samples_K["verdict"].to_pylist(), samples_K["extracted_answer"].to_pylist(), strict=True)
        for i, (verdict, answer) in enumerate(answers):
            if verdict == "incorrect" and answer is not None:
                found.setdefault(answer, []).append(i)
        yield found


def _distinct(rows: pa.Table, *names: str) -> str:
    """Return one text where all rows agree, and several where more than one version has filled the directory."""
    pairs = rows.select(names).group_by(list(names)).aggregate([]).to_pylist()
    return ", ".join(sorted({" ".join(str(pair[name]) for name in names) for pair in pairs}))


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
