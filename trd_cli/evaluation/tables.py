"""Tables made from results.json: Markdown for people, CSV for programs, and the few scores shown at once.

Each is a function of the results alone, in their order: benchmarks as evaluated, then avg, pass and maj by rising k.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trd_cli.records import ENDED
from trd_cli.trajectories.episode_columns import FIGURES

KINDS = ("avg", "pass", "maj", "base_avg", "base_pass")
_ESTIMATE = ("value", "low", "high", "stderr", "stderr_within", "questions")
_SHARES = {
    "truncated": "truncated",
    "no_answer": "no answer",
    "unclosed_thinking": "unclosed thinking",
    "error": "error",
    "timeout": "timeout",
}
NOTHING = "–"


def scored(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the scores of each benchmark, then of each mean of several."""
    yield from results["benchmarks"].items()
    for name, mean in results.get("means", {}).items():
        yield f"{name} (mean of {len(mean['benchmarks'])})", mean


def headline(bench: Mapping[str, Any], k: int) -> list[str]:
    """Return the names of the few scores that matter most: avg@k, pass@1, pass@k, maj@k for math, base_pass@1 for
    EvalPlus.
    """
    names = dict.fromkeys((f"avg@{k}", "pass@1", f"pass@{k}", *([f"maj@{k}"] if k > 1 else []), "base_pass@1"))
    return [name for name in names if name in bench["scores"]]


def shares(bench: Mapping[str, Any]) -> str:
    """Return one line on how the samples ended; errors and timeouts are counted even when there are none."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in bench["verdicts"].items())
    told = ", ".join(f"{label} {bench[key]:.1%}" for key, label in _SHARES.items() if key not in bench["verdicts"])
    tokens = bench["tokens"]
    return f"{counts}; {told}; {tokens['mean']:.0f} tokens a response, median {tokens['median']:g}"


def episodes(bench: Mapping[str, Any]) -> str:
    """Return one line on the figures of a benchmark of episodes, with intervals, and on how they ended."""
    figures = (f"{FIGURES[name]} {shown} ({between})" for name, shown, between in _figures(bench))
    return f"{', '.join(figures)}; {_stop_reasons(bench)}"


def _figures(bench: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the value and the interval of each figure of a benchmark of episodes."""
    for name in FIGURES:
        estimate = bench["episodes"][name]
        if name == "invalid_actions":
            yield name, percent(estimate["value"]), interval(estimate)
        else:
            values = (NOTHING if estimate[key] is None else f"{estimate[key]:.2f}" for key in ("value", "low", "high"))
            value, low, high = values
            yield name, value, NOTHING if low == NOTHING else f"{low} – {high}"


def _stop_reasons(bench: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {ENDED[reason]}" for reason, n in bench["episodes"]["stop_reasons"].items() if n) or NOTHING


def percent(value: float | None) -> str:
    """Return a share in percent with one decimal; a dash for null."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def points(difference: float | None) -> str:
    """Return a difference of two shares in percentage points, with its sign; a dash for null."""
    return NOTHING if difference is None else f"{100 * difference:+.1f} pp"


def interval(estimate: Mapping[str, Any], sign: str = "") -> str:
    """Return the 95 % interval in percent; a dash for null."""
    if estimate["low"] is None:
        return NOTHING
    between = " to " if sign else " – "
    return f"{100 * estimate['low']:{sign}.1f}{between}{100 * estimate['high']:{sign}.1f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a pipe table; a `|` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV as RFC 4180 has it, but with plain newlines; None is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def results_csv(results: Mapping[str, Any]) -> str:
    """Return one line a benchmark and score, for every k, and one a figure of episodes, with plain numbers."""
    rows = (
        [name, *score.split("@"), *(estimate[key] for key in _ESTIMATE)]
        for name, bench in scored(results)
        for score, estimate in (*bench["scores"].items(), *_estimates_of_episodes(bench, results["k"]))
    )
    return csv_text(("benchmark", "score", "k", *_ESTIMATE), rows)


def _estimates_of_episodes(bench: Mapping[str, Any], k: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "episodes" in bench:
        yield from ((f"{name}@{k}", bench["episodes"][name]) for name in FIGURES)


def results_markdown(results: Mapping[str, Any]) -> str:
    """Return the scores at powers of two and at k, how the samples ended, and what was evaluated."""
    benchmarks, k = results["benchmarks"], results["k"]
    scores = (
        _score_row(name, score, bench["scores"][score]) for name, bench in scored(results) for score in _told(bench, k)
    )
    ends = (
        [
            name,
            *(percent(bench[key]) for key in _SHARES),
            f"{bench['tokens']['mean']:.1f}",
            f"{bench['tokens']['median']:g}",
        ]
        for name, bench in benchmarks.items()
    )
    parts = [
        f"# {results['model']}, k = {k}",
        f"Model revision {results['model_revision']}, {results['engine']}, trd {results['trd']}. Intervals are 95 %, over "
        "questions. The standard error holds the spread of the questions; sampling noise is the part that more samples of "
        "each would shrink (an estimate of its own, unknown where there are too few).",
        markdown_table(
            ("benchmark", "score", "value", "interval", "standard error", "sampling noise", "questions"), scores
        ),
        markdown_table(("benchmark", *_SHARES.values(), "tokens, mean", "tokens, median"), ends),
        *_table_of_episodes(benchmarks),
        markdown_table(
            ("benchmark", "questions from", "SHA-256", "sampling", "grader"),
            ([name, *_origin(bench)] for name, bench in benchmarks.items()),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table_of_episodes(benchmarks: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of the figures of episodes where a benchmark has them."""
    columns = [part for label in FIGURES.values() for part in (label, "interval")]
    rows = [
        [name, *(part for _, *parts in _figures(bench) for part in parts), _stop_reasons(bench)]
        for name, bench in benchmarks.items()
        if "episodes" in bench
    ]
    if rows:
        yield markdown_table(("benchmark", *columns, "ended"), rows)


def _told(bench: Mapping[str, Any], k: int) -> list[str]:
    """Return the names of avg@k, and of pass@j and maj@j for k and the powers of two below it."""
    powers = [2**i for i in range(k.bit_length()) if 2**i < k] + [k]
    names = [f"avg@{k}", *(f"{kind}@{j}" for kind in KINDS[1:] for j in powers)]
    return [name for name in names if name in bench["scores"]]


def _score_row(name: str, score: str, estimate: Mapping[str, Any]) -> list[str]:
    noise = (percent(estimate[key]) for key in ("stderr", "stderr_within"))
    return [name, score, percent(estimate["value"]), interval(estimate), *noise, str(estimate["questions"])]


def _origin(bench: Mapping[str, Any]) -> list[str]:
    known = " (not the one trd knows)" if bench["known"] is False else ""
    first = f", the first {bench['limit']} questions" if bench["limit"] else ""
    return [bench["source"] + first, bench["sha256"][:12] + known, sampling_text(bench["sampling"]), bench["grader"]]


def sampling_text(sampling: Mapping[str, Any]) -> str:
    """Return the sampling of a benchmark in one line."""
    return (
        f"T {sampling['temperature']:g}, top-p {sampling['top_p']:g}, top-k {sampling['top_k']}, "
        f"at most {sampling['max_tokens']} new tokens, seed {sampling['seed']}"
    )
