"""From a run directory to the figures of a report. An unfinished or partly failed run is told as far as it is.

What cannot be read, and every node that is not done, is named in `missing`; nothing here stops at it. Only a directory that
is no run at all raises InputError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from trd_cli.errors import UserError
from trd_cli.inputs import read_run_json
from trd_cli.report.costs import cost_of
from trd_cli.report.data import (
    BASE,
    Difference,
    Evaluation,
    Nll,
    Refinement,
    ReportData,
    Score,
    Selection,
    SetRef,
    Training,
)
from trd_cli.report.differences import between_runs, corrected, within_run
from trd_cli.report.refinement import read_rollouts, refinement_of
from trd_cli.report.run_files import Node, RunFiles, read_run
from trd_cli.report.seeds import pooled, pooled_scores
from trd_cli.score_tables import KINDS
from trd_cli.scores import FILE, read_results

TENTHS = 10
LOG = "train.jsonl"
_STAGE_OF_SET = {"sample": "rollout", "refine": "refined"}
_SHOWN_KEYS = ("value", "low", "high", "questions")
Value = TypeVar("Value")


def collect(directory: Path) -> ReportData:
    """All figures of a run. Raises InputError where `directory` is not a run directory."""
    run = read_run(directory)
    missing: list[str] = [_unfinished(node) for node in run.nodes.values() if node.state != "done"]

    def each(stages: Sequence[str], made: Callable[[Node], Value | None]) -> tuple[Value, ...]:
        """`made` of every node of these stages; what it cannot read is named."""
        found = []
        for node in run.of_stage(*stages):
            try:
                found.append(made(node))
            except (UserError, OSError, ValueError, KeyError) as error:
                missing.append(f"{node.name}: {_reason(error)}")
        return tuple(value for value in found if value is not None)

    trainings = each(["distill"], _training)
    evaluations = each(["eval"], lambda node: _evaluation(run, node))
    refinements = each(["refine"], lambda node: _refinement(run, node))
    reference = run.recipe.get("reference_arm")
    pools = pooled(evaluations)
    differences, notes = within_run((*evaluations, *pools), reference)
    return ReportData(
        name=run.name,
        runs=(run.name,),
        directories=(directory,),
        setting=run.recipe.get("setting"),
        reference_arm=reference,
        nodes=each(("problems", "sample", "verify", "refine", "distill", "eval"), cost_of),
        evaluations=evaluations,
        scores=(*(s for e in evaluations for s in scores_of(e)), *_of_all_seeds(evaluations, pools)),
        differences=corrected(differences),
        refinements=tuple(_with_training_nll(run, each, trainings) for each in refinements),
        trainings=trainings,
        sets=each(("sample", "refine"), lambda node: _set_ref(run, node)),
        missing=tuple(missing),
        notes=notes,
    )


def combine(a: ReportData, b: ReportData) -> ReportData:
    """Two runs in one report: arms and nodes named `run/…`, and the differences B − A of the arms that both have.

    Runs of the same name are told apart by their directories' names, and where those are equal too, as A and B.
    """
    names = _told_apart(a, b)
    one, other = (_named(data, name) for data, name in zip((a, b), names, strict=True))
    differences, notes = between_runs((a, names[0]), (b, names[1]))
    parts = {
        field: (*getattr(one, field), *getattr(other, field))
        for field in (
            "nodes",
            "evaluations",
            "scores",
            "differences",
            "refinements",
            "trainings",
            "sets",
            "missing",
            "notes",
        )
    }
    parts["differences"] += corrected(differences)
    parts["notes"] += notes
    return ReportData(
        name=f"{names[0]} and {names[1]}",
        runs=names,
        directories=(*a.directories, *b.directories),
        setting=a.setting if a.setting == b.setting else None,
        reference_arm=None,
        **parts,
    )


def _told_apart(a: ReportData, b: ReportData) -> tuple[str, str]:
    for pair in ((a.name, b.name), tuple(each.directories[0].resolve().name for each in (a, b))):
        if pair[0] != pair[1]:
            return pair
    return ("A", "B")


def _named(data: ReportData, run: str) -> ReportData:
    def prefixed(value: Any) -> Any:
        changes = {
            key: f"{run}/{getattr(value, key)}"
            for key in ("name", "node", "arm", "against")
            if getattr(value, key, None) is not None
        }
        if isinstance(value, Difference):
            changes["family"] = f"{value.family}, in {run}"
        if isinstance(value, SetRef):
            changes["selections"] = tuple(replace(s, arm=f"{run}/{s.arm}") for s in value.selections)
            changes["users"] = f"{run}, {value.users}"
        return replace(value, **changes)

    fields = ("nodes", "evaluations", "scores", "differences", "refinements", "trainings", "sets")
    changed = {field: tuple(map(prefixed, getattr(data, field))) for field in fields}
    said = {name: tuple(f"{run}/{line}" for line in getattr(data, name)) for name in ("missing", "notes")}
    return replace(data, **changed, **said)


def scores_of(evaluation: Evaluation) -> Iterator[Score]:
    """avg@k, pass@k, for mathematics maj@k, for EvalPlus's sets those of the base tests, as results.json has them."""
    k = evaluation.results["k"]
    for name, bench in evaluation.results["benchmarks"].items():
        ends = {key: bench[key] for key in ("truncated", "no_answer", "error", "timeout")}
        for score in (f"{kind}@{k}" for kind in KINDS):
            # With one sample a question they are one and the same vote.
            if score in bench["scores"] and score != "maj@1":
                shown = {key: bench["scores"][score][key] for key in _SHOWN_KEYS}
                whose = (evaluation.arm, evaluation.round, evaluation.seed)
                yield Score(*whose, benchmark=name, score=score, **shown, **ends)


def _of_all_seeds(evaluations: Sequence[Evaluation], pools: Sequence[Evaluation]) -> Iterator[Score]:
    for pool in pools:
        ks = (e.results["k"] for e in evaluations if (e.arm, e.round) == (pool.arm, pool.round))
        yield from pooled_scores(pool, min(ks))


def _unfinished(node: Node) -> str:
    code = node.status.get("exit_code")
    ended = f" with exit code {code}" if code else ""
    log = f", see logs/{node.name.replace('/', '_')}.log" if node.state == "failed" else ""
    return f"{node.name}: {node.state}{ended}{log}"


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _evaluation(run: RunFiles, node: Node) -> Evaluation | None:
    if not (node.path / FILE).is_file():
        return None
    return Evaluation(node.name, node.arm or BASE, node.round, node.seed, read_results(str(node.path)))


def _refinement(run: RunFiles, node: Node) -> Refinement | None:
    made = run.verified(node)
    rollouts = {}
    for parent in run.sources(node, "sample"):
        rollouts |= read_rollouts(run.verified(parent).shards())
    about = read_run_json(node.path)
    if about is None or not rollouts or not made.shards():
        return None
    setting = about["about"]["setting"]
    whose = {key: getattr(node, key) for key in ("arm", "round", "seed")}
    return refinement_of(made.shards(), rollouts, {"node": node.name, "setting": setting, **whose})


def _set_ref(run: RunFiles, node: Node) -> SetRef | None:
    made = run.verified(node)
    if not made.shards():
        return None
    parents = tuple(run.verified(parent).path for parent in run.sources(node, "sample"))
    return SetRef(
        *(node.name, node.arm, node.round, node.seed, _STAGE_OF_SET[node.stage], made.path, parents),
        selections=tuple(_selections(run, made)),
        users="all arms" if set(node.arms) >= set(run.recipe.get("arms", ())) else ", ".join(node.arms),
    )


def _selections(run: RunFiles, made: Node) -> Iterator[Selection]:
    """What each training along a set has chosen of it."""
    for node in run.of_stage("distill"):
        config = (read_run_json(node.path) or {}).get("config")
        # By the directory's name: a run may have been moved since.
        if config and made.path.name in (Path(name).name for name in config["inputs"]):
            yield Selection(node.arm or "", config["subset"], config["where"])


def _training(node: Node) -> Training | None:
    steps = node.records(LOG)
    if not steps:
        return None
    return Training(node.name, node.arm or "", node.round, node.seed, steps, kl_by_position(steps))


def kl_by_position(steps: Iterable[Mapping[str, Any]]) -> dict[str, list[float | None]] | None:
    """Mean divergence in each tenth of the response over all positions of all steps; None where no step has it."""
    sums: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for step in steps:
        for verdict in ("correct", "incorrect"):
            means = step.get(f"divergence_tenths_{verdict}")
            if means is None:
                continue
            of_step = step[f"positions_tenths_{verdict}"]
            total, count = sums.setdefault(verdict, [0.0] * TENTHS), counts.setdefault(verdict, [0] * TENTHS)
            for i, (mean, positions) in enumerate(zip(means, of_step, strict=True)):
                total[i] += mean * positions
                count[i] += positions
    return {
        verdict: [s / n if n else None for s, n in zip(sums[verdict], counts[verdict], strict=True)]
        for verdict in sums
    } or None


def _with_training_nll(run: RunFiles, refinement: Refinement, trainings: Sequence[Training]) -> Refinement:
    """With the student's NLL of y_r at the first step of a training along it: the only one before any update."""
    for training in trainings:
        node, first = run.nodes[training.node], training.steps[0]
        along = {each.name for each in run.sources(node, "refine")}
        config = (read_run_json(node.path) or {}).get("config", {})
        is_plain = config.get("stage") in (None, "refined") and config.get("temperature") == 1.0
        if is_plain and along == {refinement.node} and first["step"] == 1 and "student_nll" in first:
            source = f"first step of {training.node}"
            nll = Nll(first["student_nll"], first["response_tokens"], first["trajectories"], source)
            return replace(refinement, nll={**refinement.nll, "y_r": nll})
    return refinement
