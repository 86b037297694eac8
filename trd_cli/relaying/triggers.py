"""The triggers that a search has found, on disk: which texts were searched, and where the teacher takes over in them.

`triggers-NNNNN.json` holds some texts, each as [name, place, onset token, its log-probability], or as [name] alone if
it has no trigger; `triggers-2of5-NNNNN.json` those of part 2 of 5. A name tells the row and its tokens. A damaged file
counts as missing: its texts are searched again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trd_cli.atomic import make_directory, write_text
from trd_cli.records import Part, is_intact, with_checksum
from trd_cli.relaying.response import Trigger
from trd_cli.trajectories.parts import named

_NAME = "triggers"


class Triggers:
    """Hold the triggers of one search, by the names of the texts; None for a text without one."""

    def __init__(self, directory: Path, part: Part | None) -> None:
        """Read what an earlier command has found."""
        self._directory, self._part = directory, part
        self._found: dict[str, Trigger | None] = {}
        self._written = 0
        for path in sorted(directory.glob(f"{named(_NAME, part)}-?????.json")):
            self._found |= _read(path)
            self._written = int(path.stem[-5:]) + 1

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Trigger | None:
        return self._found[name]

    def add(self, found: Mapping[str, Trigger | None]) -> None:
        """Write the triggers of some texts as one file."""
        make_directory(self._directory)
        rows = [[name, *((t.place, t.onset, t.logprob) if t else ())] for name, t in found.items()]
        path = self._directory / f"{named(_NAME, self._part)}-{self._written:05d}.json"
        write_text(path, json.dumps(with_checksum({"rows": rows})) + "\n")
        self._written += 1
        self._found |= found


def _read(path: Path) -> dict[str, Trigger | None]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    if not isinstance(record, dict) or not is_intact(record):
        return {}
    return {name: Trigger(*found) if found else None for name, *found in record["rows"]}
