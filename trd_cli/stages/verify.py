"""trd verify: fill the verdict columns of trajectory sets, shard by shard."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import get_args

from trd_cli.atomic import make_directory, write_text
from trd_cli.config.grading import VerifyConfig
from trd_cli.errors import DamagedFile, InputError, counted
from trd_cli.generation import Outcome
from trd_cli.graders.options import Grader, GraderOptions
from trd_cli.graders.sandbox import described
from trd_cli.graders.verdicts import OF_A_GRADER, ShardGrader, graders_of, lines
from trd_cli.hub.names import is_hub_name
from trd_cli.progress import Progress
from trd_cli.records import Part, Verdict
from trd_cli.trajectories.parts import named, verdicts_held
from trd_cli.trajectories.run_json import copy_parts, read_run_json, write_run_json
from trd_cli.trajectories.sets import InputSet, check_complete, open_sets
from trd_cli.trajectories.shards import check_whole, graded_by, list_shards, read_table


def run(config: VerifyConfig, waves: Iterable[Sequence[str]], progress: Progress) -> Counter[str]:
    """Grade rows without a verdict and return the verdicts of all rows read. Each shard is replaced whole or not at
    all.

    Raises ResumeRefused for a set in which another process fills in verdicts.
    """
    options = GraderOptions.of(config)
    directories: list[Path] = []
    first: InputSet | None = None
    progress.start("verify", None)
    regrade = "all" if config.regrade else "none"
    differing: defaultdict[Path, str] = defaultdict(str)
    shards = 0
    with _Held(config.part) as held, ShardGrader(options, progress, regrade, config.audit) as grader:
        for paths in waves:
            if config.out is None:
                _check_writable(paths)
            sets = open_sets(paths)
            directories += [each.directory for each in sets]
            first = first or sets[0]
            if config.out is not None and len(set(directories)) > 1:
                raise InputError("--out with more than one set", "one set", "verify them one by one, or in place")
            for each in (_own(each, config.part) for each in sets):
                shards += len(each.shards)
                target = _target(config, each)
                if config.dry_run:
                    for line in _preview(each, options, config.regrade):
                        progress.note(line)
                    continue
                make_directory(target)
                held.add(target)
                _prepare(each, target)
                seen = len(grader.audit.differing)
                for shard in each.shards:
                    grader.fill(_newest(shard, target / shard.name), target / shard.name)
                if config.audit:
                    differing[target] += lines(grader.audit.differing[seen:])
                    _list_differing(audit_file(target, config.part), differing[target], progress)
        progress.end()
        if config.out is not None and not config.dry_run:
            _settle(first, Path(config.out), config.part)
    if not (config.allow_partial or config.dry_run):
        check_complete(directories, config.part)
    if not shards:
        progress.note(f"no shard of {', '.join(map(str, dict.fromkeys(directories)))} falls to {config.part}")
    if grader.counts:
        progress.note("verdicts: " + ", ".join(f"{count} {verdict}" for verdict, count in grader.counts.most_common()))
    if config.regrade and not config.dry_run:
        for line in _confusion(grader.changes):
            progress.note(line)
    if grader.worked_references.rows:
        progress.note(grader.worked_references.summary())
    if config.audit and not config.dry_run:
        progress.note(grader.audit.summary())
    grader.check_all_graded()
    outcome = Outcome(rows=grader.counts.total(), errors=grader.counts["error"] + grader.counts["timeout"])
    outcome.check_errors(config.max_errors)
    return grader.counts


def _check_writable(paths: Sequence[str]) -> None:
    """Raise InputError for a set on the Hub, which cannot be graded in place."""
    for path in filter(is_hub_name, paths):
        raise InputError(f"{path}, which cannot be written to", "a directory for the graded copy", "give --out DIR")


def _own(each: InputSet, part: Part | None) -> InputSet:
    """Return the set with the shards that this part replaces: two tasks of an array never write the same file."""
    return replace(each, shards=tuple(shard for shard in each.shards if graded_by(shard, part)))


def audit_file(directory: Path, part: Part | None = None) -> Path:
    """Return the file beside a set that lists the rows on which the second method differs."""
    place = directory.absolute()
    return place.with_name(named(f"{place.name}.audit.jsonl", part))


def _list_differing(file: Path, text: str, progress: Progress) -> None:
    """Write the rows on which the two methods differ; without any no file is left."""
    if text:
        write_text(file, text)
        progress.note(f"the rows on which the second method differs: {file}")
    else:
        file.unlink(missing_ok=True)


class _Held(ExitStack):
    """Hold the sets whose verdicts this process fills in, each from its first shard to the end."""

    def __init__(self, part: Part | None) -> None:
        super().__init__()
        self._part = part
        self._known: set[Path] = set()

    def add(self, directory: Path) -> None:
        """Hold a set, unless it is held already; raises ResumeRefused where another process has it."""
        if directory.resolve() not in self._known:
            self.enter_context(verdicts_held(directory, self._part))
            self._known.add(directory.resolve())


def _preview(each: InputSet, options: GraderOptions, regrade: bool) -> Iterator[str]:
    """Yield how many rows each grader would get."""
    counts: Counter[Grader] = Counter()
    others: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for path in each.shards:
        table = read_table(path, ["verdict", "grader", "grader_version", *OF_A_GRADER])
        columns = (table[name].to_pylist() for name in ("verdict", "task", "grader", "grader_version"))
        for grader, verdict, task, *by in zip(graders_of(table, options), *columns, strict=True):
            if grader is None:
                without[task] += 1
                continue
            counts[grader] += regrade or verdict is None
            is_other = tuple(by) != (grader.name, grader.version)
            others[" ".join(map(str, by))] += not regrade and verdict is not None and is_other
    for name, count in sorted((+others).items()):
        yield f"would refuse {counted(count, 'row')} graded by {name}: pass --regrade to grade them again"
    for task, count in sorted(without.items()):
        yield f"would leave {counted(count, 'row')} of the task {task}, which has no grader: name one with --grader"
    for grader, count in sorted(counts.items(), key=lambda item: item[0].name):
        yield f"would grade {counted(count, 'row')} in {each.directory} with {grader.name} {grader.version}"
    if any(grader.in_sandbox for grader in counts):
        yield f"programs would run in the sandbox: {described(options.sandbox)}"


def _confusion(changes: Counter[tuple[str, str]]) -> Iterator[str]:
    """Yield how many verdicts changed and, if any did, a table of old ones (lines) against new ones (columns)."""
    changed = sum(count for (old, new), count in changes.items() if old != new)
    yield f"{counted(changed, 'verdict')} changed"
    if not changed:
        return
    names = [name for name in get_args(Verdict) if any(name in pair for pair in changes)]
    yield "old \\ new".ljust(12) + "".join(name.rjust(11) for name in names)
    for old in names:
        yield old.ljust(12) + "".join(str(changes[old, new]).rjust(11) for new in names)


def _target(config: VerifyConfig, each: InputSet) -> Path:
    """Return where the verified shards go: in place, or --out when that is new or a copy of the same set."""
    if config.out is None:
        return each.directory
    target = Path(config.out)
    # Another task of the array may write run.json now: looked at last, it is there if any shard is.
    is_foreign = target.is_dir() and any(_is_foreign(path, each) for path in target.iterdir())
    existing = read_run_json(target)
    if existing is not None and existing["digest"] != each.digest:
        raise InputError(f"{target} holds another set", f"a copy of {each.directory} or nothing", "give another --out")
    if existing is None and is_foreign:
        raise InputError(
            f"{target} holds other files and no run.json", "a new or empty directory", "give another --out"
        )
    return target


def _is_foreign(path: Path, each: InputSet) -> bool:
    """Return whether a file in a directory without run.json is not a copy that verifying this set has left."""
    if path.name.startswith("."):
        return False
    source = each.directory / path.name
    return bool(each.record) or not source.is_file() or not _same_rows(source, path)


def _prepare(each: InputSet, target: Path) -> None:
    """Copy the set's present run.json to the target."""
    if target != each.directory and each.record:
        write_run_json(target, each.record)


def _settle(source: InputSet, target: Path, part: Part | None) -> None:
    """Bring the copies in line with the source, which may have grown: the rows it expects, the shards it holds."""
    whole = open_sets([str(source)])[0]
    _prepare(whole, target)
    if whole.directory != target:
        copy_parts(whole.directory, target)
    current = {shard.name for shard in whole.shards}
    for copy in list_shards(target):
        if copy.name not in current and graded_by(copy, part):
            copy.unlink()


def _newest(source: Path, copy: Path) -> Path:
    """Return the copy where it is whole and has the source's rows, and so perhaps their verdicts; else the source."""
    if source == copy or not copy.is_file():
        return source
    try:
        check_whole(copy)
    except DamagedFile:
        return source
    return copy if _same_rows(source, copy) else source


def _same_rows(one: Path, other: Path) -> bool:
    """Return whether two shards hold the same trajectories, whatever their verdicts."""
    tables = [read_table(path, ["trajectory_id", "response", "error"]) for path in (one, other)]
    return tables[0].equals(tables[1])
