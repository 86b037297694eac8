"""Objectives: against plain autograd, by hand, at their limits, and the sampled ones in expectation.

Axes: N positions, V vocabulary, K tokens of a top-K support, S the support with its tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trd_cli.config.training import DistillConfig
from trd_cli.losses.distribution import Distribution
from trd_cli.losses.fused import fused_divergence
from trd_cli.losses.objectives import OBJECTIVES, Objective, Scores
from trd_cli.losses.sampled import Estimator
from trd_cli.losses.top_k import TopKMode

# N positions, V vocabulary.
EVEN, ODD = (16, 64), (13, 57)
FORWARD, REVERSE = Objective("forward-kl"), Objective("reverse-kl")
GATE = 3.0
GATED = Objective("entropy-gated", entropy_threshold=GATE)
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
TOP_K_NAMES = ("forward-kl-topk", "reverse-kl-topk")
MODES: tuple[TopKMode, ...] = get_args(TopKMode)
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

PLAIN = [
    FORWARD,
    REVERSE,
    *(Objective("jsd", beta=beta) for beta in BETAS),
    GATED,
    *(Objective(name, top_k=k, top_k_mode=mode) for name in TOP_K_NAMES for mode in MODES for k in (1, 3, 8)),
    *(Objective("sampled", estimator=estimator) for estimator in ESTIMATORS),
    Objective("likelihood"),
]
# Bounds that some of the positions below exceed and others do not.
CLIPPED = [
    Objective("forward-kl", clip_entry=1.0),
    Objective("forward-kl", clip_position=1.5),
    Objective("forward-kl", clip_entry=1.0, clip_position=1.5),
    Objective("reverse-kl", clip_entry=1.0),
    Objective("reverse-kl", clip_position=1.5),
    Objective("jsd", beta=0.1, clip_entry=0.04),
    Objective("jsd", beta=0.5, clip_position=0.3),
    Objective("jsd", beta=0.9, clip_entry=0.05, clip_position=0.14),
    replace(GATED, clip_entry=1.0),
    replace(GATED, clip_position=2.0),
    Objective("forward-kl-topk", top_k=8, top_k_mode="renormalise", clip_entry=0.8),
    Objective("forward-kl-topk", top_k=8, top_k_mode="tail", clip_position=1.0),
    Objective("forward-kl-topk", top_k=8, top_k_mode="stop-gradient", clip_entry=1.0),
    Objective("reverse-kl-topk", top_k=8, top_k_mode="renormalise", clip_position=0.8),
    Objective("reverse-kl-topk", top_k=8, top_k_mode="tail", clip_entry=1.0),
    Objective("reverse-kl-topk", top_k=8, top_k_mode="stop-gradient", clip_entry=0.05),
    *(Objective("sampled", estimator=estimator, clip_entry=1.0) for estimator in ESTIMATORS),
    *(Objective("sampled", estimator=estimator, clip_position=1.0) for estimator in ESTIMATORS),
    Objective("likelihood", clip_entry=4.0),
    Objective("likelihood", clip_position=5.0),
]
# One objective for the positions of correct rows and another for the rest.
ROUTED = [
    Objective("sampled", of_correct="likelihood"),
    Objective("reverse-kl", of_correct="likelihood"),
    Objective("forward-kl", of_correct="reverse-kl-topk", top_k=3, clip_position=1.5),
]


def label(objective: Objective) -> str:
    """Return the name and the options that differ from the defaults, for the ids of tests."""
    default = Objective(objective.name)
    options = (f"{key}={value}" for key, value in vars(objective).items() if value != getattr(default, key))
    return " ".join([objective.name, *options])


def of_each(objectives: list[Objective]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("objective", objectives, ids=label)


def random_logits(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of the student and of the teacher, float64, and the response's tokens."""
    generator = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return student_NV, teacher_NV, torch.randint(shape[1], shape[:1], generator=generator)


def score(objective: Objective, student_NV: Tensor, teacher_NV: Tensor, response_N: Tensor) -> Scores:
    return objective(Distribution.of_logits(student_NV), Distribution.of_logits(teacher_NV), response_N)


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    """Assert that no entry is further off than `share` of the largest expected one (1e-15: autograd's zeros)."""
    assert found.shape == expected.shape
    off = (found.double() - expected).abs().max()
    assert off <= share * expected.abs().max() + 1e-15, f"off by {off}"


# The reference: probabilities, logarithms and sums in float64; all gradients by autograd.


def kl_entries(a: Tensor, b: Tensor) -> Tensor:
    return a * (a / b).log()


def with_gradient_of(surrogate: Tensor, value: Tensor) -> Tensor:
    return value.detach() + surrogate - surrogate.detach()


def naive_entries(objective: Objective, p_NV: Tensor, q_NV: Tensor, response_N: Tensor) -> Tensor:
    """Return the terms that are summed at each position."""
    if objective.name == "likelihood":
        return -p_NV.gather(-1, response_N[:, None]).log()
    if objective.name == "sampled":
        return naive_sampled(objective.estimator, p_NV, q_NV, response_N)
    if objective.name in TOP_K_NAMES:
        return naive_top_k(objective, p_NV, q_NV)
    forward, reverse = kl_entries(q_NV, p_NV), kl_entries(p_NV, q_NV)
    if objective.name == "entropy-gated":
        entropy_N1 = (q_NV * (1 / q_NV).log()).sum(-1, keepdim=True)
        return torch.where(entropy_N1 > objective.entropy_threshold, reverse + forward, reverse)
    if objective.name == "jsd" and 0 < objective.beta < 1:
        middle = objective.beta * q_NV + (1 - objective.beta) * p_NV
        return objective.beta * kl_entries(q_NV, middle) + (1 - objective.beta) * kl_entries(p_NV, middle)
    return {"forward-kl": forward, "reverse-kl": reverse, "jsd": reverse if objective.beta else forward}[objective.name]


def naive_top_k(objective: Objective, p_NV: Tensor, q_NV: Tensor) -> Tensor:
    ids_NK = q_NV.argsort(-1, descending=True)[:, : objective.top_k]
    p_NS, q_NS = p_NV.gather(-1, ids_NK), q_NV.gather(-1, ids_NK)
    forward = objective.name == "forward-kl-topk"
    if objective.top_k_mode == "stop-gradient":
        entries_NS = kl_entries(q_NS, p_NS) if forward else kl_entries(p_NS, q_NS)
        weights_NS = -q_NS if forward else entries_NS.detach()
        return with_gradient_of(weights_NS * p_NS.log(), entries_NS)
    if objective.top_k_mode == "renormalise":
        p_NS, q_NS = (x / x.sum(-1, keepdim=True) for x in (p_NS, q_NS))
    else:
        p_NS, q_NS = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p_NS, q_NS))
    return kl_entries(q_NS, p_NS) if forward else kl_entries(p_NS, q_NS)


def naive_sampled(estimator: Estimator, p_NV: Tensor, q_NV: Tensor, response_N: Tensor) -> Tensor:
    p_N1, q_N1 = (x.gather(-1, response_N[:, None]) for x in (p_NV, q_NV))
    log_ratio_N1 = (p_N1 / q_N1).log()
    if estimator == "k1":
        return with_gradient_of(log_ratio_N1.detach() * p_N1.log(), log_ratio_N1)
    return log_ratio_N1**2 / 2 if estimator == "k2" else q_N1 / p_N1 - 1 + log_ratio_N1


def naive(objective: Objective, student_NV: Tensor, teacher_NV: Tensor, response_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value of each position, for autograd, and True where it was clipped."""
    entries = naive_entries(objective, student_NV.softmax(-1), teacher_NV.softmax(-1), response_N)
    bound, bound_of_sum = (math.inf if x is None else x for x in (objective.clip_entry, objective.clip_position))
    sums_N = entries.clamp(max=bound).sum(-1)
    return sums_N.clamp(max=bound_of_sum), (entries > bound).any(-1) | (sums_N > bound_of_sum)


def naive_scores(objective: Objective, student_NV: Tensor, teacher_NV: Tensor, response_N: Tensor) -> Scores:
    student_NV = student_NV.detach().double().requires_grad_()
    value_N, clipped_N = naive(objective, student_NV, teacher_NV.double(), response_N)
    return Scores(value_N.detach(), clipped_N, *torch.autograd.grad(value_N.sum(), student_NV))


def test_the_reference_is_asked_about_every_objective() -> None:
    assert {objective.name for objective in PLAIN} == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
@of_each(PLAIN + CLIPPED)
def test_value_and_gradient_are_those_of_plain_autograd(
    objective: Objective, shape: tuple[int, int], dtype: torch.dtype, share: float
) -> None:
    student_NV, teacher_NV, response_N = random_logits(shape)
    student_NV, teacher_NV = student_NV.to(dtype), teacher_NV.to(dtype)
    found = score(objective, student_NV, teacher_NV, response_N)
    expected = naive_scores(objective, student_NV, teacher_NV, response_N)
    assert_near(found.value_C, expected.value_C, share)
    assert_near(found.grad_CV, expected.grad_CV, share)
    assert found.clipped_C.equal(expected.clipped_C)
    assert found.value_C.dtype == found.grad_CV.dtype == dtype


@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
@of_each(CLIPPED)
def test_the_bounds_above_are_passed_at_some_positions_only(objective: Objective, shape: tuple[int, int]) -> None:
    clipped_N = score(objective, *random_logits(shape)).clipped_C
    assert clipped_N.any()
    assert not clipped_N.all()


@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
def test_the_entropy_gate_is_open_where_the_teacher_is_unsure(shape: tuple[int, int]) -> None:
    logits = random_logits(shape)
    entropy_N = torch.distributions.Categorical(logits=logits[1]).entropy()
    gated, reverse = score(GATED, *logits), score(REVERSE, *logits)
    with_forward_N = (gated.value_C - reverse.value_C).abs() > 1e-9
    assert with_forward_N.equal(entropy_N > GATE)
    assert with_forward_N.any()
    assert not with_forward_N.all()


@of_each([objective for objective in PLAIN + CLIPPED if objective.gradient_is_of_value])
def test_gradcheck_of_hidden_states_and_head(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(5)
    student_ND, head_VD, teacher_NE, teacher_head_VE = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((3, 2), (11, 2), (3, 4), (11, 4))
    )
    response_N, weights_N = torch.tensor([0, 7, 3]), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(student_ND: Tensor, head_VD: Tensor) -> Tensor:
        fixed = (teacher_NE, teacher_head_VE, response_N, weights_N, objective)
        return fused_divergence(student_ND, head_VD, *fixed, temperature=1.5, chunk=2)[0]

    # gradcheck takes the gradients twice, but the loss gives them once; a checkpoint runs it anew.
    assert torch.autograd.gradcheck(
        lambda *inputs: checkpoint(loss, *inputs, use_reentrant=False),
        (student_ND.requires_grad_(), head_VD.requires_grad_()),
    )


@of_each([Objective("sampled"), Objective("reverse-kl-topk", top_k=3, top_k_mode="stop-gradient")])
def test_the_gradient_of_a_surrogate_is_not_said_to_be_that_of_the_value(objective: Objective) -> None:
    student_NV, teacher_NV, response_N = random_logits(ODD)
    grad_NV = score(objective, student_NV, teacher_NV, response_N).grad_CV
    ahead, behind = (
        score(objective, student_NV + step * grad_NV, teacher_NV, response_N).value_C.sum() for step in (1e-5, -1e-5)
    )
    assert ((ahead - behind) / 2e-5).item() != pytest.approx(grad_NV.square().sum().item(), rel=1e-2)
    assert not objective.gradient_is_of_value


# By hand. LOG_2 and so on keep the lines below those of a calculation on paper.

LOG_2, LOG_3, LOG_5 = math.log(2), math.log(3), math.log(5)


@dataclass(frozen=True)
class ByHand:
    objective: Objective
    q: tuple[float, ...]
    p: tuple[float, ...]
    value: float
    grad: tuple[float, ...]
    response: int = 0


HALVES, QUARTERS, NINE_TO_ONE = (0.5, 0.5), (0.25, 0.75), (0.9, 0.1)
# q̂ = (2/3, 1/3) and p̂ = (1/2, 1/2) on the two tokens with the largest q.
Q_OF_THREE, P_OF_THREE = (0.6, 0.3, 0.1), (0.2, 0.2, 0.6)
FORWARD_A, REVERSE_A = 0.5 * LOG_2 + 0.5 * math.log(2 / 3), 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
FORWARD_B, REVERSE_B = 0.9 * math.log(1.8) + 0.1 * math.log(0.2), 0.5 * math.log(5 / 9) + 0.5 * LOG_5

BY_HAND = [
    ByHand(FORWARD, HALVES, QUARTERS, FORWARD_A, (-0.25, 0.25)),
    ByHand(FORWARD, NINE_TO_ONE, HALVES, FORWARD_B, (-0.4, 0.4)),
    # With two tokens, ∂D/∂z_0 = p_0 p_1 (s_0 / p_0 − s_1 / p_1); here 3/16 (−log 2 − log 3/2).
    ByHand(REVERSE, HALVES, QUARTERS, REVERSE_A, (-3 / 16 * LOG_3, 3 / 16 * LOG_3)),
    ByHand(REVERSE, NINE_TO_ONE, HALVES, REVERSE_B, (-0.5 * LOG_3, 0.5 * LOG_3)),
    ByHand(
        Objective("jsd", beta=0.5),  # m = (3/8, 5/8)
        HALVES,
        QUARTERS,
        0.25 * math.log(4 / 3) + 0.25 * math.log(4 / 5) + 0.125 * math.log(2 / 3) + 0.375 * math.log(6 / 5),
        (3 / 32 * math.log(5 / 9), -3 / 32 * math.log(5 / 9)),
    ),
    ByHand(
        Objective("jsd", beta=0.25),  # m = (0.6, 0.4)
        NINE_TO_ONE,
        HALVES,
        0.225 * math.log(3 / 2) + 0.025 * math.log(1 / 4) + 0.375 * math.log(5 / 6) + 0.375 * math.log(5 / 4),
        (3 / 16 * math.log(2 / 3), -3 / 16 * math.log(2 / 3)),
    ),
    ByHand(  # H(q) = log 2 = 0.693 > 0.6
        Objective("entropy-gated", entropy_threshold=0.6),
        HALVES,
        QUARTERS,
        FORWARD_A + REVERSE_A,
        (-0.25 - 3 / 16 * LOG_3, 0.25 + 3 / 16 * LOG_3),
    ),
    ByHand(  # H(q) = 0.325 < 0.6
        Objective("entropy-gated", entropy_threshold=0.6), NINE_TO_ONE, HALVES, REVERSE_B, (-0.5 * LOG_3, 0.5 * LOG_3)
    ),
    ByHand(Objective("forward-kl-topk", top_k=1), NINE_TO_ONE, HALVES, 0.0, (0.0, 0.0)),
    ByHand(
        Objective("forward-kl-topk", top_k=2),
        Q_OF_THREE,
        P_OF_THREE,
        2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3),
        (-1 / 6, 1 / 6, 0.0),
    ),
    ByHand(Objective("forward-kl-topk", top_k=1, top_k_mode="tail"), NINE_TO_ONE, HALVES, FORWARD_B, (-0.4, 0.4)),
    ByHand(  # (0.6, 0.4) against (0.2, 0.8): the tail's 0.8 − 0.4 is shared out 1 : 3
        Objective("forward-kl-topk", top_k=1, top_k_mode="tail"),
        Q_OF_THREE,
        P_OF_THREE,
        0.6 * LOG_3 - 0.4 * LOG_2,
        (-0.4, 0.1, 0.3),
    ),
    ByHand(  # −0.9 (1 − p_0, −p_1)
        Objective("forward-kl-topk", top_k=1, top_k_mode="stop-gradient"),
        NINE_TO_ONE,
        HALVES,
        0.9 * math.log(9 / 5),
        (-0.45, 0.45),
    ),
    ByHand(Objective("reverse-kl-topk", top_k=1), NINE_TO_ONE, HALVES, 0.0, (0.0, 0.0)),
    ByHand(  # ¼ (log ¾ − log 3/2)
        Objective("reverse-kl-topk", top_k=2),
        Q_OF_THREE,
        P_OF_THREE,
        0.5 * math.log(9 / 8),
        (-0.25 * LOG_2, 0.25 * LOG_2, 0.0),
    ),
    ByHand(
        Objective("reverse-kl-topk", top_k=1, top_k_mode="tail"),
        NINE_TO_ONE,
        HALVES,
        REVERSE_B,
        (-0.5 * LOG_3, 0.5 * LOG_3),
    ),
    ByHand(  # 0.5 log(5/9) (1 − p_0, −p_1)
        Objective("reverse-kl-topk", top_k=1, top_k_mode="stop-gradient"),
        NINE_TO_ONE,
        HALVES,
        0.5 * math.log(5 / 9),
        (0.25 * math.log(5 / 9), -0.25 * math.log(5 / 9)),
    ),
    # r = q_y / p_y = 2, and the gradient is the slope times (1 − p_0, −p_1).
    ByHand(Objective("sampled", estimator="k1"), HALVES, QUARTERS, -LOG_2, (-0.75 * LOG_2, 0.75 * LOG_2), 0),
    ByHand(Objective("sampled", estimator="k2"), HALVES, QUARTERS, 0.5 * LOG_2**2, (-0.75 * LOG_2, 0.75 * LOG_2), 0),
    ByHand(Objective("sampled", estimator="k3"), HALVES, QUARTERS, 1 - LOG_2, (-0.75, 0.75), 0),
    # r = 1/5, and the gradient is the slope times (−p_0, 1 − p_1).
    ByHand(Objective("sampled", estimator="k1"), NINE_TO_ONE, HALVES, LOG_5, (-0.5 * LOG_5, 0.5 * LOG_5), 1),
    ByHand(Objective("sampled", estimator="k2"), NINE_TO_ONE, HALVES, 0.5 * LOG_5**2, (-0.5 * LOG_5, 0.5 * LOG_5), 1),
    ByHand(Objective("sampled", estimator="k3"), NINE_TO_ONE, HALVES, LOG_5 - 0.8, (-0.4, 0.4), 1),
    # p_y = 1/4 and 1/2; the gradient is (p_0 − 1, p_1) and (p_0, p_1 − 1), whatever the teacher says.
    ByHand(Objective("likelihood"), HALVES, QUARTERS, 2 * LOG_2, (-0.75, 0.75), 0),
    ByHand(Objective("likelihood"), NINE_TO_ONE, HALVES, LOG_2, (0.5, -0.5), 1),
    # The first token's 0.5 log 2 = 0.35 is cut to 0.3, without gradient; the other's is −q_1 (−p_0, 1 − p_1).
    ByHand(Objective("forward-kl", clip_entry=0.3), HALVES, QUARTERS, 0.3 + 0.5 * math.log(2 / 3), (0.125, -0.125)),
    ByHand(Objective("forward-kl", clip_position=0.1), HALVES, QUARTERS, 0.1, (0.0, 0.0)),
]


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: f"{label(case.objective)} q={case.q}")
def test_a_few_tokens_by_hand(case: ByHand) -> None:
    student_NV, teacher_NV = (torch.tensor([x], dtype=torch.float64).log() for x in (case.p, case.q))
    # A constant on all logits changes nothing.
    found = score(case.objective, student_NV + 3.0, teacher_NV - 7.0, torch.tensor([case.response]))
    assert found.value_C.item() == pytest.approx(case.value, abs=1e-12)
    assert found.grad_CV[0].tolist() == pytest.approx(case.grad, abs=1e-12)


def test_every_objective_is_worked_out_by_hand() -> None:
    assert {case.objective.name for case in BY_HAND} == set(OBJECTIVES)


# Limits.


def assert_same(found: Scores, expected: Scores, share: float = 1e-12) -> None:
    assert_near(found.value_C, expected.value_C, share)
    assert_near(found.grad_CV, expected.grad_CV, share)


@pytest.mark.parametrize("k", [57, 100])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "whole"), list(zip(TOP_K_NAMES, (FORWARD, REVERSE), strict=True)), ids=TOP_K_NAMES)
def test_the_top_k_of_the_whole_vocabulary_is_the_full_divergence(
    name: str, whole: Objective, mode: TopKMode, k: int
) -> None:
    logits = random_logits(ODD)
    assert_same(score(Objective(name, top_k=k, top_k_mode=mode), *logits), score(whole, *logits))


@pytest.mark.parametrize("mode", ["renormalise", "tail"])
@pytest.mark.parametrize("name", TOP_K_NAMES)
def test_a_top_k_of_distributions_is_never_negative_and_with_a_tail_grows_towards_the_full_divergence(
    name: str, mode: TopKMode
) -> None:
    """Merging symbols into a tail never adds to a divergence."""
    logits = random_logits(EVEN)
    whole_N = score(FORWARD if name == "forward-kl-topk" else REVERSE, *logits).value_C
    values_KN = torch.stack(
        [score(Objective(name, top_k=k, top_k_mode=mode), *logits).value_C for k in (1, 2, 8, 32, 64)]
    )
    assert (values_KN > -1e-12).all()
    if mode == "tail":
        assert (values_KN <= whole_N + 1e-12).all()
        assert (values_KN.diff(dim=0) > -1e-12).all()


def test_a_tail_too_small_for_one_minus_the_rest_is_not_lost_in_float32() -> None:
    # p = (1 − 2e-9, 1e-9, 1e-9), whose first entry is 1 in float32; q = (1/2, 1/4, 1/4).
    student_NV = torch.tensor([[0.0, math.log(1e-9), math.log(1e-9)]])
    teacher_NV = torch.tensor([[0.5, 0.25, 0.25]]).log()
    objective = Objective("forward-kl-topk", top_k=1, top_k_mode="tail")
    found = score(objective, student_NV, teacher_NV, torch.tensor([0]))
    assert found.value_C.item() == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 2e-9), rel=1e-6)
    assert found.grad_CV[0].tolist() == pytest.approx([0.5, -0.25, -0.25], abs=1e-6)


def test_a_top_k_gradient_is_nothing_outside_the_support_when_the_rest_does_not_count() -> None:
    student_NV, teacher_NV, response_N = random_logits(ODD)
    outside_NV = teacher_NV < teacher_NV.topk(3).values[:, -1:]
    for name in TOP_K_NAMES:
        grad_NV = score(Objective(name, top_k=3), student_NV, teacher_NV, response_N).grad_CV
        assert not grad_NV[outside_NV].any()
        assert (grad_NV[~outside_NV] != 0).all()


@pytest.mark.parametrize(("end", "kl"), [(0, FORWARD), (1, REVERSE)], ids=["forward", "reverse"])
def test_jsd_over_the_distance_from_an_end_tends_to_a_kl(end: int, kl: Objective) -> None:
    logits, distance = random_logits(ODD), 1e-6
    near, whole = score(Objective("jsd", beta=abs(end - distance)), *logits), score(kl, *logits)
    # The remainder is of first order in the distance, with a factor that grows with p/q.
    assert_near(near.value_C / distance, whole.value_C, 1e-4)
    assert_near(near.grad_CV / distance, whole.grad_CV, 1e-3)


@pytest.mark.parametrize(("beta", "kl"), [(0.0, FORWARD), (1.0, REVERSE)], ids=["forward", "reverse"])
def test_the_ends_of_jsd_are_exactly_the_two_kls(beta: float, kl: Objective) -> None:
    logits = random_logits(ODD)
    end, whole = score(Objective("jsd", beta=beta), *logits), score(kl, *logits)
    assert end.value_C.equal(whole.value_C)
    assert end.grad_CV.equal(whole.grad_CV)


@pytest.mark.parametrize("far", [0.1, 1.0, 100.0])
def test_jsd_is_at_most_log_2_and_the_same_with_the_sides_exchanged(far: float) -> None:
    student_NV, teacher_NV, response_N = random_logits(EVEN)
    student_NV, teacher_NV = far * student_NV, far * teacher_NV
    value_N = score(Objective("jsd"), student_NV, teacher_NV, response_N).value_C
    assert_near(score(Objective("jsd"), teacher_NV, student_NV, response_N).value_C, value_N, 1e-12)
    assert (value_N > 0).all()
    assert (value_N <= LOG_2 + 1e-12).all()
    if far == 100.0:
        assert value_N.max() == pytest.approx(LOG_2, abs=1e-6), "the bound is reached"


def test_beta_weighs_the_teacher() -> None:
    student_NV, teacher_NV, response_N = random_logits(EVEN)
    one_way = score(Objective("jsd", beta=0.1), student_NV, teacher_NV, response_N).value_C
    assert_near(score(Objective("jsd", beta=0.9), teacher_NV, student_NV, response_N).value_C, one_way, 1e-12)


@of_each(PLAIN)
def test_an_infinite_bound_is_no_bound(objective: Objective) -> None:
    logits = random_logits(ODD)
    without = score(objective, *logits)
    bounded = score(replace(objective, clip_entry=math.inf, clip_position=math.inf), *logits)
    assert bounded.value_C.equal(without.value_C)
    assert bounded.grad_CV.equal(without.grad_CV)
    assert not bounded.clipped_C.any()
    assert not without.clipped_C.any()


@of_each(PLAIN)
def test_a_bound_of_zero_on_the_entries_kills_what_is_positive(objective: Objective) -> None:
    logits = random_logits(ODD)
    killing = replace(objective, clip_entry=0.0)
    found = score(killing, *logits)
    assert (found.value_C <= 0).all()
    assert_same(found, naive_scores(killing, *logits), 1e-10)


@of_each([FORWARD, REVERSE, Objective("jsd"), Objective("sampled", estimator="k3")])
def test_a_bound_of_zero_on_the_position_kills_a_divergence(objective: Objective) -> None:
    found = score(replace(objective, clip_position=0.0), *random_logits(ODD))
    assert not found.value_C.any()
    assert not found.grad_CV.any()
    assert found.clipped_C.all()


def test_a_bound_is_not_passed_by_what_is_just_as_large() -> None:
    logits = random_logits((1, 57))
    whole = score(FORWARD, *logits)
    at_the_value = score(replace(FORWARD, clip_position=whole.value_C.item()), *logits)
    assert not at_the_value.clipped_C.any()
    assert at_the_value.grad_CV.equal(whole.grad_CV)


def test_an_entropy_threshold_out_of_reach_leaves_the_reverse_kl() -> None:
    logits = random_logits(ODD)
    assert_same(score(Objective("entropy-gated", entropy_threshold=math.inf), *logits), score(REVERSE, *logits))


def test_an_entropy_threshold_below_all_adds_the_forward_kl_everywhere() -> None:
    logits = random_logits(ODD)
    forward, reverse = score(FORWARD, *logits), score(REVERSE, *logits)
    both = Scores(forward.value_C + reverse.value_C, forward.clipped_C, forward.grad_CV + reverse.grad_CV)
    assert_same(score(Objective("entropy-gated", entropy_threshold=-1.0), *logits), both)


def pulls_into_the_support(objective: Objective) -> bool:
    return objective.name == "forward-kl-topk" and objective.top_k_mode == "stop-gradient"


@of_each([x for x in PLAIN + CLIPPED if x.vanishes(correct=False) and not pulls_into_the_support(x)])
def test_teacher_and_student_alike_give_exactly_nothing_in_float32(objective: Objective) -> None:
    student_NV, _, response_N = random_logits(ODD)
    found = score(objective, student_NV.float(), student_NV.float(), response_N)
    assert not found.value_C.any()
    assert not found.clipped_C.any()
    assert not found.grad_CV.any(), f"off by {found.grad_CV.abs().max()}"


@pytest.mark.parametrize("k", [1, 8])
def test_a_forward_top_k_with_held_weights_pulls_into_the_support_even_when_both_are_alike(k: int) -> None:
    student_NV, _, response_N = random_logits(ODD)
    objective = Objective("forward-kl-topk", top_k=k, top_k_mode="stop-gradient")
    found = score(objective, student_NV, student_NV, response_N)
    inside_NV = student_NV >= student_NV.topk(k).values[:, -1:]
    assert not found.value_C.any()
    assert (found.grad_CV[inside_NV] < 0).all()
    assert (found.grad_CV[~inside_NV] > 0).all()


@pytest.mark.parametrize("same", [True, False], ids=["teacher=student", "apart"])
def test_held_weights_leave_out_what_drives_mass_from_the_support(same: bool) -> None:
    """The plain truncated sum has one more term in its gradient, that of the support's own mass."""
    student_NV, teacher_NV, response_N = random_logits(ODD)
    teacher_NV = student_NV.clone() if same else teacher_NV
    student_NV.requires_grad_()
    ids_NK = teacher_NV.argsort(-1, descending=True)[:, :8]
    p_NK, q_NK = (x.softmax(-1).gather(-1, ids_NK) for x in (student_NV, teacher_NV))

    def gradient(x_NK: Tensor) -> Tensor:
        return torch.autograd.grad(x_NK.sum(), student_NV, retain_graph=True)[0]

    held_NV = gradient((p_NK * (p_NK / q_NK).log()).detach() * p_NK.log())
    plain_NV, mass_NV = gradient(p_NK * (p_NK / q_NK).log()), gradient(p_NK)
    objective = Objective("reverse-kl-topk", top_k=8, top_k_mode="stop-gradient")
    found_NV = score(objective, student_NV.detach(), teacher_NV, response_N).grad_CV
    assert_near(found_NV, held_NV, 1e-12)
    assert_near(plain_NV - found_NV, mass_NV, 1e-12)
    assert (mass_NV.gather(-1, ids_NK) > 0).all(), "going down it takes mass from every token of the support"


@of_each(PLAIN + CLIPPED)
def test_a_gradient_moves_no_constant(objective: Objective) -> None:
    """The softmax ignores a constant on all logits, so every gradient sums to zero."""
    grad_NV = score(objective, *random_logits(EVEN)).grad_CV
    assert (grad_NV.sum(-1).abs() <= 1e-12 * (1 + grad_NV.abs().sum(-1))).all()


@of_each(PLAIN + CLIPPED)
def test_the_distributions_are_left_as_they_are(objective: Objective) -> None:
    student_NV, teacher_NV, response_N = random_logits(ODD)
    p, q = Distribution.of_logits(student_NV), Distribution.of_logits(teacher_NV)
    first = objective(p, q, response_N)
    again = objective(p, q, response_N)
    assert first.value_C.equal(again.value_C)
    assert first.grad_CV.equal(again.grad_CV)
    fresh = (*Distribution.of_logits(student_NV), *Distribution.of_logits(teacher_NV))
    for used, untouched in zip((*p, *q), fresh, strict=True):
        assert used.equal(untouched)


@of_each(PLAIN)
def test_positions_do_not_see_each_other(objective: Objective) -> None:
    logits = random_logits(ODD)
    together, alone = score(objective, *logits), score(objective, *(x[6:7] for x in logits))
    assert_near(together.value_C[6:7], alone.value_C, 1e-12)
    assert_near(together.grad_CV[6:7], alone.grad_CV, 1e-12)


# Rows with an objective of their own


@of_each(ROUTED)
def test_a_position_of_a_correct_row_has_the_other_objective(objective: Objective) -> None:
    student_NV, teacher_NV, response_N = random_logits(ODD)
    correct_N = torch.arange(len(response_N)) % 3 == 1
    p, q = Distribution.of_logits(student_NV), Distribution.of_logits(teacher_NV)
    right = replace(objective, name=objective.of_correct, of_correct=None)
    whole = {False: replace(objective, of_correct=None), True: right}
    expected = {is_right: naive_scores(each, student_NV, teacher_NV, response_N) for is_right, each in whole.items()}
    for chosen_N in (correct_N, torch.ones_like(correct_N), torch.zeros_like(correct_N)):
        found = objective(p, q, response_N, chosen_N)
        for is_right, scores in expected.items():
            at = chosen_N == is_right
            assert_near(found.value_C[at], scores.value_C[at], 1e-10) if at.any() else None
            assert_near(found.grad_CV[at], scores.grad_CV[at], 1e-10) if at.any() else None
            assert found.clipped_C[at].equal(scores.clipped_C[at])


def test_a_likelihood_does_not_vanish_where_student_and_teacher_agree() -> None:
    student_NV, _, response_N = random_logits(ODD)
    found = score(Objective("likelihood"), student_NV, student_NV, response_N)
    assert found.value_C.equal(-student_NV.log_softmax(-1).gather(-1, response_N[:, None])[:, 0])
    routed = Objective("sampled", of_correct="likelihood")
    assert [routed.vanishes(correct) for correct in (False, True)] == [True, False]
    assert not Objective("likelihood").vanishes(correct=False)


# In expectation over y ~ p: every token of the vocabulary once, weighed by its probability.


def expectation(estimator: Estimator, student_V: Tensor, teacher_V: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[value] (1,) and E[gradient] (1, V)."""
    everything_V = torch.arange(len(student_V))
    rows = (x.expand(len(everything_V), -1) for x in (student_V, teacher_V))
    found = score(Objective("sampled", estimator=estimator), *rows, everything_V)
    p_1V = student_V.softmax(-1)[None]
    return p_1V @ found.value_C, p_1V @ found.grad_CV


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [("k1", REVERSE, REVERSE), ("k2", None, REVERSE), ("k3", REVERSE, FORWARD)],
    ids=ESTIMATORS,
)
def test_what_an_estimator_is_in_expectation(
    estimator: Estimator, value: Objective | None, gradient: Objective, seed: int
) -> None:
    logits = random_logits((1, 57), seed)
    mean_value, mean_grad_1V = expectation(estimator, logits[0][0], logits[1][0])
    assert_near(mean_grad_1V, score(gradient, *logits).grad_CV, 1e-12)
    if value is not None:
        assert_near(mean_value, score(value, *logits).value_C, 1e-12)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_squared_and_the_corrected_estimate_are_never_negative(estimator: Estimator) -> None:
    found = score(Objective("sampled", estimator=estimator), *random_logits(EVEN))
    assert (found.value_C > 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_estimate_only_looks_at_the_token_that_stands_there(estimator: Estimator) -> None:
    student_NV, teacher_NV, response_N = random_logits(EVEN)
    scores = [
        score(Objective("sampled", estimator=estimator), student_NV, teacher_NV, response)
        for response in (response_N, (response_N + 1) % 64)
    ]
    assert (scores[0].value_C != scores[1].value_C).all()


def choices(annotation: object) -> set[str]:
    """Return all strings in a type: those of a Literal, which may stand beside None."""
    if isinstance(annotation, str):
        return {annotation}
    return {choice for part in get_args(annotation) for choice in choices(part)}


def test_the_command_offers_every_objective_with_every_mode_and_estimator() -> None:
    offered = {name: choices(field.annotation) for name, field in DistillConfig.model_fields.items()}
    assert offered["objective"] == set(OBJECTIVES)
    assert offered["top_k_mode"] == set(MODES)
    assert offered["estimator"] == set(ESTIMATORS)


def test_every_option_of_an_objective_is_one_of_the_command_and_names_objectives_that_exist() -> None:
    own = {field.name: field.metadata["of"] for field in fields(Objective) if field.metadata}
    assert own.keys() <= DistillConfig.model_fields.keys()
    assert {name for of in own.values() for name in of} <= set(OBJECTIVES)
    for name in own:
        assert all(reader in DistillConfig.model_fields[name].description for reader in own[name])
