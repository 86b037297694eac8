"""Attempts cut to the available room: a head of their own text, whatever the tokenizer does to letters and spaces."""

from __future__ import annotations

import random
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny import build_bytes, build_model, build_words, with_normalizer

from trd_cli.prompting.tokens import ByteTokenizer, HubTokenizer, Tokenizer, fit_attempt

# Each kind has a letter or more that the normaliser changes: OHM SIGN, a letter with a separate accent, a ligature,
# full-width digits.
PIECES = [
    "the",
    " hour",
    " and",
    "∑",
    "漢",
    "🙂",
    "12",
    " = ",
    "\n",
    "ing",
    "x",
    "\u2126",
    "e\u0301",
    "ﬁ",
    "１２",
    "\u212b",
    "THE",
    "  ",
]


def normalizers() -> dict[str, Any]:
    from tokenizers import normalizers as n

    return {
        "NFC": n.NFC(),
        "NFD": n.NFD(),
        "NFKC": n.NFKC(),
        "lowercase": n.Lowercase(),
        "accents stripped": n.Sequence([n.NFD(), n.StripAccents()]),
        "BERT": n.BertNormalizer(),
        "spaces replaced": n.Sequence([n.Prepend("▁"), n.Replace(" ", "▁")]),
        "edges stripped": n.Strip(),
    }


KINDS = ("bytes", "hub", "cleans up spaces", "words", "no places", *normalizers())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Tokenizer:
    kind = request.param
    if kind == "bytes":
        return ByteTokenizer()
    copy = shutil.copytree(model, tmp_path / "copy")
    if kind == "words":
        build_words(copy, PIECES)
    elif kind == "cleans up spaces":
        with_normalizer(copy, None, clean_up_tokenization_spaces=True)
    elif kind in normalizers():
        with_normalizer(copy, normalizers()[kind])
    elif kind == "no places":
        build_bytes(copy)
    return HubTokenizer(copy)


def around(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Return a function that makes a prompt around an attempt."""
    return lambda text: tokenizer.render([{"role": "user", "content": f"Mend this: {text} Go."}], "chat", {})


def test_an_attempt_that_fits_is_kept_whole(tokenizer: Tokenizer) -> None:
    attempt, render = "the hour and the sum of 3 \u2126", around(tokenizer)
    assert fit_attempt(tokenizer, attempt, render, room=len(render(attempt))) == attempt
    assert fit_attempt(tokenizer, "", render, room=10_000) == ""


def test_an_attempt_too_long_keeps_as_much_of_its_head_as_fits() -> None:
    tokenizer = ByteTokenizer()
    attempt, render = "0123456789" * 20, around(tokenizer)
    bare = len(render(""))
    for room in (bare, bare + 1, bare + 57, bare + 199):
        assert fit_attempt(tokenizer, attempt, render, room) == attempt[: room - bare]


def test_a_prompt_that_does_not_fit_without_an_attempt_is_hopeless(tokenizer: Tokenizer) -> None:
    render = around(tokenizer)
    assert fit_attempt(tokenizer, "the sum", render, room=len(render("")) - 1) is None
    assert fit_attempt(tokenizer, "", render, room=0) is None


def test_what_is_kept_is_a_head_of_the_text_that_fits_and_nearly_all_that_would(
    tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    chance, render = random.Random(0), around(tokenizer)
    for _ in range(25):
        attempt = "".join(chance.choices(PIECES, k=chance.randrange(1, 80)))
        room = len(render("")) + chance.randrange(0, 90)
        kept = fit_attempt(tokenizer, attempt, render, room)
        assert kept is not None
        assert attempt.startswith(kept)
        assert len(render(kept)) <= room
        fitting = [k for k in range(len(attempt) + 1) if len(render(attempt[:k])) <= room]
        # Without the places of tokens, all tokens are assumed to have one length.
        spare = 60 if request.node.callspec.params["tokenizer"] == "no places" else 8
        assert len(render(attempt[: max(fitting)])) - len(render(kept)) <= spare


def test_a_letter_that_the_normaliser_changes_does_not_end_what_is_kept(model: Path, tmp_path: Path) -> None:
    directory = with_normalizer(shutil.copytree(model, tmp_path / "nfc"), normalizers()["NFC"])
    tokenizer = HubTokenizer(directory)
    attempt = "The resistance is 3 \u2126, so " + "the hour and the sum of both. " * 10
    assert unicodedata.normalize("NFC", attempt) != attempt
    render = around(tokenizer)
    kept = fit_attempt(tokenizer, attempt, render, room=len(render(attempt)) - 20)
    assert kept is not None
    assert attempt.startswith(kept)
    assert len(kept) > 250
