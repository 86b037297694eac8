"""Plan rows and finish them: what a model is asked for a row, and what its completion makes of it.

A planned row is a `Trajectory` without a response, or with the beginning of one from which the model goes on. Its id is
a content hash and its seed derives from the id, so a row does not depend on the order of the input, the batch, the
shard or the number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from trd_cli.config.generating import SamplingOptions
from trd_cli.engines.base import Engine
from trd_cli.errors import ModelError, counted
from trd_cli.models import ModelRef
from trd_cli.prompting.rendering import Rendering, room_for_response, values_of
from trd_cli.prompting.templates import Template
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import (
    Completion,
    Kind,
    Message,
    Problem,
    Request,
    Sampling,
    Trajectory,
    author_array,
    author_of_kind,
    authors_of,
    content_hash,
    logprob_array,
    token_array,
    well_formed,
)
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.shards import OF_A_RESPONSE


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
    """Hold one prompt, its ids in an array, and name and digest of the template that it came from."""

    messages: Sequence[Message]
    token_ids: Sequence[int]
    template: str
    sha256: str

    @classmethod
    def rendered(cls, template: Template, values: Mapping[str, str], render: Callable[..., Sequence[int]]) -> Prompt:
        """Return the prompt of a filled template; `render` gives the ids of its messages."""
        messages = template.render(values)
        return cls(messages, token_array(render(messages)), template.name, template.sha256)

    @classmethod
    def nothing(cls, template: Template) -> Prompt:
        """Return the prompt of a row that cannot be asked for."""
        return cls((), token_array(()), template.name, template.sha256)

    @classmethod
    def of_student(cls, row: Trajectory) -> Prompt:
        """Return the student's own prompt of a row, as it is stored. A refined row has its ids alone."""
        if row.stage == "refined":
            return cls((), token_array(row.student_prompt_token_ids or ()), "", "")
        return cls(row.messages, row.prompt_token_ids, row.prompt_template, row.prompt_sha256)


@dataclass(frozen=True)
class Prefix:
    """Hold the first tokens of a row's response, from which a model goes on in a row of its own.

    `author` has a code for each of them. `ids_exact` is that of the row.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float] | None
    author: Sequence[int]
    ids_exact: bool | None

    @classmethod
    def of(cls, row: Trajectory, length: int) -> Prefix:
        logprobs = None if row.logprobs is None else logprob_array(row.logprobs[:length])
        return cls(token_array(row.response_token_ids[:length]), logprobs, authors_of(row)[:length], row.ids_exact)

    def columns(self, kind: Kind) -> dict[str, Any]:
        """Return the columns of a planned row of this kind: its response so far, to which a completion is added.

        A row whose tokens are all its usual author's names none.
        """
        is_usual = set(self.author) <= {author_of_kind(kind)}
        return {
            "response_token_ids": self.token_ids,
            "logprobs": self.logprobs,
            "ids_exact": self.ids_exact,
            "author": None if is_usual else author_array(self.author),
        }


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
    prefix: Prefix | None = None,
    error: str | None = None,
) -> Trajectory:
    """Return a planned row; `prefix` is the beginning of its response, from which the model goes on.

    Its identity is: problem, prompt ids, sampling, model revision, sample index, round, parent, and the prefix's ids.
    """
    identity = {
        "problem": [problem.source, problem.problem_id, problem.problem, problem.reference_answer],
        "prompt": list(prompt.token_ids),
        "sampling": [sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens, sampling.seed],
        "model": backend.model.revision,
        "place": [kind, round, sample_index, parent.trajectory_id if parent else None],
    }
    if prefix is not None:
        identity["prefix"] = list(prefix.token_ids)
    trajectory_id = content_hash(identity)
    given = dict.fromkeys(OF_A_RESPONSE) | (prefix.columns(kind) if prefix and error is None else {})
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
        prompt_template=prompt.template,
        prompt_sha256=prompt.sha256,
        student_prompt_token_ids=parent.prompt_token_ids if parent and kind == "refined" else None,
        attempt_tokens_trimmed=trimmed,
        **given,
        model=backend.model.name,
        model_revision=backend.model.revision,
        engine=backend.engine,
        engine_version=backend.engine_version,
        **{field.name: getattr(sampling, field.name) for field in fields(Sampling)},
        seed=row_seed(trajectory_id),
        error=error,
        prefix_tokens=len(prefix.token_ids) if prefix else None,
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
        render = partial(self.rendering.token_ids, self.backend.tokenizer)
        return Prompt.rendered(self.templates[problem.task], values_of(problem), render)

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
        error = cannot_ask(self.backend, prompt.token_ids)
        for i in range(n):
            yield new_row(
                problem, prompt, self.backend, sampling, kind="rollout", round=round, sample_index=i, error=error
            )


def too_long(length: int, limit: int) -> str:
    """Return the `error` of a row whose prompt does not fit."""
    return f"prompt too long: {length} tokens, the model takes {limit}"


def unknown_id(model: ModelRef, token_ids: Sequence[int]) -> str | None:
    """Return the `error` of a row whose prompt has a token id without an embedding in its model, else None."""
    found = model.unknown_id(token_ids)
    if found is None:
        return None
    return f"the prompt has the token id {found}, and {model.name} has embeddings for {model.embedding_rows} ids"


def cannot_ask(backend: Backend, token_ids: Sequence[int]) -> str | None:
    """Return the `error` of a row whose model cannot go on from these ids, or None where it can."""
    length, limit = len(token_ids), backend.max_length
    return unknown_id(backend.model, token_ids) if length < limit else too_long(length, limit)


def request_for(row: Trajectory, max_length: int) -> Request:
    """Return the engine's view of a planned row; its new tokens end where the model's context does.

    The engine reads the prompt and the part of the response that is given, and goes on from there.
    """
    read = row.prompt_token_ids
    if row.response_token_ids is not None:
        read = token_array([*read, *row.response_token_ids])
    return Request(
        request_id=row.trajectory_id,
        prompt_token_ids=read,
        sampling=Sampling(
            row.temperature, row.top_p, row.top_k, room_for_response(max_length, len(read), row.max_tokens)
        ),
        seed=row.seed,
        messages=row.messages,
        hints={"task": row.task, "reference_answer": row.reference_answer or ""},
    )


def with_completion(row: Trajectory, completion: Completion, tokenizer: Tokenizer) -> Trajectory:
    """Return a planned row with the completion of an engine, added to the part of the response that was given.

    Log-probabilities are there if both parts have them.
    """
    if completion.error is not None:
        return replace(row, **dict.fromkeys(OF_A_RESPONSE), error=completion.error)
    finished = replace(
        row,
        response=completion.text,
        response_token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        finish_reason=completion.finish_reason,
        ids_exact=completion.ids_exact,
    )
    if row.response_token_ids is None:
        return finished
    token_ids = token_array([*row.response_token_ids, *completion.token_ids])
    has_logprobs = row.logprobs is not None and completion.logprobs is not None
    own = author_array([author_of_kind(row.stage)]) * len(completion.token_ids)
    return replace(
        finished,
        response=well_formed(tokenizer.decode(token_ids)),
        response_token_ids=token_ids,
        logprobs=logprob_array([*row.logprobs, *completion.logprobs]) if has_logprobs else None,
        ids_exact=completion.ids_exact and row.ids_exact is not False,
        author=None if row.author is None else author_array([*row.author, *own]),
    )


def preview(row: Trajectory, total: int, where: Path, is_most: bool = False, turns: int | None = None) -> str:
    """Return the text of --dry-run: the first prompt as the model sees it, and the rows that would be made.

    With `is_most` the total is the most there can be; `turns` are the most turns of an episode.
    """
    a_turn = f" in each of at most {counted(turns, 'turn')}" if turns else ""
    text = "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in row.messages)
    return (
        f"first prompt ({_made_of(row)}):\n{text}\n\n"
        f"would make {'at most ' * is_most}{counted(total, 'row')} with {row.model} on {row.engine}, "
        f"T {row.temperature:g}, top-p {row.top_p:g}, top-k {row.top_k}, at most {row.max_tokens} new tokens{a_turn}, in {where}"
    )


def _made_of(row: Trajectory) -> str:
    """Describe the prompt of a planned row: its template, its tokens, and those of the response that are given."""
    given = [f"then {counted(row.prefix_tokens, 'token')} of the response"] if row.prefix_tokens else []
    return ", ".join([*filter(None, [row.prompt_template]), counted(len(row.prompt_token_ids), "token"), *given])


def no_response(row: Trajectory) -> str | None:
    """Return the `error` of a row that is made from one without a response, or None where it has one."""
    if row.error is None and row.response_token_ids is not None:
        return None
    what = "rollout" if row.stage == "rollout" else "refined row"
    return f"the {what} has no response: {row.error or 'none is stored'}"
