"""The samples of an evaluation as columns: what scoring reads of each row. Texts and token ids stay on the disk.

A sample takes about 50 bytes and its extracted answer; repeated texts are held once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_cli.graders.answers import thinking_is_open
from trd_cli.graders.thinking import Prompts, tails
from trd_cli.trajectories.episode_columns import OF_FIGURES, OF_LENGTH, episode_figures, written_tokens
from trd_cli.trajectories.run_json import Asked
from trd_cli.trajectories.shards import read_table

_REPEATED = (
    *("source", "problem_id", "model", "model_revision", "engine", "engine_version", "prompt_sha256"),
    *("finish_reason", "verdict", "grader", "grader_version", "verdict_detail", "stop_reason"),
)
_COLUMNS = (*_REPEATED, "sample_index", "extracted_answer")
# Columns that tell whether a response ends inside its thinking block.
_THOUGHT = ("model", "response", "ids_exact", "finish_reason")
# Columns that are read to be counted.
_COUNTED = ("response", "prompt_token_ids", "ids_exact", *OF_LENGTH, *OF_FIGURES)
_ROWS_AT_ONCE = 32


def read_samples(shards: Iterable[Path]) -> pa.Table:
    """Return a row for each sample of an evaluation.

    Its columns are those of the shards that scoring reads, `tokens` (those of the response that the model wrote, null
    without one), `open_thinking`, and the figures of episodes.
    """
    prompts = Prompts()
    found = []
    for path in shards:
        table = read_table(path, [*_COLUMNS, *_COUNTED])
        columns = {name: table[name].dictionary_encode() if name in _REPEATED else table[name] for name in _COLUMNS}
        columns["tokens"] = written_tokens(table)
        columns |= episode_figures(table)
        columns["open_thinking"] = pa.array(_open_thinking(table, prompts), pa.bool_())
        found.append(pa.table(columns))
    return pa.concat_tables(found).unify_dictionaries().combine_chunks()


def _open_thinking(table: pa.Table, prompts: Prompts) -> Iterator[bool]:
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        columns = (batch[name].to_pylist() for name in _THOUGHT)
        are_episodes = batch["turns"].is_valid().to_pylist()
        ends = tails(batch["prompt_token_ids"])
        for is_episode, model, text, exact, finish_reason, tail in zip(are_episodes, *columns, ends, strict=True):
            if is_episode:  # its text is what it did, without its thinking
                yield False
                continue
            opens = prompts.open_thinking(model, tail, text or "", exact, finish_reason)
            yield thinking_is_open(text or "", opens)


def first_samples(samples: pa.Table, source: str, questions: Sequence[str], k: int) -> pa.Table:
    """Return the first `k` samples of each question of a benchmark, Q × k rows, questions in their order.

    Raises KeyError if one is not there.
    """
    chosen = pc.and_(pc.equal(samples["source"], source), pc.less(samples["sample_index"], k))
    places = np.flatnonzero(chosen.to_numpy())
    question = _numbers(samples["problem_id"], questions)[places]
    index = samples["sample_index"].to_numpy()[places]
    row_of = np.full(len(questions) * k, -1)
    asked = question >= 0
    row_of[question[asked] * k + index[asked]] = places[asked]
    if missing := np.flatnonzero(row_of < 0).tolist():
        raise KeyError(f"sample {missing[0] % k} of {questions[missing[0] // k]}")
    return samples.take(pa.array(row_of))


def samples_there(benchmarks: Mapping[str, Asked], shards: Iterable[Path]) -> int:
    """Return the largest k such that every question has its first k samples."""
    tables = [read_table(path, ["source", "problem_id", "sample_index"]) for path in shards]
    if not tables:
        return 0
    samples = pa.concat_tables(tables)
    index = samples["sample_index"].to_numpy()
    least = []
    for name, asked in benchmarks.items():
        question = _numbers(samples["problem_id"], asked.questions)
        own = (question >= 0) & pc.equal(samples["source"], name).to_numpy()
        pairs = np.unique(np.stack([question[own], index[own]]), axis=1)
        least.append(int(_unbroken(*pairs, len(asked.questions)).min(initial=len(pairs[0]))))
    return min(least, default=0)


def _unbroken(question: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Return how many samples each question has from the first one on, without a gap.

    The pairs of a question's number and a sample's index are sorted, each there once.
    """
    rank = np.arange(len(question)) - np.searchsorted(question, question)
    return np.bincount(question[rank == index], minlength=count)


def _numbers(names: pa.ChunkedArray, known: Sequence[str]) -> np.ndarray:
    """Return the place of each name among the known ones, -1 for any other."""
    return pc.fill_null(pc.index_in(names, pa.array(known, pa.string())), -1).to_numpy()
