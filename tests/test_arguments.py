"""Arguments for chat templates and engines: spellings of values, names that no one reads, names that trd sets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.sets import rows_of
from support.tiny import build_model

from trd_cli.config.generating import EngineOptions, SampleConfig
from trd_cli.engines.registry import check_arguments
from trd_cli.errors import EngineError
from trd_cli.prompting.tokens import HubTokenizer

TEMPLATE = (
    "{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif -%}"
    "{% for m in messages %}{% generation %}<|start|>{{ m['content'] }}<|end|>{% endgeneration %}{% endfor %}"
    "{% if tools %}{{ tools }}{% endif %}"
    "{{ 'think' if enable_thinking else 'answer' }} {{ style }} {{ strftime_now('') }}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = build_model(tmp_path_factory.mktemp("arguments") / "model")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("true", True), ("True", True), ("false", False), ("False", False), ("null", None), ("None", None)),
        *(("3", 3), ("0.5", 0.5), ("[1]", [1]), ('"True"', "True"), ("TRUE", "TRUE"), ("high", "high")),
    ],
)
def test_values_are_read_as_json_and_as_python_spells_them(text: str, value: Any) -> None:
    config = SampleConfig.parse({"problems": "p", "chat_template_kwargs": [f"x={text}"], "engine_arg": [f"y={text}"]})
    assert config.chat_template_kwargs == {"x": value}
    assert config.engine_arg == {"y": value}


def test_the_names_of_a_template_are_those_that_a_user_can_give(model: Path) -> None:
    assert HubTokenizer(model).template_names() == {"enable_thinking", "style", "tools"}


def sampled(trd: Trd, model: Path, problems: Path, out: Path, *options: object) -> Any:
    engine = ("--engine", "transformers", "--device", "cpu", "--max-tokens", 4, "--limit", 1)
    return trd("sample", "-m", model, "-p", problems, *engine, *options, "--out", out)


def test_a_false_in_python_s_spelling_reaches_the_template_as_false(
    model: Path, problems: Path, ok: Trd, tmp_path: Path
) -> None:
    kwargs = ("--chat-template-kwargs", "enable_thinking=False", "--chat-template-kwargs", "style=brief")
    told = sampled(ok, model, problems, tmp_path / "y_o", *kwargs).stderr
    assert "does not read" not in told
    (row,) = rows_of(tmp_path / "y_o")
    assert HubTokenizer(model).decode(row.prompt_token_ids).rstrip().endswith("answer brief")


def test_a_name_that_the_template_does_not_read_is_said_with_those_it_reads(
    model: Path, problems: Path, ok: Trd, tmp_path: Path
) -> None:
    kwargs = ("--chat-template-kwargs", "enable_thinkng=false")
    note = "the chat template does not read enable_thinkng: it reads enable_thinking, style, tools"
    assert note in sampled(ok, model, problems, tmp_path / "y_o", *kwargs).stderr
    engine = ("--engine", "transformers", "--device", "cpu", "--max-tokens", 4)
    assert note in ok("eval", model, "-b", "arithmetic:n=1", *engine, *kwargs, "--out", tmp_path / "e").stderr
    # Refining and training use the arguments that the rollouts were made with.
    refined = ok("refine", "--setting", "opsd", tmp_path / "y_o", *engine, "--out", tmp_path / "y_r")
    assert note in refined.stderr
    assert note in ok("distill", tmp_path / "y_r", "--dry-run").stderr


def test_without_a_template_no_name_is_read(model: Path, problems: Path, ok: Trd, tmp_path: Path) -> None:
    kwargs = ("--chat-template-kwargs", "enable_thinking=false", "--render", "raw")
    told = sampled(ok, model, problems, tmp_path / "y_o", *kwargs).stderr
    assert "--render raw reads no enable_thinking" in told
    plain = shutil.copytree(model, tmp_path / "plain")
    (plain / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    told = sampled(ok, plain, problems, tmp_path / "plain-y_o", *kwargs[:2]).stderr
    assert "does not read enable_thinking: it reads no argument" in told


@pytest.mark.parametrize(
    ("engine", "argument", "instead"),
    [
        ("vllm", {"model": "x"}, "--model"),
        ("vllm", {"tokenizer": "x"}, "--model"),
        ("vllm", {"tensor_parallel_size": 2}, "--tensor-parallel-size"),
        ("vllm", {"max_num_seqs": 2}, "--batch-size"),
        ("vllm", {"skip_tokenizer_init": True}, "ends of a response"),
        ("vllm", {"logprobs_mode": "processed_logprobs"}, "raw_logprobs"),
        ("transformers", {"torch_dtype": "float16"}, "--dtype"),
        ("transformers", {"ignore_mismatched_sizes": True}, "would be random"),
        ("openai", {"model": "x"}, "one of api"),
        ("scripted", {"colour": "red"}, "one of accuracy"),
    ],
)
def test_an_engine_argument_that_would_break_rows_or_has_an_option_is_refused(
    engine: Any, argument: dict[str, Any], instead: str
) -> None:
    with pytest.raises(EngineError) as raised:
        check_arguments(engine, EngineOptions(engine_arg=argument))
    (name,) = argument
    assert raised.value.got.startswith(f"--engine-arg {name}")
    assert instead in raised.value.expected


@pytest.mark.parametrize(
    ("engine", "argument"),
    [
        ("vllm", {"enforce_eager": False}),
        ("vllm", {"kv_cache_memory_bytes": 1 << 30}),
        ("vllm", {"logprobs_mode": "raw_logprobs"}),
        ("transformers", {"attn_implementation": "eager"}),
        ("openai", {"api": "chat"}),
    ],
)
def test_what_an_engine_takes_beside_the_options_still_wins(engine: Any, argument: dict[str, Any]) -> None:
    check_arguments(engine, EngineOptions(engine_arg=argument))
