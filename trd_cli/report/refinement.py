"""Figures of refined rows y_r against the rollouts y_o they were made from: verdicts, lengths, edits, NLL, leaks.

In memory are one shard of refined rows at a time, and of the rollouts as many shards as take 256 MiB on the disk. With
more of them, the refined rows are gone through once for each such part, each row with the part that has its rollout.

Edit distance is Levenshtein's (insertions, deletions and substitutions of a token cost 1 each) by RapidFuzz, which
works on 64 cells of the table at once and on all cores: two sequences of 16,384 unrelated tokens took 0.07 s on one.
A moved passage costs its deletion and its insertion.

Of an episode, lengths and edits are of the tokens that the models wrote. Its commands are to be those of the reference,
so it is not searched for leaks.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path

import numpy as np
import pyarrow as pa
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from trd_cli.datasets.ngrams import SIZES
from trd_cli.records import AUTHORS, EPISODE, MODELS, author_of_kind
from trd_cli.report.data import UNVERIFIED, Leaks, Nll, Refinement, Spread
from trd_cli.report.leaks import copied_ngrams, talk_of_reference
from trd_cli.trajectories.episode_columns import FIGURES, OF_FIGURES, episode_figures
from trd_cli.trajectories.shards import read_table

OF_STUDENT = "y_o"
OF_REFINER = "y_r, refiner"
_REFINED = ("verdict", "response", "response_token_ids", "logprobs", "author", "task", "problem", "reference_solution")
_SIDES = ("y_o", "y_r")
_MODELS = [AUTHORS.index(author) for author in MODELS]
_STUDENT, _TEACHER = author_of_kind("rollout"), author_of_kind("refined")
# Token ids become Python's numbers to be compared, which take nine times the memory.
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Rollout:
    """The columns of a y_o that the figures need; `token_ids` as `_written` returns them, `nll` as `_nll` does.

    `figures` are those of an episode, None for another row.
    """

    verdict: str | None
    response: str | None
    token_ids: np.ndarray | None
    nll: tuple[float, int] | None
    figures: Sequence[float | None]


class _Rollouts:
    """Hold the rollouts of some shards as columns, to find by their ids. Texts are held only if `texts` is set."""

    def __init__(self, shards: Iterable[Path], texts: bool) -> None:
        names = ["trajectory_id", "verdict", "response_token_ids", "author", *(["response"] if texts else [])]
        tables, nll = [], []
        for path in shards:
            table = _with_figures(read_table(path, [*names, "logprobs", *OF_FIGURES]))
            cells = zip(table["logprobs"], table["author"], strict=True)
            nll += [_nll(_array(logprobs), _array(author), _STUDENT) or (np.nan, 0) for logprobs, author in cells]
            tables.append(table.select([*names, *FIGURES]))
        rows = pa.concat_tables(tables)
        ids = _encoded(rows["trajectory_id"])
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]
        self._nll = np.array(nll, float).reshape(-1, 2)
        self._columns = {name: rows[name] for name in rows.column_names}

    def places(self, names: pa.ChunkedArray) -> list[int]:
        """Return the place of the rollout of each name, -1 where it is not among these."""
        wanted = _encoded(names)
        if not len(self._ids):
            return [-1] * len(wanted)
        place = np.searchsorted(self._ids, wanted, side="right") - 1
        return np.where(self._ids[place] == wanted, self._order[place], -1).tolist()

    def __getitem__(self, place: int) -> Rollout:
        verdict, ids, author = (self._columns[name][place] for name in ("verdict", "response_token_ids", "author"))
        response = self._columns["response"][place].as_py() if "response" in self._columns else None
        nats, tokens = self._nll[place].tolist()
        written = _written(_array(ids), _array(author))
        figures = [self._columns[name][place].as_py() for name in FIGURES]
        return Rollout(verdict.as_py(), response, written, None if np.isnan(nats) else (nats, int(tokens)), figures)


@dataclass
class _Sums:
    """Sums and numbers gathered over the shards."""

    rows: int = 0
    errors: int = 0
    matrix: Counter[tuple[str, str]] = field(default_factory=Counter)
    lengths: dict[str, array[float]] = field(default_factory=lambda: {side: array("d") for side in _SIDES})
    episodes: dict[str, dict[str, array[float]]] = field(
        default_factory=lambda: {side: {name: array("d") for name in FIGURES} for side in _SIDES}
    )
    distances: array[float] = field(default_factory=lambda: array("d"))
    prefixes: array[float] = field(default_factory=lambda: array("d"))
    # Sum of nats, tokens, rows.
    nll: dict[str, np.ndarray] = field(default_factory=lambda: {k: np.zeros(3) for k in (OF_STUDENT, OF_REFINER)})
    shown: int = 0
    talks: int = 0
    talks_before: int = 0
    copies: Counter[int] = field(default_factory=Counter)


def refinement_of(
    shards: Sequence[Path], parents: Sequence[Path], about: Mapping[str, object], held: int = 256 << 20
) -> Refinement:
    """Return the figures of a refined set, whose rollouts are in the shards `parents`.

    `about` has node, arm, round, seed and setting. Rows whose parent is gone are left out. Shards of rollouts that take
    up to `held` bytes on the disk are in memory at a time.
    """
    sums, leaks = _Sums(), about["setting"] == "opsd"
    for part in _parts(parents, held):
        rollouts = _Rollouts(part, leaks)
        for path in shards:
            places = rollouts.places(read_table(path, ["parent_id"])["parent_id"])
            if max(places, default=-1) >= 0:
                table = _with_figures(read_table(path, [*_REFINED, *OF_FIGURES]))
                _add_shard(sums, table, rollouts, places, leaks)
    return Refinement(
        **about,
        rows=sums.rows,
        errors=sums.errors,
        matrix=dict(sums.matrix),
        lengths={name: Spread.of(values) for name, values in sums.lengths.items()},
        edit_distance=Spread.of(sums.distances),
        common_prefix=Spread.of(sums.prefixes),
        nll=_stored_nll(sums.nll),
        leaks=_leaks(sums) if leaks else None,
        episodes={side: _spreads(figures) for side, figures in sums.episodes.items() if any(figures.values())},
    )


def _spreads(figures: Mapping[str, array[float]]) -> dict[str, Spread | None]:
    return {name: Spread.of(values) for name, values in figures.items()}


def _with_figures(table: pa.Table) -> pa.Table:
    """Return a table with the figures of episodes in the place of the columns that they are made from."""
    figures = episode_figures(table)
    table = table.drop_columns(list(OF_FIGURES))
    for name, column in figures.items():
        table = table.append_column(name, column)
    return table


def _parts(shards: Iterable[Path], held: int) -> Iterator[list[Path]]:
    """Yield the shards in parts of at most `held` bytes, or of one shard."""
    part: list[Path] = []
    size = 0
    for path in shards:
        its_size = path.stat().st_size
        if part and size + its_size > held:
            yield part
            part, size = [], 0
        part.append(path)
        size += its_size
    if part:
        yield part


def _add_shard(sums: _Sums, table: pa.Table, rollouts: _Rollouts, places: Sequence[int], leaks: bool) -> None:
    start = 0
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        _add_rows(sums, batch, rollouts, places[start : start + batch.num_rows], leaks)
        start += batch.num_rows


def _add_rows(sums: _Sums, rows: pa.RecordBatch, rollouts: _Rollouts, places: Sequence[int], leaks: bool) -> None:
    pairs: list[tuple[list[int], list[int]]] = []
    figures = zip(*(rows[name].to_pylist() for name in FIGURES), strict=True)
    for place, after, verdict, response, ids, logprobs, author, task, problem, reference in zip(
        places, figures, *_columns(rows, _REFINED), strict=True
    ):
        if place < 0:
            continue
        before, token_ids = rollouts[place], _written(ids, author)
        sums.rows += 1
        sums.matrix[before.verdict or UNVERIFIED, verdict or UNVERIFIED] += 1
        if token_ids is None or before.token_ids is None:
            sums.errors += 1
            continue
        pairs.append((before.token_ids.tolist(), token_ids.tolist()))
        if task == EPISODE:
            _add_figures(sums, before.figures, after)
        _add_nll(sums.nll[OF_STUDENT], before.nll)
        _add_nll(sums.nll[OF_REFINER], _nll(logprobs, author, _TEACHER))
        if leaks and reference and task != EPISODE:
            _add_leaks(sums, response or "", before.response or "", problem, reference)
    sums.lengths["y_o"].extend(len(one) for one, _ in pairs)
    sums.lengths["y_r"].extend(len(other) for _, other in pairs)
    sums.distances.extend(edit_distances(pairs))
    sums.prefixes.extend(prefix_share(one, other) for one, other in pairs)


def _add_figures(sums: _Sums, before: Sequence[float | None], after: Sequence[float | None]) -> None:
    """Add the known figures of two episodes; an action's share is unknown where no action was taken."""
    for side, values in zip(_SIDES, (before, after), strict=True):
        for name, value in zip(FIGURES, values, strict=True):
            if value is not None and not isnan(value):
                sums.episodes[side][name].append(value)


def _add_nll(sums: np.ndarray, nll: tuple[float, int] | None) -> None:
    if nll is not None:
        sums += (*nll, 1)


def _add_leaks(sums: _Sums, response: str, before: str, problem: str, reference: str) -> None:
    sums.shown += 1
    sums.talks += bool(talk_of_reference(response, problem))
    sums.talks_before += bool(talk_of_reference(before, problem))
    sums.copies.update(n for n, is_copied in copied_ngrams(response, reference, (problem, before)).items() if is_copied)


def _leaks(sums: _Sums) -> Leaks | None:
    if not sums.shown:
        return None
    copies = {n: sums.copies[n] / sums.shown for n in SIZES}
    return Leaks(sums.shown, sums.talks / sums.shown, sums.talks_before / sums.shown, copies)


def _stored_nll(sums: Mapping[str, np.ndarray]) -> dict[str, Nll]:
    source = "log-probabilities stored when it was sampled"
    return {
        name: Nll(float(nats / tokens), int(tokens), int(rows), source)
        for name, (nats, tokens, rows) in sums.items()
        if tokens
    }


def _columns(rows: pa.RecordBatch, names: Sequence[str]) -> list[list]:
    """Return the columns as lists. Cells with a value a token are arrays."""
    per_token = ("response_token_ids", "logprobs", "author")
    return [list(map(_array, rows[name])) if name in per_token else rows[name].to_pylist() for name in names]


def _array(cell: pa.ListScalar) -> np.ndarray | None:
    return cell.values.to_numpy() if cell.is_valid else None


def _written(token_ids: np.ndarray | None, author: np.ndarray | None) -> np.ndarray | None:
    """Return the response tokens that a model wrote."""
    return token_ids if token_ids is None or author is None else token_ids[np.isin(author, _MODELS)]


def _encoded(names: pa.ChunkedArray) -> np.ndarray:
    """Return ids as an array of bytes; a missing one is empty."""
    return np.array([(name or "").encode() for name in names.to_pylist()], dtype=bytes)


def _nll(logprobs: np.ndarray | None, author: np.ndarray | None, writer: int) -> tuple[float, int] | None:
    """Return the sum over the tokens that the writer wrote, and their number: a log-probability is its author's.

    None if there is no such token, if there are no log-probabilities, or if one of these is not finite.
    """
    if logprobs is None or (author is not None and len(author) != len(logprobs)):
        return None
    own = logprobs if author is None else logprobs[author == writer]
    total = -float(own.astype(np.float64).sum())
    return (total, len(own)) if len(own) and np.isfinite(total) else None


def edit_distances(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """Return Levenshtein's distance of each pair of token id sequences, divided by the length of the longer.

    0 means equal, 1 nothing in common. Two empty sequences are equal.
    """
    if not pairs:
        return []
    # RapidFuzz would choose float32, which rounds 1/3 visibly.
    distances = cpdist(*zip(*pairs, strict=True), scorer=Levenshtein.normalized_distance, workers=-1, dtype=float)
    return distances.tolist()


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of tokens that both begin with."""
    # Bisection compares slices in C; a loop over 16k tokens would run in Python.
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def prefix_share(before: Sequence[int], after: Sequence[int]) -> float:
    """Return the share of `before`'s tokens that `after` begins with. An empty `before` gives 1."""
    return common_prefix(before, after) / len(before) if before else 1.0
