"""Make relayed rows phase by phase, so that a killed command goes on and each model is loaded once a phase.

    phases/1-search     the places where the teacher takes over (see `triggers`)
    phases/1-teacher    the teacher's first legs, each after all that is before it
    phases/1-student    the student's parts after them
    phases/2-search     the places in these parts; and so on, up to the last leg

Each phase is over all rows that have not ended yet, of rollouts without a relayed row. Those of a model are ordinary
sets, whose rows have the rollout as their parent. At the end the relayed rows are put together from them.

A damaged shard of a phase is made again, and its rows may read otherwise than before. What later phases have made from
the old text then stays there, and is not read.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from trd_cli.config.generating import RefineConfig, SamplingOptions
from trd_cli.errors import counted
from trd_cli.generation import Outcome, ShardFiller, check_strangers
from trd_cli.planned import Backend, Prefix, Prompt, new_row, row_seed, too_long, unknown_id
from trd_cli.progress import Progress, WithoutResults
from trd_cli.records import Kind, Trajectory, author_array, authors_of, content_hash, token_array, well_formed
from trd_cli.relaying.response import TEACHER, Relay, Response, Rules, Trigger, room_of_leg
from trd_cli.relaying.triggers import Triggers
from trd_cli.training.batches import Example
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.shards import iter_values, read_rows
from trd_cli.trajectories.sources import count_orphans
from trd_cli.trajectories.stage_dir import StageDir

PHASES = "phases"
# What is found in a response: its first trigger, none, or the error of its row.
Found = Trigger | None | str
# From examples, each with the first place that may be a trigger, to what is found in them by their ids, in any order.
Search = Callable[[Iterable[tuple[Example, int]]], Iterator[tuple[str, Found]]]


@dataclass(frozen=True, slots=True)
class Open:
    """Represent a row between two phases; `relay` is None where it has ended in an error.

    `row` is the relayed row as planned. `source` is the id of the row that the last phase made, or of the rollout.
    """

    row: Trajectory
    source: str
    relay: Relay | None

    @property
    def step(self) -> str:
        return "end" if self.relay is None else self.relay.step

    @property
    def text(self) -> str:
        """Return a name of the row's tokens so far: the id of a row does not tell what a model wrote."""
        ids = token_array(self.relay.response.token_ids)
        return f"{self.source}:{hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()}"

    def finished(self, decode: Callable[[Sequence[int]], str]) -> Trajectory:
        """Return the relayed row of one that has ended."""
        if self.relay is None:
            return self.row
        response = self.relay.response
        return replace(
            self.row,
            response=well_formed(decode(response.token_ids)),
            response_token_ids=response.token_ids,
            logprobs=response.logprobs,
            finish_reason=response.finish_reason,
            ids_exact=response.ids_exact,
            author=response.author,
        )


# The rows after a phase; each call reads them anew.
Rows = Callable[[], Iterator[Open]]


@dataclass
class Relayer:
    """Make the relayed row of each rollout.

    The teacher draws as `config` tells, the student as `students`. `prompt_of` gives the teacher's prompt of a problem,
    and the error of a row that cannot have one.
    """

    config: RefineConfig
    rules: Rules
    out: StageDir
    student: Backend
    teacher: Backend
    students: SamplingOptions
    prompt_of: Callable[[Trajectory], tuple[Prompt, str | None]]
    search: Search
    progress: Progress

    def __post_init__(self) -> None:
        self._generated_tokens, self._at_work = 0, 0.0
        self._rows = Counter[int]()
        self._tokens = Counter[int]()

    def rows(self, rollouts: Callable[[], Iterator[Trajectory]], chosen: IdSet) -> Iterator[Trajectory]:
        """Run the phases and yield the relayed rows that are missing.

        Each call of `rollouts` reads the rollouts anew; `chosen` are their ids. Raises ResumeRefused for a phase with
        rows of others.
        """
        after: list[Rows] = []
        made = IdSet(parent for (parent,) in iter_values(self.out.shards(), ["parent_id"]))
        self._chosen = chosen
        source: Rows = partial(self._begun, lambda: (row for row in rollouts() if row.trajectory_id not in made))
        for number in range(1, self.rules.legs + 1):
            searched = self._searched(number, source)
            led = self._led(number, searched)
            after += [searched, led]
            if number < self.rules.legs:
                source = self._gone_on(number, led)
        for place, rows in enumerate(after):
            for row in (each.finished(self.teacher.tokenizer.decode) for each in rows() if each.step == "end"):
                self._rows[(place + 1) // 2] += row.error is None
                self._tokens.update(row.author or ())
                yield row

    def summary(self) -> str:
        """Return how many of the rows made now have how many legs, and how much the teacher wrote."""
        legs = [f"{count} with {counted(n, 'leg')}" for n, count in sorted(self._rows.items()) if n and count]
        share = self._tokens[TEACHER] / max(1, self._tokens.total())
        return (
            f"{counted(self._rows.total(), 'row')}: {', '.join([*legs, f'{self._rows[0]} without a trigger'])}; "
            f"the teacher wrote {share:.1%} of the tokens"
        )

    def add_to(self, outcome: Outcome) -> None:
        """Count what the phases have generated as that of the command."""
        outcome.tokens += self._generated_tokens
        outcome.seconds += self._at_work

    def _begun(self, rollouts: Callable[[], Iterator[Trajectory]]) -> Iterator[Open]:
        for rollout in rollouts():
            prompt, error = self.prompt_of(rollout)
            error = error or self._unknown(rollout, prompt)
            row = self._planned(rollout, rollout.trajectory_id, rollout.prompt_token_ids, prompt, error)
            relay = None if row.error else Relay.begun(_response(rollout), self._most(row))
            yield Open(row, rollout.trajectory_id, relay)

    def _planned(
        self, like: Trajectory, rollout_id: str, students_ids: Sequence[int], prompt: Prompt, error: str | None
    ) -> Trajectory:
        """Return the relayed row without its response, or as an error row; `like` has its problem and its place."""
        row = new_row(
            *(like, prompt, self.teacher, self.config),
            kind="refined",
            round=like.round,
            sample_index=like.sample_index,
            parent=replace(like, trajectory_id=rollout_id, prompt_token_ids=students_ids),
            setting=self.config.setting,
            error=error,
        )
        # The rows of other rules are others.
        trajectory_id = content_hash([rollout_id, self.out.digest])
        row = replace(row, trajectory_id=trajectory_id, seed=row_seed(trajectory_id))
        if error is not None or self._most(row) > 0:
            return row
        longest = max(len(row.prompt_token_ids), len(students_ids))
        return replace(row, error=too_long(longest, min(self.teacher.max_length, self.student.max_length)))

    def _unknown(self, row: Trajectory, prompt: Prompt) -> str | None:
        """Return the error of a student's row with an id unknown to a model, or None; `prompt` is the teacher's."""
        sides = ((self.student, row.prompt_token_ids), (self.teacher, prompt.token_ids))
        found = (unknown_id(backend.model, [*ids, *row.response_token_ids]) for backend, ids in sides)
        return next(filter(None, found), None)

    def _most(self, row: Trajectory) -> int:
        """Return the most tokens of a row's response: as asked for, and no more than either model's context takes."""
        return min(
            self.config.max_tokens,
            self.teacher.max_length - len(row.prompt_token_ids),
            self.student.max_length - len(row.student_prompt_token_ids),
        )

    def _searched(self, number: int, source: Rows) -> Rows:
        """Search the last part of each response for a trigger, where that is not done yet."""
        triggers = Triggers(self.out.path / PHASES / f"{number}-search", self.config.part)
        missing = (each for each in source() if each.step == "score" and each.text not in triggers)
        errors: dict[str, str] = {}
        if (first := next(missing, None)) is not None:
            errors = self._find(number, chain([first], missing), triggers)

        def after(each: Open) -> Open:
            if error := errors.get(each.text):
                return replace(each, row=replace(each.row, error=error), relay=None)
            return replace(each, relay=each.relay.after_search(triggers[each.text]))

        return lambda: (after(each) if each.step == "score" else each for each in source())

    def _find(self, number: int, rows: Iterable[Open], triggers: Triggers) -> dict[str, str]:
        """Search rows and write what is found, as often as a shard would be written; return the errors of the others.

        A row with an error is searched again by the next command.
        """
        found: dict[str, Trigger | None] = {}
        errors: dict[str, str] = {}
        since = time.monotonic()
        self.progress.start(f"search {number} of {self.rules.legs}", None)
        try:
            for name, trigger in self.search((_example(each), each.relay.place) for each in rows):
                if isinstance(trigger, str):
                    errors[name] = trigger
                else:
                    found[name] = trigger
                self.progress.advance()
                if len(found) >= self.config.shard_rows or time.monotonic() - since > 60 * self.config.shard_minutes:
                    triggers.add(found)
                    found, since = {}, time.monotonic()
        finally:
            if found:
                triggers.add(found)
            self.progress.end()
        return errors

    def _led(self, number: int, searched: Rows) -> Rows:
        """Let the teacher write its legs."""

        def leg(each: Open) -> Trajectory:
            room = room_of_leg(len(each.relay.response), self.rules, self._most(each.row))
            row = self._part(each, _prompt(each.row), self.teacher, self.config, max(1, room), "refined")
            # Without room the leg is the onset token alone, and nothing is asked for.
            return row if room or row.error else replace(row, response="", finish_reason="length")

        legs = (leg(each) for each in searched() if each.step == "teacher")
        phase = self._generated(f"{number}-teacher", self.teacher, legs)

        def led() -> Iterator[Open]:
            for row in phase():
                planned = self._planned(row, row.parent_id, row.student_prompt_token_ids, _prompt(row), row.error)
                most, decode, relay = self._most(planned), self.teacher.tokenizer.decode, None
                if planned.error is None:
                    relay = Relay.after_leg(_response(row), row.prefix_tokens, number, self.rules, most, decode)
                yield Open(planned, row.trajectory_id, relay)

        return led

    def _gone_on(self, number: int, led: Rows) -> Rows:
        """Let the student go on after the legs."""

        def part(each: Open) -> Trajectory:
            room = self._most(each.row) - len(each.relay.response)
            return self._part(each, Prompt.of_student(each.row), self.student, self.students, room, "rollout")

        parts = (part(each) for each in led() if each.step == "student")
        phase = self._generated(f"{number}-student", self.student, parts)

        def gone_on() -> Iterator[Open]:
            for row in phase():
                prompt, _ = self.prompt_of(replace(row, error=None))
                error = row.error or self._unknown(row, prompt)
                planned = self._planned(row, row.parent_id, row.prompt_token_ids, prompt, error)
                relay = None if planned.error else Relay.after_student(_response(row), row.prefix_tokens)
                yield Open(planned, row.trajectory_id, relay)

        return gone_on

    def _part(
        self, each: Open, prompt: Prompt, backend: Backend, sampling: SamplingOptions, room: int, kind: Kind
    ) -> Trajectory:
        """Return a planned row that goes on from all that is written so far, by at most `room` tokens."""
        row, response = each.row, each.relay.response
        return new_row(
            *(row, prompt, backend, _sampling(sampling, room)),
            kind=kind,
            round=row.round,
            sample_index=row.sample_index,
            parent=replace(row, trajectory_id=row.parent_id, prompt_token_ids=row.student_prompt_token_ids),
            setting=row.setting,
            prefix=Prefix(response.token_ids, response.logprobs, response.author, response.ids_exact),
            error=unknown_id(backend.model, [*prompt.token_ids, *response.token_ids]),
        )

    def _generated(
        self, name: str, backend: Backend, planned: Iterator[Trajectory]
    ) -> Callable[[], Iterator[Trajectory]]:
        """Generate what is missing of a phase's rows, and return how to read those that are planned."""
        phase = StageDir(
            *(str(self.out.path / PHASES / name), "refine", {"relayed": self.out.digest, "phase": name}),
            self.config.record(),
            about=backend.about(),
            part=self.config.part,
            asked=self.config.deciding(),
        )
        progress = WithoutResults(self.progress)
        ids = IdSet()

        def counted_in() -> Iterator[Trajectory]:
            for row in planned:
                ids.add(row.trajectory_id)
                yield row

        with phase, ShardFiller(phase, backend, self.config, progress, None) as filler:
            check_strangers(phase.path, count_orphans(phase.shards(), self._chosen))
            filler.fill(counted_in())
            filler.end_of_plan(keeps_others=True)
        self._generated_tokens += filler.outcome.tokens
        self._at_work += filler.outcome.seconds
        return lambda: (row for path in phase.shards() for row in read_rows(path) if row.trajectory_id in ids)


def _sampling(of: SamplingOptions, max_tokens: int) -> SamplingOptions:
    """Return the sampling of a config alone, with another number of tokens."""
    given = {name: getattr(of, name) for name in SamplingOptions.model_fields}
    return SamplingOptions(**given | {"max_tokens": max_tokens})


def _prompt(row: Trajectory) -> Prompt:
    """Return the teacher's prompt as a row holds it."""
    return Prompt(row.messages, row.prompt_token_ids, row.prompt_template, row.prompt_sha256)


def _response(row: Trajectory) -> Response:
    return Response(
        row.response_token_ids, author_array(authors_of(row)), row.logprobs, row.finish_reason, row.ids_exact
    )


def _example(each: Open) -> Example:
    row = each.row
    return Example(each.text, row.student_prompt_token_ids, row.prompt_token_ids, each.relay.response.token_ids)
