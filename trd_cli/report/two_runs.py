"""Two runs in one report. Every arm and node is named with its run."""

from __future__ import annotations

from dataclasses import replace

from trd_cli.report.data import ReportData, SetRef
from trd_cli.report.differences import between_runs, corrected


def combine(a: ReportData, b: ReportData) -> ReportData:
    """Combine two runs in one report: arms and nodes are named `run/…`, and arms that both have get differences B − A.

    Runs of the same name take the names of their directories, and if those are equal too, A and B.
    """
    names = _told_apart(a, b)
    one, other = (_named(data, name) for data, name in zip((a, b), names, strict=True))
    differences, notes = between_runs((a, names[0]), (b, names[1]))
    return ReportData(
        name=f"{names[0]} and {names[1]}",
        runs=names,
        directories=(*a.directories, *b.directories),
        setting=a.setting if a.setting == b.setting else None,
        reference_arm=None,
        nodes=one.nodes + other.nodes,
        evaluations=one.evaluations + other.evaluations,
        scores=one.scores + other.scores,
        differences=one.differences + other.differences + corrected(differences),
        refinements=one.refinements + other.refinements,
        trainings=one.trainings + other.trainings,
        sets=one.sets + other.sets,
        missing=one.missing + other.missing,
        notes=one.notes + other.notes + notes,
        diagnoses={**one.diagnoses, **other.diagnoses},
    )


def _told_apart(a: ReportData, b: ReportData) -> tuple[str, str]:
    for pair in ((a.name, b.name), tuple(each.directories[0].resolve().name for each in (a, b))):
        if pair[0] != pair[1]:
            return pair
    return ("A", "B")


def _named(data: ReportData, run: str) -> ReportData:
    """Return the figures of a run with its name before every arm and node."""

    def of(name: str | None) -> str | None:
        return None if name is None else f"{run}/{name}"

    return replace(
        data,
        nodes=tuple(replace(n, name=of(n.name), arm=of(n.arm)) for n in data.nodes),
        evaluations=tuple(replace(e, node=of(e.node), arm=of(e.arm)) for e in data.evaluations),
        scores=tuple(replace(s, arm=of(s.arm)) for s in data.scores),
        differences=tuple(
            replace(d, arm=of(d.arm), against=of(d.against), family=f"{d.family}, in {run}") for d in data.differences
        ),
        refinements=tuple(
            replace(
                r,
                node=of(r.node),
                arm=of(r.arm),
                arms=tuple(map(of, r.arms)),
                nll={text: replace(nll, source=f"{nll.source}, in {run}") for text, nll in r.nll.items()},
            )
            for r in data.refinements
        ),
        trainings=tuple(replace(t, node=of(t.node), arm=of(t.arm)) for t in data.trainings),
        sets=tuple(_named_set(each, run) for each in data.sets),
        missing=tuple(map(of, data.missing)),
        notes=tuple(map(of, data.notes)),
        diagnoses={f"{run}/{name}": diagnosis for name, diagnosis in data.diagnoses.items()},
    )


def _named_set(each: SetRef, run: str) -> SetRef:
    return replace(
        each,
        node=f"{run}/{each.node}",
        arm=None if each.arm is None else f"{run}/{each.arm}",
        selections=tuple(replace(s, arm=f"{run}/{s.arm}") for s in each.selections),
        users=f"{run}, {each.users}",
    )
