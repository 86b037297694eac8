"""trd distill: train the student along trajectories, with the teacher's full distribution as the target."""

from __future__ import annotations

import contextlib
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trd_cli.adapter_files import is_adapter_alone
from trd_cli.atomic import has_text_name, refused, temporary
from trd_cli.config.training import DistillConfig, ObjectiveOptions
from trd_cli.errors import InputError, ModelError, TrdError, UserError, counted
from trd_cli.models import ModelRef, own_teacher
from trd_cli.progress import Progress
from trd_cli.prompting.templates import digest_of
from trd_cli.training import LOG
from trd_cli.training.examples import Contexts, shown
from trd_cli.training.launch import Processes, accelerator_for, end_of_others_said
from trd_cli.training.reading import Chosen, choose, key_of, write_examples
from trd_cli.training.rounds import Earlier, Round, earlier_round
from trd_cli.training.row_weights import NAME as ROW_WEIGHTS
from trd_cli.training.state import clear_states
from trd_cli.training.stored import NAME as EXAMPLES
from trd_cli.training.stored import Examples
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.sets import InputSet, check_complete, open_sets
from trd_cli.trajectories.stage_dir import DEFAULT_ROOT, StageDir, differing_keys
from trd_cli.trajectories.writers import writer_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trd_cli.training.trainer import Trained

# Files from before the first saved state: no work that another configuration would destroy.
_SCRATCH = (LOG, "trd", EXAMPLES, ROW_WEIGHTS)
# Seconds. A network file system may take some to show a file that another machine has written.
_VISIBLE_WITHIN = 5.0


@dataclass(frozen=True)
class _Training:
    """Hold what one process trains with; the main process holds the output directory too."""

    student: ModelRef
    teacher: ModelRef
    examples: Examples
    directory: Path
    accelerator: Accelerator
    earlier: Earlier | None = None
    stage_dir: StageDir | None = None


@dataclass(frozen=True)
class _Order:
    """Tell the other processes, on other machines too, what the main process has read and decided."""

    student: ModelRef
    teacher: ModelRef
    examples: Path
    digest: str
    directory: Path
    earlier: Earlier | None

    @classmethod
    def of(cls, training: _Training) -> _Order:
        path, directory = training.examples.path.absolute(), training.directory.absolute()
        return cls(training.student, training.teacher, path, training.examples.digest, directory, training.earlier)

    def taken(self, config: DistillConfig, resolve: Callable[[str], ModelRef]) -> _Training:
        """Find models and examples on this machine. Raises UserError where they are others here."""
        student, teacher = (_same_here(model, resolve) for model in (self.student, self.teacher))
        earlier = self.earlier and replace(self.earlier, model=_same_here(self.earlier.model, resolve))
        if earlier:
            earlier.check_state()
        until = time.monotonic() + _VISIBLE_WITHIN
        while (examples := Examples.at(self.examples)) is None and time.monotonic() < until:
            time.sleep(0.1)
        if examples is None or examples.digest != self.digest:
            raise InputError(
                f"{platform.node()} does not find {self.examples}, which the main process has written",
                "an output directory on storage that all machines of the launch share",
                "give such an --out",
            )
        accelerator = accelerator_for(config, self.directory)
        return _Training(student, teacher, examples, self.directory, accelerator, earlier)


def run(config: DistillConfig, paths: Sequence[str], resolve: Callable[[str], ModelRef], progress: Progress) -> None:
    """Train and write a checkpoint; a finished one of the same configuration stays as it is."""
    with end_of_others_said(), contextlib.ExitStack() as held:
        processes = Processes(config)
        of_main = processes.from_main(config.record)
        processes.all_or_none(lambda: _check_same(of_main, config.record()))
        main: _Training | None = None

        def prepared() -> _Order | None:
            nonlocal main
            main = _prepared(config, paths, resolve, progress, held)
            return main and _Order.of(main)

        order = processes.from_main(prepared)
        if order is not None:
            _train(config, processes.all_or_none(lambda: main or order.taken(config, resolve)), progress)


def _check_same(of_main: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise UserError where this process was started with other options than the main one."""
    if differing := differing_keys(of_main, own):
        raise UserError(
            f"{platform.node()} was started with other options than the main process: {', '.join(differing)}",
            "one command on all machines",
            "start them alike",
        )


def _same_here(model: ModelRef, resolve: Callable[[str], ModelRef]) -> ModelRef:
    here = resolve(model.lasting_name)
    if here.revision != model.revision:
        raise ModelError(
            f"{model.name} is {here.revision} on {platform.node()}",
            f"{model.revision}, as for the main process",
            "give all machines the same model",
        )
    return here


def _prepared(
    config: DistillConfig,
    paths: Sequence[str],
    resolve: Callable[[str], ModelRef],
    progress: Progress,
    held: contextlib.ExitStack,
) -> _Training | None:
    """Read the sets and open the output directory, which `held` closes; return None if nothing is to be trained."""
    sets = open_sets(paths)
    if not config.allow_partial:
        check_complete(s.directory for s in sets)
    earlier = earlier_round(config, resolve)
    if not config.selfcheck:
        progress.note(earlier.said() if earlier else "a new training")
    with _new_file(config) as file:
        student, teacher, examples = read(config, sets, resolve, progress, file, earlier)
        if config.selfcheck:
            _selfcheck(config, examples, student, teacher, progress)
            return None
        identity = config.identity() | {
            "inputs": [s.digest for s in sets],
            "rows": examples.digest,
            # By its text: the path of a pipe is another one each time.
            "prompt": config.prompt and digest_of(config.prompt),
            "student_revision": student.revision,
            "teacher_revision": teacher.revision,
            **({"continue": earlier.identity()} if earlier else {}),
        }
        stage_dir = StageDir(
            config.out, "distill", identity, config.record(), [s.lineage() for s in sets], scratch=_SCRATCH
        )
        if not has_text_name(stage_dir.path):
            raise InputError(
                f"the path of {stage_dir.path.resolve()} is not UTF-8",
                "one that safetensors takes",
                "give another --out",
            )
        of_all = Round.of(config, len(examples), earlier)
        is_finished = stage_dir.state().is_finished
        if earlier and not is_finished:
            earlier.check_state()
        if config.dry_run:
            progress.note(_preview(examples, student, teacher, stage_dir, config, of_all))
            return None
        if is_finished:
            _clear(stage_dir.path, of_all)
            if config.merge and is_adapter_alone(stage_dir.path):
                _merge(stage_dir, resolve, progress)
            else:
                progress.note(f"{stage_dir.path} is finished: nothing to do")
            progress.result(stage_dir.path)
            return None
        accelerator = accelerator_for(config, stage_dir.path)
        held.enter_context(stage_dir).expect(None)
        if examples.path == Path(file.name):
            examples.move_to(stage_dir.path / EXAMPLES)
    return _Training(student, teacher, examples, stage_dir.path, accelerator, earlier, stage_dir)


def _merge(stage_dir: StageDir, resolve: Callable[[str], ModelRef], progress: Progress) -> None:
    """Write the merged weights into a finished checkpoint without them."""
    from trd_cli.training.checkpoints import merge_saved

    with stage_dir:
        merge_saved(resolve(str(stage_dir.path)))
    progress.note(f"{stage_dir.path} was finished without merged weights: they are there now")


@contextlib.contextmanager
def _new_file(config: DistillConfig) -> Iterator[IO[bytes]]:
    """Open a file for examples that is removed after the block unless it was moved.

    It lies on the file system of the output directory, or among temporary files where nothing is to be trained.
    """
    if config.dry_run or config.selfcheck:
        with tempfile.TemporaryFile() as file:
            yield file
        return
    wanted = Path(config.out) if config.out else DEFAULT_ROOT / "distill"
    above = next(path for path in (wanted, *wanted.absolute().parents) if path.is_dir())
    with contextlib.ExitStack() as removed:
        try:
            file = removed.enter_context(temporary(above / EXAMPLES, "x+b"))
        except OSError as error:
            raise refused(above / EXAMPLES, error) from None
        yield file


def read(
    config: DistillConfig,
    sets: Sequence[InputSet],
    resolve: Callable[[str], ModelRef],
    progress: Progress,
    file: IO[bytes],
    earlier: Earlier | None = None,
) -> tuple[ModelRef, ModelRef, Examples]:
    """Return the student, the teacher and the examples to train on, without loading a model's weights.

    With an `earlier` round that the training continues, the student is the one that it began with, and there may be no
    example. The examples are written into `file`, which is empty and open for writing and reading, unless an earlier
    run has left the same ones in the output directory.
    """
    chosen = choose(config, sets)
    student, teacher = _models(config, chosen, resolve, earlier)
    if config.objective == "sampled" and chosen.otherwise:
        progress.note(
            f"{chosen.otherwise} of {chosen.rows} rows were not drawn from the student at temperature {config.temperature:g} without top-p and "
            "top-k: along them the sampled estimate of reverse KL is biased"
        )
    contexts = Contexts(config, chosen.sets[0], student, teacher, progress, classes=chosen.classes)
    key = key_of(config, chosen, student, teacher)
    left = [Path(config.out) / EXAMPLES] if config.out else DEFAULT_ROOT.glob(f"distill-*/{EXAMPLES}")
    examples = Examples.found(left, key) or write_examples(config, chosen, contexts, key, file, progress)
    for note in examples.about["notes"]:
        progress.note(note)
    return student, teacher, examples


def _clear(directory: Path, of_all: Round) -> None:
    """Remove the examples and the states after the model itself has been saved, but for a state that a round needs."""
    clear_states(directory, None if of_all.is_last else of_all.before + of_all.steps)
    (directory / EXAMPLES).unlink(missing_ok=True)


def _train(config: DistillConfig, training: _Training, progress: Progress) -> None:
    from trd_cli.training import kept

    student, teacher, examples = training.student, training.teacher, training.examples
    earlier, directory = training.earlier, training.directory
    accelerator, described = training.accelerator, _described(config)
    trainer = kept.trainer_for(
        config, student, teacher, accelerator, directory, earlier, lambda text: progress.note(f"{text} for {described}")
    )
    began = time.monotonic()
    digest = training.stage_dir.digest if training.stage_dir else ""  # the main process alone asks for it
    trained = trainer.train(examples, progress, digest)
    at_work = time.monotonic() - began
    trainer.save()
    if training.stage_dir is not None:
        of_all = Round.of(config, len(examples), earlier)
        told = {"student": student.lasting_name, "teacher": teacher.lasting_name, "trajectories": len(examples)}
        if earlier or config.total_steps:
            told |= {"steps_before": of_all.before, "total_steps": of_all.total}
        training.stage_dir.finish(About(**told, **_told(trained)))
        training.stage_dir.log_session(of_all.rows_in(of_all.steps), trained.tokens, at_work)
        _clear(directory, of_all)
        if not of_all.is_last:
            kept.keep(trainer, config, student, accelerator, directory, of_all.before + of_all.steps)
    if trained.steps:
        losses = f"loss {trained.first_loss:.4f} → {trained.last_loss:.4f} over {counted(trained.steps, 'step')}"
    else:
        losses = "no row to train on: no step"
    progress.note(f"{losses}, saved in {directory}")
    progress.result(directory)


def _told(trained: Trained) -> dict[str, Any]:
    """Return the sums of a round as run.json holds them: a round without a step has no loss."""
    return {name: value for name, value in asdict(trained).items() if trained.steps or "loss" not in name}


def _selfcheck(
    config: DistillConfig, examples: Examples, student: ModelRef, teacher: ModelRef, progress: Progress
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


def _models(
    config: DistillConfig, chosen: Chosen, resolve: Callable[[str], ModelRef], earlier: Earlier | None
) -> tuple[ModelRef, ModelRef]:
    """Return student and teacher: as asked, else as the run.json beside the shards names them.

    With an `earlier` round the student is the one that its training began with.
    """
    writer = _writer(config, chosen, resolve, earlier)
    return earlier.student if earlier else writer, _teacher(config, chosen, writer, resolve)


def _writer(
    config: DistillConfig, chosen: Chosen, resolve: Callable[[str], ModelRef], earlier: Earlier | None
) -> ModelRef:
    """Return the student as it was when it wrote the rows: the weights that the round begins with."""
    name, revision = (config.model, None) if config.model else writer_of(chosen.sets, "--model")
    writer = earlier.model if earlier and config.model is None else resolve(name)
    if config.model is None:
        writer.check_revision(revision, chosen.sets[0].directory)
    elif earlier and writer.revision != earlier.model.revision:
        raise InputError(
            f"--model {name} with --continue {earlier.model.name}",
            "the model in that directory, with which the training goes on",
            "leave --model out, or --continue for a new training",
        )
    return writer


def _teacher(config: DistillConfig, chosen: Chosen, student: ModelRef, resolve: Callable[[str], ModelRef]) -> ModelRef:
    refined, source = chosen.kind == "refined", chosen.sets[0]
    about = source.about
    setting = config.setting_of(chosen.setting)
    if config.takes_stored_prompt(chosen.kind) and setting != chosen.setting:
        raise InputError(
            f"--setting {setting} along rows that were refined for {chosen.setting}",
            f"{chosen.setting}, or --teacher-context vanilla",
            "leave --setting out",
        )
    if config.teacher is None and setting == "opsd":
        return own_teacher(student, config.teacher_weights, config.lora, resolve)
    if config.teacher_weights != "round":
        by_method = f"--method {config.method}, which sets " if config.method else ""
        raise InputError(
            f"{by_method}--teacher-weights {config.teacher_weights} with another teacher than the student",
            "--setting opsd and no --teacher",
            "change that, or give --teacher-weights round",
        )
    if config.teacher:
        return resolve(config.teacher)
    name = about.model if refined else None
    if name is None:
        raise InputError("no teacher", "--teacher MODEL, or --setting opsd for the student itself", "add one of them")
    teacher = resolve(name)
    teacher.check_revision(about.model_revision, source.directory)
    return teacher


def _described(config: DistillConfig) -> str:
    """Return the objective and each of its options that is not at its default: the terms that tell ablations apart."""
    told = [config.objective, f"along {config.stage}" if config.stage else "", "with an adapter" if config.lora else ""]
    usual = DistillConfig.parse({"objective": config.objective})
    for name in ObjectiveOptions.model_fields:
        if name not in ("method", "objective", "stage") and getattr(config, name) != getattr(usual, name):
            told.append(f"{name.replace('_', ' ')} {getattr(config, name)}")
    return ", ".join(filter(None, told))


def _preview(
    examples: Examples,
    student: ModelRef,
    teacher: ModelRef,
    stage_dir: StageDir,
    config: DistillConfig,
    of_all: Round,
) -> str:
    would = (
        f"would train {student.name} towards {teacher.name} on {len(examples)} trajectories by {_described(config)}, "
        f"{f'steps {config.steps}' if config.steps else f'epochs {config.epochs}'}, {config.batch_size} a step, "
        f"lr {config.learning_rate:g}, into {stage_dir.path}"
    )
    if of_all.total != of_all.steps:
        would += f": {counted(of_all.steps, 'step')} after {of_all.before} of {of_all.total}"
    if not len(examples):
        return would
    return f"{shown(examples[0], student.tokenizer())}\n\n{would}"
