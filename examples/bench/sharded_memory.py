"""Measure the resident memory of a distillation under FSDP2, role by role: two processes that share the weights against
one that holds them.

Both run the same training of all weights in bfloat16, on CPUs, through `trd_cli.training.trainer.Trainer` as `trd
distill` does: one process plainly, the two as `accelerate launch --use_fsdp --fsdp_version 2` starts them. The model is
random, its vocabulary small and its rows short. So nearly all memory is that of weights, and no layer has more than a
sixteenth of them. A second network of the same size is the teacher. Each figure is a difference of resident memory:

    teacher     after loading it, on a process that reads no student's weights from disk
    student     when training begins, above that
    moments     after the first step, above that
    passes      the highest while the third step computes, above the level between two steps: gradients, activations,
                and the parts that are whole meanwhile (one layer and the next one, the head, its gradient)

The share of a role is the memory of one of the two processes over that of one process alone; one half is the best
possible. "between two steps" adds up all that stays: the share by which larger models fit. Needs the /proc of Linux.

    python examples/bench/sharded_memory.py [--quick]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

GOALS = {"between two steps": 0.55, "passes": 0.75}
LAYERS, PROCESSES, MIB = 16, 2, 2**20
FULL, QUICK = 1024, 384
# The variables that accelerate's launcher sets for `--use_fsdp --fsdp_version 2` on a machine with GPUs.
SETTINGS = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


@dataclass
class Stand:
    """Hold the resident bytes of one process: at its start, with the teacher, when training begins, between steps, at
    most.
    """

    empty: int = 0
    loaded: int = 0
    begun: int = 0
    between: int = 0
    highest: int = 0


def make_model(directory: Path, width: int, seed: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


def resident() -> int:
    """Return the resident bytes after freed memory has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


class Watch:
    """Record the memory when training begins and after each step; a thread does so while the third step runs."""

    def __init__(self, stand: Stand) -> None:
        self._stand, self._steps, self._process = stand, 0, psutil.Process()

    def start(self, what: str, total: int | None, done: int = 0) -> None:
        self._stand.begun = resident()

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        self._steps += 1
        if self._steps == 2:
            self._stand.between = resident()
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while self._steps < 3:
            self._stand.highest = max(self._stand.highest, self._process.memory_info().rss)
            time.sleep(0.005)

    def end(self) -> None: ...

    def note(self, text: str) -> None: ...

    def result(self, path: Path) -> None: ...


def train(root: Path, out: Path) -> None:
    """Run one process of a training of three steps, and write its `Stand` into `out`."""
    from trd_cli.config.training import DistillConfig
    from trd_cli.models import ModelRef
    from trd_cli.progress import SilentProgress
    from trd_cli.training.batches import Example
    from trd_cli.training.launch import accelerator_for
    from trd_cli.training.trainer import Trainer

    config = DistillConfig(batch_size=4, max_tokens_per_batch=24, device="cpu")
    accelerator = accelerator_for(config)
    rows = [Example(f"{i:02d}", range(10, 14), range(20, 24), range(30, 38)) for i in range(12)]
    out.mkdir(exist_ok=True)
    # Imports and first uses, by way of a model without weight.
    small, student, teacher = (ModelRef(name, root / name, name) for name in ("small", "student", "teacher"))
    Trainer(config, small, small, accelerator, out).train(rows, SilentProgress())
    accelerator = accelerator_for(config)
    stand = Stand(empty=resident())
    trainer = Trainer(config, student, teacher, accelerator, out)
    stand.loaded = resident()
    trainer.train(rows, Watch(stand))
    (out / f"stand-{accelerator.process_index}.json").write_text(json.dumps(asdict(stand)))


def measure(root: Path, processes: int) -> list[Stand]:
    """Return the `Stand` of each process of one training."""
    out = root / f"by-{processes}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    # Freed memory then goes back to the system at once, whatever its size.
    more = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(512 << 10), **(SETTINGS if processes > 1 else {})}
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--train", str(root), str(out)]
    subprocess.run(command, env=os.environ | more, check=True, stdout=subprocess.DEVNULL)
    return [Stand(**json.loads((out / f"stand-{i}.json").read_text())) for i in range(processes)]


def roles(alone: Stand, shared: list[Stand]) -> dict[str, tuple[int, int]]:
    """Return the bytes of each role: of one process alone, and the most of the processes that share."""
    # The main process has read the whole student by then; another process has the teacher alone.
    teacher = shared[-1].loaded - shared[-1].empty
    whole = alone.loaded - alone.empty
    # Alone both are loaded at once: the teacher has half of the student's bytes, bfloat16 beside float32.
    return {
        "teacher": (whole // 3, teacher),
        "student": (whole - whole // 3, max(s.begun - s.empty for s in shared) - teacher),
        "moments": (alone.between - alone.begun, max(s.between - s.begun for s in shared)),
        "between two steps": (alone.between - alone.empty, max(s.between - s.empty for s in shared)),
        "passes": (alone.highest - alone.between, max(s.highest - s.between for s in shared)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of 31 million weights, not of 216")
    parser.add_argument("--train", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(*options.train)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        width = QUICK if options.quick else FULL
        for seed, (name, size) in enumerate({"small": 64, "student": width, "teacher": width}.items()):
            make_model(root / name, size, seed)
        found = roles(measure(root, 1)[0], measure(root, PROCESSES))
    print(f"{'MiB':<20}{'one process':>14}{'one of two':>14}{'share':>8}")
    for role, (one, each) in found.items():
        print(f"{role:<20}{one / MIB:>14.0f}{each / MIB:>14.0f}{each / one:>8.2f}")
    value = {role: round(each / one, 3) for role, (one, each) in found.items()}
    ok = all(value[role] <= goal for role, goal in GOALS.items())
    print(json.dumps({"name": "sharded_memory", "value": value, "goal": GOALS, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
