"""The trajectories that the page's reader shows: every y_r with its y_o, and every y_o that has no y_r.

In memory are the rows of one shard of a set and their parents at a time, without token ids and log-probabilities, and
of all other rows the id, the parent's id, the shard and a length, in columns of some 120 bytes a row. If the page
cannot hold all, it takes those with the smallest ids: ids are hashes of the content, so the choice depends on no order
and favours nothing. Of many rounds it takes a quarter from the first and the last each, and equally many from all
others; what a round lacks falls to the others.

Not covered: samples of evaluations. A shard that cannot be read is left out (`collect` names it): the page then shows
y_r without its y_o, or y_o without its y_r.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trd_cli.datasets.ngrams import SIZES
from trd_cli.errors import InputError
from trd_cli.models import tokenizer_at_hand
from trd_cli.prompting.authors import author_spans, told_authors
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.report.data import Selection, SetRef
from trd_cli.report.leaks import copied_ngrams, talk_of_reference
from trd_cli.report.rounds import are_many
from trd_cli.trajectories.episode_columns import OF_LENGTH, light_turns, written_tokens
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.selection import pl
from trd_cli.trajectories.sets import open_sets, selected_tables
from trd_cli.trajectories.shards import PER_TOKEN, SCHEMA, list_shards, read_table

LIMIT = 10_000
# Of y_o and y_r together. On made-up mathematics this makes a page of 26 MiB in 40 seconds on one core.
CHARACTERS = 100_000_000
_TEXTS = [name for name in SCHEMA.names if name not in (*PER_TOKEN, "tests", "turns")]
_NO_LINES = pl.DataFrame(schema={"id": pl.String, "parent": pl.String, "shard": pl.UInt32, "characters": pl.UInt32})

# Columns of SCHEMA without the tests and those with a value a token, and `prompt_tokens`, `response_tokens` (those that
# a model wrote, None without a response). `turns` are light (`episode_columns`). `authors` tells in words who wrote how
# many tokens, `author_spans` are those of `prompting.authors`; both are None for a row that names none.
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the reader's list, with at least one of `rollout` (y_o) and `refined` (y_r).

    `talks` and `copies` are leaks (`report.leaks`), searched for in refined rows of OPSD. `copies` is the largest n for
    which y_r has an n-word run of the reference that neither y_o nor the problem has, 0 if there is none or no y_o.
    `arms` are those that train along one of the two.
    """

    source: SetRef
    rollout: Row | None
    refined: Row | None
    talks: bool = False
    copies: int = 0
    arms: tuple[str, ...] = ()

    @property
    def row(self) -> Row:
        """Return the row that gives the entry its id: y_r, or y_o if there is no y_r."""
        return self.refined or self.rollout or {}


@dataclass(frozen=True, slots=True)
class Trajectories:
    """`entries` in the order of the sets and their shards, to read once. `total` counts them without a limit.

    `by_round` is True if each round has its share of the entries.
    """

    entries: Iterator[Entry]
    shown: int
    total: int
    by_round: bool


def trajectories(sets: Sequence[SetRef], limit: int = LIMIT, characters: int = CHARACTERS) -> Trajectories:
    """Return the entries of these sets, refined sets first: at most `limit`, and `characters` of y_o and y_r in all."""
    ordered = sorted(sets, key=lambda ref: ref.kind != "refined")
    shards: list[Path] = []
    lines = _lines_of_sets(ordered, shards)
    many = are_many(sets)
    in_order = _in_turn(lines, ordered) if many else lines.sort("id", "place")
    least = in_order.head(limit).filter(pl.col("characters").cum_sum() <= characters)
    entries = _entries(ordered, least.sort("place"), shards, _trained(sets, least))
    return Trajectories(entries, len(least), len(lines), many)


def _in_turn(lines: pl.DataFrame, sets: Sequence[SetRef]) -> pl.DataFrame:
    """Sort the lines so that any first part of them has the shares of the rounds that a page of many rounds has.

    Within a round the order is that of the ids. A round of weight w gives w lines a turn, until it has no more.
    """
    rounds = sorted({ref.round for ref in sets if ref.round is not None})
    ends = {rounds[0], rounds[-1]}
    # The two ends together weigh as much as all others.
    weights = [max(1.0, len(rounds) / 2 - 1) if ref.round in ends else 1.0 for ref in sets]
    of_sets = pl.DataFrame(
        {"set": range(len(sets)), "round": [ref.round for ref in sets], "weight": weights},
        schema={"set": lines.schema["set"], "round": pl.Int64, "weight": pl.Float64},
    )
    ranked = lines.sort("id", "place").join(of_sets, on="set", how="left", maintain_order="left")
    turn = (pl.col("id").cum_count().over("round") / pl.col("weight")).alias("turn")
    return ranked.with_columns(turn).sort("turn", "id", "place").select(lines.columns)


def _lines_of_sets(sets: Sequence[SetRef], shards: list[Path]) -> pl.DataFrame:
    """Return a line for each entry: `place` among all, `set` by number, id, parent, shard, parent_shard, characters.

    Shards are numbers in the list `shards`, which is filled.
    """

    @cache
    def read(directory: Path) -> pl.DataFrame:
        return _lines(directory, shards)

    found = [_NO_LINES.with_columns(parent_shard=pl.lit(None, pl.UInt32), set=pl.lit(0))]
    for number, ref in enumerate(sets):
        if ref.kind == "refined":
            lines = _with_parents(read(ref.path), [_NO_LINES, *map(read, ref.parents)])
        else:
            children = [read(each.path) for each in sets if ref.path in each.parents]
            used = pl.concat([_NO_LINES, *children]).select("parent")
            lines = read(ref.path).join(used, left_on="id", right_on="parent", how="anti", maintain_order="left")
            lines = lines.with_columns(parent_shard=pl.lit(None, pl.UInt32))
        found.append(lines.with_columns(set=pl.lit(number)))
    # Sums of characters exceed 32 bits.
    return pl.concat(found).cast({"characters": pl.Int64}).with_row_index("place")


def _with_parents(lines: pl.DataFrame, parents: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Add the shard of each row's parent (null without one), and the parent's characters to the row's."""
    there = pl.concat(parents).unique("id", keep="first")
    joined = lines.join(
        there.select(parent="id", parent_shard="shard", more="characters"),
        on="parent",
        how="left",
        maintain_order="left",
    )
    return joined.with_columns(characters=pl.col("characters") + pl.col("more").fill_null(0)).drop("more")


def _lines(directory: Path, shards: list[Path]) -> pl.DataFrame:
    """Return id, parent, shard and characters of the response of every readable row of a set; add its shards."""
    found = [_NO_LINES]
    for shard in list_shards(directory) if directory.is_dir() else ():
        table = _table(shard, ["trajectory_id", "parent_id", "response"])
        if table is not None:
            columns = [table["trajectory_id"], table["parent_id"], pc.utf8_length(table["response"])]
            characters = pl.col("characters").cast(pl.UInt32).fill_null(0)
            frame = pl.from_arrow(pa.table(columns, names=["id", "parent", "characters"]))
            found.append(frame.select("id", "parent", pl.lit(len(shards), pl.UInt32).alias("shard"), characters))
            shards.append(shard)
    return pl.concat(found)


def _table(shard: Path, columns: list[str]) -> pa.Table | None:
    """Return columns of a shard, or None if it cannot be read."""
    try:
        return read_table(shard, columns)
    except (InputError, OSError):
        return None


def _trained(sets: Iterable[SetRef], chosen: pl.DataFrame) -> dict[Path, dict[str, list[str]]]:
    """Return the arms that train along the chosen rows and their parents, by set and id.

    Arms whose filter needs files that are gone are left out.
    """
    wanted = pa.array({*chosen["id"], *chosen["parent"].drop_nulls()}, pa.string())
    arms: dict[Path, dict[str, list[str]]] = {}
    for ref in sets:
        of_set = arms.setdefault(ref.path, {})
        for selection in ref.selections:
            try:
                names = list(_selected(ref, selection, wanted))
            except InputError:
                continue
            for name in names:
                of_set.setdefault(name, []).append(selection.arm)
    return arms


def _selected(ref: SetRef, selection: Selection, wanted: pa.Array) -> Iterator[str]:
    """Yield those of the wanted ids that a training along the set has chosen."""
    (each,) = open_sets([str(ref.path)])
    parents = [str(path) for path in ref.parents]
    for table in selected_tables(each, selection.subset, selection.where, parents, ["trajectory_id"]):
        names = table["trajectory_id"]
        yield from names.filter(pc.is_in(names, wanted)).to_pylist()


def _entries(
    sets: Sequence[SetRef],
    chosen: pl.DataFrame,
    shards: Sequence[Path],
    trained: Mapping[Path, Mapping[str, Sequence[str]]],
) -> Iterator[Entry]:
    for (number, shard), lines in chosen.group_by("set", "shard", maintain_order=True):
        ref, parents = sets[number], _parents(lines, shards)
        for row in _rows(shards[shard], lines["id"]):
            own = trained[ref.path].get(row["trajectory_id"], ())
            if ref.kind == "rollout":
                yield Entry(ref, row, None, arms=tuple(dict.fromkeys(own)))
                continue
            parent = parents.get(row["parent_id"])
            above = (arm for p in ref.parents for arm in trained.get(p, {}).get(row["parent_id"], ()))
            yield Entry(ref, parent, row, *_leaks(row, parent), arms=tuple(dict.fromkeys([*above, *own])))


def _parents(lines: pl.DataFrame, shards: Sequence[Path]) -> dict[str, Row]:
    """Return the parents of these rows by id. Each of their shards is read once, in any order."""
    found = {}
    for (shard,), wanted in lines.drop_nulls("parent_shard").group_by("parent_shard"):
        found |= {row["trajectory_id"]: row for row in _rows(shards[shard], wanted["parent"])}
    return found


def _leaks(row: Row, parent: Row | None) -> tuple[bool, int]:
    response, reference = row["response"], row["reference_solution"]
    # An episode's commands are to be those of the reference.
    if row["setting"] != "opsd" or not response or row["turns"] is not None:
        return False, 0
    talks = bool(talk_of_reference(response, row["problem"]))
    if not reference or parent is None:
        return talks, 0
    copied = copied_ngrams(response, reference, [row["problem"], parent["response"] or ""])
    return talks, max((n for n in SIZES if copied.get(n)), default=0)


def _rows(shard: Path, names: pl.Series) -> list[Row]:
    """Return the rows of a shard with these ids, in stored order, [] if it cannot be read."""
    table = _table(shard, [*_TEXTS, "turns", "prompt_token_ids", *OF_LENGTH])
    if table is None:
        return []
    wanted = pc.is_in(table["trajectory_id"], pa.array(names.to_list(), pa.string()))
    table = table.filter(wanted)
    columns = {
        "prompt_tokens": pc.list_value_length(table["prompt_token_ids"]).to_pylist(),
        "response_tokens": written_tokens(table).to_pylist(),
        "turns": list(light_turns(table["turns"])),
    }
    more = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    rows = zip(table.select(_TEXTS).to_pylist(), more, _authors(shard.parent, table), strict=True)
    return [{**row, **counted, **wrote} for row, counted, wrote in rows]


def _authors(directory: Path, table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield who wrote each row's tokens, and the parts of its text by author if they can be found."""
    for row in range(len(table)):
        codes = table["author"][row].as_py()
        if codes is None:
            yield {"authors": None, "author_spans": None}
            continue
        text, ids = (table[name][row].as_py() for name in ("response", "response_token_ids"))
        is_episode = table["turns"][row].is_valid
        tokenizer = _tokenizer_of(directory) if text and not is_episode else None
        spans = author_spans(text, ids, codes, tokenizer) if tokenizer else None
        yield {"authors": told_authors(codes, is_episode=is_episode), "author_spans": spans}


@lru_cache(maxsize=4)
def _tokenizer_of(directory: Path) -> Tokenizer | None:
    try:
        return tokenizer_at_hand(About.of(read_run_json(directory)), directory)
    except InputError:
        return None
