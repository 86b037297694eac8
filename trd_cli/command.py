"""From a config class to a command of the shell:

its flags, its exit codes, its signals, and paths from standard input.
"""

from __future__ import annotations

import errno
import inspect
import os
import queue
import signal
import sys
import threading
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer

from trd_cli import streams
from trd_cli.atomic import of_the_system
from trd_cli.config.base import Config
from trd_cli.console import show_remarks
from trd_cli.errors import InputError, Interrupted, TrdError, UserError
from trd_cli.interrupts import raise_when_told, stop_signals
from trd_cli.progress import tell_run
from trd_cli.records import well_formed

STYLE = {"add_completion": False, "no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}


# Seconds; the processes of one launch are rarely further apart.
_PATIENCE = 15.0


# What the system says of a wrong call, whatever the user has done.
_OUR_MISTAKES = (errno.EBADF, errno.EFAULT, errno.ECHILD, errno.ENOTSOCK)


def command(parent: typer.Typer, name: str, config_class: type[Config], example: str, more: str = "") -> Callable:
    """Register a function of one config as a Typer command whose flags are the config's fields;

    `more` ends its help.
    """

    title = f"{parent.info.name} {name}" if parent.info.name else name

    def register(body: Callable[[Any], None]) -> Callable[[Any], None]:
        def callback(**values: Any) -> None:
            given = {key: value for key, value in values.items() if value is not None}
            guarded(title, lambda: body(config_class.parse(given)))

        own = config_class.__annotations__
        # The command's own options come first in its help, then those it shares with others.
        first = getattr(config_class, "FIRST", ())
        fields = sorted(config_class.model_fields.items(), key=lambda item: (item[0] not in first, item[0] not in own))
        parameters = [_parameter(field_name, field) for field_name, field in fields]
        callback.__signature__ = inspect.Signature(parameters)
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        parent.command(name, help=f"{inspect.getdoc(body)}\n\n\b\nExample:\n  {example}{more}", no_args_is_help=False)(
            callback
        )
        return body

    return register


def _parameter(name: str, field: Any) -> inspect.Parameter:
    extra, kind = field.json_schema_extra, _cli_type(field.annotation)
    default = field.get_default()
    if field.is_required():
        default = ...
    elif isinstance(default, (tuple, dict)):
        default = []
    if extra["argument"]:
        info = typer.Argument(help=field.description, show_default=False)
    else:
        flags = extra["flags"] or [f"--{name.replace('_', '-')}"]
        # A shown default of None or an empty list tells nothing.
        pairs = "KEY=VALUE" if "dict" in str(field.annotation) else None
        info = typer.Option(*flags, help=field.description, show_default=default not in (None, []), metavar=pairs)
    default = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _cli_type(annotation: Any) -> Any:
    """The type Typer parses for a config field: lists for tuples and KEY=VALUE pairs, constraints left to pydantic."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _cli_type(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        inner = [_cli_type(a) for a in typing.get_args(annotation) if a is not type(None)]
        return inner[0] | None
    if origin in (tuple, dict):
        return list[str]
    return annotation


def guarded(name: str, work: Callable[[], None]) -> None:
    """Run a command; every failure that is not a mistake of ours ends in one line and its exit code."""
    raise_when_told()
    show_remarks(name)
    try:
        try:
            work()
            streams.finish()
        except KeyboardInterrupt:
            kept = "training goes on from its last saved state" if name == "distill" else "finished rows are kept"
            raise Interrupted(f"interrupted; {kept} when the same command is run again") from None
        except OSError as error:
            if error.errno in _OUR_MISTAKES:  # not to be taken for one of standard output
                raise AssertionError(f"a wrong call of the system: {error}") from error
            raise of_the_system(error) from None
        except UnicodeEncodeError:
            words = [word for word in sys.argv if well_formed(word) != word]
            if not words:
                raise
            # A file of any name can be read and written, but a name may also be asked for where only text can be.
            raise InputError(f"{words[0]} is not UTF-8", "text", "rename or retype it") from None
    except TrdError as error:
        if not is_first_process():
            _let_the_first_process_say_it(error)
        line = f"trd {name}: error: {error}"
        tell_run(error=line)
        print(line, file=sys.stderr, flush=True)
        raise typer.Exit(error.exit_code) from None


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def _let_the_first_process_say_it(error: TrdError) -> None:
    """Every process of a launch finds the same mistake; when the first one ends, the launcher ends the others."""
    if isinstance(error, Interrupted):
        raise typer.Exit(error.exit_code) from None
    if isinstance(error, UserError):
        for number in stop_signals():
            signal.signal(number, signal.SIG_DFL)
        time.sleep(_PATIENCE)


def launched_as_many() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def waves(inputs: Sequence[str], stream: bool) -> Iterator[list[str]]:
    """The input paths: those given, or the lines of standard input, all at once or as they come."""
    if inputs and tuple(inputs) != ("-",):
        yield list(inputs)
        return
    if sys.stdin.isatty():
        raise InputError("no input", "a trajectory set, or paths on standard input", "name a directory")
    count = 0
    for paths in _arriving() if stream else iter([list(streams.lines())]):
        count += len(paths)
        if paths:
            yield paths
    if count == 0:
        raise InputError("the pipe brought no path", "at least one shard", "see what the command before it said")


def _arriving() -> Iterator[list[str]]:
    """All paths that have come since the last look, as soon as there is one."""
    paths: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for path in streams.lines():
                paths.put(path)
            paths.put(None)
        except Exception as error:
            paths.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        batch = [paths.get()]
        while not paths.empty():
            batch.append(paths.get())
        yield [path for path in batch if isinstance(path, str)]
        if isinstance(batch[-1], Exception):
            raise batch[-1]
        if batch[-1] is None:
            return


def end_with_the_run() -> None:
    """A stage that trd run started is told to stop when that dies, however it dies.

    Linux; elsewhere the next trd run ends it.
    """
    parent = os.environ.pop("TRD_RUN_PID", None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    told: list[int] = []

    def tell_once(number: int, _: object) -> None:
        # It comes once for each thread of the parent, and a second SIGTERM would break into the writing of what is
        # finished.
        if not told:
            told.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

    to_be_signalled = 1  # PR_SET_PDEATHSIG, prctl(2)
    signal.signal(signal.SIGUSR2, tell_once)
    ctypes.CDLL(None).prctl(to_be_signalled, signal.SIGUSR2)
    if os.getppid() != int(parent):  # it died before we asked
        raise SystemExit(Interrupted.exit_code)
