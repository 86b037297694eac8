"""The tables of refinement: verdicts, lengths and edits, likelihood under the student, references leaked."""

from __future__ import annotations

from collections.abc import Mapping

from trd_cli.datasets.ngrams import SIZES
from trd_cli.evaluation.tables import NOTHING, percent
from trd_cli.report.data import Nll, Refinement, ReportData, Spread
from trd_cli.report.table import Table, count, table_of

_QUANTILES = ("mean", "5 %", "25 %", "median", "75 %", "95 %")


def verdicts(refinement: Refinement) -> Table:
    """Verdicts of y_o (lines) against those of y_r (columns)."""
    befores, afters = (refinement.verdicts(side) for side in (0, 1))
    total = max(1, refinement.rows)

    def cell(before: str, after: str) -> str:
        rows = refinement.matrix.get((before, after), 0)
        return f"{rows:,} ({100 * rows / total:.1f} %)"

    rows = ([f"y_o {before}", *(cell(before, after) for after in afters)] for before in befores)
    name = f"refinement-verdicts-{refinement.node.replace('/', '-')}"
    title = f"Verdicts y_o → y_r, {refinement.node}"
    note = (
        f"{refinement.setting.upper()}, {refinement.rows:,} rows, of which {refinement.errors:,} lack the response of y_o or y_r. Percentages "
        "are of all rows."
    )
    return table_of(name, title, ("",), [f"y_r {after}" for after in afters], rows, note)


def changes(data: ReportData) -> Table:
    """Lengths and edits."""
    rows = []
    for r in data.refinements:
        figures: Mapping[str, Spread | None] = {
            "tokens of y_o": r.lengths["y_o"],
            "tokens of y_r": r.lengths["y_r"],
            "token edit distance, share of the longer": r.edit_distance,
            "common prefix, share of y_o": r.common_prefix,
        }
        rows += [(r.node, name, *_spread(spread, name)) for name, spread in figures.items() if spread]
    note = (
        "Over the rows in which y_o and y_r both have a response. The edit distance is Levenshtein over tokens, divided by the longer of "
        "the two; the common prefix is how much of y_o's tokens y_r begins with. Quantiles are interpolated linearly."
    )
    title, words = "What the teacher changed", ("refined set", "figure")
    return table_of("refinement-changes", title, words, ("rows", *_QUANTILES), rows, note)


def _spread(spread: Spread, name: str) -> list[str]:
    values = (spread.mean, spread.p05, spread.p25, spread.p50, spread.p75, spread.p95)
    shown = count if name.startswith("tokens") else lambda v: f"{v:.3f}"
    return [str(spread.rows), *map(shown, values)]


NLL = {
    "y_o": "y_o under the student",
    "y_r": "y_r under the student",
    "y*": "y* under the student",
    "y_r, refiner": "y_r under the teacher, in the refinement prompt",
}


def nll(data: ReportData) -> Table:
    rows = [(r.node, label, *_nll_cells(r.nll.get(key))) for r in data.refinements for key, label in NLL.items()]
    note = (
        "Means over tokens. The student reads the problem alone: the lower, the more the text is like what it writes itself. "
        "Figures of different rows should not be compared closely; trd report --nll N scores all three texts of the same N rows."
    )
    words, numbers = ("refined set", "text", "from"), ("nats a token", "tokens", "rows")
    return table_of("refinement-nll", "Negative log-likelihood", words, numbers, rows, note)


def _nll_cells(nll: Nll | None) -> tuple[str, ...]:
    if nll is None:
        return (NOTHING,) * 4
    return nll.source, f"{nll.value:.3f}", count(nll.tokens), count(nll.rows)


def leaked(data: ReportData) -> Table:
    shown = [(r.node, r.leaks) for r in data.refinements if r.leaks is not None]
    rows = [
        (
            node,
            count(leaks.rows),
            percent(leaks.talks),
            percent(leaks.talks_before),
            *(percent(leaks.copies[n]) for n in SIZES),
        )
        for node, leaks in shown
    ]
    copied = (f"y_r copies {n} words of y*" for n in SIZES)
    numbers = ("rows", "y_r talks of a reference", "y_o talks of one", *copied)
    note = (
        "Shares of the rows that have y* and a response on both sides. Talk of a reference is found by the phrases listed in "
        "trd_cli/report/leaks.py; y_o was written without y*, so its share is what they find by mistake. Copied means that y_r has a run of so "
        "many words of y* that is neither in y_o nor in the problem."
    )
    return table_of("refinement-leaks", "References leaked", ("refined set",), numbers, rows, note)
