"""The plots of training: loss, divergence and gradient norm by step, and divergence by place in the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib.lines import Line2D

from trd_cli.report.data import ReportData, Training
from trd_cli.report.drawing import INK, Drawn, Look, add_legend, panels, seeds_and_mean, seeds_legend, whole_numbers

# Keys of a step in train.jsonl → labels, one a panel.
STEPS = {
    "loss": "loss, nats",
    "divergence_p50": "divergence,\nmedian, nats",
    "divergence_p95": "divergence,\n95 %, nats",
    "grad_norm": "gradient norm",
}
_BY_VERDICT = {"correct": "-", "incorrect": "--"}
MEAN = "mean of the seeds"
# The trainings by arm and round, one a seed.
Groups = dict[tuple[str, int | None], list[Training]]


def losses(data: ReportData, looks: Mapping[str, Look]) -> Drawn | None:
    """Draw a row of panels for each figure of a step, with a column for each round."""
    if not data.trainings:
        return None
    groups = _groups(data.trainings)
    rounds = _rounds(groups)
    figure, rows = panels(len(STEPS), len(rounds), 1.5 * len(STEPS), shared=True)
    for (arm, of), trainings in groups.items():
        for row, key in zip(rows, STEPS, strict=True):
            curves = [{step["step"]: step[key] for step in t.steps if step.get(key) is not None} for t in trainings]
            seeds_and_mean(row[rounds.index(of)], looks[arm], curves)
    for row, label in zip(rows, STEPS.values(), strict=True):
        row[0].set_ylabel(label)
        whole_numbers(row)
        for axes in row:
            axes.grid(axis="y")
    for axes, of in zip(rows[0], rounds, strict=True):
        axes.set_title(f"round {of}" if len(rounds) > 1 else "", loc="left")
    for axes in rows[-1]:
        axes.set_xlabel("optimiser step")
    add_legend(figure, _arms(groups, looks))
    losses = (f"{t.node} from {t.mean('loss', 'first'):.3g} to {t.mean('loss', 'last'):.3g}" for t in data.trainings)
    alt = f"Loss by step, means over the first and the last tenth of the steps: {'; '.join(losses)}."
    return figure, "Loss, divergence and gradient norm", alt


def positions(data: ReportData, looks: Mapping[str, Look]) -> Drawn | None:
    """Draw a panel for each arm and round."""
    groups = _groups([t for t in data.trainings if t.kl_by_position])
    if not groups:
        return None
    rounds = _rounds(groups)
    columns = len(rounds) if 1 < len(rounds) < 4 else min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure, rows = panels(lines, columns, 0.2 + 1.9 * lines, shared=True)
    flat = [axes for row in rows for axes in row]
    for axes, ((arm, of), trainings) in zip(flat, groups.items(), strict=False):
        for verdict, style in _BY_VERDICT.items():
            found = [t.kl_by_position[verdict] for t in trainings if verdict in (t.kl_by_position or {})]
            curves = [{10 * i + 5: mean for i, mean in enumerate(means) if mean is not None} for means in found]
            seeds_and_mean(axes, looks[arm], curves, style)
        axes.set_title(fill(f"{arm}, round {of}" if len(rounds) > 1 else arm, 34), loc="left")
        axes.grid(axis="y")
    for row in rows:
        row[0].set_ylabel("divergence, nats")
        # Only now: a limit ends the autoscaling of the axis that the panels of a row share.
        row[0].set_ylim(bottom=0)
    flat[0].set_xlim(0, 100)
    for i, axes in enumerate(flat):
        axes.set_visible(i < len(groups))
        if len(groups) - columns <= i < len(groups):  # No panel is below it.
            axes.set_xlabel("place in the response, %")
            axes.tick_params(labelbottom=True)
    verdicts = [
        Line2D([], [], color=INK, linestyle=style, label=f"y_o {verdict}") for verdict, style in _BY_VERDICT.items()
    ]
    add_legend(figure, [*verdicts, *_arms(groups, {})])
    alt = "Mean divergence of teacher and student by tenth of the response, for rows whose attempt was correct and incorrect."
    return figure, "Divergence by position", alt


def _groups(trainings: Sequence[Training]) -> Groups:
    found: Groups = {}
    for t in trainings:
        found.setdefault((t.arm, t.round), []).append(t)
    # An arm's rounds follow each other, and arms stay in their order.
    arms = list(dict.fromkeys(arm for arm, _ in found))
    return dict(sorted(found.items(), key=lambda item: (arms.index(item[0][0]), item[0][1] or 0)))


def _rounds(groups: Groups) -> list[int | None]:
    return sorted({of for _, of in groups}, key=lambda of: of or 0)


def _arms(groups: Groups, looks: Mapping[str, Look]) -> list[Line2D]:
    """Return the legend: the arms that have a look, and thin and thick lines if there are several seeds."""
    arms = dict.fromkeys(arm for arm, _ in groups if arm in looks)
    several = any(len(trainings) > 1 for trainings in groups.values())
    return [*(looks[arm].entry(arm) for arm in arms), *(seeds_legend(MEAN) if several else [])]
