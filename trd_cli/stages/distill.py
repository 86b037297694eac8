"""trd distill: train the student along trajectories, with the teacher's full distribution as the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict

from trd_cli.config import DistillConfig
from trd_cli.errors import InputError, ModelError
from trd_cli.generation import templates_for
from trd_cli.inputs import InputSet, check_complete, load_rows, open_sets
from trd_cli.models import ModelRef
from trd_cli.prompts import Template
from trd_cli.records import Trajectory, content_hash
from trd_cli.reporting import Report
from trd_cli.run_dir import RunDir
from trd_cli.tokens import Tokenizer
from trd_cli.training.batches import Example

# What all sets of one training run must have in common: contexts and defaults are made from it.
_SHARED = (
    "tokenizer",
    "model",
    "model_revision",
    "student",
    "student_revision",
    "setting",
    "render",
    "chat_template_kwargs",
)


def run(
    config: DistillConfig, paths: Sequence[str], resolve: Callable[[str], ModelRef], report: Report
) -> None:
    """Train and write a checkpoint; a finished one of the same configuration is left as it is."""
    sets = open_sets(paths)
    if not config.allow_partial:
        check_complete(s.directory for s in sets)
    rows, source = _rows_of_stage(config, sets)
    student, teacher = (resolve(name) for name in _models(config, source, rows[0]))
    refined = rows[0].stage == "refined"
    if config.model is None:
        student.check_revision(
            source.about("student_revision" if refined else "model_revision"), source.directory
        )
    if config.teacher is None and refined and rows[0].setting == "opd":
        teacher.check_revision(source.about("model_revision"), source.directory)
    examples = _Contexts(config, source, student, teacher).examples(rows, report)
    identity = config.identity() | {
        "inputs": [s.digest for s in sets],
        "rows": content_hash([asdict(e) for e in examples], 16),
        "student_revision": student.revision,
        "teacher_revision": teacher.revision,
    }
    run_dir = RunDir(
        config.out, "distill", identity, config.model_dump(mode="json"), [s.lineage() for s in sets]
    )
    if config.dry_run:
        report.note(_preview(examples, student, teacher, run_dir, config))
        return
    with run_dir:
        if not run_dir.run["about"].get("finished"):
            _train(config, examples, student, teacher, run_dir, report)
        report.result(run_dir.path)


def _train(
    config: DistillConfig,
    examples: Sequence[Example],
    student: ModelRef,
    teacher: ModelRef,
    run_dir: RunDir,
    report: Report,
) -> None:
    from trd_cli.training.trainer import Trainer

    report.note(f"loading {student.name} and its teacher {teacher.name}")
    trainer = Trainer(config, student, teacher)
    report.start("distill", config.epochs * len(examples))
    trained = trainer.train(examples, run_dir.path / "train.jsonl", report)
    report.end()
    trainer.save(run_dir.path)
    run_dir.finish(
        {"student": student.name, "teacher": teacher.name, "trajectories": len(examples), **asdict(trained)}
    )
    run_dir.log_session(config.epochs * len(examples), trained.tokens)
    report.note(
        f"loss {trained.first_loss:.4f} → {trained.last_loss:.4f} over {trained.steps} steps, saved in {run_dir.path}"
    )


def _rows_of_stage(config: DistillConfig, sets: Sequence[InputSet]) -> tuple[list[Trajectory], InputSet]:
    """The rows to train on, and the set that says how they were made; raises InputError where two sets disagree on that."""
    loaded = [(each, load_rows([each], config.subset, config.where, config.parents)) for each in sets]
    any_refined = any(row.stage == "refined" for _, rows in loaded for row in rows)
    stage = config.stage or ("refined" if any_refined else "rollout")
    by_set = [(each, [row for row in rows if row.stage == stage]) for each, rows in loaded]
    used = [each for each, rows in by_set if rows]
    if not used:
        raise InputError(
            f"no {stage} row in {', '.join(str(s.directory) for s in sets)} is in the subset",
            "at least one",
            "check --stage, --subset and --where, and that trd verify has run if they read verdicts",
        )
    for other in used[1:]:
        differing = [key for key in _SHARED if other.about(key) != used[0].about(key)]
        if differing:
            raise InputError(
                f"{used[0].directory} and {other.directory} differ in {', '.join(differing)}",
                "sets made alike",
                "train on one of them, or on each in turn",
            )
    return [row for _, rows in by_set for row in rows], used[0]


def _models(config: DistillConfig, source: InputSet, row: Trajectory) -> tuple[str, str]:
    """Names of student and teacher: as asked, else as the shards' run.json tells."""
    refined = row.stage == "refined"
    student = config.model or source.about("student" if refined else "model")
    if student is None:
        raise InputError(
            f"{source.directory} does not say which model wrote the rollouts",
            "run.json beside the shards",
            "give --model",
        )
    if config.teacher:
        return student, config.teacher
    setting = row.setting if refined else config.setting
    if setting == "opsd":
        return student, student
    teacher = source.about("model") if refined else None
    if teacher is None:
        raise InputError(
            "no teacher", "--teacher MODEL, or --setting opsd for the student itself", "add one of them"
        )
    return student, teacher


class _Contexts:
    """Builds the two contexts of each row: the student's own prompt, and what the teacher is shown."""

    def __init__(self, config: DistillConfig, source: InputSet, student: ModelRef, teacher: ModelRef) -> None:
        """Raises ModelError when the two tokenizers differ: the response ids would mean different tokens."""
        for model in (student, teacher):
            if model.path is None:
                raise ModelError(
                    f"{model.name} has no weights to train", "a real model", "give --model and --teacher"
                )
        self._tokenizer: Tokenizer = student.tokenizer()
        teachers = self._tokenizer if teacher.path == student.path else teacher.tokenizer()
        self._teacher_eos_ids = teachers.eos_ids
        if teachers.fingerprint() != self._tokenizer.fingerprint():
            raise ModelError(
                f"the tokenizers of {student.name} and {teacher.name} differ",
                "the same tokens with the same ids",
                "use models of one family",
            )
        written = source.about("tokenizer")
        if written is not None and written != self._tokenizer.fingerprint():
            raise ModelError(
                f"the tokenizer of {student.name} is not the one that wrote {source.directory}",
                "the same",
                "give --model",
            )
        self._config, self._source = config, source
        self._templates: dict[str, Template] | None = None

    def examples(self, rows: Sequence[Trajectory], report: Report) -> list[Example]:
        """The rows that can be trained on; what is left out is counted and said."""
        made: list[Example] = []
        left_out: Counter[str] = Counter()
        for row in rows:
            reason = self._why_not(row)
            if reason is None:
                example = self._example(row)
                reason = self._too_long(example)
            if reason is None:
                made.append(example)
            else:
                left_out[reason] += 1
        # Shards hold rows in the order in which they finished: training must not depend on that.
        made.sort(key=lambda example: example.trajectory_id)
        for reason, count in left_out.items():
            report.note(f"left out {count} of {len(rows)} rows: {reason}")
        if not made:
            raise InputError(
                f"all {len(rows)} rows are left out", "at least one to train on", "see the reasons above"
            )
        return made

    def _why_not(self, row: Trajectory) -> str | None:
        if row.error is not None or not row.response_token_ids:
            return "no response"
        if row.stage == "rollout" and self._config.setting == "opsd" and not row.reference_solution:
            return "no reference solution"
        return None

    def _too_long(self, example: Example) -> str | None:
        limit = self._config.max_length
        return f"longer than --max-length {limit}" if limit and example.length > limit else None

    def _example(self, row: Trajectory) -> Example:
        response = list(row.response_token_ids)
        if row.finish_reason == "stop" and response[-1] not in self._tokenizer.eos_ids:
            # A teacher with an end-of-turn id of its own: the student must learn to stop with one it knows.
            teachers_end = response[-1] in self._teacher_eos_ids
            response = [*(response[:-1] if teachers_end else response), self._tokenizer.end_of_turn_id]
        if row.stage == "refined":
            return Example(row.trajectory_id, row.student_prompt_token_ids, row.prompt_token_ids, response)
        return Example(row.trajectory_id, row.prompt_token_ids, self._vanilla_prompt(row), response)

    def _vanilla_prompt(self, row: Trajectory) -> list[int]:
        """The teacher's context along y_o: the problem, and for opsd the reference."""
        setting = self._config.setting or "opd"
        if self._templates is None:
            self._templates = templates_for(f"vanilla-{setting}", ("math", "code"), self._config.prompt)
        values = {
            "problem": row.problem,
            "reference_solution": row.reference_solution or "",
            "reference_answer": row.reference_answer or "",
        }
        kwargs = self._source.about("chat_template_kwargs") or {}
        messages = self._templates[row.task].render(values)
        return self._tokenizer.render(messages, self._source.about("render") or "chat", kwargs)


def _preview(
    examples: Sequence[Example], student: ModelRef, teacher: ModelRef, run_dir: RunDir, config: DistillConfig
) -> str:
    tokenizer, first = student.tokenizer(), examples[0]
    return (
        f"first row {first.trajectory_id[:12]}\n"
        f"student reads ({len(first.student_prompt)} tokens):\n{tokenizer.decode(first.student_prompt)}\n\n"
        f"teacher reads ({len(first.teacher_prompt)} tokens):\n{tokenizer.decode(first.teacher_prompt)}\n\n"
        f"both score ({len(first.response)} tokens):\n{tokenizer.decode(first.response)}\n\n"
        f"would train {student.name} towards {teacher.name} on {len(examples)} trajectories, {config.epochs} epochs, "
        f"{config.batch_size} a step, lr {config.learning_rate:g}, into {run_dir.path}"
    )
