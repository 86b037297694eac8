"""Bad input ends in one clear line, exit code 1 and nothing written; usage errors end in 2; the help parses."""

from __future__ import annotations

import re
import shlex
import shutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from click.testing import Result
from support.tiny import write_tokenizer

from trd_cli import __version__
from trd_cli.cli import app
from trd_cli.config.base import Panel
from trd_cli.prompting.templates import prompts_dir
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

Trd = Callable[..., Result]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Make good and bad input of every kind; no test may change it."""
    world = tmp_path_factory.mktemp("world")
    ok("data", "make", "arithmetic", "--n", 6, "--seed", 1, "--out", world / "p.parquet")
    sample = ("sample", "-m", "scripted", "-p", world / "p.parquet", "-n", 2, "--shard-rows", 5)
    ok(*sample, "--out", world / "y_o")
    ok("refine", "--setting", "opsd", world / "y_o", "--out", world / "y_r")
    for name in ("cut", "text", "typed", "half", "graded"):
        shutil.copytree(world / "y_o", world / name)
    cut = world / "cut" / "shard-00001.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    (world / "text" / "shard-00001.parquet").write_text("not Parquet\n")
    typed = world / "typed" / "shard-00001.parquet"
    table = pq.read_table(typed)
    seeds = table["seed"].cast(pa.string())
    wrong = table.set_column(table.schema.get_field_index("seed"), "seed", seeds)
    pq.write_table(wrong.replace_schema_metadata(table.schema.metadata), typed)
    (world / "half" / "shard-00001.parquet").unlink()
    ok("verify", world / "graded", "--workers", 1)
    _plain_files(world)
    _models(world, list_shards(world / "y_o")[0])
    return world


def _plain_files(world: Path) -> None:
    (world / "empty").mkdir()
    (world / "foreign").mkdir()
    (world / "foreign" / "thesis.txt").write_text("dear to its owner\n")
    (world / "other_run").mkdir()
    (world / "other_run" / "run.json").write_text('{"learning_rate": 1}\n')
    (world / "notes.txt").write_text("a file\n")
    (world / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (world / "rows.txt").write_text("1 + 1?\n")
    (world / "unknown.jinja").write_text("{{ problem }} {{ hint }}")
    (world / "lacking.jinja").write_text("Solve it.")
    (world / "broken.jinja").write_text("{{ problem }} {% if %}")


def _models(world: Path, shard: Path) -> None:
    """Make directories that look like models until a command reads far enough to refuse them."""
    for name in ("bare", "mute", "tiny", "endless"):
        (world / name).mkdir()
        (world / name / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 2048}')
    (world / "endless" / "config.json").write_text('{"model_type": "llama"}')
    write_tokenizer(world / "mute", chat_template=None)
    write_tokenizer(world / "tiny")
    write_tokenizer(world / "endless")
    (world / "loose").mkdir()
    write_shard(world / "loose" / "shard-00000.parquet", read_rows(shard))
    (world / "errors").mkdir()
    write_shard(
        world / "errors" / "shard-00000.parquet",
        [replace(row, response=None, response_token_ids=None, error="x") for row in read_rows(shard)],
    )


@pytest.fixture
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run in the world, and check that it is the same afterwards."""
    monkeypatch.chdir(world)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    before = _snapshot(world)
    yield world
    assert _snapshot(world) == before


def _snapshot(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


@dataclass(frozen=True)
class Bad:
    """A command line, its standard input, and the words that its one line of standard error must have."""

    line: str
    words: tuple[str, ...]
    stdin: str = ""


S = "sample -m scripted -p p.parquet"
BAD: dict[str, Bad] = {
    # sample: its problem set
    "no such problem set": Bad(
        "sample -m scripted -p nowhere.parquet", ("no such file: nowhere.parquet", "check the path")
    ),
    "problem set is text": Bad("sample -m scripted -p notes.txt", ("notes.txt", "not Parquet", "whole Parquet")),
    "problem set is a shard": Bad(
        "sample -m scripted -p y_o/shard-00000.parquet", ("y_o/shard-00000.parquet", "column")
    ),
    "problem set is a directory": Bad("sample -m scripted -p y_o", ("y_o is a directory",)),
    # sample: its output
    "another configuration": Bad(
        f"{S} -n 2 --out y_o --temperature 0.9 --top-k 5",
        ("y_o", "temperature (0.6 → 0.9)", "top_k (20 → 5)", "another --out"),
    ),
    "another command's directory": Bad(f"{S} --out y_r", ("command (refine → sample)", "another --out")),
    "fewer attempts": Bad(f"{S} -n 1 --out y_o", ("y_o holds 6 rows", "at least what it was made with")),
    "fewer problems": Bad(f"{S} -n 2 --limit 4 --out y_o", ("y_o holds 4 rows", "give another --out")),
    "foreign files": Bad(f"{S} --out foreign", ("foreign holds other files", "another --out")),
    "foreign run.json": Bad(f"{S} --out other_run", ("other_run/run.json is not of trd", "another directory")),
    "out is a file": Bad(f"{S} --out notes.txt", ("cannot make notes.txt", "a directory", "another --out")),
    # sample: model, engine, prompt
    "no such model directory": Bad("sample -m ./nowhere -p p.parquet", ("no model directory ./nowhere",)),
    "no config.json": Bad("sample -m empty -p p.parquet", ("empty has no config.json",)),
    "no tokenizer": Bad("sample -m bare -p p.parquet", ("no usable tokenizer in", "bare", "copy them there")),
    "no chat template": Bad("sample -m mute -p p.parquet", ("mute has no chat template", "--render raw")),
    "no context length": Bad("sample -m endless -p p.parquet", ("names no context length", "--max-model-len")),
    "engine without its model": Bad(
        "sample -m tiny --engine scripted -p p.parquet", ("--engine scripted with --model tiny", "change one")
    ),
    "model without its engine": Bad(f"{S} --engine transformers", ("--engine transformers with --model scripted",)),
    "argument of a template that trd fills in": Bad(
        f"{S} --chat-template-kwargs tokenize=False",
        ("--chat-template-kwargs tokenize", "names that the chat template reads", "leave tokenize out"),
    ),
    "messages for a template": Bad(
        "refine --setting opsd --chat-template-kwargs messages=[] y_o", ("messages", "leave messages out")
    ),
    "prompt for an evaluation's template": Bad(
        "eval scripted --bench arithmetic --chat-template-kwargs add_generation_prompt=false",
        ("add_generation_prompt", "which trd fills in"),
    ),
    "engine argument that an option stands for": Bad(
        "sample -m tiny -p p.parquet --engine transformers --engine-arg dtype=float32",
        ("--engine-arg dtype", "expected --dtype"),
    ),
    "another model by an engine argument": Bad(
        "sample -m tiny -p p.parquet --engine transformers --engine-arg device_map=auto",
        ("--engine-arg device_map", "expected --device"),
    ),
    "engine argument without a value": Bad(f"{S} --engine-arg delay", ("--engine-arg", "KEY=VALUE")),
    "every prompt too long": Bad(
        f"{S} --max-model-len 5", ("every prompt is too long", "fewer than the 5", "--max-model-len")
    ),
    "no such prompt": Bad(f"{S} --prompt nowhere.jinja", ("nowhere.jinja", "No such file", "check --prompt")),
    "unknown placeholder": Bad(f"{S} --prompt unknown.jinja", ("unknown.jinja", "'hint'", "only {{ problem }}")),
    "missing placeholder": Bad(f"{S} --prompt lacking.jinja", ("lacking.jinja", "lacks {{ problem }}")),
    "broken template": Bad(f"{S} --prompt broken.jinja", ("broken.jinja, line 1", "jinja2 template")),
    "value out of range": Bad(f"{S} -n 0", ("--n 0", "greater than or equal to 1")),
    "share out of range": Bad(f"{S} --top-p 1.5", ("--top-p 1.5", "less than or equal to 1")),
    # the sets that other commands read
    "no such set": Bad("verify nowhere", ("no such file or directory: nowhere", "check the path")),
    "empty set": Bad("verify empty", ("empty has no shards", "a trajectory set")),
    "not a shard": Bad("verify notes.txt", ("notes.txt is not a shard", "shard-NNNNN.parquet")),
    "shard of text": Bad("refine --setting opsd text", ("text/shard-00001.parquet", "not Parquet")),
    "truncated shard": Bad("refine --setting opsd cut", ("cut/shard-00001.parquet", "truncated")),
    "wrong schema": Bad("refine --setting opsd typed", ("typed/shard-00001.parquet, column seed: string", "int64")),
    "unfinished set": Bad(
        "refine --setting opsd half", ("half is unfinished: 7 of 12 rows", "trd sample", "--allow-partial")
    ),
    "unfinished set to train on": Bad("distill half", ("half is unfinished: 7 of 12 rows", "--allow-partial")),
    "empty pipe": Bad("verify", ("the pipe brought no path", "at least one shard")),
    "blank pipe": Bad("refine --setting opsd -", ("the pipe brought no path",), stdin="\n\n"),
    "pipe to train on": Bad("distill", ("the pipe brought no path",)),
    "pipe of a model": Bad("eval --bench arithmetic", ("the pipe brought no path", "expected a model;", "name one")),
    "pipe of nonsense": Bad("verify", ("no such file or directory: hello",), stdin="hello\n"),
    # refine
    "opd without teacher": Bad("refine --setting opd y_o", ("--setting opd without --teacher", "add --teacher")),
    "rows without run.json": Bad(
        "refine --setting opsd loose", ("loose does not say which model wrote the rollouts", "give --teacher")
    ),
    "another tokenizer": Bad(
        "refine --setting opd --teacher tiny y_o", ("tokenizer of tiny", "y_o", "student's family")
    ),
    "refined rows to refine": Bad("refine --setting opsd y_r", ("y_r holds refined rows", "trd sample")),
    "bad --where": Bad("refine --setting opsd --where colour=1 y_o", ("--where 'colour=1'", "colour", "mend")),
    "--where without a truth": Bad("refine --setting opsd --where round+1 y_o", ("--where 'round+1'", "Boolean")),
    "--where that does not parse": Bad("refine --setting opsd --where 'round =' y_o", ("--where 'round ='",)),
    "parents that are not there": Bad(
        "refine --setting opsd --where parent_round=0 y_o",
        ("y_o holds rollouts from problems, which have no parents", "trd refine"),
    ),
    "reference in an opd prompt": Bad(
        f"refine --setting opd -t scripted --prompt '{prompts_dir()}/refine-opsd-math.jinja' y_o",
        ("refine-opsd-math.jinja has the placeholder 'reference_", "only {{ problem }}, {{ attempt }}"),
    ),
    # verify
    "another grader": Bad("verify graded --lenient", ("graded/shard-00000.parquet was graded by", "--regrade")),
    "copies onto another set": Bad("verify y_o --out y_r", ("y_r holds another set", "another --out")),
    "copies among foreign files": Bad("verify y_o --out foreign", ("foreign holds other files", "another --out")),
    "copies of two sets": Bad("verify y_o y_r --dry-run --out new", ("--out with more than one set",)),
    # distill, eval
    "no weights to train": Bad("distill y_o --setting opsd", ("scripted has no weights to train",)),
    "no teacher": Bad("distill y_o --model tiny", ("no teacher", "--setting opsd")),
    "rows of another tokenizer": Bad("distill y_o -m tiny -t tiny", ("tokenizer of tiny", "y_o")),
    "no row to train on": Bad(
        "distill y_o --kind refined", ("trains along refined rows, and y_o hold rollout ones", "--kind rollout")
    ),
    "no row to train on, with the flag's older spelling": Bad(
        "distill y_o --stage refined", ("trains along refined rows", "--kind rollout")
    ),
    "no row in the subset": Bad("distill y_o --subset correct", ("y_o", "subset", "trd verify")),
    "only error rows": Bad("distill errors -m tiny --setting opsd", ("0 of 5 rows can be trained on",)),
    "no such benchmark": Bad("eval scripted --bench nowhere", ("no benchmark 'nowhere'", "trd data list")),
    "benchmark that is not there": Bad("eval scripted --bench nowhere.parquet", ("no such file: nowhere.parquet",)),
    "two models": Bad("eval --bench arithmetic", ("2 models", "one"), stdin="scripted\nscripted\n"),
    # show, diff
    "no such row": Bad("show y_o --id zzz", ("no trajectory zzz in y_o", "check the id")),
    "diff of a rollout": Bad("diff y_o", ("a rollout without a parent", "trd refine")),
    # data
    "no such file to import": Bad("data import nowhere.jsonl --out new.parquet", ("nowhere.jsonl",)),
    "missing column": Bad(
        "data import rows.jsonl --map problem=text --out new.parquet", ("rows.jsonl", "text", "question")
    ),
    "unknown field": Bad("data import rows.jsonl --map colour=question --out new.parquet", ("colour",)),
    "unknown format": Bad("data import rows.txt --out new.parquet", ("rows.txt",)),
    "too hard": Bad("data make arithmetic --level 4 --out new.parquet", ("--level 4", "less than or equal to 3")),
}


def command_of(line: str) -> str:
    words = line.split()
    return " ".join(words[:2] if words[0] in ("data", "lab") else words[:1])


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_says_how_to_mend_it_and_writes_nothing(name: str, inside: Path, trd: Trd) -> None:
    bad = BAD[name]
    result = trd(*shlex.split(bad.line), stdin=bad.stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert [w for w in bad.words if w not in result.stderr] == [], result.stderr
    told = (": left out ", "trd distill: a new training")
    [line] = [line for line in result.stderr.splitlines() if not any(text in line for text in told)]
    assert line.startswith(f"trd {command_of(bad.line)}: error: ")
    assert "; expected " in line


NO_START = {
    "unknown engine argument": (f"{S} --engine-arg colour=red", ("colour", "accuracy, delay")),
    "crash at once": (f"{S} --engine-arg crash_after=0", ("the scripted engine crashed",)),
    "no server": (
        "sample -m tiny -p p.parquet --engine openai",
        ("--engine openai without a server", "OPENAI_BASE_URL"),
    ),
}


@pytest.mark.parametrize("name", NO_START)
def test_an_engine_that_cannot_start_leaves_a_directory_that_the_mended_command_may_use(
    name: str, inside: Path, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    line, words = NO_START[name]
    result = trd(*shlex.split(line), "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    [error] = [line for line in result.stderr.splitlines() if "error" in line]
    assert error.startswith("trd sample: error: ")
    assert [w for w in words if w not in error] == []
    assert "Traceback" not in result.stderr
    mended = ok(*shlex.split(S), "--out", tmp_path / "out")
    assert mended.stdout == f"{tmp_path / 'out' / 'shard-00000.parquet'}\n"


USAGE = {
    "unknown flag": (f"{S} --colour red", "No such option: --colour"),
    "flag of another command": ("diff --tokens y_r", "No such option: --tokens"),
    "bad int": (f"{S} -n many", "Invalid value for '--n' / '-n'"),
    "bad float": (f"{S} --temperature hot", "Invalid value for '--temperature'"),
    "bad choice": ("refine --setting both y_o", "Invalid value for '--setting'"),
    "missing option": ("refine y_o", "Missing option '--setting'"),
    "missing argument": ("data import --out new.parquet", "Missing argument 'file'"),
    "unknown command": ("destroy", "No such command 'destroy'"),
    "one word too many": (f"{S} twice", "unexpected extra argument"),
}


@pytest.mark.parametrize("name", USAGE)
def test_a_usage_error_ends_in_2_and_says_what_is_wrong(name: str, inside: Path, trd: Trd) -> None:
    line, words = USAGE[name]
    result = trd(*shlex.split(line))
    assert (result.exit_code, result.stdout) == (2, "")
    # The other words are Typer's, and it chooses the line breaks.
    assert words.replace(" ", "").lower() in "".join(result.stderr.split()).lower()
    assert "Traceback" not in result.stderr


DRY = {
    "sample": ("sample -m scripted -p p.parquet", ("would make 6 rows", "give the final answer in \\boxed{}")),
    "sample resumed": (f"{S} -n 3 --out y_o", ("would make 18 rows",)),
    "sample elsewhere": (f"{S} --out new/deep", ("new/deep",)),
    "refine": ("refine --setting opsd y_o", ("would make 12 rows", "A draft:")),
    "refine of nothing": ("refine --setting opsd y_o --where round=9", ("no row is in the subset",)),
    "verify": ("verify y_o", ("would grade 12 rows in y_o with math-verify",)),
    "verify again": ("verify graded", ("would grade 0 rows",)),
    "verify copies": ("verify y_o --out new", ("would grade 12 rows",)),
    "distill": ("distill loose -m tiny --setting opsd", ("would train tiny towards tiny on 5", "teacher reads")),
    "eval": ("eval scripted --bench arithmetic:n=4,seed=2 --k 2", ("would make 8 rows",)),
}


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_says_what_would_happen_and_writes_nothing(name: str, inside: Path, trd: Trd) -> None:
    line, words = DRY[name]
    result = trd(*shlex.split(line), "--dry-run")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert [w for w in words if w not in result.stderr] == [], result.stderr


def test_one_of_a_thing_is_counted_in_the_singular(ok: Trd, tmp_path: Path) -> None:
    one = tmp_path / "one.parquet"
    assert f"1 problem in {one}\n" in ok("data", "make", "arithmetic", "--n", 1, "--out", one).stderr
    (tmp_path / "rows.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n{"problem": ""}\n')
    imported = ok("data", "import", tmp_path / "rows.jsonl", "--out", tmp_path / "imported.parquet").stderr
    assert "1 problem in" in imported
    assert "left out: 1 row without a problem\n" in imported
    assert "would make 1 row with" in ok("sample", "-m", "scripted", "-p", one, "--dry-run").stderr


def test_every_command_that_works_long_has_a_dry_run() -> None:
    has = {name for name, command in commands().items() if any("--dry-run" in p.opts for p in command.params)}
    assert has == {"sample", "refine", "verify", "distill", "diagnose", "eval", "run"}


def commands() -> dict[str, click.Command]:
    """Return all commands by name; those of a group as `group name`."""
    found: dict[str, click.Command] = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {n}": c for n, c in inner.items()} if inner else {name: command}
    return found


def example_of(command: click.Command) -> str:
    return command.help.partition("Example:\n")[2].partition("\n\n")[0].strip()


def test_the_version_is_printed(trd: Trd) -> None:
    result = trd("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("name", commands())
def test_help_has_what_the_command_does_an_example_and_a_text_for_every_option(name: str, trd: Trd) -> None:
    result, command = trd(*name.split(), "--help"), commands()[name]
    assert result.exit_code == 0
    assert f"{example_of(command)} ".startswith(f"trd {name} ")
    assert example_of(command) in result.stdout
    assert [p.name for p in command.params if not getattr(p, "help", None)] == []
    flat = "".join(result.stdout.split())
    assert [p.name for p in command.params if "".join(p.help.split()) not in flat] == []


@pytest.mark.parametrize("group", [(), ("data",)], ids=["trd", "trd data"])
def test_the_summary_of_every_command_fits_a_line_of_80_columns(
    group: tuple[str, ...], trd: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = trd(*group, "--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(listed) == (4 if group else 16)
    assert [line for line in listed if line.endswith("...") or not line.startswith("  ") or line[2] == " "] == []


def panels_of(shown: str) -> dict[str, str]:
    """The panels of a help by title, without white space."""
    parts = re.split(r"^(\w+):$", shown.partition("Example:\n")[2], flags=re.MULTILINE)
    return {title: "".join(text.split()) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("name", commands())
def test_the_help_of_a_command_lists_each_option_once_in_a_panel(name: str, trd: Trd) -> None:
    panels, params = panels_of(trd(*name.split(), "--help").stdout), commands()[name].params
    assert list(panels) == [panel for panel in typing.get_args(Panel) if panel in panels]
    found = {p.name: [title for title, text in panels.items() if "".join(p.help.split()) in text] for p in params}
    assert {option: titles for option, titles in found.items() if len(titles) != 1} == {}


def test_options_that_belong_together_are_in_one_panel(trd: Trd) -> None:
    panels = panels_of(trd("distill", "--help").stdout)
    assert next(iter(panels)) == "Input"
    for title, flags in {
        "Input": ("inputs...", "--subset", "--kind,--stage"),
        "Model": ("-m,--model", "-t,--teacher"),
        "Method": ("--method", "--objective", "--clip-position"),
        "Training": ("--epochs", "--learning-rate,--lr"),
        "Adapter": ("--lora-rank",),
        "Output": ("--out", "--dry-run"),
    }.items():
        assert [flag for flag in flags if flag not in panels[title]] == [], title


def examples() -> Iterator[str]:
    root = typer.main.get_command(app)
    lines = [root.epilog.partition(": ")[2], *(example_of(command) for command in commands().values())]
    for line in lines:
        yield from (part.strip() for part in line.split("|"))


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_every_example_in_the_help_parses(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "trd"
    name = command_of(" ".join(words))
    commands()[name].make_context(name, words[len(name.split()) :])


def test_the_list_of_commands_is_the_one_promised(trd: Trd) -> None:
    stages = ["sample", "verify", "refine", "distill", "eval", "compare", "show", "diff"]
    data = ["data make", "data import", "data list", "data overlap"]
    assert {*stages, *data} <= set(commands())
    assert trd("--help").exit_code == 0
