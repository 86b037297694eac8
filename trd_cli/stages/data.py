"""trd data: make or import a problem set."""

from __future__ import annotations

from pathlib import Path

from trd_cli.config import ImportConfig, MakeConfig
from trd_cli.datasets.arithmetic import make_arithmetic
from trd_cli.datasets.importing import import_problems
from trd_cli.reporting import Report
from trd_cli.shards import write_problems


def make(config: MakeConfig, report: Report) -> None:
    """Write a generated problem set."""
    problems = make_arithmetic(config.n, config.seed, config.level)
    write_problems(Path(config.out), problems)
    report.note(f"{len(problems)} problems in {config.out}")
    report.result(Path(config.out))


def import_(config: ImportConfig, report: Report) -> None:
    """Write an imported problem set."""
    imported = import_problems(config)
    write_problems(Path(config.out), imported.problems)
    report.note(f"{len(imported.problems)} problems in {config.out}")
    if imported.duplicates or imported.skipped:
        report.note(f"left out: {imported.duplicates} duplicates, {imported.skipped} rows without a problem")
    if imported.unreadable:
        report.note(
            f"left out: {len(imported.unreadable)} unreadable rows, the first: {imported.unreadable[0]}"
        )
    report.result(Path(config.out))
