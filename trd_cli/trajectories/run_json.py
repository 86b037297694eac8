"""run.json: what made the content of a directory, read and written with a checksum over all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trd_cli.atomic import write_text
from trd_cli.errors import DamagedFile, InputError, first_line
from trd_cli.records import CHECKSUM, is_intact, with_checksum

NAME = "run.json"
FORMAT = "trd-run-1"


def write_run_json(directory: Path, run: Mapping[str, Any]) -> None:
    """Replace the `run.json` of a directory."""
    write_text(directory / NAME, json.dumps(with_checksum(run), indent=2, ensure_ascii=False) + "\n")


def read_run_json(directory: Path) -> dict[str, Any] | None:
    """Return the `run.json` of a directory, or None where there is none.

    Raises InputError when it is not one of ours, DamagedFile when it is not what was written.
    """
    try:
        run = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _damaged(directory, f"is no JSON ({first_line(error)})") from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise InputError(f"{directory}/{NAME} is not of trd", f"one of format {FORMAT}", "give another directory")
    if not is_intact(run):
        raise _damaged(directory, "does not match its checksum")
    return run


def _damaged(directory: Path, how: str) -> DamagedFile:
    return DamagedFile(
        f"{directory}/{NAME} {how}",
        "what trd wrote",
        f"run the command that made {directory} again with the same options; if it was edited on purpose, take its key {CHECKSUM!r} out",
    )


def maker_of(directory: Path) -> str | None:
    """Return the command that makes the content of a directory, None where no `run.json` tells."""
    try:
        run = read_run_json(directory)
    except (InputError, OSError):
        return None
    return run["command"] if run else None
