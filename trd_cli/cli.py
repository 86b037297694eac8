"""The command line: parse, build one config, hand over to a stage. The only place that exits and that builds engines.

Flags, their help and their defaults come from the config classes; heavy modules are imported inside the commands.
"""

from __future__ import annotations

import dataclasses
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
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trd_cli import __version__, streams
from trd_cli.config import (
    METHODS,
    CompareConfig,
    Config,
    DistillConfig,
    EngineOptions,
    EvalConfig,
    ImportConfig,
    ListConfig,
    MakeConfig,
    OverlapConfig,
    PlanConfig,
    RefineConfig,
    ReportConfig,
    RunConfig,
    SampleConfig,
    ShowConfig,
    VerifyConfig,
)
from trd_cli.console import ConsoleReport, RunTable, print_table, show_remarks
from trd_cli.errors import InputError, Interrupted, TrdError, UserError
from trd_cli.files import of_the_system
from trd_cli.interrupts import raise_when_told, stop_signals
from trd_cli.records import well_formed
from trd_cli.reporting import SilentReport

if TYPE_CHECKING:
    from trd_cli.generation import Backend

_STYLE = {
    "add_completion": False,
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
app = typer.Typer(
    help="Trajectory-Refined Distillation: the student samples, the teacher repairs, the student is distilled along the repair.",
    epilog="A round: trd sample -p P.parquet | trd verify | trd refine --setting opsd | trd verify | trd distill",
    **_STYLE,
)
# Seconds; the processes of one launch are rarely further apart.
_PATIENCE = 15.0
# What the system says of a wrong call, whatever the user has done.
_OUR_MISTAKES = (errno.EBADF, errno.EFAULT, errno.ECHILD, errno.ENOTSOCK)

data_app = typer.Typer(help="Make, import or check problem sets; list benchmarks.", **_STYLE)
app.add_typer(data_app, name="data")


def command(
    parent: typer.Typer, name: str, config_class: type[Config], example: str, more: str = ""
) -> Callable:
    """Register a function of one config as a Typer command whose flags are the config's fields; `more` ends its help."""

    title = f"data {name}" if parent is data_app else name

    def register(body: Callable[[Any], None]) -> Callable[[Any], None]:
        def callback(**values: Any) -> None:
            given = {key: value for key, value in values.items() if value is not None}
            _guarded(title, lambda: body(config_class.parse(given)))

        own = config_class.__annotations__
        # The command's own options come first in its help, then those it shares with others.
        first = getattr(config_class, "FIRST", ())
        fields = sorted(
            config_class.model_fields.items(), key=lambda item: (item[0] not in first, item[0] not in own)
        )
        parameters = [_parameter(field_name, field) for field_name, field in fields]
        callback.__signature__ = inspect.Signature(parameters)
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        parent.command(
            name, help=f"{inspect.getdoc(body)}\n\n\b\nExample:\n  {example}{more}", no_args_is_help=False
        )(callback)
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
        info = typer.Option(
            *flags, help=field.description, show_default=default not in (None, []), metavar=pairs
        )
    default = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


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


def _guarded(name: str, work: Callable[[], None]) -> None:
    """Run a command; every failure that is not a mistake of ours ends in one line and its exit code."""
    raise_when_told()
    show_remarks(name)
    try:
        try:
            work()
            streams.finish()
        except KeyboardInterrupt:
            kept = (
                "training goes on from its last saved state"
                if name == "distill"
                else "finished rows are kept"
            )
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
        if not _is_first_process():
            _let_the_first_process_say_it(error)
        print(f"trd {name}: error: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(error.exit_code) from None


def _is_first_process() -> bool:
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


def _launched_as_many() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _waves(inputs: Sequence[str], stream: bool) -> Iterator[list[str]]:
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
        raise InputError(
            "the pipe brought no path", "at least one shard", "see what the command before it said"
        )


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


def _backend(options: EngineOptions, name: str) -> Backend:
    """Find the model and choose its engine; the engine starts when the first row needs it."""
    from trd_cli.engines.registry import build_engine, check_arguments, choose_engine, engine_version, window
    from trd_cli.generation import Backend
    from trd_cli.models import resolve_model

    engine = choose_engine(options, name)
    version = engine_version(engine)
    check_arguments(engine, options)
    model = resolve_model(name, weights=engine != "openai")
    tokenizer = model.tokenizer()
    limit = window(engine, model, options)
    return Backend(
        model, tokenizer, engine, version, limit, lambda: build_engine(engine, model, tokenizer, options)
    )


@command(
    app,
    "sample",
    SampleConfig,
    "trd sample -m Qwen/Qwen3-1.7B -p train.parquet -n 4 --out runs/y_o | trd verify",
)
def sample(config: SampleConfig) -> None:
    """The student's own attempts at every problem: rollouts y_o."""
    from trd_cli.stages import sample as stage

    stage.run(config, _backend(config, config.model), ConsoleReport("sample"))


@command(
    app, "refine", RefineConfig, "trd refine --setting opd --teacher Qwen/Qwen3-8B --out runs/y_r runs/y_o"
)
def refine(config: RefineConfig) -> None:
    """The teacher rewrites every rollout: y_r."""
    from trd_cli.stages import refine as stage

    stage.run(
        config,
        _waves(config.inputs, config.stream),
        lambda name: _backend(config, name),
        ConsoleReport("refine"),
    )


@command(app, "verify", VerifyConfig, "trd verify runs/y_o")
def verify(config: VerifyConfig) -> None:
    """Verdicts for every row: correct, incorrect, error or timeout."""
    from trd_cli.stages import verify as stage

    stage.run(config, _waves(config.inputs, stream=True), ConsoleReport("verify"))


def methods_help() -> str:
    """What each --method sets, as a table."""
    rows = [
        (name, " ".join(f"{key}={value}" for key, value in sets.items())) for name, sets in METHODS.items()
    ]
    return "\n\n\b\nMethods (--method), and the options they set:\n" + "\n".join(
        f"  {n:<10} {s}" for n, s in rows
    )


@command(
    app,
    "distill",
    DistillConfig,
    "trd distill --method trd --subset repaired --epochs 2 --out runs/student-1 runs/y_r",
    methods_help(),
)
def distill(config: DistillConfig) -> None:
    """Train the student along trajectories towards the teacher's distribution.

    Writes a model directory with train.jsonl in it, adapter/ for --lora, ema/ for an averaged teacher, and states/ while it
    runs: the same command goes on from there. --selfcheck tells whether the loss is right on a model and rows of your own.

    Several processes: torchrun --nproc_per_node 8 -m trd_cli distill ..., or accelerate launch -m trd_cli distill ...
    """
    from trd_cli.models import resolve_model
    from trd_cli.stages import distill as stage

    if _launched_as_many() and tuple(config.inputs) in ((), ("-",)):
        raise InputError("several processes and paths from a pipe", "paths as arguments", "name the sets")
    report = ConsoleReport("distill") if _is_first_process() else SilentReport()
    stage.run(config, next(_waves(config.inputs, stream=False)), resolve_model, report)


@command(app, "eval", EvalConfig, "trd eval runs/student-1 --bench aime25,humaneval+ --k 16 --engine vllm")
def evaluate(config: EvalConfig) -> None:
    """Scores on benchmarks: avg@k, pass@k and maj@k with 95 % intervals over questions.

    Writes results.json, results.md and results.csv beside the samples. --rescore DIR scores samples that are there again.
    """
    from trd_cli.stages import eval as stage

    report = ConsoleReport("eval")
    if config.rescore is not None:
        results = stage.rescore(config, report)
    else:
        names = next(_waves([config.model] if config.model else [], stream=False))
        if len(names) != 1:
            raise InputError(f"{len(names)} models", "one", "run trd eval once a model")
        results = stage.run(config, _backend(config, names[0]), report)
    if results is not None:
        _print_scores(results)
        stage.check_errors(results, config.max_errors)


def _print_scores(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trd_cli.score_tables import headline, interval, percent, shares

    k = results["k"]
    columns = ("benchmark", "score", "value", "95 % interval", "questions")
    table = Table(*columns, title=Text(f"{results['model']}, k = {k}"))
    for name, bench in results["benchmarks"].items():
        for score in headline(bench, k):
            estimate = bench["scores"][score]
            shown = percent(estimate["value"]), interval(estimate)
            table.add_row(Text(name), score, *shown, str(estimate["questions"]))
    console = Console(stderr=True)
    console.print(table)
    for name, bench in results["benchmarks"].items():
        console.print(f"{name}: {shares(bench)}", highlight=False, markup=False, soft_wrap=True)


@command(app, "compare", CompareConfig, "trd compare runs/eval-before runs/eval-after")
def compare(config: CompareConfig) -> None:
    """Two evaluations on the same questions: the paired difference B - A, and the questions gained and lost."""
    from trd_cli.stages import compare as stage

    comparison = stage.run(config, ConsoleReport("compare"))
    with streams.printing():
        if sys.stdout.isatty():
            from rich.console import Console

            Console().print(stage.for_a_terminal(comparison))
        else:
            print(stage.markdown(comparison), end="")


@command(app, "report", ReportConfig, "trd report runs/opsd-math --nll 64")
def report_(config: ReportConfig) -> None:
    """Scores, refinement, training and cost of a run as tables, plots and one page; of two runs A B also their differences.

    Writes report.html, report.md, CSV files and plots. A run that is not finished is reported as far as it is.
    """
    from trd_cli.models import resolve_model
    from trd_cli.stages import report as stage

    stage.run(config, resolve_model, ConsoleReport("report"))


@command(app, "plan", PlanConfig, "trd plan examples/recipes/cpu-smoke.toml --gpu-memory 80")
def plan(config: PlanConfig) -> None:
    """What a recipe will need, and what is wrong with it, before any GPU hour is spent.

    Findings by topic, each ok, warning or error, with what to change; exit code 1 where there is an error. No weights are loaded.
    """
    from trd_cli.planning.findings import lines
    from trd_cli.stages import plan as stage

    findings = stage.run(config, ConsoleReport("plan"))
    with streams.printing():
        print("\n".join(lines(findings)))
    stage.check(config, findings)


@command(app, "run", RunConfig, "trd run examples/recipes/cpu-smoke.toml --out runs/smoke")
def run(config: RunConfig) -> None:
    """A whole recipe: rounds of sample, verify, refine, distill and eval, for all its arms and seeds.

    Stages that arms have in common run once. Each runs in a process of its own, with its log in logs/. The same command again
    does what is missing. In a pipe, the run directory is printed at the end.
    """
    from trd_cli.stages import run as stage

    if config.dry_run:
        told = stage.dry_run(config)
        with streams.printing():
            print("\n".join(told))
        return
    directory = stage.run(config, RunTable())
    if not sys.stdout.isatty():
        streams.hand_over(directory)


@command(app, "show", ShowConfig, "trd show runs/y_r --id 3fa9")
def show(config: ShowConfig) -> None:
    """One trajectory with its prompt, its verdict and its lineage."""
    from rich.console import Console

    from trd_cli.stages import show as stage

    shown = stage.show(config, next(_waves(config.inputs, stream=False)))
    with streams.printing():
        Console().print(shown)


@command(app, "diff", ShowConfig, "trd diff runs/y_r --id 3fa9")
def diff(config: ShowConfig) -> None:
    """What the teacher changed: y_o against y_r, word by word."""
    from rich.console import Console

    from trd_cli.stages import show as stage

    shown = stage.diff(config, next(_waves(config.inputs, stream=False)))
    with streams.printing():
        Console().print(shown)


@command(
    data_app, "make", MakeConfig, "trd data make arithmetic --n 1000 --seed 1 --level 2 --out train.parquet"
)
def data_make(config: MakeConfig) -> None:
    """A generated problem set with worked reference solutions."""
    from trd_cli.stages import data as stage

    stage.make(config, ConsoleReport("data make"))


@command(
    data_app,
    "import",
    ImportConfig,
    "trd data import gsm8k.jsonl --preset gsm8k --limit 1000 --shuffle-seed 0 --out train.parquet",
    "\n\n\b\nPublished formats, and columns by name or by path:"
    "\n  trd data import rl.parquet --preset verl --out train.parquet"
    "\n  trd data import rl.parquet --map problem=extra_info.question,answer=reward_model.ground_truth --out train.parquet",
)
def data_import(config: ImportConfig) -> None:
    """A problem set from a file or a Hub dataset."""
    from trd_cli.stages import data as stage

    stage.import_(config, ConsoleReport("data import"))


@command(data_app, "list", ListConfig, "trd data list")
def data_list(_: ListConfig) -> None:
    """The benchmarks of trd eval: size, grader, where they are read from, sampling.

    Tab-separated in a pipe, one line a benchmark with all that is known: name, questions, task, grader, source, revision, default sampling, options
    with their defaults (NAME:KEY=VALUE,...).
    """
    from trd_cli.stages import data as stage

    listed = stage.list_()
    titles = [field.name for field in dataclasses.fields(listed[0])]
    rows = [benchmark.cells() for benchmark in listed]
    print_table(titles, rows, right=("questions",), hidden=("task", "revision", "options"))


@command(
    data_app,
    "overlap",
    OverlapConfig,
    "trd data overlap train.parquet math500,aime24 --drop clean.parquet --out overlap.json",
)
def data_overlap(config: OverlapConfig) -> None:
    """Rows of a training set that share 8- or 13-word runs with benchmark questions.

    One line a row that overlaps at --n: problem id, trajectory id, part, benchmark, question id, words of the longest common
    run, share of the question's 8-grams and of its 13-grams that the row has. Tab-separated in a pipe.
    """
    from trd_cli.stages import overlap as stage

    offending = stage.run(config, ConsoleReport("data overlap")).offending
    titles = ("problem", "trajectory", "part", "benchmark", "question", "longest run", "8-grams", "13-grams")
    rows = [
        (
            *(f.problem_id, f.trajectory_id or "", f.part, f.benchmark, f.question_id),
            *(str(f.run), f"{f.covered_8:.3f}", f"{f.covered_13:.3f}"),
        )
        for f in offending
    ]
    print_table(
        titles, rows, right=titles[5:], hidden=() if any(row[1] for row in rows) else ("trajectory", "part")
    )


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `trd` script."""
    streams.settle()
    streams.use_utf8()
    # Read when torch is loaded. Threads that spin while they wait make a step several times slower as soon as anything
    # else runs on the machine; threads that sleep cost next to nothing on a quiet one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _end_with_the_run()
    try:
        with streams.printing():  # of help, which no command guards
            app()
    except InputError as error:
        print(f"trd: error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _end_with_the_run() -> None:
    """A stage that trd run started is told to stop when that dies, however it dies. Linux; elsewhere the next trd run ends it."""
    parent = os.environ.pop("TRD_RUN_PID", None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    told: list[int] = []

    def tell_once(number: int, _: object) -> None:
        # It comes once for each thread of the parent, and a second SIGTERM would break into the writing of what is finished.
        if not told:
            told.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

    to_be_signalled = 1  # PR_SET_PDEATHSIG, prctl(2)
    signal.signal(signal.SIGUSR2, tell_once)
    ctypes.CDLL(None).prctl(to_be_signalled, signal.SIGUSR2)
    if os.getppid() != int(parent):  # it died before we asked
        raise SystemExit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
