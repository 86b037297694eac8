"""The plots of a report, as SVG and PNG, on no background and in an ink that is read on white and on black.

Deterministic: the same figures give the same bytes with the same matplotlib. Arms keep their colour and mark over all plots;
lines of one colour differ in style, so that no plot needs colour to be read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trd_cli.report.data import ALL_SEEDS, Refinement, ReportData, Score, Seed
from trd_cli.report.rounds import curves_of

# Contrast of 4.1 with white and 5.1 with black.
INK = "#7d7d7d"
# Okabe and Ito's colours, without black and yellow; told apart by colour-blind readers too.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_MARKS = "os^Dvp*XP"
_LINES = ("-", "--", ":", "-.")
# What train.jsonl says of a step, by panel.
_STEPS = {
    "loss": "loss, nats",
    "divergence_p50": "divergence,\nmedian, nats",
    "divergence_p95": "divergence,\n95 %, nats",
    "grad_norm": "gradient norm",
}
_BY_VERDICT = {"correct": "-", "incorrect": "--"}
_WIDE, _ROW, _BINS = 7.0, 0.32, 40
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color", "legend.labelcolor"), INK),
}


@dataclass(frozen=True)
class Plot:
    """A plot with its title and a sentence for those who do not see it.

    `svg` is for a page: text and axes take the colour of the text around them. `svg_file` and `png` stand alone.
    """

    title: str
    alt: str
    svg_file: str
    png: bytes

    @property
    def svg(self) -> str:
        return self.svg_file[self.svg_file.index("<svg") :].replace(INK, "currentColor")


# A figure, its title and its sentence.
Drawn = tuple[Figure, str, str]


def plots(data: ReportData) -> dict[str, Plot]:
    """All plots for which there are figures, by name; a name begins with its section."""
    looks = {arm: (_COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]) for i, arm in enumerate(data.arms())}
    made: dict[str, Callable[[], Drawn | None]] = {
        "scores-arms": lambda: _arms(data, looks),
        "rounds-scores": lambda: _rounds(data, looks),
        **{f"refinement-verdicts-{name}": _later(_matrix, r) for name, r in _numbered(data.refinements)},
        **{f"refinement-lengths-{name}": _later(_lengths, r) for name, r in _numbered(data.refinements)},
        "training-loss": lambda: _losses(data, looks),
        "training-positions": lambda: _positions(data, looks),
    }
    found = {}
    for name, draw in made.items():
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
            drawn = draw()
            if drawn is not None:
                found[name] = _saved(*drawn)
    return found


def _numbered(refinements: Sequence[Refinement]) -> Iterator[tuple[str, Refinement]]:
    return ((str(i), refinement) for i, refinement in enumerate(refinements, start=1))


def _later(draw: Callable[[Refinement], Drawn | None], refinement: Refinement) -> Callable[[], Drawn | None]:
    return lambda: draw(refinement)


def _saved(figure: Figure, title: str, alt: str) -> Plot:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Plot(title, alt, svg.getvalue(), png.getvalue())


def _figure(rows: int, columns: int, height: float) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(_WIDE, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _label(arm: str, seed: Seed, several: bool) -> str:
    if seed == ALL_SEEDS:
        return f"{arm}, all seeds"
    return f"{arm}, seed {seed}" if several and seed is not None else arm


def _arms(data: ReportData, looks: Mapping[str, tuple[str, str]]) -> Drawn | None:
    shown = [s for s in data.last_scores() if s.score.startswith("avg@") and s.value is not None]
    benchmarks = list(dict.fromkeys(s.benchmark for s in shown))
    if not shown:
        return None
    heights = [sum(s.benchmark == b for s in shown) for b in benchmarks]
    figure, panels = _figure(len(benchmarks), 1, sum(_ROW * n + 0.75 for n in heights))
    for [axes], benchmark in zip(panels, benchmarks, strict=True):
        scores = [s for s in shown if s.benchmark == benchmark]
        _intervals(axes, scores, looks)
        axes.set_title(benchmark, loc="left")
        axes.set_xlabel(f"{scores[0].score}, %, with 95 % intervals")
    told = "; ".join(f"{s.arm} {100 * s.value:.1f} % on {s.benchmark}" for s in shown)
    return figure, "Scores by arm", f"Scores of each arm with 95 % intervals: {told}."


def _intervals(axes: Axes, scores: Sequence[Score], looks: Mapping[str, tuple[str, str]]) -> None:
    several = len({s.seed for s in scores} - {None}) > 1
    for i, s in enumerate(scores):
        colour, mark = looks[s.arm]
        ends = [[100 * (s.value - s.low)], [100 * (s.high - s.value)]]
        axes.errorbar([100 * s.value], [i], xerr=ends, fmt=mark, color=colour, capsize=3)
    axes.set_yticks(range(len(scores)), [_label(s.arm, s.seed, several) for s in scores])
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.grid(axis="x")


def _rounds(data: ReportData, looks: Mapping[str, tuple[str, str]]) -> Drawn | None:
    curves = curves_of(data)
    if max((max(curve) for curve in curves.values()), default=0) < 2:
        return None
    benchmarks = list(dict.fromkeys(benchmark for _, _, benchmark in curves))
    seeds = list(dict.fromkeys(seed for _, seed, _ in curves))
    figure, panels = _figure(len(benchmarks), 1, 2.6 * len(benchmarks))
    for [axes], benchmark in zip(panels, benchmarks, strict=True):
        own = {(arm, seed): curve for (arm, seed, of), curve in curves.items() if of == benchmark}
        for i, ((arm, seed), curve) in enumerate(own.items()):
            # Beside each other, so that intervals of the same round do not cover each other.
            shift = 0.2 * ((i + 0.5) / len(own) - 0.5)
            look = {"color": looks[arm][0], "marker": looks[arm][1]}
            line = _LINES[seeds.index(seed) % len(_LINES)]
            _curve(axes, curve, shift, linestyle=line, label=_label(arm, seed, len(seeds) > 1), **look)
        axes.set_title(benchmark, loc="left")
        axes.set_ylabel("avg@k, %")
        axes.set_xlabel("rounds of training")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, "Score by round", "avg@k of each arm after each round of training, with 95 % intervals."


def _curve(axes: Axes, curve: Mapping[int, Score], shift: float, **look: str) -> None:
    scores = [(r, s) for r, s in sorted(curve.items()) if s.value is not None]
    ends = [[100 * (s.value - s.low) for _, s in scores], [100 * (s.high - s.value) for _, s in scores]]
    places, values = [r + shift for r, _ in scores], [100 * s.value for _, s in scores]
    axes.errorbar(places, values, ends, capsize=3, **look)


def _matrix(refinement: Refinement) -> Drawn | None:
    if not refinement.matrix:
        return None
    befores, afters = (refinement.verdicts(side) for side in (0, 1))
    counts = [[refinement.matrix.get((before, after), 0) for after in afters] for before in befores]
    total = refinement.rows
    figure, [[axes]] = _figure(1, 1, 1.0 + 0.55 * len(befores))
    colours = matplotlib.colors.LinearSegmentedColormap.from_list("share", ["#0072b200", "#0072b2a0"])
    axes.imshow([[n / total for n in row] for row in counts], cmap=colours, vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(counts):
        for x, n in enumerate(row):
            axes.text(x, y, f"{n:,}\n{100 * n / total:.1f} %", ha="center", va="center")
    axes.set_xticks(range(len(afters)), afters)
    axes.set_yticks(range(len(befores)), befores)
    axes.tick_params(length=0)
    axes.set_xlabel("y_r, refined")
    axes.set_ylabel("y_o, rollout")
    cells = (f"{before} to {after} {n}" for (before, after), n in sorted(refinement.matrix.items()))
    title = f"Verdicts y_o → y_r, {refinement.node}"
    return figure, title, f"Rows of {refinement.node} by verdict before and after: {', '.join(cells)}."


def _lengths(refinement: Refinement) -> Drawn | None:
    spreads = {name: spread for name, spread in refinement.lengths.items() if spread is not None}
    if not spreads:
        return None
    figure, [[axes]] = _figure(1, 1, 2.4)
    longest = max(spread.values[-1] for spread in spreads.values())
    edges = [i * max(longest, 1) / _BINS for i in range(_BINS + 1)]
    for (name, spread), colour, line in zip(spreads.items(), _COLOURS, _LINES, strict=False):
        axes.hist(
            spread.values,
            bins=edges,
            histtype="step",
            color=colour,
            linestyle=line,
            label=name,
            linewidth=1.5,
        )
    axes.set_xlabel("tokens of the response")
    axes.set_ylabel("rows")
    axes.grid(axis="y")
    axes.legend()
    told = " and ".join(f"{name} has a median of {spread.p50:.0f} tokens" for name, spread in spreads.items())
    return (
        figure,
        f"Lengths, {refinement.node}",
        f"Histogram of response lengths in {refinement.node}: {told}.",
    )


def _losses(data: ReportData, looks: Mapping[str, tuple[str, str]]) -> Drawn | None:
    if not data.trainings:
        return None
    figure, panels = _figure(len(_STEPS), 1, 1.6 * len(_STEPS))
    lines: dict[str, int] = {}
    for t in data.trainings:
        # Rounds and seeds of an arm differ in the style of the line.
        number = lines[t.arm] = lines.get(t.arm, -1) + 1
        mark = looks[t.arm][1] if len(t.steps) == 1 else None
        look = {"color": looks[t.arm][0], "linestyle": _LINES[number % len(_LINES)], "marker": mark}
        steps = [step["step"] for step in t.steps]
        for [axes], key in zip(panels, _STEPS, strict=True):
            axes.plot(
                steps, [step.get(key) for step in t.steps], label=t.node.removesuffix("/distill"), **look
            )
    for [axes], label in zip(panels, _STEPS.values(), strict=True):
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
    panels[-1][0].set_xlabel("optimiser step")
    panels[0][0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    told = "; ".join(
        f"{t.node} from {t.steps[0]['loss']:.3g} to {t.steps[-1]['loss']:.3g}" for t in data.trainings
    )
    return figure, "Loss, divergence and gradient norm", f"Loss by step: {told}."


def _positions(data: ReportData, looks: Mapping[str, tuple[str, str]]) -> Drawn | None:
    shown = [t for t in data.trainings if t.kl_by_position]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, panels = _figure(rows, columns, 0.3 + 2.3 * rows)
    flat = [axes for row in panels for axes in row]
    for axes, t in zip(flat, shown, strict=False):
        for verdict, means in t.kl_by_position.items():
            places = [(10 * i + 5, mean) for i, mean in enumerate(means) if mean is not None]
            axes.plot(
                *zip(*places, strict=True), color=looks[t.arm][0], linestyle=_BY_VERDICT[verdict], marker="."
            )
        axes.set_title(t.node.removesuffix("/distill"), loc="left", fontsize=8)
        axes.set_xlabel("place in the response, %")
        axes.set_ylabel("divergence, nats")
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 100)
        axes.grid(axis="y")
    for axes in flat[len(shown) :]:
        axes.set_visible(False)
    lines = [Line2D([], [], color=INK, linestyle=line, marker=".") for line in _BY_VERDICT.values()]
    figure.legend(lines, [f"y_o {verdict}" for verdict in _BY_VERDICT], loc="outside upper right", ncols=2)
    alt = "Mean divergence of teacher and student by tenth of the response, for rows whose attempt was correct and incorrect."
    return figure, "Divergence by position", alt
