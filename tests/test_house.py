"""The floors of the house: imports between files, rights of the command line alone, and the modules that help loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trd_cli"

# A file may import its own floor and those below. A name with a slash is a directory with all that is in it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__init__", "errors", "extras", "records", "redaction", "local_data"),
    (
        "atomic",
        "children",
        "own_code",
        "locks",
        "interrupts",
        "keeper",
        "freeing",
        "progress",
        "model_files",
        "adapter_files",
        "losses/",
        "config/",
        "hub/",
    ),
    ("graders.answers", "graders/reading/", "prompting/", "trajectories/"),
    ("streams", "console", "command", "models", "merging", "graders.by_math_verify", "graders/comparing/"),
    ("engines/", "worlds/"),
    ("graders/",),
    ("datasets/", "evaluation/", "planned", "backends", "continuing", "generation", "episodes/"),
    ("training/", "recipes/", "diagnosis/", "relaying/"),
    ("planning/", "report/", "stages/", "lab/", "exchange/", "publishing/", "tracking/"),
    ("cli", "__main__", "warm", "api"),
)
# The largest share of the lines that one floor may hold.
SHARE = 0.25
# Pure functions: they read no file and no clock.
PURE = (
    "losses/",
    "lab.estimators",
    "evaluation.metrics",
    "evaluation.intervals",
    "evaluation.paired",
    "evaluation.seeds",
    "datasets.ngrams",
)
PRINTING = {"console", "command", "cli", "warm"}
HEAVY = {
    "accelerate",
    "datasets",
    "evalplus",
    "huggingface_hub",
    "jinja2",
    "latex2mathml",
    "math_verify",
    "matplotlib",
    "numpy",
    "openai",
    "peft",
    "polars",
    "pyarrow",
    "rapidfuzz",
    "ray",
    "reasoning_gym",
    "sympy",
    "textarena",
    "textworld",
    "torch",
    "trackio",
    "transformers",
    "vllm",
    "wandb",
}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "_prompts" not in path.parts
}


def floor(module: str) -> int | None:
    """Return the floor of a module (dotted, without `trd_cli.`), or None if the table does not have it."""
    parts = module.split(".")
    # The longest directory counts.
    for name in (module, *("/".join(parts[:length]) + "/" for length in range(len(parts) - 1, 0, -1))):
        for number, names in enumerate(FLOORS):
            if name in names:
                return number
    return None


def named(module: str) -> str:
    """Return a package's own file under the package's name: `stages.__init__` is imported as `stages`."""
    return module.removesuffix(".__init__")


MODULES = {named(module): module for module in FILES}


def imports(node: ast.AST, deferred: bool) -> Iterator[str]:
    """Yield modules of ours that are imported below `node`; without `deferred`, only those at import time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from _ours(child)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                if alias.name.startswith("trd_cli."):
                    yield MODULES[alias.name.removeprefix("trd_cli.")]
        elif deferred or not _runs_later(child):
            yield from imports(child, deferred)


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return True
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _ours(node: ast.ImportFrom) -> Iterator[str]:
    package, _, inside = (node.module or "").partition(".")
    if package != "trd_cli":
        return
    for alias in node.names:
        whole = ".".join(filter(None, (inside, alias.name)))
        yield MODULES[whole] if whole in MODULES else MODULES[inside or "__init__"]


def imported_by(module: str, deferred: bool = True) -> set[str]:
    return set(imports(ast.parse(FILES[module].read_text()), deferred))


def test_every_file_has_a_floor_and_every_name_in_the_table_is_a_file() -> None:
    assert [module for module in FILES if floor(module) is None] == []
    files = {named(module) for module in FILES}
    assert [n for names in FLOORS for n in names if n not in files and not (PACKAGE / n).is_dir()] == []


def test_the_walk_sees_deferred_imports_and_tells_them_from_those_at_import_time() -> None:
    assert "stages.sample" in imported_by("cli")
    assert "stages.sample" not in imported_by("cli", deferred=False)
    assert "generation" not in imported_by("cli", deferred=False), "TYPE_CHECKING is not import time"


@pytest.mark.parametrize("module", FILES)
def test_no_file_imports_a_floor_above_its_own(module: str) -> None:
    above = {f"{other} (floor {floor(other)})" for other in imported_by(module) if floor(other) > floor(module)}
    assert above == set(), f"{module} is on floor {floor(module)}"


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("stages.")])
def test_stages_never_import_each_other(module: str) -> None:
    assert {other for other in imported_by(module) if other.startswith("stages.")} <= {"stages.__init__"}


@pytest.mark.parametrize("module", [m for m in FILES if m in PURE or f"{m.partition('.')[0]}/" in PURE])
def test_pure_files_read_no_file_and_no_clock(module: str) -> None:
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported & {"os", "io", "pathlib", "time", "subprocess", "socket", "tempfile", "shutil"} == set()


def room(module: str) -> str:
    """Return a file's package below `trd_cli`, or the file itself if it has none."""
    return module.partition(".")[0]


@pytest.mark.parametrize("name", [lambda module: module, room], ids=["files", "packages"])
def test_nothing_imports_each_other_in_a_circle(name: Callable[[str], str]) -> None:
    graph: dict[str, set[str]] = {}
    for module in FILES:
        graph.setdefault(name(module), set()).update(name(other) for other in imported_by(module))
    for node, others in graph.items():
        others.discard(node)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_floor_holds_more_than_its_share_of_the_lines() -> None:
    lines = [0] * len(FLOORS)
    for module, path in FILES.items():
        lines[floor(module)] += path.read_text().count("\n")
    assert [FLOORS[n] for n, count in enumerate(lines) if count > SHARE * sum(lines)] == []


# Files that run inside a sandbox are programs of their own.
PROGRAMS = {m for m in FILES if m.startswith("graders.inside.")}


@pytest.mark.parametrize("module", [m for m in FILES if m not in PRINTING | PROGRAMS])
def test_only_the_command_line_prints_and_exits(module: str) -> None:
    found = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if (isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "exit", "quit"))
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.exit", "os._exit", "typer.Exit"))
        or (isinstance(node, ast.Raise) and node.exc and "SystemExit" in ast.unparse(node.exc))
        or (isinstance(node, ast.ImportFrom) and node.module in ("sys", "typer"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "name",
    [
        *("run.json", "sessions.jsonl", "train.jsonl", "results.json"),
        *("graph.json", "status.json", "problems.parquet"),
    ],
)
def test_the_name_of_a_file_that_stages_share_is_written_in_one_place(name: str) -> None:
    found = [
        f"{module}, line {node.lineno}"
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.strip("/") == name
    ]
    assert len(found) == 1, found


def test_polars_is_loaded_in_one_place_which_mends_its_handling_of_ctrl_c() -> None:
    found = [module for module, path in FILES.items() if "import polars" in path.read_text()]
    assert found == ["trajectories.selection"]


def test_the_memory_of_a_gpu_is_given_back_in_one_place() -> None:
    found = [module for module, path in FILES.items() if "empty_cache" in path.read_text()]
    assert found == ["freeing"]


@pytest.mark.parametrize("line", ["--help", "sample --help", "distill --help", "data import --help"])
def test_help_loads_nothing_heavy(line: str) -> None:
    program = (
        "import sys\nfrom trd_cli.cli import app\n"
        f"app({line.split()!r}, standalone_mode=False)\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    usage, loaded = shown.split("LOADED")
    assert "Usage:" in usage
    assert HEAVY & set(loaded.split()) == set()


def test_rows_are_made_without_pandas_and_polars_and_pandas_can_be_used_afterwards(tmp_path: Path) -> None:
    commands = (
        f"data make arithmetic --n 3 --out {tmp_path}/p.parquet",
        f"sample -m scripted -p {tmp_path}/p.parquet --out {tmp_path}/y_o",
        f"refine {tmp_path}/y_o --setting opd --teacher scripted --out {tmp_path}/y_r",
    )
    program = (
        "import sys\nfrom trd_cli.cli import app\n"
        f"for line in {commands}:\n    app(line.split(), standalone_mode=False)\n"
        "print('LOADED', {'pandas', 'polars'} & set(sys.modules))\n"
        "import pyarrow as pa, pandas as pd\n"
        "print(pa.table({'a': pd.Series([1, None])}).to_pandas()['a'].tolist(), pa.array(pd.Series([3])).to_pylist())"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-2:] == ["LOADED set()", "[1.0, nan] [3]"]
