"""NLL of y_o, y_r and y* under the student that wrote y_o: nats a token in its own context, the problem alone.

y* is the reference solution as the tokenizer encodes it, with the end of the turn. y_o and y_r are the ids as sampled.
Probabilities are at temperature 1, in float32 on a CPU and bfloat16 elsewhere.

Rows are chosen by their ids alone. Texts and token ids are read for little more than the N rows to score; of all other
rows at most one shard's columns are in memory at a time.

Not covered: episodes, rows without a reference solution, rows with a text that does not fit the model beside the
problem, and rows with a token id that the model has no embedding for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from trd_cli.engines.rope import switch_length
from trd_cli.engines.transformers import check_device
from trd_cli.errors import InputError, ModelError
from trd_cli.losses import CHUNK
from trd_cli.models import ModelRef, moved
from trd_cli.progress import Progress
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import EPISODE
from trd_cli.report.data import Nll, SetRef
from trd_cli.training.batches import Example, collate, split_step
from trd_cli.training.model import head_of, load, response_states
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.shards import list_shards, read_table

TEXTS = ("y_o", "y_r", "y*")
_COLUMNS = ("trajectory_id", "parent_id", "response_token_ids", "student_prompt_token_ids", "reference_solution")
_TOKENS_A_BATCH = 4096


@dataclass(frozen=True)
class Scored:
    """One row's three texts, ready to score: the student's context and the ids of each text, in the order of TEXTS."""

    trajectory_id: str
    prompt: Sequence[int]
    response_ids: tuple[Sequence[int], ...]


def student_of(refined: SetRef, resolve: Callable[[str], ModelRef]) -> ModelRef:
    """Return the student that wrote a refined set's rollouts.

    Raises InputError if run.json does not name it, and ModelError if it has no weights or they have changed.
    """
    about = About.of(read_run_json(refined.path))
    if about.student is None:
        raise InputError(
            f"{refined.path} does not name the student of its rollouts", "the run.json of trd refine", "leave --nll out"
        )
    model = resolve(moved(about.student, refined.path))
    if model.path is None:
        raise ModelError(f"--nll with {model.name}, which has no weights", "a real model", "leave --nll out")
    model.check_revision(about.student_revision, refined.path)
    return model


def score(refined: SetRef, rows: int, model: ModelRef, device: str, progress: Progress) -> dict[str, Nll]:
    """Score the three texts of the same rows: the first `rows` by id that have all texts. Return {} if no row has."""
    chosen = choose(refined, rows, model)
    if not chosen:
        return {}
    scorer = _Scorer(model, device)
    found = {}
    progress.start("nll", len(TEXTS) * len(chosen))
    for i, text in enumerate(TEXTS):
        # Teacher and student are one here, so both sides of an example have its context.
        examples = [Example(row.trajectory_id, row.prompt, row.prompt, row.response_ids[i]) for row in chosen]
        tokens = sum(len(example.response_ids) for example in examples)
        nats = scorer.nats(examples, progress)
        found[text] = Nll(nats / tokens, tokens, len(chosen), f"scored with {model.name}")
    progress.end()
    return found


def choose(refined: SetRef, rows: int, model: ModelRef) -> list[Scored]:
    """Return the rows to score, the first by id. Ids are hashes of the content, so the choice favours nothing."""
    candidates = _candidates(refined)
    found: list[Scored] = []
    start, size = 0, rows
    while len(found) < rows and start < len(candidates):
        portion = (column.to_pylist() for column in candidates.slice(start, size).columns)
        found += _fitting(refined, dict(zip(*portion, strict=True)), model)
        # Each portion reads the set once. Portions grow, so that a set with few fitting rows is not read often.
        start, size = start + size, 2 * size
    return found[:rows]


def _candidates(refined: SetRef) -> pa.Table:
    """Return the sorted ids of the rows that have all three texts, each with its parent's id."""
    written = pa.concat_tables([_ids(parent, ["trajectory_id"]) for parent in refined.parents])
    rows = _ids(refined.path, ["trajectory_id", "parent_id"], "reference_solution")
    return rows.filter(pc.is_in(rows["parent_id"], written["trajectory_id"])).sort_by("trajectory_id")


def _ids(directory: Path, names: list[str], text: str | None = None) -> pa.Table:
    """Return the columns `names` of ids, for the rows that have a response and, if asked for, another text.

    Episodes are left out.
    """
    found = [pa.table({name: pa.array([], pa.string()) for name in names})]
    for path in list_shards(directory):
        table = read_table(path, [*names, "task", "response_token_ids", *([text] if text else [])])
        there = pc.greater(pc.list_value_length(table["response_token_ids"]), 0)
        there = pc.and_(there, pc.not_equal(table["task"], EPISODE))
        if text:
            there = pc.and_(there, pc.greater(pc.binary_length(table[text]), 0))
        # `filter` drops rows with a null, too.
        found.append(pa.table(table.select(names).filter(there).columns, names))
    return pa.concat_tables(found)


def _fitting(refined: SetRef, parent_of: Mapping[str, str], model: ModelRef) -> list[Scored]:
    """Return the rows of these ids that fit the model and whose token ids it knows, sorted by id."""
    parents = set(parent_of.values())
    rollouts = {
        row["trajectory_id"]: row["response_token_ids"]
        for directory in refined.parents
        for row in _rows(directory, parents, ("trajectory_id", "response_token_ids"))
    }
    tokenizer, longest = model.tokenizer(), model.known_length()
    found = (
        _scored(row, rollouts[row["parent_id"]], tokenizer) for row in _rows(refined.path, parent_of.keys(), _COLUMNS)
    )
    # A model without a known length wrote these rows in a window set by its user.
    fitting = (row for row in found if longest is None or len(row.prompt) + max(map(len, row.response_ids)) <= longest)
    known = (r for r in fitting if all(model.unknown_id(ids) is None for ids in (r.prompt, *r.response_ids)))
    return sorted(known, key=lambda row: row.trajectory_id)


def _rows(directory: Path, ids: Iterable[str], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of these ids."""
    wanted = pa.array(sorted(ids), pa.string())
    for path in list_shards(directory):
        table = read_table(path, list(names))
        yield from table.filter(pc.is_in(table["trajectory_id"], wanted)).to_pylist()


def _scored(row: Mapping[str, Any], rollout: Sequence[int], tokenizer: Tokenizer) -> Scored:
    reference = [*tokenizer.encode(row["reference_solution"]), tokenizer.end_of_turn_id]
    response_ids = (rollout, row["response_token_ids"], reference)
    return Scored(row["trajectory_id"], row["student_prompt_token_ids"], response_ids)


class _Scorer:
    def __init__(self, model: ModelRef, device: str) -> None:
        check_device(device)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._device = torch.device(str(accelerator or "cpu") if device == "auto" else device)
        self._dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        self._model = load(model, self._dtype, self._device).eval()
        self._switch = switch_length(model.architecture().get_text_config())

    @torch.no_grad()
    def nats(self, examples: Sequence[Example], progress: Progress) -> float:
        """Return the negative log-likelihood of all responses together."""
        total = 0.0
        for group in split_step(examples, _TOKENS_A_BATCH, switches=(self._switch, self._switch)).groups:
            total += self._batch(group)
            progress.advance(len(group), sum(len(example.response_ids) for example in group))
        return total

    def _batch(self, group: Iterable[Example]) -> float:
        batch = collate(list(group), None).to(self._device)
        states_ND = response_states(self._model, batch.student, self._dtype)
        head_VD, total = head_of(self._model), 0.0
        for start in range(0, len(states_ND), CHUNK):
            at = slice(start, start + CHUNK)
            logits_CV = (states_ND[at] @ head_VD.T).float()
            total += torch.nn.functional.cross_entropy(logits_CV, batch.response_N[at], reduction="sum").item()
        return total
