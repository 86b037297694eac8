"""Share fixtures with all tests: the command line run in this process, and small sets made by the scripted engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.browser import browser
from support.local_server import Server, servers
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

from trd_cli.cli import app

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# transformers keeps logging to the standard error of its first use. That of a single command is closed later.
transformers_logging.get_logger()

Trd = Callable[..., Result]

# The files that take longest, in this order: one of them at the end would leave the other processes without work.
LONGEST = (
    *("evalplus_records", "run", "quickstart", "warm", "continue", "resume_training", "sharding", "hostile"),
    *(
        "processes",
        "kill",
        "methods",
        "contexts",
        "distill",
        "relay",
        "from_prefixes",
        "recovery",
        "diagnose",
        "scope",
        "report_of_diagnosis",
        "authors",
        "shells",
        "programs",
        "report_tables",
        "grader_pool",
        "eval",
        "sandbox",
        "many_nodes",
        "trackers",
        "refusals",
        "lab_world",
        "transformers_engine",
        "ray",
        "saving",
        "code_grader",
        "keys",
    ),
)

# A variation of what shorter tests show too, or a check of the suite itself.
takes_long = pytest.mark.skipif("TRD_FULL" not in os.environ, reason="takes a minute or more: TRD_FULL=1")
made_by_setup = pytest.mark.skipif(
    not (Path(sys.prefix) / ".trd-installed").is_file(), reason="needs the environment that tests/run.sh makes"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; each process takes the next file from the front."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def trd() -> Trd:
    """Run a trd command; `result.stdout`, `result.stderr` and `result.exit_code` are those that a shell would get."""

    def run(*args: object, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def ok(trd: Trd) -> Trd:
    """Run a trd command that must succeed."""

    def run(*args: object, stdin: str | None = None) -> Result:
        result = trd(*args, stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return result

    return run


@pytest.fixture
def problems(tmp_path: Path, ok: Trd) -> Path:
    """Return twelve arithmetic problems."""
    path = tmp_path / "problems.parquet"
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 1, "--out", path)
    return path


@pytest.fixture
def rollouts(tmp_path: Path, ok: Trd, problems: Path) -> Path:
    """Return a finished set of 24 scripted rollouts without verdicts."""
    path = tmp_path / "y_o"
    ok("sample", "-m", "scripted", "-p", problems, "-n", 2, "--shard-rows", 10, "--out", path)
    return path


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """Yield a browser; for what a person does with it see `support.browser`."""
    with browser() as started:
        yield started


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Yield a function that starts a local server with its answers."""
    with servers() as start:
        yield start
