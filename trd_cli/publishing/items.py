"""The files of a push: where each goes in the repository, and its bytes without places of this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trd_cli.errors import InputError
from trd_cli.publishing.places import is_place, named
from trd_cli.records import with_checksum
from trd_cli.trajectories.shards import check_whole, read_table, shard_info, write_table

# The columns of a row that may name a directory or a file.
_NAMING = ("model", "prompt_template", "source")


# The i-node, the size and the time of change of a file.
Version = tuple[int, int, int]


def version_of(path: Path) -> Version:
    """Return what changes when a file is replaced."""
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


@dataclass(frozen=True)
class Item:
    """A file to push: `source` is a file of this machine or the bytes themselves, `path` its place in the repository.

    `version` is that of a shard, whose rows may name places, when the card's figures were counted. `is_last` tells that
    the file must not arrive before all others: it tells that they are there.
    """

    path: str
    source: Path | bytes
    version: Version | None = None
    is_last: bool = False

    @property
    def is_shard(self) -> bool:
        return self.version is not None

    def check_same(self) -> None:
        """Raise InputError for a shard that is another one than that of the card's figures."""
        if self.is_shard and not (self.source.is_file() and version_of(self.source) == self.version):
            raise InputError(
                f"{self.source} has changed since the push began",
                "rows at rest, as the card tells of them",
                "wait for the command that changes them, and run this one again",
            )

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @property
    def rows(self) -> int:
        """Return the rows of a shard, 0 for another file."""
        return shard_info(self.source).rows if self.is_shard else 0

    def content(self, scratch: Path) -> Path | bytes:
        """Return the file or the bytes to send. Rows that name places are written anew, into `scratch`.

        Raises DamagedFile for a shard that is not as it was written.
        """
        if not self.is_shard:
            return self.source
        check_whole(self.source)
        places = {name: changed for name in _NAMING if (changed := _named_column(self.source, name)) is not None}
        if not places:
            return self.source
        table = read_table(self.source)
        for name, column in places.items():
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
        copy = scratch / self.path.replace("/", "_")
        write_table(copy, table, shard_info(self.source).set_digest)
        return copy


def _named_column(path: Path, name: str) -> pa.ChunkedArray | None:
    """Return a column of a shard with names in place of paths, or None if it has none."""
    column = read_table(path, [name])[name]
    found = {text: named(text) for text in pc.unique(column).to_pylist() if text is not None and is_place(text)}
    if not found:
        return None
    values = [found.get(text, text) for text in column.to_pylist()]
    return pa.chunked_array([pa.array(values, column.type)])


def as_json(record: Mapping[str, Any]) -> bytes:
    """Return a record with its checksum, as the bytes of a file."""
    return (json.dumps(with_checksum(record), indent=2, ensure_ascii=False) + "\n").encode()


def digests(content: Path | bytes) -> tuple[str, str]:
    """Return the SHA-256 of a file, by which the Hub knows large files, and git's SHA-1 of it as a blob."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    large, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
    for block in _blocks(content):
        large.update(block)
        blob.update(block)
    return large.hexdigest(), blob.hexdigest()


def _blocks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with open(content, "rb") as file:
        while block := file.read(1 << 20):
            yield block
