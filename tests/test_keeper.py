"""A process of several commands keeps engines and graders: what is kept gives what a fresh one gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny import build_model, reference_model

from trd_cli import keeper
from trd_cli.engines.probe import LENGTH, logprobs_of, probe_ids, read_probe, write_probe
from trd_cli.models import fingerprint


@pytest.fixture
def kept() -> Iterator[keeper.Keeper]:
    """Make this process keep things while a test runs."""
    yield keeper.begin()
    keeper.end()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("checkpoint"), seed=1)


def test_a_process_of_one_command_keeps_nothing() -> None:
    assert keeper.current() is None


def test_a_thing_is_handed_out_once_and_only_what_is_put_back_is_kept(kept: keeper.Keeper) -> None:
    closed: list[str] = []
    kept.put("a", 1, lambda: closed.append("a1"))
    assert kept.take("a") == 1
    assert kept.take("a") is None
    kept.put("a", 2, lambda: closed.append("a2"))
    kept.put("a", 3, lambda: closed.append("a3"))
    assert closed == ["a2"]
    assert kept.take("a") == 3


def test_the_end_of_keeping_closes_everything_even_if_closing_one_thing_fails(kept: keeper.Keeper) -> None:
    closed: list[str] = []

    def fail() -> None:
        raise RuntimeError("cannot close")

    kept.put("a", 1, lambda: closed.append("a"))
    kept.put("b", 2, fail)
    kept.put("c", 3, lambda: closed.append("c"))
    with pytest.raises(RuntimeError, match="cannot close"):
        keeper.end()
    assert closed == ["c", "a"]
    assert keeper.current() is None


def test_a_probe_is_the_end_of_a_prompt_and_the_beginning_of_its_response() -> None:
    assert probe_ids(range(100), range(100, 300)) == list(range(68, 132))
    assert probe_ids([1, 2], [3, 4]) == [1, 2, 3, 4]
    assert len(probe_ids([1], range(500))) == LENGTH


def test_a_probe_holds_what_the_saved_weights_give_and_is_no_part_of_the_model(
    checkpoint: Path, tmp_path: Path
) -> None:
    ids = [5, 20, 33, 7, 61, 250]
    model, revision = reference_model(checkpoint), fingerprint(checkpoint)
    write_probe(checkpoint, model, ids)
    probe = read_probe(checkpoint)
    assert probe.token_ids == ids
    assert probe.logprobs == logprobs_of(model, ids)
    assert len(probe.logprobs) == len(ids) - 1
    assert fingerprint(checkpoint) == revision
    (tmp_path / "probe.json").write_text(json.dumps({"token_ids": [1, 2], "logprobs": []}))
    assert read_probe(tmp_path) is None
    (tmp_path / "probe.json").write_text('{"token_ids": [1, 2')
    assert read_probe(tmp_path) is None
