"""The figures of a stage that is done, as points for a tracker. The report's own functions compute them.

Names: `train/…` the numbers of train.jsonl, `score/BENCHMARK/…` scores with their intervals, `rollouts/…` and
`refined/…` shares of verdicts, `refinement/…` what the teacher changed, `cost/STAGE/…`. Those of the second set of a
round with problems and episodes begin with `episodes/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from trd_cli.report.collect import evaluation_of, refinement_in
from trd_cli.report.csv_files import position_lines, records, refinement_lines, verdict_lines
from trd_cli.report.data import UNVERIFIED, VERDICTS, Score
from trd_cli.report.logs import cost_of, training_of
from trd_cli.report.rounds import figures_of_refinement
from trd_cli.report.run_directory import Node, Run
from trd_cli.report.scores import scores_of
from trd_cli.tracking.base import Lines, Point
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.shards import read_table

Values = dict[str, float]
Tables = dict[str, Lines]
_SHARES = ("truncated", "no_answer", "error", "timeout")
_COST = ("rows", "tokens", "seconds", "at_work", "tokens_per_second", "peak_bytes")
# The set that a verify node grades, by the last part of its name.
_GRADED = {"verify-rollouts": "rollouts", "verify-refined": "refined"}


class Steps:
    """The optimiser steps of one arm and seed, counted over its rounds, also where each round counts for itself."""

    def __init__(self, trainings: Sequence[Node]) -> None:
        self._ends: dict[int | None, int] = {}
        self._offsets: dict[str, int] = {}
        end = 0
        for node in trainings:
            about = About.of(read_run_json(node.path))
            before = about.steps_before or 0
            self._offsets[node.name] = end - before
            end += about.steps or 0
            self._ends[node.round] = end

    def of(self, node: Node) -> int:
        """Return the steps that the student has taken when a node ends."""
        if node.round is None:
            return 0
        last = node.round + (node.stage in ("distill", "eval"))
        return max((end for of, end in self._ends.items() if of is not None and of < last), default=0)

    def offset(self, node: Node) -> int:
        """Return what to add to the steps in a training's log."""
        return self._offsets[node.name]


class Figures:
    """The figures of a run's stages. Those of a stage that several arms need are computed once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._made: dict[str, tuple[Values, Tables]] = {}

    def is_ready(self, node: Node) -> bool:
        """Return True if a node is done, and with it those whose verdicts its figures need."""
        return all(each.state == "done" for each in (node, *self._graders(node)))

    def points(self, node: Node, steps: Steps) -> list[Point]:
        """Return the points of a node that is ready. Raises InputError if its files cannot be read."""
        if node.name not in self._made:
            self._made[node.name] = self._figures(node)
        values, tables = self._made[node.name]
        last = Point(steps.of(node), {"round": (node.round or 0) + (node.round is not None), **values}, tables)
        return [*_training_points(node, steps), last] if node.stage == "distill" else [last]

    def _figures(self, node: Node) -> tuple[Values, Tables]:
        of_which = "episodes/" if "/episodes/" in node.name else ""
        values, tables = {}, {}
        if node.stage == "eval":
            values, tables = _scores(node)
        elif node.stage == "distill":
            training = training_of(node)
            tables = {"train/divergence_by_tenth": position_lines([training])} if training else {}
        elif node.stage == "verify":
            values, tables = self._verdicts(node)
        values |= _cost(node)
        return (
            {of_which + name: value for name, value in values.items()},
            {of_which + name: lines for name, lines in tables.items() if lines[1]},
        )

    def _verdicts(self, node: Node) -> tuple[Values, Tables]:
        name = _GRADED[node.name.rpartition("/")[2]]
        columns = (read_table(path, ["verdict"])["verdict"] for path in node.shards())
        counts = Counter(verdict or UNVERIFIED for verdict in chain.from_iterable(c.to_pylist() for c in columns))
        known = (*VERDICTS, *([UNVERIFIED] if counts[UNVERIFIED] else []))
        values = {f"{name}/{verdict}": counts[verdict] / max(1, counts.total()) for verdict in known}
        tables: Tables = {f"{name}/verdicts": (("verdict", "rows"), [(verdict, counts[verdict]) for verdict in known])}
        refined = self._refined_by(node)
        if refined is not None and (found := refinement_in(self.run, refined)) is not None:
            shown = figures_of_refinement(found)
            values |= {f"refinement/{figure}": value for figure, value in shown.items() if value is not None}
            tables |= {
                "refinement/verdict_matrix": verdict_lines([found]),
                "refinement/spreads": refinement_lines([found]),
            }
        return values, tables

    def _refined_by(self, node: Node) -> Node | None:
        """Return the refine node whose set a verify node grades."""
        if node.stage != "verify":
            return None
        return next((each for each in self.run.of_stage("refine") if each.path == node.path), None)

    def _graders(self, node: Node) -> Iterator[Node]:
        """Yield the nodes that grade the rollouts of a refined set."""
        refined = self._refined_by(node)
        if refined is None:
            return
        parents = {parent.path for parent in self.run.sources(refined, "sample")}
        yield from (each for each in self.run.of_stage("verify") if each.path in parents)


def _training_points(node: Node, steps: Steps) -> Iterator[Point]:
    training = training_of(node)
    for line in training.steps if training else ():
        values = {f"train/{key}": v for key, v in line.items() if isinstance(v, (int, float)) and key != "step"}
        yield Point(line["step"] + steps.offset(node), values)


def _scores(node: Node) -> tuple[Values, Tables]:
    evaluation = evaluation_of(node)
    scores = list(scores_of(evaluation)) if evaluation is not None else []
    values: dict[str, float | None] = {}
    for score in scores:
        bench = f"score/{score.benchmark}"
        values |= {f"{bench}/{score.score}": score.value}
        values |= {f"{bench}/{score.score}/{end}": getattr(score, end) for end in ("low", "high")}
        values |= {f"{bench}/{share}": getattr(score, share) for share in _SHARES}
    return _known(values), {"scores": records(Score, scores)}


def _cost(node: Node) -> Values:
    cost = cost_of(node)
    kind = node.name.rpartition("/")[2]
    return _known({f"cost/{kind}/{name}": getattr(cost, name) for name in _COST})


def _known(values: Mapping[str, float | None]) -> Values:
    return {name: value for name, value in values.items() if value is not None}
