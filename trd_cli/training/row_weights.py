"""Weights of rows, from what both models find of them when the round begins (SCOPE, arXiv 2604.10688, section 3.2).

    PPL = exp(−mean log π(y_t | y_<t))        correct rows: w ∝ PPL_student^(1/τ)        others: w ∝ PPL_teacher^(−1/τ)

π is the model itself, at temperature 1, whatever the temperature of the loss.

Within a group, the rows of one problem with one verdict, the weights of the paper sum to one. Here all of them are
scaled by rows / groups, so that their mean over the round's rows is one and the learning rate keeps its meaning.

Not covered: weights that follow the student within a round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from trd_cli.atomic import replacing
from trd_cli.errors import counted
from trd_cli.progress import Progress
from trd_cli.training.batches import Example, Split, collate

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

# The file's name in the output directory, where it stays.
NAME = "row_weights.parquet"
_ROWS_AT_ONCE = 512
# In the file's metadata: the digest of the training that it was written for.
_TRAINING = b"trd.training"


class Weighed(Sequence[Example]):
    """The examples, each with the weight of its row."""

    def __init__(self, examples: Sequence[Example], weights: np.ndarray) -> None:
        self._examples, self._weights = examples, weights

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> Example:
        return self._examples[i].weighed(float(self._weights[i]))


def weights_of(nll: np.ndarray, groups: np.ndarray, temperature: float) -> np.ndarray:
    """Return the weight of each row (rows,), float64, with a mean of one.

    `nll` (rows, 2) has the means of −log p of student and teacher, `groups` (rows,) the rows' groups, as in `Example`.
    """
    score = np.where(groups % 2 == 1, nll[:, 0], -nll[:, 1]) / temperature
    names, group = np.unique(groups, return_inverse=True)
    best = np.full(len(names), -np.inf)
    np.maximum.at(best, group, score)
    share = np.exp(score - best[group])
    return share / np.bincount(group, share)[group] * (len(groups) / len(names))


def windows(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Yield the examples in lists of as many as are worth cutting into micro-batches together."""
    for first in range(0, len(examples), _ROWS_AT_ONCE):
        yield [examples[i] for i in range(first, min(first + _ROWS_AT_ONCE, len(examples)))]


def mean_nll(
    model: nn.Module, rows: Sequence[Example], split: Split, accelerator: Accelerator, progress: Progress
) -> np.ndarray:
    """Return the mean −log p of student and teacher along each row (rows, 2), float64, on all processes.

    `model` is a prepared `DistillStep`; `split` are the micro-batches of the rows. Tokens count by their own weights.
    """
    found = np.zeros((len(rows), 2))
    place = {id(part): number for number, row in enumerate(rows) for part in row.parts}
    for together in zip(*map(split.mine, range(split.processes)), strict=True):
        group = together[accelerator.process_index]
        batch = collate(group or [min(rows, key=lambda e: e.tokens)], None)
        with torch.no_grad():
            nll_2N = model(batch.to(accelerator.device), measures=True).cpu().double().numpy()
        ends = np.cumsum([len(row.scored) for row in group])
        for part, end in zip(group, ends, strict=True):
            weighed_2S = nll_2N[:, end - len(part.scored) : end] * part.weights
            found[place[id(part)]] += weighed_2S.sum(1) / part.weight
        of_all = [part for each in together for part in each]
        progress.advance(sum(part.part == 0 for part in of_all), sum(len(part.scored) for part in of_all))
    if accelerator.num_processes > 1:
        # A row is scored by one process and 0 in the others.
        found = accelerator.reduce(torch.from_numpy(found).to(accelerator.device)).cpu().numpy()
    return found


def write(path: Path, examples: Sequence[Example], nll: np.ndarray, weights: np.ndarray, digest: str) -> None:
    """Write a row for each example: its id, verdict, both perplexities, and its weight.

    `digest` is that of the training: of its rows, options and models.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with np.errstate(over="ignore"):
        student, teacher = np.exp(nll).T
    columns = {
        "trajectory_id": [example.trajectory_id for example in examples],
        "correct": [example.correct for example in examples],
        "student_perplexity": student,
        "teacher_perplexity": teacher,
        "weight": weights,
    }
    with replacing(path) as file:
        parquet.write_table(pa.table(columns, metadata={_TRAINING: digest.encode()}), file)


def read(path: Path, digest: str) -> np.ndarray | None:
    """Return the weights in a file that `write` has written for this training, or None if there is no such file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["weight"])
    except (OSError, pa.ArrowException):
        return None
    if (table.schema.metadata or {}).get(_TRAINING) != digest.encode():
        return None
    return table["weight"].to_numpy()


def said(weights: np.ndarray, examples: Sequence[Example]) -> str:
    """Describe the weights in a line."""
    correct = sum(example.correct for example in examples)
    told = f"weighed {counted(len(weights), 'row')}, {correct} of them correct, from {weights.min():.3g} to {weights.max():.3g}"
    if len(set(weights.tolist())) == 1:
        told += ": no problem has two rows of one verdict"
    return told
