"""Checking the sections of a recipe against the stages' own options: every complaint names the file and the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig, ImportConfig, MakeConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.grading import VerifyConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError, UserError
from trd_cli.recipes.files import Table

# The problem set that the first node of a run writes.
PROBLEMS_FILE = "problems.parquet"

SECTIONS: dict[str, type[Config]] = {
    "sample": SampleConfig,
    "refine": RefineConfig,
    "verify": VerifyConfig,
    "distill": DistillConfig,
    "eval": EvalConfig,
}
SOURCES: dict[str, type[Config]] = {"make": MakeConfig, "import": ImportConfig}
_FLAG = re.compile(r"--([a-z][a-z-]*)")
_BY_SEEDS = "seeds, at the top of the recipe"
_BY_SLICES = "problems_per_round, at the top of the recipe"
_BY_GRAPH = "nothing: trd run fills it in"
_INPUTS = dict.fromkeys(("inputs", "allow_partial", "parents", "out", "dry_run"), _BY_GRAPH)
# What a section may not set, and what to set instead.
FILLED: dict[str, dict[str, str]] = {
    "sample": {
        "model": "student, at the top of the recipe",
        "problems": "the table [problems]",
        "seed": _BY_SEEDS,
        "limit": _BY_SLICES,
        "skip": _BY_SLICES,
        **dict.fromkeys(("out", "round", "dry_run"), _BY_GRAPH),
    },
    "refine": {
        **_INPUTS,
        "setting": "setting, at the top of the recipe",
        "teacher": "teacher, at the top of the recipe",
        "seed": _BY_SEEDS,
        "stream": _BY_GRAPH,
    },
    "verify": {**_INPUTS, "regrade": "nothing: trd run --from verify grades again"},
    "distill": {
        **_INPUTS,
        "model": "student, at the top of the recipe",
        "teacher": "teacher, at the top of the recipe",
        "setting": "setting, at the top of the recipe",
        "seed": _BY_SEEDS,
        "selfcheck": _BY_GRAPH,
    },
    "eval": dict.fromkeys(("model", "model_flag", "rescore", "out", "dry_run"), _BY_GRAPH),
    "make": {"out": _BY_GRAPH},
    "import": {"out": _BY_GRAPH},
}
# What stands for the filled ones while a section is checked.
STANDING: dict[str, dict[str, Any]] = {
    "sample": {"problems": PROBLEMS_FILE},
    "make": {"out": PROBLEMS_FILE},
    "import": {"out": PROBLEMS_FILE},
}


class Checker:
    """What is wrong with a section, said with the file that the key is from."""

    def __init__(self, path: Path, origins: Mapping[str, Path]) -> None:
        self._path, self._origins = path, origins

    def section(self, name: str, table: Table, where: str, extra: Mapping[str, Any] | None = None) -> Config:
        """A section as its command's own configuration."""
        kind = SECTIONS.get(name) or SOURCES[name]
        filled = FILLED[name]
        for key in table:
            if key in filled or key not in kind.model_fields:
                self.unknown(where, key, kind.model_fields, filled)
        standing = dict(STANDING.get(name, {}))
        if name == "refine":
            standing = {"setting": "opsd"}
        try:
            return kind(**{**table, **standing, **(extra or {})})
        except ValidationError as error:
            first = error.errors()[0]
            self.invalid(where, str(first["loc"][0]), str(first["loc"][0]), first)
        except UserError as error:
            self.refuse(where, error)

    def refuse(self, where: str, error: UserError) -> NoReturn:
        """What a command says of its options, of the keys that stand for them here."""
        said = in_a_recipe(error)
        self.fail(where, f"[{where}] {said.got}", said.expected, said.mend)

    def invalid(self, where: str, key: str, shown: str, first: Mapping[str, Any]) -> NoReturn:
        """One complaint of pydantic's."""
        expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        expected = expected.replace("a valid dictionary", "a table")
        place = f"[{where}] " if where else ""
        dotted = f"{where}.{key}" if where else key
        if first["type"] == "missing":
            self.fail(where or key, f"{place}without {shown}", f"{shown} = …", f"add {shown}")
        self.fail(dotted, f"{place}{shown} = {first['input']!r}", expected, f"change {shown}")

    def unknown(self, where: str, key: str, known: Sequence[str], filled: Mapping[str, str]) -> NoReturn:
        place, dotted = (f"[{where}] ", f"{where}.{key}") if where else ("", key)
        if key in filled:
            self.fail(dotted, f"{place}{key}", filled[key], f"leave {key} out")
        names = [name for name in known if name not in filled]
        self.fail(
            dotted,
            f"{place}{key}, which is no key there",
            "one of " + ", ".join(names),
            closest(key, names) or "take it out",
        )

    def fail(self, dotted: str, got: str, expected: str, mend: str) -> NoReturn:
        """Complain about a key; the file is the nearest that has it or the table it is in."""
        parts = dotted.split(".")
        keys = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        file = next((self._origins[key] for key in keys if key in self._origins), self._path)
        raise InputError(f"{file}: {got}", expected, mend)


def in_a_recipe(error: UserError) -> UserError:
    """Return what a command says of its flags, said of the keys that stand for them in a recipe."""
    parts = (error.got, error.expected, error.mend)
    return type(error)(*(_FLAG.sub(lambda flag: flag[1].replace("-", "_"), text) for text in parts))


def closest(key: str, names: Sequence[str] | Mapping[str, Any]) -> str | None:
    """Words that suggest the name most like `key`, or None where none is."""
    close = difflib.get_close_matches(key, list(names), n=1)
    return f"did you mean {close[0]}?" if close else None
