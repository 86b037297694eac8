"""trd refine: the teacher rewrites every rollout y_o into y_r.

OPD: a stronger model sees (x, y_o). OPSD: the student's own weights see (x, y*, y_o).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trd_cli.config.generating import RefineConfig
from trd_cli.errors import InputError, ModelError
from trd_cli.generation import (
    Backend,
    Outcome,
    Prompt,
    Rendering,
    ShardFiller,
    new_row,
    preview,
    templates_for,
    too_long,
    unknown_id,
)
from trd_cli.progress import Progress
from trd_cli.prompting.templates import Template
from trd_cli.prompting.tokens import fit_attempt, unread_names
from trd_cli.records import Message, Trajectory
from trd_cli.trajectories.sets import InputSet, check_complete, load_rows, open_sets
from trd_cli.trajectories.stage_dir import StageDir


def run(
    config: RefineConfig, waves: Iterable[Sequence[str]], backend_for: Callable[[str], Backend], progress: Progress
) -> Outcome:
    """Refine the rollouts that each wave of paths names; a wave's rows are generated before the next wave is read.

    `backend_for` makes a backend from a model's name. There is at least one wave.
    """
    waves = iter(waves)
    sets = open_sets(next(waves))
    if not (config.stream or config.allow_partial):
        check_complete(s.directory for s in sets)
    refiner = Refiner(config, sets[0], backend_for(teacher_of(config, sets[0])))
    rendering = refiner.rendering
    if unread := unread_names(refiner.backend.tokenizer, rendering.mode, rendering.kwargs):
        progress.note(unread)
    stage_dir = StageDir(
        config.out,
        "refine",
        refiner.identity(sets[:1] if config.stream else sets),
        config.record(),
        inputs=[s.lineage() for s in sets],
        about=refiner.about(),
    )
    planned = refiner.plan(load_rows(sets, config.subset, config.where, config.parents))
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
            more = refiner.plan(load_rows(wave, config.subset, config.where, config.parents))
            planned += more
            filler.fill(more)
        if config.stream:
            if not config.allow_partial:
                check_complete(s.directory for s in sets)
            filler.expect(planned)
    if not planned:
        progress.note("no row is in the subset: nothing to refine")
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def teacher_of(config: RefineConfig, source: InputSet) -> str:
    """The teacher's name: as asked, or for opsd the model that wrote the rollouts."""
    if config.teacher:
        return config.teacher
    if config.setting == "opd":
        raise InputError("--setting opd without --teacher", "a stronger model that refines", "add --teacher MODEL")
    model = source.about("model")
    if model is None:
        raise InputError(
            f"{source.directory} does not say which model wrote it",
            "run.json beside the shards",
            "give --teacher MODEL",
        )
    return model


class Refiner:
    """Plans the refined row of each rollout."""

    def __init__(self, config: RefineConfig, source: InputSet, backend: Backend) -> None:
        """Raises ModelError when the teacher's tokenizer is not the student's: its tokens could not be trained on."""
        student = source.about("tokenizer")
        if student is not None and student != backend.tokenizer.fingerprint():
            raise ModelError(
                f"the tokenizer of {backend.model.name} is not that of the student in {source.directory}",
                "the same tokens with the same ids",
                "use a teacher of the student's family",
            )
        if config.teacher is None:
            backend.model.check_revision(source.about("model_revision"), source.directory)
        self.backend = backend
        self._config, self._source = config, source
        kwargs = config.chat_template_kwargs
        self.rendering = Rendering(
            config.render or source.about("render") or "chat",
            kwargs if kwargs is not None else source.about("chat_template_kwargs") or {},
        )
        self._templates = templates_for(f"refine-{config.setting}", ("math", "code"), config.prompt)
        # Room for the response is kept first; where that is more than half of what the model takes, half of it.
        self._room = backend.max_length - min(config.max_tokens, backend.max_length // 2)

    def identity(self, sets: Sequence[InputSet]) -> dict[str, Any]:
        """What decides the rows."""
        return self._config.identity() | {
            "inputs": [s.digest for s in sets],
            "prompt": {task: template.sha256 for task, template in self._templates.items()},
            **self.rendering.identity(),
            **self.backend.identity(),
        }

    def about(self) -> dict[str, Any]:
        """What distill needs to know: the teacher, how it was prompted, and the student's model."""
        return {
            **self.backend.about(),
            **self.rendering.identity(),
            "setting": self._config.setting,
            "student": self._source.about("model"),
            "student_revision": self._source.about("model_revision"),
        }

    def plan(self, rollouts: Sequence[Trajectory]) -> list[Trajectory]:
        """The refined row of each rollout; one that cannot be asked for is an error row."""
        return [self._plan_one(row) for row in rollouts]

    def _plan_one(self, rollout: Trajectory) -> Trajectory:
        if rollout.stage != "rollout":
            raise InputError(
                f"{self._source.directory} holds {rollout.stage} rows", "rollouts", "give the set that trd sample made"
            )
        template = self._templates[rollout.task]
        problem_with = _why_not(rollout, template)
        if problem_with:
            return self._row(rollout, Prompt((), (), template), error=problem_with)
        values = {
            "problem": rollout.problem,
            "reference_solution": rollout.reference_solution or "",
            "reference_answer": rollout.reference_answer or "",
        }

        def messages(attempt: str) -> Sequence[Message]:
            return template.render({**values, "attempt": attempt})

        def token_ids(attempt: str) -> list[int]:
            return self.backend.tokenizer.render(messages(attempt), self.rendering.mode, self.rendering.kwargs)

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
        # The ids as sampled may be other ones, and fewer, than the text's own.
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
            kind="refined",
            round=rollout.round,
            sample_index=rollout.sample_index,
            parent=rollout,
            setting=self._config.setting,
            trimmed=trimmed,
            error=error,
        )


def _why_not(rollout: Trajectory, template: Template) -> str | None:
    """Why a rollout cannot be refined with this template, or None."""
    if rollout.error is not None:
        return f"the rollout has no response: {rollout.error}"
    # A template that shows both can do without the answer; what it cannot do without is the reference itself.
    needed = next((n for n in ("reference_solution", "reference_answer") if n in template.placeholders), None)
    if needed and not getattr(rollout, needed):
        return f"the problem has no {needed}"
    return None
