"""Train the student: AdamW on float32 weights, one step after another, on any number of processes, with resuming."""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trd_cli.atomic import write_text
from trd_cli.config.training import OWN_OPTIONS, DistillConfig
from trd_cli.engines.probe import probe_ids, read_probe
from trd_cli.engines.rope import switch_length
from trd_cli.errors import DamagedFile, TrdError
from trd_cli.interrupts import stop_signals
from trd_cli.losses.objectives import Objective
from trd_cli.models import EMA, ModelRef
from trd_cli.progress import Progress
from trd_cli.training import LOG, row_weights
from trd_cli.training.batches import Example, Split, Weighting, collate, split_step
from trd_cli.training.checkpoints import dtype_to_save, rehearse, save_model
from trd_cli.training.figures import StepFigures
from trd_cli.training.launch import begin_trackers
from trd_cli.training.mix import Mixed
from trd_cli.training.model import (
    AdapterOff,
    Average,
    DistillStep,
    Snapshot,
    Teacher,
    allow_checkpointing,
    as_it_answers,
    check_logits,
    compute_dtype,
    load,
    with_adapter,
)
from trd_cli.training.rounds import Earlier, Round
from trd_cli.training.sharding import ShardedTeacher, check_recomputation, is_sharded, load_to_share
from trd_cli.training.state import States, generators, set_generators, trained_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

_WORTH_SAVING = 60.0  # seconds of training


@dataclass(frozen=True)
class Trained:
    """Hold the sums of a round: optimiser steps, response tokens that counted, first and last loss."""

    steps: int = 0
    tokens: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan

    def after(self, loss: float, tokens: int) -> Trained:
        return Trained(self.steps + 1, self.tokens + tokens, self.first_loss if self.steps else loss, loss)


@dataclass(frozen=True)
class _Ended:
    """Hold what a state has of a round that has ended, beside weights and moments: for a next round in this process."""

    passes: int
    generators: dict[str, torch.Tensor]


def rate_at(done: int, total: int, warmup_ratio: float, min_ratio: float) -> float:
    """Return the share of the peak learning rate after `done` of `total` steps: a linear rise, then a cosine.

    The cosine ends at `min_ratio`. The first step has a rate above zero and the last of the rise has the peak, so that
    no step is spent on nothing.
    """
    warmup = round(warmup_ratio * total)
    if done < warmup:
        return (done + 1) / warmup
    progress = (done - warmup) / max(1, total - 1 - warmup)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def objective_of(config: DistillConfig) -> Objective:
    """Return the objective that the options describe."""
    own = {name: getattr(config, name) for name in OWN_OPTIONS}
    clips = {"clip_entry": config.clip_entry, "clip_position": config.clip_position}
    return Objective(config.objective, of_correct=config.correct_objective, **clips, **own)


class Trainer:
    """Train `student` towards `teacher` on examples, for one round of a training, and save it."""

    def __init__(
        self,
        config: DistillConfig,
        student: ModelRef,
        teacher: ModelRef,
        accelerator: Accelerator,
        directory: Path | None = None,
        earlier: Earlier | None = None,
    ) -> None:
        """Load the models; states, log and model go to `directory`. `earlier` is the round that the training continues.

        `step` is what is trained, `optimizer` is made by `train`, `switches` are as in `split_step`.
        """
        self._config, self._student_ref, self._directory = config, student, directory
        self._earlier, self._passes_before = earlier, 0
        self._adamw: torch.optim.Optimizer | None = None
        self._ended: _Ended | None = None
        self._accelerator, self._is_main = accelerator, accelerator.is_main_process
        compute = compute_dtype(config)
        # Only trained weights need float32; the weights under an adapter are only read.
        self._student = self._load(student, compute if config.lora else torch.float32, compute).train()
        if config.gradient_checkpointing:
            allow_checkpointing(self._student)
        if config.lora:
            self._student = with_adapter(self._student, config, config.seed)
        check_recomputation(accelerator, self._student)
        self._teacher, self._teacher_ref = self._teacher_of(teacher, compute), teacher
        self.switches = _switches(student, teacher)
        self.step = DistillStep(
            self._student,
            self._teacher,
            objective_of(config),
            compute,
            config.temperature,
            autocast=not is_sharded(accelerator),
        )

    def _load(self, model: ModelRef, dtype: torch.dtype, compute: torch.dtype) -> nn.Module:
        """Return a network on the device, or on the main process's CPU if it will be sharded."""
        accelerator, attention = self._accelerator, self._config.attn_implementation
        if not is_sharded(accelerator):
            loaded = load(model, dtype, accelerator.device, attention)
            check_logits(loaded, model.name, compute)
            return loaded
        loaded = load_to_share(accelerator, model, dtype, attention)
        # Not for a training on GPUs: some kinds of attention cannot run on this CPU.
        if self._is_main and accelerator.device.type == "cpu":
            check_logits(loaded, model.name, compute)
        return loaded

    def _teacher_of(self, teacher: ModelRef, compute: torch.dtype) -> Teacher:
        config, first = self._config, self._student_ref
        if config.teacher_weights == "ema":
            # A round that continues an earlier one finds the average in its state.
            is_given = self._earlier is None and not self._is_own(teacher)
            return Average(
                self._student, config.ema_decay, self._load(teacher, torch.float32, compute) if is_given else None
            )
        if config.lora and teacher.path == first.path:
            return AdapterOff()
        if config.lora and self._is_own(teacher):
            return Snapshot(self._student)
        model = self._load(teacher, compute, compute)
        return ShardedTeacher(self._accelerator, model) if is_sharded(self._accelerator) else Teacher(model)

    def _is_own(self, teacher: ModelRef) -> bool:
        """Return True if a teacher has the weights that the student has when the round begins."""
        return teacher.path == (self._earlier.model if self._earlier else self._student_ref).path

    def go_on(
        self, config: DistillConfig, teacher: ModelRef, accelerator: Accelerator, directory: Path, earlier: Earlier
    ) -> None:
        """Begin the round after the one that has ended, with what is in memory, in place of its saved state.

        The options of the networks must be the same, and `earlier` the round that has ended, after its model is saved.
        """
        was_own, saved_as = self._is_own(self._teacher_ref), dtype_to_save(self._student_ref, self._config.save_dtype)
        self._config, self._directory, self._earlier = config, directory, earlier
        self._accelerator = accelerator
        stays = isinstance(self._teacher, Average) or teacher == self._teacher_ref
        if type(self._teacher) is Teacher and was_own and self._is_own(teacher):
            _copy_weights(self._student, self._teacher.model, saved_as)
        elif not stays:
            self._teacher = self._teacher_of(teacher, self.step.compute)
        self._teacher_ref, self.switches = teacher, _switches(self._student_ref, teacher)
        self.step.teacher, self.step.objective = self._teacher, objective_of(config)
        self.step.temperature = config.temperature

    def train(self, examples: Sequence[Example], progress: Progress, digest: str = "") -> Trained:
        """Run the remaining steps; write one line of JSON a step to the log.

        `digest` tells this training from others; the main process needs it where rows are weighed. A mix needs
        `stored.Examples`, which tell the classes of rows.

        Raises TrdError for a loss or a gradient that is not finite or explodes, and KeyboardInterrupt on a signal to
        stop, after the state of the last whole step is saved.
        """
        config, accelerator = self._config, self._accelerator
        whole = self._round = Round.of(config, len(examples), self._earlier)
        self._model, self.optimizer = accelerator.prepare(self.step, self._adamw or self._new_adamw())
        self._states = States(self._directory, config.keep)
        self._rehearse_saving()
        trained = self._resume(progress)
        if config.tracker:
            begin_trackers(accelerator, config)
        try:
            mixed = Mixed(config.mix, examples.by_class()) if config.mix else None
            if config.weighs_rows and len(examples):
                examples = self._weighed(examples, trained, progress, digest)
            progress.start("distill", whole.rows_in(whole.steps), whole.rows_in(trained.steps))
            with _Signals(progress) as signals:
                for number, chosen in whole.numbered(config.seed, self._passes_before, trained.steps, mixed):
                    rows = [examples[i] for i in chosen]
                    with self._memory_for(rows):
                        before, trained = trained, self._one_step(number, rows, trained)
                        progress.advance(len(rows), trained.tokens - before.tokens)
                        if self._all_agree(signals.stop):
                            self._save_state(trained)
                            raise KeyboardInterrupt
        finally:
            if config.tracker:
                accelerator.end_training()
        progress.end()
        # Saving the model may fail too; a later round goes on from the state.
        if not whole.is_last or self._all_agree(time.monotonic() - self._saved_at > _WORTH_SAVING):
            self._save_state(trained)
        self._ended = _Ended(self._passes(trained), generators())
        self._probe = self._ids_to_prove(examples)
        return trained

    def _weighed(
        self, examples: Sequence[Example], trained: Trained, progress: Progress, digest: str
    ) -> Sequence[Example]:
        """Return the examples with the weights of their rows, those that the round began with.

        Raises DamagedFile where steps have been made with weights that are gone.
        """
        path = self._directory / row_weights.NAME
        weights = self._of_main(row_weights.read(path, digest) if self._is_main else None)
        if weights is None and trained.steps:
            raise DamagedFile(
                f"{path} is gone or damaged", "the weights that the round began with", "train into another --out"
            )
        if weights is None:
            nll = self._mean_nll(examples, progress)
            groups = np.array([example.group for example in examples])
            weights = row_weights.weights_of(nll, groups, self._config.weight_temperature)
            self._on_main(lambda: row_weights.write(path, examples, nll, weights, digest))
        progress.note(row_weights.said(weights, examples))
        return row_weights.Weighed(examples, weights)

    def _mean_nll(self, examples: Sequence[Example], progress: Progress) -> np.ndarray:
        """Return the mean −log p of student and teacher along each row (rows, 2)."""
        progress.start("weigh", len(examples))
        found = []
        with as_it_answers(self._student):
            for rows in row_weights.windows(examples):
                with self._memory_for(rows):
                    split = self._split(rows)
                    found.append(row_weights.mean_nll(self._model, rows, split, self._accelerator, progress))
        progress.end()
        return np.concatenate(found)

    def _split(self, rows: Sequence[Example]) -> Split:
        return split_step(rows, self._config.max_tokens_per_batch, self._accelerator.num_processes, self.switches)

    def _ids_to_prove(self, examples: Sequence[Example]) -> Sequence[int]:
        """Return the ids of the checkpoint's probe: of the first row or, without rows, those of the earlier round."""
        if len(examples):
            return probe_ids(examples[0].student_prompt.tolist(), examples[0].response_ids.tolist())
        earlier = read_probe(self._earlier.model.path)
        return earlier.token_ids if earlier else ()

    def _new_adamw(self) -> torch.optim.Optimizer:
        weights = [p for p in self._student.parameters() if p.requires_grad]
        config = self._config
        self._adamw = torch.optim.AdamW(
            weights, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        return self._adamw

    def _one_step(self, number: int, rows: Sequence[Example], trained: Trained) -> Trained:
        config, begun = self._config, time.monotonic()
        rate = config.learning_rate * rate_at(number, self._round.total, config.warmup_ratio, config.min_lr_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        split = self._split(rows)
        figures = self._gathered(self._accumulate(rows, split.mine(self._accelerator.process_index)))
        norm = self._clip_gradients()
        self._check(number + 1, figures.loss, norm, rows, trained)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._teacher.follow(self._student)
        trained = trained.after(figures.loss, figures.tokens)
        seconds = time.monotonic() - begun
        self._log(
            {
                "step": number + 1,
                "epoch": round(self._round.epoch_at(trained.steps, self._passes_before), 4),
                "loss": figures.loss,
                **figures.summary(),
                **figures.by_tenth(),
                "grad_norm": norm,
                "learning_rate": rate,
                "trajectories": len(rows),
                **{f"trajectories_{name}": sum(row.mixed_as == name for row in rows) for name in config.mix},
                "response_tokens": figures.tokens,
                "response_tokens_per_second": round(figures.tokens / seconds, 1),
                "read_tokens_per_second": round(sum(part.tokens for row in rows for part in row.parts) / seconds, 1),
                "padding": round(split.padding, 4),
                "peak_memory_gib": round(_peak_memory(self._accelerator.device) / 2**30, 3),
                "seconds": round(seconds, 3),
            }
        )
        self._save_state_when_due(trained)
        return trained

    @contextmanager
    def _memory_for(self, rows: Sequence[Example]) -> Iterator[None]:
        """Raise TrdError where the memory does not suffice for work on these rows."""
        try:
            yield
        except torch.OutOfMemoryError:
            longest = max(part.length for row in rows for part in row.parts)
            raise TrdError(
                f"out of memory with {self._config.max_tokens_per_batch} tokens a forward pass (longest of the rows: {longest}); expected room "
                "for activations and AdamW's moments; lower --max-tokens-per-batch (the gradient does not depend on it), or add "
                "--gradient-checkpointing or --lora"
            ) from None

    def _accumulate(self, rows: Sequence[Example], groups: Sequence[Sequence[Example]]) -> StepFigures:
        """Accumulate the gradients of one step's loss, micro-batch by micro-batch."""
        figures, weighting = StepFigures(), Weighting.of(rows, self._config.reduction)
        for i, group in enumerate(groups):
            batch = collate(group, weighting) if group else collate([min(rows, key=lambda e: e.tokens)], None)
            batch = batch.to(self._accelerator.device)
            with nullcontext() if self._syncs(is_last=i == len(groups) - 1) else self._accelerator.no_sync(self._model):
                loss, of_positions = self._model(batch)
                # Gradients are averaged over processes, the loss is a sum over them.
                self._accelerator.backward(loss * self._accelerator.num_processes)
            if group:
                figures.add(loss.item(), of_positions, batch, group)
        return figures

    def _syncs(self, is_last: bool) -> bool:
        """Return True if gradients go to the other processes after a micro-batch.

        Gradients that are not sent are held whole, which shards must avoid.
        """
        return is_last or is_sharded(self._accelerator)

    def _clip_gradients(self) -> float:
        """Scale the gradients down to the largest allowed norm; return the norm they had."""
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _gathered(self, figures: StepFigures) -> StepFigures:
        if self._accelerator.num_processes == 1:
            return figures
        from accelerate.utils import gather_object

        whole, *others = gather_object([figures])
        for other in others:
            whole.merge(other)
        return whole

    def _check(self, step: int, loss: float, norm: float, rows: Sequence[Example], trained: Trained) -> None:
        first = trained.first_loss if trained.steps else loss
        limit = self._config.max_loss * max(1.0, first)
        if math.isfinite(loss) and math.isfinite(norm) and loss <= limit:
            return
        kept = self._states.paths()
        named = ", ".join(row.trajectory_id[:12] for row in rows)
        raise TrdError(
            f"loss {loss:.4g}, gradient norm {norm:.4g} at step {step}; expected finite ones and a loss of at most {limit:.4g}; "
            "lower --lr for another --out, or raise --max-loss"
            + (f" to go on from the last good state, {kept[-1]}; " if kept else "; ")
            + f"rows of the step: {named}"
        )

    def _log(self, record: dict[str, Any]) -> None:
        if self._is_main:
            with open(self._directory / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._config.tracker:
            values = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "step"}
            self._accelerator.log(values, step=record["step"])

    def _resume(self, progress: Progress) -> Trained:
        """Restore the last saved state, or begin, with the earlier round's if the training continues one."""
        self._saved_at = time.monotonic()
        # For dropout; a saved state has its own.
        torch.manual_seed(self._config.seed + self._accelerator.process_index)
        if self._earlier:
            self._continue(self._earlier)
        state = self._states.latest(self._accelerator)
        trained = Trained(**state["trained"]) if state else Trained()
        if state:
            self._states.restore(self._accelerator, self._model, self.optimizer, state)
            self._teacher.load_state(state["teacher"])
            progress.note(f"going on after step {self._round.before + trained.steps}")
        if self._is_main:
            self._cut_log(self._round.before + trained.steps)
        self._accelerator.wait_for_everyone()
        return trained

    def _continue(self, earlier: Earlier) -> None:
        """Begin as the earlier round ended: with what it left in memory, or with its state.

        Raises DamagedFile if the state is not whole.
        """
        ended, self._ended = self._ended, None
        if ended is not None:
            self._passes_before, left = ended.passes, self._teacher.state()
            set_generators(ended.generators)
        else:
            states = States(earlier.model.path, keep=1)
            state = states.latest(self._accelerator)
            if state is None or state["step"] != earlier.step:
                raise DamagedFile(
                    f"{earlier.state} is damaged",
                    "the state that the training ended with",
                    f"remove {earlier.model.name} and run its trd distill again",
                )
            states.restore(self._accelerator, self._model, self.optimizer, state)
            # A teacher of another kind of weights has left no average.
            self._passes_before, left = (
                state["passes"],
                state["teacher"] if self._config.teacher_weights == "ema" else {},
            )
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self._config.weight_decay
        self._teacher.begin(self._student, left)

    def _cut_log(self, steps_done: int) -> None:
        """Remove the log's lines of steps that will run again, so that none is there twice."""
        log = self._directory / LOG
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= steps_done]
        write_text(log, "".join(kept))

    def _save_state_when_due(self, trained: Trained) -> None:
        config = self._config
        by_steps = config.save_steps is not None and trained.steps % config.save_steps == 0
        by_time = time.monotonic() - self._saved_at > 60 * config.save_minutes
        if trained.steps < self._round.steps and self._all_agree(by_steps or by_time):
            self._save_state(trained)

    def _save_state(self, trained: Trained) -> None:
        extra = {
            "trained": asdict(trained),
            "teacher": self._teacher.state(),
            "total_steps": self._round.total,
            "passes": self._passes(trained),
        }
        self._states.save(self._accelerator, self._model, self.optimizer, self._round.before + trained.steps, extra)
        self._saved_at = time.monotonic()

    def _passes(self, trained: Trained) -> int:
        """Return how many passes are begun, over all rounds."""
        return self._passes_before + self._round.passes(trained.steps)

    def _all_agree(self, decision: bool) -> bool:
        """Return the main process's decision: clocks and signals differ between processes, but all must act alike."""
        return self._of_main(decision)

    def _of_main(self, value: Any) -> Any:
        """Return the main process's value on all processes."""
        if self._accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def save(self) -> None:
        """Write the trained student as a model directory."""
        weights, config, student = trained_weights(self._model), self._config, self._student_ref

        def write() -> None:
            dtype = dtype_to_save(student, config.save_dtype)
            save_model(weights, student, config, self._directory, dtype, self._probe)
            if self._saves_average():
                average, directory = self._teacher.state(), self._directory / EMA
                save_model(average, student, config, directory, torch.float32, self._probe)

        self._on_main(write)

    def _rehearse_saving(self) -> None:
        """Raise in all processes if the student cannot be saved, before a step is made."""
        shapes = {name: w.shape for name, w in trained_weights(self._model, whole=False).items()}
        config, student = self._config, self._student_ref

        def rehearsal() -> None:
            dtype = dtype_to_save(student, config.save_dtype)
            rehearse(shapes, student, config, self._directory, dtype, self._saves_average())

        self._on_main(rehearsal)

    def _saves_average(self) -> bool:
        return isinstance(self._teacher, Average) and not self._config.lora

    def _on_main(self, work: Callable[[], None]) -> None:
        """Let the main process work while the others wait; if it raises TrdError, all do."""
        failure = None
        if self._is_main:
            try:
                work()
            except TrdError as error:
                failure = error
        failure = self._of_main(failure)
        if failure is not None:
            raise failure


class _Signals:
    """Stop at the first SIGINT, SIGTERM or SIGHUP after the current step; interrupt at once at a second one.

    A second SIGHUP does not interrupt: a closing terminal sends several. A training in a thread hears none: Python
    gives them to the main thread.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self.stop = progress, False

    def __enter__(self) -> _Signals:
        heard = stop_signals() if threading.current_thread() is threading.main_thread() else ()
        self._before = {n: signal.signal(n, self._heard) for n in heard}
        return self

    def _heard(self, number: int, _: object) -> None:
        if self.stop:
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        self.stop = True
        self._progress.note("stopping after this step and saving its state; interrupt again to stop at once")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _switches(student: ModelRef, teacher: ModelRef) -> tuple[int | None, int | None]:
    """Return the lengths at which the rotary factors of student and teacher change, None where they do not."""
    first, second = (switch_length(model.architecture().get_text_config()) for model in (student, teacher))
    return first, second


@torch.no_grad()
def _copy_weights(student: nn.Module, teacher: nn.Module, saved_as: torch.dtype) -> None:
    """Give the teacher the student's weights, rounded as in a checkpoint that is saved in a dtype and loaded again."""
    own = dict(student.named_parameters())
    for name, weight in teacher.named_parameters():
        weight.copy_(own[name].to(saved_as))


def _peak_memory(device: torch.device) -> int:
    """Return bytes: the peak of the device's allocator, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
