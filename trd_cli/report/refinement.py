"""Figures of refined rows y_r against the rollouts y_o they were made from: verdicts, lengths, edits, NLL, leaks.

In memory are one shard of refined rows at a time, and the token ids of all rollouts of the set, at four bytes each.

Edit distance is Levenshtein's (insertions, deletions and substitutions of a token cost 1 each) by RapidFuzz, which
works on 64 cells of the table at once and on all cores: two sequences of 16,384 unrelated tokens took 0.07 s on one.
A moved passage costs its deletion and its insertion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from trd_cli.datasets.ngrams import SIZES
from trd_cli.report.data import UNVERIFIED, Leaks, Nll, Refinement, Spread
from trd_cli.report.leaks import copied_ngrams, talk_of_reference
from trd_cli.trajectories.shards import read_table

OF_STUDENT = "y_o"
OF_REFINER = "y_r, refiner"
_PARENT = ("trajectory_id", "verdict", "response", "response_token_ids", "logprobs")
_REFINED = ("parent_id", "verdict", "response", "response_token_ids", "logprobs", "problem", "reference_solution")


@dataclass(frozen=True, slots=True)
class Rollout:
    """The columns of a y_o that the figures need. `nll` sums over its tokens, None without stored log-probabilities."""

    verdict: str | None
    response: str | None
    token_ids: np.ndarray | None
    nll: float | None


@dataclass
class _Sums:
    """Sums and lists gathered over the shards."""

    rows: int = 0
    errors: int = 0
    matrix: Counter[tuple[str, str]] = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"y_o": [], "y_r": []})
    distances: list[float] = field(default_factory=list)
    prefixes: list[float] = field(default_factory=list)
    # Sum of nats, tokens, rows.
    nll: dict[str, np.ndarray] = field(default_factory=lambda: {k: np.zeros(3) for k in (OF_STUDENT, OF_REFINER)})
    shown: int = 0
    talks: int = 0
    talks_before: int = 0
    copies: Counter[int] = field(default_factory=Counter)


def read_rollouts(shards: Iterable[Path]) -> dict[str, Rollout]:
    """Return the rollouts of a set by id. Token ids are views of the tables read."""
    found = {}
    for path in shards:
        columns = _columns(read_table(path, list(_PARENT)), _PARENT)
        for name, verdict, response, token_ids, logprobs in zip(*columns, strict=True):
            found[name] = Rollout(verdict, response, token_ids, _nll(logprobs))
    return found


def refinement_of(shards: Sequence[Path], rollouts: Mapping[str, Rollout], about: Mapping[str, object]) -> Refinement:
    """Return the figures of a refined set. `about` has node, arm, round, seed and setting.

    Rows whose parent is gone are left out.
    """
    sums, leaks = _Sums(), about["setting"] == "opsd"
    for path in shards:
        _add_shard(sums, read_table(path, list(_REFINED)), rollouts, leaks)
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
    )


def _add_shard(sums: _Sums, table: pa.Table, rollouts: Mapping[str, Rollout], leaks: bool) -> None:
    pairs: list[tuple[list[int], list[int]]] = []
    for parent_id, verdict, response, token_ids, logprobs, problem, reference in zip(
        *_columns(table, _REFINED), strict=True
    ):
        before = rollouts.get(parent_id)
        if before is None:
            continue
        sums.rows += 1
        sums.matrix[before.verdict or UNVERIFIED, verdict or UNVERIFIED] += 1
        if token_ids is None or before.token_ids is None:
            sums.errors += 1
            continue
        pairs.append((before.token_ids.tolist(), token_ids.tolist()))
        _add_nll(sums.nll[OF_STUDENT], before.nll, len(before.token_ids))
        _add_nll(sums.nll[OF_REFINER], _nll(logprobs), len(token_ids))
        if leaks and reference:
            _add_leaks(sums, response or "", before.response or "", problem, reference)
    sums.lengths["y_o"] += [len(one) for one, _ in pairs]
    sums.lengths["y_r"] += [len(other) for _, other in pairs]
    sums.distances += edit_distances(pairs)
    sums.prefixes += [prefix_share(one, other) for one, other in pairs]


def _add_nll(sums: np.ndarray, nll: float | None, tokens: int) -> None:
    if nll is not None and tokens:
        sums += (nll, tokens, 1)


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


def _columns(table: pa.Table, names: Sequence[str]) -> list[list]:
    """Return the columns as lists. Cells with a value a token stay arrays."""
    per_token = ("response_token_ids", "logprobs")
    return [
        [cell.values.to_numpy() if cell.is_valid else None for cell in table[name]]
        if name in per_token
        else table[name].to_pylist()
        for name in names
    ]


def _nll(logprobs: np.ndarray | None) -> float | None:
    """Return the sum over the tokens, or None if there are no log-probabilities or one is not finite."""
    if logprobs is None or not len(logprobs):
        return None
    total = -float(logprobs.astype(np.float64).sum())
    return total if np.isfinite(total) else None


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
