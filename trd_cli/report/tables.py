"""The tables of a report, for the page and as Markdown.

Pure functions of the figures; csv_files.py has the same for programs.
"""

from __future__ import annotations

from itertools import groupby
from statistics import median

from trd_cli.evaluation.tables import NOTHING, markdown_table, percent
from trd_cli.report.data import ReportData, Training
from trd_cli.report.refinement_tables import changes, leaked, nll, verdicts
from trd_cli.report.score_tables import differences, rounds, scores, summary
from trd_cli.report.table import Table, count, number, table_of


def tables(data: ReportData) -> list[Table]:
    """All tables that have a row, in the order of the page."""
    made = (
        summary(data),
        scores(data),
        *differences(data),
        rounds(data),
        *(verdicts(each) for each in data.refinements),
        changes(data),
        nll(data),
        leaked(data),
        _training(data),
        _positions(data),
        _cost(data),
    )
    return [table for table in made if table.rows]


def markdown(data: ReportData) -> str:
    """The report without its plots; what is missing is named first."""
    parts = [f"# {data.name}"]
    for words, lines in (("Not there, or not finished", data.missing), ("Not compared", data.notes)):
        if lines:
            parts.append(f"{words}:\n\n" + "\n".join(f"- {line}" for line in lines))
    for section, group in groupby(tables(data), key=lambda table: table.section):
        parts.append(f"## {section.capitalize()}")
        for table in group:
            parts += [f"### {table.title}", markdown_table(table.columns, table.rows), table.note]
    return "\n\n".join(part for part in parts if part) + "\n"


_DIVERGENCES = ("divergence_p50", "divergence_p95", "divergence_p99")


def _training(data: ReportData) -> Table:
    rows = [(t.node, *_training_cells(t)) for t in data.trainings]
    numbers = (
        *("steps", "trajectories, first step", "loss, first tenth", "loss, last tenth"),
        *("divergence p50, last tenth", "p95, last tenth", "p99, last tenth"),
        *("gradient norm, median", "gradient norm, largest", "top-1 agreement, last tenth"),
    )
    note = (
        "Loss and divergence are in nats and of the arm's own objective: those of different objectives cannot be compared. First and last "
        "tenth are means over the first and the last tenth of the steps, of one step at least, weighted by their trajectories; the quantiles "
        "of the divergence, too, are means of the steps' own. The gradient norm is over all steps, before clipping."
    )
    return table_of("training-steps", "Loss, divergence and gradients", ("training",), numbers, rows, note)


def _training_cells(training: Training) -> list[str]:
    norms = [step["grad_norm"] for step in training.steps]
    return [
        *(str(len(training.steps)), count(training.steps[0]["trajectories"])),
        *(number(training.mean("loss", end)) for end in ("first", "last")),
        *(number(training.mean(key, "last")) for key in _DIVERGENCES),
        *(number(median(norms)), number(max(norms)), percent(training.mean("top1_agreement", "last"))),
    ]


def _positions(data: ReportData) -> Table:
    rows = [
        (t.node, verdict, *(number(value) for value in means))
        for t in data.trainings
        for verdict, means in (t.kl_by_position or {}).items()
    ]
    numbers = [f"{10 * i}–{10 * i + 10} %" for i in range(10)]
    note = (
        "Mean divergence in nats, over all steps, at the tokens in each tenth of the response that is trained on; apart for the rows whose y_o "
        "was correct and incorrect. Rows whose y_o has neither verdict are left out."
    )
    return table_of("training-positions", "Divergence by position", ("training", "y_o was"), numbers, rows, note)


def _cost(data: ReportData) -> Table:
    rows = [
        (
            *(n.name, n.stage, n.state, count(n.rows), count(n.tokens)),
            *(
                NOTHING if n.seconds is None else f"{n.seconds:,.1f}",
                NOTHING if n.tokens_per_second is None else f"{n.tokens_per_second:,.1f}",
            ),
            NOTHING if n.peak_bytes is None else f"{n.peak_bytes / 2**30:.2f}",
        )
        for n in data.nodes
    ]
    numbers = ("rows", "tokens", "seconds", "tokens/s", "peak memory, GiB")
    note = (
        "Tokens are those of responses: generated, or for distill trained on in all epochs. Seconds are wall time with the start of the process, "
        "tokens/s are without it. Peak memory is the host's, resident; for distill on a GPU it is the allocator's peak where that is more. What "
        "sample, refine and eval take of a GPU is not in it."
    )
    title, words = "Rows, tokens, time and memory", ("node", "stage", "state")
    return table_of("cost-nodes", title, words, numbers, rows, note)
