"""The student's own attempts at episodes: which rows are planned, and how one is played."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from trd_cli.config.generating import SamplingOptions
from trd_cli.episodes.actions import command_of
from trd_cli.episodes.contexts import Conversation
from trd_cli.episodes.moves import Ask, AskOracle, Play, Reset, Step
from trd_cli.errors import DamagedFile, InputError, counted, flag
from trd_cli.planned import Asker, Backend, Prompt, row_seed, unknown_id
from trd_cli.prompting.rendering import Rendering, room_for_response
from trd_cli.records import (
    EPISODE,
    Environment,
    Part,
    Problem,
    Request,
    Sampling,
    StopReason,
    Task,
    Trajectory,
    content_hash,
    well_formed,
)
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.shards import read_table, rows_in
from trd_cli.worlds.base import Observation
from trd_cli.worlds.spec import Made, Spec, problem_of, problems
from trd_cli.worlds.workers import Workers


@dataclass(frozen=True)
class EpisodeSet:
    """Represent the episodes of a specification, some of them or all.

    They are made, which tells how each begins, when they are first read. `made` holds them by their problems' ids.
    """

    environments: Sequence[Environment]
    workers: Workers
    note: Callable[[str], None]
    made: dict[str, Made]

    @classmethod
    def of(cls, spec: Spec, workers: Workers, note: Callable[[str], None]) -> EpisodeSet:
        """Represent all episodes of a specification; `note` gets a line for a person while they are made."""
        return cls(spec.environments(), workers, note, {})

    def identity(self) -> dict[str, Any]:
        """Return what decides the episodes, but not which of them are taken."""
        first = self.environments[0]
        return {"environment": [first.name, first.version, first.config]}

    def __len__(self) -> int:
        return len(self.environments)

    def __iter__(self) -> Iterator[Problem]:
        self.make()
        for each in self.environments:
            yield self.made[_id_of(each)].problem or problem_of(each, "", None)

    def make(self) -> None:
        """Make the episodes that are not made yet. The workers must not play any meanwhile."""
        missing = [each for each in self.environments if _id_of(each) not in self.made]
        if missing:
            self.note(f"making {counted(len(missing), 'episode')}")
            self.made.update({_id_of(made.environment): made for made in problems(missing, self.workers)})

    def recall(self, shards: Iterable[Path], retry_errors: bool = False) -> None:
        """Take what is known of episodes from rows that are there, so that they are not made again.

        With `retry_errors` those that could not be made are not known.
        """
        for path in shards:
            with suppress(DamagedFile):
                for row in rows_in(read_table(path, list(_KNOWN))):
                    if row.problem:
                        problem = Problem(**{field.name: getattr(row, field.name) for field in fields(Problem)})
                        self.made[row.problem_id] = Made(row.environment, problem)
                    elif not retry_errors:
                        self.made[row.problem_id] = Made(row.environment, None, row.error)

    def slice(self, skip: int, limit: int | None) -> EpisodeSet:
        """Return `limit` episodes after the first `skip`; raises InputError when none is left."""
        if skip >= len(self):
            raise InputError(
                f"{flag('skip')} {skip}, and {flag('env')} has {counted(len(self), 'episode')}",
                "episodes that are left",
                f"lower {flag('skip')}, or raise n in {flag('env')}",
            )
        return replace(self, environments=self.environments[skip:][:limit])

    def of_part(self, part: Part | None) -> EpisodeSet:
        """Return the episodes that belong to a part of a job array, or all for None."""
        if part is None:
            return self
        return replace(self, environments=[each for each in self.environments if part.owns(_id_of(each))])

    def tasks(self) -> list[Task]:
        return [EPISODE]

    def names(self) -> list[str]:
        """Return the ids of the problems in their order."""
        return [_id_of(each) for each in self.environments]

    def ids(self) -> IdSet:
        return IdSet(self.names())


# The columns of a row that tell how its episode begins.
_KNOWN = (*(field.name for field in fields(Problem)), "environment", "error")


def _id_of(environment: Environment) -> str:
    return problem_of(environment, "", None).problem_id


@dataclass(frozen=True)
class EpisodeAsker(Asker):
    """Plan the student's attempts at episodes. An episode that could not be made has error rows."""

    episodes: EpisodeSet
    max_turns: int
    part: Part | None

    def prompt(self, problem: Problem) -> Prompt:
        if self.episodes.made[problem.problem_id].failure is not None:
            return Prompt.nothing(self.templates[EPISODE])
        return super().prompt(problem)

    def check_fit(self, problems: EpisodeSet) -> None:
        """Make all episodes and check them as `Asker` does; a part of a job array makes its own, and checks none."""
        if self.part is None:
            super().check_fit(problems)
        else:
            problems.of_part(self.part).make()

    def rows(
        self, problem: Problem, prompt: Prompt, n: int, sampling: SamplingOptions, round: int = 0
    ) -> Iterator[Trajectory]:
        made = self.episodes.made[problem.problem_id]
        for row in super().rows(problem, prompt, n, sampling, round):
            # Rows with another number of turns are others.
            name = content_hash([row.trajectory_id, self.max_turns])
            error = made.failure or row.error
            yield replace(row, trajectory_id=name, seed=row_seed(name), environment=made.environment, error=error)


def seed_of_turn(trajectory_id: str, number: int) -> int:
    """Return the seed of the request number `number`, from 0, of an episode."""
    return row_seed(content_hash([trajectory_id, number]))


@dataclass(frozen=True)
class Player:
    """Play planned rows with a model that reads the environment's texts and answers with commands."""

    backend: Backend
    rendering: Rendering
    max_turns: int

    def play(self, row: Trajectory) -> Play:
        """Play one row; see `moves`."""
        seen: Observation = yield Reset()
        if well_formed(seen.text) != row.problem:
            return replace(row, error="the environment began with another text than when the row was planned")
        if seen.done:
            return replace(row, error="the environment ended before the first turn")
        talk = Conversation(self.backend.tokenizer, self.rendering, row.messages, row.prompt_token_ids)
        are_exact, stop = True, None
        for number in count():
            if stop is None and len(talk.context.token_ids) >= self.backend.max_length:
                stop = "tokens"
            if stop is not None:
                reward = float(seen.reward)
                return replace(row, **talk.columns(), ids_exact=are_exact, episode_reward=reward, stop_reason=stop)
            if error := unknown_id(self.backend.model, talk.context.token_ids):
                return replace(row, error=error)
            hints = {}
            if self.backend.engine == "scripted":
                hints = {"oracle": "\n".join((yield AskOracle()).commands or ())}
            seed, opened = seed_of_turn(row.trajectory_id, number), talk.opens_thinking
            said = yield Ask(self._request(row, talk, number, seed, hints))
            are_exact &= said.ids_exact
            action = command_of(said.text, opened)
            talk.act(said.token_ids, action, finish_reason=said.finish_reason, seed=seed)
            seen = yield Step(action)
            talk.observe(well_formed(seen.text), seen.valid)
            stop = self._stop(seen, number + 1)

    def _stop(self, seen: Observation, turns: int) -> StopReason | None:
        """Return why an episode has ended after so many turns, or None where it goes on."""
        if seen.done or seen.solved:
            return "solved" if seen.solved else "failed"
        return "turns" if turns >= self.max_turns else None

    def _request(
        self, row: Trajectory, talk: Conversation, number: int, seed: int, hints: Mapping[str, str]
    ) -> Request:
        read = talk.context.token_ids
        room = room_for_response(self.backend.max_length, len(read), row.max_tokens)
        return Request(
            request_id=f"{row.trajectory_id}:{number}",
            prompt_token_ids=read,
            sampling=Sampling(row.temperature, row.top_p, row.top_k, room),
            seed=seed,
            messages=tuple(talk.messages),
            hints={"task": EPISODE, "wanted": "turn", **hints},
        )
