"""Read the rows of sets as what a student is trained on: its own prompt, and what was written after it.

The prompt is what the student itself read of the problem, never the one of a refinement. A refined row has only the ids
of it, so the messages come from the rollout that the row was made of, and so do those of a row that went on from a
refined one. In memory are one shard of the rows, and one of their parents.

An episode is a conversation: an action of the model, the answer of the environment as the user, and so on up to the
last action. The text of an action is what the model wrote, with its thinking, where its tokenizer is on this machine;
else the command alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from trd_cli.config.exchanging import ExportConfig
from trd_cli.errors import InputError, flag
from trd_cli.exchange.lookup import Lookup
from trd_cli.models import tokenizer_at_hand
from trd_cli.records import EPISODE, Kind, Message, Trajectory, well_formed
from trd_cli.trajectories.sets import InputSet, check_no_episodes, open_sets, parent_directories, selected_tables
from trd_cli.trajectories.shards import list_shards, read_table, rows_in

COLUMNS = (
    *("trajectory_id", "problem_id", "parent_id", "round", "sample_index", "stage", "setting", "source", "task"),
    *("problem", "reference_answer", "messages", "response", "finish_reason", "model", "verdict", "error"),
)
_OF_EPISODES = ("turns", "response_token_ids")
# Rows whose parents are looked up together.
_ROWS_AT_ONCE = 256

# The text of the ids of an action.
Write = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Answer:
    """Hold a row with the student's own prompt and the turns after it, from an assistant's to an assistant's.

    `parent` is the rollout of a refined row, None for a rollout.
    """

    row: Trajectory
    prompt: Sequence[Message]
    turns: Sequence[Message]
    parent: Trajectory | None = None

    @property
    def conversation(self) -> list[Message]:
        return [*self.prompt, *self.turns]


class Answers:
    """The rows of sets in their subset, in stored order. Count the rows that are left out, by reason."""

    def __init__(
        self,
        config: ExportConfig,
        sets: Sequence[InputSet],
        columns: Sequence[str] = (),
        holds_episodes: bool = False,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`columns` are read beside `COLUMNS`. Without `holds_episodes` those are refused."""
        self._config, self.sets, self._note = config, sets, note
        self._holds_episodes = holds_episodes
        with_episodes = holds_episodes and any(EPISODE in _tasks(each) for each in sets)
        self._columns = [*COLUMNS, *columns, *(_OF_EPISODES if with_episodes else ())]
        self.rows = 0
        self.left_out: Counter[str] = Counter()

    @cached_property
    def origins(self) -> list[InputSet]:
        """Return the sets that the given ones were made from, and those that these were made from, as far as found."""
        found: dict[Path, InputSet] = {}
        waiting = [(each, self._config.parents) for each in self.sets]
        while waiting:
            each, parents = waiting.pop(0)
            for directory in parent_directories(each, parents):
                if directory not in found and list_shards(directory):
                    found[directory] = open_sets([str(directory)])[0]
                    waiting.append((found[directory], ()))
        return [*found.values()]

    def __iter__(self) -> Iterator[Answer]:
        return self.of(None)

    def of(self, kind: Kind | None) -> Iterator[Answer]:
        """Yield the rows with a response, of one kind or of both."""
        options = self._config
        for each in self.sets:
            write = self._write(each)
            for table in selected_tables(each, options.subset, options.where, options.parents, self._columns):
                if not self._holds_episodes:
                    check_no_episodes(each, table["task"].unique().to_pylist(), _without_episodes(options))
                rows = (row for row in rows_in(table) if self._is_taken(row, kind))
                while some := [*islice(rows, _ROWS_AT_ONCE)]:
                    yield from self._answers(some, write)

    def fetch(self, ids: Sequence[str]) -> list[Answer]:
        """Return the rows of the given sets with these ids, in their order."""
        found = self._own.rows(ids)
        return self._answers([found[name] for name in ids], None)

    def _is_taken(self, row: Trajectory, kind: Kind | None) -> bool:
        self.rows += 1
        reason = _unfit(row) or (f"of the kind {row.stage}" if row.stage != (kind or row.stage) else None)
        if reason is not None:
            self.left_out[reason] += 1
        return reason is None

    @cached_property
    def _own(self) -> Lookup:
        return Lookup([path for each in self.sets for path in each.shards], self._columns)

    @cached_property
    def _parents(self) -> Lookup:
        return Lookup([path for each in self.origins for path in each.shards], self._columns)

    def _answers(self, rows: Sequence[Trajectory], write: Write | None) -> list[Answer]:
        """Return rows with their prompts. Raises InputError where the rollout of a refined row is not found."""
        known: dict[str, Trajectory] = {}
        origin = {row.trajectory_id: row for row in rows}
        while waiting := {name: row for name, row in origin.items() if not _has_own_prompt(row)}:
            known |= self._parents.rows(row.parent_id or "" for row in waiting.values())
            origin |= {name: self._parent(row, known) for name, row in waiting.items()}
        return [
            Answer(
                row,
                origin[row.trajectory_id].messages,
                _turns(row, write),
                known[row.parent_id] if row.stage == "refined" else None,
            )
            for row in rows
        ]

    def _parent(self, row: Trajectory, known: dict[str, Trajectory]) -> Trajectory:
        if row.parent_id not in known:
            raise InputError(
                f"the parent {row.parent_id} of the row {row.trajectory_id} was not found, and it has the student's prompt",
                "its set",
                f"give {flag('parents')} DIR",
            )
        return known[row.parent_id]

    def _write(self, each: InputSet) -> Write | None:
        """Return the way from an action's ids to its text, for a set with episodes whose tokenizer is at hand."""
        if not self._holds_episodes or EPISODE not in _tasks(each):
            return None
        tokenizer = tokenizer_at_hand(each.about, each.directory)
        if tokenizer is None:
            self._note(f"the tokenizer of {each} is not on this machine: its actions are the commands alone")
            return None
        return lambda ids: well_formed(tokenizer.decode(ids))


def assistant(text: str) -> Message:
    """Return an assistant's turn."""
    return {"role": "assistant", "content": text}


def _unfit(row: Trajectory) -> str | None:
    """Return the reason why nothing can be trained on in a row."""
    if row.error is not None:
        return "ended as an error"
    return None if row.response else "without a response"


def _has_own_prompt(row: Trajectory) -> bool:
    """Return whether the messages of a row are the student's: a refined row has the teacher's."""
    return row.stage == "rollout" and bool(row.messages)


def _turns(row: Trajectory, write: Write | None) -> list[Message]:
    """Return what was said after the prompt: the response, or the turns of an episode up to its last action."""
    if not row.turns:
        return [assistant(row.response or "")]
    said: list[Message] = []
    for turn in row.turns:
        text = turn.action if write is None else write(row.response_token_ids[turn.start : turn.end])
        said += [assistant(text), {"role": "user", "content": turn.observation or ""}]
    return said[:-1]


def _tasks(each: InputSet) -> set[str]:
    return {task for path in each.shards for task in read_table(path, ["task"])["task"].unique().to_pylist()}


def _without_episodes(options: ExportConfig) -> str:
    return f"take {flag('format')} messages or sharegpt for them, or add {flag('where')} \"task <> '{EPISODE}'\" to {options.format}"


def kinds(sets: Iterable[InputSet]) -> set[Kind]:
    """Return the kinds of rows in sets."""
    shards = (path for each in sets for path in each.shards)
    return {kind for path in shards for kind in read_table(path, ["stage"])["stage"].unique().to_pylist()}
