"""Pair responses to one prompt: a right one over a wrong one, by their verdicts.

    refined     y_r over the y_o that it was made of
    samples     a rollout over another one of the same problem and prompt

Of a problem at most so many pairs are made. Pairs of refined rows are taken in stored order. Samples are taken by round
and sample index, each text once: the first right one with the first wrong one, the second with the second; when all
right ones have a partner, each gets the next one.

Not covered: pairs without verdicts. That y_r is better because a teacher wrote it is what a verdict is there to check.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from trd_cli.exchange.answers import Answer, Answers, assistant
from trd_cli.records import Trajectory, content_hash

# Pairs whose rows are read together.
_PAIRS_AT_ONCE = 256


@dataclass(frozen=True)
class Pair:
    """Hold two answers to one prompt, the better one first."""

    chosen: Answer
    rejected: Answer


def refined_pairs(answers: Answers, most: int) -> Iterator[Pair]:
    """Yield y_r over y_o where y_r is correct and y_o incorrect, at most so many of a problem."""
    made: Counter[str] = Counter()
    for answer in answers.of("refined"):
        row, parent = answer.row, answer.parent
        if reason := _unpaired(row, parent):
            answers.left_out[reason] += 1
        elif made[row.problem_id] == most:
            answers.left_out[_beyond(most)] += 1
        else:
            made[row.problem_id] += 1
            yield Pair(answer, Answer(parent, answer.prompt, [assistant(parent.response)]))


def _unpaired(row: Trajectory, parent: Trajectory) -> str | None:
    """Return the reason why a refined row is not right over a wrong rollout."""
    verdicts = tuple(each.verdict or "not graded" for each in (parent, row))
    if verdicts != ("incorrect", "correct"):
        return "y_o {}, y_r {}".format(*verdicts)
    return None if parent.response else "y_o without a response"


def _beyond(most: int) -> str:
    return f"beyond the {most} pairs of a problem (--max-pairs)"


# Round, index and id of a sample, and the digest of its text.
_Sample = tuple[tuple[int, int, str], bytes]


@dataclass
class _Samples:
    """The first different texts among the samples of a problem, right ones or wrong ones: order, id, digest."""

    most: int
    seen: int = 0
    kept: list[_Sample] = field(default_factory=list)

    def add(self, row: Trajectory) -> None:
        self.seen += 1
        text = hashlib.blake2b(row.response.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        given = ((row.round, row.sample_index, row.trajectory_id), text)
        same = [each for each in self.kept if each[1] == text]
        others = [each for each in self.kept if each[1] != text]
        self.kept = sorted([*others, min([given, *same])])[: self.most]


def sample_pairs(answers: Answers, most: int) -> Iterator[Pair]:
    """Yield right over wrong rollouts of each problem and prompt, problems in the order of their first rows."""
    problems: dict[str, dict[str, _Samples]] = {}
    for answer in answers.of("rollout"):
        verdict = answer.row.verdict
        if verdict not in ("correct", "incorrect"):
            answers.left_out[f"with the verdict {verdict}" if verdict else "not graded"] += 1
            continue
        key = content_hash([answer.row.problem_id, *({**message} for message in answer.prompt)])
        sides = problems.setdefault(key, {"correct": _Samples(most), "incorrect": _Samples(most)})
        sides[verdict].add(answer.row)
    yield from _read(answers, _chosen(problems.values(), answers.left_out, most))


def _chosen(problems: Iterable[dict[str, _Samples]], left_out: Counter[str], most: int) -> Iterator[tuple[str, str]]:
    """Yield the ids of each pair, the right one first."""
    for sides in problems:
        right, wrong = _one_sided(*(sides[verdict].kept for verdict in ("correct", "incorrect")))
        seen = sum(side.seen for side in sides.values())
        if not (right and wrong):
            left_out["of problems without both right and wrong samples"] += seen
            continue
        pairs = [*islice(matched(right, wrong), most)]
        if unused := seen - len({*sum(pairs, ())}):
            left_out[f"{_beyond(most)} or with the text of another sample"] += unused
        yield from pairs


def _one_sided(right: Sequence[_Sample], wrong: Sequence[_Sample]) -> tuple[list[str], list[str]]:
    """Return the ids of right and of wrong samples, without texts that have both verdicts, as from two graders."""
    both = {text for _, text in right} & {text for _, text in wrong}
    first, second = ([order[-1] for order, text in side if text not in both] for side in (right, wrong))
    return first, second


def matched(right: Sequence[str], wrong: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield all pairs of two lists, such that each item is used about as often as the others of its list."""
    for shift in range(len(wrong)):
        for place, one in enumerate(right):
            yield one, wrong[(place + shift) % len(wrong)]


def _read(answers: Answers, pairs: Iterator[tuple[str, str]]) -> Iterator[Pair]:
    while some := [*islice(pairs, _PAIRS_AT_ONCE)]:
        found = answers.fetch([name for pair in some for name in pair])
        yield from (Pair(*two) for two in zip(found[::2], found[1::2], strict=True))
