"""The values that stages exchange: problems, trajectories, requests and completions. Nothing here reads or writes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal

from trd_cli.errors import InputError, flag

# math, code, episode, reasoning-gym, or a name of the user's own (see `prompting.templates.family_of`).
Task = str
TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
EPISODE = "episode"
Kind = Literal["rollout", "refined"]
Setting = Literal["opd", "opsd"]
Verdict = Literal["correct", "incorrect", "error", "timeout"]
FinishReason = Literal["stop", "length"]
# Why an episode ended: the environment said so, or a limit was met (turns, tokens of the model's context, replays).
StopReason = Literal["solved", "failed", "turns", "tokens", "replays"]
# The same in words.
ENDED: dict[StopReason, str] = {
    "solved": "solved",
    "failed": "failed",
    "turns": "out of turns",
    "tokens": "out of tokens",
    "replays": "out of replays",
}
# Who wrote a token. A row holds the place in this tuple.
AUTHORS = ("student", "teacher", "environment", "template")
# The authors that are models; the other two write what a model reads between the turns of an episode.
MODELS = AUTHORS[:2]
_CODES = frozenset(range(len(AUTHORS)))
_USUAL_AUTHORS: dict[Kind, str] = {"rollout": "student", "refined": "teacher"}
Message = Mapping[str, str]
# The value of a parameter of sampling that nothing tells, in rows made elsewhere; no sampler takes it.
UNKNOWN = -1


def content_hash(value: Any, length: int = 32) -> str:
    """Return the first `length` hex digits of the SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def sequence_hash(texts: Iterable[str], length: int = 32) -> str:
    """Return the `content_hash` of the list of some texts without holding them all."""
    digest, separator = hashlib.sha256(b"["), ""
    for text in texts:
        digest.update((separator + json.dumps(text, ensure_ascii=False)).encode("utf-8", "surrogatepass"))
        separator = ","
    digest.update(b"]")
    return digest.hexdigest()[:length]


def token_array(ids: Iterable[int]) -> array[int]:
    """Return token ids in four bytes each; raises OverflowError for one that takes more."""
    return array("i", ids)


def logprob_array(values: Iterable[float]) -> array[float]:
    """Return log-probabilities in four bytes each."""
    return array("f", values)


def author_array(codes: Iterable[int]) -> array[int]:
    """Return codes of authors, places in `AUTHORS`, in a byte each."""
    return array("b", codes)


def well_formed(text: str) -> str:
    """Return `text` as UTF-8 can hold it: two surrogates that make a pair are joined, any other one becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


CHECKSUM = "checksum"


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its key `checksum`, a hash of all other keys and their values."""
    content = {key: value for key, value in record.items() if key != CHECKSUM}
    # As it is read again: a key that is a number becomes text, and half of a surrogate pair U+FFFD.
    content = json.loads(well_formed(json.dumps(content, ensure_ascii=False)))
    return {**content, CHECKSUM: content_hash(content, 16)}


def is_intact(record: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is the one that was written; one without a checksum counts as intact."""
    return CHECKSUM not in record or with_checksum(record)[CHECKSUM] == record[CHECKSUM]


@dataclass(frozen=True, slots=True)
class Part:
    """Hold which part of a set a task of a job array makes: number `index`, from 1, of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `2/5`; raises InputError for any other text, and for a number beyond the last."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(
                f"{flag('shard')} {text}",
                "part I of N as I/N, from 1/N to N/N",
                f"change {flag('shard')}: in a Slurm array 1-N it is $SLURM_ARRAY_TASK_ID/N",
            )
        return cls(int(found[1]), int(found[2]))

    def owns(self, problem_id: str) -> bool:
        """Return whether the rows of a problem belong to this part; every problem belongs to one of `count` parts."""
        digest = hashlib.sha256(problem_id.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.index - 1

    def __str__(self) -> str:
        return f"part {self.index} of {self.count}"


@dataclass(frozen=True, slots=True)
class Cut:
    """Hold where a response is cut: after `tokens` tokens, or after a `share` of them; one of the two is None.

    With `at_line_break` the cut moves to the nearest line break.
    """

    tokens: int | None = None
    share: float | None = None
    at_line_break: bool = False

    @classmethod
    def parse(cls, text: str, at_line_break: bool = False) -> Cut:
        """Read `64` as tokens and `0.4` as a share; raises InputError for any other text."""
        if text.isascii() and text.isdecimal() and int(text):
            return cls(tokens=int(text), at_line_break=at_line_break)
        with suppress(ValueError):
            if not text.isdecimal() and 0 < (share := float(text)) <= 1:
                return cls(share=share, at_line_break=at_line_break)
        raise InputError(
            f"{flag('prefix')} {text}",
            "a number of tokens, as 64, or a share above 0.0 and up to 1.0, as 0.4",
            f"change {flag('prefix')}",
        )

    def __str__(self) -> str:
        return str(self.share if self.tokens is None else self.tokens)


@dataclass(frozen=True, slots=True)
class Problem:
    """Hold one problem x with its reference y*. `tests` is JSON text, for code and reasoning-gym."""

    problem_id: str
    source: str
    task: Task
    problem: str
    reference_answer: str | None = None
    reference_solution: str | None = None
    tests: str | None = None

    def well_formed(self) -> Problem:
        """Return the problem with all its text as UTF-8 can hold it: half of a surrogate pair is legal in JSON."""
        texts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: well_formed(text) for name, text in texts.items() if text})


@dataclass(frozen=True, slots=True)
class Sampling:
    """Hold how tokens are drawn. `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 switch the filters off."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int

    def told(self, seed: int | None = None) -> str:
        """Describe how a response was drawn, as far as it is known."""
        values = {
            "T": (self.temperature, f"T {self.temperature:g}"),
            "top-p": (self.top_p, f"top-p {self.top_p:g}"),
            "top-k": (self.top_k, f"top-k {self.top_k}"),
            "most tokens": (self.max_tokens, f"at most {self.max_tokens} tokens"),
            **({} if seed is None else {"seed": (seed, f"seed {seed}")}),
        }
        unknown = [name for name, (number, _) in values.items() if number == UNKNOWN]
        known = [text for number, text in values.values() if number != UNKNOWN]
        return ", ".join([*known, *([f"unknown: {' '.join(unknown)}"] if unknown else [])])


@dataclass(frozen=True, slots=True)
class Environment:
    """Name what an episode is played in: the same four values give the same episode for the same actions.

    `config` is JSON text with sorted keys. `seed` is the one of `reset`.
    """

    name: str
    version: str
    config: str
    seed: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Hold one turn of an episode: an action, and what the environment answered.

    `role` is the author of the action ("student" or "teacher"). The action's tokens, its end of turn included, are
    `response_token_ids[start:end]` of the row. `valid` is False for an action that the environment does not know, None
    where none was taken. `context_token_ids` is what the model read before the action, where this is not the row's
    prompt and all its response tokens before `start`; else None.
    """

    role: str
    action: str
    observation: str | None
    start: int
    end: int
    valid: bool | None
    finish_reason: FinishReason | None
    seed: int | None
    context_token_ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Hold one row of a shard. The fields and their order are those of `shards.SCHEMA`.

    A rollout (`stage` "rollout") is y_o, which the student wrote. A refined trajectory is y_r, which the teacher made
    of it; `parent_id` names the rollout. `response_token_ids` are the ids as sampled, with the end-of-turn id when
    generation stopped at one. `student_prompt_token_ids` (refined rows only) is the student's own context for the
    problem, in which it is trained.

    `author`, `token_weight` and `logprobs` have one value a response token. `author` holds places in `AUTHORS`; for
    None see `authors_of`. `token_weight` is the share with which training counts a token, finite and not negative;
    None stands for 1 each. `logprobs` are those of the model that wrote the token. The first `prefix_tokens` of
    `response_token_ids` were given to the model and not generated by it; None stands for 0.
    """

    trajectory_id: str
    problem_id: str
    parent_id: str | None
    round: int
    sample_index: int
    stage: Kind
    setting: Setting | None

    source: str
    task: Task
    problem: str
    reference_answer: str | None
    reference_solution: str | None
    tests: str | None

    messages: Sequence[Message]
    prompt_token_ids: Sequence[int]
    prompt_template: str
    prompt_sha256: str
    student_prompt_token_ids: Sequence[int] | None
    attempt_tokens_trimmed: int | None

    response: str | None
    response_token_ids: Sequence[int] | None
    logprobs: Sequence[float] | None
    finish_reason: FinishReason | None
    ids_exact: bool | None

    model: str
    model_revision: str
    engine: str
    engine_version: str
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int

    verdict: Verdict | None = None
    extracted_answer: str | None = None
    grader: str | None = None
    grader_version: str | None = None
    verdict_detail: str | None = None
    error: str | None = None

    author: Sequence[int] | None = None
    token_weight: Sequence[float] | None = None
    prefix_tokens: int | None = None

    turns: Sequence[Turn] | None = None
    environment: Environment | None = None
    episode_reward: float | None = None
    stop_reason: StopReason | None = None


def author_of_kind(kind: Kind) -> int:
    """Return the code of the author of all response tokens of a row of this kind that names none."""
    return AUTHORS.index(_USUAL_AUTHORS[kind])


def authors_of(row: Trajectory) -> Sequence[int]:
    """Return the code of each response token's author, also for a row that names none; [] without a response."""
    if row.author is not None:
        return row.author
    return author_array([author_of_kind(row.stage)]) * len(row.response_token_ids or ())


def unfit_for_response(row: Trajectory) -> list[str]:
    """Return the columns of a row whose values do not go with its response tokens: too many, too few or no such."""
    tokens, unfit = len(row.response_token_ids or ()), []
    if row.author is not None and not (len(row.author) == tokens and _CODES.issuperset(row.author)):
        unfit.append("author")
    if row.token_weight is not None and not (
        len(row.token_weight) == tokens and all(map(_is_weight, row.token_weight))
    ):
        unfit.append("token_weight")
    prefix = row.prefix_tokens or 0
    # Without a response it tells what was asked for.
    if prefix < 0 or (prefix > tokens and row.response_token_ids is not None):
        unfit.append("prefix_tokens")
    if row.turns is not None and not _are_in_order([(turn.start, turn.end) for turn in row.turns], tokens):
        unfit.append("turns")
    return unfit


def _are_in_order(spans: Sequence[tuple[int, int]], length: int) -> bool:
    """Return whether spans, none of them negative, follow one another within a length."""
    bounds = [0, *(bound for span in spans for bound in span), length]
    return all(before <= after for before, after in pairwise(bounds))


def _is_weight(weight: float | None) -> bool:
    return weight is not None and weight >= 0 and math.isfinite(weight)


@dataclass(frozen=True, slots=True)
class Request:
    """Hold one prompt for an engine. `max_tokens` in `sampling` already fits the model's context.

    `messages` is for servers that take no token ids. `hints` (the reference answer, the task) is for the scripted
    engine, which reads no prompt; real engines must not read it.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    sampling: Sampling
    seed: int
    messages: Sequence[Message] = ()
    hints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """Hold the answer of an engine to a request: either a response, or `error`.

    `token_ids` includes the end-of-turn id when `finish_reason` is "stop". `logprobs` has one entry a token id, under
    the model's own distribution (temperature 1, no filter), or is None where the engine gives none. `ids_exact` is
    False where the server returned text only and the ids come from tokenising it.
    """

    request_id: str
    text: str | None = None
    token_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    finish_reason: FinishReason | None = None
    ids_exact: bool = True
    error: str | None = None
