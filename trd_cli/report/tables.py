"""The tables of a report, for the page and as Markdown. Pure functions of the figures; csv_files.py has the same for programs."""

from __future__ import annotations

from itertools import groupby
from statistics import median

from trd_cli.report.data import ReportData, Training
from trd_cli.report.refinement_tables import changes, leaked, nll, verdicts
from trd_cli.report.score_tables import differences, rounds, scores, summary
from trd_cli.report.table import Table, count, number, table_of
from trd_cli.score_tables import NOTHING, markdown_table, percent


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


_KL = ("divergence_p50", "divergence_p95", "divergence_p99")


def _training(data: ReportData) -> Table:
    rows = [(t.node, *_training_cells(t)) for t in data.trainings]
    header = (
        *(
            "training",
            "steps",
            "trajectories a step",
            "loss, first",
            "loss, last",
            "divergence p50, last",
            "p95, last",
        ),
        *("p99, last", "gradient norm, median", "gradient norm, largest", "top-1 agreement, last"),
    )
    note = "Loss and divergence in nats, by the arm's own objective: arms of different objectives are not to be compared by it."
    return table_of("training", "steps", "Loss, divergence and gradients", header, rows, 1, note)


def _training_cells(training: Training) -> list[str]:
    first, last = training.steps[0], training.steps[-1]
    norms = [step["grad_norm"] for step in training.steps]
    return [
        *(
            str(len(training.steps)),
            count(first["trajectories"]),
            number(first["loss"]),
            number(last["loss"]),
        ),
        *(number(last.get(key)) for key in _KL),
        *(number(median(norms)), number(max(norms)), percent(last.get("top1_agreement"))),
    ]


def _positions(data: ReportData) -> Table:
    rows = [
        (t.node, verdict, *(number(value) for value in means))
        for t in data.trainings
        for verdict, means in (t.kl_by_position or {}).items()
    ]
    header = ("training", "attempt was", *(f"{10 * i}–{10 * i + 10} %" for i in range(10)))
    note = "Mean divergence in nats by tenth of the response, over all steps, for rows whose attempt y_o was correct and incorrect."
    return table_of("training", "positions", "Divergence by position", header, rows, 2, note)


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
    header = ("node", "stage", "state", "rows", "tokens", "seconds", "tokens/s", "peak memory, GiB")
    note = (
        "Response tokens: generated, or for distill trained on in all epochs. Seconds are wall time, with starting the process; tokens/s "
        "without. Peak memory is resident, or the GPU allocator's where that is more."
    )
    return table_of("cost", "nodes", "Rows, tokens, time and memory", header, rows, 3, note)
