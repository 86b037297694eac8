"""trd verify: fill the verdict columns of trajectory sets, shard by shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from trd_cli.config import VerifyConfig
from trd_cli.errors import InputError
from trd_cli.graders.pool import GraderOptions
from trd_cli.grading import ShardGrader
from trd_cli.inputs import InputSet, check_complete, open_sets
from trd_cli.reporting import Report
from trd_cli.run_dir import read_run_json, write_text
from trd_cli.shards import read_table


def run(config: VerifyConfig, waves: Iterable[Sequence[str]], report: Report) -> Counter[str]:
    """Grade what has no verdict yet; returns the verdicts of all rows seen. Each shard is replaced whole or not at all."""
    options = GraderOptions(config.lenient, config.timeout, config.workers)
    directories: list[Path] = []
    report.start("verify", None)
    with ShardGrader(options, report, config.regrade) as grader:
        for paths in waves:
            sets = open_sets(paths)
            directories += [each.directory for each in sets]
            if config.out is not None and len(set(directories)) > 1:
                raise InputError(
                    "--out with more than one set", "one set", "verify them one by one, or in place"
                )
            for each in sets:
                target = _target(config, each)
                if config.dry_run:
                    report.note(
                        f"would grade {_ungraded(each)} rows in {each.directory} with {options.name} {options.version}"
                    )
                    continue
                _prepare(each, target)
                for shard in each.shards:
                    grader.fill(_newest(shard, target / shard.name), target / shard.name)
    report.end()
    if not (config.allow_partial or config.dry_run):
        check_complete(directories)
    if grader.counts:
        report.note(
            "verdicts: " + ", ".join(f"{count} {verdict}" for verdict, count in grader.counts.most_common())
        )
    if config.regrade:
        report.note(f"{grader.changed} verdicts changed")
    return grader.counts


def _ungraded(each: InputSet) -> int:
    return sum(read_table(path, ["verdict"])["verdict"].null_count for path in each.shards)


def _target(config: VerifyConfig, each: InputSet) -> Path:
    """Where the verified shards of a set go: their own place, or --out when that is new or a copy of the same set."""
    if config.out is None:
        return each.directory
    target = Path(config.out)
    existing = read_run_json(target)
    if existing is not None and existing["digest"] != each.digest:
        raise InputError(
            f"{target} holds another set", f"a copy of {each.directory} or nothing", "give another --out"
        )
    if existing is None and target.is_dir() and any(target.iterdir()):
        raise InputError(
            f"{target} holds other files and no run.json", "a new or empty directory", "give another --out"
        )
    return target


def _prepare(each: InputSet, target: Path) -> None:
    """Make the directory of the copies, with the set's run.json as it is now."""
    if target != each.directory:
        target.mkdir(parents=True, exist_ok=True)
        if each.run:
            write_text(target / "run.json", json.dumps(each.run, indent=2, ensure_ascii=False) + "\n")


def _newest(source: Path, copy: Path) -> Path:
    """The copy where it already holds the source's rows, and so perhaps their verdicts; else the source."""
    if not copy.is_file():
        return source
    ids = (read_table(path, ["trajectory_id"])["trajectory_id"] for path in (source, copy))
    return copy if next(ids).equals(next(ids)) else source
