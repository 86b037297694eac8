"""Read back what trackers hold: trackio's database by its own API, and the files that wandb writes offline."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_READ = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
found = []
for run in trackio.Api().runs(sys.argv[1]):
    rows = SQLiteStorage.get_logs(sys.argv[1], run.name, run_id=run.id)
    found.append({"name": run.name, "id": run.id, "config": run.config, "rows": rows})
print(json.dumps(found, default=str))
"""
# LevelDB's log: blocks with records of a checksum (4 bytes), a length (2) and a kind (1).
_BLOCK, _HEAD, _PREFIX = 2**15, 7, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4


@dataclass
class Logged:
    """A tracker's run. Of each row `step` is the optimiser's; a table is a list of rows, each a dictionary."""

    name: str
    group: str
    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def of(self, key: str) -> dict[int, Any]:
        """The values of a figure by step; no step has two."""
        found = [(row["step"], row[key]) for row in self.rows if key in row]
        assert len(dict(found)) == len(found), f"{key} is there more than once: {found}"
        return dict(found)


def of_trackio(project: str, variables: dict[str, str]) -> dict[str, Logged]:
    """Return all runs of a project by the last parts of their names, read in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, project], env=variables, capture_output=True, text=True, check=True
    )
    found = {}
    for run in json.loads(done.stdout.splitlines()[-1]):
        rows = [{key: _plain(value) for key, value in row.items() if key != "timestamp"} for row in run["rows"]]
        found[_short(run["name"])] = Logged(run["name"], run["config"]["_Group"], run["config"], rows)
    return found


def _plain(value: Any) -> Any:
    return value["_value"] if isinstance(value, dict) and value.get("_type") == "trackio.table" else value


def _short(name: str) -> str:
    """The name without the group, which differs each time."""
    return name.partition("/")[2]


def of_wandb(directory: Path) -> dict[str, Logged]:
    """Return all runs that were logged offline below a directory, by the last parts of their names.

    The directories of one run are put together, in the order in which they were made.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Logged] = {}
    for path in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
        run: Logged | None = None
        for content in _records(path.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            if record.HasField("run") and run is None:
                name = record.run.display_name
                run = found.setdefault(_short(name), Logged(name, record.run.run_group, {}))
            for item in record.config.update if record.HasField("config") else ():
                run.config[item.key or item.nested_key[0]] = json.loads(item.value_json)
            if record.HasField("history"):
                row = _row(record.history.item)
                run.numbers.append(record.history.step.num)
                run.rows.append({key: _table(value, path.parent) for key, value in row.items() if key[0] != "_"})
    return found


def _row(items: Iterable[Any]) -> dict[str, Any]:
    """The figures of a row; a dictionary has an item for each of its keys."""
    row: dict[str, Any] = {}
    for item in items:
        name, *inner = [item.key] if item.key else item.nested_key
        value = json.loads(item.value_json)
        row[name] = {**row.get(name, {}), inner[0]: value} if inner else value
    return row


def _table(value: Any, directory: Path) -> Any:
    if not isinstance(value, dict) or value.get("_type") != "table-file":
        return value
    table = json.loads((directory / "files" / value["path"]).read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, after wandb's own header."""
    place, parts = _HEAD, b""
    while place + _PREFIX <= len(content):
        if _BLOCK - place % _BLOCK < _PREFIX:
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        body = content[place + _PREFIX : place + _PREFIX + length]
        place += _PREFIX + length
        parts = body if kind in (_WHOLE, _FIRST) else parts + body
        if kind in (_WHOLE, _LAST):
            yield parts
