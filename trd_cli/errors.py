"""The exceptions of trd and the exit codes they end in.

    TrdError                     anything trd raises on purpose
    ├── UserError          1     the user can mend it: says what was got, what was expected, how to mend
    │   ├── InputError           a file, a set or a row that cannot be used
    │   │   └── DamagedFile          a file of ours whose bytes are not those that were written
    │   ├── ModelError           a model, tokenizer or chat template that cannot be used
    │   ├── PromptError          a prompt template that cannot be used
    │   ├── EngineError          an engine that cannot start, or that stopped answering
    │   └── ResumeRefused        the output directory belongs to another configuration
    ├── TooManyRowErrors   3     the run finished, but more rows ended as errors than allowed
    └── Interrupted        130   stopped by the user; the same command goes on from there

Usage errors (unknown flag, wrong type) end in 2 and are raised by Typer. A failure that concerns one row is not
an exception: it becomes that row's `error`.
"""

from __future__ import annotations

from trd_cli.redaction import scrubbed


class TrdError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command ends with."""

    exit_code = 1


class UserError(TrdError):
    """One clear line: what was got, what was expected, and how to mend it; without keys, whatever it quotes."""

    def __init__(self, got: str, expected: str, mend: str) -> None:
        self.got, self.expected, self.mend = map(scrubbed, (got, expected, mend))
        super().__init__(f"{self.got}; expected {self.expected}; {self.mend}".replace("\n", " "))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """For the way back from a worker process: pickle would call the class with the whole line alone."""
        return type(self), (self.got, self.expected, self.mend)


class InputError(UserError):
    """A file, a trajectory set or an option's value that cannot be used."""


class DamagedFile(InputError):
    """A file whose bytes are not those that trd wrote."""


class ModelError(UserError):
    """A model, tokenizer or chat template that cannot be used."""


class PromptError(UserError):
    """A prompt template that cannot be used."""


class EngineError(UserError):
    """An engine that cannot start, or that stopped answering."""


class ResumeRefused(UserError):
    """The output directory holds the work of another configuration."""


class TooManyRowErrors(TrdError):
    """The run is finished, but more rows ended as errors than `--max-errors` allows."""

    exit_code = 3


class Interrupted(TrdError):
    """Stopped by a signal; finished shards are kept."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that says something, with the next one where it ends in a colon.

    Where the message is empty, or only the key that was missing, the type says what kind of error it is.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {first}" if isinstance(error, LookupError) else first


def counted(number: float, noun: str, spec: str = "") -> str:
    """Return a number with its noun: "1 row", "2 rows". `spec` formats the number, as "," for thousands."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:{spec}} {noun}{plural}"
