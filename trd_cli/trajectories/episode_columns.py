"""Read from the columns of a shard what a person or a score needs of episodes, not what models read at each turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_cli.records import AUTHORS, MODELS, Turn

# The columns that `written_tokens` reads.
OF_LENGTH = ("response_token_ids", "author")
_CODES = pa.array([AUTHORS.index(author) for author in MODELS], pa.int8())


def written_tokens(table: pa.Table) -> pa.Array:
    """Return the response tokens of each row that a model wrote, null without a response; reads `OF_LENGTH`.

    Those are all tokens but of an episode, where the environment and the chat template write between the actions.
    """
    lengths = pc.list_value_length(table["response_token_ids"]).combine_chunks()
    authors = table["author"].combine_chunks()
    if authors.null_count == len(authors):
        return lengths
    by_models = pc.is_in(pc.list_flatten(authors), _CODES)
    return pc.if_else(pc.is_valid(authors), _count(authors, by_models).cast(lengths.type), lengths)


def turn_counts(turns: pa.ChunkedArray) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return how many turns each row has, how many of their actions were taken, and how many were not valid.

    All are null for a row without turns.
    """
    column = turns.combine_chunks()
    is_valid = pc.struct_field(pc.list_flatten(column), "valid")
    taken = _count(column, pc.is_valid(is_valid))
    invalid = _count(column, pc.fill_null(pc.invert(is_valid), False))
    there, none = pc.is_valid(column), pa.scalar(None, taken.type)
    return pc.list_value_length(column), pc.if_else(there, taken, none), pc.if_else(there, invalid, none)


def _count(lists: pa.Array, chosen: pa.Array) -> pa.Array:
    """Return how many of the elements of each list are chosen, 0 for null; `chosen` has a value an element."""
    rows = pc.list_parent_indices(lists).to_numpy()
    return pa.array(np.bincount(rows[chosen.to_numpy(zero_copy_only=False)], minlength=len(lists)))


def light_turns(turns: pa.ChunkedArray) -> Iterator[list[Turn] | None]:
    """Yield the turns of each row without `context_token_ids`."""
    column = turns.combine_chunks()
    elements = pc.list_flatten(column)
    names = [field.name for field in elements.type if field.name != "context_token_ids"]
    fields = pa.table([pc.struct_field(elements, name) for name in names], names)
    start = 0
    for length in pc.list_value_length(column).to_pylist():
        yield None if length is None else [Turn(**turn) for turn in fields.slice(start, length).to_pylist()]
        start += length or 0
