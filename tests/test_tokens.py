"""Tokenizers: ids and text, prompts, ends of a turn, and attempts that must be cut to fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny import END, OTHER_END, SPECIALS, build_model, set_eos, write_tokenizer

from trd_cli.errors import ModelError
from trd_cli.prompting.tokens import ByteTokenizer, HubTokenizer, Tokenizer

TEXTS = ("", "the hour and 12 + 3 = 15.\n\n", "ünïcode ∑ 漢字 🙂", " leading and trailing ", "{% raw %}\t\\boxed{1}")
MESSAGES = ({"role": "user", "content": "What is the sum?"},)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "copy")


@pytest.fixture(params=["bytes", "hub"])
def tokenizer(request: pytest.FixtureRequest, model: Path) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else HubTokenizer(model)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_ids(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_ids_are_no_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("the sum"), tokenizer.end_of_turn_id]
    assert tokenizer.decode(ids) == "the sum"


def test_a_chat_prompt_shows_the_message_and_is_ready_for_the_answer(tokenizer: Tokenizer) -> None:
    ids = tokenizer.render(MESSAGES, "chat", {})
    text = tokenizer.decode(ids)
    assert MESSAGES[0]["content"] in text
    assert text.endswith("assistant\n")
    assert ids[-1] not in tokenizer.eos_ids
    assert tokenizer.end_of_turn_id in ids, "the user's turn should be closed"


def test_a_raw_prompt_is_the_text_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.render(MESSAGES, "raw", {}) == tokenizer.encode("What is the sum?")
    two = (*MESSAGES, {"role": "user", "content": "And why?"})
    assert tokenizer.render(two, "raw", {}) == tokenizer.encode("What is the sum?\n\nAnd why?")


def test_bytes_cut_inside_a_character_are_decoded_all_the_same() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("ab∑")[:-1]).startswith("ab")


def test_a_hub_prompt_is_what_its_chat_template_says(model: Path) -> None:
    tokenizer = HubTokenizer(model)
    start, end = SPECIALS.index("<|start|>"), END
    assert tokenizer.render(MESSAGES, "chat", {}) == [
        start,
        *tokenizer.encode("user\nWhat is the sum?"),
        end,
        *tokenizer.encode("\n"),
        start,
        *tokenizer.encode("assistant\n"),
    ]


def test_options_reach_the_chat_template(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }} {{ 'think' if thinking else 'answer' }}")
    tokenizer = HubTokenizer(copy)
    assert tokenizer.decode(tokenizer.render(MESSAGES, "chat", {})).endswith("answer")
    assert tokenizer.decode(tokenizer.render(MESSAGES, "chat", {"thinking": True})).endswith("think")


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (None, {END}),
        ({}, {END}),
        ({"eos_token_id": None}, {END}),
        ({"eos_token_id": OTHER_END}, {END, OTHER_END}),
        ({"eos_token_id": [OTHER_END, END]}, {END, OTHER_END}),
    ],
    ids=["no file", "no entry", "null", "one", "list"],
)
def test_ends_of_a_turn_are_the_tokenizers_and_those_of_the_generation_config(
    copy: Path, configured: dict[str, Any] | None, expected: set[int]
) -> None:
    (copy / "generation_config.json").unlink()
    if configured is not None:
        (copy / "generation_config.json").write_text(json.dumps(configured))
    tokenizer = HubTokenizer(copy)
    assert tokenizer.eos_ids == expected
    assert tokenizer.end_of_turn_id == END


def test_without_a_chat_template_only_raw_prompts_can_be_made(copy: Path) -> None:
    write_tokenizer(copy, chat_template=None)
    (copy / "chat_template.jinja").unlink()
    tokenizer = HubTokenizer(copy)
    with pytest.raises(ModelError, match=r"no chat template.*--render raw"):
        tokenizer.render(MESSAGES, "chat", {})
    assert tokenizer.render(MESSAGES, "raw", {}) == tokenizer.encode("What is the sum?")


def test_a_directory_without_a_tokenizer_is_refused(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copy / name).unlink()
    with pytest.raises(ModelError, match="no usable tokenizer"):
        HubTokenizer(copy)


def test_a_tokenizer_that_is_cut_off_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes()[:500])
    with pytest.raises(ModelError, match="no usable tokenizer"):
        HubTokenizer(copy)


def without(path: Path, *names: str) -> None:
    """Remove entries from a JSON file."""
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in settings.items() if key not in names}))


def test_a_tokenizer_without_an_end_is_refused(copy: Path) -> None:
    write_tokenizer(copy, chat_template=None)
    (copy / "chat_template.jinja").unlink()
    (copy / "generation_config.json").unlink()
    without(copy / "config.json", "eos_token_id")
    without(copy / "tokenizer_config.json", "eos_token")
    with pytest.raises(ModelError, match="has no EOS token"):
        HubTokenizer(copy)


def test_the_fingerprint_tells_vocabularies_apart_and_nothing_else(model: Path, copy: Path) -> None:
    original = HubTokenizer(model).fingerprint()
    set_eos(copy, [END, OTHER_END])
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert HubTokenizer(copy).fingerprint() == original
    write_tokenizer(copy, merges=tuple((a, b) for a in "abcd" for b in "eghij"))
    assert HubTokenizer(copy).fingerprint() != original
    assert ByteTokenizer().fingerprint() != original
