"""The plots of runs with many rounds: figures of refinement and cost by round, and the course of one long training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from statistics import fmean
from typing import Any

from matplotlib.lines import Line2D

from trd_cli.report.data import ReportData, Seed, Training
from trd_cli.report.drawing import (
    INK,
    Drawn,
    Look,
    add_legend,
    panels,
    seeds_and_mean,
    seeds_legend,
    whole_numbers,
)
from trd_cli.report.rounds import CHANGES, NLL_OF, Curves, evenly
from trd_cli.report.training_plots import MEAN, STEPS

# The most points of a curve over steps: a page of many steps stays small.
_POINTS = 200
_BORDERS = 10
_STYLES = ("-", "--")
# Figures that are shares of 1, drawn in per cent.
_SHARES = (*CHANGES, "common prefix")
# By plot: its title, and for each panel its own title and its figures, the second dashed.
_PLOTS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "rounds-verdicts": (
        "Changes of verdict y_o → y_r by round",
        {f"{name}, {before} → {after}, %": (name,) for name, (before, after) in CHANGES.items()},
    ),
    "rounds-changes": (
        "Lengths and edits by round",
        {
            "y_o, tokens": ("tokens of y_o",),
            "y_r, tokens": ("tokens of y_r",),
            "edit distance, share of the longer": ("edit distance",),
            "common prefix, % of y_o": ("common prefix",),
        },
    ),
    "rounds-nll": (
        "Negative log-likelihood by round",
        {
            "y_o under the student, nats a token": (f"{NLL_OF}y_o",),
            "y_r under the student, nats a token": (f"{NLL_OF}y_r",),
            "y* under the student, nats a token": (f"{NLL_OF}y*",),
            "y_r under the teacher, nats a token": (f"{NLL_OF}y_r, refiner",),
        },
    ),
    "cost-rounds": ("Cost of a round", {"seconds of all stages": ("seconds", "seconds at work")}),
}


def curve_panels(name: str, found: Curves, looks: Mapping[str, Look]) -> Drawn | None:
    """Draw a panel for each figure of the plot `name` that is known, two in a row, with a curve for each arm."""
    title, wanted = _PLOTS[name]
    known = {of: keys for of, keys in wanted.items() if keys[0] in found}
    if not known:
        return None
    columns = min(2, len(known))
    lines = ceil(len(known) / columns)
    figure, rows = panels(lines, columns, 1.9 * lines if columns > 1 else 2.4)
    flat = [axes for row in rows for axes in row]
    # The lists of curves by arm.
    drawn = {
        key: {arm: list(c.values()) for arm, c in found[key].items()}
        for keys in known.values()
        for key in keys
        if key in found
    }
    rounds = [of for by_arm in drawn.values() for curves in by_arm.values() for curve in curves for of in curve]
    for axes, (heading, keys) in zip(flat, known.items(), strict=False):
        for key, style in zip(keys, _STYLES, strict=False):
            for arm, curves in drawn.get(key, {}).items():
                scale = 100 if key in _SHARES else 1
                scaled = [{of: scale * value for of, value in curve.items()} for curve in curves]
                seeds_and_mean(axes, looks[arm], scaled, style)
        axes.set_title(heading, loc="left")
        axes.set_xlabel("round")
        axes.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)
        axes.grid(axis="y")
        whole_numbers([axes])
        if name != "rounds-nll":
            axes.set_ylim(bottom=0)
    for axes in flat[len(known) :]:
        axes.set_visible(False)
    entries = [looks[arm].entry(arm) for arm in dict.fromkeys(arm for by_arm in drawn.values() for arm in by_arm)]
    if len(drawn) > len(known):
        entries = [
            *(Line2D([], [], color=INK, ls=s, label=key) for key, s in zip(drawn, _STYLES, strict=False)),
            *entries,
        ]
    several = any(len(curves) > 1 for by_arm in drawn.values() for curves in by_arm.values())
    add_legend(figure, [*entries, *(seeds_legend(MEAN) if several else [])])
    return figure, title, f"{title}, a curve for each arm: {', '.join(drawn)}."


def course(data: ReportData, looks: Mapping[str, Look]) -> Drawn | None:
    """Draw each arm's trainings as one curve over the steps of all rounds, with marks at the ends of rounds."""
    by_arm: dict[str, dict[Seed, list[Training]]] = {}
    for training in sorted(data.trainings, key=lambda each: each.round or 0):
        by_arm.setdefault(training.arm, {}).setdefault(training.seed, []).append(training)
    if not by_arm:
        return None
    joined = {arm: [_joined(rounds) for rounds in seeds.values()] for arm, seeds in by_arm.items()}
    width = ceil(max(len(steps) for seeds in joined.values() for steps, _ in seeds) / _POINTS)
    figure, rows = panels(len(STEPS), 1, 1.5 * len(STEPS), shared=True)
    for [axes], (key, label) in zip(rows, STEPS.items(), strict=True):
        for arm, seeds in joined.items():
            borders = {_place(number, width) for number in evenly(seeds[0][1], _BORDERS)}
            seeds_and_mean(axes, looks[arm], [_means(steps, key, width) for steps, _ in seeds], marks=borders)
        axes.set_ylabel(label)
        axes.grid(axis="y")
        whole_numbers([axes])
    of = f", means of {width}" if width > 1 else ""
    rows[-1][0].set_xlabel(f"optimiser step of all rounds{of}; a mark ends a round")
    several = any(len(seeds) > 1 for seeds in by_arm.values())
    add_legend(figure, [*(looks[arm].entry(arm) for arm in by_arm), *(seeds_legend(MEAN) if several else [])])
    told = "; ".join(
        f"{arm} from {rounds[0].mean('loss', 'all'):.3g} to {rounds[-1].mean('loss', 'all'):.3g}"
        for arm, seeds in by_arm.items()
        for rounds in seeds.values()
    )
    return figure, "Loss, divergence and gradient norm", f"Loss by step, means of the first and the last round: {told}."


def _joined(rounds: Sequence[Training]) -> tuple[list[tuple[int, Mapping[str, Any]]], list[int]]:
    """Return the steps of all rounds by number, and the number of each round's last step.

    A training that continues another goes on with its numbers. One that begins at 1 is counted on from the step before.
    """
    steps: list[tuple[int, Mapping[str, Any]]] = []
    ends: list[int] = []
    last = 0
    for training in rounds:
        first = training.steps[0]["step"]
        shift = last + 1 - first if first <= last else 0
        steps += [(step["step"] + shift, step) for step in training.steps]
        last = steps[-1][0]
        ends.append(last)
    return steps, ends


def _place(number: int, width: int) -> float:
    """Return the middle of the `width` steps that a step is among."""
    return (number - 1) // width * width + (width + 1) / 2


def _means(steps: Iterable[tuple[int, Mapping[str, Any]]], key: str, width: int) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for number, step in steps:
        if step.get(key) is not None:
            found.setdefault(_place(number, width), []).append(step[key])
    return {place: fmean(values) for place, values in found.items()}
