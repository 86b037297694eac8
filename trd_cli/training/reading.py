"""Read trajectory sets into a file of examples, shard by shard, in memory that does not grow with the rows.

Ids stay arrays from the shard to the file. Texts are read where a prompt must be rendered or cut, and not otherwise.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_cli import __version__
from trd_cli.config.base import SelectOptions
from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError, counted, flag
from trd_cli.models import ModelRef
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import TASKS, template_for
from trd_cli.prompting.templates import digest_of
from trd_cli.records import Trajectory, content_hash
from trd_cli.training.examples import Contexts, TextsNeeded
from trd_cli.training.mix import Classes
from trd_cli.training.stored import Examples, ExampleWriter
from trd_cli.trajectories.sets import InputSet, parent_directories, parent_tables, selected_tables
from trd_cli.trajectories.shards import list_shards, read_table, rows_in
from trd_cli.trajectories.writers import check_alike

# Fields that all sets of one training run must share: defaults are made from them.
_SHARED = ("tokenizer", "model", "model_revision", "student", "student_revision", "setting")
_TEACHER = ("model", "model_revision")
_OF_CLASSES = ("task", "source")
_OF_SAMPLING = ("temperature", "top_p", "top_k")
_ALWAYS = (
    *(
        "trajectory_id",
        "problem_id",
        "parent_id",
        "stage",
        "setting",
        "task",
        "source",
        "finish_reason",
        "verdict",
        "error",
    ),
    *("prompt_token_ids", "student_prompt_token_ids", "response_token_ids", "author", "token_weight", "turns"),
)
_TEXTS = ("problem", "reference_answer", "reference_solution", "messages", "prompt_sha256", "response")
_NOTED_EVERY = 10.0  # seconds
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Chosen:
    """The rows to train on: their kind, the sets that have any, how many there are, and the setting of the first.

    `otherwise` of them were not drawn as the sampled estimate of reverse KL needs, and `classes` are those of --mix.
    Without a row, `sets` is the first.
    """

    kind: str
    sets: Sequence[InputSet]
    rows: int
    setting: str | None
    otherwise: int
    classes: Classes


def choose(config: DistillConfig, sets: Sequence[InputSet]) -> Chosen:
    """Find the rows to train on, by columns without texts and ids.

    Raises InputError where there are none, unless the training continues an earlier round, where two sets disagree on
    how they were made, or where they do not go with --mix.
    """
    # By the kinds in the sets, not in the subset: a filter must not change the kind that is trained along.
    held = {kind for each in sets for kind in _kinds_in(each)}
    made = {"refined" if each.about.student else "rollout" for each in sets}
    kind = config.along(held or made)
    if kind not in (held or made):
        why = f"--method {config.method}" if config.method else f"--kind {kind}"
        raise InputError(
            f"{why} trains along {kind} rows, and {', '.join(str(s.directory) for s in sets)} hold {', '.join(sorted(held or made))} ones",
            f"a set with {kind} rows",
            f"give one, or --kind {min(held or made)}",
        )
    used: list[InputSet] = []
    rows = otherwise = 0
    setting, held = None, set()
    for each in sets:
        in_set = 0
        for table in _tables(config, each, kind, ("setting", *_OF_CLASSES, *_OF_SAMPLING)):
            if table.num_rows and not rows + in_set:
                setting = table["setting"][0].as_py()
            in_set += table.num_rows
            held |= {
                (*group.values(),)
                for group in table.select(_OF_CLASSES).group_by(_OF_CLASSES).aggregate([]).to_pylist()
            }
            drawn = table.group_by(_OF_SAMPLING).aggregate([([], "count_all")])
            otherwise += sum(
                group["count_all"]
                for group in drawn.to_pylist()
                if config.is_drawn_otherwise(kind, *(group[name] for name in _OF_SAMPLING))
            )
        rows += in_set
        used += [each] if in_set else []
    if not used and config.continue_from is not None:
        return Chosen(kind, sets[:1], 0, sets[0].about.setting, 0, Classes({}, ()))
    if not used:
        raise InputError(
            f"no {kind} row in {', '.join(str(s.directory) for s in sets)} is in the subset",
            "at least one",
            "check --subset and --where, and that trd verify has run on the set, and on its parents, if they read verdicts",
        )
    names = _shared(config, kind, setting)
    check_alike(
        used,
        lambda each: {name: getattr(each.about, name) for name in names},
        "train on one of them, or on each in turn",
    )
    classes = Classes(config.mix, held, needs_all=config.continue_from is None)
    return Chosen(kind, used, rows, setting, otherwise, classes)


def _shared(config: DistillConfig, kind: str, setting: str | None) -> Sequence[str]:
    """Return the fields that all sets must share; a training that names its teacher takes none from refined rows."""
    names_teacher = config.teacher is not None or config.setting_of(setting) == "opsd"
    return [name for name in _SHARED if not (kind == "refined" and names_teacher and name in _TEACHER)]


def _kinds_in(each: InputSet) -> set[str]:
    return {kind for path in each.shards for kind in read_table(path, ["stage"])["stage"].unique().to_pylist()}


def _tables(config: DistillConfig, each: InputSet, kind: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns of a set's rows in the subset and of a kind."""
    wanted = list(dict.fromkeys([*columns, "stage"]))
    for table in selected_tables(each, config.subset, config.where, config.parents, wanted):
        yield table.filter(pc.equal(table["stage"], kind))


def key_of(config: DistillConfig, chosen: Chosen, student: ModelRef, teacher: ModelRef) -> str:
    """Return a digest of all that the examples are made from, without reading the rows.

    A shard counts by its name, size and time of writing.
    """
    parents = [parent_directories(each, config.parents) for each in chosen.sets]
    stored = config.takes_stored_prompt(chosen.kind)
    setting = config.setting_of(chosen.setting)
    return content_hash(
        {
            "version": __version__,
            "options": [config.identity(), config.model_dump(include={*SelectOptions.model_fields}, mode="json")],
            "prompt": config.prompt and digest_of(config.prompt),
            "templates": [template_for(config, setting, task, chosen.kind).sha256 for task in TASKS if not stored],
            "sets": [[each.record.get("about"), [*map(_stamp, each.shards)]] for each in chosen.sets],
            "parents": [_stamp(path) for found in parents for each in found for path in list_shards(each)],
            "models": [student.revision, teacher.revision],
        }
    )


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]


def write_examples(
    config: DistillConfig, chosen: Chosen, contexts: Contexts, key: str, file: IO[bytes], progress: Progress
) -> Examples:
    """Read the chosen rows into a file that is open for writing and reading, and return them as examples.

    Raises InputError when all of them are left out, unless the training continues an earlier round.
    """
    writer, verdict_of = ExampleWriter(file), _verdicts_of_attempts(config, chosen)
    with_texts = not config.takes_stored_prompt(chosen.kind)
    # Rows whose texts are needed though those of most rows are not. They are read again.
    put_off = array("q")
    said = time.monotonic()

    def take(numbered: Iterable[tuple[int, Trajectory, InputSet]]) -> None:
        nonlocal said
        for number, row, source in numbered:
            try:
                example = contexts.example(row, verdict_of(row), source)
            except TextsNeeded:
                put_off.append(number)
                continue
            if example is not None:
                writer.add(example)
            if time.monotonic() - said > _NOTED_EVERY:
                said = time.monotonic()
                progress.note(f"read {contexts.rows} of {counted(chosen.rows, 'row')}")

    take(_numbered(config, chosen, with_texts))
    if put_off:
        take(_numbered(config, chosen, True, np.array(put_off)))
    notes = contexts.notes()
    if not writer.rows and config.continue_from is None:
        for note in notes:
            progress.note(note)
        raise InputError(
            f"0 of {counted(chosen.rows, 'row')} can be trained on", "at least one", "see the reasons above"
        )
    missing = [name for name in config.mix if name not in writer.classes]
    if missing and config.continue_from is None:
        for note in notes:
            progress.note(note)
        raise InputError(
            f"no row of {flag('mix')} {missing[0]} can be trained on", "at least one", "see the reasons above"
        )
    if writer.rows:
        notes += [f"no row of {name}: its share goes to the others" for name in missing]
    return writer.finish({"key": key, "notes": notes})


def _numbered(
    config: DistillConfig, chosen: Chosen, with_texts: bool, only: np.ndarray | None = None
) -> Iterator[tuple[int, Trajectory, InputSet]]:
    """Yield the chosen rows with their numbers and sets, or those whose number is in `only`.

    Columns that are not read are None.
    """
    columns = (*_ALWAYS, *_TEXTS) if with_texts else _ALWAYS
    first = 0
    for each in chosen.sets:
        for table in _tables(config, each, chosen.kind, columns):
            numbers = np.arange(first, first + table.num_rows)
            if only is not None:
                numbers = numbers[np.isin(numbers, only)]
            asked = table if only is None else table.take(numbers - first)
            first += table.num_rows
            for at in range(0, len(numbers), _ROWS_AT_ONCE):
                some = numbers[at : at + _ROWS_AT_ONCE].tolist()
                for number, row in zip(some, rows_in(asked.slice(at, len(some))), strict=True):
                    yield number, row, each


def _verdicts_of_attempts(config: DistillConfig, chosen: Chosen) -> Callable[[Trajectory], str | None]:
    """Return a function that gives the verdict of a row's attempt: the row's own, or that of its parent."""
    if chosen.kind != "refined":
        return lambda row: row.verdict
    verdicts = Verdicts(parent_tables(chosen.sets, ("trajectory_id", "verdict"), config.parents))
    return lambda row: verdicts.get(row.parent_id)


class Verdicts:
    """The verdicts of many rows by their ids, at the ids' length and a byte a row."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        """Read the columns `trajectory_id` and `verdict`. Of two rows with one id the later one counts."""
        kinds: dict[str | None, int] = {}
        pieces = [(np.array([], np.bytes_), np.array([], np.int8))]
        for table in tables:
            names = [name.encode() for name in table["trajectory_id"].to_pylist()]
            codes = [kinds.setdefault(kind, len(kinds)) for kind in table["verdict"].to_pylist()]
            pieces.append((np.array(names, np.bytes_), np.array(codes, np.int8)))
        names, codes = (np.concatenate(column) for column in zip(*pieces, strict=True))
        order = np.argsort(names, kind="stable")
        self._names, self._codes, self._kinds = names[order], codes[order], [*kinds]

    def get(self, name: str | None) -> str | None:
        """Return the verdict of the row `name`, or None where it has none or is not here."""
        if name is None or not len(self._names):
            return None
        sought = name.encode()
        at = int(np.searchsorted(self._names, np.array(sought, self._names.dtype), "right")) - 1
        return self._kinds[self._codes[at]] if at >= 0 and self._names[at] == sought else None
