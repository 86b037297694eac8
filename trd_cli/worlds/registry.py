"""Find an environment by its name: one that ships with trd, or MODULE:FUNCTION of the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from trd_cli import extras
from trd_cli.errors import InputError
from trd_cli.own_code import OwnCode, OwnCodeError
from trd_cli.records import Environment
from trd_cli.worlds import scripted, textarena, textworld
from trd_cli.worlds.base import World, WorldError

Value = int | float | bool | str
Config = Mapping[str, Value]


@dataclass(frozen=True)
class Kind:
    """Describe an environment that ships with trd.

    `options` has its defaults. `version` raises InputError where its package is missing. `make` takes every option.
    """

    options: Config
    version: Callable[[], str]
    make: Callable[..., World]


def _version(package: str, revision: int) -> str:
    """Return the version of an installed package and that of our reading of it."""
    return f"{extras.version_of(package, 'worlds')}-{revision}"


KINDS: Mapping[str, Kind] = {
    "scripted": Kind(vars(scripted.Settings()), lambda: scripted.VERSION, scripted.make),
    "textarena": Kind(textarena.OPTIONS, partial(_version, textarena.PACKAGE, textarena.REVISION), textarena.make),
    "textworld": Kind(textworld.OPTIONS, partial(_version, textworld.PACKAGE, textworld.REVISION), textworld.make),
}


def version_of(name: str) -> str:
    """Return the version of an environment on this machine; raises InputError where it is not there.

    Nothing of it is imported.
    """
    return KINDS[name].version() if name in KINDS else OwnCode.parse(name).version()


def refusal(environment: Environment) -> str | None:
    """Return why an environment of a row cannot be played on this machine, or None; imports nothing of it."""
    name = environment.name
    if name not in KINDS and OwnCode.parse(name) is None:
        return f"no environment has the name {name}"
    try:
        here = version_of(name)
    except InputError as error:
        return str(error)
    if here != environment.version:
        return f"the episode belongs to {name} {environment.version}; {here} is installed here"
    return None


def make(environment: Environment) -> World:
    """Return an environment, ready for `reset`; raises WorldError if it cannot be made or has another version."""
    reason = refusal(environment)
    if reason is not None:
        raise WorldError(reason)
    name, config = environment.name, json.loads(environment.config)
    if name in KINDS:
        return KINDS[name].make(**config)
    try:
        return OwnCode.parse(name).load()(**config)
    except OwnCodeError as error:
        raise WorldError(str(error).removeprefix(f"{name}: ")) from None
    except MemoryError:
        raise
    except Exception as error:
        raise WorldError(f"the function raised {type(error).__name__}: {error}") from None
