"""From planned rows to finished shards: the part that sample, refine and eval share.

A planned row is a `Trajectory` without a response. Its id is a content hash and its seed derives from the id, so a row
does not depend on the order of the input, the batch, the shard or the number of workers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from trd_cli.config.base import OutputOptions, errors_allowed
from trd_cli.config.generating import SamplingOptions
from trd_cli.engines.base import Engine, Several
from trd_cli.engines.border import answered
from trd_cli.errors import ModelError, ResumeRefused, TooManyRowErrors, counted
from trd_cli.models import ModelRef
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering, room_for_response, values_of
from trd_cli.prompting.templates import Template
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Kind, Message, Problem, Request, Sampling, Trajectory, content_hash, token_array
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.shards import OF_A_RESPONSE, write_shard
from trd_cli.trajectories.stage_dir import StageDir


@dataclass(frozen=True)
class Backend:
    """Represent a model behind an engine that is not loaded yet; `start(note)` loads it.

    `note` gets what a person should know of the start. `manner` tells a person how the engine runs, where that is not
    as usual: "2 replicas".
    """

    model: ModelRef
    tokenizer: Tokenizer
    engine: str
    engine_version: str
    max_length: int
    start: Callable[[Callable[[str], None]], Engine]
    manner: str = ""

    @property
    def described(self) -> str:
        """Return the model and its engine in words."""
        return f"{self.model.name} with {self.engine}" + (f", {self.manner}" if self.manner else "")

    def identity(self) -> dict[str, Any]:
        return {"model_revision": self.model.revision, "engine": self.engine}

    def about(self, **more: Any) -> About:
        """Return what a stage tells of this model, and `more` of its fields."""
        return About(self.model.lasting_name, self.model.revision, self.tokenizer.fingerprint(), **more)


@dataclass(frozen=True)
class Prompt:
    """Hold one rendered prompt, its ids in an array, and the template it came from."""

    messages: Sequence[Message]
    token_ids: Sequence[int]
    template: Template


def new_row(
    problem: Problem | Trajectory,
    prompt: Prompt,
    backend: Backend,
    sampling: SamplingOptions,
    *,
    kind: Kind,
    round: int,
    sample_index: int,
    parent: Trajectory | None = None,
    setting: str | None = None,
    trimmed: int | None = None,
    error: str | None = None,
) -> Trajectory:
    """Return a planned row.

    Its identity is: problem, prompt ids, sampling, model revision, sample index, round and parent.
    """
    identity = {
        "problem": [problem.source, problem.problem_id, problem.problem, problem.reference_answer],
        "prompt": list(prompt.token_ids),
        "sampling": [sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens, sampling.seed],
        "model": backend.model.revision,
        "place": [kind, round, sample_index, parent.trajectory_id if parent else None],
    }
    trajectory_id = content_hash(identity)
    return Trajectory(
        trajectory_id=trajectory_id,
        **{field.name: getattr(problem, field.name) for field in fields(Problem)},
        parent_id=parent.trajectory_id if parent else None,
        round=round,
        sample_index=sample_index,
        stage=kind,
        setting=setting,
        messages=prompt.messages,
        prompt_token_ids=prompt.token_ids,
        prompt_template=prompt.template.name,
        prompt_sha256=prompt.template.sha256,
        student_prompt_token_ids=parent.prompt_token_ids if parent else None,
        attempt_tokens_trimmed=trimmed,
        **dict.fromkeys(OF_A_RESPONSE),
        model=backend.model.name,
        model_revision=backend.model.revision,
        engine=backend.engine,
        engine_version=backend.engine_version,
        **{field.name: getattr(sampling, field.name) for field in fields(Sampling)},
        seed=row_seed(trajectory_id),
        error=error,
    )


def row_seed(trajectory_id: str) -> int:
    """Return a row's own seed: 62 bits of the SHA-256 of its id."""
    return int.from_bytes(hashlib.sha256(trajectory_id.encode()).digest()[:8]) >> 2


@dataclass(frozen=True)
class Asker:
    """Plan the student's attempts at problems: from a problem to its prompt, and to its rows."""

    templates: Mapping[str, Template]
    rendering: Rendering
    backend: Backend

    def prompt(self, problem: Problem) -> Prompt:
        template = self.templates[problem.task]
        messages = template.render(values_of(problem))
        return Prompt(messages, token_array(self.rendering.token_ids(self.backend.tokenizer, messages)), template)

    def check_fit(self, problems: Iterable[Problem]) -> None:
        """Raise ModelError when no prompt at all leaves room for a response. Reads on until the first that does."""
        limit, shortest = self.backend.max_length, None
        for problem in problems:
            length = len(self.prompt(problem).token_ids)
            if length < limit:
                return
            shortest = length if shortest is None else min(shortest, length)
        if shortest is not None:
            raise ModelError(
                f"every prompt is too long: the shortest has {shortest} tokens",
                f"fewer than the {limit} the model takes",
                "use a longer --max-model-len, a shorter prompt, or another model",
            )

    def rows(
        self, problem: Problem, prompt: Prompt, n: int, sampling: SamplingOptions, round: int = 0
    ) -> Iterator[Trajectory]:
        """Yield `n` planned attempts at a problem.

        A prompt that leaves no room for a response, or has an id that the model does not know, makes error rows.
        """
        length, limit = len(prompt.token_ids), self.backend.max_length
        error = unknown_id(self.backend.model, prompt) if length < limit else too_long(length, limit)
        for i in range(n):
            yield new_row(
                problem, prompt, self.backend, sampling, kind="rollout", round=round, sample_index=i, error=error
            )


def too_long(length: int, limit: int) -> str:
    """Return the `error` of a row whose prompt does not fit."""
    return f"prompt too long: {length} tokens, the model takes {limit}"


def unknown_id(model: ModelRef, prompt: Prompt) -> str | None:
    """Return the `error` of a row whose prompt has a token id without an embedding in its model, else None."""
    found = model.unknown_id(prompt.token_ids)
    if found is None:
        return None
    return f"the prompt has the token id {found}, and {model.name} has embeddings for {model.embedding_rows} ids"


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
                f"{self.errors} of {counted(self.rows, 'row')} ended as errors, {limit:g} allowed (--max-errors); see their columns error and verdict_detail"
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

    def fill(self, planned: Iterable[Trajectory]) -> None:
        """Generate the rows that are not there yet; shards from before are reported first."""
        if not self._announced:
            self._announced = True
            if self._options.retry_errors:  # not sooner: a command that is refused drops no row
                self._take_up(retry_errors=True)
            for path in self._stage_dir.shards():
                self._progress.result(path)
        self._begun = False
        requests = self._requests(planned)
        first = next(requests, None)
        if first is not None:
            self._load()
            self._begin()
            self._generate(chain([first], requests))
        self._flush()

    def end_of_plan(self) -> None:
        """Record how many rows the finished set has; raises ResumeRefused when the directory holds any other."""
        check_strangers(self._stage_dir.path, len(self._unplanned))
        self._stage_dir.expect(len(self._planned))

    def _requests(self, planned: Iterable[Trajectory]) -> Iterator[Request]:
        """Yield the requests of missing rows; a row that cannot be asked for goes to the shard at once."""
        for row in planned:
            if not self._planned.add(row.trajectory_id) or self._unplanned.discard(row.trajectory_id):
                continue
            if row.error is None:
                self._open[row.trajectory_id] = row
                yield self._request(row)
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

    def _generate(self, requests: Iterable[Request]) -> None:
        self._at_work_since = time.monotonic()
        try:
            for completion in self._answers(requests):
                row = self._finished(self._open.pop(completion.request_id), completion)
                self._add(row, len(completion.token_ids or ()))
        finally:
            self.outcome.seconds += time.monotonic() - self._at_work_since
            self._at_work_since = None

    def _add(self, row: Trajectory, tokens: int) -> None:
        self._buffer.append(row)
        self.outcome.generated += 1
        self.outcome.tokens += tokens
        self._progress.advance(1, tokens)
        if (
            len(self._buffer) >= self._options.shard_rows
            or time.monotonic() - self._opened > 60 * self._options.shard_minutes
        ):
            self._flush()

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

    def _request(self, row: Trajectory) -> Request:
        return request_for(row, self._backend.max_length)

    def _answers(self, requests: Iterable[Request]) -> Iterator[Completion]:
        return answered(requests, self._engine.generate, self._backend.tokenizer, self._progress.note)

    def _finished(self, row: Trajectory, completion: Completion) -> Trajectory:
        return with_completion(row, completion)

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


def request_for(row: Trajectory, max_length: int) -> Request:
    """Return the engine's view of a planned row; its new tokens end where the model's context does."""
    room = room_for_response(max_length, len(row.prompt_token_ids), row.max_tokens)
    return Request(
        request_id=row.trajectory_id,
        prompt_token_ids=row.prompt_token_ids,
        sampling=Sampling(row.temperature, row.top_p, row.top_k, room),
        seed=row.seed,
        messages=row.messages,
        hints={"task": row.task, "reference_answer": row.reference_answer or ""},
    )


def with_completion(row: Trajectory, completion: Completion) -> Trajectory:
    """Return a planned row with the completion of an engine."""
    if completion.error is not None:
        return replace(row, error=completion.error)
    return replace(
        row,
        response=completion.text,
        response_token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        finish_reason=completion.finish_reason,
        ids_exact=completion.ids_exact,
    )


def preview(row: Trajectory, total: int, where: Path, is_most: bool = False) -> str:
    """Return the text of --dry-run: the first prompt as the model sees it, and the rows that would be made.

    With `is_most` the total is the most there can be.
    """
    text = "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in row.messages)
    return (
        f"first prompt ({row.prompt_template}, {counted(len(row.prompt_token_ids), 'token')}):\n{text}\n\n"
        f"would make {'at most ' * is_most}{counted(total, 'row')} with {row.model} on {row.engine}, "
        f"T {row.temperature:g}, top-p {row.top_p:g}, top-k {row.top_k}, at most {row.max_tokens} new tokens, in {where}"
    )
