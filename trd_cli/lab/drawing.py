"""The plot of trd lab estimators: by update, the variance, the variance over the squared norm, and the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import matplotlib
from matplotlib.ticker import NullFormatter

from trd_cli.lab.cells import Cell, shown
from trd_cli.report.drawing import STYLE, Plot, add_legend, looks_of, panels, saved, seeds_and_mean, seeds_legend

TITLE = "Gradient variance of g_γ"
# Points of a curve; each is the mean of as many updates as there are to a point.
_POINTS = 30


def draw(cells: Mapping[float, Sequence[Cell]]) -> Plot:
    """Draw three panels on a logarithmic scale: thin lines are seeds, thick ones their mean."""
    looks = looks_of([f"γ = {shown(gamma)}" for gamma in cells])
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": TITLE}):
        figure, [row] = panels(1, 3, 2.4)
        for found, look in zip(cells.values(), looks.values(), strict=True):
            for axes, curves in zip(row, zip(*map(_curves, found), strict=True), strict=True):
                seeds_and_mean(axes, look, [_thinned(curve) for curve in curves])
        for axes, label in zip(
            row, ("gradient variance", "variance / squared norm", "distance from target"), strict=True
        ):
            axes.set_title(label, loc="left")
            axes.set_yscale("log")
            # Powers of ten as the default writes them are formulas, which no plot of ours has.
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("update")
            axes.grid(axis="y")
        several = any(len(found) > 1 for found in cells.values())
        add_legend(
            figure, [*(look.entry(name) for name, look in looks.items()), *(seeds_legend("mean") if several else [])]
        )
        ends = (
            f"{shown(gamma)}: {fmean(c.figures()['variance'] for c in found):.3g}" for gamma, found in cells.items()
        )
        return saved(figure, TITLE, f"Median variance of the output layer's gradient by γ: {'; '.join(ends)}.")


def _curves(cell: Cell) -> tuple[Sequence[float], ...]:
    ratios = [variance / norm for variance, norm in zip(cell.variance, cell.squared_norm, strict=True)]
    return cell.variance, ratios, cell.error


def _thinned(values: Sequence[float]) -> dict[float, float]:
    """Return at most _POINTS points of a curve: updates, from 1, to the mean of those around them."""
    width = -(-len(values) // _POINTS)
    starts = range(0, len(values), width)
    return {
        start + (len(values[start : start + width]) + 1) / 2: fmean(values[start : start + width]) for start in starts
    }
