"""Define the commands: each builds one config and hands it to a stage.

Flags, their help and their defaults come from the configs. Commands import heavy modules inside.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from trd_cli import __version__, streams
from trd_cli.command import STYLE, command, end_with_the_run, is_first_process, launched_as_many, waves
from trd_cli.config.commands import (
    CompareConfig,
    DiffConfig,
    EvalConfig,
    ImportConfig,
    ListConfig,
    MakeConfig,
    OverlapConfig,
    PlanConfig,
    ReportConfig,
    RunConfig,
    ShowConfig,
    StatusConfig,
)
from trd_cli.config.diagnosing import DiagnoseConfig
from trd_cli.config.exchanging import ExportConfig, ImportRolloutsConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.grading import VerifyConfig
from trd_cli.config.lab import EstimatorsConfig
from trd_cli.config.publishing import PushConfig
from trd_cli.config.starting import InitConfig
from trd_cli.config.training import METHODS, DistillConfig
from trd_cli.console import ConsoleProgress, RunTable, print_table
from trd_cli.errors import InputError
from trd_cli.progress import SilentProgress

if TYPE_CHECKING:
    from trd_cli.evaluation.table import Table
    from trd_cli.prompting.tokens import Tokenizer
    from trd_cli.trajectories.sets import InputSet

app = typer.Typer(
    help="Trajectory-Refined Distillation: the student samples attempts, the teacher repairs them, the student is trained along the repairs.",
    epilog="A round: trd sample -p P.parquet | trd verify | trd refine --setting opsd | trd verify | trd distill",
    **STYLE | {"add_completion": True},
)

data_app = typer.Typer(name="data", help="Make, import and check problem sets; list benchmarks.", **STYLE)
app.add_typer(data_app)

lab_app = typer.Typer(name="lab", help="Study the ideas behind distillation where the answer is known.", **STYLE)
app.add_typer(lab_app)


@command(app, "sample", SampleConfig, "trd sample -m Qwen/Qwen3-1.7B -p train.parquet -n 4 --out runs/y_o | trd verify")
def sample(config: SampleConfig) -> None:
    """Sample rollouts y_o: the student's attempts at each problem.

    With --env it plays episodes of many turns in an environment. With --from it goes on from a --prefix of each row of
    a set, by the row's own token ids.
    """
    from trd_cli.backends import backend_for
    from trd_cli.stages import sample as stage

    paths = next(waves(config.from_sets, stream=False)) if config.from_sets else ()
    stage.run(config, paths, backend_for(config, config.model), ConsoleProgress("sample"))


@command(app, "refine", RefineConfig, "trd refine --setting opd --teacher Qwen/Qwen3-8B --out runs/y_r runs/y_o")
def refine(config: RefineConfig) -> None:
    """Refine each rollout: the teacher rewrites it as y_r."""
    from trd_cli.backends import backend_for
    from trd_cli.stages import refine as stage

    paths = waves(config.inputs, config.stream)
    stage.run(config, paths, partial(backend_for, config), ConsoleProgress("refine"))


@command(app, "verify", VerifyConfig, "trd verify runs/y_o")
def verify(config: VerifyConfig) -> None:
    """Grade each row: correct, incorrect, error or timeout."""
    from trd_cli.stages import verify as stage

    stage.run(config, waves(config.inputs, stream=True), ConsoleProgress("verify"))


def methods_help() -> str:
    """Return a table of the options that each --method sets."""
    table = "\n\n\b\nMethods (--method), and the options they set:"
    for name, sets in METHODS.items():
        words = " ".join(f"{DistillConfig.flag(key)} {value}" for key, value in sets.items())
        table += "\n" + textwrap.fill(f"  {name:<10} {words}", 80, subsequent_indent=" " * 13, break_on_hyphens=False)
    return table


@command(
    app,
    "distill",
    DistillConfig,
    "trd distill --method trd --subset repaired --epochs 2 --out runs/student-1 runs/y_r",
    methods_help(),
)
def distill(config: DistillConfig) -> None:
    """Train the student along y_r or y_o towards the teacher.

    Writes a model directory with a log (train.jsonl), adapter/ for --lora and ema/ for an averaged teacher. States of
    training are in states/ until it ends: the same command goes on from the last. --selfcheck checks the loss on a
    model and rows of your own.

    Several processes: torchrun --nproc_per_node 8 -m trd_cli distill ..., or accelerate launch -m trd_cli distill ...
    """
    from trd_cli.models import resolve_model
    from trd_cli.stages import distill as stage

    if launched_as_many() and tuple(config.inputs) in ((), ("-",)):
        raise InputError("several processes and paths from a pipe", "paths as arguments", "name the sets")
    progress = ConsoleProgress("distill") if is_first_process() else SilentProgress()
    stage.run(config, next(waves(config.inputs, stream=False)), resolve_model, progress)


@command(app, "diagnose", DiagnoseConfig, "trd diagnose runs/y_o runs/y_r --teacher Qwen/Qwen3-8B --out runs/diagnosis")
def diagnose(config: DiagnoseConfig) -> None:
    """Compare student and teacher at every position of y_o and y_r.

    One pass of both models over the rows, with the full vocabulary. Writes figures of positions and of rows, joined to
    verdicts, and tables, which it prints too; trd report shows them. The same command again scores only the rows that
    are missing, and joins the verdicts anew.

    --recover cuts wrong rollouts, lets the teacher go on from there, and tells how often it ends right.
    """
    from trd_cli.backends import backend_for
    from trd_cli.diagnosis.results import read_diagnosis
    from trd_cli.diagnosis.tables import tables
    from trd_cli.models import resolve_model
    from trd_cli.stages import diagnose as stage

    paths = next(waves(config.inputs, stream=False))
    done = stage.run(config, paths, resolve_model, backend_for, ConsoleProgress("diagnose"))
    if done is not None:
        _tell_tables(tables(read_diagnosis(done)))


def _tell_tables(shown: Iterable[Table]) -> None:
    """Print tables of figures on standard error."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    # A log has no width that its lines must keep to.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 250)
    for each in shown:
        table = Grid(title=Text(each.title), title_justify="left", box=None)
        for i, column in enumerate(each.columns):
            table.add_column(Text(column), justify="right" if i in each.numeric else "left")
        for row in each.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()


@command(app, "eval", EvalConfig, "trd eval runs/student-1 --bench aime25,humaneval+ --k 16 --engine vllm")
def evaluate(config: EvalConfig) -> None:
    """Score a model on benchmarks: avg@k, pass@k, maj@k, intervals.

    With --env it plays episodes, and scores reward, actions that are not valid, and turns too. Intervals are 95 % over
    questions, or games. Writes results.json, results.md and results.csv beside the samples. --rescore DIR scores the
    samples of an earlier evaluation again.
    """
    from trd_cli.backends import backend_for
    from trd_cli.stages import eval as stage

    progress = ConsoleProgress("eval")
    if config.rescore is not None:
        results = stage.rescore(config, progress)
    else:
        names = next(waves([config.model] if config.model else [], stream=False, wanted="a model"))
        if len(names) != 1:
            raise InputError(f"{len(names)} models", "one", "run trd eval once a model")
        results = stage.run(config, backend_for(config, names[0]), progress)
    if results is not None:
        _print_scores(results)
        stage.check_errors(results, config.max_errors)


def _print_scores(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trd_cli.evaluation.tables import episodes, headline, interval, percent, scored, shares

    k = results["k"]
    columns = ("benchmark", "score", "value", "95 % interval", "questions")
    table = Table(*columns, title=Text(f"{results['model']}, k = {k}"))
    for name, bench in scored(results):
        for score in headline(bench, k):
            estimate = bench["scores"][score]
            shown = percent(estimate["value"]), interval(estimate)
            table.add_row(Text(name), score, *shown, str(estimate["questions"]))
    console = Console(stderr=True)
    console.print(table)
    for name, bench in results["benchmarks"].items():
        for line in (shares(bench), *([episodes(bench)] if "episodes" in bench else [])):
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)


@command(app, "compare", CompareConfig, "trd compare runs/eval-before runs/eval-after")
def compare(config: CompareConfig) -> None:
    """Compare two evaluations, A and B, on the same questions.

    Prints the paired difference B - A, and the questions gained and lost.
    """
    from trd_cli.evaluation import compare as stage

    comparison = stage.run(config, ConsoleProgress("compare"))
    with streams.printing():
        if sys.stdout.isatty():
            from rich.console import Console

            Console().print(stage.for_a_terminal(comparison))
        else:
            print(stage.markdown(comparison), end="")


@command(app, "report", ReportConfig, "trd report runs/opsd-math --nll 64")
def report_(config: ReportConfig) -> None:
    """Report on a run, or on two: tables, plots and one page.

    Shows scores, refinement, training and cost; of two runs A and B also the differences B - A; of a diagnosis, in the
    run's directory or alone, what student and teacher say of its rows. Writes report.html, report.md, CSV files and
    plots. An unfinished run is reported as far as it is done.
    """
    from trd_cli.models import resolve_model
    from trd_cli.report import write as stage

    stage.run(config, resolve_model, ConsoleProgress("report"))


@command(
    app,
    "init",
    InitConfig,
    "trd init experiment --student Qwen/Qwen3-1.7B --teacher Qwen/Qwen3-8B --problems deepscaler --bench aime25 --engine vllm",
)
def init(config: InitConfig) -> None:
    """Write a recipe with comments, for the models and problems named.

    Without options it is one that a laptop runs in minutes. trd plan looks at it first: what it finds is printed, and a
    recipe with an error is not written. The path of the recipe goes to standard output.
    """
    from trd_cli.planning import init as stage

    streams.hand_over(stage.run(config, ConsoleProgress("init")))


@command(app, "plan", PlanConfig, "trd plan examples/recipes/cpu-smoke.toml --gpu-memory 80")
def plan(config: PlanConfig) -> None:
    """Tell what a recipe will need, and what is wrong with it.

    Prints findings by topic, each ok, warning or error, with what to change. Exits with 1 if there is an error. Loads
    no weights.
    """
    from trd_cli.planning import plan as stage
    from trd_cli.planning.findings import lines

    findings = stage.run(config, ConsoleProgress("plan"))
    with streams.printing():
        print("\n".join(lines(findings)))
    stage.check(config, findings)


@command(app, "run", RunConfig, "trd run examples/recipes/cpu-smoke.toml --out runs/smoke")
def run(config: RunConfig) -> None:
    """Run a recipe: rounds of all stages, for its arms and seeds.

    A stage that several arms need runs once. Each stage is a command, with a log in logs/ and devices of its own;
    independent stages run at the same time, and stages of one kind share a process that stays warm (the recipe's key
    warm). The same command again does what is missing. In a pipe, the run directory is printed at the end.
    """
    from trd_cli.planning.memory import memory_of
    from trd_cli.planning.refusals import refuse
    from trd_cli.recipes import run as stage
    from trd_cli.tracking.following import followers

    if config.dry_run:
        lines = stage.dry_run(config)
        with streams.printing():
            print("\n".join(lines))
        return
    directory = stage.run(config, RunTable(), refuse, memory_of, followers)
    if not sys.stdout.isatty():
        streams.hand_over(directory)


@command(app, "status", StatusConfig, "trd status runs/y_o runs/y_r runs/eval")
def status(config: StatusConfig) -> None:
    """Tell what of sets, evaluations and runs is done, missing, failed.

    One line an output, then one for each stage of a run, or for the parts of a job array in the same state. From four
    rounds on, those that are done or wait have one line together. The last column of an array has its parts to run
    again as Slurm's --array. Tab-separated in a pipe. Exits with 4 if an output is not complete.
    """
    from trd_cli.report import status as stage

    lines, is_complete = stage.status(config.directories)
    print_table(stage.TITLES, [line.cells() for line in lines], right=stage.TITLES[3:8])
    if not is_complete:
        raise typer.Exit(4)


@command(app, "show", ShowConfig, "trd show runs/y_r --id 3fa9")
def show(config: ShowConfig) -> None:
    """Show one trajectory with its prompt, verdict and lineage."""
    from rich.console import Console

    from trd_cli.trajectories import show as stage

    shown = stage.show(config, next(waves(config.inputs, stream=False)), _tokenizer_of)
    with streams.printing():
        Console().print(shown)


@command(app, "diff", DiffConfig, "trd diff runs/y_r --id 3fa9")
def diff(config: DiffConfig) -> None:
    """Show what the teacher changed from y_o to y_r: words, or actions."""
    from rich.console import Console

    from trd_cli.trajectories import show as stage

    shown = stage.diff(config, next(waves(config.inputs, stream=False)), _tokenizer_of)
    with streams.printing():
        Console().print(shown)


def _tokenizer_of(source: InputSet) -> Tokenizer | None:
    from trd_cli.models import tokenizer_at_hand

    return tokenizer_at_hand(source.about, source.directory)


@command(
    app,
    "export",
    ExportConfig,
    "trd export runs/y_r --subset repaired --format prompt-completion --out repaired.parquet",
)
def export(config: ExportConfig) -> None:
    """Write rows in the layout of another trainer, as JSONL or Parquet.

    A row is the student's own prompt and the response; refined rows need the set of their rollouts (--parents DIR if
    moved). preference has pairs of a right and a wrong response by their verdicts, verl one row a problem. Rows that
    ended as errors or without a response are left out and counted. A file is replaced; a directory gets files of
    --file-rows rows, and the same command again does nothing.
    """
    from trd_cli.exchange import export as stage

    stage.run(config, next(waves(config.inputs, stream=False)), ConsoleProgress("export"))


@command(app, "push", PushConfig, "trd push runs/y_r owner/y_r --license apache-2.0")
def push(config: PushConfig) -> None:
    """Push a set, a run or a checkpoint to the Hub, with a card.

    A set or a run becomes a dataset repository that load_dataset reads as it is, a checkpoint a model repository. The
    card has what run.json tells. What is there with the same hash is not sent again, so the same command goes on after
    an interruption. The token is huggingface_hub's (HF_TOKEN, hf auth login). Prints the name that other commands take:
    of a dataset at its commit, as hf://datasets/owner/name@commit.
    """
    from trd_cli.publishing import push as stage

    pushed = stage.run(config, ConsoleProgress("push"))
    with streams.printing():
        print(pushed.card if config.dry_run else pushed.name)


@command(data_app, "make", MakeConfig, "trd data make arithmetic --n 1000 --seed 1 --level 2 --out train.parquet")
def data_make(config: MakeConfig) -> None:
    """Make a problem set: word problems, or reasoning-gym's."""
    from trd_cli.datasets import make as stage

    stage.make(config, ConsoleProgress("data make"))


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
    """Import a problem set from a file or a Hub dataset."""
    from trd_cli.datasets import make as stage

    stage.import_(config, ConsoleProgress("data import"))


@command(
    data_app,
    "import-rollouts",
    ImportRolloutsConfig,
    "trd data import-rollouts results.jsonl --format verifiers --model Qwen/Qwen3-1.7B --problems train.parquet --out runs/y_o",
)
def data_import_rollouts(config: ImportRolloutsConfig) -> None:
    """Import responses made elsewhere as a set of rollouts.

    Prompts are rendered by the chat template of --model and ids are made by its tokenizer; texts stay as they are. Then
    trd verify, refine, distill and diagnose take the set. The same command again does what is missing.
    """
    from trd_cli.exchange import rollouts as stage
    from trd_cli.models import resolve_model

    stage.run(config, resolve_model(config.model, weights=False), ConsoleProgress("data import-rollouts"))


@command(data_app, "list", ListConfig, "trd data list")
def data_list(_: ListConfig) -> None:
    """List the benchmarks of trd eval: size, grader, source.

    A pipe gets one tab-separated line a benchmark: name, questions, task, grader, source, revision, default sampling,
    options with their defaults (NAME:KEY=VALUE,...).
    """
    from trd_cli.datasets import make as stage

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
    """List rows that share word sequences with benchmarks.

    Prints one line for each row that shares --n words in sequence with a question: problem id, trajectory id, part,
    benchmark, question id, words of the longest shared sequence, share of the question's 8-grams and of its 13-grams
    that the row has. Tab-separated in a pipe.
    """
    from trd_cli.datasets import overlap as stage

    offending = stage.run(config, ConsoleProgress("data overlap")).offending
    titles = ("problem", "trajectory", "part", "benchmark", "question", "longest run", "8-grams", "13-grams")
    rows = [
        (
            *(f.problem_id, f.trajectory_id or "", f.part, f.benchmark, f.question_id),
            *(str(f.run), f"{f.covered_8:.3f}", f"{f.covered_13:.3f}"),
        )
        for f in offending
    ]
    print_table(titles, rows, right=titles[5:], hidden=() if any(row[1] for row in rows) else ("trajectory", "part"))


@command(lab_app, "estimators", EstimatorsConfig, "trd lab estimators --out runs/estimators")
def lab_estimators(config: EstimatorsConfig) -> None:
    """Measure how the variance of a gradient grows with its future.

    Distils small policies on two tasks on a line by g_γ: γ = 0 weighs an action by its own log-ratio of student and
    teacher, γ = 1 by all that follow too. Takes about seven minutes on one core. The same command again makes the cells
    that are missing. Prints one line a γ, tab-separated in a pipe: seeds; variance of the output layer's gradient, and
    how many times that of the first γ, over all updates, then in the first tenth of them; variance in the last tenth;
    variance over squared norm, over all and in the first tenth; end error; the teachers' end error.
    """
    from trd_cli.lab import study

    results = study.run(config, ConsoleProgress("lab estimators"))
    print_table(study.TITLES, study.table(results), right=study.TITLES)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the `trd` script."""
    prepare()
    run_words(None)


def prepare() -> None:
    """Make this process ready for commands. Call it once, before any file is opened."""
    streams.settle()
    streams.use_utf8()
    # torch reads it when it is loaded. Waiting threads that spin make a step several times slower as soon as anything
    # else runs on the machine; threads that sleep cost next to nothing on a quiet one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end_with_the_run()


def run_words(words: Sequence[str] | None) -> NoReturn:
    """Run the command of these words, by default those of the command line. It ends in SystemExit, but for a bug."""
    try:
        with streams.printing():  # the help is printed outside any command
            app(words, prog_name="trd")
    except InputError as error:
        print(f"trd: error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    raise AssertionError("a command ends in SystemExit")


if __name__ == "__main__":
    main()
