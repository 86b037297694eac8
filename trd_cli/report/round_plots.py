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
_PER_CENT = (*CHANGES, "common prefix")
# By plot: title, and by panel: label of the axis, and its figures, the second dashed.
_PLOTS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "rounds-verdicts": (
        "Changes of verdict y_o → y_r by round",
        {f"{name}, %\n{before} → {after}": (name,) for name, (before, after) in CHANGES.items()},
    ),
    "rounds-changes": (
        "Lengths and edits by round",
        {
            "tokens of y_o": ("tokens of y_o",),
            "tokens of y_r": ("tokens of y_r",),
            "edit distance, share\nof the longer": ("edit distance",),
            "common prefix,\n% of y_o": ("common prefix",),
        },
    ),
    "rounds-nll": (
        "Negative log-likelihood by round",
        {
            "y_o under the\nstudent, nats a token": (f"{NLL_OF}y_o",),
            "y_r under the\nstudent, nats a token": (f"{NLL_OF}y_r",),
            "y* under the\nstudent, nats a token": (f"{NLL_OF}y*",),
            "y_r under the\nteacher, nats a token": (f"{NLL_OF}y_r, refiner",),
        },
    ),
    "cost-rounds": ("Seconds of a round", {"seconds": ("seconds", "seconds at work")}),
}


def curve_panels(name: str, found: Curves, looks: Mapping[str, Look]) -> Drawn | None:
    """Draw a panel for each figure of the plot `name` that is known, two in a row, with a curve for each arm."""
    title, wanted = _PLOTS[name]
    known = {label: keys for label, keys in wanted.items() if keys[0] in found}
    if not known:
        return None
    columns = min(2, len(known))
    lines = ceil(len(known) / columns)
    figure, rows = panels(lines, columns, 1.8 * lines + (0.6 if lines == 1 else 0))
    flat = [axes for row in rows for axes in row]
    for axes, (label, keys) in zip(flat, known.items(), strict=False):
        for key, style in zip(keys, ("-", "--"), strict=False):
            scale = 100 if key in _PER_CENT else 1
            for arm, seeds in found.get(key, {}).items():
                scaled = [{of: scale * value for of, value in curve.items()} for curve in seeds.values()]
                seeds_and_mean(axes, looks[arm], scaled, style)
        axes.set_ylabel(label)
        axes.set_xlabel("round")
        axes.grid(axis="y")
        whole_numbers([axes])
    for axes in flat[len(known) :]:
        axes.set_visible(False)
    keys = [key for each in known.values() for key in each]
    arms = list(dict.fromkeys(arm for key in keys for arm in found.get(key, {})))
    styles = [Line2D([], [], color=INK, ls=ls, label=key) for key, ls in zip(keys, ("-", "--"), strict=False)]
    entries = [*(styles if name == "cost-rounds" else []), *(looks[arm].entry(arm) for arm in arms)]
    several = any(len(seeds) > 1 for key in keys for seeds in found.get(key, {}).values())
    add_legend(figure, [*entries, *(seeds_legend(MEAN) if several else [])])
    return figure, title, f"{title}, a curve for each arm: {', '.join(keys)}."


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
