"""Compare a whole training step of distillation with TRL's trainers: time and memory, SmolLM2-135M, one CPU thread.

A step is all the work of one optimiser step: teacher forward, student forward, forward KL over the responses, backward,
clipping, AdamW.

    ours            `trd_cli.training.trainer.Trainer`, as `trd distill` runs it
    gkd             `trl.experimental.gkd.GKDTrainer`, lmbda 0 (no sampling), beta 0: the goals are set against it
    distillation    `trl.DistillationTrainer`, beta 0; it trains only on its own samples, so the given responses take
                    their place

Each runs in a process of its own, one after another, on the same rows: arithmetic word problems in the prompt, their
worked solutions as the response. All rows together make one step, and the step is taken several times, the first time
as a warm-up. The student is the teacher with a little noise on its weights, so that it can learn something, and losses
and gradients can be compared.

Tokens per second are the tokens of prompts and responses that the student reads, without padding, over the median of
the steps' processor seconds. With one thread those are the seconds of an idle machine, whatever else runs. Memory is
the highest resident memory of the process during the steps after the warm-up (loading does not count). It includes
libraries, weights, gradients and optimiser states. Needs the /proc of Linux.

    python -m venv scratch && scratch/bin/pip install trl -e .
    scratch/bin/python examples/bench/distill_step.py [--quick]

`--quick` takes few and short rows, one step after the warm-up, and leaves out distillation. Its optimiser takes a
larger share of the time than in a real step; its memory, which is mostly that of the weights, is not judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from trd_cli.config.training import DistillConfig
from trd_cli.datasets.arithmetic import make_arithmetic
from trd_cli.models import ModelRef, resolve_model
from trd_cli.progress import SilentProgress
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.training import LOG
from trd_cli.training.batches import Example
from trd_cli.training.launch import accelerator_for
from trd_cli.training.trainer import Trainer

RATE_GOAL, MEMORY_GOAL = 1.5, 0.6
MODEL = "smollm2-135m"
LEARNING_RATE, WEIGHT_DECAY, MIN_RATE = 1e-5, 0.005, 0.1
GIB = 2**30
LEGEND = """Equal: rows, trajectories a step, weights to start from (student float32, teacher bfloat16, as both load them), bfloat16
autocast, forward KL at temperature 1 averaged over the step's response tokens, teacher's context (the student's), AdamW and its
settings, clipping, cosine of the rate, sdpa attention, no dropout, no gradient checkpointing (TRL's default is with it).
Not equal:
    micro-batches   ours: rows of similar length, at most as many tokens as trl's rows of the longest length; trl: as shuffled
    padding         ours: on the right, no mask; gkd: on the left, distillation: on both sides, both with a mask
    output head     ours: response positions; distillation: those and their padding; gkd: all positions, prompt and padding too
    logits          ours: bfloat16, a chunk at a time; gkd: made in bfloat16, cast to float32; distillation: float32, in tiles
    optimiser       ours: AdamW as PyTorch chooses, decay on all weights; trl: fused AdamW, no decay on norms
    figures         ours: entropies, likelihoods, agreement, quantiles; gkd: none; distillation: the student's entropy
    what is timed   ours: collating and the log too; trl: from the first micro-batch to the end of the optimiser's step
"""


class Case(NamedTuple):
    """Hold rows a step, rows a micro-batch, most problems a row, and steps after the warm-up."""

    rows: int
    micro_batch: int
    problems: int
    steps: int


FULL, QUICK = Case(16, 4, 3, 2), Case(4, 2, 1, 1)


class Job(NamedTuple):
    """Hold one side's work; `scratch` is a directory that it may write to."""

    student: Path
    teacher: Path
    rows: Sequence[Example]
    case: Case
    scratch: Path


@dataclass
class Measured:
    """Hold the seconds of the steps after the warm-up, resident bytes before and at most during them, and the warm-up's
    loss and gradient.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    idle: int = 0
    peak: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0


def make_rows(tokenizer: Tokenizer, case: Case) -> list[Example]:
    """Make rows of mixed length; both models read the same prompt."""
    levels = [iter(make_arithmetic(case.rows * case.problems, seed=3, level=level)) for level in (1, 2, 3)]
    made = []
    for i in range(case.rows):
        problems = [next(levels[(i + n) % 3]) for n in range(1 + i % case.problems)]
        text = "\n\n".join(problem.problem for problem in problems)
        prompt = tokenizer.render([{"role": "user", "content": text}], "chat", {})
        response = tokenizer.encode("\n\n".join(problem.reference_solution for problem in problems))
        made.append(Example(f"{i:04d}", prompt, prompt, [*response, tokenizer.end_of_turn_id]))
    return made


def make_student(teacher: ModelRef, directory: Path) -> None:
    """Return the teacher with noise of a fiftieth of its weights' own spread."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(str(teacher.path), dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn_like(weight) * weight.std() / 50)
    model.save_pretrained(directory)
    for path in teacher.path.iterdir():
        if not (directory / path.name).exists():
            (directory / path.name).symlink_to(path)


def resident(name: str) -> int:
    """Return the bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


class Meter:
    """Measure the seconds of each step, and the memory from the end of the warm-up on."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.idle = 0

    def begin(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def end(self) -> None:
        self.wall.append(time.monotonic() - self._wall)
        self.cpu.append(time.process_time() - self._cpu)
        if len(self.cpu) == 1:
            Path("/proc/self/clear_refs").write_text("5")
            self.idle = resident("VmRSS")

    def result(self, loss: float, grad_norm: float) -> Measured:
        return Measured(self.cpu[1:], self.wall[1:], self.idle, resident("VmHWM"), loss, grad_norm)


def measure_ours(job: Job) -> Measured:
    """Run our trainer; the wall's seconds are those of its log."""
    config = DistillConfig.parse(
        {
            "epochs": job.case.steps + 1,
            "batch_size": len(job.rows),
            "max_tokens_per_batch": job.case.micro_batch * max(row.length for row in job.rows),
            "reduction": "token",
            "learning_rate": LEARNING_RATE,
            "min_lr_ratio": MIN_RATE,
            "warmup_ratio": 0.0,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": 1.0,
            "device": "cpu",
            "save_minutes": 1000.0,
        }
    )
    meter = Meter()

    class Metered(SilentProgress):
        def start(self, what: str, total: int | None, done: int = 0) -> None:
            meter.begin()

        def advance(self, rows: int = 1, tokens: int = 0) -> None:
            meter.end()
            meter.begin()

    refs = (ModelRef(path.name, path, path.name) for path in (job.student, job.teacher))
    trainer = Trainer(config, *refs, accelerator_for(config), job.scratch)
    trainer.train(job.rows, Metered())
    log = [json.loads(line) for line in (job.scratch / LOG).read_text().splitlines()]
    meter.wall = [line["seconds"] for line in log]
    return meter.result(log[0]["loss"], log[0]["grad_norm"])


def measure_trl(name: str, job: Job) -> Measured:
    """Run one of TRL's trainers.

    The seconds are those of its optimiser steps, without loading of data and logging.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    meter = Meter()

    class Metered(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end()

    options = {
        "output_dir": str(job.scratch),
        "max_steps": job.case.steps + 1,
        "per_device_train_batch_size": job.case.micro_batch,
        "gradient_accumulation_steps": len(job.rows) // job.case.micro_batch,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": MIN_RATE},
        "weight_decay": WEIGHT_DECAY,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "beta": 0.0,
        "temperature": 1.0,
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
    }
    trainer_class, config, columns = {"gkd": gkd, "distillation": distillation}[name](job, options)
    trainer = trainer_class(
        str(job.student),
        str(job.teacher),
        config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(str(job.teacher)),
        callbacks=[Metered()],
    )
    trainer.train()
    first = trainer.state.log_history[0]
    return meter.result(first["loss"], first["grad_norm"])


def gkd(job: Job, options: dict[str, Any]) -> tuple[type, Any, dict[str, list]]:
    """Return TRL's trainer with dense logits: class, configuration, columns of its data."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    columns = {
        "prompt": [""] * len(job.rows),  # it asks for one, and takes the ids
        "input_ids": [[*row.student_prompt.tolist(), *row.response_ids.tolist()] for row in job.rows],
        "completion_mask": [[0] * len(row.student_prompt) + [1] * len(row.response_ids) for row in job.rows],
    }
    return GKDTrainer, GKDConfig(**options, lmbda=0.0), columns


def distillation(job: Job, options: dict[str, Any]) -> tuple[type, Any, dict[str, list]]:
    """Return TRL's trainer with a chunked loss, its sampling replaced by the given responses."""
    from trl import DistillationConfig, DistillationTrainer

    class OnGivenResponses(DistillationTrainer):
        def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
            chosen = [job.rows[int(prompt)] for prompt in prompts]
            return (
                [e.student_prompt.tolist() for e in chosen],
                [e.response_ids.tolist() for e in chosen],
                None,
                None,
                [],
            )

    columns = {"prompt": [str(i) for i in range(len(job.rows))]}
    return OnGivenResponses, DistillationConfig(**options), columns


def measure(name: str, student: Path, case: Case) -> Measured:
    """Measure one side, in this process."""
    teacher = resolve_model(MODEL)
    rows = make_rows(teacher.tokenizer(), case)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(student, teacher.path, rows, case, Path(scratch))
        return measure_ours(job) if name == "ours" else measure_trl(name, job)


def in_own_process(name: str, student: Path, case: Case) -> Measured:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps([name, str(student), *case])]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{name} failed")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short rows, about a minute")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        name, student, *case = json.loads(args.measure)
        print("\n" + json.dumps(asdict(measure(name, Path(student), Case(*case)))))
        return
    if importlib.util.find_spec("trl") is None:
        sys.exit("trl is not installed: python -m venv scratch && scratch/bin/pip install trl -e .")
    case = QUICK if args.quick else FULL
    teacher = resolve_model(MODEL)
    rows = make_rows(teacher.tokenizer(), case)
    tokens = sum(len(row.student_prompt) + len(row.response_ids) for row in rows)
    print(f"torch {torch.__version__}, 1 thread, {MODEL}\n{LEGEND}", end="")
    lengths = ", ".join(f"{len(row.student_prompt)}+{len(row.response_ids)}" for row in rows)
    print(f"{tokens} tokens a step, prompts + responses: {lengths}; {case.steps} step(s) after the warm-up,")
    print(f"for distillation 1; rows of trl's micro-batches: {case.micro_batch}\n")
    print("              tokens/s  cpu s/step  wall s/step  GiB between  GiB at most  first loss, gradient norm")
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        make_student(teacher, Path(directory))
        for name in ("ours", "gkd") if args.quick else ("ours", "gkd", "distillation"):
            sized = case._replace(steps=1) if name == "distillation" else case
            m = found[name] = in_own_process(name, Path(directory), sized)
            print(
                f"{name:<12} {tokens / median(m.cpu):9.1f} {median(m.cpu):11.2f} {median(m.wall):12.2f} "
                f"{m.idle / GIB:12.3f} {m.peak / GIB:12.3f} {m.loss:14.5f}, {m.grad_norm:.4f}",
                flush=True,
            )
    rate = {name: median(m.cpu) / median(found["ours"].cpu) for name, m in found.items()}
    memory = {name: found["ours"].peak / m.peak for name, m in found.items()}
    goals = {"tokens/s": {"value": round(rate["gkd"], 3), "goal": RATE_GOAL, "ok": rate["gkd"] >= RATE_GOAL}}
    if not args.quick:
        ok = memory["gkd"] <= MEMORY_GOAL
        goals["memory"] = {"value": round(memory["gkd"], 3), "goal": MEMORY_GOAL, "ok": ok}
    for name in list(found)[1:]:
        print(f"ours/{name}: {rate[name]:.3f} x tokens/s, {memory[name]:.3f} x memory")
    ok = all(goal["ok"] for goal in goals.values())
    value = round(rate["gkd"], 3)
    report = {"name": "distill_step_vs_trl_gkd", "value": value, "goal": RATE_GOAL, "ok": ok, "goals": goals}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
