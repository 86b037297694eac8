"""Forward KL in chunks: against a plain reference, by hand, and what it may hold in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trd_cli.training.loss import CHUNK, forward_kl

# N tokens, V vocabulary, D student width, E teacher width.
EVEN, ODD = (16, 64, 8, 8), (13, 57, 7, 11)
CHUNKS = (1, 4, 5, 16, 100)


def inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[torch.Tensor]:
    """Student states and head, teacher states and head, weights; the student's two want gradients."""
    n, v, d, e = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    weights = torch.rand(n, generator=generator) / n
    return [normal(n, d).requires_grad_(), normal(v, d).requires_grad_(), normal(n, e), normal(v, e), weights]


def reference(
    student_ND: torch.Tensor,
    head_VD: torch.Tensor,
    teacher_NE: torch.Tensor,
    teacher_head_VE: torch.Tensor,
    weights_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, KL of each position and the two gradients, in float64, by the formula."""
    student_ND, head_VD = (x.detach().double().requires_grad_() for x in (student_ND, head_VD))
    student_NV = (student_ND @ head_VD.T).log_softmax(-1)
    teacher_NV = (teacher_NE.double() @ teacher_head_VE.double().T).log_softmax(-1)
    kl_N = (teacher_NV.exp() * (teacher_NV - student_NV)).sum(-1)
    loss = (weights_N.double() * kl_N).sum()
    return loss.detach(), kl_N.detach(), *torch.autograd.grad(loss, (student_ND, head_VD))


def assert_near(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """No entry is further off than `share` of the largest one expected."""
    off = (found.double() - expected).abs().max()
    assert off <= share * expected.abs().max(), f"off by {off}"


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["float32", "bfloat16"]
)
def test_value_and_gradients_are_those_of_a_float64_reference(
    shape: tuple[int, int, int, int], chunk: int, dtype: torch.dtype, share: float
) -> None:
    arguments = inputs(shape, dtype)
    loss, kl_N = forward_kl(*arguments, chunk=chunk)
    loss.backward()
    expected_loss, expected_kl_N, grad_ND, grad_VD = reference(*arguments)
    assert_near(loss.detach(), expected_loss, share)
    assert_near(kl_N, expected_kl_N, share)
    assert_near(arguments[0].grad, grad_ND, share)
    assert_near(arguments[1].grad, grad_VD, share)
    assert loss.dtype == kl_N.dtype == torch.float32
    assert (arguments[0].grad.dtype, arguments[1].grad.dtype) == (dtype, dtype)


def test_a_float32_head_takes_gradients_in_float32_under_bfloat16_states() -> None:
    student_ND, head_VD, teacher_NE, teacher_head_VE, weights_N = inputs(ODD)
    student_ND = student_ND.detach().bfloat16().requires_grad_()
    arguments = [student_ND, head_VD, teacher_NE.bfloat16(), teacher_head_VE.bfloat16(), weights_N]
    forward_kl(*arguments)[0].backward()
    assert head_VD.grad.dtype == torch.float32
    assert_near(head_VD.grad, reference(*arguments)[3], 3e-2)


def test_two_tokens_by_hand() -> None:
    # With an identity head the states are the logits: log-probabilities, up to a constant.
    teacher_NV = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    student_NV = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    student_ND = (student_NV.log() + 3.0).requires_grad_()
    eye = torch.eye(2)
    loss, kl_N = forward_kl(student_ND, eye, teacher_NV.log() - 7.0, eye, torch.tensor([0.5, 0.25]), chunk=1)
    first = 0.5 * math.log(2.0) + 0.5 * math.log(2 / 3)
    second = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert kl_N.tolist() == pytest.approx([first, second], abs=1e-6)
    assert loss.item() == pytest.approx(0.5 * first + 0.25 * second, abs=1e-6)
    loss.backward()
    by_hand = torch.tensor(
        [[0.5 * (0.25 - 0.5), 0.5 * (0.75 - 0.5)], [0.25 * (0.5 - 0.9), 0.25 * (0.5 - 0.1)]]
    )
    torch.testing.assert_close(student_ND.grad, by_hand, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_teacher_and_student_alike_give_exactly_nothing(dtype: torch.dtype) -> None:
    student_ND, head_VD, _, _, weights_N = inputs(ODD, dtype)
    loss, kl_N = forward_kl(student_ND, head_VD, student_ND.detach(), head_VD.detach(), weights_N, chunk=5)
    loss.backward()
    assert loss.item() == 0
    assert not kl_N.any()
    assert not student_ND.grad.any()
    assert not head_VD.grad.any()


def test_kl_is_never_negative_and_grows_with_the_distance() -> None:
    student_ND, head_VD, _, _, weights_N = inputs(EVEN)
    losses = []
    for far in (0.0, 0.1, 0.3, 1.0):
        teacher_ND = student_ND.detach() + far * torch.randn(
            student_ND.shape, generator=torch.Generator().manual_seed(1)
        )
        loss, kl_N = forward_kl(student_ND, head_VD, teacher_ND, head_VD.detach(), weights_N)
        assert (kl_N > -1e-6).all()
        losses.append(loss.item())
    assert losses == sorted(losses)
    assert losses[1] > 0


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    student_ND, head_VD, *rest = inputs(EVEN, seed=3)
    forward_kl(student_ND, head_VD, *rest, chunk=5)[0].backward()
    generator = torch.Generator().manual_seed(4)
    for place in (0, 1):
        moved = (student_ND, head_VD)[place]
        for _ in range(5):
            direction = torch.randn(moved.shape, generator=generator)
            direction /= direction.norm()
            sides = []
            for step in (1e-2, -1e-2):
                arguments = [student_ND.detach(), head_VD.detach()]
                arguments[place] = arguments[place] + step * direction
                sides.append(forward_kl(*arguments, *rest, chunk=5)[0].item())
            slope = (sides[0] - sides[1]) / 2e-2
            assert (moved.grad * direction).sum().item() == pytest.approx(slope, abs=2e-4, rel=2e-3)


@pytest.mark.parametrize(("student_length", "teacher_length"), [(57, 64), (64, 57)])
def test_heads_of_different_length_are_cut_to_the_shorter(student_length: int, teacher_length: int) -> None:
    student_ND, head_VD, teacher_NE, teacher_head_VE, weights_N = inputs((16, 64, 8, 8))
    head_VD = head_VD.detach()[:student_length].clone().requires_grad_()
    teacher_head_VE = teacher_head_VE[:teacher_length]
    loss, _ = forward_kl(student_ND, head_VD, teacher_NE, teacher_head_VE, weights_N, chunk=5)
    loss.backward()
    expected, _, grad_ND, grad_VD = reference(
        student_ND, head_VD[:57], teacher_NE, teacher_head_VE[:57], weights_N
    )
    assert_near(loss.detach(), expected, 1e-5)
    assert_near(student_ND.grad, grad_ND, 1e-5)
    assert_near(head_VD.grad[:57], grad_VD, 1e-5)
    assert head_VD.grad.shape == head_VD.shape
    assert not head_VD.grad[57:].any()


def test_each_position_counts_by_its_weight() -> None:
    student_ND, head_VD, teacher_NE, teacher_head_VE, _ = inputs(ODD)
    weights_N = torch.zeros(13)
    weights_N[4], weights_N[9] = 2.0, 0.5
    loss, kl_N = forward_kl(student_ND, head_VD, teacher_NE, teacher_head_VE, weights_N, chunk=5)
    assert loss.item() == pytest.approx((2.0 * kl_N[4] + 0.5 * kl_N[9]).item(), rel=1e-6)
    loss.backward()
    touched = student_ND.grad.abs().sum(-1).nonzero()[:, 0]
    assert touched.tolist() == [4, 9]


def test_a_factor_on_the_loss_is_one_on_the_gradients() -> None:
    once, thrice = inputs(ODD), inputs(ODD)
    forward_kl(*once)[0].backward()
    (3 * forward_kl(*thrice)[0]).backward()
    for place in (0, 1):
        torch.testing.assert_close(thrice[place].grad, 3 * once[place].grad)


def test_the_teacher_and_the_weights_get_no_gradient() -> None:
    arguments = inputs(EVEN)
    for i in (2, 3, 4):
        arguments[i].requires_grad_()
    loss, kl_N = forward_kl(*arguments)
    loss.backward()
    assert [x.grad is not None for x in arguments] == [True, True, False, False, False]
    assert not kl_N.requires_grad


def test_logits_of_any_size_stay_finite() -> None:
    student_ND, head_VD, teacher_NE, teacher_head_VE, weights_N = inputs(EVEN)
    student_ND = (1e3 * student_ND.detach()).requires_grad_()
    loss, _ = forward_kl(student_ND, head_VD, 1e3 * teacher_NE, teacher_head_VE, weights_N)
    loss.backward()
    assert loss.isfinite()
    assert student_ND.grad.isfinite().all()
    assert head_VD.grad.isfinite().all()


def test_the_inputs_are_left_as_they_are() -> None:
    arguments, fresh = inputs(ODD), inputs(ODD)
    forward_kl(*arguments, chunk=4)[0].backward()
    for used, untouched in zip(arguments, fresh, strict=True):
        assert used.equal(untouched)


class Largest(TorchDispatchMode):
    """Remembers the largest number of elements any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def largest_tensor(n: int, chunk: int) -> int:
    arguments = inputs((n, 500, 8, 8))
    with Largest() as largest:
        forward_kl(*arguments, chunk=chunk)[0].backward()
    return largest.elements


@pytest.mark.parametrize(("n", "chunk"), [(1000, 32), (1000, 17), (240, 1), (3000, 60)])
def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_states_or_the_head(n: int, chunk: int) -> None:
    assert largest_tensor(n, chunk) == max(chunk * 500, n * 8, 500 * 8)


def test_the_default_chunk_is_small_beside_a_training_batch() -> None:
    assert CHUNK <= 1024
    assert largest_tensor(5000, CHUNK) == CHUNK * 500
