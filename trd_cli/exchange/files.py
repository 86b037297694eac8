"""Write records to a file or to the files of a directory, as JSONL or Parquet, each whole or not at all.

A directory has a hidden record of the options and sets that it was made from: the same command again does nothing, and
another one is refused. If a shard of the sets has changed since, as by new verdicts, the files are made anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from trd_cli.atomic import make_directory, replacing, write_text
from trd_cli.config.exchanging import FileType
from trd_cli.errors import InputError, ResumeRefused, flag
from trd_cli.records import well_formed
from trd_cli.trajectories.stage_dir import differing_keys

# Hidden: a reader that takes all files of a directory leaves it out.
_RECORD = ".export.json"
_ROWS_A_GROUP = 1000

Record = Mapping[str, Any]


def write_file(path: Path, kind: FileType, schema: pa.Schema, records: Iterable[Record]) -> None:
    """Replace a file; where reading the records raises, the former one stays."""
    write = _write_jsonl if kind == "jsonl" else _write_parquet
    make_directory(path.parent)
    with replacing(path) as file:
        write(file, schema, iter(records))


def _write_jsonl(file: IO[bytes], schema: pa.Schema, records: Iterator[Record]) -> None:
    for record in records:
        file.write(well_formed(json.dumps(record, ensure_ascii=False) + "\n").encode())


def _write_parquet(file: IO[bytes], schema: pa.Schema, records: Iterator[Record]) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while some := [*islice(records, _ROWS_A_GROUP)]:
            writer.write_table(pa.Table.from_pylist(some, schema))


class Directory:
    """An output directory, and the record of what it was made from."""

    def __init__(self, path: Path, made_of: Mapping[str, Any], shards: str) -> None:
        """Look what is there. Raises InputError for other files, ResumeRefused for an export of another `made_of`.

        `shards` is a digest by which a change of the shards that it is made from is noticed.
        """
        self.path = path
        self._made_of, self._shards = json.loads(json.dumps(made_of)), shards
        self._old = self._read()
        if self._old is None and path.is_dir() and any(not each.name.startswith(".") for each in path.iterdir()):
            raise InputError(f"{path} holds other files", "a new or empty directory", f"give another {flag('out')}")
        if self._old is not None and self._old["made_of"] != self._made_of:
            differs = ", ".join(differing_keys(self._old["made_of"], self._made_of))
            raise ResumeRefused(
                f"{path} holds another export: {differs}", "the same options", f"give another {flag('out')}"
            )

    def done(self) -> list[Path]:
        """Return the files where all of them are there and nothing has changed; else []."""
        old = self._old or {}
        files = [self.path / name for name in old.get("files", ())]
        is_same = old.get("shards") == self._shards and all(path.is_file() for path in files)
        return files if is_same else []

    def write(
        self, kind: FileType, schema: pa.Schema, records: Iterable[Record], split: str, rows: int
    ) -> Iterator[Path]:
        """Write files of so many rows, yield each one, and take away those of an earlier time that are left."""
        earlier = (self._old or {}).get("files", [])
        names: list[str] = []
        records = iter(records)
        for first in records:
            make_directory(self.path)
            names.append(f"{split}-{len(names):05d}.{kind}")
            self._note(dict.fromkeys([*earlier, *names]), None)
            write_file(self.path / names[-1], kind, schema, chain([first], islice(records, rows - 1)))
            yield self.path / names[-1]
        for name in {*earlier} - {*names}:
            (self.path / name).unlink(missing_ok=True)
        self._note(names, self._shards)

    def _note(self, files: Iterable[str], shards: str | None) -> None:
        record = {"made_of": self._made_of, "shards": shards, "files": [*files]}
        write_text(self.path / _RECORD, json.dumps(record, ensure_ascii=False, indent=1) + "\n")

    def _read(self) -> dict[str, Any] | None:
        path = self.path / _RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            record = None
        if not isinstance(record, dict) or {"made_of", "shards", "files"} - {*record}:
            raise InputError(f"{path} is not what trd wrote", "the record of an export", f"give another {flag('out')}")
        return record
