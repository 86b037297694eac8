"""Count what a person should know of an import: rows left out and why, samples that repeat, and what nothing tells."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache

from trd_cli.datasets.problem_rows import Counts
from trd_cli.errors import InputError, counted
from trd_cli.graders.answers import reference_answer
from trd_cli.graders.base import graded_by
from trd_cli.prompting.templates import Template, family_of, load_template
from trd_cli.records import Problem

# The most places that a reason shows, and the most reasons.
_PLACES, _REASONS = 10, 10


class Tally:
    """Hold the counts of an import; `problems` are those of its rows, `counts` the changes to their fields."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._places: defaultdict[str, list[str]] = defaultdict(list)
        self._left_out: Counter[str] = Counter()
        self._lacking: Counter[str] = Counter()
        # Rows in which nothing tells a column.
        self.untold: Counter[str] = Counter()
        self.problems = self.copies = self.repeats = self.opened_twice = 0

    def leave_out(self, place: str, reason: str) -> None:
        """Record a row that is left out; the first places of each reason are kept."""
        if reason not in self._left_out and len(self._left_out) >= _REASONS:
            reason = "other reasons"
        self._left_out[reason] += 1
        if len(self._places[reason]) < _PLACES:
            self._places[reason].append(place)

    def add_problem(self, problem: Problem) -> None:
        """Record a problem that has a row, and what it lacks for later commands."""
        self.problems += 1
        needs = graded_by(problem.task)
        value = getattr(problem, needs) if needs else "none"
        if value and needs == "reference_answer" and problem.task == "math":
            value = reference_answer(value)
        if not value:
            what = "tests" if needs == "tests" else "single reference answer"
            self._lacking[f"no {what}: trd verify cannot say right or wrong"] += 1
        if lacking := _of_opsd(family_of(problem.task)).lacks(problem):
            self._lacking[f"no {lacking}: trd refine --setting opsd leaves an error row"] += 1

    def refuse(self, files: Sequence[str]) -> InputError:
        """Return the error of files without any row."""
        reason = next(iter(self._left_out), "no rows")
        where = f" ({self._places[reason][0]}: {reason})" if self._left_out else ""
        given = ", ".join(files)
        return InputError(f"{given} gives no response{where}", "at least one", "check --format, --map and --problems")

    def unknown(self) -> dict[str, int]:
        """Return the columns that nothing tells, each with the number of such rows."""
        return {name: count for name, count in self.untold.items() if count}

    def lines(self, rows: int, distinct: bool) -> Iterator[str]:
        """Yield lines for people on an import of so many rows."""
        yield f"{counted(rows, 'row')} of {counted(self.problems, 'problem')}"
        for reason, count in self._left_out.most_common():
            places = "; ".join(self._places[reason]) + "; …" * (count > _PLACES)
            yield f"left out {counted(count, 'row')} ({places}): {reason}"
        if self.copies:
            yield f"left out {self.copies} that were there before under the same key"
        if self.repeats:
            done = "left out" if distinct else "kept as samples of their own (--distinct leaves them out)"
            yield f"{counted(self.repeats, 'response')} that repeat another one to the same problem: {done}"
        if self.opened_twice:
            yield (
                f"{counted(self.opened_twice, 'response')} with <think> after a prompt that ends in it: "
                "a --chat-template-kwargs of the model may switch that off"
            )
        for lacking, count in self._lacking.most_common():
            yield f"{counted(count, 'problem')} with {lacking}"
        if unknown := self.unknown():
            yield "not told: " + ", ".join(f"{name} of {counted(count, 'row')}" for name, count in unknown.items())
        yield from self._counts.remarks()


@cache
def _of_opsd(family: str) -> Template:
    return load_template("refine-opsd", family)
