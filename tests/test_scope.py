"""Rows routed by their verdicts and weighed by perplexities: by hand, against plain torch, resumed, and refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Trd
from support.sets import iter_rows
from support.tiny import reference_model
from test_distill import TRAIN, World, edited, log_of, refusal, world

from trd_cli.records import Trajectory
from trd_cli.training.row_weights import NAME, weights_of
from trd_cli.trajectories.shards import list_shards

__all__ = ["world"]  # the fixture, for this module too
SCOPE = (*TRAIN, "--method", "scope", "--setting", "opd", "--batch-size", 12)


def graded(verdict_of: Callable[[int], str | None]) -> Callable[[int, Trajectory], Trajectory]:
    return lambda number, row: replace(row, verdict=verdict_of(number))


@pytest.fixture(scope="module")
def rollouts(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two rollouts of each of six problems, five of the twelve correct."""
    chosen = graded(lambda number: "correct" if number in (0, 3, 4, 5, 9) else "incorrect")
    return edited(world.rollouts, tmp_path_factory.mktemp("graded") / "y_o", chosen)


# The weights


def weights_by(perplexities: list[tuple[float, float]], groups: list[int], temperature: float = 1.0) -> list[float]:
    """Return the weights of rows from the perplexities of student and teacher; an odd group is of correct rows."""
    return weights_of(np.log(perplexities), np.array(groups), temperature).tolist()


def test_the_weights_of_the_paper_s_figure() -> None:
    """Figure 2: three correct rows by the student's perplexity, three wrong ones by the teacher's."""
    rows = [(1.2, 9), (2.6, 9), (3.8, 9), (9, 4.5), (9, 2.9), (9, 1.7)]
    found = weights_by(rows, [3, 3, 3, 2, 2, 2])
    # Of three rows a group has a mean weight of one, where the paper's sum to one.
    assert [weight / 3 for weight in found] == pytest.approx([0.158, 0.342, 0.5, 0.192, 0.298, 0.51], abs=1.5e-3)


def test_the_weights_by_hand() -> None:
    # Groups: correct of problem 1; wrong of problem 1; wrong of problem 2, alone. So weights are twice the shares.
    rows, groups = [(2, 1), (4, 1), (1, 2), (1, 4), (1, 4), (7, 7)], [3, 3, 2, 2, 2, 4]
    assert weights_by(rows, groups) == pytest.approx([2 / 3, 4 / 3, 1, 0.5, 0.5, 2])
    # PPL^(1/2): 1 to √2, and √2 to 1 to 1.
    root = math.sqrt(2)
    halved = [2 / (1 + root), 2 * root / (1 + root), 2 * root / (2 + root), 2 / (2 + root), 2 / (2 + root), 2]
    assert weights_by(rows, groups, temperature=2.0) == pytest.approx(halved)
    assert np.mean(weights_by(rows, groups, temperature=0.3)) == pytest.approx(1)


def test_rows_that_are_alone_weigh_the_same_and_huge_perplexities_overflow_nothing() -> None:
    assert weights_by([(5, 7), (3, 2), (1, 9)], [2, 3, 4]) == [1, 1, 1]
    assert weights_of(
        np.array([[2000.0, 1], [2000, 1], [1, 3000], [1, 2000]]), np.array([3, 3, 2, 2]), 0.5
    ).tolist() == [
        *(1, 1),
        *(0, 2),
    ]


# Training


def test_the_first_step_is_that_of_plain_torch(world: World, rollouts: Path, ok: Trd, tmp_path: Path) -> None:
    ok("distill", rollouts, *SCOPE, "--teacher", world.teacher, "--out", tmp_path / "c")
    student, teacher = reference_model(world.student), reference_model(world.teacher)
    rows = sorted(iter_rows(list_shards(rollouts)), key=lambda row: row.trajectory_id)
    scores = [[log_of_tokens(model, row) for model in (student, teacher)] for row in rows]
    nll = np.array([[-of_model.mean().item() for of_model in pair] for pair in scores])
    problems = [row.problem_id for row in rows]
    groups = [2 * problems.index(row.problem_id) + 2 + (row.verdict == "correct") for row in rows]
    weights = weights_of(nll, np.array(groups), 1.0)
    table = pq.read_table(tmp_path / "c" / NAME).to_pydict()
    assert table["trajectory_id"] == [row.trajectory_id for row in rows]
    assert table["correct"] == [row.verdict == "correct" for row in rows]
    assert table["weight"] == pytest.approx(weights.tolist(), rel=1e-4)
    assert table["teacher_perplexity"] == pytest.approx(np.exp(nll[:, 1]).tolist(), rel=1e-4)
    assert len(set(table["weight"])) > 2
    # Equation 6: −log p along correct rows, log (p / q) along the others, summed over tokens and weighed.
    losses = [
        -ours if row.verdict == "correct" else ours - theirs for row, (ours, theirs) in zip(rows, scores, strict=True)
    ]
    tokens = sum(len(loss) for loss in losses)
    expected = sum(weight * loss.sum().item() for weight, loss in zip(weights, losses, strict=True)) / tokens
    (line,) = log_of(tmp_path / "c")
    assert line["loss"] == pytest.approx(expected, rel=1e-4)
    assert line["response_tokens"] == tokens


@torch.no_grad()
def log_of_tokens(model: Any, row: Trajectory) -> torch.Tensor:
    """Return log p of each token of a row's response, in the prompt that both models read."""
    prompt, response = list(row.prompt_token_ids), list(row.response_token_ids)
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]


def test_equal_weights_and_no_routing_are_ablations_by_flags(
    world: World, rollouts: Path, ok: Trd, tmp_path: Path
) -> None:
    command = ("distill", rollouts, *SCOPE, "--teacher", world.teacher)
    plain = ("distill", rollouts, *TRAIN, "--method", "sampled", "--reduction", "token", "--setting", "opd")
    ok(*command, "--row-weights", "equal", "--correct-objective", "sampled", "--out", tmp_path / "off")
    ok(*plain, "--batch-size", 12, "--teacher", world.teacher, "--out", tmp_path / "plain")
    off, expected = (log_of(tmp_path / name)[0] for name in ("off", "plain"))
    assert (off["loss"], off["grad_norm"]) == (expected["loss"], expected["grad_norm"])
    assert not (tmp_path / "off" / NAME).exists()


def test_a_weight_of_a_token_counts_in_the_loss_and_in_the_perplexity(
    world: World, rollouts: Path, ok: Trd, tmp_path: Path
) -> None:
    def halved(number: int, row: Trajectory) -> Trajectory:
        count = len(row.response_token_ids)
        return replace(row, token_weight=[0.0] * (count // 2) + [2.0] * (count - count // 2))

    late = edited(rollouts, tmp_path / "late", halved)
    ok("distill", late, *SCOPE, "--teacher", world.teacher, "--out", tmp_path / "c")
    student = reference_model(world.student)
    rows = {row.trajectory_id: row for row in iter_rows(list_shards(late))}
    table = pq.read_table(tmp_path / "c" / NAME).to_pydict()
    for name, perplexity in zip(table["trajectory_id"], table["student_perplexity"], strict=True):
        scores = log_of_tokens(student, rows[name])
        expected = -scores[len(scores) // 2 :].mean().exp().log()
        assert math.log(perplexity) == pytest.approx(expected.item(), rel=1e-4)


def test_rows_without_a_verdict_of_right_or_wrong_are_left_out_and_counted(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    verdicts = ("correct", "incorrect", "timeout", "error", None, None)
    some = edited(world.rollouts, tmp_path / "some", graded(lambda number: verdicts[number % 6]))
    said = ok("distill", some, *SCOPE, "--teacher", world.teacher, "--out", tmp_path / "c").stderr
    for verdict, count in (("timeout", 2), ("error", 2), ("not graded", 4)):
        assert f"left out {count} of 12 rows: no verdict of correct or incorrect ({verdict}), which" in said
    assert "weighed 4 rows, 2 of them correct, from " in said
    assert log_of(tmp_path / "c")[0]["trajectories"] == 4


def test_another_verdict_is_another_training(world: World, rollouts: Path, trd: Trd, ok: Trd, tmp_path: Path) -> None:
    command = (*SCOPE, "--teacher", world.teacher, "--out", tmp_path / "c")
    ok("distill", rollouts, *command)
    other = edited(rollouts, tmp_path / "other", graded(lambda number: "correct"))
    assert "rows" in refusal(trd("distill", other, *command))


def test_a_training_that_goes_on_has_the_weights_it_began_with(
    world: World, rollouts: Path, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    steep = ("--lr", 3, "--max-grad-norm", 1e9, "--batch-size", 4, "--epochs", 4, "--save-steps", 1)
    command = ("distill", rollouts, *SCOPE, *steep, "--teacher", world.teacher)
    ok(*command, "--max-loss", 1e9, "--out", tmp_path / "whole")
    line = refusal(trd(*command, "--max-loss", 1.5, "--out", tmp_path / "c"))
    assert f"to go on from the last good state, {tmp_path / 'c' / 'states'}" in line
    gone = Path(shutil.copytree(tmp_path / "c", tmp_path / "gone"))
    ok(*command, "--max-loss", 1e9, "--out", tmp_path / "c")
    assert (tmp_path / "c" / NAME).read_bytes() == (tmp_path / "whole" / NAME).read_bytes()
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("c", "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12
    # The student is another one by now: from it the weights cannot be made again.
    (gone / NAME).unlink()
    line = refusal(trd(*command, "--max-loss", 1e9, "--out", gone))
    assert f"{gone / NAME} is gone or damaged; expected the weights that the round began with" in line


def test_weights_of_a_training_that_never_began_are_not_those_of_another(
    world: World, rollouts: Path, trd: Trd, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    # No loss is this small: the first step is refused after the rows are weighed, and there is no state.
    command = ("distill", rollouts, *SCOPE, "--max-loss", 1e-30, "--out", out)
    written = []
    for other in ((), ("--weight-temperature", 3), ("--max-response-tokens", 3)):
        assert "at step 1" in refusal(trd(*command, *other, "--teacher", world.teacher))
        written.append(pq.read_table(out / NAME).to_pydict())
    refusal(trd(*command, "--teacher", world.student))
    written.append(pq.read_table(out / NAME).to_pydict())
    weights, flatter, shorter, own = (table["weight"] for table in written)
    assert min(flatter) > min(weights)
    assert shorter != pytest.approx(weights, rel=1e-3)
    assert written[3]["teacher_perplexity"] == written[3]["student_perplexity"]
    assert own != pytest.approx(weights, rel=1e-3)


def test_weights_depend_neither_on_the_batches_that_score_them_nor_on_the_temperature_of_the_loss(
    world: World, rollouts: Path, ok: Trd, tmp_path: Path
) -> None:
    found = []
    for tokens, temperature in ((1, 2), (4096, 1)):
        out = tmp_path / str(tokens)
        options = ("--max-tokens-per-batch", tokens, "--temperature", temperature, "--out", out)
        said = ok("distill", rollouts, *SCOPE, "--teacher", world.teacher, *options).stderr
        assert "weigh 12/12" in said
        found.append(pq.read_table(out / NAME)["weight"].to_pylist())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
