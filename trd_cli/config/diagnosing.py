"""Declare the options of `trd diagnose`: the two models, the teacher's context, and how rows are scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from trd_cli.config.base import InputOptions, OutputOptions, Positive, SelectOptions, option
from trd_cli.config.generating import EngineOptions, replicas_text
from trd_cli.config.recovering import RecoverOptions
from trd_cli.config.training import Context, PassOptions


class ScoringOptions(PassOptions):
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto",
        "Engine",
        "Type of weights and products. auto: float32 on a CPU, else bfloat16; with --ray, by this machine. In float32 each row is read by itself.",
    )
    replicas: Annotated[str, BeforeValidator(replicas_text)] = option(
        "1",
        "Engine",
        "Copies of both models, each on a device of its own. auto: as many as the visible GPUs allow (with --ray: the cluster's).",
        rows=False,
    )
    ray: str | None = option(
        None, "Engine", "Ray cluster that runs the replicas: auto (the one of this machine) or HOST:PORT.", rows=False
    )


class DiagnoseConfig(OutputOptions, InputOptions, SelectOptions, ScoringOptions, RecoverOptions):
    student: str | None = option(
        None,
        "Model",
        "Student. Default: the model that wrote the rollouts.",
        flags=("--student", "--model", "-m"),
        rows=False,
    )
    teacher: str | None = option(
        None,
        "Model",
        "Teacher. Default: the model that refined; for opsd the student itself.",
        flags=("--teacher", "-t"),
        rows=False,
    )
    setting: Literal["opd", "opsd"] | None = option(
        None,
        "Method",
        "opsd: the teacher's context shows the reference too. Default: that of the refined rows, else opd.",
    )
    teacher_context: Context = option(
        "vanilla",
        "Method",
        "Context of the teacher before every response: the problem alone (opsd: and the reference), or the refinement prompt, which shows the attempt.",
    )
    prompt: str | None = option(None, "Prompt", "Template of the teacher's context, instead of the built-in one.")
    onset: str | None = option(
        None,
        "Method",
        "Words with which a text turns back, one a line; the first token of each is an onset token. Default: prompts/onset.txt.",
        rows=False,
    )
    limit: Positive | None = option(
        None, "Input", "Score only the first attempts by id, this many, and what was made of them.", decides=True
    )
    max_length: Positive | None = option(
        None, "Prompt", "Longest context + response, in tokens. Default: what both models take."
    )
    overflow: Literal["trim", "error"] = option(
        "trim",
        "Prompt",
        "Longer rows: cut the attempt's tail in the teacher's context, then the reference's; or count the row as an error.",
    )

    def scoring(self) -> ScoringOptions:
        """Return the options of scoring alone."""
        return ScoringOptions(**{name: getattr(self, name) for name in ScoringOptions.model_fields})

    def generating(self, dtype: str) -> EngineOptions:
        """Return how --recover generates: on the devices and replicas that score."""
        return EngineOptions(
            engine=self.recover_engine, dtype=dtype, device=self.device, replicas=self.replicas, ray=self.ray
        )
