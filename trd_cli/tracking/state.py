"""What has been sent of a run to a tracker's project, as the run directory keeps it.

trackers/TRACKER-PROJECT.json  {"format", "group", "runs": {id: {"name", "next", "sent", "unsure", "files"}}}

`sent` are the digests of the stages whose figures a tracker's run has, `next` is the number of its next point. `unsure`
has the stages whose figures were being sent, in order, each with the number of its first point: it is written before
they are sent, so that none is lost or sent twice however the process ends. `files` are those of `Tracker.log`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trd_cli.atomic import write_text
from trd_cli.errors import InputError
from trd_cli.records import content_hash

DIRECTORY = "trackers"
_FORMAT = 1


@dataclass
class Sent:
    """Hold what one of a tracker's runs has."""

    name: str
    next: int = 0
    sent: list[str] = field(default_factory=list)
    unsure: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


class State:
    """The record of one tracker's project. Its group is chosen once: no other run directory has it."""

    def __init__(self, directory: Path, tracker: str, project: str) -> None:
        """Raise InputError for a record that cannot be read."""
        self._path = directory / DIRECTORY / f"{tracker}-{_as_file(project)}.json"
        found = self._read()
        self.group: str = found.get("group") or f"{directory.resolve().name}-{secrets.token_hex(3)}"
        self._runs = {id: Sent(**record) for id, record in found.get("runs", {}).items()}

    def of(self, name: str, digest: str) -> tuple[str, Sent]:
        """Return the id and the record of the tracker's run of an arm and seed.

        `digest` tells its training from others: after a change of the recipe it is another run.
        """
        id = content_hash({"group": self.group, "name": name, "digest": digest}, 16)
        if id not in self._runs:
            others = sum(re.sub(r" \(\d+\)$", "", each.name) == f"{self.group}/{name}" for each in self._runs.values())
            self._runs[id] = Sent(f"{self.group}/{name}" + (f" ({others + 1})" if others else ""))
        return id, self._runs[id]

    def save(self) -> None:
        record = {"format": _FORMAT, "group": self.group, "runs": {id: asdict(each) for id, each in self._runs.items()}}
        write_text(self._path, json.dumps(record, indent=1) + "\n")

    def _read(self) -> Mapping[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["format"] == _FORMAT:
                return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise InputError(
            f"{self._path} cannot be read", "a record of this trd", "remove it: all is sent to a new group"
        )


def _as_file(project: str) -> str:
    """Return a project's name as a part of a file's name; two projects have two."""
    plain = re.sub(r"[^\w.-]", "_", project)
    return plain if plain == project else f"{plain}-{content_hash(project, 6)}"
