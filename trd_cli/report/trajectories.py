"""The trajectories that the page's reader shows: every y_r with its y_o, and every y_o of which there is no y_r.

One shard of a set and the texts of a few shards of its parents are in memory at a time, without token ids and log-probabilities.
Where there are more than `limit`, those with the smallest ids are taken: ids are hashes of the content, so that it is a
choice that depends on no order and favours nothing.

Not covered: samples of evaluations; a set that cannot be read is left out (`collect` names it).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from trd_cli.core.leaks import copied_ngrams, talk_of_reference
from trd_cli.core.ngrams import SIZES
from trd_cli.errors import InputError
from trd_cli.inputs import open_sets, selected_ids
from trd_cli.report.data import SetRef
from trd_cli.shards import SCHEMA, list_shards, read_table

LIMIT = 10_000
_PER_TOKEN = ("prompt_token_ids", "response_token_ids")
_UNREAD = {*_PER_TOKEN, "student_prompt_token_ids", "logprobs", "tests"}
_TEXTS = [name for name in SCHEMA.names if name not in _UNREAD]
_PARENT_SHARDS = 4

# Columns of SCHEMA but those a value a token and the tests, and `prompt_tokens`, `response_tokens` (None without a response).
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """What one place of the reader's list shows. At least one of `rollout` (y_o) and `refined` (y_r) is there.

    `talks` and `copies` are the leaks of core/leaks.py, looked for in refined rows of OPSD; `copies` is the largest n for
    which y_r has an n-word run of the reference that neither y_o nor the problem has, 0 where there is none. `arms` are those
    that train along one of the two.
    """

    source: SetRef
    rollout: Row | None
    refined: Row | None
    talks: bool = False
    copies: int = 0
    arms: tuple[str, ...] = ()

    @property
    def row(self) -> Row:
        """The row that gives the entry its id: y_r, or y_o where there is no y_r."""
        return self.refined or self.rollout or {}


@dataclass(frozen=True, slots=True)
class Trajectories:
    """`entries` in the order of the sets and their shards, to be read once; `total` counts those there are without a limit."""

    entries: Iterator[Entry]
    shown: int
    total: int


def trajectories(sets: Sequence[SetRef], limit: int = LIMIT) -> Trajectories:
    """The entries of these sets, refined sets first; `limit` of them at most."""
    refined = {ref: _ids(ref.path) for ref in sets if ref.stage == "refined"}
    used = {parent for rows in refined.values() for _, parent in rows}
    rollouts = {
        ref: [(name, parent) for name, parent in _ids(ref.path) if name not in used]
        for ref in sets
        if ref.stage == "rollout"
    }
    there = {ref: [name for name, _ in rows] for ref, rows in {**refined, **rollouts}.items()}
    total = sum(map(len, there.values()))
    if total > limit:
        least = heapq.nsmallest(limit, (name for names in there.values() for name in names))
        there = _cut(there, least)
    wanted = {ref: frozenset(names) for ref, names in there.items() if names}
    return Trajectories(_entries(wanted, _trained(sets)), sum(map(len, wanted.values())), total)


def _trained(sets: Iterable[SetRef]) -> dict[str, list[str]]:
    """By the id of a row, the arms that train along it; without those whose filter reads what is not there any more."""
    arms: dict[str, list[str]] = {}
    for ref in sets:
        for selection in ref.selections:
            try:
                (each,) = open_sets([str(ref.path)])
                names = selected_ids(each, selection.subset, selection.where, [str(p) for p in ref.parents])
            except InputError:
                continue
            for name in names:
                arms.setdefault(name, []).append(selection.arm)
    return arms


def _cut(there: Mapping[SetRef, Sequence[str]], least: Iterable[str]) -> dict[SetRef, list[str]]:
    """The names of each set that are among the `least`, each as often as it is there: two runs may share rows."""
    left: dict[str, int] = {}
    for name in least:
        left[name] = left.get(name, 0) + 1
    kept: dict[SetRef, list[str]] = {}
    for ref, names in there.items():
        kept[ref] = []
        for name in names:
            if left.get(name):
                left[name] -= 1
                kept[ref].append(name)
    return kept


def _ids(path: Path) -> list[tuple[str, str | None]]:
    """Ids of the rows of a set and of their parents; none where the set cannot be read."""
    found: list[tuple[str, str | None]] = []
    try:
        for shard in list_shards(path):
            columns = read_table(shard, ["trajectory_id", "parent_id"]).to_pydict()
            found += zip(columns["trajectory_id"], columns["parent_id"], strict=True)
    except (InputError, OSError):
        return []
    return found


def _entries(
    wanted: Mapping[SetRef, frozenset[str]], trained: Mapping[str, Sequence[str]]
) -> Iterator[Entry]:
    read = lru_cache(_PARENT_SHARDS)(_rows)
    for ref, names in wanted.items():
        where = _places(ref.parents)
        for shard in list_shards(ref.path):
            for row in _rows(shard).values():
                if row["trajectory_id"] not in names:
                    continue
                entry = Entry(ref, row, None) if ref.stage == "rollout" else _pair(ref, row, where, read)
                both = (side["trajectory_id"] for side in (entry.rollout, entry.refined) if side)
                arms = dict.fromkeys(arm for name in both for arm in trained.get(name, ()))
                yield replace(entry, arms=tuple(arms))


def _pair(
    ref: SetRef, row: Row, where: Mapping[str, Path], read: Callable[[Path], Mapping[str, Row]]
) -> Entry:
    place = where.get(row["parent_id"])
    parent = read(place)[row["parent_id"]] if place else None
    return Entry(ref, parent, row, *_leaks(row, parent))


def _leaks(row: Row, parent: Row | None) -> tuple[bool, int]:
    response, reference = row["response"], row["reference_solution"]
    if row["setting"] != "opsd" or not response:
        return False, 0
    known = [row["problem"], (parent or {}).get("response") or ""]
    copied = copied_ngrams(response, reference, known) if reference else {}
    talks = bool(talk_of_reference(response, row["problem"]))
    return talks, max((n for n in SIZES if copied.get(n)), default=0)


def _places(directories: Iterable[Path]) -> dict[str, Path]:
    """The shard of every row of these sets."""
    found = {}
    for directory in directories:
        for shard in list_shards(directory) if directory.is_dir() else ():
            ids = read_table(shard, ["trajectory_id"])["trajectory_id"].to_pylist()
            found |= dict.fromkeys(ids, shard)
    return found


def _rows(shard: Path) -> dict[str, Row]:
    """The rows of a shard by their ids, in stored order."""
    table = read_table(shard, [*_TEXTS, *_PER_TOKEN])
    prompt, response = (pc.list_value_length(table[name]).to_pylist() for name in _PER_TOKEN)
    rows = table.select(_TEXTS).to_pylist()
    return {
        row["trajectory_id"]: {**row, "prompt_tokens": asked, "response_tokens": came}
        for row, asked, came in zip(rows, prompt, response, strict=True)
    }
