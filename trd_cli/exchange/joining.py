"""Find the problem of a row in a problem set or a benchmark: by its text, or by its id.

The text is the same but for white space, or it stands in the row's text as whole lines, between instructions. An id
counts where a row has no text, or where `--map problem_id=COLUMN` names it: a number may be a place in another list.
The problems are in a temporary file; in memory are the digests of their texts and ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.datasets.spool import Spool
from trd_cli.records import Problem
from trd_cli.trajectories.problem_sets import ProblemSet

# The most lines of a prompt among which a problem is looked for.
_MOST_LINES = 64


class Joiner:
    """Hold the problems of a set under their texts and ids; `digest` tells one set from another."""

    def __init__(self, problems: Iterable[Problem], digest: str, scratch: Path | None = None) -> None:
        self.digest = digest
        self._spool = Spool(scratch)
        self._by_text: dict[bytes, int] = {}
        # None stands under an id without its set's name that two sets have.
        self._by_id: dict[str, int | None] = {}
        for number, problem in enumerate(problems):
            self._spool.append(problem)
            self._by_text.setdefault(_digest(problem.problem), number)
            rest = problem.problem_id.removeprefix(f"{problem.source}-")
            if rest != problem.problem_id:
                self._by_id[rest] = None if rest in self._by_id else number
            self._by_id[problem.problem_id] = number

    @classmethod
    def of(cls, name: str) -> Joiner:
        """Read a problem set (Parquet) or load a benchmark by its name.

        Raises InputError where there is neither.
        """
        if Path(name).suffix.lower() == ".parquet":
            found = ProblemSet.open(Path(name))
            return cls(found, found.digest)
        benchmark = load_benchmark(name)
        return cls(benchmark.problems, benchmark.sha256)

    def find(self, text: str | None, name: str | None, by_id: bool = False) -> Problem | None:
        """Return the problem with this text or this id; with `by_id` the id comes first. None without one."""
        number = self._by_id.get(name) if name is not None and (by_id or text is None) else None
        if number is None and text is not None:
            number = next((self._by_text[key] for key in _digests(text) if key in self._by_text), None)
        return None if number is None else self._spool[number]


def _digests(text: str) -> Iterator[bytes]:
    """Yield the digests of a text and of each run of its lines, the longest first."""
    yield _digest(text)
    lines = [line for line in text.splitlines() if line.strip()][:_MOST_LINES]
    for length in range(len(lines) - 1, 0, -1):
        for start in range(len(lines) - length + 1):
            yield _digest(" ".join(lines[start : start + length]))


def _digest(text: str) -> bytes:
    words = " ".join(text.split())
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()
