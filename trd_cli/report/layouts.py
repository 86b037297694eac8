"""The keys of a run's JSON files that a report needs, checked before a figure is computed. Other keys are allowed.

The writers document the layouts: `trd_cli.evaluation.results` (results.json), `trd_cli.recipes.nodes` (graph.json),
`trd_cli.training.trainer` (train.jsonl), `trd_cli.trajectories.stage_dir` (sessions.jsonl).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, RootModel, ValidationError, model_validator

from trd_cli.errors import InputError

Layout = TypeVar("Layout", bound=BaseModel)


class Entry(BaseModel):
    """A node in graph.json."""

    name: str
    stage: str
    out: str
    inputs: list[str]
    digest: str
    arm: str | None = None
    arms: list[str] = []
    round: int | None = None
    seed: int | None = None


class Graph(BaseModel):
    """graph.json."""

    name: str
    recipe: dict[str, Any] | None = None
    nodes: list[Entry]


class Statuses(RootModel[dict[str, dict[str, Any]]]):
    """status.json."""


class Estimate(BaseModel):
    """A score in results.json."""

    value: float | None
    low: float | None
    high: float | None
    questions: int


class Benchmark(BaseModel):
    """A benchmark in results.json."""

    sha256: str
    scores: dict[str, Estimate]
    samples: dict[str, Annotated[str, Field(pattern=r"^[10.]+$")]]
    truncated: float
    no_answer: float
    error: float
    timeout: float


class Results(BaseModel):
    """results.json."""

    model_revision: str
    k: int
    benchmarks: dict[str, Benchmark]

    @model_validator(mode="after")
    def _k_samples_each(self) -> Results:
        for name, bench in self.benchmarks.items():
            if any(len(marks) != self.k for marks in bench.samples.values()):
                raise ValueError(f"a question of {name} has not {self.k} samples")
        return self


class Step(BaseModel):
    """A line of train.jsonl."""

    step: int
    loss: float
    grad_norm: float
    trajectories: int
    response_tokens: int
    seconds: float
    peak_memory_gib: float


class Session(BaseModel):
    """A line of sessions.jsonl. A missing figure is unknown."""

    seconds: float | None = None
    at_work: float | None = None
    tokens: int | None = None


def checked(layout: type[Layout], value: Any, what: Path | str) -> Layout:
    """Return the value as `layout`.

    Raises InputError that names the file `what` and the first key that is missing or of another type.
    """
    try:
        return layout.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"{what}: {place}: {first['msg'].lower()}", "a file as this trd writes it", "run trd run again"
        ) from None
