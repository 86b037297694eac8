"""Turn a config class into a command: its flags, exit codes, signals, and paths from standard input."""

from __future__ import annotations

import inspect
import itertools
import os
import queue
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from trd_cli import streams
from trd_cli.atomic import explained
from trd_cli.config.base import Config, Panel, value_type
from trd_cli.console import show_remarks
from trd_cli.errors import InputError, Interrupted, TrdError, UserError
from trd_cli.interrupts import raise_when_told, stop_signals
from trd_cli.progress import PARENT_VARIABLE, tell_run
from trd_cli.records import well_formed
from trd_cli.redaction import visible

STYLE = {"add_completion": False, "no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}
# Seconds. The processes of one launch rarely start further apart.
_PATIENCE = 15.0
# What an interrupted command keeps, where that is not its finished rows.
_KEPT = {
    "distill": "training goes on from its last saved state",
    "push": "what has arrived is not sent again",
}


class _Command(TyperCommand):
    """A command whose help lists its options by panel, as plain text: rich cuts long flags off at 80 columns."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for panel, parameters in itertools.groupby(self.params, lambda parameter: parameter.rich_help_panel):
            with formatter.section(panel):
                formatter.write_dl([_help_record(parameter, ctx) for parameter in parameters])


def _help_record(parameter: Any, ctx: Any) -> tuple[str, str]:
    flags, text = parameter.get_help_record(ctx)
    is_argument = parameter.param_type_name == "argument"
    return parameter.name + "..." * (parameter.nargs == -1) if is_argument else flags, text


def _by_panel(item: tuple[str, Any]) -> tuple[int, bool]:
    extra = item[1].json_schema_extra
    return typing.get_args(Panel).index(extra["panel"]), not extra["argument"]


def command(parent: typer.Typer, name: str, config_class: type[Config], example: str, more: str = "") -> Callable:
    """Register a function of one config as a command; its flags are the config's fields, and `more` ends its help."""
    title = f"{parent.info.name} {name}" if parent.info.name else name

    def register(body: Callable[[Any], None]) -> Callable[[Any], None]:
        def callback(**values: Any) -> None:
            given = {key: value for key, value in values.items() if value is not None}
            guarded(title, lambda: body(config_class.parse(given)))

        fields = sorted(config_class.model_fields.items(), key=_by_panel)
        parameters = [_parameter(config_class, field_name) for field_name, _ in fields]
        callback.__signature__ = inspect.Signature(parameters)
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        text = f"{inspect.getdoc(body)}\n\n\b\nExample:\n  {example}{more}"
        parent.command(name, cls=_Command, help=text, no_args_is_help=False)(callback)
        return body

    return register


def _parameter(config_class: type[Config], name: str) -> inspect.Parameter:
    """Return the parameter that Typer reads as one field. Lists and `KEY=VALUE` stay text, for pydantic to check."""
    field = config_class.model_fields[name]
    extra, kind = field.json_schema_extra, value_type(field.annotation)
    several = typing.get_origin(kind) in (tuple, dict)
    default = inspect.Parameter.empty if field.is_required() else field.get_default()
    default = [] if default in ((), {}) else default
    about = {"help": field.description, "rich_help_panel": extra["panel"]}
    if extra["argument"]:
        info = typer.Argument(show_default=False, **about)
    else:
        metavar = "KEY=VALUE" if typing.get_origin(kind) is dict else "TEXT" if several else None
        # A shown default of None or an empty list tells nothing.
        info = typer.Option(
            *config_class.flags_of(name), show_default=default not in (None, []), metavar=metavar, **about
        )
    kind = list[str] if several else kind
    annotation = Annotated[kind | None if default is None else kind, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def guarded(name: str, work: Callable[[], None]) -> None:
    """Run a command. Every failure but a bug ends in one line and its exit code."""
    raise_when_told()
    show_remarks(name)
    try:
        try:
            with explained():
                work()
                streams.finish()
        except KeyboardInterrupt:
            kept = _KEPT.get(name, "finished rows are kept")
            raise Interrupted(f"interrupted; {kept} when the same command is run again") from None
        except UnicodeEncodeError:
            words = [word for word in sys.argv if well_formed(word) != word]
            if not words:
                raise
            # A file may have any bytes as its name, but a name also goes where only text can be.
            raise InputError(f"{words[0]} is not UTF-8", "text", "rename or retype it") from None
    except TrdError as error:
        if not is_first_process():
            _let_the_first_process_say_it(error)
        line = f"trd {name}: error: {error}"
        tell_run(error=line)
        print(visible(line), file=sys.stderr, flush=True)
        raise typer.Exit(error.exit_code) from None


def is_first_process() -> bool:
    """Return whether this process speaks for all that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def _let_the_first_process_say_it(error: TrdError) -> None:
    """Wait: all processes of a launch find the same mistake, and the launcher ends the others when the first ends."""
    if isinstance(error, Interrupted):
        raise typer.Exit(error.exit_code) from None
    if isinstance(error, UserError):
        for number in stop_signals():
            signal.signal(number, signal.SIG_DFL)
        time.sleep(_PATIENCE)


def launched_as_many() -> bool:
    """Return whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def waves(
    inputs: Sequence[str], stream: bool, wanted: str = "a trajectory set (at least one shard)"
) -> Iterator[list[str]]:
    """Yield the paths given, or those on standard input: all at once or, with `stream`, as they come.

    Raises InputError, which names what is `wanted`, if there is none.
    """
    if inputs and tuple(inputs) != ("-",):
        yield list(inputs)
        return
    if sys.stdin.isatty():
        raise InputError("no input", f"{wanted}, or paths on standard input", "name one")
    count = 0
    for paths in _arriving() if stream else iter([list(streams.lines())]):
        count += len(paths)
        if paths:
            yield paths
    if count == 0:
        raise InputError("the pipe brought no path", wanted, "name one, or see what the command before it said")


def _arriving() -> Iterator[list[str]]:
    """Wait for a path, then yield all that have come since the last look."""
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
    """Make a stage that `trd run` started get SIGTERM when that process dies, however it dies.

    Only on Linux. Elsewhere the next `trd run` ends the stage.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    received: list[int] = []

    def tell_once(number: int, _: object) -> None:
        # The signal comes once for each thread of the parent. A second SIGTERM would interrupt the writing of finished
        # rows.
        if not received:
            received.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

    to_be_signalled = 1  # PR_SET_PDEATHSIG, prctl(2)
    signal.signal(signal.SIGUSR2, tell_once)
    ctypes.CDLL(None).prctl(to_be_signalled, signal.SIGUSR2)
    if os.getppid() != int(parent):  # it died before we asked
        raise SystemExit(Interrupted.exit_code)
