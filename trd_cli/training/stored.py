"""Examples in a file: the token ids of all rows, written once and mapped by every process, and an index of them.

The file holds all ids (int32), then the columns of the index, then a JSON object that tells where each column lies,
then the length of that object (8 bytes). A row's ids are the student's prompt, the teacher's, the response and, where
not all of it counts, the positions that do. Where some count with another weight than 1, the positions are there, and
then the weights (float32). The parts of a row stand one after another, each as a row of its own. A row takes 4 bytes a
token and less than 100 bytes in the index. Columns are mapped too, so that the processes of a machine share all of it
in the page cache.
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
# The columns of the index; "part" is the place among the parts of a row, "class" that of --mix.
_COLUMNS = ("name", "start", "lengths", "group", "part", "class", "verdict")
_NO_ROWS = (
    *(np.array([], np.bytes_), np.array([], "<i8"), np.zeros((0, _PARTS), _ID)),
    *(np.array([], "<i8"), np.array([], _ID), np.array([], np.int16), np.array([], np.int8)),
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
        self._ids, self._columns, self.about = _mapped(file)
        self._lengths = self._columns["lengths"] = self._columns["lengths"].reshape(-1, _PARTS)
        self._names, self._starts, self._groups = (self._columns[name] for name in ("name", "start", "group"))
        self._classes, self._verdicts = self._columns["class"], self._columns["verdict"]
        self._firsts = np.flatnonzero(self._columns["part"] == 0)
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
        if _sum_of(*self._columns.values()) != self.about["index_sum"]:
            return False
        try:
            return _digest(self._file, self._columns, self.about["classes"]) == self.digest
        except OSError:
            return False

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, i: int) -> Example:
        first = int(self._firsts[i])
        end = int(self._firsts[i + 1]) if i + 1 < len(self) else len(self._names)
        return self._part(first) if end == first + 1 else Example.of_turns([*map(self._part, range(first, end))])

    def _part(self, i: int) -> Example:
        """Return what is entry `i` of the index: a row, or one of the parts of a row."""
        student, teacher, response, code = self._lengths[i].tolist()
        scored, weighted = _following(code)
        teachers = int(self._starts[i]) + student
        responses = teachers + teacher
        end = responses + response
        weights = end + scored
        verdict, of_mix = self._verdicts[i], self._classes[i]
        return Example(
            self._names[i].decode(),
            self._ids[teachers - student : teachers],
            self._ids[teachers:responses],
            self._ids[responses:end],
            self._ids[end:weights],
            None if verdict < 0 else self.about["verdicts"][verdict],
            self._ids[weights : weights + weighted].view(_WEIGHT),
            int(self._groups[i]),
            mixed_as=None if of_mix < 0 else self.about["classes"][of_mix],
        )

    @property
    def read(self) -> np.ndarray:
        """Return the numbers of tokens that student and teacher read of each row (rows, 2), at its first turn."""
        lengths = self._lengths[self._firsts]
        return lengths[:, :2] + lengths[:, 2:3] - 1

    def by_class(self) -> dict[str, np.ndarray]:
        """Return the numbers of the rows of each class of --mix."""
        of_mix = self._classes[self._firsts]
        return {name: np.flatnonzero(of_mix == code) for code, name in enumerate(self.about["classes"])}


class ExampleWriter:
    """Write examples into a file, one after another, in any order; memory holds the index alone."""

    def __init__(self, file: IO[bytes]) -> None:
        """Write into an empty file that is open for reading too."""
        self._file, self._at, self.rows = file, 0, 0
        self._pieces: list[tuple[np.ndarray, ...]] = []
        self._recent: list[tuple[Any, ...]] = []
        self._verdicts: dict[str, int] = {}
        self._classes: dict[str, int] = {}

    @property
    def classes(self) -> frozenset[str]:
        """Return the classes of --mix that have a row."""
        return frozenset(self._classes)

    def add(self, example: Example) -> None:
        self.rows += 1
        for part in example.parts:
            self._add(part)

    def _add(self, example: Example) -> None:
        parts = (example.student_prompt, example.teacher_prompt, example.response_ids)
        following, last = _to_follow(example)
        codes = (_code(example.mixed_as, self._classes), _code(example.parent_verdict, self._verdicts))
        lengths = (*map(len, parts), last)
        self._recent.append((example.trajectory_id.encode(), self._at, lengths, example.group, example.part, *codes))
        ids = np.concatenate([part.astype(_ID) for part in parts] + following)
        self._write(ids)
        self._at += len(ids)
        if len(self._recent) >= _ROWS_AT_ONCE:
            self._compact()

    def _compact(self) -> None:
        """Turn the entries of the last rows into arrays."""
        if self._recent:
            names, starts, lengths, groups, parts, classes, verdicts = zip(*self._recent, strict=True)
            columns = (np.array(names), np.array(starts, "<i8"), np.array(lengths, _ID), np.array(groups, "<i8"))
            codes = (np.array(classes, np.int16), np.array(verdicts, np.int8))
            self._pieces.append((*columns, np.array(parts, _ID), *codes))
            self._recent = []

    def finish(self, about: Mapping[str, Any]) -> Examples:
        """Write the index and return the examples; `about` is kept with them."""
        self._compact()
        names, *others = (np.concatenate(pieces) for pieces in zip(_NO_ROWS, *self._pieces, strict=True))
        self._pieces = []
        # Training must not depend on the order in which rows finished and entered the shards.
        columns = dict(zip(_COLUMNS, (names, *others), strict=True))
        order = _by_name(names, columns["part"])
        columns = {name: column[order] for name, column in columns.items()}
        self._flush()
        digest = _digest(self._file, columns, [*self._classes])
        places, at = {"ids": [_ID.str, 0, self._at]}, self._at * _ID.itemsize
        for name, column in columns.items():
            places[name] = [column.dtype.str, at, column.size]
            at += column.nbytes
            self._write(column)
        kinds = {"classes": [*self._classes], "verdicts": [*self._verdicts], "index_sum": _sum_of(*columns.values())}
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


def _code(name: str | None, known: dict[str, int]) -> int:
    """Return the number of a name, a new one where it has none yet, and -1 for no name."""
    return -1 if name is None else known.setdefault(name, len(known))


def _by_name(names: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Return the places of all entries in the order of the rows' names; the parts of a row stay together."""
    firsts = np.flatnonzero(parts == 0)
    counts = np.diff(np.append(firsts, len(parts)))
    order = np.argsort(names[firsts], kind="stable")
    within = np.arange(len(parts)) - np.repeat(np.cumsum(counts[order]) - counts[order], counts[order])
    return np.repeat(firsts[order], counts[order]) + within


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


def _digest(file: IO[bytes], columns: Mapping[str, np.ndarray], classes: Sequence[str]) -> str:
    """Return a digest of all that is trained on. The attempts' verdicts only sort the log.

    `columns` are those of the index, `classes` the names of their codes. The file is read and not mapped: its pages
    would count as memory of this process.
    """
    digest = hashlib.sha256()
    read = (columns[column] for column in ("name", "start", "lengths", "group", "part", "class"))
    for name, start, (*pieces, code), group, part, of_mix in _rows(*read):
        digest.update(name)
        if group:
            digest.update(group.to_bytes(8))
        if part:
            digest.update(f"#{part}".encode())
        if of_mix >= 0:
            digest.update(f"={classes[of_mix]}".encode())
        following = [count for count in _following(code) if count]
        stored = sum(pieces) + sum(following)
        ids = memoryview(os.pread(file.fileno(), stored * _ID.itemsize, start * _ID.itemsize)).cast("i")
        whole = [memoryview(array("i", range(pieces[-1])))] if code == _ALL_SCORED else []
        for piece in (*_cut(ids, [*pieces, *following]), *whole):
            digest.update(len(piece).to_bytes(8))
            digest.update(piece)
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
