"""trd refine: the teacher rewrites every rollout y_o into y_r.

OPD: a stronger model sees (x, y_o). OPSD: the student's own weights see (x, y*, y_o).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any

import pyarrow.compute as pc

from trd_cli.config.generating import RefineConfig
from trd_cli.errors import InputError
from trd_cli.generation import (
    Backend,
    Outcome,
    Prompt,
    ShardFiller,
    check_strangers,
    new_row,
    preview,
    too_long,
    unknown_id,
)
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering, room_for_prompt, templates_for, values_of
from trd_cli.prompting.templates import Template
from trd_cli.prompting.tokens import check_wrote, fit_attempt
from trd_cli.records import Problem, Trajectory, token_array
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.sets import InputSet, check_complete, iter_selected, open_sets, selected_tables
from trd_cli.trajectories.shards import check_whole, list_shards, may_hold, read_table
from trd_cli.trajectories.stage_dir import StageDir

# The columns of a rollout that its refined row is made from.
_READ = (
    *("trajectory_id", "round", "sample_index", "stage", "response", "response_token_ids", "prompt_token_ids", "error"),
    *(field.name for field in fields(Problem)),
)


def run(
    config: RefineConfig, waves: Iterable[Sequence[str]], backend_for: Callable[[str], Backend], progress: Progress
) -> Outcome:
    """Refine the rollouts that each wave of paths names. A wave is generated before the next one is read.

    `backend_for` makes a backend from a model's name. There is at least one wave.
    """
    waves = iter(waves)
    sets = open_sets(next(waves))
    if not config.stream:
        _check_inputs(config, sets)
    refiner = Refiner(config, sets[0], backend_for(teacher_of(config, sets[0])))
    if unread := refiner.rendering.unread(refiner.backend.tokenizer):
        progress.note(unread)
    sources = sets[:1] if config.stream else sets
    identity = refiner.identity(sources)
    # Rollouts that have grown ask every task of an array for more.
    asked = config.deciding() | {"inputs": [s.record.get("asked", s.record.get("rows_expected")) for s in sources]}
    inputs = [s.lineage() for s in sets]
    stage_dir = StageDir(
        *(config.out, "refine", identity, config.record(), inputs, refiner.about()),
        part=config.part,
        asked=asked,
    )
    chosen = refiner.chosen(sets)
    planned = refiner.plan(sets)
    first = next(planned, None)  # a template that cannot be rendered is refused before anything is written
    if config.dry_run:
        progress.note(preview(first, len(chosen), stage_dir.path) if first else "no row is in the subset")
        return Outcome()
    total = None if config.stream else len(chosen)
    with stage_dir, ShardFiller(stage_dir, refiner.backend, config, progress, total) as filler:
        if not config.stream:
            check_strangers(stage_dir.path, _strangers(stage_dir, chosen))
            stage_dir.expect(total)
        del chosen
        filler.fill(chain([first] if first else [], planned))
        for wave in map(open_sets, waves):
            sets += wave
            filler.fill(refiner.plan(wave))
        if config.stream:
            _check_inputs(config, sets)
        filler.end_of_plan()
    if not filler.planned:
        progress.note("no row is in the subset: nothing to refine")
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def _strangers(stage_dir: StageDir, parents: IdSet) -> int:
    """Count the rows of a directory that refine other rollouts than these."""
    tables = (read_table(path, ["parent_id"]) for path in stage_dir.shards())
    return sum(name not in parents for table in tables for name in table["parent_id"].to_pylist())


def _check_inputs(config: RefineConfig, sets: Sequence[InputSet]) -> None:
    """Raise InputError for sets that are not finished, or where shards with rows of this part are not given."""
    if config.part is not None:
        given = {path.resolve() for each in sets for path in each.shards}
        for directory in dict.fromkeys(each.directory for each in sets):
            for path in list_shards(directory):
                if may_hold(path, config.part) and path.resolve() not in given:
                    raise InputError(
                        f"{config.part} of {directory} without its {path.name}",
                        "all shards that have rows of the part",
                        "name the directory",
                    )
    if not config.allow_partial:
        check_complete((s.directory for s in sets), config.part)


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

    def chosen(self, sets: Sequence[InputSet]) -> IdSet:
        """Return the ids of the rollouts in the subset.

        Raises InputError for rows that are none, and DamagedFile before hours of work rather than after them.
        """
        ids, config = IdSet(), self._config
        columns = ["trajectory_id", "stage", "problem_id"]
        for each in self._of_part(sets):
            for path in each.shards:
                check_whole(path)
            for table in selected_tables(each, config.subset, config.where, config.parents, columns):
                self._check_stages(pc.unique(table["stage"]).to_pylist())
                for name, problem in zip(*(table[c].to_pylist() for c in ("trajectory_id", "problem_id")), strict=True):
                    if config.owns(problem):
                        ids.add(name)
        return ids

    def _of_part(self, sets: Iterable[InputSet]) -> Iterator[InputSet]:
        """Yield the sets with the shards that may have rows of the part to make."""
        for each in sets:
            yield replace(each, shards=tuple(path for path in each.shards if may_hold(path, self._config.part)))

    def plan(self, sets: Sequence[InputSet]) -> Iterator[Trajectory]:
        """Yield the refined row of each rollout in the subset; one that cannot be asked for is an error row."""
        config = self._config
        for rollout in iter_selected(self._of_part(sets), config.subset, config.where, config.parents, _READ):
            if config.owns(rollout.problem_id):
                yield self._plan_one(rollout)

    def _check_stages(self, stages: Iterable[str]) -> None:
        if other := next((stage for stage in stages if stage != "rollout"), None):
            raise InputError(
                f"{self._source.directory} holds {other} rows", "rollouts", "give the set that trd sample made"
            )

    def _plan_one(self, rollout: Trajectory) -> Trajectory:
        self._check_stages([rollout.stage])
        template = self._templates[rollout.task]
        problem_with = _why_not(rollout, template)
        if problem_with:
            return self._row(rollout, Prompt((), token_array(()), template), error=problem_with)

        def prompt(attempt: str) -> Prompt:
            messages = template.render(values_of(rollout, attempt))
            return Prompt(messages, token_array(self.rendering.token_ids(tokenizer, messages)), template)

        tokenizer = self.backend.tokenizer
        whole = prompt(rollout.response)
        if len(whole.token_ids) <= self._room:
            return self._asked(rollout, whole, trimmed=0)
        text = fit_attempt(tokenizer, rollout.response, lambda attempt: prompt(attempt).token_ids, self._room)
        if text is None:
            error = too_long(len(prompt("").token_ids), self._room) + " beside the response"
            return self._row(rollout, Prompt((), token_array(()), template), error=error)
        kept = len(tokenizer.encode(text))
        # The sampled ids may differ from the text's own and be fewer.
        trimmed = max(1, len(rollout.response_token_ids) - kept)
        return self._asked(rollout, prompt(text), trimmed=trimmed)

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
    """Return the reason why a rollout cannot be refined with this template, or None if it can."""
    if rollout.error is not None:
        return f"the rollout has no response: {rollout.error}"
    if template.needed and not getattr(rollout, template.needed):
        return f"the problem has no {template.needed}"
    return None
