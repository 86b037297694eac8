"""Find the problem of a row in a problem set or a benchmark: by its text, or by its id.

The text is the same but for white space, or it stands in the row's text as whole lines, between instructions. An id
counts where a row has no text, or where `--map problem_id=COLUMN` names it: a number may be a place in another list. A
row whose text fits several problems, as one with examples does, or another one than its id, is refused.
The problems are in a temporary file; in memory are the digests of their texts and ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from trd_cli.datasets.benchmarks import load_benchmark
from trd_cli.datasets.spool import Spool
from trd_cli.datasets.values import RowFault
from trd_cli.hub.fetching import local_path
from trd_cli.hub.names import is_hub_name
from trd_cli.records import Problem
from trd_cli.trajectories.problem_sets import ProblemSet

# The most lines of a prompt among which a problem is looked for.
_MOST_LINES = 64


class Joiner:
    """Hold the problems of a set under their texts and ids; `digest` tells one set from another."""

    def __init__(self, problems: Iterable[Problem], digest: str, scratch: Path | None = None) -> None:
        self.digest = digest
        self._spool = Spool(scratch)
        # None stands under a text that two problems have, with other answers.
        self._by_text: dict[bytes, int | None] = {}
        self._lengths: set[int] = set()
        # None stands under an id without its set's name that two sets have.
        self._by_id: dict[str, int | None] = {}
        for number, problem in enumerate(problems):
            self._spool.append(problem)
            self._add_text(problem, number)
            rest = problem.problem_id.removeprefix(f"{problem.source}-")
            if rest != problem.problem_id:
                self._by_id[rest] = None if rest in self._by_id else number
            self._by_id[problem.problem_id] = number

    @classmethod
    def of(cls, name: str) -> Joiner:
        """Read a problem set (Parquet) or load a benchmark by its name.

        Raises InputError where there is neither.
        """
        if is_hub_name(name) or Path(name).suffix.lower() == ".parquet":
            found = ProblemSet.open(local_path(name))
            return cls(found, found.digest)
        benchmark = load_benchmark(name)
        return cls(benchmark.problems, benchmark.sha256)

    def _add_text(self, problem: Problem, number: int) -> None:
        text = _words(problem.problem)
        key, first = _digest(text), number
        if key in self._by_text:
            first = self._by_text[key]
            if first is not None and _asks(self._spool[first]) != _asks(problem):
                first = None
        self._by_text[key] = first
        self._lengths.add(len(text))

    def find(self, text: str | None, name: str | None, by_id: bool = False) -> Problem | None:
        """Return the problem with this text or this id; with `by_id` the id comes first. None without one.

        Raises RowFault where the text fits several problems, or another one than the id.
        """
        keys = set() if text is None else self._keys(text)
        number = self._by_id.get(name) if name is not None and (by_id or text is None) else None
        if number is not None:
            problem = self._spool[number]
            if keys and _digest(_words(problem.problem)) not in keys:
                raise RowFault(f"the text of another problem in --problems than the one with its id {name!r}")
            return problem
        if not keys:
            return None
        number = self._by_text[keys.pop()]
        if keys or number is None:
            raise RowFault("its text fits several problems in --problems: name its id with --map problem_id=COLUMN")
        return self._spool[number]

    def _keys(self, text: str) -> set[bytes]:
        """Return the digests of the problems that are a text, or whole lines of it, but none inside a longer one."""
        if (whole := _digest(_words(text))) in self._by_text:
            return {whole}
        lines = [words for line in text.splitlines() if (words := _words(line))][:_MOST_LINES]
        found: dict[tuple[int, int], bytes] = {}
        for start, stop in self._runs([len(line) for line in lines]):
            key = _digest(" ".join(lines[start:stop]))
            if key in self._by_text and not any(a <= start and stop <= b for a, b in found):
                found[start, stop] = key
        return {*found.values()}

    def _runs(self, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield where runs of lines that are as long as some problem start and stop, those of most lines first."""
        ends = [0, *accumulate(length + 1 for length in lengths)]
        for count in range(len(lengths), 0, -1):
            for start in range(len(lengths) - count + 1):
                if ends[start + count] - ends[start] - 1 in self._lengths:
                    yield start, start + count


def _asks(problem: Problem) -> tuple[str | None, ...]:
    """Return what an answer is compared with."""
    return problem.task, problem.reference_answer, problem.tests


def _words(text: str) -> str:
    return " ".join(text.split())


def _digest(words: str) -> bytes:
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()
