"""Declare the options of `trd diagnose --recover`. None of them decides a figure of the diagnosis itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from trd_cli.config.base import NotNegative, Positive, numbers, option
from trd_cli.config.generating import SamplingOptions
from trd_cli.config.grading import GraderConfig
from trd_cli.errors import InputError, flag

_CUT = Annotated[float, Field(gt=0, lt=1)]


class RecoverOptions(GraderConfig):
    recover: bool = option(
        False,
        "Recovery",
        "Cut wrong rollouts, let models go on from there, and grade that: sets in recovery/ of the output.",
        rows=False,
    )
    recover_by: Literal["teacher", "both"] = option(
        "teacher", "Recovery", "Who goes on: the teacher, or the student too.", rows=False
    )
    recover_cuts: Annotated[tuple[_CUT, ...], BeforeValidator(numbers), Field(min_length=1)] = option(
        (0.2, 0.4, 0.6, 0.8),
        "Recovery",
        "Shares of a response, comma-separated: it is cut at the line break nearest to each.",
        rows=False,
    )
    recover_samples: Positive = option(4, "Recovery", "Continuations of each prefix.", rows=False)
    recover_limit: Positive | None = option(
        None, "Recovery", "Cut only the first wrong rows by id, this many.", rows=False
    )
    recover_temperature: NotNegative = option(0.6, "Recovery", "0 is greedy.", rows=False)
    recover_max_tokens: Positive = option(16384, "Recovery", "Most new tokens of a continuation.", rows=False)
    recover_engine: Literal["auto", "transformers", "vllm"] = option(
        "auto", "Recovery", "Program that generates, as --engine of trd sample.", rows=False
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> RecoverOptions:
        for name in RecoverOptions.model_fields if not self.recover else ():
            if getattr(self, name) != type(self).model_fields[name].get_default():
                raise InputError(
                    f"{flag(name)} without {flag('recover')}",
                    f"{flag('recover')}, which reads it",
                    f"add {flag('recover')}, or leave {flag(name)} out",
                )
        return self

    def continuing(self) -> SamplingOptions:
        """Return how continuations are sampled."""
        return SamplingOptions(temperature=self.recover_temperature, max_tokens=self.recover_max_tokens)
