"""Declare the options of the commands that exchange trajectories with other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trd_cli.config.base import InputOptions, Positive, SelectOptions, option
from trd_cli.errors import InputError, flag

ExportFormat = Literal["messages", "prompt-completion", "sharegpt", "verl", "nemo", "preference"]
FileType = Literal["jsonl", "parquet"]
Pairs = Literal["refined", "samples"]
_ENDINGS: dict[str, FileType] = {".jsonl": "jsonl", ".parquet": "parquet"}


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
        if Path(self.out).suffix == ".json":
            raise InputError(f"{flag('out')} {self.out}", "a name in .jsonl or .parquet, or a directory", "change it")
        return self
