"""Check the loss on this GPU, and measure speed and memory of a training step. One CUDA device, under four minutes.

Needs torch, transformers, accelerate, peft and pydantic, and this checkout on PYTHONPATH: no model, no data and no
network.

    python examples/bench/gpu.py [--quick]

Without a GPU the same steps run at tiny sizes on the CPU and say nothing about speed. A test does that, so that the
script works when a GPU is at hand.

1. Equality: loss and gradients of `fused_divergence` on the device against plain PyTorch in float64 on the CPU.
2. The loss alone: forward KL, forward and backward, 4,096 tokens × (2,048, 4,096) × 151,936 in bfloat16. Compared are

       dense      logits of all tokens in plain PyTorch, log-softmax in float32, a weighted sum, autograd
       compiled   the same under torch.compile
       liger      Liger's chunked JSD with beta 0, which is forward KL, where liger-kernel is installed
       ours       `trd_cli.losses.fused.fused_divergence`, the figures of positions included

   They take turns; time is the median over rounds. "Extra" memory is what a step allocates beyond inputs and gradients.
   The rate is 8·T·d·V floating-point operations in that time as a share of a bfloat16 product of 8,192 × 8,192 × 8,192
   measured beside it.
3. A whole training step by `trd_cli.training.trainer.Trainer`, one row of 1,024 or 16,384 tokens, random weights in the
   shape of Qwen3-0.6B and 1.7B, all weights or an adapter, with recomputation and without. Tokens are those the student
   reads. Operations are those of the products that the step needs (recomputed ones are not counted) and of causal
   attention. The peak stands beside the estimate of `trd plan`.
4. The step with its weights in shards (FSDP2, one process): loss and gradient norm against the plain step in float32,
   then its speed.

The last line is one JSON object. A candidate that runs out of memory is left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trd_cli.config.training import DistillConfig
from trd_cli.losses.fused import fused_divergence
from trd_cli.losses.objectives import Objective
from trd_cli.models import ModelRef
from trd_cli.planning import estimates
from trd_cli.planning.estimates import Shape
from trd_cli.progress import SilentProgress
from trd_cli.training import LOG
from trd_cli.training.batches import Example
from trd_cli.training.launch import accelerator_for
from trd_cli.training.trainer import Trainer

TIME_TO_DENSE, MEMORY_TO_DENSE, PEAK_TO_PLAN = 1.05, 0.2, 1.3
EQUAL = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
SHARDED_EQUAL = 1e-4
GIB = 2**30
QWEN3 = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144},
}
COMMON = {
    "vocab_size": 151_936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40_960,
}
TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of a run.

    Tokens, widths and vocabulary of the loss; models and row lengths of the steps; rounds; and the product beside it.
    """

    tokens: int
    widths: tuple[int, ...]
    vocabulary: int
    models: dict[str, dict[str, Any]]
    rows: tuple[int, ...]
    rounds: int
    product: int


FULL = Sizes(4096, (2048, 4096), 151_936, {k: COMMON | v for k, v in QWEN3.items()}, (1024, 16_384), 5, 8192)
QUICK = Sizes(4096, (2048,), 151_936, {"0.6B": COMMON | QWEN3["0.6B"]}, (1024,), 3, 8192)
ON_CPU = Sizes(48, (32,), 320, {"tiny": TINY}, (48,), 1, 256)


class Goals(dict[str, dict[str, Any]]):
    """Hold the result of each figure with a goal for the last line; figures without one are in `figures`."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, float] = {}

    def judge(self, name: str, value: float, goal: float) -> None:
        self[name] = {"value": float(f"{value:.4g}"), "goal": goal, "ok": value <= goal}
        print(f"  {name:<58} {value:10.4g}  at most {goal:g}  {'ok' if value <= goal else 'FAILS'}", flush=True)

    def note(self, name: str, value: float, unit: str) -> None:
        self.figures[name] = float(f"{value:.4g}")
        print(f"  {name:<58} {value:10.4g}  {unit}", flush=True)


class Inputs(NamedTuple):
    student_ND: Tensor
    head_VD: Tensor
    teacher_ND: Tensor
    teacher_head_VD: Tensor
    response_N: Tensor
    weights_N: Tensor


def make_inputs(tokens: int, width: int, vocabulary: int, compute: torch.dtype, device: str) -> Inputs:
    """Make inputs with logits of standard deviation 3 on the device; the student's head is a float32 master weight."""
    chance = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance, device=device)

    head_VD, teacher_ND = normal(vocabulary, width) * (3 / width**0.5), normal(tokens, width)
    student_ND = (teacher_ND + 0.3 * normal(tokens, width)).to(compute)
    return Inputs(
        student_ND.requires_grad_(),
        head_VD.requires_grad_(),
        teacher_ND.to(compute),
        head_VD.detach().to(compute),
        torch.arange(tokens, device=device) % vocabulary,
        torch.full((tokens,), 1 / tokens, device=device),
    )


def dense(x: Inputs) -> Tensor:
    head_VD, exact = x.head_VD.to(x.student_ND.dtype), torch.promote_types(x.student_ND.dtype, torch.float32)
    log_q_NV = torch.log_softmax(x.teacher_ND @ x.teacher_head_VD.T, -1, dtype=exact)
    log_p_NV = torch.log_softmax(x.student_ND @ head_VD.T, -1, dtype=exact)
    return (F.kl_div(log_p_NV, log_q_NV, reduction="none", log_target=True).sum(-1) * x.weights_N).sum()


def ours(x: Inputs) -> Tensor:
    sides = x.student_ND, x.head_VD, x.teacher_ND, x.teacher_head_VD
    return fused_divergence(*sides, x.response_N, x.weights_N, Objective("forward-kl"))[0]


def liger(x: Inputs) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    on_gpu = x.student_ND.device.type == "cuda"
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=on_gpu)
    head_VD = x.head_VD.to(x.student_ND.dtype)
    return loss(x.student_ND, head_VD, x.teacher_ND, x.teacher_head_VD, x.response_N)


def candidates(device: str) -> dict[str, Callable[[Inputs], Tensor]]:
    """Return the candidates with `ours` last, so that it is measured after whatever the others leave behind."""
    found = {"dense": dense}
    if device == "cuda":
        found["compiled"] = torch.compile(dense)
    if find_spec("liger_kernel"):
        found["liger"] = liger
    return found | {"ours": ours}


def backward(loss: Callable[[Inputs], Tensor], x: Inputs) -> Tensor:
    x.student_ND.grad = x.head_VD.grad = None
    value = loss(x)
    value.backward()
    return value.detach()


# 1. Equality


def check_equality(device: str, goals: Goals) -> None:
    for compute, limit in EQUAL.items():
        x = make_inputs(300, 64, 3000, compute, device)
        found = backward(ours, x)
        exact = Inputs(*(t.detach().cpu().double() for t in x[:4]), x.response_N.cpu(), x.weights_N.cpu().double())
        exact.student_ND.requires_grad_()
        exact.head_VD.requires_grad_()
        expected = backward(dense, exact)
        name = str(compute).removeprefix("torch.")
        goals.judge(f"{name}: loss, off by a share of", off(found, expected), limit)
        for what in ("student_ND", "head_VD"):
            grads = getattr(x, what).grad, getattr(exact, what).grad
            goals.judge(f"{name}: gradient of {what}, off by a share of", off(*grads), limit)


def off(found: Tensor, expected: Tensor) -> float:
    return ((found.cpu().double() - expected).norm() / expected.norm()).item()


# 2. The loss alone


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: str) -> float:
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


@cache
def matmul_rate(size: int, device: str) -> float:
    """Return the floating-point operations a second of a bfloat16 product, the median of ten."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    a @ b
    return 2 * size**3 / median(seconds(lambda: a @ b, device) for _ in range(10))


def extra_memory(loss: Callable[[Inputs], Tensor], x: Inputs) -> int:
    x.student_ND.grad = x.head_VD.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backward(loss, x)
    synchronize("cuda")
    grads = x.student_ND.grad.nbytes + x.head_VD.grad.nbytes
    return torch.cuda.max_memory_allocated() - before - grads


def compare_losses(sizes: Sizes, width: int, device: str, goals: Goals) -> None:
    x = make_inputs(sizes.tokens, width, sizes.vocabulary, torch.bfloat16, device)
    of = f"d = {width:,}"
    running = dict(candidates(device))
    for name, loss in list(running.items()):
        try:
            backward(loss, x)  # compiles, and shows how large it is
        except torch.OutOfMemoryError:
            print(f"  {name}, {of}: out of memory", flush=True)
            del running[name]
            torch.cuda.empty_cache()
    taken: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(sizes.rounds):
        for name, loss in running.items():
            taken[name].append(seconds(lambda loss=loss: backward(loss, x), device))
    flops = 8 * sizes.tokens * width * sizes.vocabulary
    for name, times in taken.items():
        goals.note(f"{name}, {of}: time", 1e3 * median(times), "ms")
        rate = flops / median(times) / matmul_rate(sizes.product, device)
        goals.note(f"{name}, {of}: share of the matmul rate", rate, "")
    extra = {name: extra_memory(loss, x) for name, loss in running.items()} if device == "cuda" else {}
    for name, size in extra.items():
        goals.note(f"{name}, {of}: extra memory", size / GIB, "GiB")
    if device == "cuda" and "dense" in running:
        ratio = median(a / b for a, b in zip(taken["ours"], taken["dense"], strict=True))
        goals.judge(f"time ours/dense, {of}", ratio, TIME_TO_DENSE)
        goals.judge(f"extra memory ours/dense, {of}", extra["ours"] / extra["dense"], MEMORY_TO_DENSE)


# 3. A whole step


class Step(NamedTuple):
    """Hold one training's loss and gradient norm of the first step, median seconds of the others, and peak bytes."""

    loss: float
    grad_norm: float
    seconds: float
    peak: int


def make_model(root: Path, name: str, config: dict[str, Any], device: str) -> ModelRef:
    """Save random weights of a shape in bfloat16."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Qwen3Config(**config), dtype=torch.bfloat16)
    model.save_pretrained(root / name)
    return ModelRef(name, root / name, name)


def row(tokens: int, vocabulary: int, number: int) -> Example:
    """Make a row of so many tokens for the teacher, an eighth of them prompt; the student's prompt is half of that."""
    prompt = tokens // 8
    ids = [(7919 * i + number) % vocabulary for i in range(tokens)]
    return Example(f"{number:02d}", ids[: prompt // 2], ids[:prompt], ids[prompt:])


def train(model: ModelRef, tokens: int, steps: int, out: Path, **options: Any) -> Step:
    """Run the trainer for steps of one row each, the student its own teacher in another context."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    vocabulary = json.loads((model.path / "config.json").read_text())["vocab_size"]
    config = DistillConfig(batch_size=1, max_tokens_per_batch=tokens, device=device, **options)
    shutil.rmtree(out, ignore_errors=True)  # a state left behind would be resumed
    out.mkdir(parents=True)
    trainer = Trainer(config, model, model, accelerator_for(config), out)
    trainer.train([row(tokens, vocabulary, i) for i in range(steps)], SilentProgress())
    log = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    took = median(line["seconds"] for line in log[1:] or log)
    return Step(log[0]["loss"], log[0]["grad_norm"], took, round(log[-1]["peak_memory_gib"] * GIB))


def shape_of(config: dict[str, Any]) -> Shape:
    from transformers import AutoModelForCausalLM, Qwen3Config

    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(Qwen3Config(**config)).parameters())
    kv = config["num_key_value_heads"] * config["head_dim"]
    sizes = (config[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers"))
    return Shape(parameters, *sizes, kv, config["intermediate_size"], config["tie_word_embeddings"])


def operations(config: dict[str, Any], tokens: int, lora: bool) -> float:
    """Count the operations of a step on `row`: products with weights, causal attention, the fused loss."""
    shape, example = shape_of(config), row(tokens, config["vocab_size"], 0)
    layers = shape.layers * shape.layer_parameters
    students, teachers = (len(p) + len(example.response) - 1 for p in (example.student_prompt, example.teacher_prompt))
    heads = config["num_attention_heads"] * config["head_dim"]
    attention = 2 * shape.layers * heads * (3 * students**2 + teachers**2)
    # Forward, the gradient of the inputs, and that of the weights where they are trained; the loss takes as many and
    # the teacher's.
    passes = 4 if lora else 6
    loss = (passes + 2) * len(example.response) * shape.vocabulary * shape.width
    return passes * layers * students + 2 * layers * teachers + attention + loss


def measure_steps(sizes: Sizes, root: Path, device: str, goals: Goals) -> None:
    for name, config in sizes.models.items():
        model, shape = make_model(root, name, config, device), shape_of(config)
        for tokens in sizes.rows:
            for lora in (False, True):
                for checkpointing in (False, True):
                    options = {"lora": lora, "gradient_checkpointing": checkpointing}
                    kind = f"{name}, {tokens:,} tokens, {'adapter' if lora else 'all weights'}{', recomputed' * checkpointing}"
                    with leaving_out(kind):
                        step = train(model, tokens, 1 + min(3, sizes.rounds), root / "out", **options)
                        tell(kind, step, model, shape, config, tokens, options, goals, sizes.product, device)


@contextlib.contextmanager
def leaving_out(kind: str) -> Iterator[None]:
    """Go on after a step that does not fit."""
    from trd_cli.errors import TrdError

    try:
        yield
    except TrdError as error:
        if "out of memory" not in str(error):
            raise
        print(f"  {kind}: out of memory", flush=True)


def tell(
    kind: str,
    step: Step,
    model: ModelRef,
    shape: Shape,
    config: dict[str, Any],
    tokens: int,
    options: dict[str, bool],
    goals: Goals,
    product: int,
    device: str,
) -> None:
    goals.note(f"{kind}: tokens a second", tokens / step.seconds, "")
    rate = operations(config, tokens, options["lora"]) / step.seconds / matmul_rate(product, device)
    goals.note(f"{kind}: share of the matmul rate", rate, "")
    if device == "cuda":
        adapter = trained_by_adapter(model) if options["lora"] else 0
        checkpointing = options["gradient_checkpointing"]
        need = estimates.training(
            shape, None if adapter else shape, "bfloat16", tokens, adapter=adapter, checkpointing=checkpointing
        )
        goals.note(f"{kind}: peak memory", step.peak / GIB, "GiB")
        goals.judge(f"{kind}: peak/plan", step.peak / need.total, PEAK_TO_PLAN)


@cache
def trained_by_adapter(model: ModelRef) -> int:
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.path))
    linears = [m for m in network.model.modules() if isinstance(m, nn.Linear)]
    return estimates.adapter_parameters(DistillConfig().lora_rank, [(m.in_features, m.out_features) for m in linears])


# 4. Weights in shards


def compare_sharded(sizes: Sizes, root: Path, goals: Goals) -> None:
    """Compare on the smallest model, in processes of their own, because accelerate has one state a process."""
    name, tokens = next(iter(sizes.models)), sizes.rows[0]
    for dtype in ("float32", "bfloat16"):
        plain, sharded = (
            in_a_process(root, name, tokens, dtype, sharded=sharded, rounds=sizes.rounds) for sharded in (False, True)
        )
        of = f"{name}, {tokens:,} tokens, {dtype}"
        if dtype == "float32":
            goals.judge(f"{of}: loss, sharded off by", abs(sharded.loss / plain.loss - 1), SHARDED_EQUAL)
            norms = abs(sharded.grad_norm / plain.grad_norm - 1)
            goals.judge(f"{of}: gradient norm, sharded off by", norms, SHARDED_EQUAL)
        goals.note(f"{of}: time sharded/plain", sharded.seconds / plain.seconds, "")


def in_a_process(root: Path, name: str, tokens: int, dtype: str, sharded: bool, rounds: int) -> Step:
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    on_cpu = {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}
    variables = os.environ | (launched | asked | on_cpu if sharded else {})
    order = json.dumps([str(root), name, tokens, dtype, rounds])
    command = [sys.executable, __file__, "--train", order]
    done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    return Step(*json.loads(done.stdout.splitlines()[-1]))


def train_as_told(order: str) -> None:
    root, name, tokens, dtype, rounds = json.loads(order)
    model = ModelRef(name, Path(root) / name, name)
    step = train(model, tokens, 1 + min(3, rounds), Path(root) / "out-alone", dtype=dtype)
    print(json.dumps(step))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one width, one model, short rows: under a minute")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_as_told(options.train)
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = ON_CPU if device == "cpu" else QUICK if options.quick else FULL
    machine = torch.cuda.get_device_name() if device == "cuda" else "no GPU: tiny sizes, nothing said of speed"
    print(f"torch {torch.__version__}, {machine}", flush=True)
    goals = Goals()
    check_equality(device, goals)
    for width in sizes.widths:
        compare_losses(sizes, width, device, goals)
    goals.note("bfloat16 product", matmul_rate(sizes.product, device) / 1e12, "TFLOP/s")
    with tempfile.TemporaryDirectory() as scratch:
        measure_steps(sizes, Path(scratch), device, goals)
        compare_sharded(sizes, Path(scratch), goals)
    ok = all(goal["ok"] for goal in goals.values())
    value = max(goal["value"] / goal["goal"] for goal in goals.values())
    report = {"name": "gpu", "value": value, "goal": 1.0, "ok": ok, "device": machine}
    print(json.dumps(report | {"goals": goals, "figures": goals.figures}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
