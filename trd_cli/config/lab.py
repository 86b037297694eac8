"""Declare the options of `trd lab`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from trd_cli.config.base import Config, Positive, Share, numbers, option


class EstimatorsConfig(Config):
    gammas: Annotated[tuple[Share, ...], BeforeValidator(numbers), Field(min_length=1)] = option(
        (0.0, 0.25, 0.5, 0.75, 1.0), "Method", "Values of γ, from 0 to 1, comma-separated or repeated.", decides=True
    )
    seeds: Positive = option(3, "Method", "Seeds of each γ: 0, 1, 2, ...", decides=True)
    updates: Positive = option(300, "Training", "Updates of a student.")
    teacher_updates: Positive = option(300, "Training", "Updates of a teacher.")
    out: str | None = option(
        None, "Output", "Directory to write to. Default: trd-runs/lab-estimators-<digest of the options>.", rows=False
    )
