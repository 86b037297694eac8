"""A checkpoint that is an adapter alone is the same model as one with merged weights, bit for bit, in every place.

Not covered: vllm itself, which is refused before it starts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd
from support.tiny import SHAPE, build_model, engine_of, reference_model

from trd_cli.config.training import LoraOptions
from trd_cli.engines.registry import check_weights
from trd_cli.engines.reloading import copy_weights
from trd_cli.errors import EngineError, InputError, ModelError
from trd_cli.model_files import has_weights
from trd_cli.models import fingerprint, resolve_model
from trd_cli.planning.pair import read_model
from trd_cli.training.checkpoints import rehearse, save_model
from trd_cli.training.model import load, with_adapter

CPU = torch.device("cpu")
ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 12)
TRAIN = ("--dtype", "float32", "--device", "cpu", "--setting", "opsd", "--lr", 1e-2, "--lora", "--lora-rank", 4)
WEIGHTS = "model.safetensors"


class World:
    """A student, its rollouts, and two checkpoints of one training: with merged weights and the adapter alone."""

    def __init__(self, root: Path, ok: Trd) -> None:
        self.root, self.problems, self.rollouts = root, root / "p.parquet", root / "y_o"
        self.student = build_model(root / "student")
        ok("data", "make", "arithmetic", "--n", 3, "--out", self.problems)
        ok("sample", "-m", self.student, "-p", self.problems, *ENGINE, "--out", self.rollouts)
        self.merged, self.alone = root / "merged", root / "alone"
        self.command = ("distill", self.rollouts, *TRAIN, "--save-dtype", "bfloat16")
        ok(*self.command, "--out", self.merged)
        ok(*self.command, "--no-merge", "--out", self.alone)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    return World(tmp_path_factory.mktemp("world"), ok)


@pytest.fixture
def moved(world: World, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint without weights, beside a copy of its base."""
    shutil.copytree(world.student, tmp_path / "student")
    return Path(shutil.copytree(world.alone, tmp_path / "alone"))


def save(student: Path, target: Path, merge: bool, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Path:
    """Save a random adapter on a student."""
    options = LoraOptions(lora=True, lora_rank=4, merge=merge)
    ref = resolve_model(str(student))
    torch.manual_seed(seed)
    adapted = with_adapter(load(ref, torch.float32, CPU), options, seed)
    random = {f"student.{n}": torch.randn(p.shape) / 8 for n, p in adapted.named_parameters() if p.requires_grad}
    save_model(random, ref, options, target, dtype)
    return target


def assert_same_tensors(one: torch.nn.Module, two: torch.nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not first[name].equal(second[name])] == []


def files(directory: Path) -> dict[str, bytes]:
    """Return the model's files, without those of the training."""
    of_training = {"run.json", "sessions.jsonl", "train.jsonl"}
    found = (path for path in directory.iterdir() if path.is_file() and path.name not in of_training)
    return {path.name: path.read_bytes() for path in found if not path.name.startswith(".")}


def refusal(result: Any) -> str:
    """Return the one line in which a refused command ends."""
    assert result.exit_code == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert lines == result.stderr.splitlines()[-1:]
    return lines[0]


# Saved


def test_it_has_the_files_of_the_merged_one_but_the_weights(world: World) -> None:
    merged = files(world.merged)
    assert len(merged.pop(WEIGHTS)) > 10_000
    assert "probe.json" in merged
    assert files(world.alone) == merged
    tensors = "adapter/adapter_model.safetensors"
    assert (world.alone / tensors).read_bytes() == (world.merged / tensors).read_bytes()
    assert not has_weights(world.alone)


def test_saving_leaves_the_weights_in_memory_as_they_are(world: World, tmp_path: Path) -> None:
    ref = resolve_model(str(world.student))
    model = load(ref, torch.float32, CPU)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = {f"student.{name}": p.detach() for name, p in model.named_parameters()}
    save_model(weights, ref, LoraOptions(), tmp_path / "c", torch.bfloat16, [5, 6, 7])
    assert all(p.equal(before[name]) for name, p in model.named_parameters())
    assert_same_tensors(load(resolve_model(str(tmp_path / "c")), torch.bfloat16, CPU), model.to(torch.bfloat16))


def test_no_merge_without_an_adapter_is_refused(world: World, trd: Trd, tmp_path: Path) -> None:
    line = refusal(trd("distill", world.rollouts, "--setting", "opsd", "--no-merge", "--out", tmp_path / "c"))
    assert "all weights trained; expected --lora" in line


def test_the_room_that_is_asked_for_has_no_merged_weights(world: World, tmp_path: Path) -> None:
    ref, room = resolve_model(str(build_model(tmp_path / "s"))), shutil.disk_usage(tmp_path).free
    # So wide that the embeddings alone fill the disk twice: the rehearsal builds the model without storage.
    config = json.loads((ref.path / "config.json").read_text())
    size = config["vocab_size"] * 2 * 2 * 4
    (ref.path / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * -(-room // size) // 8 * 8}))
    ref = resolve_model(str(ref.path))
    for merge in (True, False):
        options = LoraOptions(lora=True, lora_targets=("down_proj",), lora_rank=1, merge=merge)
        adapted = with_adapter(ref.skeleton(), options, seed=0)
        shapes = {f"student.{n}": p.shape for n, p in adapted.named_parameters() if p.requires_grad}
        if merge:
            with pytest.raises(InputError, match="are free in"):
                rehearse(shapes, ref, options, tmp_path / "c", torch.float32, averaged=False)
        else:
            rehearse(shapes, ref, options, tmp_path / "c", torch.float32, averaged=False)


# Loaded


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_loading_gives_the_tensors_of_the_merged_checkpoint_to_the_bit(
    tmp_path: Path, saved: torch.dtype, tied: bool
) -> None:
    student = build_model(tmp_path / "student", tie_word_embeddings=tied)
    merged, alone = (resolve_model(str(save(student, tmp_path / str(m), m, saved))) for m in (True, False))
    assert merged.revision == alone.revision
    for dtype in (torch.float32, torch.bfloat16):
        assert_same_tensors(load(merged, dtype, CPU), load(alone, dtype, CPU))
    for dtype in ("auto", "float32"):
        one, two = (engine_of(ref.path, dtype=dtype) for ref in (merged, alone))
        assert one.dtype == two.dtype
        assert_same_tensors(one.model, two.model)


def test_experts_that_files_and_memory_name_differently_are_loaded_too(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig

    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    student = build_model(tmp_path / "student", config=Qwen3MoeConfig(**SHAPE, **more))
    merged, alone = (save(student, tmp_path / str(m), m) for m in (True, False))
    assert_same_tensors(engine_of(merged).model, engine_of(alone).model)


def test_an_adapter_on_an_adapter_alone_is_loaded_as_on_merged_weights(tmp_path: Path) -> None:
    student = build_model(tmp_path / "student")
    bases = {merge: save(student, tmp_path / f"base {merge}", merge) for merge in (True, False)}
    top = {merge: save(bases[merge], tmp_path / str(merge), merge, seed=2) for merge in (True, False)}
    assert_same_tensors(*(load(resolve_model(str(path)), torch.float32, CPU) for path in top.values()))
    assert len({fingerprint(path) for path in top.values()}) == 1


def test_rows_go_on_from_either_form(world: World, ok: Trd, tmp_path: Path) -> None:
    command = ("sample", "-p", world.problems, *ENGINE)
    ok(*command, "-m", world.merged, "--out", tmp_path / "whole")
    ok(*command, "-m", world.merged, "--limit", 1, "--out", tmp_path / "both")
    ok(*command, "-m", world.alone, "--out", tmp_path / "both")
    assert len(rows(tmp_path / "whole")) == 3
    assert rows(tmp_path / "both") == rows(tmp_path / "whole")


def rows(directory: Path) -> dict[str, Any]:
    from trd_cli.trajectories.shards import list_shards, read_rows

    found = (row for shard in list_shards(directory) for row in read_rows(shard))
    return {row.trajectory_id: row.response_token_ids for row in found}


def test_a_running_engine_takes_its_weights(world: World) -> None:
    running = engine_of(world.student).model
    assert copy_weights(resolve_model(str(world.alone)), running)
    assert_same_tensors(running, engine_of(world.merged).model)


def test_the_engine_s_own_arguments_are_checked_and_followed(world: World) -> None:
    assert (
        engine_of(world.alone, engine_arg={"attn_implementation": "eager"}).model.config._attn_implementation == "eager"
    )


def test_a_training_goes_on_from_it_as_from_the_merged_one(world: World, ok: Trd, tmp_path: Path) -> None:
    for name in ("merged", "alone"):
        ok(*world.command, "--model", world.root / name, "--out", tmp_path / name)
    assert (tmp_path / "merged" / WEIGHTS).read_bytes() == (tmp_path / "alone" / WEIGHTS).read_bytes()


# Merged later


def test_merge_on_a_finished_one_writes_the_weights_and_trains_nothing(world: World, ok: Trd, moved: Path) -> None:
    log, before = (moved / "train.jsonl").read_bytes(), fingerprint(moved)
    said = ok(*world.command, "--model", world.student, "--out", moved).stderr
    assert "merged weights" in said
    assert (moved / WEIGHTS).read_bytes() == (world.merged / WEIGHTS).read_bytes()
    assert ((moved / "train.jsonl").read_bytes(), fingerprint(moved)) == (log, before)
    assert files(moved) == files(world.merged)
    assert "nothing to do" in ok(*world.command, "--no-merge", "--model", world.student, "--out", moved).stderr
    assert resolve_model(str(moved)).base is None


def test_merged_weights_that_were_changed_since_are_another_model(world: World, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(world.merged, tmp_path / "changed"))
    assert fingerprint(changed) == fingerprint(world.alone)
    shutil.copy(world.student / WEIGHTS, changed)
    assert fingerprint(changed) != fingerprint(world.alone)


def test_other_adapters_bases_and_dtypes_are_other_models(world: World, tmp_path: Path) -> None:
    other = build_model(tmp_path / "student", seed=5)
    made = [
        save(world.student, tmp_path / "a", merge=False),
        save(world.student, tmp_path / "b", merge=False, seed=2),
        save(world.student, tmp_path / "c", merge=False, dtype=torch.float32),
        save(other, tmp_path / "d", merge=False),
    ]
    assert len({fingerprint(path) for path in made}) == 4


# The base


def test_a_base_that_was_moved_with_it_is_found(world: World, moved: Path) -> None:
    record = moved / "adapter" / "base.json"
    base = json.loads(record.read_text())
    record.write_text(json.dumps(base | {"model": "/gone/away/student"}))
    ref = resolve_model(str(moved))
    assert ref.base.path == moved.parent / "student"
    assert_same_tensors(load(ref, torch.float32, CPU), reference_model(world.merged))


def test_a_base_that_is_gone_or_has_changed_is_named(world: World, trd: Trd, moved: Path, tmp_path: Path) -> None:
    record = moved / "adapter" / "base.json"
    base = json.loads(record.read_text())
    command = ("sample", "-m", moved, "-p", world.problems, *ENGINE, "--out", tmp_path / "y")
    record.write_text(json.dumps(base | {"model": "/gone/away/base"}))
    line = refusal(trd(*command))
    assert f"{moved} is an adapter without merged weights, and its base is gone" in line
    assert "/gone/away/base" in line
    record.write_text(json.dumps(base | {"model": str(tmp_path / "student")}))
    (tmp_path / "student" / "generation_config.json").write_text('{"eos_token_id": [3]}')
    line = refusal(trd(*command))
    assert f"its base {tmp_path / 'student'} is now" in line
    assert base["revision"] in line
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("name", "cut"),
    [("adapter_model.safetensors", 100), ("adapter_config.json", 10), ("base.json", 10), ("base.json", None)],
    ids=["tensors", "settings", "the record of the base", "no base in it"],
)
def test_a_damaged_file_of_the_adapter_is_named(
    world: World, trd: Trd, moved: Path, tmp_path: Path, name: str, cut: int | None
) -> None:
    path = moved / "adapter" / name
    path.write_bytes(path.read_bytes()[:cut] if cut else b"{}")
    assert str(path) in refusal(trd("sample", "-m", moved, "-p", world.problems, *ENGINE, "--out", tmp_path / "y"))


def test_an_adapter_without_its_tensors_is_named(moved: Path) -> None:
    (moved / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        resolve_model(str(moved))


# Refused and planned


def test_vllm_is_refused_with_the_way_to_merge(world: World) -> None:
    with pytest.raises(EngineError, match=r"an adapter without merged weights; expected merged weights; .* --merge"):
        check_weights("vllm", resolve_model(str(world.alone)))
    check_weights("vllm", resolve_model(str(world.merged)))
    check_weights("transformers", resolve_model(str(world.alone)))


def test_a_plan_takes_it_as_a_student_and_finds_that_its_base_is_gone(moved: Path, trd: Trd, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'setting = "opsd"\nstudent = "{moved}"\n[problems.make]\nkind = "arithmetic"\nn = 4\n'
        '[sample]\nmax_tokens = 8\nengine = "transformers"\n[refine]\nmax_tokens = 8\nengine = "transformers"\n'
        '[arms.trd]\nmethod = "trd"\n'
    )
    planned, _ = read_model(str(moved))
    assert planned.shape.parameters == sum(p.numel() for p in resolve_model(str(moved)).skeleton().parameters())
    assert "without merged weights" not in trd("plan", recipe, "--run", tmp_path / "run").stdout
    shutil.rmtree(moved.parent / "student")
    record = moved / "adapter" / "base.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"model": "/gone/away/student"}))
    said = trd("plan", recipe, "--run", tmp_path / "run").stdout
    assert "without merged weights, and its base is gone" in said
