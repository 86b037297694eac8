"""Problems in a temporary file while their set is made; in memory are their places in it, eight bytes each."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from trd_cli.records import Problem

# A smaller set never meets the disk.
_IN_MEMORY = 16 << 20


class Spool:
    """Hold problems by their numbers, which count from 0, in the order in which they came."""

    def __init__(self, directory: Path | None = None) -> None:
        """Make the file in a directory, by default the one for temporary files."""
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=directory)  # noqa: SIM115 (closed with the spool)
        self._places = array("Q")

    def __len__(self) -> int:
        return len(self._places)

    def append(self, problem: Problem) -> None:
        self._places.append(self._written(problem))

    def __setitem__(self, number: int, problem: Problem) -> None:
        # The former one stays in the file, unread.
        self._places[number] = self._written(problem)

    def _written(self, problem: Problem) -> int:
        place = self._file.seek(0, os.SEEK_END)
        pickle.dump(problem, self._file, pickle.HIGHEST_PROTOCOL)
        return place

    def __getitem__(self, number: int) -> Problem:
        self._file.seek(self._places[number])
        return pickle.load(self._file)


class Spooled(Sequence[Problem]):
    """Represent some problems of a spool in an order of their own; each is read anew when it is asked for."""

    def __init__(self, spool: Spool, numbers: Sequence[int]) -> None:
        self._spool, self._numbers = spool, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Problem: ...

    @overload
    def __getitem__(self, place: slice) -> Spooled: ...

    def __getitem__(self, place: int | slice) -> Problem | Spooled:
        if isinstance(place, slice):
            return Spooled(self._spool, self._numbers[place])
        return self._spool[self._numbers[place]]
