"""The exceptions of trd and the exit codes they end in.

    TrdError                     any error that trd raises on purpose
    ├── UserError          1     an error that the user can mend: what was got, what was expected, how to mend it
    │   ├── InputError           a file, a set, a row or an option that cannot be used
    │   │   └── DamagedFile          a file of trd whose bytes have changed since they were written
    │   ├── ModelError           a model, tokenizer or chat template that cannot be used
    │   ├── OutOfReach           either of these two: it could not be downloaded, and may be within reach elsewhere
    │   ├── PromptError          a prompt template that cannot be used
    │   ├── EngineError          an engine that cannot start, or that stopped answering
    │   └── ResumeRefused        the output directory belongs to another configuration
    ├── TooManyRowErrors   3     the run finished, but more rows ended as errors than allowed
    └── Interrupted        130   stopped by the user; the same command goes on from there

Usage errors (unknown flag, wrong type) end in 2 and are raised by Typer. A failure that concerns one row is no
exception: it becomes that row's `error`.
"""

from __future__ import annotations

import re

from trd_cli.redaction import scrubbed

OPTION = re.compile("\0([a-z_]+)\0")


class TrdError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the exit code of the command."""

    exit_code = 1


def flag(option: str) -> str:
    """Mark the name of an option, such as `top_k`, in a part of a UserError.

    The message shows the flag, `--top-k`; an error about a recipe shows the key, `top_k`.
    """
    return f"\0{option}\0"


class UserError(TrdError):
    """An error of one line: what was got, what was expected, and how to mend it. It quotes no keys.

    `parts` are these three with options marked by `flag`; `options` are the names of the marked ones, in their order.
    """

    def __init__(self, got: str, expected: str, mend: str) -> None:
        self.parts = tuple(map(scrubbed, (got, expected, mend)))
        self.options = tuple(OPTION.findall("".join(self.parts)))
        self.got, self.expected, self.mend = (OPTION.sub(_as_flag, part) for part in self.parts)
        super().__init__(f"{self.got}; expected {self.expected}; {self.mend}".replace("\n", " "))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, ...]]:
        """Return how to unpickle the error, as from a worker: pickle would call the class with the whole line alone."""
        return type(self), self.parts


def _as_flag(found: re.Match[str]) -> str:
    return "--" + found[1].replace("_", "-")


class InputError(UserError):
    """A file, a trajectory set or an option's value that cannot be used."""


class DamagedFile(InputError):
    """A file whose bytes have changed since trd wrote them."""


class ModelError(UserError):
    """A model, tokenizer or chat template that cannot be used."""


class OutOfReach(InputError, ModelError):
    """Data or a model that could not be downloaded."""


class PromptError(UserError):
    """A prompt template that cannot be used."""


class EngineError(UserError):
    """An engine that cannot start, or that has stopped answering."""


class ResumeRefused(UserError):
    """An output directory that holds the work of another configuration."""


class TooManyRowErrors(TrdError):
    """A finished command with more rows that ended as errors than `--max-errors` allows."""

    exit_code = 3


class Interrupted(TrdError):
    """A command that a signal stopped; finished shards are kept."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that is not empty, with the next one where it ends in a colon.

    The type of the exception is added where the message is only a missing key, and stands for an empty message.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {first}" if isinstance(error, LookupError) else first


def sized(size: float) -> str:
    """Return a number of bytes in MiB, or in GiB from a tenth of one on."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def counted(number: float, noun: str, spec: str = "") -> str:
    """Return a number with its noun: "1 row", "2 rows". `spec` formats the number, as "," for thousands."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:{spec}} {noun}{plural}"
