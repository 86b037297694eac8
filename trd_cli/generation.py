"""From planned rows to finished shards: the part that sample, refine and eval share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from trd_cli.config.base import OutputOptions, errors_allowed
from trd_cli.engines.base import Engine, Several
from trd_cli.engines.border import answered
from trd_cli.errors import ResumeRefused, TooManyRowErrors, counted
from trd_cli.planned import Backend, request_for, with_completion
from trd_cli.progress import Progress
from trd_cli.records import Completion, Request, Trajectory
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.shards import write_shard
from trd_cli.trajectories.stage_dir import StageDir


@dataclass
class Outcome:
    """Hold the counts of an invocation: rows generated now, rows in all, errors among all, response tokens generated.

    `seconds` is the time of generating them, without loading the model.
    """

    generated: int = 0
    rows: int = 0
    errors: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def check_errors(self, max_errors: float) -> None:
        """Raise TooManyRowErrors if more rows ended as errors than `max_errors` allows."""
        limit = errors_allowed(max_errors, self.rows)
        if self.errors > limit:
            raise TooManyRowErrors(
                f"{self.errors} of {counted(self.rows, 'row')} ended as errors, {limit} allowed (--max-errors {max_errors:g}); see their columns error and verdict_detail"
            )


class ShardFiller:
    """Run an engine over planned rows and write finished ones into the shards of one stage directory.

    Rows are planned as the engine takes them: only those in flight and those of the shard that is being filled are in
    memory, and 16 bytes of every other. The engine starts at the first row that is missing, and never when none is. Use
    as a context manager: on the way out, whatever the reason, finished rows are written and the engine is closed.

    A subclass fills a directory with rows of another kind; they have `trajectory_id`, `problem_id`, `sample_index` and
    `error` too.
    """

    def __init__(
        self, stage_dir: StageDir, backend: Backend, options: OutputOptions, progress: Progress, total: int | None
    ) -> None:
        """Prepare to fill `stage_dir`; `total` is the rows of the finished set, None while the input still grows."""
        self._stage_dir, self._backend, self._options, self._progress = stage_dir, backend, options, progress
        self._total = total
        self._engine: Engine | None = None
        self._open: dict[str, Trajectory] = {}
        self._buffer: list[Trajectory] = []
        self._target: Path | None = None
        self._opened = time.monotonic()
        self._at_work_since: float | None = None
        self._announced = self._begun = False
        self._planned = IdSet()
        self._take_up()

    def __enter__(self) -> ShardFiller:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self._flush()
        finally:
            if self._engine is not None:
                self._engine.close()
            self._progress.end()
            if self.outcome.generated:
                outcome = self.outcome
                self._stage_dir.log_session(outcome.generated, outcome.tokens, outcome.seconds, self._rates())

    def _take_up(self, retry_errors: bool = False) -> None:
        """Go on from the rows that are there; `retry_errors` drops those with an error."""
        finished = self._stage_dir.finished(retry_errors)
        for path in finished.set_aside:
            self._progress.note(
                f"a shard was damaged, not of this set or a copy of another, and is {path} now: rows that only it had are made again"
            )
        self.outcome = Outcome(rows=len(finished.ids), errors=finished.errors)
        # Rows from before that no plan has named yet.
        self._unplanned = finished.ids

    @property
    def planned(self) -> int:
        """Return how many rows have been planned so far, those from before included."""
        return len(self._planned)

    def summary(self) -> str | None:
        """Return what a person should know of the rows that were made now, None where there is nothing."""
        return None

    def fill(self, planned: Iterable[Trajectory]) -> None:
        """Generate the rows that are not there yet; shards from before are reported first."""
        if not self._announced:
            self._announced = True
            if self._options.retry_errors:  # not sooner: a command that is refused drops no row
                self._take_up(retry_errors=True)
            for path in self._stage_dir.shards():
                self._progress.result(path)
        self._begun = False
        missing = self._missing(planned)
        first = next(missing, None)
        if first is not None:
            self._load()
            self._begin()
            self._generate(chain([first], missing))
        self._flush()

    def end_of_plan(self, keeps_others: bool = False) -> None:
        """Record how many rows the finished set has.

        Raises ResumeRefused when the directory holds any that was not planned; with `keeps_others` these count too.
        """
        if not keeps_others:
            check_strangers(self._stage_dir.path, len(self._unplanned))
        self._stage_dir.expect(len(self._planned) + len(self._unplanned))

    def _missing(self, planned: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """Yield the rows to make; one that has ended or cannot be asked for goes to the shard at once."""
        for row in planned:
            if not self._planned.add(row.trajectory_id) or self._unplanned.discard(row.trajectory_id):
                continue
            if not self._has_ended(row):
                yield row
            else:
                self._begin()
                self._add(row, 0)

    def _rates(self) -> Sequence[float]:
        """Return the tokens a second of each replica, which add up to those of all; nothing for a single engine."""
        counts = self._engine.tokens() if isinstance(self._engine, Several) else ()
        now = time.monotonic()
        seconds = self.outcome.seconds + now - (self._at_work_since or now)
        return [count / max(seconds, 1e-6) for count in counts]

    def _load(self) -> None:
        if self._engine is None:
            self._progress.note(f"loading {self._backend.described}")
            self._engine = self._backend.start(self._progress.note)
            self._progress.replicas(self._rates)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            if self._total is None:
                self._stage_dir.expect(None)  # a count from before would make a growing set look finished
            self._progress.start(self._stage_dir.state().command, self._total, self.outcome.rows)

    def _generate(self, rows: Iterable[Trajectory]) -> None:
        self._at_work_since = time.monotonic()
        try:
            self._make(rows)
        finally:
            self.outcome.seconds += time.monotonic() - self._at_work_since
            self._at_work_since = None

    def _make(self, rows: Iterable[Trajectory]) -> None:
        """Make the planned rows, in any order; each is added when it has ended."""
        for completion in self._answers(map(self._asked, rows)):
            row = self._finished(self._open.pop(completion.request_id), completion)
            self._add(row, len(completion.token_ids or ()))

    def _asked(self, row: Trajectory) -> Request:
        self._open[row.trajectory_id] = row
        return self._request(row)

    def _add(self, row: Trajectory, tokens: int) -> None:
        self._buffer.append(row)
        self.outcome.generated += 1
        self._count(1, tokens)
        if (
            len(self._buffer) >= self._options.shard_rows
            or time.monotonic() - self._opened > 60 * self._options.shard_minutes
        ):
            self._flush()

    def _count(self, rows: int, tokens: int, turns: int = 0) -> None:
        self.outcome.tokens += tokens
        self._progress.advance(rows, tokens, turns)

    def _flush(self) -> None:
        if self._buffer:
            # An interruption may fall between the rename and the end of this block; what is flushed again on the way
            # out must then replace that very file.
            self._target = path = self._target or self._stage_dir.next_shard()
            # The order in which rows finish is chance; sorted, equal work gives equal files.
            rows = sorted(self._buffer, key=lambda row: (row.problem_id, row.sample_index, row.trajectory_id))
            rows = self._write(path, rows)
            self._buffer, self._target = [], None
            self.outcome.rows += len(rows)
            self.outcome.errors += sum(row.error is not None for row in rows)
            self._progress.result(path)
        self._opened = time.monotonic()

    def _has_ended(self, row: Trajectory) -> bool:
        """Return whether a planned row goes to the shard as it is."""
        return row.error is not None or row.finish_reason is not None

    def _request(self, row: Trajectory) -> Request:
        return request_for(row, self._backend.max_length)

    def _answers(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        return answered(requests, self._engine.generate, self._backend.tokenizer, self._progress.note)

    def _finished(self, row: Trajectory, completion: Completion) -> Trajectory:
        return with_completion(row, completion, self._backend.tokenizer)

    def _write(self, path: Path, rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """Write a shard, and return the rows as they were written."""
        return write_shard(path, rows, self._stage_dir.digest)


def check_strangers(directory: Path, count: int) -> None:
    """Raise ResumeRefused where a directory holds rows that a command would not make."""
    if count:
        raise ResumeRefused(
            f"{directory} holds {counted(count, 'row')} that this command would not make",
            "only rows of the same problems and attempts",
            "give another --out, or ask for at least what it was made with",
        )
