"""Write a recipe with comments: the help of each option stands above it, once, with keys for flags."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import METHODS
from trd_cli.recipes.sections import SECTIONS, SOURCES

_WIDTH = 110
_FLAG = re.compile(r"--([a-z][a-z-]*)")
# Keys of a recipe outside the sections of commands that stand for an option of one.
_OPTIONS: dict[str, tuple[type[Config], str]] = {
    "setting": (RefineConfig, "setting"),
    "student": (SampleConfig, "model"),
    "teacher": (RefineConfig, "teacher"),
    "file": (SampleConfig, "problems"),
}
# Those that stand for none.
_KEYS = {
    "name": "Name of the run; its directory is trd-runs/NAME.",
    "rounds": "Each further round samples from the student of the round before.",
    "seeds": "Each seed samples and trains for itself.",
    "reference_arm": "The report compares the other arms to this one.",
}


@dataclass(frozen=True)
class Draft:
    """Hold a recipe to be written: its tables, and what to say of a table (a dotted name) beside its options' help.

    `top` has the keys of the head. `sections` are tables of options by their dotted names, as `problems.make`. `arms`
    are the options of each arm.
    """

    top: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]]
    arms: Mapping[str, Mapping[str, Any]]
    remarks: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return the recipe as TOML with comments."""
        return "\n".join(_lines(self)) + "\n"


def _lines(draft: Draft) -> Iterator[str]:
    said: set[str] = set()
    yield from _comment(draft.remarks.get("", ""))
    for key, value in draft.top.items():
        yield from ("", *_option(key, value, _KEYS.get(key) or _help(*_OPTIONS[key]), said))
    for name, table in draft.sections.items():
        kind = SECTIONS.get(name) or SOURCES.get(name.removeprefix("problems."))
        yield from ("", *_comment(draft.remarks.get(name, "")), f"[{name}]")
        for key, value in table.items():
            yield from _option(key, value, _help(kind, key) if kind else _help(*_OPTIONS[key]), said)
    for name, table in draft.arms.items():
        yield from ("", *_comment(f"{draft.remarks.get(f'arms.{name}', '')} {_sets(table['method'])}"))
        yield f"[arms.{name}]"
        for key, value in table.items():
            yield from _option(key, value, "" if key == "method" else _help(SECTIONS["distill"], key), said)
    others = ", ".join(name for name in METHODS if name not in draft.arms)
    yield from ("", *_comment(f"Other methods for arms: {others}. An arm may have any option of trd distill."))


def _help(kind: type[Config], name: str) -> str:
    """Return the help of an option with keys in place of flags."""
    keys = {flag: key for key in kind.model_fields for flag in kind.flags_of(key)}
    text = kind.model_fields[name].description or ""
    return _FLAG.sub(lambda found: keys.get(found[0], found[1].replace("-", "_")), text)


def _sets(method: str) -> str:
    """Return the options that a method sets."""
    return f"The method sets {', '.join(f'{key} to {value}' for key, value in METHODS[method].items())}."


def _option(key: str, value: Any, text: str, said: set[str]) -> Iterator[str]:
    """Yield a key with its comment, unless that was said before."""
    if text not in said:
        yield from _comment(text)
    said.add(text)
    yield f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    import tomli_w

    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")


def _comment(text: str) -> Iterator[str]:
    yield from (
        f"# {line}" for line in textwrap.wrap(text.strip(), _WIDTH, break_long_words=False, break_on_hyphens=False)
    )
