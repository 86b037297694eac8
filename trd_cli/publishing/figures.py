"""What a card tells of the rows of a set, counted in one pass over a few columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from trd_cli.errors import InputError, PromptError
from trd_cli.prompting.templates import digest_of, prompts_dir
from trd_cli.publishing.places import named
from trd_cli.trajectories.sets import InputSet, selected_tables
from trd_cli.trajectories.shards import iter_values

SUBSETS = ("repaired", "broken", "kept", "unrepaired")
UNVERIFIED = "not verified"
_COUNTED = {
    "sources": ("source", "task"),
    "models": ("model", "model_revision", "engine", "engine_version"),
    "sampling": ("temperature", "top_p", "top_k", "max_tokens"),
    "graders": ("grader", "grader_version"),
    "prompts": ("prompt_template", "prompt_sha256"),
}
_COLUMNS = list(dict.fromkeys(name for names in _COUNTED.values() for name in names))


@dataclass
class Figures:
    """Hold counts of the rows of a set: by verdict, and by the values that say how they were made.

    `subsets` is None where the rows have no parents, or their sets are not at hand.
    """

    rows: int = 0
    failed: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    made: dict[str, Counter[tuple]] = field(default_factory=lambda: {name: Counter() for name in _COUNTED})
    subsets: dict[str, int] | None = None


def figures_of(each: InputSet, parents: Sequence[str]) -> Figures:
    """Count the rows of a set. Raises InputError for a shard that cannot be read."""
    found = Figures()
    places = {name: tuple(map(_COLUMNS.index, names)) for name, names in _COUNTED.items()}
    for error, verdict, *values in iter_values(each.shards, ["error", "verdict", *_COLUMNS]):
        found.rows += 1
        found.failed += error is not None
        found.verdicts[verdict or UNVERIFIED] += 1
        for name, columns in places.items():
            found.made[name][tuple(values[place] for place in columns)] += 1
    if each.is_refined:
        found.subsets = _subsets(each, parents)
    return found


def _subsets(each: InputSet, parents: Sequence[str]) -> dict[str, int] | None:
    try:
        return {
            name: sum(table.num_rows for table in selected_tables(each, name, None, parents, ["trajectory_id"]))
            for name in SUBSETS
        }
    except InputError:  # the parents are not at hand
        return None


def prompt_text(name: str, sha256: str, own: str | None) -> str | None:
    """Return the text of a template by its digest: a built-in one or the file `own`; None where it is not at hand."""
    for path in filter(None, (str(prompts_dir() / f"{named(name)}.jinja"), own)):
        try:
            if digest_of(path) == sha256:
                with open(path, encoding="utf-8") as file:
                    return file.read()
        except (PromptError, OSError):
            continue
    return None
