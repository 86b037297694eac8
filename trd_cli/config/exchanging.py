"""Declare the options of trd export and trd data import-rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from trd_cli.config.base import (
    InputOptions,
    NonNegative,
    NotNegative,
    OutputOptions,
    Positive,
    SelectOptions,
    later,
    option,
)
from trd_cli.config.commands import Columns, is_task
from trd_cli.config.generating import RenderOptions
from trd_cli.errors import InputError, flag
from trd_cli.hub.names import is_hub_name

ExportFormat = Literal["messages", "prompt-completion", "sharegpt", "verl", "nemo", "preference"]
FileType = Literal["jsonl", "parquet"]
Pairs = Literal["refined", "samples"]
_ENDINGS: dict[str, FileType] = {".jsonl": "jsonl", ".parquet": "parquet"}
# Names that are meant as files of other types, or in other letters.
_NO_DIRECTORIES = {".json", ".gz", ".csv", ".zst", *_ENDINGS}
RolloutForm = Literal["messages", "verifiers", "lm-eval", "nemo-skills", "openai-batch", "evalplus"]


class ExportConfig(InputOptions, SelectOptions):
    format: ExportFormat = option(
        ...,
        "Method",
        "Columns of the rows: messages, prompt-completion and preference for TRL, sharegpt, verl, nemo (NeMo RL).",
    )
    pairs: Pairs | None = option(
        None,
        "Method",
        "Pairs of preference: refined (y_r right, its y_o wrong) or samples (right and wrong rollouts of one problem). Default: refined where there are refined rows.",
    )
    max_pairs: Positive = option(4, "Method", "Most pairs of preference of one problem.")
    out: str = option(
        ..., "Output", "File to write, by its ending .jsonl or .parquet; any other name is a directory of files."
    )
    file_type: FileType | None = option(None, "Output", "Type of the files in a directory. Default: parquet.")
    file_rows: Positive = option(10_000, "Output", "Rows a file of a directory.")
    split: Annotated[str, Field(pattern=r"^\w+$")] = option(
        "train", "Output", "Split: the beginning of the names in a directory, and extra_info.split of verl."
    )

    @property
    def is_file(self) -> bool:
        """Return whether --out names one file."""
        return Path(self.out).suffix in _ENDINGS

    @property
    def type(self) -> FileType:
        """Return the type of the files to write."""
        return _ENDINGS.get(Path(self.out).suffix) or self.file_type or "parquet"

    @model_validator(mode="after")
    def _fit(self) -> ExportConfig:
        for name in ("pairs", "max_pairs"):
            if self.format != "preference" and getattr(self, name) != type(self).model_fields[name].get_default():
                raise InputError(
                    f"{flag(name)} with {flag('format')} {self.format}",
                    "options of its format",
                    f"leave {flag(name)} out, or take {flag('format')} preference",
                )
        if self.file_type not in (None, self.type):
            raise InputError(
                f"{flag('out')} {self.out} with {flag('file_type')} {self.file_type}",
                "one type",
                f"leave {flag('file_type')} out",
            )
        if Path(self.out).suffix.lower() in _NO_DIRECTORIES and not self.is_file:
            raise InputError(f"{flag('out')} {self.out}", "a name in .jsonl or .parquet, or a directory", "change it")
        if is_hub_name(self.out):
            raise InputError(
                f"{flag('out')} {self.out}", "a place on this machine", "upload the file that is written there"
            )
        return self


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
