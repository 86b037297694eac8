"""Turn rows into tensors in which teacher and student score the same response tokens at the same positions.

Axes: B rows, L padded length (one for each side), N response tokens of all rows that count.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from trd_cli.training.mix import Mixed

# The largest share of a micro-batch that may be padding.
_MOST_PADDING = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One trajectory to train on: two contexts and one response, as arrays of token ids (int32).

    `scored` are the positions in the response that count, by default all of them. `weights` (float32, above 0) are
    theirs, by default 1 each. `group` is a number that the rows of one problem with one verdict share, odd where they
    are correct, 0 where verdicts do not matter; `row_weight` multiplies the row's loss. `parent_verdict` (the
    attempt's) only sorts the log. `mixed_as` is the class of --mix, None without. Any sequence of numbers becomes an
    array; one of the right type is not copied.

    Where a chat template rewrites history, each turn of an episode is read in a context of its own. The row is then the
    example of its first turn, and `others` has those of the further turns. `part` is the turn's place among them, and
    `whole` the sum of the weights of all, 0.0 where there is one alone.
    """

    trajectory_id: str
    student_prompt: np.ndarray
    teacher_prompt: np.ndarray
    response_ids: np.ndarray
    scored: np.ndarray = ()
    parent_verdict: str | None = None
    weights: np.ndarray = ()
    group: int = 0
    row_weight: float = 1.0
    mixed_as: str | None = None
    others: tuple[Example, ...] = ()
    part: int = 0
    whole: float = 0.0

    @classmethod
    def of_turns(cls, turns: Sequence[Example]) -> Example:
        """Return one row of the examples of its turns, which share an id."""
        whole = sum(turn.weight for turn in turns)
        first, *others = (replace(turn, part=part, whole=whole) for part, turn in enumerate(turns))
        return replace(first, others=tuple(others))

    def __post_init__(self) -> None:
        if not len(self.scored):
            object.__setattr__(self, "scored", np.arange(len(self.response_ids), dtype=np.int32))
        for name in ("student_prompt", "teacher_prompt", "response_ids", "scored"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int32))
        weights = self.weights if len(self.weights) else np.ones(len(self.scored))
        object.__setattr__(self, "weights", np.asarray(weights, np.float32))

    @property
    def weight(self) -> float:
        """Return the sum of the weights, of all turns of the row."""
        return self.whole or float(self.weights.sum(dtype=np.float64))

    @property
    def parts(self) -> tuple[Example, ...]:
        """Return all examples of the row: itself, and those of further turns."""
        return (self, *self.others)

    @property
    def name(self) -> str:
        """Return a name that no other example has: the row's id and, from the second turn on, its place."""
        return f"{self.trajectory_id}#{self.part}" if self.part else self.trajectory_id

    def weighed(self, row_weight: float) -> Example:
        """Return the example with another weight of its row."""
        others = tuple(replace(other, row_weight=row_weight) for other in self.others)
        return replace(self, row_weight=row_weight, others=others)

    @property
    def correct(self) -> bool:
        """Return True if the row is known to be correct."""
        return self.group % 2 == 1

    @property
    def length(self) -> int:
        """Return the number of tokens on the longer side."""
        return max(len(self.student_prompt), len(self.teacher_prompt)) + len(self.response_ids)

    @property
    def read(self) -> tuple[int, int]:
        """Return the numbers of tokens that student and teacher read: all but the response's last one."""
        shared = len(self.response_ids) - 1
        return len(self.student_prompt) + shared, len(self.teacher_prompt) + shared

    @property
    def tokens(self) -> int:
        """Return the number of tokens that both sides read together."""
        return sum(self.read)


@dataclass(frozen=True)
class Side:
    """Hold one model's input: ids (B, L) int64, padded on the right, and flat positions (N,) before response tokens."""

    ids_BL: torch.Tensor
    places_N: torch.Tensor

    def to(self, device: torch.device) -> Side:
        return Side(self.ids_BL.to(device), self.places_N.to(device))


@dataclass(frozen=True)
class Batch:
    """Hold two sides aligned on N: position n of both predicts `response_N[n]`.

    The token belongs to row `row_N[n]` and counts with weight `weights_N[n]`; `correct_N[n]` is True in correct rows.
    """

    student: Side
    teacher: Side
    response_N: torch.Tensor
    weights_N: torch.Tensor
    row_N: torch.Tensor
    correct_N: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.student.to(device),
            self.teacher.to(device),
            self.response_N.to(device),
            self.weights_N.to(device),
            self.row_N.to(device),
            self.correct_N.to(device),
        )


@dataclass(frozen=True)
class Weighting:
    """Weigh the response tokens of a step, however it is cut into micro-batches and spread over processes.

    sequence: w / (sum of its row's w · trajectories of the step), the mean over tokens and then over rows

    token: w / (sum of all w of the step)

    w is the own weight of a scored token, 1 where a row has none; other tokens do not count. The weight of a whole row
    multiplies its loss and enters no sum: over a round, such weights have a mean of one.
    """

    reduction: Literal["sequence", "token"]
    trajectories: int
    weight: float

    @classmethod
    def of(cls, step: Sequence[Example], reduction: Literal["sequence", "token"]) -> Weighting:
        """Return the weighting of a step of so many rows, each with all its parts."""
        return cls(reduction, len(step), sum(e.weight for e in step))

    def of_tokens(self, example: Example) -> np.ndarray:
        """Return the weights of a row's scored tokens, float64."""
        whole = self.weight if self.reduction == "token" else example.weight * self.trajectories
        return example.weights * (example.row_weight / np.float64(whole))


def collate(examples: Sequence[Example], weighting: Weighting | None) -> Batch:
    """Return one micro-batch of parts of rows; those of further turns are there only as examples of their own.

    Without a weighting its tokens count nothing: a process with no rows left uses it to keep step.
    """
    scored_B = [len(e.scored) for e in examples]
    weights = [weighting.of_tokens(e) if weighting else np.zeros(len(e.scored)) for e in examples]
    return Batch(
        _side([e.student_prompt for e in examples], examples),
        _side([e.teacher_prompt for e in examples], examples),
        torch.from_numpy(np.concatenate([e.response_ids[e.scored] for e in examples]).astype(np.int64)),
        torch.from_numpy(np.concatenate(weights).astype(np.float32)),
        torch.from_numpy(np.repeat(np.arange(len(examples)), scored_B)),
        torch.from_numpy(np.repeat([e.correct for e in examples], scored_B)),
    )


def _side(prompts: Sequence[np.ndarray], examples: Sequence[Example]) -> Side:
    # The last response token predicts no trained token, so it is not read.
    longest = max(len(prompt) + len(e.response_ids) - 1 for prompt, e in zip(prompts, examples, strict=True))
    # Padding stands on the right, where causal attention never looks: any id will do, and no mask is needed.
    ids_BL = np.zeros((len(examples), longest), np.int64)
    places = []
    for i, (prompt, e) in enumerate(zip(prompts, examples, strict=True)):
        ids_BL[i, : len(prompt)] = prompt
        ids_BL[i, len(prompt) : len(prompt) + len(e.response_ids) - 1] = e.response_ids[:-1]
        places.append(i * longest + len(prompt) - 1 + e.scored.astype(np.int64))
    return Side(torch.from_numpy(ids_BL), torch.from_numpy(np.concatenate(places)))


def steps(
    rows: int, batch_size: int, epochs: int, seed: int, first: int = 0, mixed: Mixed | None = None
) -> Iterator[array[int]]:
    """Yield the numbers of the rows of each optimiser step, out of `rows`, shuffled anew every epoch.

    An epoch's last step may be smaller. `first` is the number of the first epoch, which its order derives from. With
    `mixed` an epoch takes as many rows in shares, some of which may come again before others have come.
    """
    orders = mixed.passes(seed, first) if mixed else _shuffled(rows, seed, first)
    for order in itertools.islice(orders, epochs):
        for start in range(0, rows, batch_size):
            yield order[start : start + batch_size]


def _shuffled(rows: int, seed: int, first: int) -> Iterator[array[int]]:
    for epoch in itertools.count(first):
        order = array("q", range(rows))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        yield order


@dataclass(frozen=True)
class Split:
    """A step cut into micro-batches, the same on every process; `mine` gives those of one of them."""

    groups: Sequence[Sequence[Example]]
    processes: int

    @property
    def padding(self) -> float:
        """Return the share of padding in all tokens that are read, on both sides."""
        read = sum(_padded(group) for group in self.groups)
        return 1.0 - sum(e.tokens for group in self.groups for e in group) / read

    def mine(self, process: int) -> list[Sequence[Example]]:
        """Return a process's micro-batches, as many for every process; an empty one only keeps step."""
        rounds = -(-len(self.groups) // self.processes)
        own = list(self.groups[process :: self.processes])
        return own + [()] * (rounds - len(own))


def split_step(
    step: Sequence[Example], max_tokens: int, processes: int = 1, switches: tuple[int | None, int | None] = (None, None)
) -> Split:
    """Group rows of similar length, with at most `max_tokens` on either side and a tenth of padding in a micro-batch.

    Each part of a row counts as a row here. A row that is longer than `max_tokens` stands alone. For several processes,
    micro-batches are halved until there is a multiple of their number, as far as there are rows. `switches` are the
    lengths at which the rotary factors of student and teacher change, if they do. Rows on the two sides of such a
    length are kept apart, so that each has the factors that it would have alone.
    """
    groups: list[list[Example]] = []
    parts = [part for row in step for part in row.parts]
    for example in sorted(parts, key=lambda e: (beyond(e, switches), -e.tokens, e.name)):
        joins = groups and beyond(groups[-1][0], switches) == beyond(example, switches)
        if joins and _fits([*groups[-1], example], max_tokens):
            groups[-1].append(example)
        else:
            groups.append([example])
    while len(groups) % processes:
        largest = max(groups, key=lambda group: (len(group) > 1, _padded(group)))
        if len(largest) == 1:
            break
        at = groups.index(largest)
        groups[at : at + 1] = _halves(largest, max_tokens)
    return Split(groups, processes)


def beyond(example: Example, switches: tuple[int | None, int | None]) -> tuple[bool, ...]:
    """Return, for student and teacher, True if the row exceeds the length at which its rotary factors change."""
    return tuple(s is not None and read > s for read, s in zip(example.read, switches, strict=True))


def _fits(group: Sequence[Example], max_tokens: int) -> bool:
    real = sum(e.tokens for e in group)
    return len(group) * max(e.length for e in group) <= max_tokens and real >= (1 - _MOST_PADDING) * _padded(group)


def _halves(group: list[Example], max_tokens: int) -> list[list[Example]]:
    """Return two parts, as even as possible, that both keep to the limits.

    A head of a group always does, and so does a single row.
    """
    by_evenness = sorted(range(1, len(group)), key=lambda n: abs(2 * n - len(group)))
    n = next(n for n in by_evenness if len(group) - n == 1 or _fits(group[n:], max_tokens))
    return [group[:n], group[n:]]


def _padded(group: Sequence[Example]) -> int:
    """Return the number of tokens that are read on both sides, padding included."""
    return len(group) * sum(max(side) for side in zip(*(e.read for e in group), strict=True))
