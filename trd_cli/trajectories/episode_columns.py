"""Read from the columns of a shard what a person or a score needs of episodes, not what models read at each turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_cli.records import AUTHORS, MODELS, Turn

# The columns that `written_tokens` reads.
OF_LENGTH = ("response_token_ids", "author")
# Figures of an episode, by their names in files, in words.
FIGURES = {"reward": "reward", "invalid_actions": "actions not valid", "turns": "turns"}
# The columns that `episode_figures` reads.
OF_FIGURES = ("episode_reward", "turns")
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


def episode_figures(table: pa.Table) -> dict[str, pa.Array]:
    """Return the `FIGURES` of each row, null for one without turns; reads `OF_FIGURES`.

    They are the reward, the share of the actions taken that were not valid (NaN where none was taken), and the number
    of turns.
    """
    turns = table["turns"].combine_chunks()
    is_valid = pc.struct_field(pc.list_flatten(turns), "valid")
    taken, invalid = _count(turns, pc.is_valid(is_valid)), _count(turns, pc.fill_null(pc.invert(is_valid), False))
    share = pc.divide(invalid.cast(pa.float64()), taken.cast(pa.float64()))
    shares = pc.if_else(pc.is_valid(turns), share, pa.scalar(None, share.type))
    return dict(zip(FIGURES, (table["episode_reward"], shares, pc.list_value_length(turns)), strict=True))


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
