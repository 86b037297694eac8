"""The tokens that end a response: by the chat template, the tokenizer and the configurations of known families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.sets import rows_of
from support.tiny import CHAT_TEMPLATE, END, OTHER_END, SPECIALS, build_model, write_tokenizer

from trd_cli.prompting.tokens import HubTokenizer

START = SPECIALS.index("<|start|>")
MESSAGES = ({"role": "user", "content": "What is the sum?"},)
FOR_EACH = "{% for m in messages %}"
PROMPT = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"


@dataclass(frozen=True)
class Family:
    """A chat template, the tokenizer's own end, the ends in the configurations, and the end of an assistant's turn."""

    template: str | None
    eos: str | None
    end: int
    config: Any = None
    generation: Any = None
    ends: frozenset[int] = frozenset()


FAMILIES: dict[str, Family] = {
    "a base model with the template of its chat model": Family(
        CHAT_TEMPLATE, "<|eos|>", END, config=OTHER_END, ends=frozenset({END, OTHER_END})
    ),
    "strips contents, has its own role, refuses another order, sets a beginning": Family(
        "<|pad|>{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user and assistant must alternate') }}{% endif %}"
        "<|start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>model\n{% endif %}",
        "<|eos|>",
        END,
        generation=[OTHER_END, END],
        ends=frozenset({END, OTHER_END}),
    ),
    "writes the end of the text after the end of the turn": Family(
        FOR_EACH + "<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% else %}{{ eos_token }}{% endif %}",
        "<|eos|>",
        END,
        ends=frozenset({END, OTHER_END}),
    ),
    "closes an answer before it ends the turn": Family(
        FOR_EACH + "<|start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}<|pad|>{% endif %}{{ eos_token }}{% endfor %}" + PROMPT,
        "<|eos|>",
        OTHER_END,
        ends=frozenset({OTHER_END}),
    ),
    "opens a thought in its prompt and writes an empty one before an answer": Family(
        FOR_EACH + "<|start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}",
        "<|end|>",
        END,
        ends=frozenset({END}),
    ),
    "ends every answer with the end of the text": Family(
        FOR_EACH + "{% if m['role'] == 'user' %}[Q] {{ m['content'] }} [A]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}",
        "<|eos|>",
        OTHER_END,
        ends=frozenset({OTHER_END}),
    ),
    "ends a turn where the next one begins": Family(
        FOR_EACH + "<|start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}" + PROMPT,
        "<|eos|>",
        START,
        generation=[OTHER_END, START],
        ends=frozenset({START, OTHER_END}),
    ),
    "writes no end": Family(
        FOR_EACH + "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        "<|eos|>",
        OTHER_END,
        ends=frozenset({OTHER_END}),
    ),
    "knows no assistant": Family(
        FOR_EACH + "{% if m['role'] == 'user' %}<|start|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}",
        "<|eos|>",
        OTHER_END,
        ends=frozenset({OTHER_END}),
    ),
    "no template": Family(None, "<|eos|>", OTHER_END, ends=frozenset({OTHER_END})),
    "no end of its own": Family(CHAT_TEMPLATE, None, END, ends=frozenset({END})),
    "no end of its own and no template": Family(None, None, OTHER_END, config=[OTHER_END], ends=frozenset({OTHER_END})),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("ends") / "model")


Shaped = Callable[[Family], Path]


@pytest.fixture
def shaped(model: Path, tmp_path: Path) -> Shaped:
    """Return a copy of the model with a family's template and ends."""

    def shaped(family: Family) -> Path:
        directory = shutil.copytree(model, tmp_path / "shaped")
        (directory / "chat_template.jinja").unlink()
        write_tokenizer(directory, chat_template=family.template)
        edit(directory / "tokenizer_config.json", eos_token=family.eos)
        edit(directory / "config.json", eos_token_id=family.config)
        (directory / "generation_config.json").unlink()
        if family.generation is not None:
            (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": family.generation}))
        return directory

    return shaped


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_a_turn_is_what_the_template_writes_after_an_answer(shaped: Shaped, name: str) -> None:
    family = FAMILIES[name]
    tokenizer = HubTokenizer(shaped(family))
    assert tokenizer.end_of_turn_id == family.end
    assert tokenizer.eos_ids == family.ends
    assert tokenizer.end_of_turn_id in tokenizer.eos_ids


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, OTHER_END, {END, OTHER_END}),
        (None, [OTHER_END, START], {END, OTHER_END, START}),
        ({}, [OTHER_END], {END, OTHER_END}),
        ({"eos_token_id": None}, OTHER_END, {END, OTHER_END}),
        ({"eos_token_id": END}, OTHER_END, {END}),
        (None, None, {END}),
    ],
)
def test_ends_in_config_json_count_where_generation_config_json_names_none(
    model: Path, tmp_path: Path, generation: Any, config: Any, expected: set[int]
) -> None:
    directory = shutil.copytree(model, tmp_path / "copy")
    edit(directory / "config.json", eos_token_id=config)
    (directory / "generation_config.json").unlink()
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    assert HubTokenizer(directory).eos_ids == expected


def test_ends_in_a_nested_configuration_count_too(model: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(model, tmp_path / "copy")
    (directory / "generation_config.json").unlink()
    edit(directory / "config.json", eos_token_id=None, text_config={"eos_token_id": [OTHER_END]})
    assert HubTokenizer(directory).eos_ids == {END, OTHER_END}


def test_an_end_that_is_added_as_plain_text_is_no_part_of_a_response(model: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(model, tmp_path / "copy")
    settings = json.loads((directory / "tokenizer.json").read_text())
    for token in settings["added_tokens"]:
        token["special"] = token["content"] != "<|end|>"
    (directory / "tokenizer.json").write_text(json.dumps(settings))
    edit(directory / "tokenizer_config.json", eos_token="<|eos|>")
    tokenizer = HubTokenizer(directory)
    assert tokenizer.end_of_turn_id == END
    assert tokenizer.decode([*tokenizer.encode("the sum"), END]) == "the sum"


def with_post_processor(directory: Path, single: str) -> Path:
    """Let the tokenizer write special tokens around a text, in the form `single`."""
    from tokenizers import Tokenizer, processors

    names = {name: SPECIALS.index(name) for name in SPECIALS if name in single}
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[*names.items()])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize(
    ("single", "before"),
    [
        ("$A <|eos|>", []),
        ("<|start|> $A <|eos|>", [START]),
        ("<|start|> $A", [START]),
        ("<|eos|> $A <|eos|>", [OTHER_END]),
        ("$A <|end|>", []),
    ],
)
def test_a_raw_prompt_keeps_its_beginning_and_never_ends_with_an_end(
    shaped: Shaped, single: str, before: list[int]
) -> None:
    family = FAMILIES["a base model with the template of its chat model"]
    tokenizer = HubTokenizer(with_post_processor(shaped(family), single))
    assert tokenizer.render(MESSAGES, "raw", {}) == [*before, *tokenizer.encode("What is the sum?")]


def test_sampling_stops_at_the_end_of_a_turn_that_no_configuration_names(
    shaped: Shaped, problems: Path, tmp_path: Path, ok: Trd
) -> None:
    directory = shaped(FAMILIES["a base model with the template of its chat model"])
    options = ("--engine", "transformers", "--device", "cpu", "--top-k", 0, "--top-p", 1, "--temperature", 1)
    ok("sample", "-m", directory, "-p", problems, "-n", 3, "--max-tokens", 400, *options, "--out", tmp_path / "y_o")
    rows = rows_of(tmp_path / "y_o")
    assert any(row.response_token_ids[-1] == END for row in rows), "a random model writes it now and then"
    for row in rows:
        assert not {END, OTHER_END} & set(row.response_token_ids[:-1])
        assert (row.response_token_ids[-1] in (END, OTHER_END)) == (row.finish_reason == "stop")
