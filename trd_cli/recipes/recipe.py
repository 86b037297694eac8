"""A recipe: its TOML files with all they extend, and its sections as they were written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    StrictInt,
    model_serializer,
    model_validator,
)

from trd_cli.atomic import has_text_name, read_text_once
from trd_cli.config.base import Positive
from trd_cli.config.training import Along, DistillConfig
from trd_cli.errors import InputError
from trd_cli.recipes.slots import read_devices
from trd_cli.redaction import without_secrets

# Keys whose values name files or models.
_FILES = {"prompt", "file", "onset"}
_MODELS = {"student", "teacher"}

Table = dict[str, Any]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[Positive, Strict()]
# Kinds of stages that may run in processes which stay for the next stage of the kind.
WARM_KINDS = ("sample", "refine", "verify", "distill", "eval")


def _read_warm(written: object) -> object:
    kinds = written if isinstance(written, (list, tuple)) else None
    if written in ("auto", "off") or (kinds is not None and all(kind in WARM_KINDS for kind in kinds)):
        return written
    raise ValueError('"auto", "off", or a list of ' + ", ".join(WARM_KINDS))


class Arm(BaseModel):
    """The sections of one arm as they were written, without defaults.

    In a recipe the options of trd distill stand in the arm's own table, the other sections in tables inside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    distill: Table = {}
    sample: Table = {}
    refine: Table = {}

    @model_validator(mode="before")
    @classmethod
    def _split(cls, table: Any) -> Table:
        if not isinstance(table, dict):
            raise ValueError("a table")
        inner = {name: table[name] for name in OF_AN_ARM if name in table}
        return {"distill": {key: value for key, value in table.items() if key not in inner}, **inner}

    @model_serializer
    def _written(self) -> Table:
        return self.distill | {name: getattr(self, name) for name in OF_AN_ARM if name in self.model_fields_set}


# Tables that an arm may have inside its own, and [episodes] too.
OF_AN_ARM = ("sample", "refine")
# What rows are sampled from, and the table of a recipe that names it.
Source = Literal["problems", "episodes"]


class Episodes(BaseModel):
    """The table [episodes]: an environment as `--env` names it, and options of its rows alone, as they were written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: Name
    per_round: Count | None = None
    sample: Table = {}
    refine: Table = {}


class Recipe(BaseModel):
    """A recipe after `extends`. Its sections are as they were written, without defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    setting: Literal["opd", "opsd"]
    student: Name
    teacher: Name | None = None
    rounds: Count = 1
    problems_per_round: Count | None = None
    steps_per_round: Count | None = None
    continues: StrictBool | None = Field(None, alias="continue")
    evaluate: Literal["each-round", "last-round"] = "each-round"
    seeds: tuple[StrictInt, ...] = (0,)
    processes: Count = 1
    nodes: Count = 1
    devices: Annotated[tuple[str, ...] | None, BeforeValidator(read_devices)] = None
    ray: Name | None = None
    warm: Annotated[Literal["auto", "off"] | tuple[str, ...], BeforeValidator(_read_warm)] = "auto"
    reference_arm: str | None = None
    problems: Table | None = None
    episodes: Episodes | None = None
    sample: Table = {}
    refine: Table = {}
    verify: Table = {}
    distill: Table = {}
    eval: Table | None = None
    arms: dict[str, Arm]

    @classmethod
    def top_keys(cls) -> tuple[str, ...]:
        """Return the keys at the top of a recipe."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @property
    def is_continued(self) -> bool:
        """Return True if the rounds of an arm are one training, so that each continues the one before."""
        return self.rounds > 1 and self.continues is not False

    def scores(self, number: int) -> bool:
        """Return True if the students of this round, counted from 0, are evaluated."""
        return self.eval is not None and (self.evaluate == "each-round" or number == self.rounds - 1)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Return what rows are sampled from: problems, episodes, or both."""
        return tuple(source for source in get_args(Source) if getattr(self, source) is not None)

    def sampling(self, arm: str | None = None, source: Source | None = None) -> Table:
        """Return the options of trd sample for rollouts from a source (default: the first), with those of an arm."""
        return self._of("sample", arm, source)

    def refining(self, arm: str | None = None, source: Source | None = None) -> Table:
        """Return the options of trd refine for refined rows of a source, with those of an arm."""
        return self._of("refine", arm, source)

    def _of(self, section: Literal["sample", "refine"], arm: str | None, source: Source | None) -> Table:
        own = getattr(self.arms[arm], section) if arm is not None else {}
        of_source = getattr(self.episodes, section) if (source or self.sources[0]) == "episodes" else {}
        return getattr(self, section) | of_source | own

    def training(self, arm: str) -> Table:
        """Return the options of trd distill for this arm, without those that the graph fills in."""
        return self.distill | self.arms[arm].distill | {"setting": self.setting}

    def along(self, arm: str) -> Along:
        """Return the kind of rows that an arm trains along: "refined" (y_r) or "rollout" (y_o)."""
        return DistillConfig.parse(self.training(arm)).along()

    @property
    def warm_kinds(self) -> tuple[str, ...]:
        """Return the kinds of stages that may run in processes which stay."""
        return WARM_KINDS if self.warm == "auto" else () if self.warm == "off" else self.warm

    def record(self) -> Table:
        """Return the recipe without keys, as a run directory holds it."""
        table = self.model_dump(mode="json", exclude_none=True, by_alias=True)
        # A run that was recorded before there were these keys keeps its record.
        if self.nodes == 1:
            del table["nodes"]
        if self.warm == "auto":
            del table["warm"]
        if self.evaluate == "each-round":
            del table["evaluate"]
        return without_secrets(table)

    def as_toml(self) -> str:
        """Return `record` as TOML that extends no other file."""
        import tomli_w

        return tomli_w.dumps(self.record())


def read_recipe(path: Path, above: tuple[Path, ...]) -> tuple[Table, dict[str, Path]]:
    """Return the values of a recipe over those that it extends, and the file of each dotted key.

    `above` are the files that extend this one. A recipe from a pipe counts as one in the working directory.
    """
    if not has_text_name(path):
        raise InputError(f"recipe {path}: its path is not UTF-8", "one that a recipe can name", "rename it")
    here, directory = (path, Path()) if path.is_fifo() else (path.resolve(), path.parent)
    if here in above:
        chain = " → ".join(p.name for p in (*above, here))
        raise InputError(f"{path}: extends goes in a circle ({chain})", "a chain that ends", "take one out")
    own = _read(path)
    bases = own.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: extends = {bases!r}", "a file name or a list of them", "change extends")
    values: Table = {}
    origins: dict[str, Path] = {}
    for base in bases:
        inherited, theirs = read_recipe(directory / base, (*above, here))
        inherited.pop("name", None)
        _put_over(values, inherited)
        origins |= theirs
    _put_over(values, _with_paths(own, directory))
    return values, origins | dict.fromkeys(_dotted(own), path)


def _read(path: Path) -> Table:
    try:
        table = tomllib.loads(read_text_once(path))
        json.dumps(table)
        return table
    except TypeError:
        raise InputError(
            f"recipe {path} has a date or a time", "no such value in a recipe", "put it in quotes"
        ) from None
    except OSError as error:
        raise InputError(f"recipe {path}: {error.strerror}", "a TOML file", "check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: {error}", "a TOML file", "mend it") from None


def _put_over(values: Table, nearer: Mapping[str, Any]) -> None:
    """Put the values of the nearer recipe over those of another.

    Problems have one source: those of the nearer replace those of another kind.
    """
    far, near = (table.get("problems") for table in (values, nearer))
    if isinstance(far, dict) and isinstance(near, dict):
        values["problems"] = {kind: value for kind, value in far.items() if kind in near}
    _merge(values, nearer)


def _merge(values: Table, nearer: Mapping[str, Any]) -> None:
    """Put `nearer` over `values`: tables key by key, anything else whole; false removes a table."""
    for key, value in nearer.items():
        if value is False and isinstance(values.get(key), dict):
            del values[key]
        elif isinstance(value, dict) and isinstance(values.get(key), dict):
            values[key] = dict(values[key])
            _merge(values[key], value)
        else:
            values[key] = value


def _dotted(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys of a table and of the tables in it."""
    found: list[str] = []
    for key, value in table.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += _dotted(value, f"{prefix}{key}.")
    return found


def _with_paths(table: Table, directory: Path) -> Table:
    """Return the table with absolute paths for files and directories; other names stay.

    They are looked for in the recipe's directory, then in the working directory.
    """

    def absolute(text: str) -> str:
        there = (path for path in (directory / text, Path(text)) if text and path.exists())
        found = next(there, None)
        if found is not None and found.is_fifo():
            raise InputError(f"{text} in a recipe is a pipe", "a file that each stage can read", "write it to one")
        return text if found is None else str(found.resolve())

    def benchmark(text: str) -> str:
        # Options of a benchmark follow a colon; a directory with a benchmark's name is no file of questions.
        name, colon, options = text.partition(":")
        file = absolute(name)
        return f"{file}{colon}{options}" if Path(file).is_file() else text

    made: Table = {}
    for key, value in table.items():
        if isinstance(value, dict):
            made[key] = _with_paths(value, directory)
        elif key in _FILES | _MODELS and isinstance(value, str):
            made[key] = absolute(value)
        elif key == "bench":
            items = value.split(",") if isinstance(value, str) else value
            made[key] = [benchmark(i) if isinstance(i, str) else i for i in items] if isinstance(items, list) else items
        else:
            made[key] = value
    return made
