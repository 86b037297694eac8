"""Read the tasks of HumanEval+ and MBPP+ with EvalPlus's own conversions.

A file is looked for in `$TRD_DATA/benchmarks`, then at the paths in EvalPlus's variables HUMANEVAL_OVERRIDE_PATH and
MBPP_OVERRIDE_PATH, then in EvalPlus's cache, into which EvalPlus downloads it. Importing evalplus.data loads the
datasets package, so only functions import it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from trd_cli.errors import InputError, OutOfReach, first_line
from trd_cli.local_data import local_file

Dataset = Literal["humaneval", "mbpp"]
Task = dict[str, Any]

LATEST: dict[Dataset, str] = {"humaneval": "v0.1.10", "mbpp": "v0.2.0"}
_RELEASE: dict[Dataset, str] = {"humaneval": "HumanEvalPlus", "mbpp": "MbppPlus"}
_OVERRIDE: dict[Dataset, str] = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}
# A verdict depends on these fields; on task_id because EvalPlus treats some tasks by name.
_DECISIVE = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")


def tasks(dataset: Dataset, version: str) -> dict[str, Task]:
    """Return EvalPlus's tasks by task_id, MBPP's inputs with types that JSON lacks. Callers must not change them.

    Raises InputError if the file cannot be obtained or read, or if a task lacks a field that grading needs.
    """
    return _read(_path(dataset, version), dataset)


def origin(dataset: Dataset, version: str) -> str:
    """Return the source that `tasks` reads from, as text for people; downloads nothing."""
    found = _given_path(dataset, version)
    return str(found) if found else f"github.com/evalplus/{_RELEASE[dataset].lower()}_release {version}"


def task_sha256(task: Task) -> str:
    """Return the SHA-256 (hex) of the fields of a task that decide a verdict; tuples count as lists."""
    decisive = {name: task[name] for name in _DECISIVE}
    text = json.dumps(decisive, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    """Return a set or a complex number, which JSON lacks, in a form that does not depend on the process."""
    return sorted(value, key=repr) if isinstance(value, (set, frozenset)) else repr(value)


def _given_path(dataset: Dataset, version: str) -> Path | None:
    release = _RELEASE[dataset]
    name = f"{release}.jsonl.gz" if version == LATEST[dataset] else f"{release}-{version}.jsonl.gz"
    override = os.environ.get(_OVERRIDE[dataset])
    return local_file(name) or (Path(override) if override else None)


def _path(dataset: Dataset, version: str) -> Path:
    return _given_path(dataset, version) or _downloaded(dataset, version)


def _downloaded(dataset: Dataset, version: str) -> Path:
    """Return EvalPlus's cached file.

    EvalPlus's own loader ignores the version for HumanEval+; the functions that it calls do not.
    """
    with _package(dataset):
        from evalplus.data.utils import get_dataset_metadata, make_cache
    url, path = get_dataset_metadata(_RELEASE[dataset], version, mini=False)
    try:
        # EvalPlus reports its download on standard output, which carries paths through a pipe.
        with contextlib.redirect_stdout(sys.stderr):
            make_cache(url, path)
    except Exception as error:  # its HTTP and archive layers raise many types
        raise OutOfReach(
            f"{_RELEASE[dataset]} {version} could not be downloaded from {url} ({first_line(error)})",
            "a release of EvalPlus's data",
            f"check the version and the network, or set {_OVERRIDE[dataset]} or TRD_DATA",
        ) from None
    return Path(path)


@contextlib.contextmanager
def _package(dataset: Dataset) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise InputError(
            f"no package evalplus, which {_RELEASE[dataset]} needs", "it to be installed", "pip install evalplus"
        ) from None


@lru_cache(maxsize=4)
def _read(path: Path, dataset: Dataset) -> dict[str, Task]:
    with _package(dataset):
        from evalplus.data.mbpp import mbpp_deserialize_inputs
    found: dict[str, Task] = {}
    for task in _lines(path):
        missing = [name for name in _DECISIVE if name not in task]
        if missing:
            raise InputError(
                f"{path}: task {task.get('task_id', len(found) + 1)} has no {missing[0]}",
                "EvalPlus's tasks",
                "get the file again",
            )
        if dataset == "mbpp":
            for inputs in ("base_input", "plus_input"):
                task[inputs] = mbpp_deserialize_inputs(task["task_id"], task[inputs])
        found[task["task_id"]] = task
    return found


def _lines(path: Path) -> Iterator[Task]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
    except (OSError, EOFError, ValueError) as error:  # ValueError: not JSON, not UTF-8
        raise InputError(
            f"{path} could not be read ({first_line(error)})",
            "EvalPlus's tasks, one JSON object a line",
            "delete it and get it again",
        ) from None
