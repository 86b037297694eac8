"""A process of several commands keeps engines and graders: what is kept gives what a fresh one gives."""

from __future__ import annotations

import json
import random
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd
from support.tiny import SHAPE, VOCABULARY, build_model, engine_of, reference_model, write_bare_model

from trd_cli import keeper
from trd_cli.config.generating import EngineOptions
from trd_cli.engines.base import Engine
from trd_cli.engines.kept import start_kept
from trd_cli.engines.probe import LENGTH, LIMITS, difference, logprobs_of, probe_ids, read_probe, write_probe
from trd_cli.engines.starting import start_engine
from trd_cli.models import ModelRef, fingerprint, resolve_model
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request, Sampling
from trd_cli.trajectories.shards import list_shards

IDS = [random.Random(1).randrange(4, VOCABULARY) for _ in range(LENGTH)]
ON_CPU = {"device": "cpu", "batch_size": 3}
SHORT = ("--max-tokens", 8, "--dtype", "float32", "--engine", "transformers", "--device", "cpu")


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


@pytest.mark.parametrize("end", ["put", "rest", "close"])
def test_a_thing_is_forgotten_before_it_is_closed(kept: keeper.Keeper, end: str) -> None:
    thing, alive = threading.Event(), []
    seen = weakref.ref(thing)
    kept.put("a", thing, lambda: alive.append(seen() is not None))
    del thing
    if end == "put":
        kept.put("a", 2, lambda: None)
    else:
        getattr(kept, end)()
    assert alive == [False]


def test_a_probe_is_the_end_of_a_prompt_and_the_beginning_of_its_response() -> None:
    assert probe_ids(range(100), range(100, 300)) == list(range(68, 132))
    assert probe_ids([1, 2], [3, 4]) == [1, 2, 3, 4]
    assert len(probe_ids([1], range(500))) == LENGTH


def test_a_probe_holds_what_the_saved_weights_give_and_is_no_part_of_the_model(
    checkpoint: Path, tmp_path: Path
) -> None:
    ids = [5, 20, 33, 7, 61, 250]
    model, revision = reference_model(checkpoint), fingerprint(checkpoint)
    write_probe(checkpoint, model, ids, torch.float32)
    probe = read_probe(checkpoint)
    assert probe.token_ids == ids
    assert probe.logprobs == logprobs_of(model, ids)
    assert len(probe.logprobs) == len(ids) - 1
    assert fingerprint(checkpoint) == revision
    (tmp_path / "probe.json").write_text(json.dumps({"token_ids": [1, 2], "logprobs": []}))
    assert read_probe(tmp_path) is None
    (tmp_path / "probe.json").write_text('{"token_ids": [1, 2')
    assert read_probe(tmp_path) is None


def with_probe(directory: Path) -> Path:
    """Give a model its probe, as the trainer gives one to a checkpoint."""
    write_probe(directory, reference_model(directory), IDS, torch.float32)
    return directory


def configs() -> dict[str, Any]:
    import transformers

    rope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [4.0, 7.0, 11.0, 16.0]}
    mixed = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "use_sliding_window": True}
    return {
        "llama": transformers.LlamaConfig(**SHAPE),
        "tied": transformers.LlamaConfig(**{**SHAPE, "tie_word_embeddings": True}),
        "some layers slide": transformers.Qwen3Config(**SHAPE, **mixed),
        "longrope": transformers.Phi3Config(**SHAPE, original_max_position_embeddings=64, rope_scaling=rope),
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return a function that makes two models of a kind; they differ in their weights, and both have a probe."""
    made: dict[str, tuple[Path, Path]] = {}

    def directories(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            root = tmp_path_factory.mktemp("pair")
            first, second = (build_model(root / str(seed), seed, config=configs()[kind]) for seed in (0, 1))
            made[kind] = with_probe(first), with_probe(second)
        return made[kind]

    return directories


def start(directory: Path, notes: list[str] | None = None, **options: Any) -> Engine:
    model = resolve_model(str(directory))
    chosen = EngineOptions(**{"dtype": "float32", **ON_CPU, **options})
    return start_engine("transformers", model, model.tokenizer(), chosen, (notes if notes is not None else []).append)


def requests() -> list[Request]:
    """Return greedy and seeded requests with short and long prompts."""
    chance = random.Random(0)
    lengths = (3, 40, 1, 17, 120, 5, 62, 9)
    prompts = [[chance.randrange(4, VOCABULARY) for _ in range(n)] for n in lengths]
    kinds = (Sampling(0.0, 1.0, 0, 12), Sampling(0.9, 0.95, 40, 12))
    return [
        Request(f"{i} at {sampling.temperature}", prompt, sampling, seed=i)
        for i, prompt in enumerate(prompts)
        for sampling in kinds
    ]


def answers(engine: Engine) -> list[Completion]:
    """Return all completions, ordered by request, and close the engine."""
    try:
        return sorted(engine.generate(requests()), key=lambda completion: completion.request_id)
    finally:
        engine.close()


def peek(kept: keeper.Keeper) -> Engine:
    """Return the kept engine, which stays kept."""
    thing = kept.take("engine")
    kept.put("engine", thing, thing.engine.close)
    return thing.engine


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", configs())
def test_rows_of_a_reloaded_engine_are_those_of_a_fresh_one_to_the_last_bit(
    kept: keeper.Keeper, pair: Callable[[str], tuple[Path, Path]], kind: str, dtype: str
) -> None:
    first, second = pair(kind)
    notes: list[str] = []
    before = (second / "model.safetensors").read_bytes(), (first / "model.safetensors").read_bytes()
    old = answers(start(first, notes, dtype=dtype))
    engine = peek(kept)
    for directory in (second, first, first):
        found = answers(start(directory, notes, dtype=dtype))
        assert peek(kept) is engine
        assert found == answers(engine_of(directory, 3, dtype=dtype))
    assert found == old != answers(start(second, notes, dtype=dtype))
    assert notes == []
    assert before == ((second / "model.safetensors").read_bytes(), (first / "model.safetensors").read_bytes())


def test_weights_that_the_probe_contradicts_or_that_have_none_are_loaded_anew(
    kept: keeper.Keeper, pair: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    first, second = pair("llama")
    false, bare = (Path(shutil.copytree(second, tmp_path / name)) for name in ("false", "bare"))
    shutil.copy(first / "probe.json", false)
    (bare / "probe.json").unlink()
    # Another revision of the same weights.
    for directory in (false, bare):
        (directory / "generation_config.json").write_text('{"eos_token_id": [2], "max_length": 9}')
    expected, notes = answers(engine_of(second, 3)), []
    for directory, reason in ((false, "are off by"), (bare, "has no probe.json")):
        answers(start(first, notes))
        assert answers(start(directory, notes)) == expected
        assert [reason in note for note in notes] == [True]
        notes.clear()


def test_an_engine_that_kept_the_weights_of_one_step_ago_is_found_out_in_float32(tmp_path: Path) -> None:
    before, after = build_model(tmp_path / "before", seed=3), build_model(tmp_path / "after", seed=3)
    model = reference_model(before)
    ids = torch.tensor([IDS[::-1]])
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-4).step()
    model.save_pretrained(after)
    probe = read_probe(with_probe(after))
    assert difference(probe, engine_of(before).score(IDS)) > 30 * LIMITS["float32"]
    assert difference(probe, engine_of(after).score(IDS)) < LIMITS["float32"] / 3
    assert difference(probe, engine_of(after, dtype="bfloat16").score(IDS)) < LIMITS["bfloat16"]
    assert (
        difference(probe, engine_of(build_model(tmp_path / "other", seed=4), dtype="bfloat16").score(IDS))
        > LIMITS["bfloat16"]
    )


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"batch_size": 2}, {"max_model_len": 200}, {"shape": 3}])
def test_an_engine_serves_again_only_with_the_same_options_and_the_same_network(
    kept: keeper.Keeper, pair: Callable[[str], tuple[Path, Path]], tmp_path: Path, change: dict[str, Any]
) -> None:
    first, second = pair("llama")
    notes: list[str] = []
    answers(start(first, notes))
    if "shape" in change:
        second, change = with_probe(build_model(tmp_path / "deeper", num_hidden_layers=3)), {}
    engine = peek(kept)
    found = answers(start(second, notes, **change))
    assert found == answers(engine_of(second, **{"batch_size": 3, **change}))
    assert peek(kept) is not engine
    assert notes == []


def half(engine: Engine) -> None:
    next(engine.generate(requests()))


def interrupted(engine: Engine) -> None:
    def typed() -> Iterator[Request]:
        yield requests()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.generate(typed()))


def unused(engine: Engine) -> None: ...


def all_of_it(engine: Engine) -> None:
    list(engine.generate(requests()))


@pytest.mark.parametrize(("use", "is_kept"), [(half, False), (interrupted, False), (unused, True), (all_of_it, True)])
def test_an_engine_whose_work_failed_or_was_left_half_way_is_not_kept(
    kept: keeper.Keeper, pair: Callable[[str], tuple[Path, Path]], use: Callable[[Engine], None], is_kept: bool
) -> None:
    engine = start(pair("llama")[0])
    use(engine)
    engine.close()
    engine.close()
    assert (kept.take("engine") is not None) == is_kept


class Sleeper:
    """An engine that forgets its weights while it rests; `stale` takes no new ones, as some have been seen to do."""

    name, version, rows_at_once, dtype = "vllm", "1", 1, "float32"
    copies, forgets = False, True

    def __init__(self, directory: Path, stale: bool = False) -> None:
        self._engine, self._is_stale = engine_of(directory, 3), stale
        self.is_closed = self.is_asleep = False

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        yield from self._engine.generate(requests)

    def close(self) -> None:
        self.is_closed = True

    def rest(self) -> None:
        self.is_asleep = True
        for weight in self._engine.model.parameters():
            weight.data.zero_()

    def wake(self) -> bool:
        return not self.is_asleep

    def reload(self, model: ModelRef, tokenizer: Tokenizer) -> bool:
        self.is_asleep = False
        return self._is_stale or self._engine.reload(model, tokenizer)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        return self._engine.score(token_ids)


def test_an_engine_whose_network_only_vllm_knows_is_not_kept(kept: keeper.Keeper, tmp_path: Path) -> None:
    unknown = write_bare_model(tmp_path)
    (unknown / "config.json").write_text('{"model_type": "of_tomorrow", "max_position_embeddings": 4096}')
    model = resolve_model(str(unknown))
    engine = object()
    options = EngineOptions(**ON_CPU)
    assert start_kept("vllm", model, model.tokenizer(), options, lambda line: None, lambda: engine) is engine


def test_an_engine_that_forgets_its_weights_has_to_prove_them_even_for_the_same_model(
    kept: keeper.Keeper, pair: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    first, second = pair("llama")
    bare = Path(shutil.copytree(first, tmp_path / "bare"))
    (bare / "probe.json").unlink()
    made: list[Sleeper] = []

    def started(directory: Path, stale: bool = False) -> Engine:
        def build() -> Sleeper:
            made.append(Sleeper(directory, stale))
            return made[-1]

        model = resolve_model(str(directory))
        chosen = EngineOptions(dtype="float32", **ON_CPU)
        return start_kept("vllm", model, model.tokenizer(), chosen, lambda line: None, build)

    for directory in (bare, bare, bare, second, first):
        assert answers(started(directory)) == answers(engine_of(directory, 3))
        kept.rest()
    assert len(made) == 1
    keeper.end()
    assert made[0].is_closed
    keeper.begin()
    assert answers(started(first, stale=True)) == answers(engine_of(first, 3))
    assert answers(started(second)) == answers(engine_of(second, 3))
    assert [sleeper.is_closed for sleeper in made[1:]] == [True, False]


def test_commands_of_one_process_write_the_bytes_that_commands_alone_write(
    ok: Trd, pair: Callable[[str], tuple[Path, Path]], problems: Path, tmp_path: Path
) -> None:
    """The second command's engine is that of the first; graders stay too."""
    models = pair("tied")

    def shards(name: str, model: Path) -> list[bytes]:
        out = tmp_path / name
        ok("sample", "-m", model, "-p", problems, *SHORT, "--out", out)
        ok("verify", out, "--workers", 1)
        return [path.read_bytes() for path in list_shards(out)]

    alone = [shards(f"alone {i}", model) for i, model in enumerate(models)]
    keeper.begin()
    try:
        kept = [shards(f"kept {i}", model) for i, model in enumerate((*models, models[0]))]
    finally:
        keeper.end()
    assert kept == [*alone, alone[0]]
    assert alone[0] != alone[1]


def test_the_probe_of_a_checkpoint_in_bfloat16_is_what_a_float32_engine_finds_there(tmp_path: Path) -> None:
    directory, model = build_model(tmp_path / "model", seed=5), reference_model(tmp_path / "model")
    write_probe(directory, model, IDS, torch.bfloat16)
    model.to(torch.bfloat16).save_pretrained(directory)
    assert difference(read_probe(directory), engine_of(directory).score(IDS)) < LIMITS["float32"] / 10
