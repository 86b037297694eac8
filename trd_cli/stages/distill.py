"""trd distill: train the student along trajectories, with the teacher's full distribution as the target."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from trd_cli.atomic import has_text_name
from trd_cli.config.training import DistillConfig, ObjectiveOptions
from trd_cli.errors import InputError, TrdError
from trd_cli.models import ModelRef, own_teacher
from trd_cli.progress import Progress
from trd_cli.prompting.templates import digest_of
from trd_cli.records import Trajectory
from trd_cli.training import LOG
from trd_cli.training.batches import Example, ids_array
from trd_cli.training.state import clear_states
from trd_cli.training.teacher_context import Contexts
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.sets import InputSet, check_complete, load_rows, open_sets, parent_column
from trd_cli.trajectories.shards import read_table
from trd_cli.trajectories.stage_dir import StageDir

# Files from before the first saved state: no work that another configuration would destroy.
_SCRATCH = (LOG, "trd")

# Fields that all sets of one training run must share: contexts and defaults are made from them.
_SHARED = (
    *("tokenizer", "model", "model_revision", "student", "student_revision"),
    *("setting", "render", "chat_template_kwargs"),
)


def run(config: DistillConfig, paths: Sequence[str], resolve: Callable[[str], ModelRef], progress: Progress) -> None:
    """Train and write a checkpoint; a finished one of the same configuration stays as it is."""
    sets = open_sets(paths)
    if not config.allow_partial:
        check_complete(s.directory for s in sets)
    student, teacher, examples = _read(config, sets, resolve, progress)
    if config.selfcheck:
        _selfcheck(config, examples, student, teacher, progress)
        return
    identity = config.identity() | {
        "inputs": [s.digest for s in sets],
        "rows": _digest(examples),
        # By its text: the path of a pipe is another one each time.
        "prompt": config.prompt and digest_of(config.prompt),
        "student_revision": student.revision,
        "teacher_revision": teacher.revision,
    }
    stage_dir = StageDir(
        config.out, "distill", identity, config.record(), [s.lineage() for s in sets], scratch=_SCRATCH
    )
    if not has_text_name(stage_dir.path):
        raise InputError(
            f"the path of {stage_dir.path.resolve()} is not UTF-8", "one that safetensors takes", "give another --out"
        )
    if config.dry_run:
        progress.note(_preview(examples, student, teacher, stage_dir, config))
        return
    if stage_dir.state().is_finished:
        clear_states(stage_dir.path)
        progress.note(f"{stage_dir.path} is finished: nothing to do")
        progress.result(stage_dir.path)
        return
    _train(config, examples, student, teacher, stage_dir, progress)


def _read(
    config: DistillConfig, sets: Sequence[InputSet], resolve: Callable[[str], ModelRef], progress: Progress
) -> tuple[ModelRef, ModelRef, list[Example]]:
    """Return the student, the teacher and the training examples; the rows, with all their text, are not kept."""
    rows, used = _rows_of_kind(config, sets)
    student, teacher = _models(config, used[0], rows[0], resolve)
    if config.objective == "sampled":
        _warn_of_other_samples(config, rows, progress)

    def parents(column: str) -> dict[str, Any]:
        return parent_column(used, column, config.parents)

    return student, teacher, Contexts(config, used[0], parents, student, teacher, progress).examples(rows)


def _warn_of_other_samples(config: DistillConfig, rows: Sequence[Trajectory], progress: Progress) -> None:
    """Report how many rows bias the sampled estimate, which needs unfiltered samples at the temperature of the loss."""
    others = sum(config.is_drawn_otherwise(row.stage, row.temperature, row.top_p, row.top_k) for row in rows)
    if others:
        progress.note(
            f"{others} of {len(rows)} rows were not drawn from the student at temperature {config.temperature:g} without top-p and "
            "top-k: along them the sampled estimate of reverse KL is biased"
        )


def _digest(examples: Sequence[Example]) -> str:
    """Return a digest of all that is trained on. The attempts' verdicts only sort the log."""
    digest = hashlib.sha256()
    for e in examples:
        digest.update(e.trajectory_id.encode())
        for ids in (e.student_prompt, e.teacher_prompt, e.response, ids_array(e.scored)):
            digest.update(len(ids).to_bytes(8))
            digest.update(ids)
    return digest.hexdigest()[:16]


def _train(
    config: DistillConfig,
    examples: Sequence[Example],
    student: ModelRef,
    teacher: ModelRef,
    stage_dir: StageDir,
    progress: Progress,
) -> None:
    from trd_cli.training.launch import accelerator_for
    from trd_cli.training.trainer import Trainer

    accelerator = accelerator_for(config, stage_dir.path)
    # One process holds the directory; the others train along.
    with stage_dir if accelerator.is_main_process else nullcontext():
        progress.note(f"loading {student.name} and its teacher {teacher.name} for {_described(config)}")
        trainer = Trainer(config, student, teacher, accelerator, stage_dir.path)
        began = time.monotonic()
        trained = trainer.train(examples, progress)
        at_work = time.monotonic() - began
        trainer.save()
        if accelerator.is_main_process:
            told = {"student": student.lasting_name, "teacher": teacher.lasting_name, "trajectories": len(examples)}
            stage_dir.finish(About(**told, **asdict(trained)))
            stage_dir.log_session(config.epochs * len(examples), trained.tokens, at_work)
            clear_states(stage_dir.path)
    progress.note(
        f"loss {trained.first_loss:.4f} → {trained.last_loss:.4f} over {trained.steps} steps, saved in {stage_dir.path}"
    )
    progress.result(stage_dir.path)


def _selfcheck(
    config: DistillConfig, examples: Sequence[Example], student: ModelRef, teacher: ModelRef, progress: Progress
) -> None:
    from trd_cli.training.selfcheck import run_checks

    checks = run_checks(config, examples, student, teacher)
    for check in checks:
        progress.note(f"{'ok ' if check.ok else 'OFF'} {check.what}: {check.value:.3g} (at most {check.limit:.3g})")
    off = [check.what for check in checks if not check.ok]
    if off:
        raise TrdError(
            f"selfcheck: {len(off)} of {len(checks)} are off: {'; '.join(off)}; expected all within their limits; report it with the lines above"
        )


def _rows_of_kind(config: DistillConfig, sets: Sequence[InputSet]) -> tuple[list[Trajectory], list[InputSet]]:
    """Return the rows to train on and the sets they are from.

    Raises InputError where there are none, or two sets disagree on how they were made.
    """
    # By the kinds in the sets, not in the subset: a filter must not change the kind that is trained along.
    held = {kind for each in sets for kind in _kinds_in(each)}
    kind = config.along(held)
    if kind not in held:
        why = f"--method {config.method}" if config.method else f"--stage {kind}"
        raise InputError(
            f"{why} trains along {kind} rows, and {', '.join(str(s.directory) for s in sets)} hold {', '.join(sorted(held))} ones",
            f"a set with {kind} rows",
            f"give one, or --stage {min(held)}",
        )
    loaded = [(each, load_rows([each], config.subset, config.where, config.parents)) for each in sets]
    by_set = [(each, [row for row in rows if row.stage == kind]) for each, rows in loaded]
    used = [each for each, rows in by_set if rows]
    if not used:
        raise InputError(
            f"no {kind} row in {', '.join(str(s.directory) for s in sets)} is in the subset",
            "at least one",
            "check --subset and --where, and that trd verify has run on the set, and on its parents, if they read verdicts",
        )
    for other in used[1:]:
        differing = [key for key in _SHARED if getattr(other.about, key) != getattr(used[0].about, key)]
        if differing:
            raise InputError(
                f"{used[0].directory} and {other.directory} differ in {', '.join(differing)}",
                "sets made alike",
                "train on one of them, or on each in turn",
            )
    return [row for _, rows in by_set for row in rows], used


def _kinds_in(each: InputSet) -> set[str]:
    return {kind for path in each.shards for kind in read_table(path, ["stage"])["stage"].to_pylist()}


def _models(
    config: DistillConfig, source: InputSet, row: Trajectory, resolve: Callable[[str], ModelRef]
) -> tuple[ModelRef, ModelRef]:
    """Return student and teacher: as asked, else as the run.json beside the shards names them."""
    refined = row.stage == "refined"
    about = source.about
    name = config.model or (about.student if refined else about.model)
    if name is None:
        raise InputError(
            f"{source.directory} does not say which model wrote the rollouts",
            "run.json beside the shards",
            "give --model",
        )
    student = resolve(name)
    if config.model is None:
        student.check_revision(about.student_revision if refined else about.model_revision, source.directory)
    setting = config.setting_of(row.setting)
    if config.takes_stored_prompt(row.stage) and setting != row.setting:
        raise InputError(
            f"--setting {setting} along rows that were refined for {row.setting}",
            f"{row.setting}, or --teacher-context vanilla",
            "leave --setting out",
        )
    if config.teacher is None and setting == "opsd":
        return student, own_teacher(student, config.teacher_weights, config.lora, resolve)
    if config.teacher_weights != "round":
        chosen = f"--method {config.method}, which sets " if config.method else ""
        raise InputError(
            f"{chosen}--teacher-weights {config.teacher_weights} with another teacher than the student",
            "--setting opsd and no --teacher",
            "change that, or give --teacher-weights round",
        )
    if config.teacher:
        return student, resolve(config.teacher)
    name = about.model if refined else None
    if name is None:
        raise InputError("no teacher", "--teacher MODEL, or --setting opsd for the student itself", "add one of them")
    teacher = resolve(name)
    teacher.check_revision(about.model_revision, source.directory)
    return student, teacher


def _described(config: DistillConfig) -> str:
    """Return the objective and each of its options that is not at its default: the terms that tell ablations apart."""
    told = [config.objective, f"along {config.stage}" if config.stage else "", "with an adapter" if config.lora else ""]
    usual = DistillConfig.parse({"objective": config.objective})
    for name in ObjectiveOptions.model_fields:
        if name not in ("method", "objective", "stage") and getattr(config, name) != getattr(usual, name):
            told.append(f"{name.replace('_', ' ')} {getattr(config, name)}")
    return ", ".join(filter(None, told))


def _preview(
    examples: Sequence[Example], student: ModelRef, teacher: ModelRef, stage_dir: StageDir, config: DistillConfig
) -> str:
    tokenizer, first = student.tokenizer(), examples[0]
    return (
        f"first row {first.trajectory_id[:12]}\n"
        f"student reads ({len(first.student_prompt)} tokens):\n{tokenizer.decode(first.student_prompt)}\n\n"
        f"teacher reads ({len(first.teacher_prompt)} tokens):\n{tokenizer.decode(first.teacher_prompt)}\n\n"
        f"both score ({len(first.response)} tokens):\n{tokenizer.decode(first.response)}\n\n"
        f"would train {student.name} towards {teacher.name} on {len(examples)} trajectories by {_described(config)}, "
        f"epochs {config.epochs}, {config.batch_size} a step, "
        f"lr {config.learning_rate:g}, into {stage_dir.path}"
    )
