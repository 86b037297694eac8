"""The diagnoses of a run, and a diagnosis that has a report of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from trd_cli.diagnosis.results import Diagnosis, read_diagnosis
from trd_cli.errors import UserError
from trd_cli.report.data import KIND_OF_SET, ReportData, SetRef
from trd_cli.trajectories.run_json import NAME, maker_of, read_run_json

_NAMES = "diagnosis*"


def diagnoses_in(run: Path) -> tuple[dict[str, Diagnosis], list[str]]:
    """Return the diagnoses in a run directory by the names of their directories, and a line for each unreadable one."""
    found: dict[str, Diagnosis] = {}
    missing = []
    for directory in sorted(path.parent for path in run.glob(f"{_NAMES}/{NAME}")):
        try:
            found[directory.name] = read_diagnosis(directory)
        except UserError as error:
            missing.append(f"{directory.name}: {error}")
    return found, missing


def diagnosis_alone(directory: Path) -> ReportData:
    """Return the figures of a diagnosis, with the sets that it is of as far as they are there."""
    diagnosis = read_diagnosis(directory)
    name = directory.resolve().name
    found = {name: diagnosis}
    return ReportData(
        name=name,
        runs=(name,),
        directories=(directory,),
        setting=None,
        reference_arm=None,
        nodes=(),
        evaluations=(),
        scores=(),
        differences=(),
        refinements=(),
        trainings=(),
        sets=tuple(_sets(directory)),
        missing=(),
        notes=tuple(warnings_of(found)),
        diagnoses=found,
    )


def warnings_of(diagnoses: Mapping[str, Diagnosis]) -> Iterator[str]:
    """Yield the warnings of diagnoses, with their names."""
    return (f"{name}: {line}" for name, diagnosis in diagnoses.items() for line in diagnosis.warnings)


def _sets(directory: Path) -> Iterator[SetRef]:
    inputs = [Path(entry["path"]) for entry in (read_run_json(directory) or {}).get("inputs", [])]
    kinds = {path: KIND_OF_SET.get(maker_of(path) or "") for path in inputs}
    rollouts = tuple(path for path, kind in kinds.items() if kind == "rollout")
    for path, kind in kinds.items():
        if kind:
            parents = rollouts if kind == "refined" else ()
            yield SetRef(path.name, None, None, None, kind, path, parents, users="")
