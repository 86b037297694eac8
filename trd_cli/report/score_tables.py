"""The tables of scores: arms by benchmarks, all scores, differences, and scores by round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trd_cli.evaluation.tables import NOTHING, interval, percent, points
from trd_cli.report.data import ALL_SEEDS, Difference, ReportData, Score, Seed
from trd_cli.report.rounds import are_several, curves_of
from trd_cli.report.table import Table, Whose, number, plain, table_of

_INTERVALS = "Intervals are 95 %, over questions."


def _note(seeds: Iterable[Seed], *sentences: str) -> str:
    """The sentences, and with rows of all seeds among these what such a row says."""
    of_all = (
        f'Rows of seed "{ALL_SEEDS}" are over the samples of all seeds of the arm. Their intervals and p are over questions: they hold for '
        "these students, not for those that other seeds would give."
    )
    return " ".join([*sentences, *([of_all] if ALL_SEEDS in seeds else [])])


def _ends(score: Score | Difference) -> dict[str, float | None]:
    return {"low": score.low, "high": score.high}


def summary(data: ReportData) -> Table:
    """Arms × benchmarks: avg@k after the last round."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    shown = [score for score in data.last_scores() if score.score.startswith("avg@")]
    whose = Whose(shown)
    for score in shown:
        # Rounds need not be equally many in all arms: the arm's last is meant.
        cells = found.setdefault(whose.cells(score), {})
        cells[f"{score.benchmark}, {score.score}"] = f"{percent(score.value)} ({interval(_ends(score))})"
    columns = list(dict.fromkeys(column for cells in found.values() for column in cells))
    rows = ([*key, *(cells.get(column, NOTHING) for column in columns)] for key, cells in found.items())
    note = _note((s.seed for s in shown), "After the last evaluated round of each arm.", _INTERVALS)
    return table_of("scores-summary", "Arms by benchmarks", whose.columns, columns, rows, note)


def scores(data: ReportData) -> Table:
    whose = Whose(data.scores)
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


def differences(data: ReportData) -> Iterator[Table]:
    """One table for each thing that is compared to."""
    for i, (family, members) in enumerate(_by_family(data.differences).items()):
        whose = Whose(members)
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
            "A difference is the arm's avg@k minus that of what it is compared against, in percentage points, paired over the questions "
            "that have a graded sample on both sides.",
            "p is of the two-sided sign-flip test over questions;",
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


def rounds(data: ReportData) -> Table:
    curves = curves_of(data)
    if not are_several(curves):
        curves = {}
    numbers = sorted({r for curve in curves.values() for r in curve})
    rows = (
        [arm, plain(seed), benchmark, *(percent(curve[r].value) if r in curve else NOTHING for r in numbers)]
        for (arm, seed, benchmark), curve in curves.items()
    )
    columns = ["before" if r == 0 else f"after {r}" for r in numbers]
    before = "Before is the base model, which all arms and seeds share." if 0 in numbers else ""
    note = _note((seed for _, seed, _ in curves), *filter(None, [before]))
    return table_of("rounds-scores", "avg@k by rounds of training", ("arm", "seed", "benchmark"), columns, rows, note)
