"""Declare the options of evaluation, and of the commands around the five stages."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trd_cli.config.base import (
    AboveZero,
    Config,
    InputOptions,
    NonNegative,
    NotNegative,
    OutputOptions,
    Positive,
    RunStage,
    option,
    pairs,
)
from trd_cli.config.generating import EngineOptions, RenderOptions
from trd_cli.config.grading import GraderConfig
from trd_cli.errors import InputError


class EvalConfig(OutputOptions, EngineOptions, RenderOptions, GraderConfig):
    model: str | None = option(
        None,
        "Input",
        argument=True,
        help="Model: a directory, a Hub name, smollm2-135m or scripted. None, or -: read it from standard input.",
        rows=False,
    )
    model_flag: str | None = option(
        None, "Input", flags=("--model", "-m"), help="The model, in place of the argument.", rows=False
    )
    bench: str | None = option(
        None,
        "Input",
        flags=("--bench", "-b"),
        help="Benchmarks, comma-separated: names that trd data list shows, also with options, as arithmetic:n=200,seed=2 or livecodebench:from=2025-02-01,to=2025-04-30; problem sets (Parquet); files as questions.jsonl:math or :code.",
        rows=False,
        decides=True,
    )
    k: Positive | None = option(
        None,
        "Input",
        flags=("--k", "-k"),
        help="Samples for each question. Default: 1, or with --rescore all.",
        rows=False,
        decides=True,
    )
    rescore: str | None = option(
        None,
        "Input",
        help="Directory of an earlier trd eval: grade and score its samples again without a model, the first --k of each question. Replaces its results, or writes to --out.",
        rows=False,
    )
    limit: Positive | None = option(
        None, "Input", help="Ask only the first questions, this many.", rows=False, decides=True
    )
    # These four decide rows too, as resolved for each benchmark.
    temperature: NotNegative | None = option(
        None, "Sampling", help="0 is greedy. Default: the benchmark's.", rows=False, decides=True
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = option(
        None,
        "Sampling",
        help="Sample from the smallest set of tokens with this probability. Default: the benchmark's.",
        rows=False,
        decides=True,
    )
    top_k: NonNegative | None = option(
        None,
        "Sampling",
        help="Sample from this many most likely tokens; 0: all. Default: the benchmark's.",
        rows=False,
        decides=True,
    )
    max_tokens: Positive | None = option(
        None, "Sampling", help="Most new tokens of a response. Default: the benchmark's.", rows=False, decides=True
    )
    seed: int = option(0, "Sampling", help="Each row's seed is made from this one and from the row's identity.")

    @property
    def samples(self) -> int:
        """Return the samples for each question where the evaluation generates them."""
        return self.k or 1

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("model_flag") is None:
            return values
        argument, flag = values.get("model"), values["model_flag"]
        if argument not in (None, flag):
            raise InputError(f"the models {argument} and --model {flag}", "one", "leave one out")
        return values | {"model": flag}

    @model_validator(mode="after")
    def _generates_or_rescores(self) -> EvalConfig:
        if self.rescore is None:
            if self.bench is None:
                raise InputError("no --bench", "a benchmark, or --rescore DIR", "add --bench NAME")
            return self
        for name, field in type(self).model_fields.items():
            if name not in _READ_BY_RESCORE and getattr(self, name) != field.get_default():
                flag = "the model" if name == "model" else self.flag(name)
                raise InputError(f"{flag} with --rescore", "options of grading and scoring only", f"leave {flag} out")
        return self


_READ_BY_RESCORE = {"rescore", "k", "out", "max_errors", "dry_run", *GraderConfig.model_fields}


class RunConfig(Config):
    recipe: str = option(..., "Input", argument=True, help="Recipe (TOML).", rows=False)
    out: str | None = option(None, "Output", help="Run directory. Default: trd-runs/<name of the recipe>.", rows=False)
    from_stage: RunStage | None = option(
        None,
        "Stages",
        flags=("--from",),
        help="Do this stage again, and all that is made from it. Its old outputs are removed when the run starts.",
        rows=False,
    )
    until: RunStage | None = option(None, "Stages", help="Stop after this stage.", rows=False)
    only: tuple[str, ...] = option((), "Stages", help="Run only this arm, with all it needs (repeatable).", rows=False)
    dry_run: bool = option(
        False,
        "Output",
        help="Print what is done, what would run, and the first rendered prompt of each stage, then stop.",
        rows=False,
    )


class PlanConfig(Config):
    recipe: str = option(..., "Input", argument=True, help="Recipe (TOML).", rows=False)
    directory: str | None = option(
        None,
        "Input",
        flags=("--run",),
        help="Run directory: use the rollouts and rates that it already has. Default: that of trd run.",
        rows=False,
    )
    out: str | None = option(None, "Output", help="Also write the findings to this JSON file.", rows=False)
    sample_rate: AboveZero | None = option(
        None,
        "Machine",
        help="Response tokens a second of sample, refine and eval. Default: as measured in the run directory.",
        rows=False,
    )
    train_rate: AboveZero | None = option(
        None,
        "Machine",
        help="Response tokens a second of distill. Default: as measured in the run directory.",
        rows=False,
    )
    gpu_memory: AboveZero | None = option(
        None, "Machine", help="GiB of one device: a stage that needs more is an error.", rows=False
    )
    fsdp: Positive = option(
        1,
        "Machine",
        help="Processes that share the weights of a training (accelerate launch --use_fsdp --fsdp_version 2).",
        rows=False,
    )


class CompareConfig(Config):
    a: str = option(..., "Input", argument=True, help="Directory of trd eval, or its results.json.", rows=False)
    b: str = option(..., "Input", argument=True, help="The other one: differences are B - A.", rows=False)
    k: Positive | None = option(
        None,
        "Comparison",
        flags=("--k", "-k"),
        help="Compare only the first samples of each question, this many. Default: as many as both have.",
        rows=False,
    )
    out: str | None = option(
        None, "Output", help="Also write compare.json, compare.md and compare.csv to this directory.", rows=False
    )


class ReportConfig(Config):
    runs: tuple[str, ...] = option(
        ..., "Input", argument=True, help="Run directory; or two, A and B: differences are B - A.", rows=False
    )
    out: str | None = option(
        None,
        "Output",
        help="Directory to write to. Default: report in the run directory; for two runs, report-against-A in B.",
        rows=False,
    )
    nll: Positive | None = option(
        None,
        "Model",
        help="Score y_o, y_r and y* of this many rows of each refined set with the student that wrote y_o.",
        rows=False,
    )
    device: str = option(
        "auto", "Model", help="Device for --nll: cpu, cuda or mps. auto: the fastest on this machine.", rows=False
    )

    @model_validator(mode="after")
    def _one_or_two(self) -> ReportConfig:
        if not 1 <= len(self.runs) <= 2:
            raise InputError(f"{len(self.runs)} run directories", "one, or two to compare", "name one or two")
        return self


class MakeConfig(Config):
    kind: Literal["arithmetic"] = option(
        ...,
        "Input",
        argument=True,
        help="Generator: arithmetic makes word problems with worked solutions.",
        rows=False,
        decides=True,
    )
    n: Positive = option(1000, "Input", flags=("--n", "-n"), help="Number of problems.", rows=False, decides=True)
    seed: int = option(0, "Input", help="Seed: another one gives other problems.", rows=False, decides=True)
    level: Annotated[int, Field(ge=1, le=3)] = option(
        1, "Input", help="Steps to solve a problem: 1 to 3.", rows=False, decides=True
    )
    out: str = option(..., "Output", help="Parquet file to write.", rows=False)


def _columns(value: Any) -> Any:
    """Split as `pairs` does, also several in one string: `problem=prompt,answer=reward_model.ground_truth`."""
    if not isinstance(value, (list, tuple)):
        return value
    return pairs([part for item in value for part in re.split(r",\s*(?=\w+=)", str(item))])


Columns = Annotated[dict[str, str], BeforeValidator(_columns)]
Preset = Literal[
    "gsm8k",
    "math",
    "deepscaler",
    "verl",
    "messages",
    "sharegpt",
    "taco",
    "leetcode",
    "code_contests",
    "deepcoder",
    "mbpp",
]


class ImportConfig(Config):
    file: str = option(
        ...,
        "Input",
        argument=True,
        help="JSONL, JSON, CSV or Parquet file, or a Hub dataset: owner/name or owner/name:subset.",
        rows=False,
        decides=True,
    )
    out: str = option(..., "Output", help="Parquet file to write.", rows=False)
    preset: Preset | None = option(
        None, "Input", help="Columns and answer format of a known set.", rows=False, decides=True
    )
    map: Columns = option(
        {},
        "Input",
        help="FIELD=COLUMN (several by commas, or repeated). COLUMN may be a path: answer=reward_model.ground_truth.",
        rows=False,
        decides=True,
    )
    no_answers: bool = option(
        False, "Input", help="Accept a set of mathematics without any reference answer.", rows=False
    )
    task: Literal["math", "code"] | None = option(
        None, "Input", help="Task of all rows. Default: the preset's, else math.", rows=False, decides=True
    )
    source: str | None = option(
        None,
        "Input",
        help="Name of the set, written to every row. Default: the preset's or the file's name.",
        rows=False,
        decides=True,
    )
    split: str = option("train", "Input", help="Split of a Hub dataset.", rows=False, decides=True)
    limit: Positive | None = option(
        None, "Input", help="Keep this many rows, after shuffling.", rows=False, decides=True
    )
    shuffle_seed: int | None = option(None, "Input", help="Shuffle with this seed first.", rows=False, decides=True)


class ListConfig(Config):
    """`trd data list` has no options."""


class ShowConfig(InputOptions):
    id: str | None = option(
        None, "Input", help="Trajectory id, or its first characters. Default: the first row.", rows=False
    )
    tokens: bool = option(False, "Output", help="Also print token ids.", rows=False)


class OverlapConfig(Config):
    train: str = option(
        ...,
        "Input",
        argument=True,
        help="Training set: a problem set (Parquet), or a trajectory set (directory or shard).",
        rows=False,
    )
    bench: tuple[str, ...] = option(
        ...,
        "Input",
        argument=True,
        help="Benchmarks as for --bench of trd eval, or problem sets; several, or comma-separated.",
        rows=False,
    )
    n: Literal[8, 13] = option(
        13,
        "Comparison",
        flags=("--n", "-n"),
        help="List and drop a row that shares so many words in sequence with a question: 8 or 13.",
    )
    common: NonNegative = option(
        10,
        "Comparison",
        help="Ignore n-grams that more training problems than this have, or more questions of a benchmark; 0: none.",
    )
    responses: bool = option(False, "Comparison", help="Compare the responses of a trajectory set too.")
    drop: str | None = option(
        None, "Output", help="Write the problem set without the listed rows to this Parquet file.", rows=False
    )
    out: str | None = option(
        None, "Output", help="Write all matches of 8 and of 13 words to this JSON file.", rows=False
    )
