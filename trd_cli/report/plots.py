"""The plots of a report, as SVG and PNG, without background, in colours that are visible on white and on black.

Deterministic: the same figures give the same bytes with the same matplotlib. Colour and mark stand for the arm, in all
plots the same, and for nothing else; but in the plots of a diagnosis, which have no arm, for the verdict. Seeds of an
arm are thin lines or dots, under the figures of all seeds together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from textwrap import fill

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from trd_cli.report.data import ALL_SEEDS, Refinement, ReportData, Score, Seed
from trd_cli.report.drawing import (
    INK,
    STYLE,
    THICK,
    THIN,
    Drawn,
    Look,
    Plot,
    add_legend,
    looks_of,
    marked,
    panels,
    saved,
    seeds_legend,
    whole_numbers,
)
from trd_cli.report.prefix_plots import prefix_plots
from trd_cli.report.round_plots import course, curve_panels
from trd_cli.report.rounds import MANY, curves, details, has_many_rounds
from trd_cli.report.scores import are_several, curves_of
from trd_cli.report.training_plots import losses, positions

__all__ = ["INK", "Plot", "is_plot", "plots"]

_NAMES = re.compile(
    r"scores-arms|rounds-(scores|verdicts|changes|nll)|refinement-(verdicts|lengths)(-\d+)?|training-(loss|positions)|cost-rounds"
    r"|prefix-(kl|onset|overlap|fragments|ratios|scatter|recovery)(-\d+)?"
)
_ROW, _BINS = 0.32, 40
_ALL = "all seeds, 95 % interval"


def plots(data: ReportData) -> dict[str, Plot]:
    """Return all plots that have figures, by name. A name begins with its section."""
    looks = looks_of(data.arms())
    several = _of_many_rounds if has_many_rounds(data) else _of_few_rounds
    made: dict[str, Callable[[], Drawn | None]] = {
        "scores-arms": partial(_arms, data, looks),
        "rounds-scores": partial(_rounds, data, looks),
        **several(data, looks),
        **_of_diagnoses(data),
    }
    found = {}
    for name, draw in made.items():
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
            drawn = draw()
            if drawn is not None:
                found[name] = saved(*drawn)
    return found


def _of_few_rounds(data: ReportData, looks: Mapping[str, Look]) -> dict[str, Callable[[], Drawn | None]]:
    return {
        **{f"refinement-verdicts-{name}": partial(_matrix, [r]) for name, r in _numbered(data.refinements)},
        **{f"refinement-lengths-{name}": partial(_lengths, [r]) for name, r in _numbered(data.refinements)},
        "training-loss": partial(losses, data, looks),
        "training-positions": partial(positions, data, looks),
    }


def _of_many_rounds(data: ReportData, looks: Mapping[str, Look]) -> dict[str, Callable[[], Drawn | None]]:
    """Return plots whose number does not depend on that of the rounds."""
    shown, found = details(data), curves(data)
    return {
        **{
            name: partial(curve_panels, name, found, looks)
            for name in ("rounds-verdicts", "rounds-changes", "rounds-nll")
        },
        "refinement-verdicts": partial(_matrix, shown.refinements),
        "refinement-lengths": partial(_lengths, shown.refinements),
        "training-loss": partial(course, data, looks),
        "training-positions": partial(positions, shown, looks),
        "cost-rounds": partial(curve_panels, "cost-rounds", found, looks),
    }


def _of_diagnoses(data: ReportData) -> dict[str, Callable[[], Drawn | None]]:
    numbers = [f"-{i}" for i in range(1, len(data.diagnoses) + 1)] if len(data.diagnoses) > 1 else [""]
    found: dict[str, Callable[[], Drawn | None]] = {}
    for (name, diagnosis), number in zip(data.diagnoses.items(), numbers, strict=False):
        for plot, draw in prefix_plots(diagnosis, number).items():
            found[plot] = partial(_of_one, draw, name if number else "")
    return found


def _of_one(draw: Callable[[], Drawn | None], name: str) -> Drawn | None:
    """Draw a plot, and add the name of its diagnosis to its title if there is one."""
    drawn = draw()
    if drawn is None or not name:
        return drawn
    figure, title, alt = drawn
    return figure, f"{title}, {name}", alt


def is_plot(name: str) -> bool:
    """Return True if a report can have a plot of this name."""
    return _NAMES.fullmatch(name) is not None


def _numbered(refinements: Sequence[Refinement]) -> Iterator[tuple[str, Refinement]]:
    return ((str(i), refinement) for i, refinement in enumerate(refinements, start=1))


def _apart(by_seed: Mapping[Seed, object]) -> tuple[list[Seed], list[Seed]]:
    """Return the seeds of an arm to draw in full, with intervals, and those to draw as dots or thin lines."""
    if ALL_SEEDS in by_seed:
        return [ALL_SEEDS], [seed for seed in by_seed if seed != ALL_SEEDS]
    return list(by_seed), []


def _arms(data: ReportData, looks: Mapping[str, Look]) -> Drawn | None:
    """Draw a panel for each benchmark, with a line for each arm."""
    shown = [s for s in data.last_scores() if s.score.startswith("avg@") and s.value is not None]
    by_benchmark: dict[str, dict[str, dict[Seed, Score]]] = {}
    for s in shown:
        by_benchmark.setdefault(s.benchmark, {}).setdefault(s.arm, {})[s.seed] = s
    if not shown:
        return None
    heights = [_ROW * len(arms) + 0.75 for arms in by_benchmark.values()]
    figure, rows = panels(len(heights), 1, sum(heights), heights)
    for [axes], (benchmark, arms) in zip(rows, by_benchmark.items(), strict=True):
        for i, (arm, by_seed) in enumerate(arms.items()):
            _intervals(axes, i, by_seed, looks[arm])
        axes.set_yticks(range(len(arms)), [fill(arm, 40) for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_title(benchmark, loc="left")
        name = next(s.score for s in shown if s.benchmark == benchmark)
        axes.set_xlabel(f"{name}, %, with 95 % intervals")
    if any(s.seed == ALL_SEEDS for s in shown):
        marks = ((".", "one seed"), ("o", _ALL))
        add_legend(figure, [Line2D([], [], color=INK, ls="", marker=m, label=label) for m, label in marks])
    values = "; ".join(f"{_named(s)} {100 * s.value:.1f} % on {s.benchmark}" for s in shown)
    return figure, "Scores by arm", f"Scores of each arm with 95 % intervals: {values}."


def _named(s: Score) -> str:
    if s.seed == ALL_SEEDS:
        return f"{s.arm}, all seeds"
    return s.arm if s.seed is None else f"{s.arm}, seed {s.seed}"


def _intervals(axes: Axes, place: int, by_seed: Mapping[Seed, Score], look: Look) -> None:
    full, hinted = _apart(by_seed)
    dots = [100 * by_seed[seed].value for seed in hinted]
    # Above the interval, whose line and ends would hide them.
    axes.plot(dots, [place - 0.28] * len(dots), ls="", marker=".", color=look.colour)
    for i, seed in enumerate(full):
        s, shift = by_seed[seed], 0.5 * ((i + 0.5) / len(full) - 0.5)
        ends = [[100 * (s.value - s.low)], [100 * (s.high - s.value)]]
        axes.errorbar([100 * s.value], [place + shift], xerr=ends, fmt=look.mark, color=look.colour, capsize=3)


def _rounds(data: ReportData, looks: Mapping[str, Look]) -> Drawn | None:
    curves = curves_of(data)
    if not are_several(curves):
        return None
    by_benchmark: dict[str, dict[str, dict[Seed, Mapping[int, Score]]]] = {}
    for (arm, seed, benchmark), curve in curves.items():
        by_benchmark.setdefault(benchmark, {}).setdefault(arm, {})[seed] = curve
    figure, rows = panels(len(by_benchmark), 1, 2.6 * len(by_benchmark))
    for [axes], (benchmark, arms) in zip(rows, by_benchmark.items(), strict=True):
        for i, (arm, by_seed) in enumerate(arms.items()):
            full, hinted = _apart(by_seed)
            # Intervals of the same round would cover each other.
            shift = 0.3 * ((i + 0.5) / len(arms) - 0.5)
            for seed in hinted:
                _curve(axes, by_seed[seed], shift, looks[arm], False)
            for seed in full:
                _curve(axes, by_seed[seed], shift, looks[arm], True)
        axes.set_title(benchmark, loc="left")
        axes.set_ylabel("avg@k, %")
        axes.set_xlabel("rounds of training")
        axes.grid(axis="y")
        whole_numbers([axes])
    arms = dict.fromkeys(arm for arm, _, _ in curves)
    several = any(seed == ALL_SEEDS for _, seed, _ in curves)
    add_legend(figure, [*(looks[arm].entry(arm) for arm in arms), *(seeds_legend(_ALL) if several else [])])
    return figure, "Score by round", "avg@k of each arm after each round of training, with 95 % intervals."


def _curve(axes: Axes, curve: Mapping[int, Score], shift: float, look: Look, in_full: bool) -> None:
    scores = [(r, s) for r, s in sorted(curve.items()) if s.value is not None]
    places, values = [r + shift for r, _ in scores], [100 * s.value for _, s in scores]
    if not in_full:
        axes.plot(places, values, color=look.colour, **THIN)
        return
    lows, highs = ([100 * getattr(s, end) for _, s in scores] for end in ("low", "high"))
    if len(scores) > MANY:
        # So many bars would hide the line.
        axes.fill_between(places, lows, highs, color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(places, values, color=look.colour, marker=look.mark, markevery=marked(scores), **THICK)
        return
    ends = [[v - low for v, low in zip(values, lows, strict=True)], [h - v for v, h in zip(values, highs, strict=True)]]
    axes.errorbar(places, values, ends, capsize=3, color=look.colour, marker=look.mark, **THICK)


def _grid(refinements: Sequence[Refinement], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each refinement, two in a row if there are several, titled by their names."""
    columns = min(2, len(refinements))
    figure, rows = panels(-(-len(refinements) // columns), columns, height * -(-len(refinements) // columns))
    flat = [axes for row in rows for axes in row]
    for axes in flat[len(refinements) :]:
        axes.set_visible(False)
    if columns > 1:
        for axes, refinement in zip(flat, refinements, strict=False):
            axes.set_title(fill(refinement.node, 46), loc="left")
    return figure, flat


def _titled(what: str, refinements: Sequence[Refinement]) -> str:
    return f"{what}, {refinements[0].node}" if len(refinements) == 1 else f"{what}, first and last round"


def _matrix(refinements: Sequence[Refinement]) -> Drawn | None:
    """Draw counts and shares in a grid for each refinement. The bar in a cell is as long as its share."""
    shown = [refinement for refinement in refinements if refinement.matrix]
    if not shown:
        return None
    figure, flat = _grid(shown, 0.8 + 0.6 * max(len(refinement.verdicts(0)) for refinement in shown))
    for axes, refinement in zip(flat, shown, strict=False):
        _cells(axes, refinement)
    return figure, _titled("Verdicts y_o → y_r", shown), " ".join(map(_said, shown))


def _cells(axes: Axes, refinement: Refinement) -> None:
    befores, afters = (refinement.verdicts(side) for side in (0, 1))
    for y, before in enumerate(befores):
        for x, after in enumerate(afters):
            n = refinement.matrix.get((before, after), 0)
            share = n / refinement.rows
            axes.text(x, y - 0.08, f"{n:,}\n{100 * share:.1f} %", ha="center", va="center")
            for length, alpha in ((1.0, 0.2), (share, 1.0)):
                axes.barh(y + 0.38, 0.8 * length, 0.1, x - 0.4, color=INK, alpha=alpha, linewidth=0)
    axes.set_xlim(-0.5, len(afters) - 0.5)
    axes.set_ylim(len(befores) - 0.5, -0.5)
    axes.set_xticks(range(len(afters)), afters)
    axes.set_yticks(range(len(befores)), befores)
    axes.tick_params(length=0)
    axes.set_xlabel("y_r, refined")
    axes.set_ylabel("y_o, rollout")


def _said(refinement: Refinement) -> str:
    cells = (f"{before} to {after} {n}" for (before, after), n in sorted(refinement.matrix.items()))
    return f"Rows of {refinement.node} by verdict before and after: {', '.join(cells)}."


def _lengths(refinements: Sequence[Refinement]) -> Drawn | None:
    """Draw one histogram over the other for each refinement: y_o filled, y_r as an outline."""
    shown = [refinement for refinement in refinements if any(refinement.lengths.values())]
    if not shown:
        return None
    figure, flat = _grid(shown, 2.4)
    looks = {"y_o": {"facecolor": INK, "alpha": 0.4}, "y_r": {"edgecolor": INK, "fill": False, **THICK}}
    alts = []
    for axes, refinement in zip(flat, shown, strict=False):
        spreads = {name: spread for name, spread in refinement.lengths.items() if spread is not None}
        longest = max(spread.values[-1] for spread in spreads.values())
        edges = [i * max(longest, 1) / _BINS for i in range(_BINS + 1)]
        for name, spread in spreads.items():
            kind = "stepfilled" if name == "y_o" else "step"
            axes.hist(spread.values, bins=edges, histtype=kind, **looks[name])
        axes.set_xlabel("tokens of the response")
        axes.set_ylabel("rows")
        axes.grid(axis="y")
        medians = " and ".join(f"{name} has a median of {spread.p50:g} tokens" for name, spread in spreads.items())
        alts.append(f"Histogram of response lengths in {refinement.node}: {medians}.")
    add_legend(
        figure, [Patch(label=name, **look) for name, look in looks.items() if any(r.lengths[name] for r in shown)]
    )
    return figure, _titled("Lengths", shown), " ".join(alts)
