"""The one protocol that all engines serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from trd_cli.records import Completion, Request


class Engine(Protocol):
    """Generates completions.

    `name` and `version` go into every row. A failure of one request is a Completion with `error`; a failure of the
    engine itself raises EngineError, and what was handed on before stays valid. What a row cannot hold becomes that
    row's error (see `border`).
    """

    name: str
    version: str

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion a request, in any order, each as soon as it is finished.

        A request's completion depends on its prompt, its sampling and its seed alone, never on the other requests.
        """
        ...

    def close(self) -> None:
        """Give back the memory; the engine is not used afterwards."""
        ...
