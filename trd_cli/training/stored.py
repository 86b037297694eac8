"""Examples in a file: the token ids of all rows, written once and mapped by every process, and an index of them.

The file holds all ids (int32), then the columns of the index, then a JSON object that tells where each column lies,
then the length of that object (8 bytes). A row's ids are the student's prompt, the teacher's, the response and, where
not all of it counts, the positions that do. Where some count with another weight than 1, the positions are there, and
then the weights (float32). A row takes 4 bytes a token and less than 100 bytes in the index. Columns are mapped too, so
that the processes of a machine share all of it in the page cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from trd_cli.atomic import refused, sync_directory
from trd_cli.errors import InputError
from trd_cli.records import CHECKSUM, is_intact, with_checksum
from trd_cli.training.batches import Example

# The file's name in the output directory, while the training lasts.
NAME = "examples.bin"
_LENGTH = 8
_ID = np.dtype("<i4")
_WEIGHT = np.dtype("<f4")
# Student's prompt, teacher's prompt, response, and the code of what follows it, see `_following`.
_PARTS = 4
_ALL_SCORED = -1
# The columns of the index: names, starts, lengths, groups, verdicts.
_NO_ROWS = (
    *(np.array([], np.bytes_), np.array([], "<i8"), np.zeros((0, _PARTS), _ID)),
    *(np.array([], "<i8"), np.array([], np.int8)),
)
_ROWS_AT_ONCE = 4096


class Examples(Sequence[Example]):
    """The examples in a file, in the order of their ids. An example is made when it is asked for.

    `about` holds what the writer was told, `digest` is that of all that is trained on.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Map an open file. Raises ValueError for one that no `ExampleWriter` has finished."""
        self.path = Path(str(file.name))
        self._file = file
        self._ids, columns, self.about = _mapped(file)
        self._names, self._starts, self._verdicts = (columns[name] for name in ("name", "start", "verdict"))
        self._lengths, self._groups = columns["lengths"].reshape(-1, _PARTS), columns["group"]
        self.digest: str = self.about["digest"]

    @classmethod
    def at(cls, path: Path) -> Examples | None:
        """Return the examples in a file, or None if there is no such file or it is not whole."""
        try:
            return cls(open(path, "rb"))  # noqa: SIM115: it stays open for `is_whole`
        except (OSError, ValueError, KeyError):  # KeyError: of another version
            return None

    @classmethod
    def found(cls, paths: Iterable[Path], key: str) -> Examples | None:
        """Return the first examples in these files that were made under `key` and are whole."""
        for path in paths:
            examples = cls.at(path)
            if examples is not None and examples.about.get("key") == key and examples.is_whole():
                return examples
        return None

    def move_to(self, path: Path) -> None:
        """Rename the file, in its own file system."""
        try:
            os.replace(self.path, path)
            sync_directory(path.parent)
        except OSError as error:
            raise refused(path, error) from None
        self.path = path

    def is_whole(self) -> bool:
        """Return True if all bytes that are trained on are those that were written. The whole file is read."""
        columns = (self._names, self._starts, self._lengths, self._groups)
        if _sum_of(*columns, self._verdicts) != self.about["index_sum"]:
            return False
        try:
            return _digest(self._file, *columns) == self.digest
        except OSError:
            return False

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> Example:
        student, teacher, response, code = self._lengths[i].tolist()
        scored, weighted = _following(code)
        teachers = int(self._starts[i]) + student
        responses = teachers + teacher
        end = responses + response
        weights = end + scored
        verdict = self._verdicts[i]
        return Example(
            self._names[i].decode(),
            self._ids[teachers - student : teachers],
            self._ids[teachers:responses],
            self._ids[responses:end],
            self._ids[end:weights],
            None if verdict < 0 else self.about["verdicts"][verdict],
            self._ids[weights : weights + weighted].view(_WEIGHT),
            int(self._groups[i]),
        )

    @property
    def read(self) -> np.ndarray:
        """Return the numbers of tokens that student and teacher read of each row (rows, 2)."""
        return self._lengths[:, :2] + self._lengths[:, 2:3] - 1


class ExampleWriter:
    """Write examples into a file, one after another, in any order; memory holds the index alone."""

    def __init__(self, file: IO[bytes]) -> None:
        """Write into an empty file that is open for reading too."""
        self._file, self._at, self.rows = file, 0, 0
        self._pieces: list[tuple[np.ndarray, ...]] = []
        self._recent: list[tuple[Any, ...]] = []
        self._verdicts: dict[str, int] = {}

    def add(self, example: Example) -> None:
        self.rows += 1
        parts = (example.student_prompt, example.teacher_prompt, example.response_ids)
        following, last = _to_follow(example)
        verdict = example.parent_verdict
        code = -1 if verdict is None else self._verdicts.setdefault(verdict, len(self._verdicts))
        self._recent.append((example.trajectory_id.encode(), self._at, (*map(len, parts), last), example.group, code))
        ids = np.concatenate([part.astype(_ID) for part in parts] + following)
        self._write(ids)
        self._at += len(ids)
        if len(self._recent) == _ROWS_AT_ONCE:
            self._compact()

    def _compact(self) -> None:
        """Turn the entries of the last rows into arrays."""
        if self._recent:
            names, starts, lengths, groups, verdicts = zip(*self._recent, strict=True)
            columns = (np.array(names), np.array(starts, "<i8"), np.array(lengths, _ID))
            self._pieces.append((*columns, np.array(groups, "<i8"), np.array(verdicts, np.int8)))
            self._recent = []

    def finish(self, about: Mapping[str, Any]) -> Examples:
        """Write the index and return the examples; `about` is kept with them."""
        self._compact()
        names, *others = (np.concatenate(pieces) for pieces in zip(_NO_ROWS, *self._pieces, strict=True))
        self._pieces = []
        # Training must not depend on the order in which rows finished and entered the shards.
        order = np.argsort(names, kind="stable")
        names, (starts, lengths, groups, verdicts) = names[order], (column[order] for column in others)
        self._flush()
        digest = _digest(self._file, names, starts, lengths, groups)
        places, at = {"ids": [_ID.str, 0, self._at]}, self._at * _ID.itemsize
        columns = {"name": names, "start": starts, "lengths": lengths, "group": groups, "verdict": verdicts}
        for name, column in columns.items():
            places[name] = [column.dtype.str, at, column.size]
            at += column.nbytes
            self._write(column)
        kinds = {"verdicts": [*self._verdicts], "index_sum": _sum_of(*columns.values())}
        text = json.dumps(with_checksum({**about, "digest": digest, **kinds, "places": places})).encode()
        self._write(text + len(text).to_bytes(_LENGTH))
        self._flush()
        return Examples(self._file)

    def _write(self, content: np.ndarray | bytes) -> None:
        try:
            self._file.write(content if isinstance(content, bytes) else content.tobytes())
        except OSError as error:
            raise self._refused(error) from None

    def _flush(self) -> None:
        """Make the file durable, and visible to other machines."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> InputError:
        """Close the file and return the error that names it, or the directory of a file without a name."""
        # Closed later, it would try again to write what is left, and fail with an error that names nothing.
        with contextlib.suppress(OSError):
            self._file.close()
        name = self._file.name
        return refused(Path(name if isinstance(name, str) else tempfile.gettempdir()), error)


def _to_follow(example: Example) -> tuple[list[np.ndarray], int]:
    """Return what follows a row's ids in the file, and the code of it in the index, see `_following`."""
    scored = example.scored.astype(_ID)
    if (example.weights != 1).any():
        return [scored, example.weights.astype(_WEIGHT).view(_ID)], _ALL_SCORED - len(scored)
    is_whole = len(scored) == len(example.response_ids)
    return ([], _ALL_SCORED) if is_whole else ([scored], len(scored))


def _following(code: int) -> tuple[int, int]:
    """Return the numbers of positions and of weights that follow a row's ids.

    A code from 0 counts positions without weights, one below `_ALL_SCORED` positions with as many weights.
    """
    return (_ALL_SCORED - code,) * 2 if code < _ALL_SCORED else (max(0, code), 0)


def _sum_of(*columns: np.ndarray) -> int:
    return functools.reduce(lambda found, column: zlib.crc32(column.tobytes(), found), columns, 0)


def _mapped(file: IO[bytes]) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, Any]]:
    """Return the ids, the columns of the index and the JSON object of a file."""
    size = file.seek(0, os.SEEK_END)
    if size < _LENGTH:
        raise ValueError("no file of examples")
    file.seek(size - _LENGTH)
    length = int.from_bytes(file.read(_LENGTH))
    file.seek(max(0, size - _LENGTH - length))
    about = json.loads(file.read(min(length, size)))
    if not isinstance(about, dict) or CHECKSUM not in about or not is_intact(about):
        raise ValueError("no file of examples")
    content = np.memmap(file, np.uint8, "r")
    columns = {
        name: np.frombuffer(content, kind, count, offset) for name, (kind, offset, count) in about["places"].items()
    }
    return columns.pop("ids"), columns, about


def _digest(file: IO[bytes], names: np.ndarray, starts: np.ndarray, lengths: np.ndarray, groups: np.ndarray) -> str:
    """Return a digest of all that is trained on. The attempts' verdicts only sort the log.

    The file is read and not mapped: its pages would count as memory of this process.
    """
    digest = hashlib.sha256()
    for name, start, (*parts, code), group in _rows(names, starts, lengths, groups):
        digest.update(name)
        if group:
            digest.update(group.to_bytes(8))
        following = [count for count in _following(code) if count]
        stored = sum(parts) + sum(following)
        ids = memoryview(os.pread(file.fileno(), stored * _ID.itemsize, start * _ID.itemsize)).cast("i")
        whole = [memoryview(array("i", range(parts[-1])))] if code == _ALL_SCORED else []
        for part in (*_cut(ids, [*parts, *following]), *whole):
            digest.update(len(part).to_bytes(8))
            digest.update(part)
    return digest.hexdigest()[:16]


def _rows(*columns: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Yield the entries of columns row by row, as Python's own values."""
    for at in range(0, len(columns[0]), _ROWS_AT_ONCE):
        yield from zip(*(column[at : at + _ROWS_AT_ONCE].tolist() for column in columns), strict=True)


def _cut(ids: memoryview, lengths: Sequence[int]) -> Iterator[memoryview]:
    at = 0
    for length in lengths:
        yield ids[at : at + length]
        at += length
