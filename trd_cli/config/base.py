"""One frozen config a command. A field's declaration is its flag, its help, its default and its place in `run.json`.

A field made with `option(..., rows=False)` changes how a command runs, never which rows it makes (batch size, device,
shard size); all other fields belong to the identity that a resumed run must match.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trd_cli.errors import InputError
from trd_cli.redaction import without_secrets

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
RunStage = Literal["problems", "sample", "verify", "refine", "distill", "eval"]
Subset = Literal["all", "correct", "incorrect", "repaired", "broken", "kept", "unrepaired"]


def option(
    default: Any = ...,
    *,
    help: str,
    flags: tuple[str, ...] = (),
    rows: bool = True,
    decides: bool = False,
    argument: bool = False,
):
    """A config field: `flags` replaces the flag made from its name; `rows` says whether it changes the rows made,
    `decides` whether it changes the result in another way: how many rows there are, or what is said of them.
    """
    extra = {"flags": list(flags), "rows": rows, "decides": rows or decides, "argument": argument}
    return Field(default, description=help, json_schema_extra=extra)


def pairs(value: Any) -> Any:
    """`KEY=VALUE` strings, as typed on the command line, to a dictionary; dictionaries pass."""
    if not isinstance(value, (list, tuple)):
        return value
    split = [str(item).split("=", 1) for item in value]
    for item, parts in zip(value, split, strict=True):
        if len(parts) != 2 or not parts[0]:
            raise ValueError(f"KEY=VALUE, not {item!r}")
    return dict(split)


def json_pairs(value: Any) -> Any:
    """Split as `pairs` does, and read each value that is JSON:

    `enable_thinking=false` is the boolean, and so is `=False`.
    """
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


Pairs = Annotated[dict[str, str], BeforeValidator(pairs)]
JsonPairs = Annotated[dict[str, Any], BeforeValidator(json_pairs)]


def _words(name: str, field: Any, value: Any) -> list[str]:
    """One option as it is typed."""
    flags = field.json_schema_extra["flags"] or [f"--{name.replace('_', '-')}"]
    flag = next(f for f in flags if f.startswith("--"))
    if isinstance(value, bool):
        on, _, off = flag.partition("/")
        return [on if value else off or "--no-" + on.removeprefix("--")]
    if isinstance(value, dict):
        as_json = "Any" in str(field.annotation)
        return [word for key, v in value.items() for word in (flag, f"{key}={_typed(v) if as_json else v}")]
    values = value if isinstance(value, tuple) else (value,)
    return [word for v in values for word in (flag, str(v))]


def _typed(value: Any) -> str:
    """A value of `KEY=VALUE` that `json_pairs` reads back as it is."""
    if isinstance(value, str) and _json_or_text(value) is value:
        return value
    return json.dumps(value)


class Config(BaseModel):
    """Base of all command configs: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Config:
        """Validate `values`; the first thing wrong becomes one `InputError` that names the option."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else cls.__name__
            got = f"{name} {first['input']!r}" if first["loc"] else str(first["input"])
            expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            raise InputError(got, expected, f"change {name} (see --help)") from None

    def record(self) -> dict[str, Any]:
        """Return all options as JSON values, without keys, as run.json holds them."""
        return without_secrets(self.model_dump(mode="json"))

    def identity(self) -> dict[str, Any]:
        """The options that decide which rows are made, as JSON values."""
        values = self.record()
        fields = type(self).model_fields
        return {name: values[name] for name in fields if fields[name].json_schema_extra["rows"]}

    def deciding(self) -> dict[str, Any]:
        """The options that decide a result:

        `identity`, and those that say how many rows there are or how they are graded.
        """
        values = self.record()
        fields = type(self).model_fields
        return {name: values[name] for name in fields if fields[name].json_schema_extra["decides"]}

    def flags(self) -> list[str]:
        """The words of a command line that gives this configuration again: what is not the default, arguments last."""
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
                words += _words(name, field, value)
        return [*words, *arguments]

    def _implied(self) -> dict[str, Any]:
        """Values that are filled in where no flag is given."""
        return {}


def errors_allowed(max_errors: float, rows: int) -> float:
    """Return how many of `rows` may end as errors under --max-errors: that count, or below 1 that share of them."""
    return max_errors * rows if max_errors < 1 else max_errors


class OutputOptions(Config):
    out: str | None = option(
        None, help="Output directory. Default: trd-runs/<command>-<digest of the configuration>.", rows=False
    )
    shard_rows: Positive = option(256, help="Rows a shard.", rows=False)
    shard_minutes: NotNegative = option(
        10.0, help="Close a shard early after this many minutes, so that a crash loses no more.", rows=False
    )
    max_errors: NotNegative = option(
        0.05, help="Exit with 3 when more rows end as errors: a count, or a share if below 1.", rows=False
    )
    retry_errors: bool = option(False, help="Generate again the rows that ended as errors.", rows=False)
    dry_run: bool = option(False, help="Print the first rendered prompt and what would run, then stop.", rows=False)


class InputOptions(Config):
    inputs: tuple[str, ...] = option(
        (),
        help="Trajectory sets (directories) or shards; none, or -: paths from standard input.",
        argument=True,
        rows=False,
    )
    allow_partial: bool = option(False, help="Take a set whose own run has not finished.", rows=False)
    parents: tuple[str, ...] = option(
        (), help="Where the parents of refined rows are, if they have been moved (repeatable).", rows=False
    )


class SelectOptions(Config):
    subset: Subset = option("all", help="Named subset, by the verdicts of a row and its parent.")
    where: str | None = option(
        None, help="Polars SQL over the row and its parent: \"verdict = 'correct' AND parent_verdict = 'incorrect'\"."
    )
