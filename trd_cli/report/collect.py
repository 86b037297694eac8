"""From a run directory to the figures of a report. An unfinished or partly failed run is told as far as it is.

What cannot be read, every node that is not done, and every node that is done but whose output is gone or incomplete, is
named in `missing`; nothing here stops at it. Only a directory that is no run at all raises InputError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from trd_cli.errors import InputError, UserError
from trd_cli.evaluation.results import FILE, read_results
from trd_cli.evaluation.tables import KINDS
from trd_cli.report.costs import cost_of
from trd_cli.report.data import BASE, Evaluation, Refinement, ReportData, Score, Selection, SetRef, Training
from trd_cli.report.differences import corrected, within_run
from trd_cli.report.layouts import Results, checked
from trd_cli.report.outputs import lacking
from trd_cli.report.refinement import read_rollouts, refinement_of
from trd_cli.report.run_files import Node, RunFiles, read_run
from trd_cli.report.seeds import pooled, pooled_scores
from trd_cli.report.trainings import training_of, with_training_nll
from trd_cli.trajectories.run_json import read_run_json

_STAGES = ("problems", "sample", "verify", "refine", "distill", "eval")
_KIND_OF_SET = {"sample": "rollout", "refine": "refined"}
_SHOWN_KEYS = ("value", "low", "high", "questions")
# So many stages that wait are named.
_NAMED = 3
Value = TypeVar("Value")


def collect(directory: Path) -> ReportData:
    """All figures of a run. Raises InputError where `directory` is not a run directory."""
    run = read_run(directory)
    # By node, in the graph's order; what several figures lack is named once.
    missing: dict[str, dict[str, None]] = {name: {} for name in run.nodes}

    def each(stages: Sequence[str], made: Callable[[Node], Value | None]) -> tuple[Value, ...]:
        """`made` of every node of these stages; what it cannot read is named."""
        found = []
        for node in run.of_stage(*stages):
            try:
                found.append(made(node))
            except (UserError, OSError, ValueError, KeyError) as error:
                missing[node.name][f"{node.name}: {_reason(error)}"] = None
        return tuple(value for value in found if value is not None)

    for line, name in each(_STAGES, _not_whole):
        missing[name][line] = None
    waiting = [node.name for node in run.nodes.values() if node.state == "waiting"]
    trainings = each(["distill"], training_of)
    evaluations = each(["eval"], _evaluation)
    refinements = each(["refine"], lambda node: _refinement(run, node, trainings))
    reference = run.recipe.get("reference_arm")
    pools = pooled(evaluations, {node.seed for node in run.nodes.values()} - {None})
    differences, notes = within_run((*evaluations, *pools), reference)
    return ReportData(
        name=run.name,
        runs=(run.name,),
        directories=(directory,),
        setting=run.recipe.get("setting"),
        reference_arm=reference,
        nodes=each(_STAGES, cost_of),
        evaluations=evaluations,
        scores=(*(s for e in evaluations for s in scores_of(e)), *_of_all_seeds(evaluations, pools)),
        differences=corrected(differences),
        refinements=refinements,
        trainings=trainings,
        sets=each(("sample", "refine"), lambda node: _set_ref(run, node)),
        missing=(*(line for lines in missing.values() for line in lines), *_waiting(waiting, len(run.nodes))),
        notes=notes,
    )


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


def _not_whole(node: Node) -> tuple[str, str] | None:
    """What is said of a node that is not done, or whose output is gone, and the node's name."""
    if node.state == "waiting":
        return None  # all of them are one line
    if node.state == "done":
        gone = lacking(node)
        return None if gone is None else (f"{node.name}: {gone}", node.name)
    code = node.status.get("exit_code")
    ended = f" with exit code {code}" if code else ""
    log = f", see logs/{node.name.replace('/', '_')}.log" if node.state == "failed" else ""
    return f"{node.name}: {node.state}{ended}{log}", node.name


def _waiting(names: Sequence[str], total: int) -> Iterator[str]:
    """What is said of the nodes that have not been run."""
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{len(names)} of {total} stages have not been run: {', '.join(names[:_NAMED])}{more}"


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _evaluation(node: Node) -> Evaluation | None:
    if not (node.path / FILE).is_file():
        return None
    results = read_results(str(node.path))
    checked(Results, results, node.path / FILE)
    return Evaluation(node.name, node.arm or BASE, node.round, node.seed, results)


def _refinement(run: RunFiles, node: Node, trainings: Sequence[Training]) -> Refinement | None:
    if not node.shards():
        return None
    parents = run.sources(node, "sample")
    rollouts = {}
    for parent in parents:
        rollouts |= read_rollouts(parent.shards())
    if not rollouts:
        names = " and ".join(parent.name for parent in parents)
        raise InputError("the rollouts that were refined are gone", f"those of {names}", "run trd run again")
    about = read_run_json(node.path)
    if about is None:
        raise InputError(f"{node.path} has no run.json", "one of trd refine", "run trd run again")
    setting = about["about"]["setting"]
    whose = {key: getattr(node, key) for key in ("arm", "round", "seed")}
    found = refinement_of(node.shards(), rollouts, {"node": node.name, "setting": setting, **whose})
    return with_training_nll(run, found, trainings)


def _set_ref(run: RunFiles, node: Node) -> SetRef | None:
    if not node.shards():
        return None
    parents = tuple(parent.path for parent in run.sources(node, "sample"))
    return SetRef(
        *(node.name, node.arm, node.round, node.seed, _KIND_OF_SET[node.stage], node.path, parents),
        selections=tuple(_selections(run, node)),
        users="all arms" if set(node.arms) >= set(run.recipe.get("arms", ())) else ", ".join(node.arms),
    )


def _selections(run: RunFiles, made: Node) -> Iterator[Selection]:
    """What each training along a set has chosen of it."""
    for node in run.of_stage("distill"):
        try:
            config = (read_run_json(node.path) or {}).get("config")
        except InputError:
            continue  # named where the training itself is read
        # By the directory's name: a run may have been moved since.
        if config and made.path.name in (Path(name).name for name in config["inputs"]):
            yield Selection(node.arm or "", config["subset"], config["where"])
