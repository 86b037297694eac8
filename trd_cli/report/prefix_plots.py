"""The plots of a diagnosis: what both models say, by place in the response. Colour and mark stand for the verdict.

In the plot of recovery they stand for the model that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log1p

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from trd_cli.diagnosis.figures import ALL, TEXTS
from trd_cli.diagnosis.recovery import QUARTILES, Recovery
from trd_cli.diagnosis.results import Diagnosis, Scatter
from trd_cli.report.drawing import COLOURS, INK, THICK, Drawn, Look, add_legend, panels
from trd_cli.training.tenths import TENTHS

_LOOKS = {"correct": Look(COLOURS[0], "o"), "incorrect": Look(COLOURS[3], "s"), ALL: Look(INK, "^")}
_STYLES = {"correct": "-", "incorrect": "--", ALL: "-"}
_WRITERS = {"teacher": Look(COLOURS[2], "o"), "student": Look(COLOURS[4], "s")}
_PLACES = [100 * (i + 0.5) / TENTHS for i in range(TENTHS)]
# By plot: its title, and for each row of panels the figure, its label, its scale, and whether it is never below 0.
_LINES: dict[str, tuple[str, dict[str, tuple[str, float, bool]]]] = {
    "prefix-kl": (
        "Divergence by place and verdict",
        {"forward_kl": ("forward KL,\nnats", 1, True), "reverse_kl": ("reverse KL,\nnats", 1, True)},
    ),
    "prefix-onset": ("Onset mass of the teacher by place", {"onset_mass": ("onset mass, ‰", 1000, True)}),
    "prefix-overlap": (
        "Overlap of the top-16 by place, and the advantage on it",
        {"overlap": ("overlap, %", 100, True), "overlap_advantage": ("advantage,\nnats", 1, False)},
    ),
    "prefix-fragments": (
        "Where the distance is, and where the first trigger",
        {
            "fragmentation": ("share of\n‖p − q‖₂, %", 100, True),
            "first_trigger": ("first trigger\nhere, % of rows", 100, True),
        },
    ),
}
_BANDS = ((("log_ratio_p05", "log_ratio_p95"), 0.2), (("log_ratio_p25", "log_ratio_p75"), 0.35))


def prefix_plots(diagnosis: Diagnosis, number: str = "") -> dict[str, Callable[[], Drawn | None]]:
    """Return functions that draw the plots of a diagnosis, by name. `number` tells those of several apart."""
    drawn = {name: partial(_lines, diagnosis, name) for name in _LINES}
    drawn |= {
        "prefix-ratios": partial(_ratios, diagnosis),
        "prefix-scatter": partial(_scatter, diagnosis),
        "prefix-recovery": partial(_recovery, diagnosis),
    }
    return {name + number: draw for name, draw in drawn.items()}


def _verdicts(diagnosis: Diagnosis, text: str) -> list[str]:
    """Return the verdicts of a text to draw: correct and incorrect, or all rows if none has one of them."""
    found = [verdict for of, verdict in diagnosis.groups() if of == text]
    return [verdict for verdict in found if verdict != ALL] or found


def _texts(diagnosis: Diagnosis) -> list[str]:
    return [text for text in TEXTS if _verdicts(diagnosis, text)]


def _lines(diagnosis: Diagnosis, name: str) -> Drawn | None:
    """Draw a row of panels for each figure of the plot, with a column for y_o and one for y_r."""
    title, figures = _LINES[name]
    known = {e.figure for e in diagnosis.figures if e.tenth is not None and e.value is not None}
    shown = {figure: how for figure, how in figures.items() if figure in known}
    texts = _texts(diagnosis)
    if not shown:
        return None
    figure, rows = panels(len(shown), len(texts), 0.4 + 1.7 * len(shown), shared=True)
    for row, (of, (label, scale, from_zero)) in zip(rows, shown.items(), strict=True):
        for axes, text in zip(row, texts, strict=True):
            for verdict in _verdicts(diagnosis, text):
                _line(axes, diagnosis, of, text, verdict, scale)
            axes.grid(axis="y")
        row[0].set_ylabel(label)
        if from_zero:
            row[0].set_ylim(bottom=0)
    _headed(rows, texts)
    drawn = dict.fromkeys(verdict for text in texts for verdict in _verdicts(diagnosis, text))
    band = Patch(color=INK, alpha=0.2, linewidth=0, label="95 % interval over rows")
    add_legend(figure, [*(_entry(verdict) for verdict in drawn), band])
    means = "; ".join(
        f"{label.replace(chr(10), ' ')} of {text} {verdict} from {first:.3g} to {last:.3g}"
        for of, (label, scale, _) in shown.items()
        for text in texts
        for verdict in _verdicts(diagnosis, text)
        for first, last in _ends(diagnosis, of, text, verdict, scale)
    )
    return figure, title, f"{title}, first and last tenth: {means}."


def _ends(diagnosis: Diagnosis, figure: str, text: str, verdict: str, scale: float) -> list[tuple[float, float]]:
    both = [diagnosis.of(figure, text, verdict, tenth) for tenth in (1, TENTHS)]
    values = [scale * each.value for each in both if each and each.value is not None]
    return [(values[0], values[1])] if len(values) == 2 else []


def _headed(rows: Sequence[Sequence[Axes]], titles: Sequence[str]) -> None:
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set_title(title, loc="left")
    for axes in rows[-1]:
        axes.set_xlabel("place in the response, %")
        axes.set_xlim(0, 100)
        # The ends of neighbouring axes would touch.
        axes.set_xticks(range(20, 100, 20))


def _entry(verdict: str) -> Line2D:
    look = _LOOKS[verdict]
    label = "all rows" if verdict == ALL else verdict
    return Line2D([], [], color=look.colour, marker=look.mark, linestyle=_STYLES[verdict], label=label, **THICK)


def _line(axes: Axes, diagnosis: Diagnosis, figure: str, text: str, verdict: str, scale: float) -> None:
    found = [(x, diagnosis.of(figure, text, verdict, i)) for i, x in enumerate(_PLACES, start=1)]
    known = [(x, each) for x, each in found if each is not None and each.value is not None]
    look, places = _LOOKS[verdict], [x for x, _ in known]
    lows, highs = (
        [scale * (each.value if end is None else end) for _, each in known for end in [getattr(each, name)]]
        for name in ("low", "high")
    )
    axes.fill_between(places, lows, highs, color=look.colour, alpha=0.2, linewidth=0)
    values = [scale * each.value for _, each in known]
    axes.plot(places, values, color=look.colour, marker=look.mark, linestyle=_STYLES[verdict], **THICK)


def _by_group(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    return [(text, verdict) for text in _texts(diagnosis) for verdict in _verdicts(diagnosis, text)]


def _said(text: str, verdict: str) -> str:
    return text if verdict == ALL else f"{text}, {verdict}"


def _ratios(diagnosis: Diagnosis) -> Drawn | None:
    """Draw a panel for each group: the median of the log-ratio by place, and the middle half and nine tenths."""
    groups = [g for g in _by_group(diagnosis) if _quantiles(diagnosis, "log_ratio_p50", *g)]
    if not groups:
        return None
    figure, [row] = panels(1, len(groups), 2.3, shared=True)
    for axes, group in zip(row, groups, strict=True):
        look = _LOOKS[group[1]]
        for (low, high), alpha in _BANDS:
            lows, highs = (_quantiles(diagnosis, name, *group) for name in (low, high))
            axes.fill_between(list(lows), lows.values(), highs.values(), color=look.colour, alpha=alpha, linewidth=0)
        median = _quantiles(diagnosis, "log_ratio_p50", *group)
        axes.plot(list(median), list(median.values()), color=look.colour, marker=look.mark, **THICK)
        axes.axhline(0, color=INK, linewidth=0.7)
        axes.grid(axis="y")
    row[0].set_ylabel("log p_T − log p_S, nats")
    _headed([row], [_said(*group) for group in groups])
    bands = [
        Patch(color=INK, alpha=a, linewidth=0, label=f"{share} %") for share, a in (("25–75", 0.55), ("5–95", 0.2))
    ]
    add_legend(figure, [Line2D([], [], color=INK, label="median", **THICK), *bands])
    alt = "Quantiles over positions of the log-ratio of the teacher's and the student's probability of the text's token, by tenth."
    return figure, "Log-probability gap of the text's tokens by place", alt


def _quantiles(diagnosis: Diagnosis, figure: str, text: str, verdict: str) -> dict[float, float]:
    found = {x: diagnosis.of(figure, text, verdict, i) for i, x in enumerate(_PLACES, start=1)}
    return {x: each.value for x, each in found.items() if each is not None and each.value is not None}


def _scatter(diagnosis: Diagnosis) -> Drawn | None:
    """Draw a panel for each group: the darker a square, the more of the text's tokens have these two probabilities."""
    counts = {(each.text, each.verdict): each for each in diagnosis.scatter}
    groups = [group for group in _by_group(diagnosis) if group in counts]
    if not groups:
        return None
    # The panels are squares, which must not be higher than the figure.
    figure, [row] = panels(1, len(groups), 2.85, shared=True)
    for axes, group in zip(row, groups, strict=True):
        axes.imshow(_pixels(counts[group], _LOOKS[group[1]].colour), origin="lower", extent=(0, 1, 0, 1))
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7)
        axes.set_title(_said(*group), loc="left")
        axes.set_xlabel("p of the student")
        axes.set_xticks((0.2, 0.5, 0.8))
    row[0].set_ylabel("p of the teacher")
    shares = "; ".join(f"{_said(*group)} {_above(counts[group]):.0f} %" for group in groups)
    alt = f"Share of tokens that the teacher finds likelier than the student, by squares: {shares}."
    return figure, "Probability of the text's tokens under both models (depth: log of their number)", alt


def _pixels(scatter: Scatter, colour: str) -> list[list[tuple[float, ...]]]:
    most = log1p(max(map(max, scatter.counts)))
    return [[(*to_rgb(colour), log1p(count) / most) for count in counts] for counts in scatter.counts]


def _above(scatter: Scatter) -> float:
    total = sum(map(sum, scatter.counts))
    above = sum(sum(counts[:teacher]) for teacher, counts in enumerate(scatter.counts))
    return 100 * above / total


def _recovery(diagnosis: Diagnosis) -> Drawn | None:
    """Draw the accuracy of the continuations by cut, and by quartile of the teacher's perplexity over all cuts."""
    known = [each for each in diagnosis.recovery if each.value is not None]
    if not known:
        return None
    figure, [[by_cut, by_quartile]] = panels(1, 2, 2.3)
    writers = [by for by in _WRITERS if any(each.by == by for each in known)]
    for by in writers:
        of = [each for each in known if each.by == by]
        _rates(by_cut, by, {100 * each.cut: each for each in of if each.cut is not None and each.quartile is None})
        _rates(by_quartile, by, {each.quartile: each for each in of if each.quartile is not None and each.cut is None})
    by_cut.set_xlabel("share of the wrong response that is kept, %")
    by_quartile.set_xlabel("quartile of the teacher's perplexity of the prefix")
    by_quartile.set_xticks(QUARTILES)
    by_cut.set_ylabel("accuracy, %")
    highest = max(axes.get_ylim()[1] for axes in (by_cut, by_quartile))
    for axes in (by_cut, by_quartile):
        axes.set_ylim(0, highest)
        axes.grid(axis="y")
    add_legend(figure, [_WRITERS[by].entry(f"the {by} goes on") for by in writers])
    told = "; ".join(
        f"the {each.by} at {100 * each.cut:g} % {100 * each.value:.0f} %"
        for each in known
        if each.cut is not None and each.quartile is None
    )
    title = "Recovery from wrong prefixes, with 95 % intervals over problems"
    return figure, title, f"Accuracy of what is written after a wrong prefix: {told}."


def _rates(axes: Axes, by: str, found: Mapping[float, Recovery]) -> None:
    if not found:
        return
    look = _WRITERS[by]
    # Those of both models would cover each other.
    places = [x + (0.06 if by == "teacher" else -0.06) * (max(found) - min(found)) / len(found) for x in found]
    values = [100 * each.value for each in found.values()]
    ends = [
        [100 * (each.value - each.low) for each in found.values()],
        [100 * (each.high - each.value) for each in found.values()],
    ]
    axes.errorbar(places, values, yerr=ends, marker=look.mark, color=look.colour, capsize=3, **THICK)
