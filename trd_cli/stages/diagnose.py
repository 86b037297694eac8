"""trd diagnose: student and teacher read y_o and y_r, and every position is compared.

Both kinds of rows are read in the same contexts, the student's own and by default the teacher's vanilla one: what
differs between y_o and y_r is then the text alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from trd_cli.config.diagnosing import DiagnoseConfig
from trd_cli.config.generating import EngineOptions
from trd_cli.config.training import DistillConfig
from trd_cli.diagnosis.continuations import READ as CONTINUED_FROM
from trd_cli.diagnosis.continuations import By, Voice, check_wrong, recover, voices_of
from trd_cli.diagnosis.engine import FigureFiller, ScoringBackend
from trd_cli.diagnosis.files import ONSET_FILE, RowFigures, described, write_onset, write_rows
from trd_cli.diagnosis.gathering import conclude, conclude_recovery
from trd_cli.diagnosis.onset import Onset, onset_of, read_words
from trd_cli.diagnosis.results import Model
from trd_cli.diagnosis.scoring import dtype_of
from trd_cli.engines.placement import check_replicas
from trd_cli.errors import InputError, counted
from trd_cli.generation import check_strangers
from trd_cli.models import ModelRef
from trd_cli.planned import Backend
from trd_cli.progress import Progress, WithoutResults
from trd_cli.prompting.rendering import Rendering, template_for
from trd_cli.prompting.templates import deciding_families, digest_of
from trd_cli.records import Trajectory
from trd_cli.training.batches import Example
from trd_cli.training.examples import Contexts, shown
from trd_cli.training.reading import Verdicts
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.sets import (
    InputSet,
    check_complete,
    check_no_episodes,
    iter_selected,
    open_sets,
    parent_tables,
    selected_tables,
)
from trd_cli.trajectories.shards import check_whole, iter_values, read_table, schema_of
from trd_cli.trajectories.stage_dir import StageDir
from trd_cli.trajectories.writers import check_alike, writer_of

# The columns that figures and contexts are made from.
_READ = (
    *("trajectory_id", "problem_id", "parent_id", "round", "sample_index", "stage", "setting", "source", "task"),
    *("problem", "reference_answer", "reference_solution", "messages", "prompt_sha256", "response", "finish_reason"),
    *("prompt_token_ids", "student_prompt_token_ids", "response_token_ids", "error"),
)


def run(
    config: DiagnoseConfig,
    paths: Sequence[str],
    resolve: Callable[[str], ModelRef],
    backend_of: Callable[[EngineOptions, str], Backend],
    progress: Progress,
) -> Path | None:
    """Score the rows that are not there yet, write the tables, and return the directory; None after --dry-run.

    `backend_of` gives the models that --recover goes on with.
    """
    sets = open_sets(paths)
    if not config.allow_partial:
        check_complete(each.directory for each in sets)
    diagnosis = Diagnosis.of(config, sets, resolve, progress)
    chosen = diagnosis.chosen()
    if not len(chosen):
        raise InputError("no row is in the subset", "at least one", "check --subset and --where")
    if config.recover:
        check_wrong(sets, chosen, config)
    voices = [diagnosis.voice(by, backend_of) for by in voices_of(config)]
    inputs = [each.lineage() for each in sets]
    stage_dir = StageDir(
        *(config.out, "diagnose", diagnosis.identity(), config.record(), inputs, diagnosis.about()),
        # It is there before the first row has been scored.
        scratch=(ONSET_FILE,),
    )
    planned = diagnosis.plan(chosen)
    first = next(planned)  # a template that cannot be rendered is refused before anything is written
    for note in (*diagnosis.onset.notes(), *_note_on_dtype(config)):
        progress.note(note)
    if config.dry_run:
        progress.note(diagnosis.preview(first, len(chosen), stage_dir.path))
        return None
    backend, quiet = diagnosis.backend(), WithoutResults(progress)
    with stage_dir, FigureFiller(stage_dir, backend, config, quiet, len(chosen)) as filler:
        check_strangers(stage_dir.path, _strangers(stage_dir, chosen))
        stage_dir.expect(len(chosen))
        write_onset(stage_dir.path, diagnosis.onset)
        filler.fill(chain([first], planned))
        filler.end_of_plan()
        for note in diagnosis.notes():
            progress.note(note)
        rows = write_rows(stage_dir.path, _verdicts(config, sets).get, stage_dir.digest)
        models = (Model(model.name, model.revision) for model in (diagnosis.student, diagnosis.teacher))
        for warning in conclude(stage_dir.path, *models).warnings:
            progress.note(f"warning: {warning}")
        progress.result(rows)
    filler.outcome.check_errors(config.max_errors)
    if voices:
        tokenizers = (diagnosis.student.tokenizer(), diagnosis.teacher.tokenizer())
        recover(stage_dir.path, stage_dir.digest, voices, tokenizers, diagnosis.rows, inputs, config, progress)
        conclude_recovery(stage_dir.path)
    return stage_dir.path


def _note_on_dtype(config: DiagnoseConfig) -> list[str]:
    """Return a line where this machine, which has no GPU, decides the dtype of a cluster that may have some."""
    if config.ray is None or config.dtype != "auto" or dtype_of(config) != "float32":
        return []
    return ["--dtype auto is float32, as on this machine, on the whole cluster: GPUs are faster with --dtype bfloat16"]


def _strangers(stage_dir: StageDir, chosen: IdSet) -> int:
    """Count the rows of a directory that are not among these."""
    names = iter_values(stage_dir.shards(), ["trajectory_id"], schema_of("diagnose"))
    return sum(name not in chosen for (name,) in names)


def _verdicts(config: DiagnoseConfig, sets: Sequence[InputSet]) -> Verdicts:
    """Return the verdicts of the rows and of the attempts that they refine, as far as these are at hand."""
    columns = ["trajectory_id", "verdict"]
    own = (read_table(path, columns) for each in sets for path in each.shards)
    return Verdicts(chain(parent_tables(sets, columns, config.parents), own))


@dataclass(frozen=True)
class Diagnosis:
    """Hold the sets to diagnose, the two models, and what makes contexts for them."""

    config: DiagnoseConfig
    sets: Sequence[InputSet]
    student: ModelRef
    teacher: ModelRef
    setting: str
    onset: Onset
    options: DistillConfig
    contexts: Sequence[Contexts]

    @classmethod
    def of(
        cls,
        config: DiagnoseConfig,
        sets: Sequence[InputSet],
        resolve: Callable[[str], ModelRef],
        progress: Progress,
    ) -> Diagnosis:
        """Find the models, without loading weights. Raises UserError where one is not known or does not fit."""
        setting = _setting(config, sets)
        student = _student(config, sets, resolve)
        teacher = _teacher(config, sets, setting, student, resolve)
        onset = onset_of(read_words(config.onset), student.tokenizer())
        names = ("teacher_context", "prompt", "max_length", "overflow")
        options = DistillConfig.parse({"setting": setting, **{name: getattr(config, name) for name in names}})
        contexts = [Contexts(options, each, student, teacher, progress, weighs=False) for each in sets]
        return cls(config, sets, student, teacher, setting, onset, options, contexts)

    def identity(self) -> dict[str, Any]:
        """Return what decides the figures."""
        return self.config.identity() | {
            "inputs": [each.digest for each in self.sets],
            "setting": self.setting,
            "prompt": self._prompt(),
            "onset": list(self.onset.ids),
            "student_revision": self.student.revision,
            "teacher_revision": self.teacher.revision,
            "dtype": dtype_of(self.config),
        }

    def _prompt(self) -> Any:
        """Return the digest of the template that was given, or of the built-in ones of the sets' tasks."""
        if self.config.prompt:
            return digest_of(self.config.prompt)
        shards = (path for each in self.sets for path in each.shards)
        families = deciding_families(task for (task,) in iter_values(shards, ["task"]))
        return {family: template_for(self.options, self.setting, family).sha256 for family in families}

    def about(self) -> About:
        return About(
            tokenizer=self.student.tokenizer().fingerprint(),
            setting=self.setting,
            student=self.student.lasting_name,
            student_revision=self.student.revision,
            teacher=self.teacher.lasting_name,
        )

    def backend(self) -> ScoringBackend:
        """Return the models behind the options of scoring; raises EngineError for replicas that cannot be had."""
        options = self.config.scoring().model_copy(update={"dtype": dtype_of(self.config)})
        backend = ScoringBackend(self.student, self.teacher, options, self.onset.ids)
        check_replicas("transformers", backend.engine_options)
        return backend

    def chosen(self) -> IdSet:
        """Return the ids of the rows to score; raises DamagedFile before hours of work rather than after them."""
        for path in dict.fromkeys(path for each in self.sets for path in each.shards):
            check_whole(path)
        limit, wanted = self.config.limit, None
        if limit is not None:
            wanted = {*heapq.nsmallest(limit, {attempt for attempt, _ in self._named()})}
        ids = IdSet()
        for attempt, name in self._named():
            if wanted is None or attempt in wanted:
                ids.add(name)
        return ids

    def _named(self) -> Iterator[tuple[str, str]]:
        """Yield the id of each row in the subset after that of its attempt, which may be the row itself.

        Raises InputError for episodes.
        """
        config = self.config
        for each in self.sets:
            columns = ["trajectory_id", "parent_id"]
            for table in selected_tables(each, config.subset, config.where, config.parents, [*columns, "task"]):
                check_no_episodes(each, table["task"].unique().to_pylist())
                names, parents = (table[column].to_pylist() for column in columns)
                yield from ((parent or name, name) for name, parent in zip(names, parents, strict=True))

    def plan(self, chosen: IdSet) -> Iterator[RowFigures]:
        """Yield the rows to score, each with its example, or with the reason why it has none."""
        for each, contexts in zip(self.sets, self.contexts, strict=True):
            yield from self._plan(each, contexts, chosen)

    def _plan(self, each: InputSet, contexts: Contexts, chosen: IdSet) -> Iterator[RowFigures]:
        config = self.config
        rows: Iterable[Trajectory] = iter_selected([each], config.subset, config.where, config.parents, _READ)
        for row in rows:
            if row.trajectory_id not in chosen:
                continue
            made, values = contexts.made(row), described(row)
            if isinstance(made, Example):
                sides = {"student_prompt_tokens": made.student_prompt, "teacher_prompt_tokens": made.teacher_prompt}
                yield RowFigures(values | {name: len(prompt) for name, prompt in sides.items()}, made)
            else:
                yield RowFigures(values, error=row.error or made)

    def rows(self, ids: Collection[str]) -> Iterator[tuple[Trajectory, Example]]:
        """Yield the rows of these ids that have an example, each with it."""
        config, columns = self.config, list(dict.fromkeys((*_READ, *CONTINUED_FROM)))
        for each, contexts in zip(self.sets, self.contexts, strict=True):
            for row in iter_selected([each], config.subset, config.where, config.parents, columns):
                made = contexts.made(row) if row.trajectory_id in ids else None
                if isinstance(made, Example):
                    yield row, made

    def voice(self, by: By, backend_of: Callable[[EngineOptions, str], Backend]) -> Voice:
        """Return a model as one that goes on from wrong rows."""
        model = self.teacher if by == "teacher" else self.student
        backend = backend_of(self.config.generating(dtype_of(self.config)), model.lasting_name)
        rendering = self._rendering()
        if by == "student":
            return Voice(by, backend, backend.about(**rendering))
        whose = {"student": self.student.lasting_name, "student_revision": self.student.revision}
        return Voice(by, backend, backend.about(**rendering, **whose, setting=self.setting), self.setting)

    def _rendering(self) -> dict[str, Any]:
        """Return how the prompts of the rollouts were rendered, which --recover goes on from."""
        rollouts = [each for each in self.sets if not each.is_refined] or self.sets[:1]

        def told(each: InputSet) -> dict[str, Any]:
            return Rendering.recorded(each.about.render, each.about.chat_template_kwargs).identity()

        check_alike(rollouts, told, "let --recover take each by itself")
        return told(rollouts[0])

    def notes(self) -> list[str]:
        """Return how many contexts were cut."""
        return [note for contexts in self.contexts for note in contexts.notes()]

    def preview(self, first: RowFigures, rows: int, where: Path) -> str:
        """Return the text of --dry-run."""
        would = f"would score {counted(rows, 'row')} with {self.backend().described}, in {where}"
        if first.example is None:
            return f"first row {first.trajectory_id[:12]}: {first.error}\n{would}"
        return f"{shown(first.example, self.student.tokenizer())}\n\n{would}"


def _student(config: DiagnoseConfig, sets: Sequence[InputSet], resolve: Callable[[str], ModelRef]) -> ModelRef:
    """Return the student: as asked, else the model that wrote the rollouts."""
    if config.student:
        return resolve(config.student)
    name, revision = writer_of(sets, "--student")
    student = resolve(name)
    student.check_revision(revision, sets[0].directory)
    return student


def _setting(config: DiagnoseConfig, sets: Sequence[InputSet]) -> str:
    """Return the setting: as asked, else that of the refined rows, else opd."""
    if config.setting:
        return config.setting
    refined = [each for each in sets if each.is_refined]
    check_alike(refined, lambda each: {"setting": each.about.setting}, "take each by itself, or give --setting")
    return (refined[0].about.setting if refined else None) or "opd"


def _teacher(
    config: DiagnoseConfig,
    sets: Sequence[InputSet],
    setting: str,
    student: ModelRef,
    resolve: Callable[[str], ModelRef],
) -> ModelRef:
    """Return the teacher: as asked, else the model that refined, or for opsd the student."""
    if config.teacher:
        return resolve(config.teacher)
    if setting == "opsd":
        return student
    refined = [each for each in sets if each.is_refined]

    def told(each: InputSet) -> dict[str, str | None]:
        return {"teacher": each.about.model, "teacher_revision": each.about.model_revision}

    check_alike(refined, told, "take each by itself, or give --teacher")
    name, revision = told(refined[0]).values() if refined else (None, None)
    if name is None:
        raise InputError("no teacher", "--teacher MODEL, or --setting opsd for the student itself", "add one of them")
    teacher = resolve(name)
    teacher.check_revision(revision, refined[0].directory)
    return teacher
