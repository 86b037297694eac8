"""Compare the fused divergence with a dense one and with TRL's chunked one: time and memory, forward and backward.

Forward KL, frozen teacher states and head, trainable student states and head; one thread of a CPU. Compared are

    dense   logits of all tokens in plain PyTorch, log-softmax in float32, a weighted sum, autograd
    ours    `trd_cli.losses.fused.fused_divergence` with its default chunk, the figures of positions included
    trl     `trl.kernels.chunked_divergence` with beta 0, where TRL is installed; without it, its goals are not judged

The candidates take turns and the median of the per-round ratios counts; trl has a turn in the first round only. On both
sides of `ours` its matrix products (chunk × d · d × V twice, chunk × V · V × d, V × chunk · chunk × d) are timed on
their own. They give the machine's own rate; the share of the matmul rate is 8·T·d·V floating-point operations in the
time of `ours` against it.

Memory is resident memory: each figure comes from a new process, which makes the inputs, reads its resident memory,
takes one step and reads the peak. "Extra" is what remains without the gradients of head and states that the step leaves
behind.

    python -m venv scratch && scratch/bin/pip install trl -e .
    scratch/bin/python examples/bench/fused_loss.py [--quick]

`--quick` times fewer tokens with the smaller head, trl in float32 only, reads memory in bfloat16 only and leaves out
the growth with the number of tokens; what it leaves out is not judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trd_cli.losses.fused import CHUNK, fused_divergence
from trd_cli.losses.objectives import Objective

TIME_TO_DENSE, TIME_TO_TRL, MEMORY_TO_DENSE, SHARE, SCALING = 1.05, 0.8, 1 / 12, 0.8, 0.1
TOKENS = 2048
HEADS = ((576, 49152), (1024, 151936))
WITH_TRL = importlib.util.find_spec("trl") is not None
MIB = 2**20
LEGEND = """Equal in bfloat16: the student's head is a float32 master weight and its gradient is float32; the states of both sides, their
gradient and the teacher's head are bfloat16; softmax and divergence are float32.
Not equal: dense and trl run under autocast, ours casts by itself. dense and ours take their products in bfloat16 and round
logits to it, trl takes products of bfloat16 values in float32 on a CPU. dense rounds the head's gradient to bfloat16 once, at
the end; ours rounds each chunk's and sums them in float32; trl rounds none. ours also makes the log's figures; of those trl
makes the student's entropy.
"""


class Case(NamedTuple):
    tokens: int
    width: int
    vocabulary: int
    dtype: str

    @property
    def flops(self) -> int:
        return 8 * self.tokens * self.width * self.vocabulary

    @property
    def compute(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __str__(self) -> str:
        return f"{self.tokens}x{self.width}x{self.vocabulary} {self.dtype}"


class Inputs(NamedTuple):
    student_ND: Tensor
    head_VD: Tensor
    teacher_ND: Tensor
    teacher_head_VD: Tensor
    response_N: Tensor
    weights_N: Tensor

    def zero_grad(self) -> None:
        self.student_ND.grad = self.head_VD.grad = None

    def first(self, tokens: int) -> Inputs:
        """Return the first tokens, weighted up, with states of their own and the same heads."""
        return Inputs(
            self.student_ND.detach()[:tokens].requires_grad_(),
            self.head_VD,
            self.teacher_ND[:tokens],
            self.teacher_head_VD,
            self.response_N[:tokens],
            self.weights_N[:tokens] * (len(self.weights_N) / tokens),
        )


def make_inputs(case: Case) -> Inputs:
    """Make inputs with logits of standard deviation 3; the student differs from the teacher."""
    torch.manual_seed(0)
    scale = 3 / case.width**0.5
    head_VD = torch.randn(case.vocabulary, case.width).mul_(scale)
    teacher_head_VD = head_VD.to(case.compute, copy=True)
    teacher_ND = torch.randn(case.tokens, case.width)
    student_ND = (teacher_ND + 0.3 * torch.randn(case.tokens, case.width)).to(case.compute)
    return Inputs(
        student_ND.requires_grad_(),
        head_VD.requires_grad_(),
        teacher_ND.to(case.compute),
        teacher_head_VD,
        torch.randint(case.vocabulary, (case.tokens,)),
        torch.full((case.tokens,), 1 / case.tokens),
    )


def autocast(x: Inputs) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=x.student_ND.dtype == torch.bfloat16)


def dense(x: Inputs) -> Tensor:
    with autocast(x):
        with torch.no_grad():
            log_q_NV = torch.log_softmax(x.teacher_ND @ x.teacher_head_VD.T, -1, dtype=torch.float32)
        log_p_NV = torch.log_softmax(x.student_ND @ x.head_VD.T, -1, dtype=torch.float32)
        kl_N = F.kl_div(log_p_NV, log_q_NV, reduction="none", log_target=True).sum(-1)
    return (kl_N * x.weights_N).sum()


def ours(x: Inputs) -> Tensor:
    sides = x.student_ND, x.head_VD, x.teacher_ND, x.teacher_head_VD
    return fused_divergence(*sides, x.response_N, x.weights_N, Objective("forward-kl"))[0]


def trl(x: Inputs) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    sides = x.student_ND, x.head_VD, None, x.teacher_ND, x.teacher_head_VD, None
    with autocast(x):
        kl_N, _ = ChunkedDivergenceFunction.apply(*sides, 0.0, 1.0)
    return (kl_N * x.weights_N).sum()


CANDIDATES = {"dense": dense, "ours": ours, **({"trl": trl} if WITH_TRL else {})}


def seconds(name: str, x: Inputs) -> float:
    """Time one step of a candidate."""
    x.zero_grad()
    started = time.perf_counter()
    CANDIDATES[name](x).backward()
    return time.perf_counter() - started


def products(case: Case, x: Inputs) -> Callable[[], float]:
    """Return the seconds of the products of all tokens, measured on one chunk and into tensors allocated before."""
    states_CD, head_VD = x.student_ND.detach()[:CHUNK], x.head_VD.detach().to(case.compute)
    logits_CV = states_CD @ head_VD.T
    grad_CD, grad_VD = torch.empty_like(states_CD), torch.empty_like(head_VD)

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(2):
            torch.mm(states_CD, head_VD.T, out=logits_CV)
        torch.mm(logits_CV, head_VD, out=grad_CD)
        torch.mm(logits_CV.T, states_CD, out=grad_VD)
        return (time.perf_counter() - started) * case.tokens / len(states_CD)

    measure()
    return measure


def warm_up(x: Inputs) -> None:
    """Compare loss and gradient at a few tokens, which also loads everything that a first step loads."""
    shown = []
    for name, loss in CANDIDATES.items():
        x.zero_grad()
        value = loss(x)
        value.backward()
        if name == "dense":
            reference_VD = x.head_VD.grad
        error = (x.head_VD.grad - reference_VD).norm() / reference_VD.norm()
        shown.append(f"{name} {value:.6f} ({error:.0e})")
    print("    loss at a few tokens (distance of the head's gradient from dense's): " + ", ".join(shown))


def time_rounds(case: Case, rounds: int, with_trl: bool) -> dict[str, list[float]]:
    """Return each candidate's seconds in each round; the machine's own products stand on both sides of `ours`."""
    x = make_inputs(case)
    warm_up(x.first(64))
    own = products(case, x)
    names = ["dense", "ours", "products", *(["trl"] if with_trl else [])]
    taken: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        if i % 2 == 0:
            taken["dense"].append(seconds("dense", x))
        before = own()
        taken["ours"].append(seconds("ours", x))
        taken["products"].append((before + own()) / 2)
        if i % 2 == 1:
            taken["dense"].append(seconds("dense", x))
        if i == 0 and with_trl:
            taken["trl"].append(seconds("trl", x))
    return taken


def status(field: str) -> int:
    """Return the bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def highest() -> int:
    """Return the process's peak so far where /proc does not have it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(name: str, case: Case) -> int:
    """Return the extra bytes of a candidate's step in this process, after a tiny step that loads libraries."""
    tiny = make_inputs(case._replace(tokens=64, width=64, vocabulary=512))
    CANDIDATES[name](tiny).backward()
    x = make_inputs(case)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        baseline, peak = status("VmRSS"), lambda: status("VmHWM")
    except OSError:
        # Making the inputs has a peak that hides as much of the step: the figure is too low, if anything.
        baseline, peak = highest(), highest
    CANDIDATES[name](x).backward()
    return peak() - baseline - x.head_VD.grad.nbytes - x.student_ND.grad.nbytes


@cache
def extra_memory(name: str, case: Case) -> int:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps([name, *case])]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return int(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def ratio(taken: dict[str, list[float]], over: str, under: str) -> float:
    return median(a / b for a, b in zip(taken[over], taken[under], strict=False))


class Goals(dict[str, dict]):
    """Hold the result of each goal for the last line."""

    def judge(self, name: str, value: float, goal: float, at_least: bool = False) -> None:
        ok = value >= goal if at_least else value <= goal
        self[name] = {"value": round(value, 4), "goal": round(goal, 4), "ok": ok}
        sign, verdict = ">=" if at_least else "<=", "ok" if ok else "FAILS"
        print(f"    {name:<52} {value:7.4f}  {sign} {goal:.4f}  {verdict}", flush=True)


def compare(case: Case, rounds: int, with_trl: bool, with_memory: bool, goals: Goals) -> None:
    """Compare one shape in one dtype. Memory is always that of `TOKENS`: ours is fixed, and dense's grows."""
    print(f"\n{case}, {rounds} round(s)")
    taken = time_rounds(case, rounds, with_trl)
    full = case._replace(tokens=TOKENS)
    extra = {name: extra_memory(name, full) for name in ("dense", "ours") if with_memory}
    for name, each in taken.items():
        memory = f"{extra[name] / MIB:9.1f} MiB extra" if name in extra else ""
        rate = case.flops / median(each) / 1e9
        print(f"    {name:<9} {median(each):8.3f} s  {rate:7.1f} GFLOP/s of 8TdV  {memory}")
    of = f"d={case.width} V={case.vocabulary} {case.dtype}"
    goals.judge(f"time ours/dense, {of}", ratio(taken, "ours", "dense"), TIME_TO_DENSE)
    if with_trl:
        goals.judge(f"time ours/trl, {of}", ratio(taken, "ours", "trl"), TIME_TO_TRL)
    if with_memory:
        goals.judge(f"memory ours/dense, {of}", extra["ours"] / extra["dense"], MEMORY_TO_DENSE)
    share = ratio(taken, "products", "ours")
    if case.dtype == "float32":
        goals.judge(f"share of matmul rate, {of}", share, SHARE, at_least=True)
    else:
        print(f"    share of matmul rate, {of}: {share:.4f} (no goal)")


def compare_lengths(cases: list[Case], rounds: int, goals: Goals) -> None:
    """Measure `ours` at 1x, 2x and 4x tokens: how far time is from linear and memory from flat."""
    print(f"\nours at 1x, 2x, 4x tokens, {rounds} round(s)")
    inputs = [make_inputs(case) for case in cases]
    taken = [[seconds("ours", x) for x in inputs] for _ in range(rounds)]
    inputs.clear()
    extra = [extra_memory("ours", case) for case in cases]
    for i, case in enumerate(cases):
        print(f"    {case}  {median(t[i] for t in taken):8.3f} s  {extra[i] / MIB:8.1f} MiB extra")
    linear = max(abs(median(t[i] / t[0] for t in taken) / 2**i - 1) for i in (1, 2))
    goals.judge("time from linear in tokens", linear, SCALING)
    goals.judge("memory from flat in tokens", max(extra) / min(extra) - 1, SCALING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part of it, in under a minute")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        name, *case = json.loads(args.measure)
        print(measure(name, Case(*case)))
        return
    print(f"torch {torch.__version__}, 1 thread, {'with' if WITH_TRL else 'without'} trl\n{LEGEND}", end="")
    if not WITH_TRL:
        print("trl is not installed (pip install trl, in a scratch venv): its goals are not judged")
    goals = Goals()
    if args.quick:
        compare(Case(512, *HEADS[0], "float32"), 2, WITH_TRL, False, goals)
        compare(Case(512, *HEADS[0], "bfloat16"), 2, False, True, goals)
    else:
        for head, rounds in zip(HEADS, (3, 2), strict=True):
            for dtype in ("float32", "bfloat16"):
                compare(Case(TOKENS, *head, dtype), rounds, WITH_TRL, True, goals)
        compare_lengths([Case(TOKENS // n, *HEADS[0], "float32") for n in (4, 2, 1)], 3, goals)
    worst = max(goal["value"] for name, goal in goals.items() if name.startswith("time ours/dense"))
    ok = all(goal["ok"] for goal in goals.values())
    report = {"name": "fused_loss_vs_dense", "value": worst, "goal": TIME_TO_DENSE, "ok": ok, "goals": goals}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
