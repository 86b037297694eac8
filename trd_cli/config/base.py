"""Declare the options of a command once: one frozen config holds its flags, help, defaults and keys of `run.json`.

A field made with `option(..., rows=False)` changes how a command runs, never which rows it makes (batch size, device,
shard size). All other fields must be the same when a run is resumed.
"""

from __future__ import annotations

import json
import re
import types
import typing
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trd_cli.errors import InputError
from trd_cli.records import Part
from trd_cli.redaction import without_secrets

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
RunStage = Literal["problems", "sample", "verify", "refine", "distill", "eval"]
Subset = Literal["all", "correct", "incorrect", "repaired", "broken", "kept", "unrepaired"]
# Panels of a command's help, in the order they are shown.
Panel = Literal[
    "Input", "Model", "Method", "Training", "Adapter", "Sampling", "Prompt", "Engine", "Grading", "Recovery", "Output"
]


def option(
    default: Any,
    panel: Panel,
    help: str,
    *,
    flags: tuple[str, ...] = (),
    rows: bool = True,
    decides: bool = False,
    argument: bool = False,
    counts_unset: bool = True,
):
    """Declare a field of a config.

    `flags` replaces the flag made from its name. `rows` tells that the option changes which rows are made; `decides`,
    that it changes the result otherwise: the number of rows, their verdicts or scores. An option that records of
    earlier versions lack has `counts_unset=False`: at its default it enters no identity, so that theirs stay the same.
    """
    rows = rows and not decides
    extra = {"panel": panel, "flags": list(flags), "rows": rows, "decides": rows or decides, "argument": argument}
    extra["counts_unset"] = counts_unset
    return Field(default, description=help, json_schema_extra=extra)


def later(config_class: type[Config], name: str) -> Any:
    """Declare an option of another config for a command whose earlier records lack it."""
    found = config_class.model_fields[name]
    extra = {**found.json_schema_extra, "counts_unset": False}
    return Field(found.get_default(), description=found.description, json_schema_extra=extra)


def value_type(annotation: Any) -> Any:
    """Return the type of a field without its constraints and None: int for `Positive | None`."""
    if typing.get_origin(annotation) is Annotated:
        return value_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(value_type(each) for each in typing.get_args(annotation) if each is not types.NoneType)
    return annotation


def pairs(value: Any) -> Any:
    """Return `KEY=VALUE` strings, as typed on the command line, as a dictionary; return a dictionary unchanged."""
    if not isinstance(value, (list, tuple)):
        return value
    split = [str(item).split("=", 1) for item in value]
    for item, parts in zip(value, split, strict=True):
        if len(parts) != 2 or not parts[0]:
            raise ValueError(f"KEY=VALUE, not {item!r}")
    return dict(split)


def joined_pairs(value: Any) -> Any:
    """Split as `pairs` does, also several in one text with commas between them: `math=0.5,code=0.5`; no key twice."""
    if not isinstance(value, (list, tuple)):
        return value
    parts = [part for item in value for part in re.split(r",\s*(?=[^,=]+=)", str(item))]
    found = pairs(parts)
    for key in found:
        if sum(part.startswith(f"{key}=") for part in parts) > 1:
            raise ValueError(f"each key once, not {key} twice")
    return found


def numbers(value: Any) -> Any:
    """Split texts of numbers with commas between them, as typed on the command line."""
    return [part for text in value for part in str(text).split(",")] if isinstance(value, (list, tuple)) else value


def json_pairs(value: Any) -> Any:
    """Split as `pairs` does, and read each value that is JSON: `x=false` and `x=False` give the boolean."""
    split = pairs(value)
    return {key: _json_or_text(text) for key, text in split.items()} if split is not value else value


_AS_PYTHON_SPELLS = {"True": True, "False": False, "None": None}


def _json_or_text(text: str) -> Any:
    if text in _AS_PYTHON_SPELLS:
        return _AS_PYTHON_SPELLS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


JsonPairs = Annotated[dict[str, Any], BeforeValidator(json_pairs)]
# A recipe may also give a single text.
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


def _typed(value: Any) -> str:
    """Write a value of `KEY=VALUE` so that `json_pairs` reads it back unchanged."""
    if isinstance(value, str) and _json_or_text(value) is value:
        return value
    return json.dumps(value)


class Config(BaseModel):
    """Base of all configs: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Config:
        """Validate `values`; raise InputError that names the first option with a wrong value."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = cls.flag(str(first["loc"][0])) if first["loc"] else cls.__name__
            got = f"{name} {first['input']!r}" if first["loc"] else str(first["input"])
            expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            raise InputError(got, expected, f"change {name} (see --help)") from None

    @classmethod
    def flags_of(cls, name: str) -> list[str]:
        """Return all spellings of a field's flag, as `--eos/--no-eos` where it can be switched off."""
        return cls.model_fields[name].json_schema_extra["flags"] or [f"--{name.replace('_', '-')}"]

    @classmethod
    def flag(cls, name: str) -> str:
        """Return a field's flag in its first long spelling; an argument has its name alone."""
        field = cls.model_fields.get(name)
        if field is None:
            return f"--{name.replace('_', '-')}"
        if field.json_schema_extra["argument"]:
            return name
        return next(flag for flag in cls.flags_of(name) if flag.startswith("--")).partition("/")[0]

    def record(self) -> dict[str, Any]:
        """Return all options as JSON values, without keys, as run.json holds them."""
        return without_secrets(self.model_dump(mode="json"))

    def identity(self) -> dict[str, Any]:
        """Return the options that decide which rows are made, as JSON values."""
        return self._marked("rows")

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide a result, as JSON values: also the number of rows and how they are graded."""
        return self._marked("decides")

    def _marked(self, mark: str) -> dict[str, Any]:
        fields, values = type(self).model_fields, self.record()

        def counts(name: str) -> bool:
            field, extra = fields[name], fields[name].json_schema_extra
            return extra[mark] and (extra["counts_unset"] or getattr(self, name) != field.get_default())

        return {name: values[name] for name in fields if counts(name)}

    def flags(self) -> list[str]:
        """Return the words of a command line that gives this config again: no defaults, arguments last."""
        implied = self._implied()
        words: list[str] = []
        arguments: list[str] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value in (None, (), {}) or value == field.get_default() or implied.get(name) == value:
                continue
            if field.json_schema_extra["argument"]:
                arguments += map(str, value) if isinstance(value, tuple) else [str(value)]
            else:
                words += self._words(name, value)
        return [*words, *arguments]

    def _words(self, name: str, value: Any) -> list[str]:
        flag = self.flag(name)
        if isinstance(value, bool):
            _, _, off = self.flags_of(name)[0].partition("/")
            return [flag if value else off or "--no-" + flag.removeprefix("--")]
        if isinstance(value, dict):
            as_json = value_type(type(self).model_fields[name].annotation) == dict[str, Any]
            return [word for key, v in value.items() for word in (flag, f"{key}={_typed(v) if as_json else v}")]
        values = value if isinstance(value, tuple) else (value,)
        return [word for v in values for word in (flag, str(v))]

    def _implied(self) -> dict[str, Any]:
        """Return the values that are filled in where no flag is given."""
        return {}


def errors_allowed(max_errors: float, rows: int) -> int:
    """Return how many of `rows` may end as errors under --max-errors: that count, or below 1 that share of them."""
    # As it is written: 0.29 of 100 rows are 29, though the product of the floats is less.
    given = Fraction(str(max_errors))
    return int(given * rows if given < 1 else given)


def _is_part(text: str) -> str:
    """Raise InputError for a text that names no part."""
    Part.parse(text)
    return text


class OutputOptions(Config):
    out: str | None = option(
        None, "Output", "Directory to write to. Default: trd-runs/<command>-<digest of the options>.", rows=False
    )
    shard_rows: Positive = option(256, "Output", "Rows a shard.", rows=False)
    shard_minutes: NotNegative = option(
        10.0, "Output", "Close a shard after this many minutes: the most that a crash loses.", rows=False
    )
    max_errors: NotNegative = option(
        0.05, "Output", "Exit with 3 when more rows end as errors: a count, or a share below 1.", rows=False
    )
    retry_errors: bool = option(False, "Output", "Generate rows that ended as errors again.", rows=False)
    dry_run: bool = option(
        False, "Output", "Print the first rendered prompt and what would run, then stop.", rows=False
    )


class ArrayOptions(Config):
    shard: Annotated[str, AfterValidator(_is_part)] | None = option(
        None,
        "Output",
        "I/N, from 1/N to N/N: make this part alone, beside the other tasks of a job array. Slurm: --array=1-N and $SLURM_ARRAY_TASK_ID/N.",
        rows=False,
    )

    @property
    def part(self) -> Part | None:
        """Return the part to make, None for the whole."""
        return Part.parse(self.shard) if self.shard else None

    def owns(self, problem_id: str) -> bool:
        """Return whether the rows of a problem are to be made."""
        return self.part is None or self.part.owns(problem_id)


class SetOptions(Config):
    allow_partial: bool = option(False, "Input", "Accept a set whose own run is not finished.", rows=False)
    parents: tuple[str, ...] = option(
        (), "Input", "Where the parents of refined rows are now, if moved (repeatable).", rows=False
    )


class InputOptions(SetOptions):
    inputs: tuple[str, ...] = option(
        (),
        "Input",
        "Trajectory sets or shards, also hf://datasets/owner/name[@revision][/folder]. None, or -: paths from standard input.",
        argument=True,
        rows=False,
    )


class SelectOptions(Config):
    subset: Subset = option("all", "Input", "Subset of the rows, by the verdicts of a row and its parent.")
    where: str | None = option(
        None, "Input", "Polars SQL over a row and its parent, as: verdict = 'correct' AND parent_verdict = 'incorrect'."
    )
