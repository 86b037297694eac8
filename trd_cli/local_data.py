"""Files of benchmarks on this machine: the directory TRD_DATA."""

from __future__ import annotations

import os
from pathlib import Path


def local_file(name: str) -> Path | None:
    """Return `$TRD_DATA/benchmarks/<name>` where the variable is set and the file is there, else None."""
    directory = os.environ.get("TRD_DATA")
    path = Path(directory, "benchmarks", name) if directory else None
    return path if path is not None and path.is_file() else None
