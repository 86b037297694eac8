"""Where a response is cut to a prefix: counts, shares, line breaks and whole characters, on exact ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny import END, write_bare_model

from trd_cli.errors import InputError
from trd_cli.prompting.prefixes import cut
from trd_cli.prompting.tokens import ByteTokenizer, HubTokenizer, Tokenizer
from trd_cli.records import Cut

BYTES = ByteTokenizer()


def kept(text: str, prefix: str, at_line_break: bool = False, tokenizer: Tokenizer = BYTES, end: bool = True) -> str:
    """Return the text of the prefix of a response; with `end` the response ends its turn."""
    ids = [*tokenizer.encode(text), *([tokenizer.end_of_turn_id] if end else [])]
    return tokenizer.decode(ids[: cut(ids, tokenizer, Cut.parse(prefix, at_line_break))])


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("1", "a"),
        ("4", "abcd"),
        ("10", "abcdefghij"),
        ("11", ""),
        ("0.4", "abcd"),
        ("0.25", "abc"),
        ("0.01", "a"),
        ("1.0", "abcdefghij"),
    ],
)
@pytest.mark.parametrize("end", [True, False])
def test_a_prefix_is_so_many_tokens_or_a_share_of_those_before_the_end_of_the_turn(
    prefix: str, head: str, end: bool
) -> None:
    assert kept("abcdefghij", prefix, end=end) == head


def test_a_response_that_ends_at_once_has_no_prefix() -> None:
    assert cut([BYTES.end_of_turn_id], BYTES, Cut(share=0.5)) == 0
    assert cut([], BYTES, Cut(tokens=1)) == 0


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("0.1", "one\n"),
        ("0.5", "one\ntwo\n"),  # of 16 tokens 8: an end of a line itself
        ("6", "one\n"),  # as far from 4 as from 8
        ("7", "one\ntwo\n"),
        ("1.0", "one\ntwo\nthree\n"),
    ],
)
def test_a_cut_at_a_line_break_takes_the_nearest_and_the_earlier_of_two(prefix: str, head: str) -> None:
    assert kept("one\ntwo\nthree\nxy", prefix, at_line_break=True) == head


def test_without_a_line_break_inside_the_share_counts() -> None:
    assert kept("abcdefghij", "0.4", at_line_break=True) == "abcd"
    assert kept("abcdefghi\n", "0.4", at_line_break=True) == "abcd", "behind this one nothing follows"


@pytest.mark.parametrize("tokenizer", ["bytes", "hub"])
@pytest.mark.parametrize(
    ("text", "tokens", "head"),
    [
        ("x中y", 1, "x"),
        ("x中y", 2, "x"),
        ("x中y", 3, "x"),
        ("x中y", 4, "x中"),
        ("🙂y", 1, "🙂"),  # in front of it there is nothing
        ("🙂y", 3, "🙂"),
        ("é中", 4, "é"),
        ("a\ufffdb", 4, "a\ufffd"),  # the character that stands for lost ones, written as such
    ],
)
def test_a_cut_does_not_split_a_character_of_several_tokens(
    text: str, tokens: int, head: str, tokenizer: str, tmp_path: Path
) -> None:
    used = BYTES if tokenizer == "bytes" else HubTokenizer(write_bare_model(tmp_path))
    assert len(used.encode(text)) == len(text.encode()), "a token a byte"
    assert kept(text, str(tokens), tokenizer=used) == head


def test_bytes_that_make_no_character_are_cut_where_asked() -> None:
    ids = [97, 0xE4, 0xB8, 98, 99]  # the beginning of a character without its end
    assert [cut(ids, BYTES, Cut(tokens=n)) for n in (1, 3, 4)] == [1, 3, 4]


def test_every_cut_of_a_real_tokenizer_keeps_the_ids_and_a_head_of_the_text(tmp_path: Path) -> None:
    tokenizer = HubTokenizer(write_bare_model(tmp_path))
    text = "the house and\nother 中文 🙂\n\ning = é"
    ids = [*tokenizer.encode(text), END]
    assert len(ids) < len(text.encode()), "some tokens have several characters"
    for number in range(1, len(ids)):
        for at_line_break in (False, True):
            head = tokenizer.decode(ids[: cut(ids, tokenizer, Cut(tokens=number, at_line_break=at_line_break))])
            assert head
            assert text.startswith(head)
            assert head.endswith("\n") or not at_line_break


@pytest.mark.parametrize("text", ["0", "0.0", "1.5", "-1", "-0.2", "nan", "inf", "half", "", "²", "40%"])
def test_any_other_prefix_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"--prefix .*; expected a number of tokens, as 64, or a share .*; change"):
        Cut.parse(text)


def test_a_cut_reads_back_as_it_is_written() -> None:
    for text in ("64", "0.4", "1.0"):
        assert str(Cut.parse(text)) == text
    assert (Cut.parse("1"), Cut.parse("1.0")) == (Cut(tokens=1), Cut(share=1.0))
