"""Open trajectory sets that an earlier command made: complete or refused, joined with their parents on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trd_cli.atomic import as_text, from_text
from trd_cli.errors import InputError, OutOfReach, flag
from trd_cli.hub.fetching import located
from trd_cli.hub.names import HubName, is_hub_name
from trd_cli.records import EPISODE, Part, Task, Trajectory, content_hash
from trd_cli.trajectories.run_json import OF_ROLLOUTS, About, read_run_json
from trd_cli.trajectories.shards import PER_TOKEN, SCHEMA, list_shards, read_table, rows_in, shard_number
from trd_cli.trajectories.state import state_of

if TYPE_CHECKING:
    from trd_cli.trajectories.selection import pl

# A filter reads all columns of a parent but those that hold a value a token.
_OF_PARENTS = [name for name in SCHEMA.names if name not in PER_TOKEN]
# A name that no filter can mean.
_PLACE = "_place"


@dataclass(frozen=True)
class InputSet:
    """Hold the shards to read of one set, and its run.json ({} where it has none).

    `name` is that of the set on the Hub, at a commit; its `directory` is then the cache's, which is read-only.
    """

    directory: Path
    shards: tuple[Path, ...]
    record: dict[str, Any]
    name: HubName | None = None

    def __str__(self) -> str:
        return str(self.name or self.directory)

    @property
    def digest(self) -> str:
        """Return the digest in run.json; without one, a digest of the ids of the rows."""
        if self.record:
            return self.record["digest"]
        return content_hash(
            [read_table(path, ["trajectory_id"])["trajectory_id"].to_pylist() for path in self.shards], 16
        )

    def lineage(self) -> dict[str, str]:
        """Return the entry for this set among the inputs in the run.json of a stage that reads it."""
        path = str(self.name) if self.name else as_text(self.directory)
        return {"path": path, "digest": self.digest, "command": self.record.get("command", "")}

    @property
    def about(self) -> About:
        """Return what the stage that made the set tells; all fields are None without run.json."""
        return About.of(self.record)

    @property
    def is_refined(self) -> bool:
        """Return whether trd refine made the set; False where no run.json tells it."""
        return self.record.get("command") == "refine"


def open_sets(paths: Sequence[str]) -> list[InputSet]:
    """Return the sets (directories) and single shards at `paths`, by directory in order of appearance.

    A path may be a name on the Hub (see `hub.names`), whose files are downloaded where the cache lacks them. Raises
    InputError for a path that is neither, and OutOfReach for a name that cannot be had.
    """
    found: dict[Path, list[Path]] = {}
    names: dict[Path, HubName] = {}
    for text in paths:
        place = located(text)
        path = place.path
        if place.name:
            names[place.directory] = place.name.folder
        if path.is_dir():
            shards = list_shards(path)
            if not shards:
                raise InputError(
                    f"{place.name or path} has no shards",
                    "a trajectory set",
                    "run the command that fills it, or check the path",
                )
            if place.name:
                _check_pushed(place.name, path)
            found.setdefault(path, []).extend(shards)
        elif path.is_file():
            if shard_number(path) is None:
                raise InputError(f"{path} is not a shard", "shard-NNNNN.parquet or a set's directory", "check the path")
            found.setdefault(path.parent, []).append(path)
        elif path.exists():
            raise InputError(f"{path} is a pipe or a device", "a trajectory set", "name its directory")
        else:
            raise InputError(f"no such file or directory: {path}", "a trajectory set", "check the path")
    return [
        InputSet(
            directory, tuple(dict.fromkeys(shards)), _record(directory, names.get(directory)), names.get(directory)
        )
        for directory, shards in found.items()
    ]


def _check_pushed(name: HubName, directory: Path) -> None:
    """Raise InputError for a set whose run.json has not been pushed: it goes last."""
    if read_run_json(directory) is None:
        raise InputError(
            f"{name} has no run.json: its push has not ended",
            "a whole set",
            "run trd push again, or name its shards to read them all the same",
        )


def _record(directory: Path, name: HubName | None) -> dict[str, Any]:
    """Return run.json. In one on the Hub, inputs of the same repository get the commit of the set."""
    record = read_run_json(directory) or {}
    return {**record, "inputs": [_pinned(each, name) for each in record.get("inputs", [])]} if name else record


def _pinned(entry: dict[str, str], of: HubName) -> dict[str, str]:
    path = HubName.parse(entry["path"]) if is_hub_name(entry["path"]) else None
    if path is None or path.repository != of.repository or path.revision is not None:
        return entry
    return {**entry, "path": str(path.at(of.revision))}


def check_complete(directories: Iterable[Path], part: Part | None = None) -> None:
    """Raise InputError for a set that is not finished or has shards that are not its own; see `State.check`."""
    for directory in dict.fromkeys(directories):
        state_of(directory).check(part)


def check_no_episodes(each: InputSet, tasks: Iterable[Task], mend: str | None = None) -> None:
    """Raise InputError where rows of a set, which have these tasks, are episodes: each must be one text of a model."""
    if EPISODE in tasks:
        raise InputError(
            f"episodes in {each}, most of whose tokens no model wrote",
            "rows of one response each",
            mend or f"leave the set out, or add {flag('where')} \"task <> '{EPISODE}'\"",
        )


def iter_selected(
    sets: Iterable[InputSet],
    subset: str = "all",
    where: str | None = None,
    parents: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> Iterator[Trajectory]:
    """Yield the rows of `sets` in the subset, in stored order, one shard in memory at a time.

    Where `columns` are given, the others are not read and are None.
    """
    for each in sets:
        for table in selected_tables(each, subset, where, parents, columns):
            yield from rows_in(table)


def check_filter(where: str) -> None:
    """Raise InputError when `where` cannot be a condition over a row and its parent; no row is read."""
    from trd_cli.trajectories.selection import pl, select

    own = pl.from_arrow(SCHEMA.empty_table())
    select(own.hstack(_as_parents(own.select(_OF_PARENTS)).drop("parent_id")), "all", where)


def selected_tables(
    each: InputSet, subset: str, where: str | None, parents: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of each shard of a set that are in the subset, with all columns or some, one shard in memory.

    Beside these only columns that the filter names are read, of parents too.
    """
    wanted = list(columns or SCHEMA.names)
    if subset == "all" and where is None:
        yield from (read_table(path, wanted) for path in each.shards)
        return
    # A command without a filter does without Polars, whose import takes a quarter of a second.
    from trd_cli.trajectories.selection import columns_read, needs_parents

    if where is not None:
        check_filter(where)
    own, of_parents = columns_read(subset, where) or (SCHEMA.names, _OF_PARENTS)
    lookup = parent_frame(each, parents, of_parents) if needs_parents(subset, where) else None
    read_by_filter = list(dict.fromkeys([*own, "parent_id"]))
    for path in each.shards:
        table = read_table(path, list(dict.fromkeys([*wanted, *read_by_filter])))
        places = _places(table.select(read_by_filter), each, subset, where, lookup)
        yield table.select(wanted).take(pa.array(places, pa.int64()))


def _places(table: pa.Table, each: InputSet, subset: str, where: str | None, parents: pl.DataFrame | None) -> list[int]:
    """Return the numbers of the rows of a shard that are in the subset."""
    from trd_cli.trajectories.selection import pl, select

    frame = pl.from_arrow(table).with_row_index(_PLACE)
    if parents is not None:
        frame = frame.join(parents, on="parent_id", how="left", maintain_order="left")
        orphans = frame.filter(pl.col("parent_id").is_not_null() & pl.col("parent_trajectory_id").is_null())
        if len(orphans):
            raise InputError(
                f"the parent {orphans['parent_id'][0]} of a row in {each} was not found",
                "its set",
                "give --parents DIR",
            )
    return select(frame, subset, where)[_PLACE].to_list()


def parent_frame(each: InputSet, parents: Sequence[str] = (), columns: Sequence[str] = _OF_PARENTS) -> pl.DataFrame:
    """Return all rows of the sets that `each` was made from, columns prefixed with `parent_`, keyed by `parent_id`.

    Columns that hold a value a token are left out: they are most of a set and no filter reads them.
    """
    from trd_cli.trajectories.selection import pl

    columns = list(dict.fromkeys(["trajectory_id", *columns]))
    if each.record.get("command") in OF_ROLLOUTS and not each.record.get("inputs"):
        raise InputError(
            f"{each} holds rollouts from problems, which have no parents",
            "rows that were made from others",
            "give the set that trd refine or trd sample --from made",
        )
    tables = [
        read_table(path, columns) for directory in parent_directories(each, parents) for path in list_shards(directory)
    ]
    if not tables:
        raise InputError(f"the parents of {each} were not found", "the set it was made from", "give --parents DIR")
    return _as_parents(pl.from_arrow(pa.concat_tables(tables))).unique("parent_id")


def _as_parents(frame: pl.DataFrame) -> pl.DataFrame:
    """Return rows with `parent_` before the names of their columns, and `parent_id` to join them by."""
    from trd_cli.trajectories.selection import pl

    renamed = frame.rename({name: f"parent_{name}" for name in frame.columns})
    # A row's own parent_id must stay the join key; nothing reads the grandparent's id.
    return renamed.drop("parent_parent_id", strict=False).with_columns(parent_id=pl.col("parent_trajectory_id"))


def parent_tables(sets: Sequence[InputSet], columns: Sequence[str], parents: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Yield some columns of all parents of the sets, shard by shard, without parents whose set is gone."""
    for directory in dict.fromkeys(d for each in sets for d in parent_directories(each, parents)):
        yield from (read_table(path, list(columns)) for path in list_shards(directory))


def parent_directories(each: InputSet, parents: Sequence[str] = ()) -> list[Path]:
    """Return `--parents` where given, else the inputs that run.json names and that are still there, or can be had."""
    if parents:
        return [s.directory for s in open_sets(parents)]
    found = (_input_directory(entry["path"]) for entry in each.record.get("inputs", []))
    return [path for path in found if path is not None and path.is_dir()]


def _input_directory(recorded: str) -> Path | None:
    """Return the directory of an input as run.json names it, or None for one on the Hub that cannot be had."""
    try:
        return located(recorded).directory if is_hub_name(recorded) else from_text(recorded)
    except OutOfReach:
        return None


def find_row(sets: Sequence[InputSet], identity: str | None) -> tuple[Trajectory, InputSet]:
    """Return the row whose id starts with `identity` (None: the first row), and its set; InputError without one."""
    for each in sets:
        for path in each.shards:
            ids = read_table(path, ["trajectory_id"])["trajectory_id"].to_pylist()
            matches = [i for i, name in enumerate(ids) if identity is None or name.startswith(identity)]
            if matches:
                return next(rows_in(read_table(path).slice(matches[0], 1))), each
    where = ", ".join(map(str, sets))
    raise InputError(f"no trajectory {identity or ''} in {where}", "an id in that set", "check the id")
