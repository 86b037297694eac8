"""Collect the figures of a report from a run directory. An unfinished or partly failed run gives the figures it has.

A diagnosis belongs to a run if its directory lies in it and has a name that begins with `diagnosis`. A diagnosis alone
has a report too, with its own figures and the rows it is of.

`missing` names every node that is not done, every done node whose output is gone or incomplete, and every file that
cannot be read. None of these stops the report. Only a directory that is not a run raises InputError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from trd_cli.errors import InputError, UserError
from trd_cli.evaluation.results import FILE, read_results
from trd_cli.report.data import BASE, KIND_OF_SET, Evaluation, Refinement, ReportData, Selection, SetRef, Training
from trd_cli.report.diagnoses import diagnoses_in, diagnosis_alone, warnings_of
from trd_cli.report.differences import corrected, within_run
from trd_cli.report.layouts import Results, checked
from trd_cli.report.logs import cost_of, training_of, with_training_nll
from trd_cli.report.refinement import refinement_of
from trd_cli.report.run_directory import NAMED, Node, Run, lacking, read_run, some
from trd_cli.report.scores import pooled, pooled_scores, scores_of
from trd_cli.trajectories.run_json import About, maker_of, read_run_json
from trd_cli.trajectories.shards import shard_info

_STAGES = ("problems", "sample", "verify", "refine", "distill", "eval")

Value = TypeVar("Value")


def collect(directory: Path) -> ReportData:
    """Collect all figures of a run or of a diagnosis. Raises InputError if `directory` is neither."""
    if maker_of(directory) == "diagnose":
        return diagnosis_alone(directory)
    run = read_run(directory)
    # By node, in the graph's order. A dictionary keeps a line that several figures give once.
    missing: dict[str, dict[str, None]] = {name: {} for name in run.nodes}

    def each(stages: Sequence[str], made: Callable[[Node], Value | None]) -> tuple[Value, ...]:
        """Return `made` of every node of these stages. A node that cannot be read is named in `missing`."""
        found = []
        for node in run.of_stage(*stages):
            try:
                found.append(made(node))
            except (UserError, OSError, ValueError, KeyError) as error:
                missing[node.name][f"{node.name}: {_reason(error)}"] = None
        return tuple(value for value in found if value is not None)

    diagnoses, unfinished = diagnoses_in(directory)
    together = _in_one_line(run)
    for line, name in each(_STAGES, lambda node: None if node.state in together else _not_whole(node)):
        missing[name][line] = None
    trainings = each(["distill"], training_of)
    evaluations = each(["eval"], evaluation_of)
    refinements = each(["refine"], lambda node: refinement_in(run, node, trainings))
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
        scores=(*(s for e in evaluations for s in scores_of(e)), *pooled_scores(pools)),
        differences=corrected(differences),
        refinements=refinements,
        trainings=trainings,
        sets=each(("sample", "refine"), lambda node: _set_ref(run, node)),
        missing=(*(line for lines in missing.values() for line in lines), *together.values(), *unfinished),
        notes=(*notes, *warnings_of(diagnoses)),
        diagnoses=diagnoses,
    )


def _not_whole(node: Node) -> tuple[str, str] | None:
    """Describe a node that is not done, or whose output is gone, and return the line with the node's name."""
    if node.state == "done":
        gone = lacking(node)
        return None if gone is None else (f"{node.name}: {gone}", node.name)
    code = node.status.get("exit_code")
    ended = f" with exit code {code}" if code else ""
    log = f", see logs/{node.name.replace('/', '_')}.log" if node.state == "failed" else ""
    return f"{node.name}: {node.state}{ended}{log}", node.name


def _in_one_line(run: Run) -> dict[str, str]:
    """Return by state a line on all nodes in it: on the waiting ones, if there are any, and on many skipped ones."""
    found = {}
    for state, words, most in (("waiting", "have not been run", 0), ("skipped", "were skipped", NAMED)):
        names = [node.name for node in run.nodes.values() if node.state == state]
        if len(names) > most:
            found[state] = f"{len(names)} of {len(run.nodes)} stages {words}: {some(names)}"
    return found


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def evaluation_of(node: Node) -> Evaluation | None:
    if not (node.path / FILE).is_file():
        return None
    results = read_results(str(node.path))
    checked(Results, results, node.path / FILE)
    return Evaluation(node.name, node.arm or BASE, node.round, node.seed, results)


def refinement_in(run: Run, node: Node, trainings: Sequence[Training] = ()) -> Refinement | None:
    if not node.shards():
        return None
    parents = run.sources(node, "sample")
    rollouts = [path for parent in parents for path in parent.shards()]
    if not any(shard_info(path).rows for path in rollouts):
        names = " and ".join(parent.name for parent in parents)
        raise InputError("the rollouts that were refined are gone", f"those of {names}", "run trd run again")
    record = read_run_json(node.path)
    if record is None:
        raise InputError(f"{node.path} has no run.json", "one of trd refine", "run trd run again")
    whose = {key: getattr(node, key) for key in ("arm", "arms", "round", "seed")}
    found = refinement_of(node.shards(), rollouts, {"node": node.name, "setting": About.of(record).setting, **whose})
    return with_training_nll(run, found, trainings)


def _set_ref(run: Run, node: Node) -> SetRef | None:
    if not node.shards():
        return None
    parents = tuple(parent.path for parent in run.sources(node, "sample"))
    return SetRef(
        *(node.name, node.arm, node.round, node.seed, KIND_OF_SET[node.stage], node.path, parents),
        selections=tuple(_selections(run, node)),
        users="all arms" if set(node.arms) >= set(run.recipe.get("arms", ())) else ", ".join(node.arms),
    )


def _selections(run: Run, made: Node) -> Iterator[Selection]:
    """Yield the part of a set that each training along it has chosen."""
    for node in run.of_stage("distill"):
        try:
            config = (read_run_json(node.path) or {}).get("config")
        except InputError:
            continue  # Reading the training itself names it.
        # By the directory's name: a run may have been moved since.
        if config and made.path.name in (Path(name).name for name in config["inputs"]):
            yield Selection(node.arm or "", config["subset"], config["where"])
