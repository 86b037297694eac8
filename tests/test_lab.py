"""trd lab: the estimators g_γ against figures by hand, and the study's command, which goes on where it was killed."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from support.sets import by_hand

from trd_cli.lab.cells import distil
from trd_cli.lab.estimators import future_sums, spread, surrogate
from trd_cli.lab.walks import TASKS, Policy, seeded_policy, walk

Trd = Callable[..., Result]
TINY = ("--seeds", 2, "--updates", 2, "--teacher-updates", 2, "--gammas", "0,1")


@pytest.mark.parametrize(
    ("gamma", "sums"),
    [(0.0, [1.0, -2.0, 4.0]), (0.5, [1.0, 0.0, 4.0]), (1.0, [3.0, 2.0, 4.0])],
    ids=["the immediate term", "half", "the whole future"],
)
def test_a_step_weighs_its_own_log_ratio_and_those_after_it_by_powers_of_gamma(gamma: float, sums: list[float]) -> None:
    ratios_NT = torch.tensor([[1.0, -2.0, 4.0], [0.0, 0.0, 0.0]])
    assert future_sums(ratios_NT, gamma).tolist() == [sums, [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("gamma", "gradient"), [(0.0, [0.5, -1.0]), (0.5, [0.0, -1.0]), (1.0, [-0.5, -1.0])])
def test_the_gradient_of_the_surrogate_is_the_mean_over_trajectories(gamma: float, gradient: list[float]) -> None:
    # Log-ratios (1, −2) and (0, 0): the gradient with respect to a step's log-probability is its sum over N = 2.
    logprobs_NT = torch.tensor([[-1.0, -3.0], [-1.0, -1.0]], requires_grad=True)
    surrogate(logprobs_NT, torch.tensor([[-2.0, -1.0], [-1.0, -1.0]]), gamma).backward()
    assert logprobs_NT.grad.tolist() == [gradient, [0.0, 0.0]]


def test_the_spread_of_micro_batches_is_that_of_one_of_them_and_the_norm_that_of_their_mean() -> None:
    # Means (2, 0); squared deviations 1 + 1 and 4 + 4, each divided by M − 1 = 1.
    assert spread(torch.tensor([[1.0, 2.0], [3.0, -2.0]])) == (10.0, 4.0)


def exact(gamma: float | None) -> torch.Tensor:
    """Return E[g_γ] for two steps of two actions, where the second's odds hang on the first; or ∇KL for None."""
    logits = torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.2]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]], dtype=torch.float64).log()
    student = logits.log_softmax(-1)
    total = torch.zeros(6, dtype=torch.float64)
    for first, second in itertools.product(range(2), repeat=2):
        steps = [(0, first), (1 + first, second)]
        logprobs_NT = torch.stack([student[step] for step in steps])[None]
        teacher_NT = torch.stack([teacher[step] for step in steps])[None]
        chance = logprobs_NT.sum().exp()
        if gamma is None:
            loss = chance * (logprobs_NT - teacher_NT).sum()
        else:
            loss = chance.detach() * surrogate(logprobs_NT, teacher_NT, gamma)
        total += torch.autograd.grad(loss, logits, retain_graph=True)[0].flatten()
    return total


def test_gamma_1_is_unbiased_for_the_kl_of_trajectories_and_smaller_gammas_are_not() -> None:
    torch.testing.assert_close(exact(1.0), exact(None), rtol=0, atol=1e-12)
    assert (exact(0.5) - exact(None)).abs().max() > 0.01
    assert (exact(0.0) - exact(None)).abs().max() > (exact(0.5) - exact(None)).abs().max()


def test_the_policy_is_of_the_size_told_and_walks_start_where_their_tasks_say() -> None:
    policy = seeded_policy(0)
    assert sum(parameter.numel() for parameter in policy.parameters()) == 4546
    walks = walk(policy, TASKS * 2, torch.Generator().manual_seed(0))
    assert walks.actions.shape == (4, 20)
    torch.testing.assert_close(walks.places[:, 0] - walks.actions[:, 0], torch.tensor([2.0, -2.0, 2.0, -2.0]))
    assert walks.targets.tolist() == [-3.0, 3.0, -3.0, 3.0]
    torch.testing.assert_close(walks.places[:, -1] - walks.places[:, 0], walks.actions[:, 1:].sum(dim=1))


def test_a_cell_depends_on_its_gamma_and_seed_alone() -> None:
    teachers: list[Policy] = [seeded_policy(5), seeded_policy(6)]
    torch.manual_seed(1)
    first = distil(0.5, 3, 2, teachers)
    torch.manual_seed(2)
    assert distil(0.5, 3, 2, teachers) == first
    # The first update comes before anything was learned: students of a seed see the same walks.
    other_gamma, other_seed = distil(1.0, 3, 1, teachers), distil(0.5, 4, 1, teachers)
    assert other_gamma.error[0] == first.error[0] != other_seed.error[0]
    assert other_gamma.variance[0] != first.variance[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("lab") / "study"
    return out, ok("lab", "estimators", *TINY, "--out", out)


def test_the_study_prints_a_line_a_gamma_and_writes_cells_results_and_plot(study: tuple[Path, Result]) -> None:
    out, result = study
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["0", "2"], ["1", "2"]]
    assert lines[0][3] == "1.0", "how often the variance of the first γ"
    results = json.loads((out / "estimators.json").read_text())["gammas"]
    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("gamma-1-*.json"))]
    # Two updates: the median is their mean.
    medians = [sum(cell["variance"]) / 2 for cell in cells]
    assert results["1"]["variance"] == pytest.approx(
        {"mean": sum(medians) / 2, "low": min(medians), "high": max(medians)}
    )
    assert results["1"]["end_error"]["low"] == min(cell["end_error"] for cell in cells)
    assert (out / "estimators.svg").read_text().count("<svg") == 1
    assert (out / "estimators.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_makes_only_cells_that_are_missing_or_damaged(
    study: tuple[Path, Result], ok: Trd, tmp_path: Path
) -> None:
    out, _ = study
    before = {path.name: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    cells = out / "cells"
    (cells / "gamma-0-seed-1.json").unlink()
    (cells / "gamma-1-seed-0.json").write_text((cells / "gamma-1-seed-0.json").read_text()[:-20])
    kept = (cells / "gamma-0-seed-0.json").stat()
    again = ok("lab", "estimators", *TINY, "--out", out)
    assert "2 done before" in again.stderr, "of four"
    assert (cells / "gamma-0-seed-0.json").stat().st_mtime_ns == kept.st_mtime_ns
    after = {path.name: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    assert {name for name in before if before[name] != after[name]} <= {"run.json"}


def test_a_cell_of_another_layout_or_of_another_gamma_is_made_again(
    study: tuple[Path, Result], ok: Trd, tmp_path: Path
) -> None:
    shutil.copytree(study[0], tmp_path / "study")
    cells = tmp_path / "study" / "cells"
    whole = (cells / "gamma-0-seed-0.json").read_bytes()
    by_hand(cells / "gamma-0-seed-0.json", lambda cell: cell.pop("end_error"))
    shutil.copy(cells / "gamma-1-seed-0.json", cells / "gamma-0-seed-1.json")
    assert "2 done before" in ok("lab", "estimators", *TINY, "--out", tmp_path / "study").stderr
    assert (cells / "gamma-0-seed-0.json").read_bytes() == whole


def test_gammas_that_differ_in_their_last_digit_are_two(ok: Trd, tmp_path: Path) -> None:
    command = ("lab", "estimators", "--seeds", 1, *TINY[2:-2], "--gammas", "0.1234567,0.1234568", "--out", tmp_path)
    assert [line.split("\t")[0] for line in ok(*command).stdout.splitlines()] == ["0.1234567", "0.1234568"]
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_other_gammas_go_on_from_the_cells_there_and_other_updates_are_refused(
    study: tuple[Path, Result], trd: Trd
) -> None:
    out, _ = study
    refused = trd("lab", "estimators", *TINY, "--out", out, "--updates", 3)
    assert refused.exit_code == 1
    assert "updates (2 → 3)" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    more = trd("lab", "estimators", *TINY[:-2], "--gammas", "1", "--gammas", "0.5", "--out", out)
    assert "2 done before" in more.stderr
    assert [line.split("\t")[0] for line in more.stdout.splitlines()] == ["1", "0.5"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gammas", "0,2"), "--gammas '2'; expected less than or equal to 1"),
        (("--gammas", "0,x"), "--gammas 'x'; expected a valid number"),
        (("--seeds", 0), "--seeds 0; expected greater than or equal to 1"),
    ],
)
def test_a_wrong_option_ends_in_one_line_and_writes_nothing(
    words: tuple[object, ...], told: str, trd: Trd, tmp_path: Path
) -> None:
    result = trd("lab", "estimators", *words, "--out", tmp_path / "study")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert told in result.stderr
    assert list(tmp_path.iterdir()) == []
