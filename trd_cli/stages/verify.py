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
            for each in open_sets(paths):
                directories.append(each.directory)
                if config.dry_run:
                    report.note(
                        f"would grade {_ungraded(each)} rows in {each.directory} with {options.name} {options.version}"
                    )
                    continue
                target = _target(config, each, directories)
                for shard in each.shards:
                    grader.fill(shard, target / shard.name)
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


def _target(config: VerifyConfig, each: InputSet, directories: Sequence[Path]) -> Path:
    """Where the verified shards of a set go: their own place, or --out with the set's run.json copied to it."""
    if config.out is None:
        return each.directory
    if len(set(directories)) > 1:
        raise InputError("--out with more than one set", "one set", "verify them one by one, or in place")
    target = Path(config.out)
    existing = read_run_json(target)
    if existing is not None and existing.get("digest") != each.digest:
        raise InputError(
            f"{target} holds another set", f"a copy of {each.directory} or nothing", "give another --out"
        )
    target.mkdir(parents=True, exist_ok=True)
    if each.run and existing is None:
        write_text(target / "run.json", json.dumps(each.run, indent=2, ensure_ascii=False) + "\n")
    return target
