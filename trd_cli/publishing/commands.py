"""The command line that makes the content of a directory again, from its run.json, without places of this machine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import UserError
from trd_cli.publishing.places import without_places

_CONFIGS: dict[str, type[Config]] = {"sample": SampleConfig, "refine": RefineConfig, "distill": DistillConfig}


def command_line(record: Mapping[str, Any]) -> str | None:
    """Return the command that made a directory, or None where its options are not those of this version."""
    kind = _CONFIGS.get(record.get("command", ""))
    values = without_places(record.get("config", {}))
    if kind is None or not values:
        return None
    try:
        config = kind(**{key: value for key, value in values.items() if key in kind.model_fields and value is not None})
    except (UserError, ValueError):
        return None
    return shlex.join(["trd", record["command"], *config.flags()])
