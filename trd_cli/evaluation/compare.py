"""trd compare: two evaluations of the same questions as paired differences B - A.

A question counts where both have a graded sample. Only samples that both have are compared: the first k of each
question.

The layout of compare.json:

    format, trd, k
    a, b: {path, model, model_revision}
    benchmarks: {name: {
      questions, a, b         number of questions; avg@k of each alone, as in results.json
      difference: {value, low, high (95 %), stderr, p_value, questions}     B - A over the questions both have graded
      gained, lost            ids of the questions that B answers better, or worse, than A
      needed_questions, needed_samples      for 80 % power at the difference seen; null where unknown or impossible
    }}
    left_out: [benchmarks that only one of the two has]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trd_cli import __version__
from trd_cli.atomic import make_directory, write_text
from trd_cli.config.commands import CompareConfig
from trd_cli.errors import InputError
from trd_cli.evaluation.metrics import avg_at_k
from trd_cli.evaluation.paired import paired_difference
from trd_cli.evaluation.results import correct_matrix, json_ready, read_results, results_text
from trd_cli.evaluation.tables import NOTHING, csv_text, interval, markdown_table, percent, points
from trd_cli.progress import Progress

FORMAT = "trd-compare-1"
_DIFFERENCE = ("value", "low", "high", "stderr", "p_value", "questions")
_SHOWN_IDS = 10
# Columns of the table on a terminal; the numbers behind them go below it.
_NARROW = 8
_HEADER = (
    *("benchmark", "A", "B", "B - A", "95 % interval", "p", "gained", "lost"),
    *("questions", "questions needed", "samples needed"),
)


def run(config: CompareConfig, progress: Progress) -> dict[str, Any]:
    """Compare two evaluations, write the result to `--out` where given, and return it in the layout of compare.json.

    Raises InputError where the two share no benchmark, or one of the same name has other questions.
    """
    a, b = read_results(config.a), read_results(config.b)
    shared = [name for name in a["benchmarks"] if name in b["benchmarks"]]
    left_out = sorted(a["benchmarks"].keys() ^ b["benchmarks"].keys())
    if not shared:
        raise InputError(
            f"{config.a} has {_names(a)}, {config.b} has {_names(b)}",
            "a benchmark in both",
            "evaluate both on the same --bench",
        )
    for name in shared:
        _check_questions(name, a["benchmarks"][name], b["benchmarks"][name])
    k = _common_k(config, a, b, progress)
    for line in _remarks(shared, left_out, a, b):
        progress.note(line)
    comparison = {
        "format": FORMAT,
        "trd": __version__,
        "k": k,
        "a": _who(config.a, a),
        "b": _who(config.b, b),
        "benchmarks": {name: _compare(a["benchmarks"][name], b["benchmarks"][name], k) for name in shared},
        "left_out": left_out,
    }
    if config.out is not None:
        _write(Path(config.out), comparison)
        progress.note(f"wrote compare.json, compare.md and compare.csv in {config.out}")
    return comparison


def _names(results: Mapping[str, Any]) -> str:
    return ", ".join(results["benchmarks"])


def _who(path: str, results: Mapping[str, Any]) -> dict[str, str]:
    return {"path": path, "model": results["model"], "model_revision": results["model_revision"]}


def _check_questions(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise InputError where a benchmark's content, or the part of it that was asked, is not the same in both."""
    if a["sha256"] != b["sha256"]:
        raise InputError(
            f"{name} has other questions in A (SHA-256 {a['sha256'][:12]}) than in B ({b['sha256'][:12]})",
            "the same content in both",
            "evaluate both on one version of it",
        )
    if list(a["samples"]) != list(b["samples"]):
        raise InputError(
            f"{name} has {len(a['samples'])} questions in A and {len(b['samples'])} in B, not the same ones in the same order",
            "the same questions in both",
            "evaluate both with the same --limit",
        )


def _common_k(config: CompareConfig, a: Mapping[str, Any], b: Mapping[str, Any], progress: Progress) -> int:
    """Return how many samples of each question are compared: --k, else as many as both have."""
    both = min(a["k"], b["k"])
    if config.k is not None and config.k > both:
        raise InputError(
            f"--k {config.k}, and there are {a['k']} samples of each question in A, {b['k']} in B",
            f"at most {both}",
            "lower --k, or evaluate with more samples and trd eval --k",
        )
    if config.k is None and a["k"] != b["k"]:
        progress.note(f"A has {a['k']} samples of each question, B has {b['k']}: the first {both} are compared")
    return config.k or both


def _remarks(
    shared: Sequence[str], left_out: Sequence[str], a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the differences between the two evaluations that a paired comparison assumes away."""
    if left_out:
        yield f"in one of the two alone, so left out: {', '.join(left_out)}"
    for name in shared:
        one, other = a["benchmarks"][name], b["benchmarks"][name]
        for key in ("temperature", "top_p", "top_k", "max_tokens"):
            pair = one["sampling"][key], other["sampling"][key]
            if pair[0] != pair[1]:
                yield f"{name}: {key} is {pair[0]} in A, {pair[1]} in B"
        for key in ("prompt", "grader"):
            if one[key] != other[key]:
                yield f"{name}: {key} is {one[key][:40]} in A, {other[key][:40]} in B"


def _compare(a: Mapping[str, Any], b: Mapping[str, Any], k: int) -> dict[str, Any]:
    correct_a_QK, correct_b_QK = (correct_matrix(each["samples"])[:, :k] for each in (a, b))
    ids = list(a["samples"])
    d = paired_difference(correct_a_QK, correct_b_QK)
    numbers = json_ready(asdict(d))
    return {
        "questions": len(ids),
        "a": json_ready(asdict(avg_at_k(correct_a_QK, k))),
        "b": json_ready(asdict(avg_at_k(correct_b_QK, k))),
        "difference": {key: numbers[key] for key in _DIFFERENCE},
        "gained": [ids[i] for i in d.gained],
        "lost": [ids[i] for i in d.lost],
        "needed_questions": d.needed_questions,
        "needed_samples": d.needed_samples,
    }


def _write(directory: Path, comparison: Mapping[str, Any]) -> None:
    make_directory(directory)
    write_text(directory / "compare.json", results_text(comparison))
    write_text(directory / "compare.md", markdown(comparison))
    write_text(directory / "compare.csv", comparison_csv(comparison))


def _row(name: str, bench: Mapping[str, Any]) -> list[str]:
    d = bench["difference"]
    needed = (NOTHING if bench[key] is None else str(bench[key]) for key in ("needed_questions", "needed_samples"))
    return [
        name,
        percent(bench["a"]["value"]),
        percent(bench["b"]["value"]),
        points(d["value"]),
        interval(d, "+"),
        NOTHING if d["p_value"] is None else f"{d['p_value']:.2g}",
        str(len(bench["gained"])),
        str(len(bench["lost"])),
        str(d["questions"]),
        *needed,
    ]


def _legend(comparison: Mapping[str, Any], numbers: str) -> str:
    count = len(comparison["benchmarks"])
    several = f" There are {count} comparisons; the p-values are not corrected for that." if count > 1 else ""
    return (
        f"A and B are avg@{comparison['k']}. {numbers}: how many questions, or how many samples of each of these questions, a "
        "test at 5 % would need to see the observed difference with 80 % power." + several
    )


def _title(comparison: Mapping[str, Any]) -> str:
    a, b = ("{model} ({path})".format(**comparison[side]) for side in ("a", "b"))
    return f"A: {a}. B: {b}."


def _moved(comparison: Mapping[str, Any], most: int | None = None) -> Iterator[str]:
    """Yield a line for the gained and for the lost questions of each benchmark, with at most `most` ids."""
    for name, bench in comparison["benchmarks"].items():
        for key in ("gained", "lost"):
            ids = bench[key]
            more = "" if most is None or len(ids) <= most else f" and {len(ids) - most} more"
            if ids:
                yield f"{name}, {key}: {', '.join(ids[:most])}{more}"


def markdown(comparison: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown, with all ids."""
    rows = [_row(name, bench) for name, bench in comparison["benchmarks"].items()]
    lines = [f"- {line}" for line in _moved(comparison)]
    parts = [
        _title(comparison),
        markdown_table(_HEADER, rows),
        _legend(comparison, "The last two columns"),
        "\n".join(lines),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_csv(comparison: Mapping[str, Any]) -> str:
    """Return one line a benchmark, with plain numbers; gained and lost are counts."""
    header = (*("benchmark", "k", "a", "b", *_DIFFERENCE), *("gained", "lost", "needed_questions", "needed_samples"))
    rows = (
        [
            *(name, comparison["k"], bench["a"]["value"], bench["b"]["value"]),
            *(bench["difference"][key] for key in _DIFFERENCE),
            *(len(bench["gained"]), len(bench["lost"]), bench["needed_questions"], bench["needed_samples"]),
        ]
        for name, bench in comparison["benchmarks"].items()
    )
    return csv_text(header, rows)


def for_a_terminal(comparison: Mapping[str, Any]) -> Group:
    """Return the comparison as a narrower table, with long lists of ids cut."""
    table = Table()
    for number, column in enumerate(_HEADER[:_NARROW]):
        table.add_column(column, overflow="fold", no_wrap=number > 0)
    for name, bench in comparison["benchmarks"].items():
        table.add_row(*(Text(cell) for cell in _row(name, bench)[:_NARROW]))
    needed = [
        f"{name}: {' or '.join(_needed(bench))} to see it"
        for name, bench in comparison["benchmarks"].items()
        if _needed(bench)
    ]
    below = (_legend(comparison, "The numbers below"), *needed, *_moved(comparison, _SHOWN_IDS))
    return Group(Text(_title(comparison)), table, *(Text(line) for line in below))


def _needed(bench: Mapping[str, Any]) -> list[str]:
    numbers = {"questions": bench["needed_questions"], "samples a question": bench["needed_samples"]}
    return [f"{number} {what}" for what, number in numbers.items() if number is not None]
