"""Model directories with broken or newer files, useless templates or no context length: one line names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import Trd
from support.sets import rows_of
from support.tiny import END, SHAPE, VOCABULARY, build_model

from trd_cli.errors import ModelError
from trd_cli.model_files import context_length, tensor_names
from trd_cli.models import resolve_model

ON_CPU = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 6)
Break = Callable[[Path], None]


def cut(name: str) -> Break:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:60])


def written(name: str, content: bytes) -> Break:
    return lambda model: (model / name).write_bytes(content) and None


def edited(name: str, *keys: str, value: Any) -> Break:
    """Set an entry of a JSON file; `keys` are the path to it."""

    def change(model: Path) -> None:
        settings = place = json.loads((model / name).read_text())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (model / name).write_text(json.dumps(settings))

    return change


def template(text: str) -> Break:
    return written("chat_template.jinja", text.encode())


SHOWN = "{{ messages[0]['content'] }}"
# The damage, and the words that the line must have beside the directory.
BROKEN: dict[str, tuple[Break, tuple[str, ...]]] = {
    "config.json, cut": (cut("config.json"), ("config.json cannot be read", "line ")),
    "config.json, no text": (written("config.json", b"\xff\xfe{}"), ("config.json", "'utf-8' codec")),
    "config.json, a list": (written("config.json", b"[]"), ("config.json", "it holds a list")),
    "generation_config.json, cut": (
        written("generation_config.json", b'{"eos_token_id": [2'),
        ("generation_config.json cannot be read", "line 1"),
    ),
    "generation_config.json, null": (
        written("generation_config.json", b"null"),
        ("generation_config.json", "it holds a NoneType"),
    ),
    "generation_config.json, an end by name": (
        written("generation_config.json", b'{"eos_token_id": "</s>"}'),
        ("generation_config.json: eos_token_id is", "an id"),
    ),
    "tokenizer.json, cut": (cut("tokenizer.json"), ("tokenizer.json: ", "line ")),
    "tokenizer_config.json, cut": (cut("tokenizer_config.json"), ("tokenizer_config.json: ", "line ")),
    "tokenizer_config.json, a list": (
        written("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json: it holds a list",),
    ),
    "a pre-tokenizer of a newer version": (
        edited("tokenizer.json", "pre_tokenizer", value={"type": "Quantum"}),
        ("tokenizer.json: data did not match any variant", "upgrade"),
    ),
    "a tokenizer file of a newer version": (
        edited("tokenizer.json", "version", value="9.0"),
        ("tokenizer.json: ", "'9.0'", "upgrade"),
    ),
    "chat_template.jinja, no text": (
        written("chat_template.jinja", b"\xff" + SHOWN.encode()),
        ("chat_template.jinja: 'utf-8' codec",),
    ),
    "a template that does not compile": (
        template(SHOWN + "{% if %}"),
        ("chat_template.jinja fails: Expected an expression", "--render raw"),
    ),
    "a template that raises": (
        template("{{ raise_exception('only for tools') }}"),
        ("chat_template.jinja fails: only for tools",),
    ),
    "a template that fails": (template("{{ messages[7]['content'] + '' }}"), ("chat_template.jinja fails: ",)),
    "a template that renders nothing": (template("<|start|>"), ("chat_template.jinja renders nothing",)),
    "an empty template": (template(""), ("chat_template.jinja renders nothing",)),
    "a template that drops the user's turn": (
        template("{% for m in messages if m['role'] == 'human' %}{{ m['content'] }}{% endfor %}Answer:"),
        ("chat_template.jinja does not show what the user says",),
    ),
    "an unknown architecture": (
        edited("config.json", "model_type", value="quantum"),
        ("config.json", "`quantum`", "does not recognize"),
    ),
    "a value that the architecture does not take": (
        edited("config.json", "hidden_size", value="wide"),
        ("config.json", "hidden_size", "expected int"),
    ),
    "a rope that transformers does not know": (
        edited("config.json", "rope_parameters", value={"rope_type": "quantum"}),
        ("KeyError: 'quantum'",),
    ),
    "weights, cut": (cut("model.safetensors"), ("model.safetensors cannot be read", "header")),
    "a context length in words": (
        edited("config.json", "max_position_embeddings", value="2048"),
        ("config.json: ", "max_position_embeddings", "expected int, got str"),
    ),
    "a context length of 0": (
        edited("config.json", "max_position_embeddings", value=0),
        ("config.json: max_position_embeddings is 0", "--max-model-len"),
    ),
    "a context length of null": (
        edited("config.json", "max_position_embeddings", value=None),
        ("config.json: ", "max_position_embeddings", "expected int, got NoneType"),
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("files") / "model")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "copy")


def the_line(result: Any) -> str:
    """Return the one line of a failed command, after any progress that it reported."""
    assert (result.exit_code, result.stdout) == (1, ""), result.stdout
    *_, line = result.stderr.strip().splitlines()
    assert ": error: " in line
    assert "; expected " in line
    return line


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_directory_is_one_line_with_the_file_and_its_own_words(
    copy: Path, problems: Path, trd: Trd, tmp_path: Path, name: str
) -> None:
    breaks, words = BROKEN[name]
    breaks(copy)
    line = the_line(trd("sample", "-m", copy, "-p", problems, *ON_CPU, "--out", tmp_path / "y_o"))
    assert [word for word in (str(copy), *words) if word not in line] == [], line


@pytest.fixture(scope="module")
def sets(model: Path, tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return rollouts and refined rows of the sound model, and a recipe for it."""
    root = tmp_path_factory.mktemp("sets")
    ok("data", "make", "arithmetic", "--n", 3, "--seed", 1, "--out", root / "problems.parquet")
    ok("sample", "-m", model, "-p", root / "problems.parquet", *ON_CPU, "--out", root / "y_o")
    ok("refine", "--setting", "opsd", root / "y_o", *ON_CPU, "--out", root / "y_r")
    return root


def command(entrance: str, sets: Path, model: Path, tmp_path: Path) -> tuple[object, ...]:
    """Return a command that uses the model and writes to tmp_path."""
    train = ("--setting", "opsd", "-m", model, "--dtype", "float32", "--device", "cpu")
    if entrance in ("plan", "run"):
        recipe = {
            "setting": "opsd",
            "student": str(model),
            "problems": {"file": str(sets / "problems.parquet")},
            "sample": {"max_tokens": 6},
            "arms": {"trd": {"method": "trd"}},
        }
        (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    return {
        "sample": ("sample", "-m", model, "-p", sets / "problems.parquet", *ON_CPU, "--out", tmp_path / "o"),
        "refine": ("refine", "--setting", "opsd", "-t", model, sets / "y_o", *ON_CPU, "--out", tmp_path / "o"),
        "eval": ("eval", model, "--bench", "arithmetic:n=2", *ON_CPU, "--out", tmp_path / "o"),
        "distill": ("distill", *train, sets / "y_r", "--out", tmp_path / "o"),
        "selfcheck": ("distill", "--selfcheck", *train, sets / "y_r"),
        "plan": ("plan", tmp_path / "recipe.toml", "--run", tmp_path / "run"),
        "run": ("run", tmp_path / "recipe.toml", "--out", tmp_path / "run"),
    }[entrance]


ENTRANCES = ("sample", "refine", "eval", "distill", "selfcheck", "plan", "run")
EVERYWHERE = (
    "config.json, cut",
    "generation_config.json, cut",
    "a pre-tokenizer of a newer version",
    "an unknown architecture",
    "weights, cut",
)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_command_that_takes_a_model_says_so(
    copy: Path, sets: Path, trd: Trd, tmp_path: Path, entrance: str, name: str
) -> None:
    breaks, words = BROKEN[name]
    breaks(copy)
    result = trd(*command(entrance, sets, copy, tmp_path))
    assert result.exit_code == 1
    told = result.stdout if entrance == "plan" else result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert [word for word in words if word not in told] == [], told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("entrance", ["refine", "eval", "plan", "run"])
def test_every_command_that_renders_prompts_tries_the_template_first(
    copy: Path, sets: Path, trd: Trd, tmp_path: Path, entrance: str
) -> None:
    breaks, words = BROKEN["a template that drops the user's turn"]
    breaks(copy)
    result = trd(*command(entrance, sets, copy, tmp_path))
    assert result.exit_code == 1
    told = result.stdout if entrance == "plan" else result.stderr.splitlines()[-1]
    assert words[0] in told
    assert not (tmp_path / "o").exists()


def sharded(directory: Path) -> Path:
    """Return a model whose weights are in several files with an index."""
    from support.tiny import write_tokenizer
    from transformers import AutoModelForCausalLM

    build_model(directory / "whole")
    model = AutoModelForCausalLM.from_pretrained(str(directory / "whole"))
    model.save_pretrained(directory / "shards", max_shard_size="60KB")
    write_tokenizer(directory / "shards")
    return directory / "shards"


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (cut(INDEX), (f"{INDEX} cannot be read", "line ")),
        (written(INDEX, b"{}"), (f"{INDEX} has no weight_map",)),
        (written(INDEX, b'{"weight_map": {"a": ["b"]}}'), (f"{INDEX} has no weight_map",)),
        (lambda m: sorted(m.glob("model-*"))[-1].unlink(), (INDEX, "names model-0000", "which is not there")),
        (lambda m: cut(sorted(m.glob("model-*"))[-1].name)(m), ("model-0000", "cannot be read")),
    ],
    ids=["index cut", "index empty", "index of lists", "shard missing", "shard cut"],
)
def test_damaged_weights_in_several_files_are_named(
    problems: Path, sets: Path, trd: Trd, tmp_path: Path, breaks: Break, words: tuple[str, ...]
) -> None:
    model = sharded(tmp_path)
    assert len(tensor_names(model)) == 21
    breaks(model)
    for entrance in ("sample", "distill", "run"):
        result = trd(*command(entrance, sets, model, tmp_path))
        assert result.exit_code == 1
        *_, line = result.stderr.strip().splitlines()
        assert [word for word in words if word not in line] == [], line


def without_length(model: Path) -> None:
    settings = json.loads((model / "config.json").read_text())
    del settings["max_position_embeddings"]
    (model / "config.json").write_text(json.dumps(settings))


def test_the_length_that_is_asked_for_counts_where_the_model_names_none(
    copy: Path, problems: Path, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    without_length(copy)
    sample = ("sample", "-m", copy, "-p", problems, "--limit", 2, *ON_CPU)
    assert "names no context length" in the_line(trd(*sample, "--out", tmp_path / "y_o"))
    ok(*sample, "--max-model-len", 300, "--out", tmp_path / "y_o")
    ok("refine", "--setting", "opsd", "--max-model-len", 1500, tmp_path / "y_o", *ON_CPU, "--out", tmp_path / "y_r")
    ok("eval", copy, "--bench", "arithmetic:n=1", "--max-model-len", 300, *ON_CPU, "--out", tmp_path / "e")
    train = ("distill", tmp_path / "y_r", "--dtype", "float32", "--device", "cpu")
    line = the_line(trd(*train, "--out", tmp_path / "c"))
    assert "names no context length" in line
    assert "--max-length" in line
    ok(*train, "--max-length", 1600, "--out", tmp_path / "c")
    assert len(rows_of(tmp_path / "y_r")) == 2


def test_the_length_that_is_asked_for_is_no_longer_than_the_one_that_the_model_names(
    copy: Path, problems: Path, trd: Trd, tmp_path: Path
) -> None:
    sample = ("sample", "-m", copy, "-p", problems, *ON_CPU, "--max-model-len", 9000)
    assert "at most the 2048" in the_line(trd(*sample, "--out", tmp_path / "y_o"))


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({"text_config": {"hidden_size": 8}, "max_position_embeddings": 512}, 512),
        ({"text_config": None, "n_positions": 512}, 512),
        ({"max_position_embeddings": None, "seq_length": 512}, 512),
        ({"max_seq_len": 512}, 512),
    ],
)
def test_the_context_length_is_found_by_the_names_that_families_give_it(
    tmp_path: Path, config: dict[str, Any], length: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(tmp_path) == length
    assert resolve_model(str(tmp_path)).max_length() == length


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "config.json names no context length"),
        ({"max_position_embeddings": None, "text_config": {}}, "config.json names no context length"),
        ({"max_position_embeddings": "2048"}, 'config.json: max_position_embeddings is "2048"'),
        ({"max_position_embeddings": True}, "config.json: max_position_embeddings is true"),
        ({"n_positions": -1}, "config.json: n_positions is -1"),
    ],
)
def test_what_is_no_context_length_is_said_with_the_way_to_give_one(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as raised:
        context_length(tmp_path)
    assert said in str(raised.value)
    assert "give --max-model-len" in str(raised.value)


def test_a_nested_configuration_without_a_length_takes_the_one_asked_for(
    problems: Path, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    from transformers import Gemma3Config

    text = {
        **SHAPE,
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 16,
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    model = build_model(tmp_path / "model", config=Gemma3Config(text_config=text, vision_config=vision))
    settings = json.loads((model / "config.json").read_text())
    del settings["text_config"]["max_position_embeddings"]
    (model / "config.json").write_text(json.dumps(settings))
    sample = ("sample", "-m", model, "-p", problems, "--limit", 1, *ON_CPU, "--out", tmp_path / "y_o")
    assert f"{model}/config.json names no context length" in the_line(trd(*sample))
    ok(*sample, "--max-model-len", 300)


def test_a_model_that_names_its_sizes_otherwise_is_one_line_too(
    problems: Path, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    from transformers import BloomConfig

    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, eos_token_id=END)
    model = build_model(tmp_path / "model", config=config)
    sample = ("sample", "-m", model, "-p", problems, *ON_CPU, "--out", tmp_path / "y_o")
    assert "config.json names no context length" in the_line(trd(*sample))
    assert "ALiBi" in the_line(trd(*sample, "--max-model-len", 300))
