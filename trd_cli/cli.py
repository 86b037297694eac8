"""The command line: parse, build one config, hand over to a stage. The only place that exits and that builds engines.

Flags, their help and their defaults come from the config classes; heavy modules are imported inside the commands.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trd_cli import __version__, streams
from trd_cli.command import STYLE, command, end_with_the_run, is_first_process, launched_as_many, waves
from trd_cli.config.commands import (
    CompareConfig,
    EvalConfig,
    ImportConfig,
    ListConfig,
    MakeConfig,
    OverlapConfig,
    PlanConfig,
    ReportConfig,
    RunConfig,
    ShowConfig,
)
from trd_cli.config.generating import EngineOptions, RefineConfig, SampleConfig
from trd_cli.config.grading import VerifyConfig
from trd_cli.config.training import METHODS, DistillConfig
from trd_cli.console import ConsoleProgress, RunTable, print_table
from trd_cli.errors import InputError
from trd_cli.progress import SilentProgress

if TYPE_CHECKING:
    from trd_cli.generation import Backend

app = typer.Typer(
    help="Trajectory-Refined Distillation: the student samples, the teacher repairs, the student is distilled along the repair.",
    epilog="A round: trd sample -p P.parquet | trd verify | trd refine --setting opsd | trd verify | trd distill",
    **STYLE,
)

data_app = typer.Typer(name="data", help="Make, import or check problem sets; list benchmarks.", **STYLE)
app.add_typer(data_app)


def _backend(options: EngineOptions, name: str) -> Backend:
    """Find the model and choose its engine; the engine starts when the first row needs it."""
    from trd_cli.engines.base import engine_version
    from trd_cli.engines.registry import build_engine, check_arguments, choose_engine, window
    from trd_cli.generation import Backend
    from trd_cli.models import resolve_model

    engine = choose_engine(options, name)
    version = engine_version(engine)
    check_arguments(engine, options)
    model = resolve_model(name, weights=engine != "openai")
    tokenizer = model.tokenizer()
    limit = window(engine, model, options)
    return Backend(model, tokenizer, engine, version, limit, lambda: build_engine(engine, model, tokenizer, options))


@command(app, "sample", SampleConfig, "trd sample -m Qwen/Qwen3-1.7B -p train.parquet -n 4 --out runs/y_o | trd verify")
def sample(config: SampleConfig) -> None:
    """The student's own attempts at every problem: rollouts y_o."""
    from trd_cli.stages import sample as stage

    stage.run(config, _backend(config, config.model), ConsoleProgress("sample"))


@command(app, "refine", RefineConfig, "trd refine --setting opd --teacher Qwen/Qwen3-8B --out runs/y_r runs/y_o")
def refine(config: RefineConfig) -> None:
    """The teacher rewrites every rollout: y_r."""
    from trd_cli.stages import refine as stage

    stage.run(
        config, waves(config.inputs, config.stream), lambda name: _backend(config, name), ConsoleProgress("refine")
    )


@command(app, "verify", VerifyConfig, "trd verify runs/y_o")
def verify(config: VerifyConfig) -> None:
    """Verdicts for every row: correct, incorrect, error or timeout."""
    from trd_cli.stages import verify as stage

    stage.run(config, waves(config.inputs, stream=True), ConsoleProgress("verify"))


def methods_help() -> str:
    """What each --method sets, as a table."""
    rows = [(name, " ".join(f"{key}={value}" for key, value in sets.items())) for name, sets in METHODS.items()]
    return "\n\n\b\nMethods (--method), and the options they set:\n" + "\n".join(f"  {n:<10} {s}" for n, s in rows)


@command(
    app,
    "distill",
    DistillConfig,
    "trd distill --method trd --subset repaired --epochs 2 --out runs/student-1 runs/y_r",
    methods_help(),
)
def distill(config: DistillConfig) -> None:
    """Train the student along trajectories towards the teacher's distribution.

    Writes a model directory with train.jsonl in it, adapter/ for --lora, ema/ for an averaged teacher, and states/
    while it runs: the same command goes on from there. --selfcheck tells whether the loss is right on a model and rows
    of your own.

    Several processes: torchrun --nproc_per_node 8 -m trd_cli distill ..., or accelerate launch -m trd_cli distill ...
    """
    from trd_cli.models import resolve_model
    from trd_cli.stages import distill as stage

    if launched_as_many() and tuple(config.inputs) in ((), ("-",)):
        raise InputError("several processes and paths from a pipe", "paths as arguments", "name the sets")
    report = ConsoleProgress("distill") if is_first_process() else SilentProgress()
    stage.run(config, next(waves(config.inputs, stream=False)), resolve_model, report)


@command(app, "eval", EvalConfig, "trd eval runs/student-1 --bench aime25,humaneval+ --k 16 --engine vllm")
def evaluate(config: EvalConfig) -> None:
    """Scores on benchmarks: avg@k, pass@k and maj@k with 95 % intervals over questions.

    Writes results.json, results.md and results.csv beside the samples. --rescore DIR scores samples that are there
    again.
    """
    from trd_cli.stages import eval as stage

    report = ConsoleProgress("eval")
    if config.rescore is not None:
        results = stage.rescore(config, report)
    else:
        names = next(waves([config.model] if config.model else [], stream=False))
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

    from trd_cli.evaluation.tables import headline, interval, percent, shares

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
    """Scores, refinement, training and cost of a run as tables, plots and one page; of two runs A B also their
    differences.

    Writes report.html, report.md, CSV files and plots. A run that is not finished is reported as far as it is.
    """
    from trd_cli.models import resolve_model
    from trd_cli.report import write as stage

    stage.run(config, resolve_model, ConsoleProgress("report"))


@command(app, "plan", PlanConfig, "trd plan examples/recipes/cpu-smoke.toml --gpu-memory 80")
def plan(config: PlanConfig) -> None:
    """What a recipe will need, and what is wrong with it, before any GPU hour is spent.

    Findings by topic, each ok, warning or error, with what to change; exit code 1 where there is an error. No weights
    are loaded.
    """
    from trd_cli.planning import plan as stage
    from trd_cli.planning.findings import lines

    findings = stage.run(config, ConsoleProgress("plan"))
    with streams.printing():
        print("\n".join(lines(findings)))
    stage.check(config, findings)


@command(app, "run", RunConfig, "trd run examples/recipes/cpu-smoke.toml --out runs/smoke")
def run(config: RunConfig) -> None:
    """A whole recipe: rounds of sample, verify, refine, distill and eval, for all its arms and seeds.

    Stages that arms have in common run once. Each runs in a process of its own, with its log in logs/. The same command
    again does what is missing. In a pipe, the run directory is printed at the end.
    """
    from trd_cli.planning.refusals import refuse
    from trd_cli.recipes import run as stage

    if config.dry_run:
        told = stage.dry_run(config)
        with streams.printing():
            print("\n".join(told))
        return
    directory = stage.run(config, RunTable(), refuse)
    if not sys.stdout.isatty():
        streams.hand_over(directory)


@command(app, "show", ShowConfig, "trd show runs/y_r --id 3fa9")
def show(config: ShowConfig) -> None:
    """One trajectory with its prompt, its verdict and its lineage."""
    from rich.console import Console

    from trd_cli.trajectories import show as stage

    shown = stage.show(config, next(waves(config.inputs, stream=False)))
    with streams.printing():
        Console().print(shown)


@command(app, "diff", ShowConfig, "trd diff runs/y_r --id 3fa9")
def diff(config: ShowConfig) -> None:
    """What the teacher changed: y_o against y_r, word by word."""
    from rich.console import Console

    from trd_cli.trajectories import show as stage

    shown = stage.diff(config, next(waves(config.inputs, stream=False)))
    with streams.printing():
        Console().print(shown)


@command(data_app, "make", MakeConfig, "trd data make arithmetic --n 1000 --seed 1 --level 2 --out train.parquet")
def data_make(config: MakeConfig) -> None:
    """A generated problem set with worked reference solutions."""
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
    """A problem set from a file or a Hub dataset."""
    from trd_cli.datasets import make as stage

    stage.import_(config, ConsoleProgress("data import"))


@command(data_app, "list", ListConfig, "trd data list")
def data_list(_: ListConfig) -> None:
    """The benchmarks of trd eval: size, grader, where they are read from, sampling.

    Tab-separated in a pipe, one line a benchmark with all that is known: name, questions, task, grader, source,
    revision, default sampling, options with their defaults (NAME:KEY=VALUE,...).
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
    """Rows of a training set that share 8- or 13-word runs with benchmark questions.

    One line a row that overlaps at --n: problem id, trajectory id, part, benchmark, question id, words of the longest
    common run, share of the question's 8-grams and of its 13-grams that the row has. Tab-separated in a pipe.
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
    end_with_the_run()
    try:
        with streams.printing():  # of help, which no command guards
            app()
    except InputError as error:
        print(f"trd: error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
