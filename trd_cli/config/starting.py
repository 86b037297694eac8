"""Declare the options of `trd init`."""

from __future__ import annotations

from typing import Literal

from trd_cli.config.base import Config, option
from trd_cli.config.commands import Preset
from trd_cli.config.generating import EngineName


class InitConfig(Config):
    directory: str = option(".", "Output", "Directory to write recipe.toml into.", argument=True, rows=False)
    student: str = option(
        "smollm2-135m",
        "Model",
        "Student: directory, Hub name, smollm2-135m.",
        flags=("--student", "-s"),
        rows=False,
    )
    teacher: str | None = option(
        None,
        "Model",
        "A stronger model that teaches (opd). Default: the student itself, with the reference in view (opsd).",
        flags=("--teacher", "-t"),
        rows=False,
    )
    problems: str = option(
        "arithmetic",
        "Input",
        "arithmetic or reasoning-gym, which are generated; a Parquet file of trd data; another file or a Hub dataset, as for trd data import; or a --preset whose home on the Hub trd knows: gsm8k, deepscaler, taco, deepcoder.",
        flags=("--problems", "-p"),
        rows=False,
    )
    preset: Preset | None = option(
        None, "Input", "Columns and answer format of --problems, where that is imported.", rows=False
    )
    bench: str | None = option(
        None,
        "Input",
        "Benchmarks, as for trd eval. Default: by the task of the problems; none for tasks of your own.",
        flags=("--bench", "-b"),
        rows=False,
    )
    engine: Literal["auto", EngineName] = option("auto", "Engine", "Program that generates.", rows=False)
    overwrite: bool = option(False, "Output", "Replace the files that are there.", flags=("--overwrite",), rows=False)

    @property
    def setting(self) -> Literal["opd", "opsd"]:
        """Return the setting: opd with a teacher."""
        return "opd" if self.teacher else "opsd"
