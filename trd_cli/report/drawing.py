"""Parts that all plots of a report share: style, the look of an arm, lines of several seeds, one legend a figure."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from statistics import fmean

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Its contrast is 4.1 with white and 5.1 with black.
INK = "#7d7d7d"
# After Okabe and Ito, whose colours colour-blind readers tell apart. Each contrast with white and black is at least 3.
COLOURS = ("#0072b2", "#b87f00", "#009e73", "#d55e00", "#c06a9a", "#2f95cc")
MARKS = "os^Dvp*XP"
WIDE = 7.0
_COLUMN, _MARKED = 2.3, 8
STYLE = {
    "svg.fonttype": "none",
    # Names of arms and benchmarks are a user's words: a $ in them is no formula.
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "lines.markersize": 4.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color", "legend.labelcolor"), INK),
}
THIN = {"linewidth": 0.7, "alpha": 0.6}
THICK = {"linewidth": 1.6}


@dataclass(frozen=True)
class Plot:
    """A plot with its title and a sentence for readers who do not see it.

    `svg` is for a page: text and axes take the colour of the text around them. `svg_file` and `png` stand alone.
    """

    title: str
    alt: str
    svg_file: str
    png: bytes

    @property
    def svg(self) -> str:
        return self.svg_file[self.svg_file.index("<svg") :].replace(INK, "currentColor")


@dataclass(frozen=True, slots=True)
class Look:
    """The colour and the mark of an arm, the same in all plots of a report."""

    colour: str
    mark: str

    def entry(self, arm: str) -> Line2D:
        """Return the arm's line for a legend."""
        return Line2D([], [], color=self.colour, marker=self.mark, label=arm, **THICK)


# A figure, its title and its sentence.
Drawn = tuple[Figure, str, str]


def looks_of(arms: Sequence[str]) -> dict[str, Look]:
    """Return the look of each arm by name."""
    return {arm: Look(COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, arm in enumerate(arms)}


def panels(
    rows: int, columns: int, height: float, heights: Sequence[float] | None = None, shared: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure, `height` inches high, and its panels by row.

    `shared` panels have one x axis, and those of a row one y axis.
    """
    figure = Figure(figsize=(max(WIDE, _COLUMN * columns), height), layout="constrained")
    axes = {"sharex": "all", "sharey": "row"} if shared else {}
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights, **axes).tolist()


def add_legend(figure: Figure, entries: Sequence[Artist]) -> None:
    """Add one legend below all panels, in as few lines as fit the width. The figure grows by its height."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for lines in range(1, len(entries) + 1):
        columns = -(-len(entries) // lines)
        legend = figure.legend(handles=entries, loc="outside lower center", ncols=columns)
        box = legend.get_window_extent(renderer)
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + box.height / figure.dpi)


def seeds_legend(together: str) -> list[Line2D]:
    """Return legend entries for the thin and the thick lines of arms with several seeds."""
    return [Line2D([], [], color=INK, label="one seed", **THIN), Line2D([], [], color=INK, label=together, **THICK)]


def marked(curve: Sized) -> int:
    """Return the distance of the points of a curve that bear a mark."""
    return max(1, len(curve) // _MARKED)


def seeds_and_mean(
    axes: Axes,
    look: Look,
    curves: Sequence[Mapping[float, float]],
    style: str = "-",
    marks: Collection[float] | None = None,
) -> None:
    """Draw the curves (x to y) of an arm's seeds. Several are thin lines, with their mean wherever all have a value.

    The arm's mark stands at some points, or at the x in `marks`.
    """
    if len(curves) > 1:
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=look.colour, linestyle=style, **THIN)
        common = (x for x in curves[0] if all(x in curve for curve in curves))
        curves = [{x: fmean(curve[x] for curve in curves) for x in common}]
    for curve in curves:
        at = marked(curve) if marks is None else [i for i, x in enumerate(curve) if x in marks]
        kept = {"marker": look.mark, "markevery": at}
        axes.plot(list(curve), list(curve.values()), color=look.colour, linestyle=style, **kept, **THICK)


def whole_numbers(axes: Iterable[Axes]) -> None:
    """Put ticks of the x axis at whole numbers only."""
    for each in axes:
        each.xaxis.get_major_locator().set_params(integer=True)


def saved(figure: Figure, title: str, alt: str) -> Plot:
    """Render a figure as SVG and PNG, without date and software, so that the bytes depend on the figures alone."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Plot(title, alt, svg.getvalue(), png.getvalue())
