"""The figures of a report: frozen values that `collect` makes and the tables, the plots and the page show. No IO here.

Arms are named as in the recipe; "base" is the model that the run began with. In a report on two runs every arm and
node is named `run/…`. `round` counts from 0 and is None outside rounds. `seed` is None for figures that seeds share,
and ALL_SEEDS for figures of all seeds together. An unknown figure is None, never 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trd_cli.diagnosis.results import Diagnosis
from trd_cli.trajectories.episode_columns import FIGURES
from trd_cli.trajectories.run_json import IMPORTED

BASE = "base"
# The seed of figures of all seeds together.
ALL_SEEDS = "all"
Seed = int | str | None
VERDICTS = ("correct", "incorrect", "error", "timeout")
# The kind of the set that a stage makes.
KIND_OF_SET = {"sample": "rollout", IMPORTED: "rollout", "refine": "refined"}
# The matrix's name for the verdict of a row that was never graded.
UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and quantiles of a figure over rows. `values` are all of them, sorted, 8 bytes each.

    Quantiles are interpolated linearly between two ranks (numpy's default), as all medians of a report are.
    """

    rows: int
    mean: float
    p05: float
    p25: float
    p50: float
    p75: float
    p95: float
    values: array[float] = field(repr=False)

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of these values, or None if there are none."""
        if not values:
            return None
        ordered = np.sort(np.asarray(values, dtype=np.float64))
        quantiles = np.quantile(ordered, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
        return cls(len(ordered), float(ordered.mean()), *quantiles, array("d", ordered.tobytes()))


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Rows, tokens, time and memory that a node of the run's graph took.

    `tokens` are response tokens that models wrote: generated, or for distill trained on, every epoch counted. `seconds`
    is wall time; for an interrupted stage it covers the recorded invocations. `tokens_per_second` is over the time of
    the stage itself, without starting the process. `at_work` are the seconds of that time: the wall time without
    loading, starting and saving; unknown for verify. `peak_bytes` is resident memory of the host, for distill on a GPU
    the allocator's peak if that is more. The GPU memory of sample, refine and eval is unknown. `devices` are named
    where the machine has several. `warm` is True for a stage that ran in a worker which had run another before.
    """

    name: str
    stage: str
    arm: str | None
    round: int | None
    seed: Seed
    state: str
    rows: int | None
    tokens: int | None
    seconds: float | None
    tokens_per_second: float | None
    peak_bytes: int | None
    at_work: float | None = None
    devices: str | None = None
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """One score of results.json with its 95 % interval. Shares are of all samples of the benchmark."""

    arm: str
    round: int | None
    seed: Seed
    benchmark: str
    score: str
    value: float | None
    low: float | None
    high: float | None
    questions: int
    truncated: float
    no_answer: float
    error: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of an arm's avg@k to that of `against`, paired over the questions graded on both sides.

    `evaluation.paired` computes it, for all seeds together `evaluation.seeds`. `p_holm` is corrected over all
    differences of the report with the same `family`: those "to base", those to the reference arm, those between two
    runs. Those of all seeds together are families of their own. `k` is the number of the arm's samples of a question
    that are compared. `gained` and `lost` count questions.
    """

    arm: str
    round: int | None
    seed: Seed
    benchmark: str
    against: str
    family: str
    k: int
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    gained: int
    lost: int
    questions: int


@dataclass(frozen=True, slots=True)
class Nll:
    """Mean negative log-likelihood in nats a token, over all tokens of `rows` rows, and its source in words."""

    value: float
    tokens: int
    rows: int
    source: str


@dataclass(frozen=True, slots=True)
class Leaks:
    """Shares of an OPSD refinement's rows in which y_r shows that it was written with y* in view (`report.leaks`).

    `talks_before` is the same share for y_o, which was written without y*: the patterns' false alarms. `copies` has by
    n the share of rows with an n-word run of y* that neither y_o nor the problem has.
    """

    rows: int
    talks: float
    talks_before: float
    copies: Mapping[int, float]


@dataclass(frozen=True)
class Refinement:
    """The teacher's changes to a set of rollouts: y_o → y_r, over the refined rows whose parent exists.

    `matrix` counts rows by (verdict of y_o, verdict of y_r), UNVERIFIED without one. All other figures are over rows in
    which both have a response. `lengths` is in tokens, under "y_o" and "y_r". `edit_distance` is Levenshtein over
    tokens divided by the longer of the two; `common_prefix` is the share of y_o's tokens that y_r begins with. `nll`
    has the known ones of "y_o", "y_r" and "y*" under the student that wrote y_o, in the student's own context, and of
    "y_r, refiner" under the teacher in the refinement context. `leaks` is None except for opsd. `arms` are those that
    need the set. `episodes` has the spreads of the figures of episodes (`trajectories.episode_columns`) under "y_o" and
    "y_r"; it is empty without any.
    """

    node: str
    arm: str | None
    round: int | None
    seed: Seed
    setting: str
    rows: int
    errors: int
    matrix: Mapping[tuple[str, str], int]
    lengths: Mapping[str, Spread | None]
    edit_distance: Spread | None
    common_prefix: Spread | None
    nll: Mapping[str, Nll]
    leaks: Leaks | None
    arms: tuple[str, ...] = ()
    episodes: Mapping[str, Mapping[str, Spread | None]] = field(default_factory=dict)

    def of_episodes(self) -> dict[str, Spread | None]:
        """Return the spreads of the figures of episodes by their names in words."""
        return {
            f"{FIGURES[name]} of {side}": spread
            for side, figures in self.episodes.items()
            for name, spread in figures.items()
        }

    def verdicts(self, side: int) -> list[str]:
        """Return the verdicts of y_o (side 0) or y_r (side 1), correct and incorrect always among them."""
        found = {pair[side] for pair in self.matrix} | {"correct", "incorrect"}
        return [verdict for verdict in (*VERDICTS, UNVERIFIED) if verdict in found]


@dataclass(frozen=True)
class Training:
    """A training: the lines of train.jsonl, and the divergence by tenth of the response.

    `kl_by_position` has ten means in nats for "correct" and for "incorrect", the verdict of y_o. A tenth without a
    position is None; all of it is None if train.jsonl has no positions.
    """

    node: str
    arm: str
    round: int | None
    seed: Seed
    steps: Sequence[Mapping[str, Any]]
    kl_by_position: Mapping[str, Sequence[float | None]] | None

    def mean(self, key: str, which: Literal["first", "last", "all"]) -> float | None:
        """Return the mean over all steps, or the first or last tenth, at least one, weighted by their trajectories.

        Returns None if none of these steps has the key. The last step of an epoch may have fewer rows than the others.
        """
        n = max(1, len(self.steps) // 10)
        steps = {"first": self.steps[:n], "last": self.steps[-n:], "all": self.steps}[which]
        known = [(step[key], step["trajectories"]) for step in steps if step.get(key) is not None]
        return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a set that an arm trains on: the rows in `subset` that satisfy `where`."""

    arm: str
    subset: str
    where: str | None


@dataclass(frozen=True, slots=True)
class SetRef:
    """A trajectory set of the run: `kind` is "rollout" or "refined". `parents` are the sets of a refined one's
    rollouts.

    `selections` belong to the arms whose training along this set has begun. `users` names all arms that need the set,
    with their run in a report on two.
    """

    node: str
    arm: str | None
    round: int | None
    seed: Seed
    kind: str
    path: Path
    parents: tuple[Path, ...] = ()
    selections: tuple[Selection, ...] = ()
    users: str = "all arms"


@dataclass(frozen=True)
class Evaluation:
    """The content of one results.json, and the arm, round and seed it belongs to."""

    node: str
    arm: str
    round: int | None
    seed: Seed
    results: Mapping[str, Any]


@dataclass(frozen=True)
class ReportData:
    """All figures of a report. `missing` has a line for each missing part, with the reason if known. `notes` has other
    remarks for the reader, such as pairs that could not be compared.

    `diagnoses` are by the name of their directory.

    `runs` has one name, or two if runs A and B are compared; `directories` are theirs.
    """

    name: str
    runs: tuple[str, ...]
    directories: tuple[Path, ...]
    setting: str | None
    reference_arm: str | None
    nodes: tuple[NodeCost, ...]
    evaluations: tuple[Evaluation, ...]
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    refinements: tuple[Refinement, ...]
    trainings: tuple[Training, ...]
    sets: tuple[SetRef, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()
    diagnoses: Mapping[str, Diagnosis] = field(default_factory=dict)

    def arms(self) -> list[str]:
        """Return every arm that has a score or a training, base first, then in order of appearance."""
        found = dict.fromkeys([*(s.arm for s in self.scores), *(t.arm for t in self.trainings)])
        return sorted(found, key=lambda arm: not _is_base(arm))

    def last_scores(self) -> Iterator[Score]:
        """Return the scores of every arm after its last evaluated round."""
        last: dict[tuple[str, Seed], int] = {}
        for s in self.scores:
            key = (s.arm, s.seed)
            last[key] = max(last.get(key, -1), -1 if s.round is None else s.round)
        return (s for s in self.scores if (-1 if s.round is None else s.round) == last[s.arm, s.seed])


def _is_base(arm: str) -> bool:
    return arm == BASE or arm.endswith(f"/{BASE}")
