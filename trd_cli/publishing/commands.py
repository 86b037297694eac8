"""The command line that makes the content of a directory again, from its run.json, without places of this machine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.publishing.places import without_places
from trd_cli.trajectories.run_json import IMPORTED

_CONFIGS: dict[str, type[Config]] = {
    "sample": SampleConfig,
    "refine": RefineConfig,
    "distill": DistillConfig,
    IMPORTED: ImportRolloutsConfig,
}


def command_line(record: Mapping[str, Any]) -> str | None:
    """Return the command that made a directory, or None where it has no record of its options."""
    kind = _CONFIGS.get(record.get("command", ""))
    values = without_places(record.get("config", {}))
    if kind is None or not values:
        return None
    # A record holds also what the options imply, which a check would take for given.
    config = kind.model_construct(**{key: _as_given(values[key]) for key in kind.model_fields if key in values})
    return shlex.join(["trd", *record["command"].split(), *config.flags()])


def _as_given(value: Any) -> Any:
    """Return a value of a record as a configuration holds it, several in a tuple."""
    return tuple(value) if isinstance(value, list) else value
