"""The distance of y_r from y_o, and signs that y* was in view: hand-made cases and a naive reference."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest

from trd_cli.report.leaks import copied_ngrams, talk_of_reference
from trd_cli.report.refinement import common_prefix, edit_distances, prefix_share

# Edit distance


def naive_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return Levenshtein's distance by the full table."""
    above = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        line = [i]
        for j, b in enumerate(other, start=1):
            line.append(min(above[j] + 1, line[-1] + 1, above[j - 1] + (a != b)))
        above = line
    return above[-1]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([7, 8, 9], [7, 8, 9], 0.0),
        ([7, 8, 9], [7, 9], 1 / 3),
        ([7, 8, 9], [7, 5, 9], 1 / 3),
        ([1, 2, 3, 4], [1, 2, 9, 4, 5], 2 / 5),
        ([1, 2], [3, 4], 1.0),
        ([], [3, 4], 1.0),
        ([], [], 0.0),
        ([1, 2, 3, 4], [3, 4, 1, 2], 1.0),
    ],
)
def test_the_edit_distance_of_small_cases_is_that_by_hand(one: list[int], other: list[int], expected: float) -> None:
    assert edit_distances([(one, other)]) == [expected]


def test_the_edit_distance_is_that_of_the_full_table_for_ids_beyond_any_character() -> None:
    chance = random.Random(0)
    ids = [0, 5, 0xD800, 151_935, 1_500_000, 2**31 - 1]
    pairs = [tuple([chance.choice(ids) for _ in range(chance.randrange(40))] for _ in "ab") for _ in range(200)]
    expected = [naive_distance(a, b) / max(1, len(a), len(b)) for a, b in pairs]
    assert edit_distances(pairs) == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 50


def test_two_responses_of_16k_tokens_take_well_below_a_second_each() -> None:
    chance = random.Random(0)
    pairs = [tuple([chance.randrange(150_000) for _ in range(16_384)] for _ in "ab") for _ in range(2)]
    begun = time.monotonic()
    assert edit_distances(pairs) == pytest.approx([1.0, 1.0], abs=0.001)
    # The full table would take minutes.
    assert time.monotonic() - begun < 5


def test_no_pairs_have_no_distances() -> None:
    assert edit_distances([]) == []


# Common prefix


@pytest.mark.parametrize(
    ("one", "other", "tokens"),
    [
        ([1, 2, 3, 4], [1, 2, 9, 4, 5], 2),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3, 4], [1, 2, 3], 3),
        ([5, 2, 3], [1, 2, 3], 0),
        ([], [1], 0),
        ([4], [4], 1),
    ],
)
def test_the_common_prefix_ends_at_the_first_difference(one: list[int], other: list[int], tokens: int) -> None:
    assert common_prefix(one, other) == tokens


def test_the_common_prefix_is_that_of_a_plain_loop() -> None:
    chance = random.Random(1)
    for _ in range(300):
        one, other = ([chance.randrange(2) for _ in range(chance.randrange(12))] for _ in "ab")
        plain = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        assert common_prefix(one, other) == plain


def test_the_prefix_is_a_share_of_what_was_written_before() -> None:
    assert prefix_share([1, 2, 3, 4], [1, 2, 9]) == 0.5
    assert prefix_share([1, 2], [1, 2, 3, 4]) == 1.0
    assert prefix_share([], [1]) == 1.0


# Talk of a reference


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("As the Reference\nsolution shows, x = 2.", ["reference solution"]),
        ("The provided answer is 4, and the given solutions agree.", ["provided answer", "given solutions"]),
        ("This matches the reference.", ["matches the reference"]),
        ("The reference says 7; ground-truth answer: 7.", ["the reference says", "ground-truth answer"]),
        ("According to the solution provided, 3.", ["according to the solution provided"]),
        ("Compared with the official proof", ["official proof"]),
    ],
)
def test_talk_of_a_reference_is_found(text: str, phrases: list[str]) -> None:
    assert talk_of_reference(text, "What is x?") == phrases


@pytest.mark.parametrize(
    "text",
    [
        "So the solution is x = 2 and the answer is 4.",
        "In this frame of reference the speed is 3.",
        "We refer to the reference frame.",
        "The given answer choices are A and B; the provided answer choice is C.",
        "We are given that x = 2. Solution: 4.",
        "My preference: solution by parts.",
        "The student's solution is wrong, and so is the attempt.",
        "The given answer must be an integer.",
        "",
    ],
)
def test_what_is_no_talk_of_a_reference_is_not(text: str) -> None:
    assert talk_of_reference(text, "What is x?") == []


def test_what_the_problem_itself_says_is_no_talk_of_a_reference() -> None:
    problem = "Find the mistake in the given solution."
    assert talk_of_reference("The given solution divides by 0.", problem) == []
    assert talk_of_reference("The given solution divides by 0, unlike the reference solution.", problem) == [
        "reference solution"
    ]


# N-grams of the reference

LETTERS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]


def words(first: int, last: int) -> str:
    """Return the words from one place to another, both included, counted from 1."""
    return " ".join(LETTERS[first - 1 : last])


@pytest.mark.parametrize(
    ("response", "copied"),
    [
        (f"x {words(1, 13)} y", {8: True, 13: True}),
        (f"x {words(2, 13)} y", {8: True, 13: False}),
        (f"x {words(3, 10)} y", {8: True, 13: False}),
        (f"x {words(3, 9)} y {words(10, 16)}", {8: False, 13: False}),
        ("", {8: False, 13: False}),
    ],
)
def test_a_run_of_n_words_of_the_reference_counts_and_one_of_n_less_one_does_not(
    response: str, copied: dict[int, bool]
) -> None:
    assert copied_ngrams(response, words(1, 16), ()) == copied


def test_what_the_problem_or_the_attempt_has_too_is_not_copied() -> None:
    response = words(1, 10)
    assert copied_ngrams(response, words(1, 16), (words(1, 10), "")) == {8: False, 13: False}
    assert copied_ngrams(response, words(1, 16), ("", words(1, 10))) == {8: False, 13: False}
    # Of the three 8-grams the problem has two.
    assert copied_ngrams(response, words(1, 16), (words(1, 9), "")) == {8: True, 13: False}


def test_punctuation_case_and_layout_do_not_hide_a_copy() -> None:
    reference = "First, \\left( a + b \\right) is taken; then we add the rest."
    response = "first (a + b) is taken, THEN we add the rest"
    assert copied_ngrams(response, reference, ())[8]


def test_a_reference_of_fewer_words_than_n_cannot_be_copied() -> None:
    assert copied_ngrams(words(1, 7), words(1, 7), ()) == {8: False, 13: False}
