"""Check the sections of a recipe against the options of their commands; every error names the file and the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig, ImportConfig, MakeConfig
from trd_cli.config.generating import OF_SETS, RefineConfig, SampleConfig
from trd_cli.config.grading import VerifyConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import OPTION, InputError, UserError
from trd_cli.recipes.recipe import Table

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
_BY_SEEDS = "seeds, at the top of the recipe"
_BY_SLICES = "problems_per_round or steps_per_round, at the top of the recipe"
_BY_CONTINUE = "continue, at the top of the recipe"
_BY_RAY = "ray, at the top of the recipe"
_BY_GRAPH = "nothing: trd run fills it in"
_INPUTS = dict.fromkeys(("inputs", "allow_partial", "parents", "out", "shard", "dry_run"), _BY_GRAPH)
# Options that a section may not set, and what to set instead.
FILLED: dict[str, dict[str, str]] = {
    "sample": {
        "model": "student, at the top of the recipe",
        "problems": "the table [problems]",
        "env": "env in the table [episodes]",
        "seed": _BY_SEEDS,
        "limit": _BY_SLICES,
        "skip": _BY_SLICES,
        "ray": _BY_RAY,
        **dict.fromkeys(("out", "round", "shard", "dry_run"), _BY_GRAPH),
        **dict.fromkeys(("from_sets", *OF_SETS), "the table [problems], from which the rows of a recipe are sampled"),
    },
    "refine": {
        **_INPUTS,
        "setting": "setting, at the top of the recipe",
        "teacher": "teacher, at the top of the recipe",
        "student": "student, at the top of the recipe",
        "seed": _BY_SEEDS,
        "ray": _BY_RAY,
        "stream": _BY_GRAPH,
    },
    "verify": {**_INPUTS, "regrade": "nothing: trd run --from verify grades again"},
    "distill": {
        **_INPUTS,
        "model": "student, at the top of the recipe",
        "teacher": "teacher, at the top of the recipe",
        "setting": "setting, at the top of the recipe",
        "seed": _BY_SEEDS,
        "continue": _BY_CONTINUE,
        "continue_from": _BY_CONTINUE,
        "steps": "steps_per_round, at the top of the recipe",
        **dict.fromkeys(("total_steps", "selfcheck"), _BY_GRAPH),
    },
    "eval": {
        **dict.fromkeys(("model", "model_flag", "rescore", "out", "shard", "dry_run"), _BY_GRAPH),
        "ray": _BY_RAY,
    },
    "make": {"out": _BY_GRAPH},
    "import": {"out": _BY_GRAPH},
}
# Values of required options that the graph fills in, for as long as a section is checked.
_PLACEHOLDERS: dict[str, dict[str, Any]] = {
    "sample": {"problems": PROBLEMS_FILE},
    "refine": {"setting": "opsd"},
    "make": {"out": PROBLEMS_FILE},
    "import": {"out": PROBLEMS_FILE},
}


class Checker:
    """Raise InputError for a wrong key of a recipe, with the file that the key is from."""

    def __init__(self, path: Path, origins: Mapping[str, Path]) -> None:
        self._path, self._origins = path, origins

    def section(self, name: str, table: Table, where: str, filled_in: Table | None = None) -> Config:
        """Return a section as the configuration of its command, with what the graph fills in."""
        kind = SECTIONS.get(name) or SOURCES[name]
        filled = FILLED[name]
        for key in table:
            if key in filled or key not in kind.model_fields:
                self.unknown(where, key, kind.model_fields, filled)
        try:
            return kind(**table, **(filled_in or _PLACEHOLDERS.get(name, {})))
        except ValidationError as error:
            first = error.errors()[0]
            self.invalid(where, str(first["loc"][0]), first)
        except UserError as error:
            self.refuse(where, error)

    def refuse(self, where: str, error: UserError) -> NoReturn:
        """Raise a command's error about its options as one about the keys of a section."""
        keyed = in_a_recipe(error)
        self.fail(".".join((where, *error.options[:1])), f"[{where}] {keyed.got}", keyed.expected, keyed.mend)

    def invalid(self, where: str, key: str, first: Mapping[str, Any], shown: str = "") -> NoReturn:
        """Raise the error that pydantic lists `first`; `shown` is the key as it is written, if not `key`."""
        shown = shown or key
        expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        expected = expected.replace("a valid dictionary", "a table")
        place = f"[{where}] " if where else ""
        dotted = f"{where}.{key}" if where else key
        if first["type"] == "missing":
            self.fail(where or key, f"{place}without {shown}", f"{shown} = …", f"add {shown}")
        self.fail(dotted, f"{place}{shown} = {first['input']!r}", expected, f"change {shown}")

    def unknown(self, where: str, key: str, known: Sequence[str], filled: Mapping[str, str]) -> NoReturn:
        """Raise the error of a key that a section does not have, or that the graph fills in."""
        place, dotted = (f"[{where}] ", f"{where}.{key}") if where else ("", key)
        if key in filled:
            self.fail(dotted, f"{place}{key}", filled[key], f"leave {key} out")
        names = [name for name in known if name not in filled]
        self.fail(
            dotted,
            f"{place}{key}, which is no key there",
            "one of " + ", ".join(names),
            _of_flag(key, names) or closest(key, names) or "take it out",
        )

    def fail(self, dotted: str, got: str, expected: str, mend: str) -> NoReturn:
        """Raise InputError about a dotted key, with the file that sets the key or, failing that, a table around it."""
        parts = dotted.split(".")
        keys = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        file = next((self._origins[key] for key in keys if key in self._origins), self._path)
        raise InputError(f"{file}: {got}", expected, mend)


def in_a_recipe(error: UserError) -> UserError:
    """Return the error with its options named as keys of a recipe, not as flags."""
    return type(error)(*(OPTION.sub(r"\1", part) for part in error.parts))


def _of_flag(key: str, names: Sequence[str]) -> str | None:
    """Return words that suggest the key whose flag is spelt like `key`, or None where there is none."""
    spelt = f"--{key.replace('_', '-')}"
    kinds = (*SECTIONS.values(), *SOURCES.values())
    found = (name for kind in kinds for name in names if name in kind.model_fields and spelt in kind.flags_of(name))
    return next((f"did you mean {name}?" for name in found), None)


def closest(key: str, names: Sequence[str] | Mapping[str, Any]) -> str | None:
    """Return words that suggest the name most like `key`, or None where none is like it."""
    close = difflib.get_close_matches(key, list(names), n=1)
    return f"did you mean {close[0]}?" if close else None
