"""The tables of scores: arms by benchmarks, all scores, differences, and scores by round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trd_cli.report.data import Difference, ReportData, Score
from trd_cli.report.rounds import curves_of
from trd_cli.report.table import Table, Whose, number, plain, table_of
from trd_cli.score_tables import NOTHING, interval, percent, points

_INTERVALS = "Intervals are 95 %, over questions."


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
    header = (*whose.columns, *columns)
    note = f"After the last round of each arm. {_INTERVALS}"
    return table_of("scores", "summary", "Arms by benchmarks", header, rows, len(whose.columns), note)


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
    header = (*whose.columns, "benchmark", "score", *numbers)
    note = f"{_INTERVALS} Truncated, no answer, error and timeout are shares of all samples of the benchmark."
    return table_of("scores", "all", "All scores", header, rows, len(whose.columns) + 2, note)


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
        columns = ("difference", "95 % interval", "p", "p, Holm", "gained", "lost", "questions")
        header = (*whose.columns, "benchmark", "against", *columns)
        note = (
            "Paired differences of avg@k over the questions that both have graded. p is of the sign-flip test over questions, two-sided; p, "
            f"Holm is corrected for their number, {len(members)}. Gained and lost are questions."
        )
        yield table_of(
            "scores",
            f"differences-{i + 1}",
            f"Differences {family}",
            header,
            rows,
            len(whose.columns) + 2,
            note,
        )


def _by_family(differences: Iterable[Difference]) -> dict[str, list[Difference]]:
    found: dict[str, list[Difference]] = {}
    for difference in differences:
        found.setdefault(difference.family, []).append(difference)
    return found


def rounds(data: ReportData) -> Table:
    curves = curves_of(data)
    numbers = sorted({r for curve in curves.values() for r in curve})
    if len(numbers) < 3:
        curves = {}  # before and after one round: the tables above have it
    rows = (
        [arm, plain(seed), benchmark, *(percent(curve[r].value) if r in curve else NOTHING for r in numbers)]
        for (arm, seed, benchmark), curve in curves.items()
    )
    header = ("arm", "seed", "benchmark", *("before" if r == 0 else f"after {r}" for r in numbers))
    return table_of("rounds", "scores", "avg@k by rounds of training", header, rows, 3)
