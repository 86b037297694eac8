"""The tables of runs with many rounds: figures by round, and the cost of a round, cold and warm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

from trd_cli.evaluation.table import Table, number, table_of
from trd_cli.evaluation.tables import NOTHING, percent
from trd_cli.report.data import NodeCost, ReportData
from trd_cli.report.rounds import CHANGES, curves, evenly, has_many_rounds
from trd_cli.report.run_directory import some

# Figures by round that are shares of 1.
_SHARES = re.compile(
    "|".join((*CHANGES, "other verdicts", "top-1 agreement", "y_r (talks|copies) .*", "actions not valid .*"))
)


def by_round(data: ReportData) -> Table:
    """Return the figures of every arm in some of many rounds. Those of several seeds are their mean."""
    found = curves(data)
    numbers = sorted({of for by_arm in found.values() for seeds in by_arm.values() for c in seeds.values() for of in c})
    shown = evenly(numbers)
    rows = []
    for figure, by_arm in found.items():
        write = percent if _SHARES.fullmatch(figure) else number
        for arm, seeds in by_arm.items():
            known = ([curve[of] for curve in seeds.values() if of in curve] for of in shown)
            rows.append((figure, arm, *(write(fmean(values)) if values else NOTHING for values in known)))
    note = (
        "Shares are of all refined rows; tokens, edit distance and common prefix are means over the rows with both responses. Nats a token "
        "of y_o and y_r are under the student that wrote y_o. Figures of training are means over the round's steps. Seconds are those of all "
        "stages of the round, of shared ones too; seconds at work are without loading, starting, saving and grading. With several seeds "
        f"each figure is the seeds' mean. {len(shown)} of {len(numbers)} rounds are here, all in rounds.csv."
    )
    columns = [f"round {of}" for of in shown]
    return table_of("rounds-figures", "Refinement, training and cost by round", ("figure", "arm"), columns, rows, note)


def cost_of_rounds(data: ReportData) -> Table:
    """Return the cost of each stage of a round, cold and warm, for a run of many rounds or with warm stages."""
    done = [n for n in data.nodes if n.state == "done" and n.seconds is not None]
    kinds: dict[str, dict[bool, list[NodeCost]]] = {}
    if has_many_rounds(data) or any(node.warm for node in done):
        for node in done:
            if node.round is not None:
                kinds.setdefault(node.name.rpartition("/")[2], {}).setdefault(node.warm, []).append(node)
    rows = [(kind, *_cost_cells(warm, [ran[warm]])) for kind, ran in kinds.items() for warm in sorted(ran)]
    cold = {kind: ran.get(False) or _cold_elsewhere(ran[True][0].stage, done) for kind, ran in kinds.items()}
    if kinds and all(cold.values()):
        rows.append(("a round of one arm", *_cost_cells(False, list(cold.values()))))
    if any(True in ran for ran in kinds.values()):
        # A stage that never runs warm costs the same in a warm round.
        rows.append(("a round of one arm", *_cost_cells(True, [ran.get(True) or ran[False] for ran in kinds.values()])))
    note = (
        "Means over the stages of all rounds, arms and seeds; a round of one arm is the sum of its stages. The first stage of a worker is "
        "cold. A stage that has never been is counted in the cold round by another of the same command. Seconds are wall time. At work is "
        "the time in which a stage makes rows or takes steps; beyond it are starting, loading and saving. It is not recorded for grading, "
        "which is left out of the figures after it. Tokens/s are over the time at work, the memory is the host's (on a GPU, of distill the "
        "allocator's if that is more). Each stage is in cost.csv."
    )
    words = ("stage", "ran", "on")
    numbers = ("stages", "seconds", "at work", "beyond", "seconds / at work", "tokens/s", "largest memory, GiB")
    return table_of("cost-rounds", "Cost of a round, cold and warm", words, numbers, rows, note)


def _cold_elsewhere(stage: str, nodes: Iterable[NodeCost]) -> list[NodeCost]:
    """Return the cold nodes of a command: a worker that grades rollouts is warm for refined rows from the start."""
    return [node for node in nodes if node.stage == stage and not node.warm]


def _cost_cells(warm: bool, groups: Sequence[Sequence[NodeCost]]) -> tuple[str, ...]:
    """Return the cells on stages of several kinds, each group one kind, that run one after another."""
    worked = [known for nodes in groups if (known := [n for n in nodes if n.at_work is not None])]
    seconds, of_worked, work = (
        sum(fmean(getattr(n, key) for n in nodes) for nodes in kinds)
        for kinds, key in ((groups, "seconds"), (worked, "seconds"), (worked, "at_work"))
    )
    rates = [n.tokens_per_second for nodes in groups for n in nodes if n.tokens_per_second is not None]
    peaks = [n.peak_bytes for nodes in groups for n in nodes if n.peak_bytes is not None]
    devices = list(dict.fromkeys(n.devices for nodes in groups for n in nodes if n.devices))
    beyond = [f"{work:,.1f}", f"{of_worked - work:,.1f}", f"{of_worked / work:.2f}"] if work else [NOTHING] * 3
    return (
        *("warm" if warm else "cold", some(devices) if devices else NOTHING, str(sum(map(len, groups)))),
        *(f"{seconds:,.1f}", *beyond, f"{fmean(rates):,.1f}" if rates and len(groups) == 1 else NOTHING),
        f"{max(peaks) / 2**30:.2f}" if peaks else NOTHING,
    )
