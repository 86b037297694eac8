"""trd refine --mode relay: who writes which token of a relayed row, where legs end, and phases that go on."""

from __future__ import annotations

from array import array

import pytest

from trd_cli.records import author_array, logprob_array, token_array
from trd_cli.relaying.response import Relay, Response, Rules, Trigger, leg_length, room_of_leg

RULES = Rules(legs=2, leg_tokens=4, leg_paragraphs=0)
MOST = 100
WORDS = {1: "so ", 2: "it ", 3: "holds", 4: "\n", 5: ".\n\n", 6: "\n\n\n", 9: "wait "}


def decode(ids) -> str:
    return "".join(WORDS[i] for i in ids)


def written(ids: list[int], author: list[int], finish: str | None = None, logprobs: list[float] | None = None):
    return Response(
        token_array(ids), author_array(author), None if logprobs is None else logprob_array(logprobs), finish
    )


def shown(response: Response) -> tuple[list[int], list[int], str | None]:
    return response.token_ids.tolist(), response.author.tolist(), response.finish_reason


def test_a_row_is_the_students_until_the_trigger_then_a_leg_then_the_students_again_and_ends_with_the_last_leg() -> (
    None
):
    relay = Relay.begun(written([1, 2, 1, 2, 3], [0] * 5, "stop", [-1, -2, -3, -4, -5]), MOST)
    assert (relay.step, relay.place) == ("score", 0)

    relay = relay.after_search(Trigger(place=2, onset=9, logprob=-0.5))
    assert (relay.step, shown(relay.response)) == ("teacher", ([1, 2, 9], [0, 0, 1], None))
    assert relay.response.logprobs == array("f", [-1, -2, -0.5])

    leg = written([1, 2, 9, 3, 3, 1], [0, 0, 1, 1, 1, 1], "length")
    relay = Relay.after_leg(leg, 3, 1, RULES, MOST, decode)
    assert (relay.step, relay.response.finish_reason) == ("student", None)

    goes_on = written([1, 2, 9, 3, 3, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, 0, 0, 0], "stop")
    relay = Relay.after_student(goes_on, 6)
    assert (relay.step, relay.place) == ("score", 6)

    relay = relay.after_search(Trigger(place=6, onset=9, logprob=0.0))
    assert shown(relay.response) == ([1, 2, 9, 3, 3, 1, 9], [0, 0, 1, 1, 1, 1, 1], None)

    leg = written([1, 2, 9, 3, 3, 1, 9, 2], [0, 0, 1, 1, 1, 1, 1, 1], "length")
    relay = Relay.after_leg(leg, 7, 2, RULES, MOST, decode)
    assert (relay.step, relay.response.finish_reason) == ("end", "length")


def test_a_row_without_a_trigger_is_the_students_and_ends_as_the_student_ended_it() -> None:
    rollout = written([1, 2, 3], [0, 0, 0], "stop", [-1, -2, -3])
    relay = Relay.begun(rollout, MOST).after_search(None)
    assert (relay.step, relay.response) == ("end", rollout)


def test_a_leg_in_which_the_teacher_ends_its_turn_ends_the_row() -> None:
    leg = written([1, 9, 3], [0, 1, 1], "stop")
    relay = Relay.after_leg(leg, 2, 1, RULES, MOST, decode)
    assert (relay.step, shown(relay.response)) == ("end", ([1, 9, 3], [0, 1, 1], "stop"))


@pytest.mark.parametrize(
    ("leg", "paragraphs", "length"),
    [
        ([9, 3, 5, 1, 5, 1], 1, 3),
        ([9, 3, 5, 1, 5, 1], 2, 5),
        ([9, 3, 5, 1, 5, 1], 3, 6),
        ([9, 3, 5, 1, 5, 1], 0, 6),
        ([9, 3, 4, 4, 1], 1, 4),
        ([9, 3, 4, 1, 4, 1], 1, 6),
        ([9, 6, 4, 1, 5], 2, 5),
    ],
    ids=["first", "second", "fewer", "not asked", "of two tokens", "line breaks alone", "a long gap is one"],
)
def test_a_leg_ends_with_its_last_blank_line(leg: list[int], paragraphs: int, length: int) -> None:
    assert leg_length(leg, Rules(2, 99, paragraphs), decode) == length


def test_what_the_teacher_wrote_after_the_last_blank_line_is_dropped_even_its_end() -> None:
    leg = written([1, 9, 5, 2, 3], [0, 1, 1, 1, 1], "stop", [-1.0, -2.0, -3.0, -4.0, -5.0])
    relay = Relay.after_leg(leg, 2, 1, Rules(2, 99, 1), MOST, decode)
    assert (relay.step, shown(relay.response)) == ("student", ([1, 9, 5], [0, 1, 1], None))
    assert relay.response.logprobs == array("f", [-1, -2, -3])


@pytest.mark.parametrize(
    ("length", "leg_tokens", "most", "room"),
    [(10, 4, 100, 3), (10, 1, 100, 0), (98, 4, 100, 2), (100, 4, 100, 0)],
    ids=["a whole leg", "the onset token alone", "the row's last tokens", "none"],
)
def test_a_leg_has_room_for_its_tokens_less_the_onset_and_no_more_than_the_row(
    length: int, leg_tokens: int, most: int, room: int
) -> None:
    assert room_of_leg(length, Rules(2, leg_tokens, 0), most) == room


def test_a_row_at_its_token_budget_ends() -> None:
    assert shown(Relay.begun(written([1, 2, 3], [0] * 3, "stop"), 2).response) == ([1, 2], [0, 0], "length")
    leg = written([1, 9, 3], [0, 1, 1], "length")
    relay = Relay.after_leg(leg, 2, 1, RULES, 3, decode)
    assert (relay.step, relay.response.finish_reason) == ("end", "length")
