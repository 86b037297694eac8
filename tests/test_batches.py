"""Batches: both sides score the same response tokens, and the mean is over tokens, then over rows."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from tiny import VOCABULARY, build_model, reference_model

from trd_cli.training.batches import Batch, Example, Side, collate, micro_batches, steps
from trd_cli.training.trainer import DistillStep, head_of, response_states


def random_examples(count: int, seed: int = 0) -> list[Example]:
    """Rows whose two prompts differ in length and whose ids are not those of the padding."""
    chance = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [chance.randrange(4, VOCABULARY) for _ in range(chance.randrange(low, high))]

    return [Example(f"row {i}", ids(1, 20), ids(1, 60), ids(1, 25)) for i in range(count)]


LONG_AND_SHORT = [
    Example("long", [11, 12], [21, 22, 23, 24], [31, 32, 33, 34]),
    Example("short", [13], [25], [41]),
]


def test_one_long_and_one_short_trajectory_by_hand() -> None:
    batch = collate(LONG_AND_SHORT, trajectories=2)
    # The last response token is never read; what is shorter is padded on the right.
    assert batch.student.ids_BL.tolist() == [[11, 12, 31, 32, 33], [13, 0, 0, 0, 0]]
    assert batch.teacher.ids_BL.tolist() == [[21, 22, 23, 24, 31, 32, 33], [25, 0, 0, 0, 0, 0, 0]]
    assert batch.student.places_N.tolist() == [1, 2, 3, 4, 5]
    assert batch.teacher.places_N.tolist() == [3, 4, 5, 6, 7]
    assert batch.response_N.tolist() == [31, 32, 33, 34, 41]
    assert batch.weights_N.tolist() == [0.125, 0.125, 0.125, 0.125, 0.5]


def read_after(
    side: Side, prompts: list[list[int]], responses: list[list[int]]
) -> list[tuple[list[int], int]]:
    """For each place, all ids its model has read up to there, and the response token that comes next."""
    length = side.ids_BL.shape[1]
    found = []
    for place in side.places_N.tolist():
        row, column = divmod(place, length)
        position = column - len(prompts[row]) + 1
        found.append((side.ids_BL[row, : column + 1].tolist(), responses[row][position]))
    return found


def test_position_by_position_both_sides_score_the_same_response_token() -> None:
    examples = random_examples(9)
    batch = collate(examples, trajectories=9)
    responses = [list(e.response) for e in examples]
    for side, prompts in (
        (batch.student, [list(e.student_prompt) for e in examples]),
        (batch.teacher, [list(e.teacher_prompt) for e in examples]),
    ):
        expected = [
            ([*prompt, *response[:t]], response[t])
            for prompt, response in zip(prompts, responses, strict=True)
            for t in range(len(response))
        ]
        assert read_after(side, prompts, responses) == expected
        assert [token for _, token in expected] == batch.response_N.tolist()


def test_the_weights_are_the_mean_over_tokens_then_over_rows() -> None:
    examples = random_examples(7)
    batch = collate(examples, trajectories=7)
    values_N = torch.rand(len(batch.response_N), generator=torch.Generator().manual_seed(0))
    row_means = [values.mean() for values in values_N.split([len(e.response) for e in examples])]
    torch.testing.assert_close((batch.weights_N * values_N).sum(), torch.stack(row_means).mean())
    assert batch.weights_N.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_micro_batches_hold_each_row_of_a_step_once_and_their_weights_sum_to_one(size: int) -> None:
    examples = random_examples(11)
    batches = list(micro_batches(examples, size))
    assert [len(b.student.ids_BL) for b in batches] == [size] * (11 // size) + [11 % size] * (11 % size > 0)
    assert Counter(i for b in batches for i in b.response_N.tolist()) == Counter(
        i for e in examples for i in e.response
    )
    assert sum(b.weights_N.sum().item() for b in batches) == pytest.approx(1.0)


def test_micro_batches_are_of_rows_of_similar_length() -> None:
    examples = [Example(str(n), [5] * n, [5], [6]) for n in (30, 2, 31, 3, 32, 1)]
    assert [b.student.ids_BL.shape[1] for b in micro_batches(examples, 3)] == [3, 32]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A student and a teacher."""
    return tuple(reference_model(build_model(tmp_path_factory.mktemp("model"), seed=seed)) for seed in (0, 1))


def test_padding_and_neighbours_change_no_hidden_state(
    models: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    examples = random_examples(6)
    together = response_states(models[0], collate(examples, 6).student)
    alone = torch.cat([response_states(models[0], collate([e], 6).student) for e in examples])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_states_predict_the_response_as_the_whole_model_does(
    models: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    examples = random_examples(4)
    batch = collate(examples, 4)
    logits_NV = response_states(models[0], batch.student) @ head_of(models[0]).T
    expected = []
    for e in examples:
        whole = torch.tensor([[*e.student_prompt, *e.response]])
        expected.append(models[0](whole).logits[0, len(e.student_prompt) - 1 : -1])
    torch.testing.assert_close(logits_NV, torch.cat(expected), atol=1e-4, rtol=1e-4)


def gradient(
    models: tuple[torch.nn.Module, torch.nn.Module], batches: list[Batch]
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of all the student's weights, summed over the batches."""
    student, teacher = models
    student.zero_grad()
    step, total = DistillStep(student, torch.float32), 0.0
    for batch in batches:
        with torch.no_grad():
            teacher_NE = response_states(teacher, batch.teacher)
        loss, _ = step(batch, teacher_NE, head_of(teacher))
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in student.parameters()])


def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
    models: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    examples = random_examples(11)
    whole_loss, whole = gradient(models, list(micro_batches(examples, 11)))
    assert whole.norm() > 0.1
    for size in (1, 2, 5):
        loss, cut = gradient(models, list(micro_batches(examples, size)))
        assert loss == pytest.approx(whole_loss, rel=1e-5)
        torch.testing.assert_close(cut, whole, atol=2e-6, rtol=1e-4)


def test_the_loss_of_a_step_is_the_mean_of_its_rows_losses(
    models: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    examples = random_examples(5)
    alone = [gradient(models, [collate([e], trajectories=1)])[0] for e in examples]
    assert gradient(models, [collate(examples, 5)])[0] == pytest.approx(sum(alone) / 5, rel=1e-5)


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (100, [10]), (1, [1] * 10)])
def test_every_epoch_has_each_row_once(batch_size: int, sizes: list[int]) -> None:
    examples = random_examples(10)
    made = list(steps(examples, batch_size, epochs=3, seed=0))
    assert [len(step) for step in made] == sizes * 3
    for epoch in range(3):
        ids = [e.trajectory_id for step in made[epoch * len(sizes) : (epoch + 1) * len(sizes)] for e in step]
        assert sorted(ids) == sorted(e.trajectory_id for e in examples)


def order(seed: int, epochs: int = 1) -> list[str]:
    return [e.trajectory_id for step in steps(random_examples(30), 4, epochs, seed) for e in step]


def test_the_order_depends_on_the_seed_and_on_the_epoch_alone() -> None:
    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)
    two = order(seed=1, epochs=2)
    assert two[:30] == order(seed=1)
    assert two[:30] != two[30:]
