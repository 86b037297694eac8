"""trd diagnose --recover: wrong rows are cut, models go on from there, and the accuracy is told with its interval."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from trd_cli.diagnosis.continuations import Prefix
from trd_cli.diagnosis.recovery import Continued, quartiles, rates


def prefix(name: str, problem: str, cut: float, tokens: int, perplexity: float = 1.0) -> Prefix:
    return Prefix(name, problem, cut, tokens, perplexity)


def test_quartiles_are_of_the_prefixes_of_one_cut() -> None:
    low = [prefix(f"r{i}", "p", 0.2, 1, perplexity) for i, perplexity in enumerate((4.0, 1.0, 3.0, 2.0))]
    high = [prefix(f"r{i}", "p", 0.8, 4, 100.0 + i) for i in range(8)]
    assert quartiles([*low, *high]) == [4, 1, 3, 2, 1, 1, 2, 2, 3, 3, 4, 4]


def test_few_prefixes_fill_the_lower_quartiles_and_equals_go_by_their_ids() -> None:
    assert quartiles([prefix("b", "p", 0.2, 1), prefix("a", "p", 0.2, 1)]) == [3, 1]


def test_the_rate_is_the_mean_over_problems_with_an_interval_over_problems() -> None:
    prefixes = [prefix("a", "p", 0.2, 1), prefix("b", "p", 0.2, 2), prefix("c", "q", 0.2, 1)]
    verdicts = {"a": "correct correct", "b": "incorrect timeout", "c": "incorrect incorrect"}
    rows = [
        Continued(each.trajectory_id, each.tokens, verdict)
        for each in prefixes
        for verdict in verdicts[each.trajectory_id].split()
    ]
    [*_, of_all] = rates("teacher", prefixes, rows)
    by, cut, quartile, value, low, high, *counts = astuple(of_all)
    assert (by, cut, quartile) == ("teacher", None, None)
    # p has 2 right of 3 graded, q none of 2.
    assert value == pytest.approx((2 / 3 + 0) / 2)
    assert counts == [3, 2, 5, 1], "prefixes, problems, graded, ungraded"
    # Wilson's interval at 2 trials, the number of problems, with t = 12.706 for z, at the mean 1/3.
    assert (low, high) == pytest.approx((0.001367, 0.994554), abs=1e-6)


def test_all_or_nothing_has_wilsons_interval_of_the_problems() -> None:
    prefixes = [prefix(f"r{i}", f"p{i}", 0.4, 1) for i in range(4)]
    rows = [Continued(f"r{i}", 1, "correct" if i else "incorrect") for i in range(4) for _ in range(4)]
    [*_, of_all] = rates("student", prefixes, rows)
    assert of_all.value == 0.75
    # Wilson 1927 for 3 of 4 at z = 1.96: the 16 continuations are no 16 independent trials.
    assert (of_all.low, of_all.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)


def test_two_cuts_at_one_place_share_their_continuations_and_count_them_once_in_all() -> None:
    prefixes = [prefix("a", "p", 0.2, 3), prefix("a", "p", 0.4, 3), prefix("a", "p", 0.6, 5)]
    rows = [Continued("a", 3, "correct"), Continued("a", 5, "incorrect"), Continued("a", 5, "incorrect")]
    found = {(each.cut, each.quartile): each for each in rates("teacher", prefixes, rows)}
    assert [found[cut, None].value for cut in (0.2, 0.4, 0.6)] == [1.0, 1.0, 0.0]
    assert (found[None, None].prefixes, found[None, None].graded) == (2, 3)
    assert found[None, None].value == pytest.approx(1 / 3)
    assert found[0.2, 1].value == 1.0
    assert (0.2, 2) not in found, "a single prefix is the first quartile"


def test_what_is_not_graded_has_no_rate() -> None:
    [*_, of_all] = rates("teacher", [prefix("a", "p", 0.2, 3)], [Continued("a", 3, "error"), Continued("a", 3, None)])
    assert (of_all.value, of_all.low, of_all.high, of_all.graded, of_all.ungraded) == (None, None, None, 0, 2)
