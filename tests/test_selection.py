"""Subsets by verdict, and --where."""

from __future__ import annotations

import polars as pl
import pytest

from trd_cli.errors import InputError
from trd_cli.trajectories.selection import SUBSETS, needs_parents, select

VERDICTS = ("correct", "incorrect", "error", "timeout", None)


@pytest.fixture
def pairs() -> pl.DataFrame:
    """Return every combination of a row's verdict with its parent's."""
    rows = [
        {"trajectory_id": f"{parent}>{own}", "verdict": own, "parent_verdict": parent, "round": i, "problem": "x"}
        for i, (parent, own) in enumerate((p, o) for p in VERDICTS for o in VERDICTS)
    ]
    return pl.DataFrame(rows)


def ids(rows: pl.DataFrame) -> set[str]:
    return set(rows["trajectory_id"])


def test_the_four_parent_subsets_partition_the_rows_judged_on_both_sides(pairs: pl.DataFrame) -> None:
    parts = {name: ids(select(pairs, name, None)) for name in ("repaired", "broken", "kept", "unrepaired")}
    assert parts == {
        "repaired": {"incorrect>correct"},
        "broken": {"correct>incorrect"},
        "kept": {"correct>correct"},
        "unrepaired": {"incorrect>incorrect"},
    }
    judged = pairs.filter(
        pl.col("verdict").is_in(["correct", "incorrect"]) & pl.col("parent_verdict").is_in(["correct", "incorrect"])
    )
    assert set.union(*parts.values()) == ids(judged)


def test_correct_and_incorrect_read_the_own_verdict_only(pairs: pl.DataFrame) -> None:
    correct, incorrect = (select(pairs, name, None) for name in ("correct", "incorrect"))
    assert set(correct["verdict"]) == {"correct"}
    assert set(incorrect["verdict"]) == {"incorrect"}
    assert len(correct) == len(incorrect) == len(VERDICTS)


def test_all_keeps_every_row_in_its_order(pairs: pl.DataFrame) -> None:
    assert select(pairs, "all", None).equals(pairs)


def test_rows_without_a_usable_verdict_are_in_no_judged_subset(pairs: pl.DataFrame) -> None:
    unjudged = pairs.filter(pl.col("verdict").is_in(["error", "timeout"]) | pl.col("verdict").is_null())
    for name in SUBSETS:
        assert len(select(unjudged, name, None)) == (len(unjudged) if name == "all" else 0)


@pytest.mark.parametrize(
    ("where", "rounds"),
    [
        ("round < 2", {0, 1}),
        ("round IN (3, 7) OR trajectory_id = 'correct>error'", {2, 3, 7}),
        ("verdict = 'correct' AND parent_verdict = 'incorrect'", {5}),
        ("verdict IS NULL AND parent_verdict IS NULL", {24}),
        ("FALSE", set()),
    ],
)
def test_where_is_a_condition_over_the_row_and_its_parent(pairs: pl.DataFrame, where: str, rounds: set[int]) -> None:
    assert set(select(pairs, "all", where)["round"]) == rounds


def test_where_narrows_the_subset(pairs: pl.DataFrame) -> None:
    assert ids(select(pairs, "correct", "parent_verdict = 'timeout'")) == {"timeout>correct"}


@pytest.mark.parametrize(
    "where",
    [
        "no_such_column = 1",
        "verdict = ",
        "verdict",
        "round + 1",
        "round = 'two'",
        "no_such_function(verdict)",
        "",
        "DROP TABLE rows",
    ],
)
def test_a_where_that_is_no_condition_is_an_input_error_that_names_it(pairs: pl.DataFrame, where: str) -> None:
    with pytest.raises(InputError, match="--where") as refusal:
        select(pairs, "all", where)
    assert "parent_verdict" in str(refusal.value), "the columns there are should be listed"


def test_a_misspelt_column_is_told_with_those_that_are_close(pairs: pl.DataFrame) -> None:
    with pytest.raises(InputError) as refusal:
        select(pairs, "all", "verdct = 'correct'")
    assert str(refusal.value).count("verdict") <= 4
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("subset", "where", "needed"),
    [
        ("all", None, False),
        ("correct", None, False),
        ("incorrect", "verdict IS NULL", False),
        ("repaired", None, True),
        ("broken", None, True),
        ("kept", None, True),
        ("unrepaired", None, True),
        ("all", "parent_verdict = 'correct'", True),
        ("all", "LENGTH(parent_response) > 10", True),
        # A row's own column, though its name begins like a parent's.
        ("all", "parent_id IS NULL", False),
        ("all", "parent_id IS NULL OR parent_round = 1", True),
    ],
)
def test_parents_are_needed_only_where_one_of_their_columns_is_read(
    subset: str, where: str | None, needed: bool
) -> None:
    assert needs_parents(subset, where) is needed
