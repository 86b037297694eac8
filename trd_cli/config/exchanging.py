"""Declare the options of trd export and trd data import-rollouts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from trd_cli.config.base import NonNegative, NotNegative, OutputOptions, Positive, later, option
from trd_cli.config.commands import Columns, is_task
from trd_cli.config.generating import RenderOptions
from trd_cli.errors import InputError

RolloutForm = Literal["messages", "verifiers", "lm-eval", "nemo-skills", "openai-batch", "evalplus"]


class ImportRolloutsConfig(RenderOptions):
    files: tuple[str, ...] = option(
        ..., "Input", "Files of responses: JSONL (also .gz), JSON, CSV or Parquet.", argument=True, rows=False
    )
    format: RolloutForm = option(..., "Input", "Form of the files.")
    problems: str | None = option(
        None,
        "Input",
        "Problem set (Parquet), or a benchmark as for trd eval: each row gets the problem with its text or id, and so references and tests; rows without one are left out. Default: the files' own fields.",
        flags=("--problems", "-p"),
        rows=False,
    )
    requests: str | None = option(
        None, "Input", "Of openai-batch: the input file, whose requests are joined by custom_id.", rows=False
    )
    map: Columns = option(
        {},
        "Input",
        "FIELD=COLUMN, comma-separated or repeated, as for trd data import; messages also takes response, finish_reason and model.",
    )
    task: Annotated[str, AfterValidator(is_task)] | None = option(
        None, "Input", "Task of all rows, as for trd data import. Default: math."
    )
    source: str | None = option(None, "Input", "Name of the problems' set in the rows. Default: the file's name.")
    limit: Positive | None = option(None, "Input", "Take only the first responses, this many.", decides=True)
    distinct: bool = option(
        False, "Input", "Leave out a response that repeats another one to the same problem, word by word."
    )
    round: NonNegative = option(0, "Input", "Number of the round; part of each row's identity.")
    model: str = option(
        ...,
        "Model",
        "Model whose chat template renders the prompts and whose tokenizer makes the ids: the student of the set. Directory, Hub name, smollm2-135m, scripted.",
        flags=("--model", "-m"),
        rows=False,
    )
    model_name: str | None = option(
        None,
        "Model",
        "Model that wrote the responses, in place of the one that the files name. Default of both: --model.",
    )
    temperature: NotNegative | None = option(None, "Sampling", "Where the files do not tell it; 0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = option(None, "Sampling", "Where the files do not tell it.")
    top_k: NonNegative | None = option(None, "Sampling", "Where the files do not tell it; 0: all.")
    max_tokens: Positive | None = option(None, "Sampling", "Most tokens of a response, where the files do not tell it.")
    finish: Literal["stop", "length"] = option(
        "stop",
        "Sampling",
        "How a response ended whose end the files do not tell: stop, by itself, with the end-of-turn token; length, cut off, without one. One of --max-tokens tokens counts as cut off.",
    )
    prompt_from: Literal["template", "file"] = option(
        "template",
        "Prompt",
        "template: the prompt of trd sample, in which the student will be trained and scored; file: the messages that the file has.",
    )
    out: str = option(..., "Output", "Directory to write to.", rows=False)
    shard_rows: Positive = later(OutputOptions, "shard_rows")
    shard_minutes: NotNegative = later(OutputOptions, "shard_minutes")
    max_errors: NotNegative = later(OutputOptions, "max_errors")
    dry_run: bool = option(False, "Output", "Print the first prompt and response, then stop.", rows=False)

    @property
    def retry_errors(self) -> bool:
        """Return False: what the same file gives again is the same error."""
        return False

    @model_validator(mode="after")
    def _of_its_form(self) -> ImportRolloutsConfig:
        if self.requests and self.format != "openai-batch":
            raise InputError(f"--requests with --format {self.format}", "openai-batch", "leave --requests out")
        if self.prompt and self.prompt_from == "file":
            raise InputError("--prompt with --prompt-from file", "one of them", "leave one out")
        return self
