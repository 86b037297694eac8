"""trd refine: the teacher makes y_r of every rollout y_o.

OPD: a stronger model sees x. OPSD: the student's own weights see (x, y*). `rewrite`: it sees y_o too and writes y_r.
`continue`: y_r is the beginning of y_o, and the teacher goes on from there, in the context in which it would write a
response of its own. `relay`: both write y_r in turns, the teacher in that context (see `relaying`).

Of an episode the teacher rewrites the commands, which are replayed in its environment (see `episodes.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from itertools import chain
from typing import Any

from trd_cli.config.generating import RefineConfig
from trd_cli.continuing import LENGTH_OF, PREFIX_OF, Continuer
from trd_cli.episodes.contexts import writes_as_sampled
from trd_cli.episodes.driver import EpisodeFiller, workers_of
from trd_cli.episodes.replay import Replays, Teacher
from trd_cli.errors import EngineError, InputError, ModelError, flag
from trd_cli.generation import Outcome, ShardFiller, check_strangers
from trd_cli.models import SCRIPTED, tokenizer_at_hand
from trd_cli.planned import Backend, Prompt, new_row, no_response, preview, too_long, unknown_id
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering, room_for_prompt, templates_for, values_of
from trd_cli.prompting.templates import Template, deciding_families, family_of, load_template
from trd_cli.prompting.tokens import Tokenizer, check_wrote, fit_attempt
from trd_cli.records import EPISODE, Environment, Problem, Task, Trajectory
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.sets import InputSet, check_no_episodes, iter_selected, open_sets
from trd_cli.trajectories.shards import iter_values
from trd_cli.trajectories.sources import Sources, asked_of, count_orphans
from trd_cli.trajectories.stage_dir import StageDir
from trd_cli.trajectories.writers import check_alike, writer_of
from trd_cli.worlds.registry import refusal
from trd_cli.worlds.workers import Workers

# The columns of a rollout that its refined row is made from.
_READ = (
    *("trajectory_id", "round", "sample_index", "response", "prompt_token_ids", "finish_reason", *PREFIX_OF),
    *(field.name for field in fields(Problem)),
)
# And of an episode.
_OF_EPISODES = ("messages", "environment")
# And of one whose tokens are compared with what a tokenizer writes.
_COMPARED = ("messages", "prompt_token_ids", "response_token_ids", "turns")
# What all sets of one command share: the refined set tells it of its rollouts.
_SHARED = ("tokenizer", "model", "model_revision")


def run(
    config: RefineConfig, waves: Iterable[Sequence[str]], backend_for: Callable[[str], Backend], progress: Progress
) -> Outcome:
    """Refine the rollouts that each wave of paths names. A wave is generated before the next one is read.

    `backend_for` makes a backend from a model's name. There is at least one wave.
    """
    waves = iter(waves)
    sets = open_sets(next(waves))
    sources = Sources(config, "rollout")
    if not config.stream:
        sources.check(sets)
    _check_alike(config, sets)
    tasks = _tasks(config, sets)
    refiner = Refiner(config, sets[0], backend_for(teacher_of(config, sets)), tasks)
    if config.mode == "relay":
        return _relay(config, sources, sets, refiner, backend_for(student_of(config, sets)), progress)
    if unread := refiner.rendering.unread(refiner.backend.tokenizer):
        progress.note(unread)
    read = sets[:1] if config.stream else sets
    identity = refiner.identity(read)
    inputs = [s.lineage() for s in sets]
    stage_dir = StageDir(
        *(config.out, "refine", identity, config.record(), inputs, refiner.about()),
        part=config.part,
        asked=config.deciding() | {"inputs": asked_of(read)},
    )
    chosen = refiner.chosen(sources, sets)
    columns = (*_READ, *_OF_EPISODES) if refiner.replays else _READ
    planned = refiner.plan(sources.rows(sets, columns))
    first = next(planned, None)  # a template that cannot be rendered is refused before anything is written
    if config.dry_run:
        progress.note(preview(first, len(chosen), stage_dir.path) if first else "no row is in the subset")
        return Outcome()
    total = None if config.stream else len(chosen)
    worlds = workers_of(config) if refiner.replays else nullcontext()
    with worlds as workers, stage_dir, refiner.filler(stage_dir, progress, total, workers) as filler:
        if not config.stream:
            check_strangers(stage_dir.path, count_orphans(stage_dir.shards(), chosen))
            stage_dir.expect(total)
        del chosen
        filler.fill(chain([first] if first else [], planned))
        for wave in map(open_sets, waves):
            sets += wave
            _check_alike(config, sets)
            _tasks(config, [*sets[:1], *wave])
            filler.fill(refiner.plan(sources.rows(wave, columns)))
        if config.stream:
            sources.check(sets)
        filler.end_of_plan()
    if refiner.continuer:
        refiner.continuer.say_left_out(progress)
    if refiner.replays and (summary := filler.summary()):
        progress.note(summary)
    if not filler.planned:
        progress.note("no row is in the subset: nothing to refine")
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def _relay(
    config: RefineConfig,
    sources: Sources,
    sets: Sequence[InputSet],
    refiner: Refiner,
    student: Backend,
    progress: Progress,
) -> Outcome:
    """Relay the rollouts of the sets between the student and the refiner's teacher."""
    from trd_cli.relaying.relays import Relays  # it loads torch

    relays = Relays(config, sets, student, refiner.backend, progress)
    stage_dir = StageDir(
        *(config.out, "refine", refiner.identity(sets) | {"relay": relays.identity()}, config.record()),
        inputs=[s.lineage() for s in sets],
        about=refiner.about(),
        part=config.part,
        asked=config.deciding() | {"inputs": asked_of(sets)},
    )
    chosen = sources.ids(sets)
    if config.dry_run:
        progress.note(relays.preview(len(chosen), stage_dir.path))
        return Outcome()
    with stage_dir, ShardFiller(stage_dir, refiner.backend, config, progress, len(chosen)) as filler:
        check_strangers(stage_dir.path, count_orphans(stage_dir.shards(), chosen))
        stage_dir.expect(len(chosen))
        if filler.outcome.rows == len(chosen) and not config.retry_errors:
            filler.fill(())  # nothing is missing, whatever has become of the phases
        else:
            relayer = relays.relayer(stage_dir, refiner.own_prompt)
            filler.fill(relayer.rows(lambda: sources.rows(sets, _READ), chosen))
            filler.end_of_plan(keeps_others=True)
            relayer.add_to(filler.outcome)
            progress.note(relayer.summary())
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def _check_alike(config: RefineConfig, sets: Sequence[InputSet]) -> None:
    """Raise InputError for sets of two students, or whose prompts would be rendered in two ways."""

    def told(each: InputSet) -> dict[str, Any]:
        about = each.about
        rendering = Rendering.recorded(about.render, about.chat_template_kwargs).with_options(config)
        return {name: getattr(about, name) for name in _SHARED} | rendering.identity()

    check_alike(sets, told, "refine each by itself")


def _tasks(config: RefineConfig, sets: Sequence[InputSet]) -> frozenset[Task]:
    """Return the families of tasks that sets have.

    Raises InputError for episodes beside other tasks, for options that go with neither, and as `_check_playable`.
    """
    found = iter_values((path for each in sets for path in each.shards), ["task"])
    families = frozenset(family_of(task) for (task,) in found)
    if EPISODE not in families:
        config.check_without_episodes("episodes", "replays")
        return families
    if len(families) > 1:
        others = ", ".join(sorted(families - {EPISODE}))
        raise InputError(f"episodes and rows of other tasks ({others})", "one of both", "refine each set by itself")
    if config.mode != "rewrite":
        check_no_episodes(sets[0], families, f"leave {flag('mode')} out: the teacher's commands are replayed")
    _check_playable(sets)
    return families


def _check_playable(sets: Sequence[InputSet]) -> None:
    """Raise InputError for episodes of an environment that is not here, or here in another version."""
    found = iter_values((path for each in sets for path in each.shards), ["environment"])
    environments = {(each["name"], each["version"]): Environment(**each) for (each,) in found if each}
    for reason in filter(None, map(refusal, environments.values())):
        raise InputError(reason, "the environment that the rollouts were played in", "install it, or sample anew")


def student_of(config: RefineConfig, sets: Sequence[InputSet]) -> str:
    """Return the name of the student that goes on in relays: as asked, or the model that wrote the rollouts.

    Raises InputError where neither is known.
    """
    return config.student or writer_of(sets, "--student")[0]


def teacher_of(config: RefineConfig, sets: Sequence[InputSet]) -> str:
    """Return the teacher's name: as asked, or for opsd the model that wrote the rollouts.

    Raises InputError where neither is known.
    """
    if config.teacher:
        return config.teacher
    if config.setting == "opd":
        raise InputError("--setting opd without --teacher", "a stronger model that refines", "add --teacher MODEL")
    return writer_of(sets, "--teacher")[0]


class Refiner:
    """Plan the refined row of each rollout of a set.

    `continuer` is there where the teacher goes on from a prefix, `replays` where the rollouts are episodes.
    """

    def __init__(self, config: RefineConfig, source: InputSet, backend: Backend, tasks: Set[Task]) -> None:
        """Raise ModelError when the teacher's tokenizer is not the student's: its tokens could not be trained on.

        It is raised too where it is unknown how an episode's student writes a conversation. `tasks` are the families of
        the rollouts' tasks. Raises EngineError for a scripted teacher of other rows.
        """
        _check_scripted(backend, tasks)
        mend = "use a teacher of the student's family"
        check_wrote(backend.model.name, backend.tokenizer, source.about.tokenizer, source.directory, mend)
        if config.teacher is None:
            backend.model.check_revision(source.about.model_revision, source.directory)
        self.backend = backend
        self._config, self._source = config, source
        recorded = Rendering.recorded(source.about.render, source.about.chat_template_kwargs)
        self.rendering = recorded.with_options(config)
        self._render = partial(self.rendering.token_ids, backend.tokenizer)
        self._templates = templates_for(config, config.setting)
        self._deciding = deciding_families(tasks)
        self._room = room_for_prompt(backend.max_length, config.max_tokens)
        self.continuer = Continuer(backend, config, config.cut) if config.cut else None
        self.replays = self._replays(recorded) if EPISODE in tasks else None

    def _replays(self, recorded: Rendering) -> Replays:
        students = self.backend.tokenizer
        if self._config.teacher is not None:  # else the student is its own teacher
            students = _students_tokenizer(self.backend, self._source, recorded)
        return Replays(self._of_episodes(), students, recorded)

    def _of_episodes(self) -> Teacher:
        """Return how the teacher is asked for the commands of episodes."""
        config, backend = self._config, self.backend
        return Teacher(
            *(backend.tokenizer, self.rendering, load_template("again", EPISODE)),
            *(config.replays, config.max_turns, backend.max_length),
            is_led=backend.engine == SCRIPTED,
        )

    def identity(self, sets: Sequence[InputSet]) -> dict[str, Any]:
        """Return what decides the rows."""
        return self._config.identity() | {
            "inputs": [s.digest for s in sets],
            "prompt": {family: self._templates[family].sha256 for family in self._deciding},
            **self.rendering.identity(),
            **self.backend.identity(),
            **(self.replays.identity() if self.replays else {}),
        }

    def filler(
        self, stage_dir: StageDir, progress: Progress, total: int | None, workers: Workers | None
    ) -> ShardFiller:
        """Return what fills the directory; `workers` are for the environments of episodes, None without."""
        of = (stage_dir, self.backend, self._config, progress, total)
        return EpisodeFiller(*of, workers, self.replays.play) if self.replays else ShardFiller(*of)

    def about(self) -> About:
        """Return what trd distill reads: the teacher, how it was prompted, and the student's model."""
        return self.backend.about(
            **self.rendering.identity(),
            setting=self._config.setting,
            student=self._source.about.model,
            student_revision=self._source.about.model_revision,
        )

    def chosen(self, sources: Sources, sets: Sequence[InputSet]) -> IdSet:
        """Return the ids of the rollouts that rows are planned for."""
        if self.continuer is None:
            return sources.ids(sets)
        return sources.ids(sets, self.continuer.has_prefix, LENGTH_OF)

    def plan(self, rollouts: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """Yield the refined row of each rollout; one that cannot be asked for is an error row."""
        for rollout in rollouts:
            template = self._templates[family_of(rollout.task)]
            error = _why_not(rollout, template)
            if self.continuer is not None:
                yield from self._continued(self.continuer, rollout)
            elif error is not None:
                yield self._row(rollout, Prompt.nothing(template), error=error)
            else:
                yield self._rewritten(rollout, template)

    def own_prompt(self, row: Trajectory) -> tuple[Prompt, str | None]:
        """Return the prompt of a problem for a response of the teacher's own, or an empty one and the row's error."""
        template = self._templates[family_of(row.task)]
        if error := _why_not(row, template):
            return Prompt.nothing(template), error
        return Prompt.rendered(template, values_of(row), self._render), None

    def _continued(self, continuer: Continuer, rollout: Trajectory) -> Iterator[Trajectory]:
        prompt, error = self.own_prompt(rollout)
        yield from continuer.rows(
            *(rollout, prompt),
            kind="refined",
            sample_indices=(rollout.sample_index,),
            setting=self._config.setting,
            error=error,
        )

    def _rewritten(self, rollout: Trajectory, template: Template) -> Trajectory:
        def prompt(attempt: str) -> Prompt:
            return Prompt.rendered(template, values_of(rollout, attempt), self._render)

        tokenizer = self.backend.tokenizer
        whole = prompt(rollout.response)
        if len(whole.token_ids) <= self._room:
            return self._asked(rollout, whole, trimmed=0)
        text = fit_attempt(tokenizer, rollout.response, lambda attempt: prompt(attempt).token_ids, self._room)
        if text is None:
            error = too_long(len(prompt("").token_ids), self._room) + " beside the response"
            return self._row(rollout, Prompt.nothing(template), error=error)
        kept = len(tokenizer.encode(text))
        # The sampled ids may differ from the text's own and be fewer.
        trimmed = max(1, len(rollout.response_token_ids) - kept)
        return self._asked(rollout, prompt(text), trimmed=trimmed)

    def _asked(self, rollout: Trajectory, prompt: Prompt, trimmed: int) -> Trajectory:
        return self._row(rollout, prompt, trimmed, unknown_id(self.backend.model, prompt.token_ids))

    def _row(
        self, rollout: Trajectory, prompt: Prompt, trimmed: int | None = None, error: str | None = None
    ) -> Trajectory:
        row = new_row(
            rollout,
            prompt,
            self.backend,
            self._config,
            kind="refined",
            round=rollout.round,
            sample_index=rollout.sample_index,
            parent=rollout,
            setting=self._config.setting,
            trimmed=trimmed,
            error=error,
        )
        return self.replays.planned(row, rollout) if self.replays else row


def _students_tokenizer(teacher: Backend, source: InputSet, rendering: Rendering) -> Tokenizer:
    """Return the tokenizer that writes the student's conversations: the student's own, which may not be here any more.

    Then it is the teacher's where that writes an episode of the set as it was sampled. Raises ModelError where it does
    not: its chat template or end of a turn is another.
    """
    if own := tokenizer_at_hand(source.about, source.directory):
        return own
    played = (row for row in iter_selected([source], columns=_COMPARED) if row.turns)
    first = next(played, None)
    if first is None or writes_as_sampled(teacher.tokenizer, rendering, first):
        return teacher.tokenizer
    raise ModelError(
        f"{teacher.model.name} writes a conversation otherwise than the student of {source.directory}, which is not here",
        "the student's chat template and end of a turn, in which the refined episodes are written",
        f"put {source.about.model or 'the student'} back, or use a teacher with the same chat template",
    )


def _check_scripted(backend: Backend, tasks: Set[Task]) -> None:
    """Raise EngineError for scripted replies in the tokens of a real model: only to episodes they are of use."""
    if backend.engine == SCRIPTED and backend.model.name != SCRIPTED and EPISODE not in tasks:
        raise EngineError(
            f"{flag('engine')} scripted with {flag('teacher')} {backend.model.name}",
            f"episodes, whose oracle it plays, or {flag('teacher')} scripted",
            "change one of them",
        )


def _why_not(rollout: Trajectory, template: Template) -> str | None:
    """Return the reason why a rollout cannot be refined with this template, or None if it can."""
    lacking = template.lacks(rollout)
    if lacking and rollout.error is None:
        return f"the problem has no {lacking}"
    return no_response(rollout)
