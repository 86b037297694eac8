"""trd refine: the teacher rewrites every rollout y_o into y_r.

OPD: a stronger model sees (x, y_o). OPSD: the student's own weights see (x, y*, y_o).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trd_cli.config.generating import RefineConfig
from trd_cli.errors import InputError
from trd_cli.generation import (
    Backend,
    Outcome,
    Prompt,
    ShardFiller,
    new_row,
    preview,
    too_long,
    unknown_id,
)
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering, room_for_prompt, templates_for, values_of
from trd_cli.prompting.templates import Template
from trd_cli.prompting.tokens import check_wrote, fit_attempt
from trd_cli.records import Message, Trajectory
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.sets import InputSet, check_complete, load_rows, open_sets
from trd_cli.trajectories.stage_dir import StageDir


def run(
    config: RefineConfig, waves: Iterable[Sequence[str]], backend_for: Callable[[str], Backend], progress: Progress
) -> Outcome:
    """Refine the rollouts that each wave of paths names. A wave is generated before the next one is read.

    `backend_for` makes a backend from a model's name. There is at least one wave.
    """
    waves = iter(waves)
    sets = open_sets(next(waves))
    if not config.stream:
        _check_complete(config, sets)
    refiner = Refiner(config, sets[0], backend_for(teacher_of(config, sets[0])))
    if unread := refiner.rendering.unread(refiner.backend.tokenizer):
        progress.note(unread)
    identity = refiner.identity(sets[:1] if config.stream else sets)
    inputs = [s.lineage() for s in sets]
    stage_dir = StageDir(config.out, "refine", identity, config.record(), inputs=inputs, about=refiner.about())
    planned = refiner.plan(sets)
    if config.dry_run:
        progress.note(preview(planned[0], len(planned), stage_dir.path) if planned else "no row is in the subset")
        return Outcome()
    total = None if config.stream else len(planned)
    with stage_dir, ShardFiller(stage_dir, refiner.backend, config, progress, total) as filler:
        if not config.stream:
            filler.expect(planned)
        filler.fill(planned)
        for wave in map(open_sets, waves):
            sets += wave
            more = refiner.plan(wave)
            planned += more
            filler.fill(more)
        if config.stream:
            _check_complete(config, sets)
            filler.expect(planned)
    if not planned:
        progress.note("no row is in the subset: nothing to refine")
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def _check_complete(config: RefineConfig, sets: Sequence[InputSet]) -> None:
    if not config.allow_partial:
        check_complete(s.directory for s in sets)


def teacher_of(config: RefineConfig, source: InputSet) -> str:
    """Return the teacher's name: as asked, or for opsd the model that wrote the rollouts.

    Raises InputError where neither is known.
    """
    if config.teacher:
        return config.teacher
    if config.setting == "opd":
        raise InputError("--setting opd without --teacher", "a stronger model that refines", "add --teacher MODEL")
    model = source.about.model
    if model is None:
        raise InputError(
            f"{source.directory} does not say which model wrote it",
            "run.json beside the shards",
            "give --teacher MODEL",
        )
    return model


class Refiner:
    """Plan the refined row of each rollout of a set."""

    def __init__(self, config: RefineConfig, source: InputSet, backend: Backend) -> None:
        """Raise ModelError when the teacher's tokenizer is not the student's: its tokens could not be trained on."""
        mend = "use a teacher of the student's family"
        check_wrote(backend.model.name, backend.tokenizer, source.about.tokenizer, source.directory, mend)
        if config.teacher is None:
            backend.model.check_revision(source.about.model_revision, source.directory)
        self.backend = backend
        self._config, self._source = config, source
        recorded = Rendering.recorded(source.about.render, source.about.chat_template_kwargs)
        self.rendering = recorded.with_options(config)
        self._templates = templates_for(config, config.setting)
        self._room = room_for_prompt(backend.max_length, config.max_tokens)

    def identity(self, sets: Sequence[InputSet]) -> dict[str, Any]:
        """Return what decides the rows."""
        return self._config.identity() | {
            "inputs": [s.digest for s in sets],
            "prompt": {task: template.sha256 for task, template in self._templates.items()},
            **self.rendering.identity(),
            **self.backend.identity(),
        }

    def about(self) -> About:
        """Return what trd distill reads: the teacher, how it was prompted, and the student's model."""
        return self.backend.about(
            **self.rendering.identity(),
            setting=self._config.setting,
            student=self._source.about.model,
            student_revision=self._source.about.model_revision,
        )

    def plan(self, sets: Sequence[InputSet]) -> list[Trajectory]:
        """Return the refined row of each rollout in the subset; one that cannot be asked for is an error row."""
        config = self._config
        return [self._plan_one(row) for row in load_rows(sets, config.subset, config.where, config.parents)]

    def _plan_one(self, rollout: Trajectory) -> Trajectory:
        if rollout.stage != "rollout":
            raise InputError(
                f"{self._source.directory} holds {rollout.stage} rows", "rollouts", "give the set that trd sample made"
            )
        template = self._templates[rollout.task]
        problem_with = _why_not(rollout, template)
        if problem_with:
            return self._row(rollout, Prompt((), (), template), error=problem_with)

        def messages(attempt: str) -> Sequence[Message]:
            return template.render(values_of(rollout, attempt))

        def token_ids(attempt: str) -> list[int]:
            return self.rendering.token_ids(self.backend.tokenizer, messages(attempt))

        whole = token_ids(rollout.response)
        if len(whole) <= self._room:
            return self._asked(rollout, Prompt(messages(rollout.response), whole, template), trimmed=0)
        text = fit_attempt(self.backend.tokenizer, rollout.response, token_ids, self._room)
        if text is None:
            bare = len(token_ids(""))
            return self._row(
                rollout, Prompt((), (), template), error=too_long(bare, self._room) + " beside the response"
            )
        kept = len(self.backend.tokenizer.encode(text))
        # The sampled ids may differ from the text's own and be fewer.
        trimmed = max(1, len(rollout.response_token_ids) - kept)
        return self._asked(rollout, Prompt(messages(text), token_ids(text), template), trimmed=trimmed)

    def _asked(self, rollout: Trajectory, prompt: Prompt, trimmed: int) -> Trajectory:
        return self._row(rollout, prompt, trimmed, unknown_id(self.backend.model, prompt))

    def _row(
        self, rollout: Trajectory, prompt: Prompt, trimmed: int | None = None, error: str | None = None
    ) -> Trajectory:
        return new_row(
            rollout,
            prompt,
            self.backend,
            self._config,
            stage="refined",
            round=rollout.round,
            sample_index=rollout.sample_index,
            parent=rollout,
            setting=self._config.setting,
            trimmed=trimmed,
            error=error,
        )


def _why_not(rollout: Trajectory, template: Template) -> str | None:
    """Return the reason why a rollout cannot be refined with this template, or None if it can."""
    if rollout.error is not None:
        return f"the rollout has no response: {rollout.error}"
    if template.needed and not getattr(rollout, template.needed):
        return f"the problem has no {template.needed}"
    return None
