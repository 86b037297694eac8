"""Divergences in chunks: against a plain reference, by hand, each figure, and the memory they take."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from test_objectives import FORWARD, REVERSE, label, naive
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trd_cli.losses.fused import CHUNK, Figures, fused_divergence
from trd_cli.losses.objectives import OBJECTIVES, Objective

# N tokens, V vocabulary, D student width, E teacher width.
Shape = tuple[int, int, int, int]
EVEN, ODD = (16, 64, 8, 8), (13, 57, 7, 11)
CHUNKS = (1, 4, 5, 16, 100)

SMOOTH = [FORWARD, REVERSE, Objective("jsd", beta=0.3)]
SEVERAL = [
    *SMOOTH,
    Objective("entropy-gated", entropy_threshold=1.0),
    Objective("forward-kl-topk", top_k=8),
    Objective("forward-kl-topk", top_k=8, top_k_mode="tail", clip_entry=0.5),
    Objective("reverse-kl-topk", top_k=3, top_k_mode="tail"),
    Objective("reverse-kl-topk", top_k=8, top_k_mode="stop-gradient"),
    Objective("reverse-kl", clip_position=6.0),
    Objective("sampled", estimator="k1"),
    Objective("sampled", estimator="k3", clip_entry=4.0),
    Objective("likelihood"),
]

of_each_smooth = pytest.mark.parametrize("objective", SMOOTH, ids=label)
of_several = pytest.mark.parametrize("objective", SEVERAL, ids=label)


class Inputs(NamedTuple):
    """The tensors that `fused_divergence` takes, in its order."""

    student_ND: Tensor
    head_VD: Tensor
    teacher_NE: Tensor
    teacher_head_VE: Tensor
    response_N: Tensor
    weights_N: Tensor


def inputs(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    """Return states and head of both sides, tokens and weights; the student's states and head want gradients."""
    n, v, d, e = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    weights_N = torch.rand(n, generator=generator) / n
    response_N = torch.randint(v, (n,), generator=generator)
    student = normal(n, d).requires_grad_(), normal(v, d).requires_grad_()
    return Inputs(*student, normal(n, e), normal(v, e), response_N, weights_N)


class Outcome(NamedTuple):
    """Everything that training reads."""

    loss: Tensor
    value_N: Tensor
    grad_ND: Tensor
    grad_VD: Tensor


def fused(given: Inputs, objective: Objective, temperature: float = 1.0, chunk: int = CHUNK) -> Outcome:
    student_ND, head_VD = (x.detach().clone().requires_grad_() for x in given[:2])
    loss, figures = fused_divergence(student_ND, head_VD, *given[2:], objective, temperature=temperature, chunk=chunk)
    loss.backward()
    return Outcome(loss.detach(), figures.divergence, student_ND.grad, head_VD.grad)


def reference(given: Inputs, objective: Objective, temperature: float = 1.0) -> Outcome:
    """Return the same in float64, by the formula and with plain autograd."""
    student_ND, head_VD = (x.detach().double().requires_grad_() for x in given[:2])
    student_NV = student_ND @ head_VD.T / temperature
    teacher_NV = given.teacher_NE.double() @ given.teacher_head_VE.double().T / temperature
    value_N, _ = naive(objective, student_NV, teacher_NV, given.response_N)
    loss = (given.weights_N.double() * value_N).sum()
    return Outcome(loss.detach(), value_N.detach(), *torch.autograd.grad(loss, (student_ND, head_VD)))


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    """Assert that no entry is further off than `share` of the largest expected one."""
    assert found.shape == expected.shape
    off = (found.double() - expected).abs().max()
    assert off <= share * expected.abs().max(), f"off by {off}"


def assert_all_near(found: Outcome, expected: Outcome, share: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, share)


# Rounding to bfloat16 may change the top K and the clipped entries, so only smooth objectives are compared.
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize(
    ("objective", "dtype", "share"),
    [
        *((objective, torch.float64, 1e-10) for objective in SEVERAL),
        *((objective, torch.float32, 1e-5) for objective in SEVERAL),
        *((objective, torch.bfloat16, 3e-2) for objective in SMOOTH),
    ],
    ids=lambda value: label(value) if isinstance(value, Objective) else str(value),
)
def test_value_and_gradients_are_those_of_a_float64_reference(
    objective: Objective, shape: Shape, chunk: int, dtype: torch.dtype, share: float
) -> None:
    given = inputs(shape, dtype)
    found = fused(given, objective, chunk=chunk)
    assert_all_near(found, reference(given, objective), share)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.loss.dtype == found.value_N.dtype == exact
    assert found.grad_ND.dtype == found.grad_VD.dtype == dtype


@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
@of_several
def test_a_temperature_divides_the_logits_of_both_sides(objective: Objective, shape: Shape, temperature: float) -> None:
    given = inputs(shape)
    found = fused(given, objective, temperature=temperature, chunk=5)
    assert_all_near(found, reference(given, objective, temperature), 1e-5)
    assert (found.value_N - fused(given, objective, chunk=5).value_N).abs().max() > 1e-3


@of_several
def test_a_temperature_is_as_good_as_smaller_states(objective: Objective) -> None:
    given = inputs(ODD)
    halved = given._replace(student_ND=given.student_ND / 2, teacher_NE=given.teacher_NE / 2)
    found, expected = fused(given, objective, temperature=2.0), fused(halved, objective)
    assert_near(found.loss, expected.loss, 1e-6)
    assert_near(found.grad_ND, expected.grad_ND / 2, 1e-6)
    assert_near(found.grad_VD, expected.grad_VD, 1e-6)


@pytest.mark.parametrize("chunk", CHUNKS[:-1])
@of_several
def test_nothing_depends_on_the_chunk(objective: Objective, chunk: int) -> None:
    given = inputs(ODD, torch.float64)
    assert_all_near(fused(given, objective, chunk=chunk), fused(given, objective, chunk=100), 1e-13)


@pytest.mark.parametrize("chunk", [9, 7, 4])
@pytest.mark.parametrize(
    "objective", [FORWARD, Objective("reverse-kl-topk", top_k=8, top_k_mode="tail"), SEVERAL[-1]], ids=label
)
def test_a_large_vocabulary_is_worked_on_a_few_rows_at_a_time_with_the_same_outcome(
    objective: Objective, chunk: int
) -> None:
    given = inputs((9, 70_000, 4, 4), torch.float64)
    found = fused(given, objective, chunk=chunk)
    assert_all_near(found, reference(given, objective), 1e-10)
    assert_all_near(found, fused(given, objective, chunk=1), 1e-11)


def test_a_float32_head_takes_gradients_in_float32_under_bfloat16_states() -> None:
    given = inputs(ODD)
    given = given._replace(
        student_ND=given.student_ND.detach().bfloat16(),
        teacher_NE=given.teacher_NE.bfloat16(),
        teacher_head_VE=given.teacher_head_VE.bfloat16(),
    )
    found = fused(given, FORWARD)
    assert found.grad_ND.dtype == torch.bfloat16
    assert found.grad_VD.dtype == torch.float32
    assert_near(found.grad_VD, reference(given, FORWARD).grad_VD, 3e-2)


def test_a_bfloat16_head_sums_its_gradient_up_in_float32() -> None:
    """2000 equal terms: bfloat16, with 8 bits, would stop at the 256th."""
    n = 2000
    eye = torch.eye(2, dtype=torch.bfloat16)
    student_ND = torch.zeros(n, 2, dtype=torch.bfloat16)
    student_ND[:, 0] = 1.0
    given = Inputs(student_ND, 0 * eye, 0 * student_ND, eye, torch.zeros(n).long(), torch.ones(n))
    # A head of zeros makes p = (½, ½); these states make q = (¾, ¼), up to bfloat16.
    given.teacher_NE[:, 0] = math.log(3)
    grad_VD = fused(given, FORWARD, chunk=1).grad_VD
    assert grad_VD[:, 0].tolist() == pytest.approx([-0.25 * n, 0.25 * n], rel=1e-2)


def test_two_tokens_by_hand() -> None:
    # With an identity head the states are the logits: log-probabilities, up to a constant.
    teacher_NV = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    student_NV = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    student_ND = (student_NV.log() + 3.0).requires_grad_()
    eye, response_N = torch.eye(2), torch.tensor([0, 1])
    loss, figures = fused_divergence(
        student_ND, eye, teacher_NV.log() - 7.0, eye, response_N, torch.tensor([0.5, 0.25]), FORWARD, chunk=1
    )
    first = 0.5 * math.log(2.0) + 0.5 * math.log(2 / 3)
    second = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    by_hand = Figures(
        divergence=[first, second],
        clipped=[0, 0],
        student_nll=[math.log(4), math.log(2)],
        teacher_nll=[math.log(2), math.log(10)],
        student_entropy=[0.25 * math.log(4) + 0.75 * math.log(4 / 3), math.log(2)],
        teacher_entropy=[math.log(2), 0.9 * math.log(10 / 9) + 0.1 * math.log(10)],
        top1_agreement=None,  # both sides are tied somewhere
        teacher_top32_mass=[1, 1],
    )
    for name, expected in by_hand._asdict().items():
        if expected is not None:
            assert getattr(figures, name).tolist() == pytest.approx(expected, abs=1e-6), name
    assert loss.item() == pytest.approx(0.5 * first + 0.25 * second, abs=1e-6)
    loss.backward()
    gradient = torch.tensor([[0.5 * (0.25 - 0.5), 0.5 * (0.75 - 0.5)], [0.25 * (0.5 - 0.9), 0.25 * (0.5 - 0.1)]])
    torch.testing.assert_close(student_ND.grad, gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", [EVEN, ODD, (13, 20, 7, 11)], ids=["even", "odd", "V below 32"])
def test_each_figure_is_what_its_name_says(shape: Shape, chunk: int, temperature: float) -> None:
    given = inputs(shape)
    student_NV, teacher_NV = (
        states.detach().double() @ head.detach().double().T / temperature for states, head in (given[:2], given[2:4])
    )
    p_NV, q_NV = student_NV.softmax(-1), teacher_NV.softmax(-1)
    smallest_first_N = naive(REVERSE, student_NV, teacher_NV, given.response_N)[0].sort().values
    objective = Objective("reverse-kl", clip_position=smallest_first_N[6:8].mean().item())
    figures = fused_divergence(*given, objective, temperature=temperature, chunk=chunk)[1]
    value_N, clipped_N = naive(objective, student_NV, teacher_NV, given.response_N)
    token_N1 = given.response_N[:, None]
    agree_N = p_NV.argmax(-1) == q_NV.argmax(-1)
    assert clipped_N.sum() == shape[0] - 7, "the bound tells positions apart"
    expected = {
        "divergence": value_N,
        "clipped": clipped_N.double(),
        "student_nll": -p_NV.gather(-1, token_N1).log()[:, 0],
        "teacher_nll": -q_NV.gather(-1, token_N1).log()[:, 0],
        "student_entropy": -(p_NV * p_NV.log()).sum(-1),
        "teacher_entropy": -(q_NV * q_NV.log()).sum(-1),
        "top1_agreement": agree_N.double(),
    }
    for name, expected_N in expected.items():
        found_N = getattr(figures, name)
        torch.testing.assert_close(found_N.double(), expected_N, atol=2e-6, rtol=1e-5, msg=name)
    measured_N = ~figures.teacher_top32_mass.isnan()
    assert measured_N[::chunk].all()
    top_N = q_NV.sort(-1, descending=True).values[:, :32].sum(-1)
    assert_near(figures.teacher_top32_mass[measured_N], top_N[measured_N], 1e-6)
    assert {len(x) for x in figures} == {shape[0]}
    assert {x.dtype for x in figures} == {torch.float32}
    assert not any(x.requires_grad for x in figures)


def test_the_best_tokens_agree_where_the_teacher_and_the_student_choose_the_same() -> None:
    eye, ids_N = torch.eye(5), torch.tensor([0, 1, 2, 3])
    student_NV, teacher_NV = 3 * eye[ids_N], 2 * eye[torch.tensor([0, 4, 2, 4])]
    figures = fused_divergence(student_NV, eye, teacher_NV, eye, ids_N, torch.ones(4), FORWARD, chunk=3)[1]
    assert figures.top1_agreement.tolist() == [1, 0, 1, 0]


def test_only_the_first_two_figures_depend_on_the_objective() -> None:
    given = inputs(ODD)
    sets = [fused_divergence(*given, objective, chunk=5)[1] for objective in SEVERAL]
    for figures in sets[1:]:
        assert not figures.divergence.equal(sets[0].divergence)
        for one, other in zip(figures[2:], sets[0][2:], strict=True):
            assert one.nan_to_num(-1).equal(other.nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", [Objective(name) for name in OBJECTIVES if name != "likelihood"], ids=label)
def test_teacher_and_student_alike_give_exactly_nothing(objective: Objective, dtype: torch.dtype) -> None:
    given = inputs(ODD, dtype)
    found = fused(
        given._replace(teacher_NE=given.student_ND.detach(), teacher_head_VE=given.head_VD.detach()), objective, chunk=5
    )
    assert found.loss.item() == 0
    assert not found.value_N.any()
    assert not found.grad_ND.any(), f"off by {found.grad_ND.abs().max()}"
    assert not found.grad_VD.any(), f"off by {found.grad_VD.abs().max()}"


@of_each_smooth
def test_a_divergence_is_never_negative_and_grows_with_the_distance(objective: Objective) -> None:
    given = inputs(EVEN)
    away_ND = torch.randn(given.student_ND.shape, generator=torch.Generator().manual_seed(1))
    losses = []
    for far in (0.0, 0.1, 0.3, 1.0):
        teacher_ND = given.student_ND.detach() + far * away_ND
        found = fused(given._replace(teacher_NE=teacher_ND, teacher_head_VE=given.head_VD.detach()), objective)
        assert (found.value_N > -1e-6).all()
        losses.append(found.loss.item())
    assert losses == sorted(losses)
    assert losses[1] > 1e-5


@of_each_smooth
def test_the_gradient_is_the_slope_of_the_loss(objective: Objective) -> None:
    given = inputs(EVEN, seed=3)
    found = fused(given, objective, chunk=5)
    generator = torch.Generator().manual_seed(4)
    for place, gradient in ((0, found.grad_ND), (1, found.grad_VD)):
        for _ in range(5):
            direction = torch.randn(gradient.shape, generator=generator)
            direction /= direction.norm()
            sides = []
            for step in (1e-2, -1e-2):
                moved = [x.detach() for x in given]
                moved[place] = moved[place] + step * direction
                sides.append(fused_divergence(*moved, objective, chunk=5)[0].item())
            slope = (sides[0] - sides[1]) / 2e-2
            assert (gradient * direction).sum().item() == pytest.approx(slope, abs=2e-4, rel=2e-3)


PHANTOMS = [
    FORWARD,
    REVERSE,
    Objective("forward-kl-topk", top_k=3, top_k_mode="tail"),
    Objective("reverse-kl-topk", top_k=100),
    Objective("sampled", estimator="k2"),
]


@pytest.mark.parametrize("huge", [1.0, 1e4], ids=["plain", "huge"])
@pytest.mark.parametrize(("student_length", "teacher_length"), [(57, 64), (64, 57)])
@pytest.mark.parametrize("objective", PHANTOMS, ids=label)
def test_ids_beyond_the_shorter_head_get_no_probability_and_no_gradient(
    objective: Objective, student_length: int, teacher_length: int, huge: float
) -> None:
    given = inputs((16, 64, 8, 11))
    given.head_VD.data[57:] *= huge
    given.teacher_head_VE[57:] *= huge
    given = given._replace(
        head_VD=given.head_VD.detach()[:student_length],
        teacher_head_VE=given.teacher_head_VE[:teacher_length],
        response_N=given.response_N % 57,
    )
    cut = given._replace(head_VD=given.head_VD[:57], teacher_head_VE=given.teacher_head_VE[:57])
    found, expected = fused(given, objective, chunk=5), fused(cut, objective, chunk=5)
    assert found.grad_VD.shape == given.head_VD.shape
    assert not found.grad_VD[57:].any()
    assert_all_near(found._replace(grad_VD=found.grad_VD[:57]), expected, 1e-6)
    if objective.top_k < 57:
        assert_all_near(expected, reference(cut, objective), 1e-5)
    for one, other in zip(fused_divergence(*given, objective)[1], fused_divergence(*cut, objective)[1], strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@of_several
@pytest.mark.parametrize(("d", "e"), [(5, 12), (12, 5)])
def test_the_two_sides_may_differ_in_width(objective: Objective, d: int, e: int) -> None:
    given = inputs((16, 57, d, e))
    assert_all_near(fused(given, objective, chunk=5), reference(given, objective), 1e-5)


def test_each_position_counts_by_its_weight() -> None:
    given = inputs(ODD)
    weights_N = torch.zeros(13)
    weights_N[4], weights_N[9] = 2.0, 0.5
    found = fused(given._replace(weights_N=weights_N), FORWARD, chunk=5)
    assert found.loss.item() == pytest.approx((2.0 * found.value_N[4] + 0.5 * found.value_N[9]).item(), rel=1e-6)
    touched = found.grad_ND.abs().sum(-1).nonzero()[:, 0]
    assert touched.tolist() == [4, 9]


@of_several
def test_positions_of_weight_zero_contribute_nothing(objective: Objective) -> None:
    given = inputs(ODD)
    kept_N = torch.arange(13) % 3 != 1
    zeroed = given._replace(weights_N=given.weights_N * kept_N)
    left_out = Inputs(
        given.student_ND[kept_N],
        given.head_VD,
        given.teacher_NE[kept_N],
        given.teacher_head_VE,
        given.response_N[kept_N],
        given.weights_N[kept_N],
    )
    found, expected = fused(zeroed, objective, chunk=5), fused(left_out, objective, chunk=5)
    assert_near(found.loss, expected.loss, 1e-6)
    assert_near(found.grad_VD, expected.grad_VD, 1e-6)
    assert_near(found.grad_ND[kept_N], expected.grad_ND, 1e-6)
    assert not found.grad_ND[~kept_N].any()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("main", ["sampled", "reverse-kl"])
def test_correct_rows_have_the_gradient_of_their_own_objective(main: str, shape: Shape, chunk: int) -> None:
    """Against plain autograd on all logits, and with every chunk: chunks may hold rows of both kinds."""
    given = inputs(shape, torch.float64)
    correct_N = torch.arange(shape[0]) // 3 % 2 == 1
    student_ND, head_VD = (x.detach().clone().requires_grad_() for x in given[:2])
    routed = Objective(main, of_correct="likelihood")
    loss, figures = fused_divergence(student_ND, head_VD, *given[2:], routed, chunk=chunk, correct_N=correct_N)
    loss.backward()
    parts = [
        reference(given._replace(weights_N=given.weights_N * at), Objective(name))
        for name, at in ((main, ~correct_N), ("likelihood", correct_N))
    ]
    assert loss.item() == pytest.approx(sum(part.loss.item() for part in parts), rel=1e-12)
    assert_near(student_ND.grad, parts[0].grad_ND + parts[1].grad_ND, 1e-10)
    assert_near(head_VD.grad, parts[0].grad_VD + parts[1].grad_VD, 1e-10)
    assert_near(figures.divergence[correct_N], figures.student_nll[correct_N], 1e-12)


def test_a_factor_on_the_loss_is_one_on_the_gradients() -> None:
    once, thrice = inputs(ODD), inputs(ODD)
    fused_divergence(*once, REVERSE)[0].backward()
    (3 * fused_divergence(*thrice, REVERSE)[0]).backward()
    for place in (0, 1):
        torch.testing.assert_close(thrice[place].grad, 3 * once[place].grad)


def test_a_second_backward_of_the_head_is_refused_and_not_wrong() -> None:
    loss, _ = fused_divergence(*inputs(ODD), FORWARD)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()


def test_gradients_add_up_over_micro_batches() -> None:
    given = inputs(ODD)
    for part in (slice(0, 6), slice(6, 13)):
        rows = (given.teacher_NE[part], given.teacher_head_VE, given.response_N[part], given.weights_N[part])
        fused_divergence(given.student_ND[part], given.head_VD, *rows, REVERSE)[0].backward()
    expected = reference(given, REVERSE)
    assert_near(given.student_ND.grad, expected.grad_ND, 1e-5)
    assert_near(given.head_VD.grad, expected.grad_VD, 1e-5)


def test_the_teacher_and_the_weights_get_no_gradient() -> None:
    given = inputs(EVEN)
    for x in (given.teacher_NE, given.teacher_head_VE, given.weights_N):
        x.requires_grad_()
    loss, figures = fused_divergence(*given, FORWARD)
    loss.backward()
    assert [x.grad is not None for x in given] == [True, True, False, False, False, False]
    assert not any(x.requires_grad for x in figures)


@pytest.mark.parametrize("objective", [*SEVERAL, Objective("sampled", estimator="k2")], ids=label)
def test_logits_of_any_size_stay_finite(objective: Objective) -> None:
    given = inputs(EVEN)
    found = fused(given._replace(student_ND=1e3 * given.student_ND, teacher_NE=1e3 * given.teacher_NE), objective)
    for x in found:
        assert x.isfinite().all()


def test_the_inputs_are_left_as_they_are() -> None:
    for objective in SEVERAL:
        given, fresh = inputs(ODD), inputs(ODD)
        fused_divergence(*given, objective, temperature=0.7, chunk=4)[0].backward()
        for used, untouched in zip(given, fresh, strict=True):
            assert used.equal(untouched)


@of_several
def test_autocast_changes_nothing(objective: Objective) -> None:
    given = inputs(ODD)
    expected = fused(given, objective, chunk=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fused(given, objective, chunk=5)
    for one, other in zip(found, expected, strict=True):
        assert one.equal(other)


def test_no_tokens_are_no_loss() -> None:
    given = inputs((0, 57, 7, 11))
    found = fused(given, FORWARD)
    assert found.loss.item() == 0
    assert found.grad_ND.shape == (0, 7)
    assert not found.grad_VD.any()


class Largest(TorchDispatchMode):
    """Record the largest number of elements that any operation returned, except for views of its inputs."""

    def __init__(self, given: Inputs) -> None:
        super().__init__()
        self.elements = 0
        self.there = {x.untyped_storage().data_ptr() for x in given}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        sizes = [x.numel() for x in made if x.untyped_storage().data_ptr() not in self.there]
        self.elements = max([self.elements, *sizes])
        return result


def largest_tensor(given: Inputs, objective: Objective, chunk: int) -> int:
    with Largest(given) as largest:
        loss, _ = fused_divergence(*given, objective, chunk=chunk)
        if loss.requires_grad:
            loss.backward()
    return largest.elements


@pytest.mark.parametrize(("n", "chunk"), [(1000, 32), (1000, 17), (240, 1), (3000, 60)])
@of_several
def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_states_or_the_head(
    objective: Objective, n: int, chunk: int
) -> None:
    found = largest_tensor(inputs((n, 500, 8, 8)), objective, chunk)
    assert found == max(chunk * 500, n * 8, 500 * 8)


@pytest.mark.parametrize("objective", [Objective(name) for name in OBJECTIVES], ids=label)
def test_the_default_chunk_is_small_beside_a_training_batch(objective: Objective) -> None:
    assert CHUNK <= 1024
    assert largest_tensor(inputs((5000, 500, 8, 8)), objective, CHUNK) == CHUNK * 500


@of_several
def test_a_head_that_wants_no_gradient_costs_none_and_changes_nothing_for_the_states(objective: Objective) -> None:
    given = inputs((20, 500, 64, 8))
    expected = fused(given, objective, chunk=8)
    frozen = given._replace(head_VD=given.head_VD.detach())
    assert largest_tensor(frozen, objective, chunk=8) == 8 * 500, "the head would be 64 · 500"
    assert largest_tensor(given, objective, chunk=8) == 64 * 500, "as it is here"
    assert frozen.head_VD.grad is None
    frozen.student_ND.grad = None
    loss, figures = fused_divergence(*frozen, objective, chunk=8)
    loss.backward()
    assert loss.equal(expected.loss)
    assert figures.divergence.equal(expected.value_N)
    assert frozen.student_ND.grad.equal(expected.grad_ND)
    assert frozen.head_VD.grad is None


@of_several
def test_states_that_want_no_gradient_cost_none_and_change_nothing_for_the_head(objective: Objective) -> None:
    given = inputs((1000, 50, 64, 8))
    expected = fused(given, objective, chunk=8)
    frozen = given._replace(student_ND=given.student_ND.detach())
    assert largest_tensor(frozen, objective, chunk=8) < 64 * 1000
    assert largest_tensor(given, objective, chunk=8) == 64 * 1000
    frozen.head_VD.grad = None
    fused_divergence(*frozen, objective, chunk=8)[0].backward()
    assert frozen.student_ND.grad is None
    assert frozen.head_VD.grad.equal(expected.grad_VD)


def test_a_loss_that_nothing_wants_a_gradient_of_is_a_plain_number() -> None:
    given = inputs(ODD)
    plain = given._replace(student_ND=given.student_ND.detach(), head_VD=given.head_VD.detach())
    loss, _ = fused_divergence(*plain, FORWARD, chunk=5)
    assert not loss.requires_grad
    assert loss.equal(fused(given, FORWARD, chunk=5).loss)


def test_a_position_of_no_weight_counts_nothing_even_where_it_is_infinite() -> None:
    """k3 overflows where the teacher is likelier by 90 nats and more; such a row may only keep processes in step."""
    student_ND = torch.tensor([[100.0, 0.0, -100.0], [1.0, 0.0, 0.5]], requires_grad=True)
    eye, teacher_ND = torch.eye(3), torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.1, 0.4]])
    response_N, weights_N = torch.tensor([1, 2]), torch.tensor([0.0, 1.0])
    k3 = Objective("sampled", estimator="k3")
    loss, figures = fused_divergence(student_ND, eye, teacher_ND, eye, response_N, weights_N, k3)
    loss.backward()
    assert figures.divergence.isinf().tolist() == [True, False]
    assert loss.item() == pytest.approx(figures.divergence[1].item())
    assert student_ND.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert student_ND.grad[1].isfinite().all()
