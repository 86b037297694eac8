"""Declare the options of evaluation, and of the commands around the five stages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from trd_cli.config.base import (
    AboveZero,
    ArrayOptions,
    Config,
    InputOptions,
    NonNegative,
    NotNegative,
    OutputOptions,
    Positive,
    RunStage,
    Texts,
    joined_pairs,
    option,
)
from trd_cli.config.generating import EngineOptions, EpisodeOptions, RenderOptions
from trd_cli.config.grading import GraderConfig
from trd_cli.errors import InputError, flag
from trd_cli.records import EPISODE, TASK_NAME


class EvalConfig(OutputOptions, ArrayOptions, EngineOptions, EpisodeOptions, RenderOptions, GraderConfig):
    model: str | None = option(
        None,
        "Input",
        "Model: directory, Hub name, smollm2-135m, scripted. None, or -: from standard input.",
        argument=True,
        rows=False,
    )
    model_flag: str | None = option(
        None, "Input", "The model, in place of the argument.", flags=("--model", "-m"), rows=False
    )
    bench: str | None = option(
        None,
        "Input",
        "Benchmarks, comma-separated: names that trd data list shows, also with options, as arithmetic:n=200,seed=2, reasoning-gym:tasks=chain_sum+countdown,n=50,seed=7 or livecodebench:from=2025-02-01,to=2025-04-30; problem sets (Parquet); files as questions.jsonl:math, :code or :TASK.",
        flags=("--bench", "-b"),
        decides=True,
    )
    env: Texts = option(
        (),
        "Input",
        "Environment of episodes, beside or in place of --bench (repeatable): NAME:KEY=VALUE,… as for trd sample.",
        decides=True,
        counts_unset=False,
    )
    n: Positive | None = option(
        None,
        "Input",
        "Episodes of each --env, in place of the n that it names.",
        flags=("--n", "-n"),
        decides=True,
        counts_unset=False,
    )
    k: Positive | None = option(
        None,
        "Input",
        "Samples for each question or episode. Default: 1, with --rescore all.",
        flags=("--k", "-k"),
        decides=True,
    )
    rescore: str | None = option(
        None,
        "Input",
        "Directory of trd eval: grade and score its samples again without a model, the first --k of each question; its results are replaced, or written to --out.",
        rows=False,
    )
    limit: Positive | None = option(None, "Input", "Ask only the first questions, this many.", decides=True)
    # These four decide rows too, as resolved for each benchmark.
    temperature: NotNegative | None = option(None, "Sampling", "0 is greedy. Default: the benchmark's.", decides=True)
    top_p: Annotated[float, Field(gt=0, le=1)] | None = option(
        None, "Sampling", "Keep the fewest tokens of this total probability. Default: the benchmark's.", decides=True
    )
    top_k: NonNegative | None = option(
        None, "Sampling", "Keep this many of the likeliest tokens; 0: all. Default: the benchmark's.", decides=True
    )
    max_tokens: Positive | None = option(
        None, "Sampling", "Most new tokens of a response. Default: the benchmark's.", decides=True
    )
    seed: int = option(0, "Sampling", "Each row's seed is made from this one and from the row's identity.")

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
            if not self.bench and not self.env:
                raise InputError("no --bench", "a benchmark, --env SPEC or --rescore DIR", "add --bench NAME")
            if not self.env:
                self.check_without_episodes("--env", "n")
            return self
        for name, field in type(self).model_fields.items():
            if name not in _READ_BY_RESCORE and getattr(self, name) != field.get_default():
                flag = "the model" if name == "model" else self.flag(name)
                raise InputError(f"{flag} with --rescore", "options of grading and scoring only", f"leave {flag} out")
        return self


_READ_BY_RESCORE = {"rescore", "k", "out", "max_errors", "dry_run", *GraderConfig.model_fields}


class RunConfig(Config):
    recipe: str = option(..., "Input", "Recipe (TOML).", argument=True, rows=False)
    out: str | None = option(None, "Output", "Run directory. Default: trd-runs/<name of the recipe>.", rows=False)
    from_stage: RunStage | None = option(
        None, "Input", "Redo this stage and what is made from it; removes old outputs.", flags=("--from",), rows=False
    )
    until: RunStage | None = option(None, "Input", "Stop after this stage.", rows=False)
    only: tuple[str, ...] = option((), "Input", "Run only this arm, with all it needs (repeatable).", rows=False)
    tracker: tuple[Literal["wandb", "trackio"], ...] = option(
        (), "Output", "Log scores, verdicts, training curves and cost to wandb or trackio (repeatable).", rows=False
    )
    tracker_project: Annotated[str, Field(min_length=1)] = option("trd", "Output", "The tracker's project.", rows=False)
    dry_run: bool = option(
        False, "Output", "Print what is done and what would run, with each stage's first prompt, then stop.", rows=False
    )


class PlanConfig(Config):
    recipe: str = option(..., "Input", "Recipe (TOML).", argument=True, rows=False)
    directory: str | None = option(
        None, "Input", "Run directory with rollouts and rates to use. Default: trd run's.", flags=("--run",), rows=False
    )
    out: str | None = option(None, "Output", "Also write the findings to this JSON file.", rows=False)
    sample_rate: AboveZero | None = option(
        None, "Engine", "Response tokens a second of one engine. Default: as measured in --run.", rows=False
    )
    train_rate: AboveZero | None = option(
        None, "Engine", "Response tokens a second of one training process. Default: as measured in --run.", rows=False
    )
    gpu_memory: AboveZero | None = option(
        None, "Engine", "GiB of one device: a stage that needs more is an error.", rows=False
    )
    fsdp: Positive = option(1, "Engine", "Processes that share the weights of a training (FSDP version 2).", rows=False)


class CompareConfig(Config):
    a: str = option(..., "Input", "Directory of trd eval, or its results.json.", argument=True, rows=False)
    b: str = option(..., "Input", "The other one: differences are B - A.", argument=True, rows=False)
    k: Positive | None = option(
        None, "Method", "Samples a question to compare. Default: all that both have.", flags=("--k", "-k"), rows=False
    )
    out: str | None = option(
        None, "Output", "Also write compare.json, compare.md and compare.csv to this directory.", rows=False
    )


class ReportConfig(Config):
    runs: tuple[str, ...] = option(
        ...,
        "Input",
        "Run directory, or directory of trd diagnose; or two, A and B: differences are B - A.",
        argument=True,
        rows=False,
    )
    out: str | None = option(
        None, "Output", "Directory to write to. Default: report in the run, or report-against-A in B.", rows=False
    )
    nll: Positive | None = option(
        None, "Model", "Score y_o, y_r, y* of this many rows a refined set with the student that wrote y_o.", rows=False
    )
    device: str = option(
        "auto", "Model", "Device for --nll: cpu, cuda or mps. auto: the fastest on this machine.", rows=False
    )

    @model_validator(mode="after")
    def _one_or_two(self) -> ReportConfig:
        if not 1 <= len(self.runs) <= 2:
            raise InputError(f"{len(self.runs)} run directories", "one, or two to compare", "name one or two")
        return self


class StatusConfig(Config):
    directories: tuple[str, ...] = option(
        ..., "Input", "Trajectory sets, evaluations, checkpoints or run directories.", argument=True, rows=False
    )


class MakeConfig(Config):
    kind: Literal["arithmetic", "reasoning-gym"] = option(
        ...,
        "Input",
        "Generator: arithmetic (word problems with solutions), reasoning-gym (tasks with graders of their own).",
        argument=True,
        decides=True,
    )
    n: Positive = option(
        1000, "Input", "Number of problems; of reasoning-gym, of each task.", flags=("--n", "-n"), decides=True
    )
    seed: int = option(0, "Input", "Seed: another one gives other problems.", decides=True)
    level: Annotated[int, Field(ge=1, le=3)] = option(
        1, "Input", "Steps to solve a problem of arithmetic: 1 to 3.", decides=True
    )
    tasks: str | None = option(
        None,
        "Input",
        "Tasks of reasoning-gym, comma-separated. Default: those with short answers.",
        decides=True,
        counts_unset=False,
    )
    out: str = option(..., "Output", "Parquet file to write.", rows=False)

    @model_validator(mode="after")
    def _options_of_its_kind(self) -> MakeConfig:
        other = "tasks" if self.kind == "arithmetic" else "level"
        if getattr(self, other) != type(self).model_fields[other].get_default():
            raise InputError(f"{flag(other)} with {self.kind}", "options of its kind", f"leave {flag(other)} out")
        return self

    def task_names(self) -> list[str]:
        """Return the tasks that are named."""
        return [name.strip() for name in self.tasks.split(",")] if self.tasks else []


def is_task(text: str) -> str:
    """Return the name of a task that rows of a file can have; raises ValueError for any other text."""
    if not TASK_NAME.fullmatch(text) or text == EPISODE:
        raise ValueError("math, code, or a name of lower-case letters, digits, - and _")
    return text


Columns = Annotated[dict[str, str], BeforeValidator(joined_pairs)]
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
        "JSONL, JSON, CSV or Parquet file, or Hub dataset owner/name[:subset].",
        argument=True,
        decides=True,
    )
    out: str = option(..., "Output", "Parquet file to write.", rows=False)
    preset: Preset | None = option(None, "Input", "Columns and answer format of a known set.", decides=True)
    map: Columns = option(
        {}, "Input", "FIELD=COLUMN, comma-separated or repeated; COLUMN may be a path: answer=a.b.", decides=True
    )
    no_answers: bool = option(False, "Input", "Accept a set of mathematics without any reference answer.", rows=False)
    task: Annotated[str, AfterValidator(is_task)] | None = option(
        None,
        "Input",
        "Task of all rows: math, code, or a name of your own, for trd verify --grader. Default: the preset's, else math.",
        decides=True,
    )
    source: str | None = option(
        None, "Input", "Name of the set in its rows. Default: the preset's or the file's name.", decides=True
    )
    split: str = option("train", "Input", "Split of a Hub dataset.", decides=True)
    limit: Positive | None = option(None, "Input", "Keep this many rows, after shuffling.", decides=True)
    shuffle_seed: int | None = option(None, "Input", "Shuffle with this seed first.", decides=True)


class ListConfig(Config):
    """`trd data list` has no options."""


class DiffConfig(InputOptions):
    id: str | None = option(
        None, "Input", "Trajectory id, or its first characters. Default: the first row.", rows=False
    )


class ShowConfig(DiffConfig):
    tokens: bool = option(False, "Output", "Also print token ids.", rows=False)


class OverlapConfig(Config):
    train: str = option(
        ...,
        "Input",
        "Problem set (Parquet) or trajectory set (directory, shard), also hf://datasets/…",
        argument=True,
        rows=False,
    )
    bench: tuple[str, ...] = option(
        ..., "Input", "Benchmarks as for trd eval, or problem sets; also comma-separated.", argument=True, rows=False
    )
    n: Literal[8, 13] = option(
        13,
        "Method",
        "List (and drop) rows that share this many words in sequence with a question.",
        flags=("--n", "-n"),
    )
    common: NonNegative = option(
        10, "Method", "Ignore n-grams in more training problems, or questions of a benchmark, than this; 0: none."
    )
    responses: bool = option(False, "Method", "Compare the responses of a trajectory set too.")
    drop: str | None = option(
        None, "Output", "Write the problem set without the listed rows to this Parquet file.", rows=False
    )
    out: str | None = option(None, "Output", "Write all matches of 8 and of 13 words to this JSON file.", rows=False)
