"""The tables of a report, for the page and as Markdown. csv_files.py writes the same figures for programs.

All are pure functions of the figures. A dash stands for an unknown figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from statistics import median
from typing import Any

from trd_cli.datasets.ngrams import SIZES
from trd_cli.diagnosis.tables import tables as diagnosis_tables
from trd_cli.evaluation.table import Table, count, number, plain, table_of
from trd_cli.evaluation.tables import NOTHING, interval, markdown_table, percent, points
from trd_cli.report.data import (
    ALL_SEEDS,
    Difference,
    Nll,
    Refinement,
    ReportData,
    Score,
    Seed,
    Spread,
    Training,
)
from trd_cli.report.round_tables import by_round, cost_of_rounds
from trd_cli.report.rounds import details, evenly, has_many_rounds
from trd_cli.report.scores import are_several, curves_of

SECTIONS = {
    "scores": "Scores",
    "rounds": "By round",
    "refinement": "Refinement",
    "prefix": "Prefix failure",
    "training": "Training",
    "cost": "Cost",
}
_INTERVALS = "Intervals are 95 %, over questions."
_QUANTILES = ("mean", "5 %", "25 %", "median", "75 %", "95 %")
_DIVERGENCES = ("divergence_p50", "divergence_p95", "divergence_p99")
_NLL = {
    "y_o": "y_o under the student",
    "y_r": "y_r under the student",
    "y*": "y* under the student",
    "y_r, refiner": "y_r under the teacher, in the refinement prompt",
}
# Tables that show some of many rounds, by the beginnings of their names → the files with all rounds.
_EVERY_ROUND = {
    "scores-all": "scores.csv",
    "refinement-verdicts": "verdicts.csv",
    "refinement-changes": "refinement.csv",
    "refinement-nll": "nll.csv",
    "refinement-leaks": "leaks.csv",
    "training-steps": "training.csv",
    "training-positions": "kl_by_position.csv",
}


def tables(data: ReportData) -> list[Table]:
    """Return all tables that have a row, in the order of the page. Of many rounds they show some (`report.rounds`)."""
    shown = details(data)
    made = (
        _summary(shown),
        _scores(shown),
        *_differences(shown),
        _rounds(data),
        *([by_round(data)] if has_many_rounds(data) else []),
        *(_verdicts(each) for each in shown.refinements),
        _changes(shown),
        _nll(shown),
        _leaked(shown),
        *_diagnoses(data),
        _training(shown),
        _positions(shown),
        cost_of_rounds(data),
        *([] if has_many_rounds(data) else [_cost(data)]),
    )
    found = [table for table in made if table.rows]
    return found if shown is data else [_with_rest(table) for table in found]


def _with_rest(table: Table) -> Table:
    """Add to the note of a table of some rounds where those of the others are."""
    file = next((file for begin, file in _EVERY_ROUND.items() if table.name.startswith(begin)), None)
    if file is None:
        return table
    return replace(table, note=f"{table.note} The first and the last round of each arm are here, all rounds in {file}.")


def markdown(data: ReportData) -> str:
    """Return the report without its plots. It begins with the parts that are missing."""
    parts = [f"# {data.name}"]
    for words, lines in (("Missing, not finished, or not readable", data.missing), ("Notes", data.notes)):
        if lines:
            parts.append(f"{words}:\n\n" + "\n".join(f"- {line}" for line in lines))
    for section, group in groupby(tables(data), key=lambda table: table.section):
        parts.append(f"## {SECTIONS[section]}")
        for table in group:
            parts += [f"### {table.title}", markdown_table(table.columns, table.rows), table.note]
    return "\n\n".join(part for part in parts if part) + "\n"


def _note(seeds: Iterable[Seed], *sentences: str) -> str:
    """Join the sentences, and explain rows of all seeds if there are any."""
    of_all = (
        f'Rows of seed "{ALL_SEEDS}" are means over the seeds of the arm. Their intervals are from a hierarchical bootstrap over seeds '
        "and questions, and p from a t-test over both: they hold for other seeds and other questions like these, and are wide with few seeds."
    )
    return " ".join([*sentences, *([of_all] if ALL_SEEDS in seeds else [])])


def _ends(score: Score | Difference) -> dict[str, float | None]:
    return {"low": score.low, "high": score.high}


def _summary(data: ReportData) -> Table:
    """Return arms × benchmarks: avg@k after each arm's last round."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    shown = [score for score in data.last_scores() if score.score.startswith("avg@")]
    whose = _Whose(shown)
    for score in shown:
        cells = found.setdefault(whose.cells(score), {})
        cells[f"{score.benchmark}, {score.score}"] = f"{percent(score.value)} ({interval(_ends(score))})"
    columns = list(dict.fromkeys(column for cells in found.values() for column in cells))
    rows = ([*key, *(cells.get(column, NOTHING) for column in columns)] for key, cells in found.items())
    note = _note((s.seed for s in shown), "After the last evaluated round of each arm.", _INTERVALS)
    return table_of("scores-summary", "Arms by benchmarks", whose.columns, columns, rows, note)


def _scores(data: ReportData) -> Table:
    whose = _Whose(data.scores)
    rows = (
        [
            *(*whose.cells(s), s.benchmark, s.score, percent(s.value), interval(_ends(s)), str(s.questions)),
            *(percent(share) for share in (s.truncated, s.no_answer, s.error, s.timeout)),
        ]
        for s in data.scores
    )
    numbers = ("value", "95 % interval", "questions", "truncated", "no answer", "error", "timeout")
    words = (*whose.columns, "benchmark", "score")
    ends = "Truncated, no answer, error and timeout are shares of all samples of the benchmark."
    note = _note((s.seed for s in data.scores), _INTERVALS, ends)
    return table_of("scores-all", "All scores", words, numbers, rows, note)


def _differences(data: ReportData) -> Iterator[Table]:
    """Yield one table for each family of comparisons."""
    for i, (family, members) in enumerate(_by_family(data.differences).items()):
        whose = _Whose(members)
        rows = (
            [
                *(*whose.cells(d), d.benchmark, d.against, points(d.value), interval(_ends(d), "+")),
                *(number(d.p_value, 2), number(d.p_holm, 2), str(d.gained), str(d.lost), str(d.questions)),
            ]
            for d in members
        )
        numbers = ("difference", "95 % interval", "p", "p, Holm", "gained", "lost", "questions")
        words = (*whose.columns, "benchmark", "against")
        tested = sum(d.p_value is not None for d in members)
        note = _note(
            (d.seed for d in members),
            "A difference is the arm's avg@k minus that of the arm under “against”, in percentage points, paired over the "
            "questions that have a graded sample on both sides.",
            "p is two-sided, of one seed by flipping signs over questions;",
            f"p, Holm is corrected for the number of tests in this table, {tested}.",
            "Gained and lost count the questions on which the arm is better and worse.",
        )
        title = f"Differences {family}"
        yield table_of(f"scores-differences-{i + 1}", title, words, numbers, rows, note)


def _by_family(differences: Iterable[Difference]) -> dict[str, list[Difference]]:
    found: dict[str, list[Difference]] = {}
    for difference in differences:
        found.setdefault(difference.family, []).append(difference)
    return found


def _rounds(data: ReportData) -> Table:
    found = curves_of(data)
    if not are_several(found):
        found = {}
    numbers = sorted({r for curve in found.values() for r in curve})
    shown = evenly(numbers) if has_many_rounds(data) else numbers
    rows = (
        [arm, plain(seed), benchmark, *(percent(curve[r].value) if r in curve else NOTHING for r in shown)]
        for (arm, seed, benchmark), curve in found.items()
    )
    columns = ["before" if r == 0 else f"after {r}" for r in shown]
    before = "Before is the base model, which all arms and seeds share." if 0 in numbers else ""
    rest = f"{len(shown)} of {len(numbers)} are here, all in scores.csv." if len(shown) < len(numbers) else ""
    note = _note((seed for _, seed, _ in found), *filter(None, [before, rest]))
    return table_of("rounds-scores", "avg@k by rounds of training", ("arm", "seed", "benchmark"), columns, rows, note)


def _verdicts(refinement: Refinement) -> Table:
    """Return the verdicts of y_o (rows) against those of y_r (columns)."""
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


def _changes(data: ReportData) -> Table:
    """Return lengths and edits."""
    rows = []
    for r in data.refinements:
        figures: Mapping[str, Spread | None] = {
            "tokens of y_o": r.lengths["y_o"],
            "tokens of y_r": r.lengths["y_r"],
            "token edit distance, share of the longer": r.edit_distance,
            "common prefix, share of y_o": r.common_prefix,
            **r.of_episodes(),
        }
        rows += [(r.node, name, *_spread(spread, name)) for name, spread in figures.items() if spread]
    note = (
        "Over the rows in which y_o and y_r both have a response. The edit distance is Levenshtein over tokens, divided by the longer of "
        "the two; the common prefix is how much of y_o's tokens y_r begins with. Of an episode, tokens are those that the models wrote. "
        "Quantiles are interpolated linearly."
    )
    title, words = "Changes by the teacher", ("refined set", "figure")
    return table_of("refinement-changes", title, words, ("rows", *_QUANTILES), rows, note)


def _spread(spread: Spread, name: str) -> list[str]:
    values = (spread.mean, spread.p05, spread.p25, spread.p50, spread.p75, spread.p95)
    shown = count if name.startswith("tokens") else lambda v: f"{v:.3f}"
    return [str(spread.rows), *map(shown, values)]


def _nll(data: ReportData) -> Table:
    rows = [(r.node, label, *_nll_cells(r.nll.get(key))) for r in data.refinements for key, label in _NLL.items()]
    note = (
        "Means over tokens. The student reads the problem alone: the lower the figure, the more the text is like the student's own. "
        "Figures of different rows should not be compared closely; trd report --nll N scores all three texts of the same N rows."
    )
    words, numbers = ("refined set", "text", "from"), ("nats a token", "tokens", "rows")
    return table_of("refinement-nll", "Negative log-likelihood", words, numbers, rows, note)


def _nll_cells(nll: Nll | None) -> tuple[str, ...]:
    if nll is None:
        return (NOTHING,) * 4
    return nll.source, f"{nll.value:.3f}", count(nll.tokens), count(nll.rows)


def _leaked(data: ReportData) -> Table:
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
        "trd_cli/report/leaks.py; y_o was written without y*, so its share shows the false alarms. Copied means that y_r has a run of so "
        "many words of y* that is neither in y_o nor in the problem."
    )
    return table_of("refinement-leaks", "References leaked", ("refined set",), numbers, rows, note)


def _diagnoses(data: ReportData) -> Iterator[Table]:
    for name, diagnosis in data.diagnoses.items():
        yield from diagnosis_tables(diagnosis, name if len(data.diagnoses) > 1 else "")


def _training(data: ReportData) -> Table:
    rows = [(t.node, *_training_cells(t)) for t in data.trainings]
    numbers = (
        *("steps", "trajectories, first step", "loss, first tenth", "loss, last tenth"),
        *("divergence p50, last tenth", "p95, last tenth", "p99, last tenth"),
        *("gradient norm, median", "gradient norm, largest", "top-1 agreement, last tenth"),
    )
    note = (
        "Loss and divergence are in nats, under the arm's own objective: those of different objectives cannot be compared. First and last "
        "tenth are means over the first and the last tenth of the steps, of one step at least, weighted by their trajectories; the quantiles "
        "of the divergence are such means of each step's quantiles. The gradient norm is over all steps, before clipping."
    )
    return table_of("training-steps", "Loss, divergence and gradients", ("training",), numbers, rows, note)


def _training_cells(training: Training) -> list[str]:
    norms = [step["grad_norm"] for step in training.steps]
    return [
        *(str(len(training.steps)), count(training.steps[0]["trajectories"])),
        *(number(training.mean("loss", end)) for end in ("first", "last")),
        *(number(training.mean(key, "last")) for key in _DIVERGENCES),
        *(number(median(norms)), number(max(norms)), percent(training.mean("top1_agreement", "last"))),
    ]


def _positions(data: ReportData) -> Table:
    rows = [
        (t.node, verdict, *(number(value) for value in means))
        for t in data.trainings
        for verdict, means in (t.kl_by_position or {}).items()
    ]
    numbers = [f"{10 * i}–{10 * i + 10} %" for i in range(10)]
    note = (
        "Mean divergence in nats, over all steps, at the tokens in each tenth of the response that is trained on. Rows whose y_o was correct "
        "and rows whose y_o was incorrect have means of their own; rows with neither verdict are left out."
    )
    return table_of("training-positions", "Divergence by position", ("training", "y_o was"), numbers, rows, note)


def _cost(data: ReportData) -> Table:
    rows = [
        (
            *(n.name, n.stage, n.state, count(n.rows), count(n.tokens)),
            *(
                NOTHING if n.seconds is None else f"{n.seconds:,.1f}",
                NOTHING if n.tokens_per_second is None else f"{n.tokens_per_second:,.1f}",
            ),
            NOTHING if n.peak_bytes is None else f"{n.peak_bytes / 2**30:.2f}",
        )
        for n in data.nodes
    ]
    numbers = ("rows", "tokens", "seconds", "tokens/s", "peak memory, GiB")
    note = (
        "Tokens are those of responses that models wrote: generated, or for distill trained on in all epochs. Seconds are wall time with the start of the process, "
        "tokens/s are without it. Peak memory is the host's, resident; for distill on a GPU it is the allocator's peak if that is more. The "
        "GPU memory of sample, refine and eval is not included."
    )
    title, words = "Rows, tokens, time and memory", ("node", "stage", "state")
    return table_of("cost-nodes", title, words, numbers, rows, note)


class _Whose:
    """The columns that tell rows apart: the arm, and round and seed if there are several."""

    def __init__(self, values: Iterable[Any]) -> None:
        values = list(values)
        self._fields = ["arm"]
        self._fields += [f for f in ("round", "seed") if len({getattr(v, f) for v in values} - {None}) > 1]
        self.columns = tuple(self._fields)

    def cells(self, value: Any) -> tuple[str, ...]:
        return tuple(plain(getattr(value, field)) for field in self._fields)
