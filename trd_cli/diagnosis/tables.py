"""The tables of a diagnosis, for a terminal, a page and Markdown, and its lines of CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, fields, replace
from typing import Any

from trd_cli.diagnosis.figures import ALL, LEVELS, Estimate
from trd_cli.diagnosis.pairs import CERTAIN, FAR, SHORT, Paired
from trd_cli.diagnosis.recovery import Recovery
from trd_cli.diagnosis.results import Diagnosis
from trd_cli.diagnosis.sums import perplexity
from trd_cli.evaluation.table import Table, count, number, table_of
from trd_cli.evaluation.tables import NOTHING, interval, percent
from trd_cli.training.tenths import TENTHS

Shown = Callable[[float], str]
_INTERVALS = "Intervals are 95 %, over rows."
_GROUP = ("text", "verdict")
# Figures by tenth → label, and how a value is shown.
BY_TENTH: dict[str, tuple[str, Shown]] = {
    "forward_kl": ("forward KL, nats", number),
    "reverse_kl": ("reverse KL, nats", number),
    "onset_mass": ("onset mass, ‰", lambda value: number(1000 * value)),
    "overlap": ("overlap of the top-16, %", lambda value: f"{100 * value:.1f}"),
    "overlap_advantage": ("advantage on it, nats", number),
    "fragmentation": ("share of ‖p − q‖₂, %", lambda value: f"{100 * value:.1f}"),
    "first_trigger": ("first trigger here, % of rows", lambda value: f"{100 * value:.1f}"),
}
_PAIRED = {
    "tokens": ("tokens", count),
    "onset_words": ("onset words a thousand tokens", number),
    "student_nll": ("NLL under the student, nats a token", number),
    "teacher_nll": ("NLL under the teacher, nats a token", number),
}


def tables(diagnosis: Diagnosis, name: str = "") -> list[Table]:
    """Return all tables that have a row. `name` tells the tables of several diagnoses apart."""
    made = (
        _models(diagnosis),
        _onset(diagnosis),
        _ends(diagnosis),
        *_positions(diagnosis),
        _shortening(diagnosis),
        _recovery(diagnosis),
    )
    found = [table for table in made if table.rows]
    if not name:
        return found
    plain = name.replace("/", "-")
    return [replace(t, name=f"{t.name}-{plain}", title=f"{t.title}, {name}") for t in found]


def csv_files(diagnoses: Mapping[str, Diagnosis]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return titles and lines of the CSV files by name. Nothing is rounded, and None is unknown."""
    figures, pairs, scatter, recovery = [], [], [], []
    for name, diagnosis in diagnoses.items():
        figures += [[name, *astuple(each)] for each in diagnosis.figures]
        pairs += [[name, *astuple(each)] for each in (diagnosis.shortening.figures if diagnosis.shortening else ())]
        recovery += [[name, *astuple(each)] for each in diagnosis.recovery]
        scatter += [
            [name, each.text, each.verdict, teacher, student, positions]
            for each in diagnosis.scatter
            for teacher, counts in enumerate(each.counts)
            for student, positions in enumerate(counts)
            if positions
        ]
    of_scatter = ["diagnosis", "text", "verdict", "teacher", "student", "positions"]
    return {
        "diagnosis.csv": (["diagnosis", *(field.name for field in fields(Estimate))], figures),
        "diagnosis_pairs.csv": (["diagnosis", *(field.name for field in fields(Paired))], pairs),
        "diagnosis_scatter.csv": (of_scatter, scatter),
        "diagnosis_recovery.csv": (["diagnosis", *(field.name for field in fields(Recovery))], recovery),
    }


def _rows(diagnosis: Diagnosis, cells: Callable[[str, str], Iterable[str]]) -> Iterator[tuple[str, ...]]:
    return ((*group, *cells(*group)) for group in diagnosis.groups())


def _with_ends(estimate: Estimate | None, shown: Shown) -> str:
    """Return a value with its interval."""
    if estimate is None or estimate.value is None:
        return NOTHING
    if estimate.low is None or estimate.high is None:
        return shown(estimate.value)
    return f"{shown(estimate.value)} ({shown(estimate.low)} – {shown(estimate.high)})"


def _share(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else f"{percent(estimate.value)} ({interval(asdict(estimate))})"


def _count(estimate: Estimate | None) -> str:
    return count(estimate.rows if estimate else None)


def _models(diagnosis: Diagnosis) -> Table:
    def shown(nll: float) -> str:
        return number(perplexity(nll))

    def cells(text: str, verdict: str) -> Iterator[str]:
        def of(name: str) -> Estimate | None:
            return diagnosis.of(name, text, verdict)

        yield _count(of("tokens"))
        yield _with_ends(of("tokens"), count)
        yield _with_ends(of("student_nll"), shown)
        yield _with_ends(of("teacher_nll"), shown)
        yield from (_with_ends(of(name), number) for name in ("perplexity_gap", "forward_kl", "reverse_kl"))

    numbers = (
        *("rows", "tokens", "perplexity, student", "perplexity, teacher", "gap, nats"),
        *("forward KL, nats", "reverse KL, nats"),
    )
    note = (
        f"{_INTERVALS} The student is {diagnosis.student.name}, the teacher {diagnosis.teacher.name}. A perplexity is exp of the mean "
        "over rows of a row's negative log-likelihood a token; the gap is the log of the teacher's perplexity over the student's. The "
        "divergences are full, means over the positions of a row and then over rows. Rows that are neither correct nor incorrect are in "
        "“all” alone."
    )
    return table_of("prefix-models", "Both models along the texts", _GROUP, numbers, _rows(diagnosis, cells), note)


def _onset(diagnosis: Diagnosis) -> Table:
    def cells(text: str, verdict: str) -> Iterator[str]:
        def of(name: str) -> Estimate | None:
            return diagnosis.of(name, text, verdict)

        yield _with_ends(of("onset_mass"), BY_TENTH["onset_mass"][1])
        yield _with_ends(of("onset_words"), number)
        yield _share(of("trigger"))
        yield _with_ends(of("trigger_token"), count)
        yield _share(of("onset_repeated"))
        yield _share(of("overlap"))
        yield _with_ends(of("overlap_advantage"), number)

    numbers = (
        *("onset mass, ‰", "onset words, ‰", "rows with a trigger", "its first token"),
        *("onset token repeated", "overlap of the top-16", "advantage on it, nats"),
    )
    note = (
        f"{_INTERVALS} Onset tokens are listed in onset.json. The onset mass is the teacher's probability of all of them; onset words are "
        "those in the text itself. A trigger is a place where the teacher's top-1 is an onset token and the student's top-5 has none. "
        "Repeated is the share of places where the teacher's top-1 is the onset token that it already was one place before."
    )
    return table_of("prefix-onset", "Turning back", _GROUP, numbers, _rows(diagnosis, cells), note)


def _ends(diagnosis: Diagnosis) -> Table:
    names = ("truncated", "finished", "accuracy_finished", "finished_and_correct")

    def cells(text: str, verdict: str) -> Iterator[str]:
        # Among rows of one verdict the accuracy says nothing.
        shown = names if verdict == ALL else names[:2]
        yield from (_share(diagnosis.of(name, text, verdict)) if name in shown else NOTHING for name in names)
        yield _with_ends(diagnosis.of("repetition", text, verdict), number)

    numbers = ("truncated", "finished", "accuracy of the finished", "finished and correct", "repetition")
    note = (
        f"{_INTERVALS} Finished and correct is finished × accuracy of the finished, of the graded rows. Repetition is how many times "
        "smaller zlib makes the last 10,000 characters: the higher, the more the text repeats itself."
    )
    return table_of("prefix-ends", "Ends and repetition", _GROUP, numbers, _rows(diagnosis, cells), note)


def _positions(diagnosis: Diagnosis) -> Iterator[Table]:
    """Yield the figures by tenth of the response, and the quantiles of the log-ratio."""
    tenths = [f"{10 * i}–{10 * i + 10} %" for i in range(TENTHS)]

    def cells(figure: str, shown: Shown, text: str, verdict: str) -> list[str]:
        found = [diagnosis.of(figure, text, verdict, tenth) for tenth in range(1, TENTHS + 1)]
        return [NOTHING if each is None or each.value is None else shown(each.value) for each in found]

    def rows(figures: Sequence[tuple[str, str, Shown]], groups: Sequence[tuple[str, str]]) -> Iterator[list[str]]:
        for figure, label, shown in figures:
            for group in groups:
                values = cells(figure, shown, *group)
                if set(values) != {NOTHING}:
                    yield [label, *group, *values]

    groups = diagnosis.groups()
    graded = [group for group in groups if group[1] != ALL] or groups
    listed = [(figure, label, shown) for figure, (label, shown) in BY_TENTH.items()]
    note = (
        "Means over rows of each row's mean in a tenth of its response, for ‖p − q‖₂ over the sum of its ten means. "
        "Intervals are in diagnosis.csv."
    )
    title = "By place in the response"
    yield table_of("prefix-positions", title, ("figure", *_GROUP), tenths, rows(listed, graded), note)
    quantiles = [(f"log_ratio_p{round(100 * q):02d}", f"{round(100 * q)} %", "{:+.2f}".format) for q in LEVELS]
    note = "Over positions, in nats, to 0.01, and to 0.02 where the token has less than e^−8. Above 0 the teacher finds the sampled token likelier than the student does."
    title = "Quantiles of log p_T − log p_S of the text's tokens"
    yield table_of("prefix-ratios", title, ("quantile", *_GROUP), tenths, rows(quantiles, graded), note)


def _shortening(diagnosis: Diagnosis) -> Table:
    found = diagnosis.shortening
    rows = []
    for paired in found.figures if found else ():
        label, shown = _PAIRED[paired.figure]
        ends = NOTHING if paired.low is None else f"{number(paired.low)} to {number(paired.high)}"
        values = (shown(paired.y_o), shown(paired.y_r), number(paired.difference), ends)
        rows.append((label, count(paired.pairs), *values))
    numbers = ("pairs", "y_o", "y_r", "y_r − y_o", "95 % interval")
    collapsed = (
        f"{percent(found.collapsed)} of the pairs have a y_r of at most {SHORT:g} of y_o's tokens, with a teacher's NLL of at most {CERTAIN:g} "
        f"nats a token and a student's NLL at least {FAR:g} above it and above that of y_o."
        if found
        else ""
    )
    note = " ".join(
        [_INTERVALS.replace("rows", "pairs"), collapsed, *(f"Warning: {line}." for line in diagnosis.warnings)]
    )
    return table_of("prefix-shortening", "y_r against its y_o", ("figure",), numbers, rows, note.strip())


def _recovery(diagnosis: Diagnosis) -> Table:
    def name(each: Recovery) -> str:
        if each.quartile is not None:
            return f"quartile {each.quartile} of the perplexity"
        return "all" if each.cut is None else f"at {100 * each.cut:g} %"

    def counts(each: Recovery) -> list[str]:
        return [count(number) for number in (each.prefixes, each.problems, each.graded, each.ungraded)]

    shown = (each for each in diagnosis.recovery if None in (each.cut, each.quartile))
    rows = ((each.by, name(each), percent(each.value), interval(asdict(each)), *counts(each)) for each in shown)
    numbers = ("accuracy", "95 % interval", "prefixes", "problems", "graded", "ungraded")
    note = (
        "Wrong rollouts are cut at the line break nearest to a share of their tokens, and a model goes on. The accuracy is the mean "
        "over problems of the share of their graded continuations that are right; intervals are over problems. Quartiles are of the "
        "teacher's perplexity of the prefix among those of the same cut, 1 the lowest."
    )
    return table_of("prefix-recovery", "Recovery from wrong prefixes", ("model", "cut"), numbers, rows, note)
