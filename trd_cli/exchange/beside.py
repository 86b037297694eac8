"""Read the small JSON files that other programs write beside their rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def json_beside(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
