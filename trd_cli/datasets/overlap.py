"""trd data overlap: list the rows of a training set that share word n-grams with benchmark questions (see `ngrams`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_cli.atomic import make_directory, write_text
from trd_cli.config.commands import OverlapConfig
from trd_cli.datasets.benchmarks import Benchmark, load_benchmark, split_benchmarks
from trd_cli.datasets.ngrams import NEAR_COPY, SIZES, Boilerplate, QuestionIndex, Shared
from trd_cli.errors import InputError, counted
from trd_cli.hub.fetching import local_path
from trd_cli.progress import Progress
from trd_cli.trajectories.problem_sets import ProblemSet
from trd_cli.trajectories.sets import open_sets
from trd_cli.trajectories.shards import (
    PROBLEM_SCHEMA,
    SCHEMA,
    iter_tables,
    shard_info,
    shard_number,
    write_problems,
)

_ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class TrainingFiles:
    """Hold the Parquet files of a training set, their common schema, the columns to read and the number of all rows."""

    files: tuple[Path, ...]
    schema: pa.Schema
    columns: tuple[str, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Place:
    """Locate a training text: `part` ("problem" or "response") of row `row`, counted from 0.

    `trajectory_id` is None in a problem set. `problem` is a digest of the row's problem text; texts with the same one
    belong to one training problem.
    """

    row: int
    problem_id: str
    trajectory_id: str | None
    part: str
    problem: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """Represent a training text and a question that it hits at 8 words; `hit_13` is True if it hits at 13 too.

    `run` is the number of words in the longest common run. `covered_8` and `covered_13` are the shares of the
    question's n-grams that the text has. `equal` is True if both have the same words.
    """

    row: int
    problem_id: str
    trajectory_id: str | None
    part: str
    benchmark: str
    question_id: str
    run: int
    covered_8: float
    covered_13: float
    hit_13: bool
    equal: bool

    def hits_at(self, n: int) -> bool:
        return self.hit_13 or n == SIZES[0]


@dataclass(frozen=True)
class Overlaps:
    """Hold the findings in a training set of `rows` rows.

    `findings` are in the order of rows, then of benchmarks and their questions. `offending` has one finding for each
    row that hits a question at the chosen n: an equal question, else the one with the longest run. `benchmarks`
    describes each benchmark by name: its `source`, `revision` and `sha256`, and the counts `questions`, `equal`
    (questions that a row equals), `questions_hit`, `rows_hit` and `ignored` (n-grams found in the training set and
    ignored as boilerplate). The last three counts are by n.
    """

    rows: int
    findings: tuple[Finding, ...]
    offending: tuple[Finding, ...]
    benchmarks: dict[str, dict[str, Any]]


def run(config: OverlapConfig, progress: Progress) -> Overlaps:
    """Compare a training set with benchmarks, report the counts, and write `--out` and `--drop` where asked.

    In memory are a few hundred rows at a time, and of all texts the parts that questions share. An unfinished set is
    compared as far as it goes. Raises InputError for a file that cannot be read or written, an output that is one of
    the inputs, and options that do not fit the kind of training set.
    """
    _check_options(config)
    training = _training_files(config)
    loaded = [load_benchmark(name) for name in split_benchmarks(",".join(config.bench))]
    benchmarks = {each.name: each for each in loaded}
    problems = [problem for each in benchmarks.values() for problem in each.problems]
    index = QuestionIndex(
        [problem.problem for problem in problems], [name for name, each in benchmarks.items() for _ in each.problems]
    )
    found = _compare(training, index, progress)
    boilerplate = index.boilerplate(((place.problem, shared) for place, shared in found), config.common)
    findings = tuple(_findings(index, [p.problem_id for p in problems], found, boilerplate))
    counts = _counts(benchmarks, index, found, findings, boilerplate)
    overlaps = Overlaps(training.rows, findings, _offending(findings, config.n), counts)
    _say(overlaps, config.n, progress)
    if config.out is not None:
        _write_json(Path(config.out), config, overlaps)
    if config.drop is not None:
        _write_clean(config, overlaps, progress)
    return overlaps


def _check_options(config: OverlapConfig) -> None:
    is_set = _is_trajectory_set(config.train)
    if is_set and config.drop is not None:
        raise InputError(
            f"--drop and the trajectory set {config.train}",
            "a problem set",
            "drop from its problem set and sample again",
        )
    if config.responses and not is_set:
        raise InputError(
            f"--responses and {config.train}, a problem set",
            "a trajectory set: a directory or a shard",
            "leave --responses out",
        )
    names = (config.train, *split_benchmarks(",".join(config.bench)))
    taken = {Path(re.sub(":(math|code)$", "", name)).resolve() for name in names}
    for flag, out in (("--drop", config.drop), ("--out", config.out)):
        if out is not None and Path(out).resolve() in taken:
            raise InputError(f"{flag} {out} is another file of this command", "its own file", f"change {flag}")
        taken |= {Path(out).resolve()} if out is not None else set()


def _is_trajectory_set(name: str) -> bool:
    path = local_path(name)
    return path.is_dir() or shard_number(path) is not None


def _training_files(config: OverlapConfig) -> TrainingFiles:
    columns = ["problem_id", "problem"]
    files, schema = [local_path(config.train)], PROBLEM_SCHEMA
    if _is_trajectory_set(config.train):
        files, schema = [shard for each in open_sets([config.train]) for shard in each.shards], SCHEMA
        columns += ["trajectory_id"] + ["response"] * config.responses
    rows = sum(shard_info(file, schema).rows for file in files)
    return TrainingFiles(tuple(files), schema, tuple(columns), rows)


def _compare(training: TrainingFiles, index: QuestionIndex, progress: Progress) -> list[tuple[Place, Shared]]:
    """Return the place and the shared parts of every training text that shares any, in order."""
    found: list[tuple[Place, Shared]] = []
    done = 0
    progress.start("compared", training.rows)
    for file in training.files:
        for table in iter_tables(file, list(training.columns), training.schema, _ROWS_AT_ONCE):
            for row, values in enumerate(table.to_pylist(), start=done):
                found += _shared_by_row(row, values, index)
            done += table.num_rows
            progress.advance(table.num_rows)
    progress.end()
    return found


def _shared_by_row(row: int, values: dict[str, str | None], index: QuestionIndex) -> Iterator[tuple[Place, Shared]]:
    for part in ("problem", "response"):
        shared = index.shared(values.get(part) or "")
        if shared is not None:
            problem = hashlib.blake2b(values["problem"].encode(), digest_size=16).digest()
            yield (Place(row, values["problem_id"], values.get("trajectory_id"), part, problem), shared)


def _findings(
    index: QuestionIndex, question_ids: Sequence[str], found: Sequence[tuple[Place, Shared]], boilerplate: Boilerplate
) -> Iterator[Finding]:
    short, long = SIZES
    for place, shared in found:
        for overlap in index.overlaps(shared, boilerplate):
            yield Finding(
                place.row,
                place.problem_id,
                place.trajectory_id,
                place.part,
                index.benchmarks[overlap.question],
                question_ids[overlap.question],
                overlap.run,
                overlap.covered[short],
                overlap.covered[long],
                overlap.hit[long],
                overlap.equal,
            )


def _offending(findings: Sequence[Finding], n: int) -> tuple[Finding, ...]:
    worst: dict[int, Finding] = {}
    for finding in findings:
        if finding.hits_at(n):
            kept = worst.setdefault(finding.row, finding)
            if (finding.equal, finding.run, finding.covered_8) > (kept.equal, kept.run, kept.covered_8):
                worst[finding.row] = finding
    return tuple(worst.values())


def _counts(
    benchmarks: dict[str, Benchmark],
    index: QuestionIndex,
    found: Sequence[tuple[Place, Shared]],
    findings: Sequence[Finding],
    boilerplate: Boilerplate,
) -> dict[str, dict[str, Any]]:
    grams = frozenset(gram for _, shared in found for gram in index.known_grams(shared))
    ignored = index.ignored(grams, boilerplate)
    counts = {}
    for name, benchmark in benchmarks.items():
        own = [finding for finding in findings if finding.benchmark == name]
        counts[name] = {
            "source": benchmark.source,
            "revision": benchmark.revision,
            "sha256": benchmark.sha256,
            "questions": len(benchmark.problems),
            "equal": len({f.question_id for f in own if f.equal}),
            "questions_hit": {n: len({f.question_id for f in own if f.hits_at(n)}) for n in SIZES},
            "rows_hit": {n: len({f.row for f in own if f.hits_at(n)}) for n in SIZES},
            "ignored": {n: ignored[name][n] for n in SIZES},
        }
    return counts


def _say(overlaps: Overlaps, n: int, progress: Progress) -> None:
    for name, counts in overlaps.benchmarks.items():
        hits = "; ".join(
            f"{size}-grams: {counted(counts['questions_hit'][size], 'question')} ({_share(counts['questions_hit'][size], counts['questions'])}),"
            f" {counted(counts['rows_hit'][size], 'row')}, {counts['ignored'][size]} ignored as boilerplate"
            for size in SIZES
        )
        progress.note(f"{name}: {counted(counts['questions'], 'question')}, {counts['equal']} equal to a row; {hits}")
    count = len(overlaps.offending)
    progress.note(f"{count} of {counted(overlaps.rows, 'row')} ({_share(count, overlaps.rows)}) overlap at n = {n}")


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.2%}"


def _write_json(path: Path, config: OverlapConfig, overlaps: Overlaps) -> None:
    value = {
        "train": config.train,
        "rows": overlaps.rows,
        "n": config.n,
        "common": config.common,
        "near_copy": NEAR_COPY,
        "offending_rows": len(overlaps.offending),
        "benchmarks": overlaps.benchmarks,
        "findings": [asdict(finding) for finding in overlaps.findings],
    }
    make_directory(path.parent)
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _write_clean(config: OverlapConfig, overlaps: Overlaps, progress: Progress) -> None:
    out, dropped = Path(config.drop), {finding.row for finding in overlaps.offending}
    if len(dropped) == overlaps.rows:
        raise InputError(
            f"0 of {counted(overlaps.rows, 'row')} without overlap",
            "at least one clean row to write",
            "leave --drop out",
        )
    problems = ProblemSet.open(local_path(config.train))
    write_problems(out, (problem for row, problem in enumerate(problems) if row not in dropped))
    count = counted(overlaps.rows - len(dropped), "clean problem")
    progress.note(f"{count} in {out}, {len(dropped)} dropped")
