"""Rates of stages, from their logs: `sessions.jsonl`, or `train.jsonl` of a training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def tokens_per_second(logs: Iterable[Path], tokens: str = "tokens", seconds: str = "at_work") -> float | None:
    """Return response tokens a second over all lines of some logs, by the keys of both; None where there are none."""
    lines = [line for path in logs for line in log_lines(path) if tokens in line and seconds in line]
    spent = sum(line[seconds] for line in lines)
    return sum(line[tokens] for line in lines) / spent if spent else None


def log_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that are whole, [] where there is no log."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]
