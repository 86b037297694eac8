"""From a benchmark's name to its questions."""

from __future__ import annotations

import re
from pathlib import Path

from trd_cli.datasets.arithmetic import make_arithmetic
from trd_cli.errors import InputError
from trd_cli.records import Problem
from trd_cli.shards import read_problems

_ARITHMETIC = {"n": 200, "seed": 2, "level": 1}


def load_benchmark(name: str) -> list[Problem]:
    """`arithmetic[:n=200,seed=2,level=1]` or the path of a problem set; InputError for anything else."""
    kind, _, rest = name.partition(":")
    if kind == "arithmetic":
        return make_arithmetic(**_arguments(name, rest))
    if name.endswith(".parquet"):
        return read_problems(Path(name))
    raise InputError(
        f"no benchmark {name!r}",
        "arithmetic[:n=200,seed=2,level=1] or a problem set (.parquet)",
        "check --bench",
    )


def _arguments(name: str, text: str) -> dict[str, int]:
    values = dict(_ARITHMETIC)
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in values or not re.fullmatch(r"-?\d+", value):
            raise InputError(
                f"--bench {name}: {part!r}", "n=, seed= or level= with whole numbers", "check --bench"
            )
        values[key] = int(value)
    return values
