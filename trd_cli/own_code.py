"""A user's own function, named as MODULE:FUNCTION: a grader or an environment.

The module is found in the working directory or on Python's module path. It is imported where it works, in a process
that can be killed; to name its version only its file is read.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from trd_cli.errors import InputError, first_line

_WORD = r"[^\W\d]\w*"
_NAME = re.compile(rf"({_WORD}(?:\.{_WORD})*):({_WORD})")
_DIGITS = 12


class OwnCodeError(Exception):
    """A user's function that cannot be loaded; the message is for people."""


@dataclass(frozen=True)
class OwnCode:
    """Name a function of a module."""

    module: str
    function: str

    @classmethod
    def parse(cls, text: str) -> OwnCode | None:
        """Read MODULE:FUNCTION; return None for a text of another form."""
        found = _NAME.fullmatch(text)
        return cls(found[1], found[2]) if found else None

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"

    def version(self) -> str:
        """Return the first digits of the SHA-256 of the module's file; raises InputError where there is none.

        Modules that it imports count for nothing.
        """
        return hashlib.sha256(self._file().read_bytes()).hexdigest()[:_DIGITS]

    def _file(self) -> Path:
        path, found = _search_path(), None
        parts = self.module.split(".")
        for part in parts:
            # By its last name alone: a directory without __init__.py would look for its parent among imported modules.
            found = PathFinder.find_spec(part, path) if path is not None else None
            path = found.submodule_search_locations if found else None
        if found is None or found.origin is None or not Path(found.origin).is_file():
            raise InputError(
                f"{self}: there is no module {self.module}",
                "a file of Python code in the working directory or on PYTHONPATH",
                "change the name, or set PYTHONPATH",
            )
        return Path(found.origin)

    def load(self) -> Callable[..., Any]:
        """Return the function; raises OwnCodeError if the module cannot be imported or has no such function."""
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            found = getattr(importlib.import_module(self.module), self.function, None)
        except MemoryError:
            raise
        except Exception as error:
            raise OwnCodeError(
                f"{self}: importing {self.module} raised {type(error).__name__}: {first_line(error)}"
            ) from None
        if not callable(found):
            raise OwnCodeError(f"{self}: the module {self.module} has no function {self.function}")
        return found


def _search_path() -> list[str]:
    return [*sys.path, os.getcwd()]
