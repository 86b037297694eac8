"""Tell which model wrote the rollouts of sets that are read together, and refuse sets that were made otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trd_cli.errors import InputError
from trd_cli.trajectories.sets import InputSet


def check_alike(sets: Sequence[InputSet], told: Callable[[InputSet], Mapping[str, Any]], mend: str) -> None:
    """Raise InputError for two sets of which other values are told: one command takes them from all sets at once."""
    for other in sets[1:]:
        first, second = told(sets[0]), told(other)
        if differing := [name for name in first if first[name] != second[name]]:
            raise InputError(
                f"{sets[0].directory} and {other.directory} differ in {', '.join(differing)}", "sets made alike", mend
            )


def writer_of(sets: Sequence[InputSet], option: str) -> tuple[str, str | None]:
    """Return name and revision of the model that wrote the rollouts: the sets' own, or those that were refined.

    Raises InputError where two sets name two models or one names none; `option` is the flag that names it instead.
    """
    check_alike(sets, _writer, f"take each by itself, or give {option}")
    name, revision = _writer(sets[0]).values()
    if name is None:
        raise InputError(
            f"{sets[0].directory} does not say which model wrote the rollouts",
            "run.json beside the shards",
            f"give {option} MODEL",
        )
    return name, revision


def _writer(each: InputSet) -> dict[str, str | None]:
    about = each.about
    if each.is_refined or about.student:
        return {"student": about.student, "student_revision": about.student_revision}
    return {"student": about.model, "student_revision": about.model_revision}
