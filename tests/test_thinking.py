"""Prompts that open the thinking block themselves: a response that is cut off inside its thoughts has no answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Trd
from support.sets import rows_of
from support.tiny import build_model, write_tokenizer

from trd_cli.graders.base import NO_ANSWER
from trd_cli.graders.thinking import Prompts
from trd_cli.prompting.tokens import HubTokenizer
from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import shard_path, write_shard

OPENING = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
)
CLOSING = OPENING.replace("<think>\n{% endif", "<think>\n\n</think>\n\n{% endif")
MESSAGES = ({"role": "user", "content": "What does <think> mean?"},)
CUT, WHOLE, BARE = r"perhaps \boxed{12}", r"hm</think>so \boxed{12}", r"<think>hm</think>so \boxed{12}"

Make = Callable[..., Path]


@pytest.fixture
def asked(rollouts: Path, tmp_path: Path) -> Make:
    """Return a set whose prompts come from a chat template, with a row for each response."""
    row = rows_of(rollouts)[0]

    def make(template: str, *responses: str, **changes: object) -> Path:
        model = build_model(tmp_path / "model")
        write_tokenizer(model, chat_template=template)
        prompt = HubTokenizer(model).render(MESSAGES, "chat", {})
        made = replace(
            row,
            model=str(model),
            prompt_token_ids=prompt,
            messages=MESSAGES,
            reference_answer="12",
            ids_exact=True,
            **changes,
        )
        answered = [replace(made, trajectory_id=f"{n:032x}", response=text) for n, text in enumerate(responses)]
        (tmp_path / "asked").mkdir()
        write_shard(shard_path(tmp_path / "asked", 0), answered)
        return tmp_path / "asked"

    return make


def verified(ok: Trd, directory: Path) -> list[Trajectory]:
    ok("verify", directory, "--workers", 1)
    return rows_of(directory)


def test_a_response_cut_off_in_the_thoughts_that_its_prompt_opened_has_no_answer(asked: Make, ok: Trd) -> None:
    cut, whole, bare = verified(ok, asked(OPENING, CUT, WHOLE, BARE))
    assert (cut.verdict, cut.extracted_answer, cut.verdict_detail) == ("incorrect", None, NO_ANSWER)
    assert (whole.verdict, bare.verdict) == ("correct", "correct")


@pytest.mark.parametrize("template", [CLOSING, OPENING.replace("<think>\n", "")])
def test_a_prompt_that_closes_the_block_or_has_none_opens_no_thoughts(asked: Make, ok: Trd, template: str) -> None:
    (row,) = verified(ok, asked(template, CUT))
    assert row.verdict == "correct"


def test_a_program_in_thoughts_that_never_end_is_none(asked: Make, ok: Trd) -> None:
    tests = json.dumps({"kind": "stdin", "inputs": [""], "outputs": ["5\n"]})
    program = "```python\nprint(5)\n```"
    directory = asked(OPENING, program, f"hm</think>\n{program}", task="code", tests=tests)
    assert [row.verdict_detail for row in verified(ok, directory)] == [NO_ANSWER, None]


def test_the_prompts_of_a_server_that_keeps_thoughts_apart_tell_only_of_responses_that_it_cut_off(
    tmp_path: Path,
) -> None:
    model = build_model(tmp_path / "model")
    write_tokenizer(model, chat_template=OPENING)
    prompt = HubTokenizer(model).render(MESSAGES, "chat", {})
    prompts = Prompts()
    assert prompts.open_thinking(str(model), prompt, CUT, True, "stop")
    assert prompts.open_thinking(str(model), prompt, CUT, False, "length")
    assert not prompts.open_thinking(str(model), prompt, CUT, False, "stop")
    assert not prompts.open_thinking(str(tmp_path / "gone"), prompt, CUT, True, "length")


def test_the_scripted_engine_writes_its_prompts_in_bytes() -> None:
    assert Prompts().open_thinking("scripted", [*b"assistant\n<think>\n"], CUT, True, "length")
    assert not Prompts().open_thinking("scripted", [*b"assistant\n"], CUT, True, "length")
