"""Scores by the number of rounds that an arm has been trained for."""

from __future__ import annotations

from trd_cli.report.data import ReportData, Score, Seed

# (arm, seed, benchmark) to rounds of training done to score.
Curves = dict[tuple[str, Seed, str], dict[int, Score]]


def curves_of(data: ReportData) -> Curves:
    """avg@k of each arm, seed and benchmark; every curve begins with the base model of its run, at 0."""
    averages = [s for s in data.scores if s.score.startswith("avg@")]
    starts = {(_run(s.arm), s.benchmark): s for s in averages if s.round is None}
    found: Curves = {}
    for s in averages:
        if s.round is not None:
            found.setdefault((s.arm, s.seed, s.benchmark), {})[s.round + 1] = s
    for (arm, _, benchmark), curve in found.items():
        if (_run(arm), benchmark) in starts:
            curve[0] = starts[_run(arm), benchmark]
    return found


def are_several(curves: Curves) -> bool:
    """Whether some arm was evaluated after more than one round:

    what is before and after one, the tables of scores have.
    """
    return any(max(curve) > 1 for curve in curves.values())


def _run(arm: str) -> str:
    """Of two runs in a report the one that the arm belongs to."""
    return arm.rpartition("/")[0]
