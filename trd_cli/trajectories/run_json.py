"""run.json: what made the content of a directory, read and written with a checksum over all of it.

A part of a set has a record of its own, as `run-2of5.json`: the digest of the set, what was `asked` for, the rows it is
to have, and the options and versions of its task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trd_cli.atomic import write_text
from trd_cli.errors import DamagedFile, InputError, first_line
from trd_cli.records import CHECKSUM, Part, is_intact, with_checksum
from trd_cli.trajectories.parts import named

NAME = "run.json"
# The command that makes sets of responses made elsewhere.
IMPORTED = "data import-rollouts"
# The commands that make rollouts from problems; those of the first may also go on from the rows of a set.
OF_ROLLOUTS = ("sample", IMPORTED)
FORMAT = "trd-run-1"
_RECORD = re.compile(r"run(-\d+of\d+)?\.json")


@dataclass(frozen=True)
class Asked:
    """Hold what an evaluation has asked of a benchmark, for scoring when the benchmark itself may be gone.

    `questions` are ids in the order of the benchmark. `limit` is their number where they are only its first ones.
    Benchmarks of one `group` have a mean of their own.
    """

    task: str
    source: str
    revision: str | None
    sha256: str
    known: bool | None
    sampling: Mapping[str, Any]
    limit: int | None
    questions: Sequence[str]
    group: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Asked:
        """Read the fields. One that the record lacks is None, and others are ignored, as in `About`."""
        return cls(**{field.name: record.get(field.name) for field in fields(cls)})

    def record(self) -> dict[str, Any]:
        """Return the fields as run.json holds them, `group` only where there is one."""
        return {name: value for name, value in asdict(self).items() if name != "group" or value is not None}


@dataclass(frozen=True)
class About:
    """Hold what a stage tells the stages after it: the key `about` of run.json.

    `model` wrote the rows, so it is the teacher in a refined set, where `student` wrote the rollouts; in a checkpoint
    `student` is the model that the training began with. In a round of a longer training, `steps` are its own,
    `steps_before` those of the rounds before, and `total_steps` those of all. `tokenizer` is a fingerprint. A
    stage writes the fields in `_TOLD`; a field that it does not write, or that the file lacks, is None.
    """

    model: str | None = None
    model_revision: str | None = None
    tokenizer: str | None = None
    render: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    setting: str | None = None
    student: str | None = None
    student_revision: str | None = None
    teacher: str | None = None
    trajectories: int | None = None
    steps: int | None = None
    steps_before: int | None = None
    total_steps: int | None = None
    tokens: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    benchmarks: Mapping[str, Asked] | None = None
    finished: bool = False

    @classmethod
    def of(cls, run: Mapping[str, Any] | None) -> About:
        """Read the fields from the content of a run.json, None for a directory without one."""
        told = (run or {}).get("about", {})
        values = {field.name: told[field.name] for field in fields(cls) if field.name in told}
        if values.get("benchmarks"):
            values["benchmarks"] = {name: Asked.of(asked) for name, asked in values["benchmarks"].items()}
        return cls(**values)

    def record(self, command: str) -> dict[str, Any]:
        """Return the fields that a command tells, as run.json holds them; {} before there is anything to tell."""
        values = asdict(self)
        if self.benchmarks is not None:
            values["benchmarks"] = {name: asked.record() for name, asked in self.benchmarks.items()}
        told = {name: values[name] for name in _TOLD[command]} if self != About() else {}
        return {name: value for name, value in told.items() if value is not None or name not in _OF_ROUNDS}


_ROWS = ("model", "model_revision", "tokenizer")
_PROMPTED = (*_ROWS, "render", "chat_template_kwargs")
_TOLD = {
    "sample": _PROMPTED,
    IMPORTED: _PROMPTED,
    "refine": (*_PROMPTED, "setting", "student", "student_revision"),
    "eval": (*_ROWS, "benchmarks"),
    "diagnose": ("tokenizer", "setting", "student", "student_revision", "teacher"),
    "distill": (
        *("student", "teacher", "trajectories", "steps", "steps_before", "total_steps"),
        *("tokens", "first_loss", "last_loss", "finished"),
    ),
}
# Told only where they are known.
_OF_ROUNDS = ("steps_before", "total_steps")
# Options whose values are paths of sets, problems or models.
_PATHS = ("inputs", "parents", "problems", "model", "student", "teacher", "continue_from")


def source_paths(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths and names of all that a directory was made from: sets, problems and models."""
    yield from (entry["path"] for entry in run.get("inputs", []))
    for name in _PATHS:
        value = run.get("config", {}).get(name) or ()
        yield from [value] if isinstance(value, str) else value
    about = About.of(run)
    yield from filter(None, (about.model, about.student, about.teacher))


def write_run_json(directory: Path, run: Mapping[str, Any], part: Part | None = None) -> None:
    """Replace the `run.json` of a directory, or the record of a part."""
    write_text(directory / named(NAME, part), json.dumps(with_checksum(run), indent=2, ensure_ascii=False) + "\n")


def is_record(path: Path) -> bool:
    """Return whether a file's name is that of `run.json` or of the record of a part."""
    return _RECORD.fullmatch(path.name) is not None


def copy_parts(source: Path, target: Path) -> None:
    """Copy the records of the parts of a set to a directory that has copies of its shards."""
    for path in source.iterdir():
        if is_record(path) and path.name != NAME:
            write_text(target / path.name, path.read_text(encoding="utf-8"))


def read_run_json(directory: Path, part: Part | None = None) -> dict[str, Any] | None:
    """Return the `run.json` of a directory, or the record of a part; None where there is none.

    Raises InputError for a file of another format, DamagedFile for one that is not as it was written.
    """
    path = directory / named(NAME, part)
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _damaged(path, f"is no JSON ({first_line(error)})") from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise InputError(f"{path} is not of trd", f"one of format {FORMAT}", "give another directory")
    if not is_intact(run):
        raise _damaged(path, "does not match its checksum")
    return run


def _damaged(path: Path, how: str) -> DamagedFile:
    return DamagedFile(
        f"{path} {how}",
        "what trd wrote",
        f"run the command that made {path.parent} again with the same options; if it was edited on purpose, take its key {CHECKSUM!r} out",
    )


def renderer_of(directory: Path) -> str | None:
    """Return the model whose chat template rendered the prompts of imported rows; None for rows of any other command,
    each of which names that model itself."""
    run = read_run_json(directory) if maker_of(directory) == IMPORTED else None
    return About.of(run).model


def maker_of(directory: Path) -> str | None:
    """Return the command that makes the content of a directory, None where no `run.json` names one."""
    try:
        run = read_run_json(directory)
    except (InputError, OSError):
        return None
    return run["command"] if run else None
