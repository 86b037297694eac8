"""Saving a student can fail only before the first step, and the student's own files are saved unchanged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd
from support.tiny import END, build_model, llama_config, reference_model

from trd_cli.config.training import LoraOptions
from trd_cli.errors import InputError, TrdError
from trd_cli.models import resolve_model
from trd_cli.training.checkpoints import dtype_to_save, rehearse, save_model
from trd_cli.training.model import load, with_adapter

ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 12)
TRAIN = ("--dtype", "float32", "--device", "cpu", "--setting", "opsd")
# transformers warns of it on reading, and some versions refuse to write it; `own_key` is unknown to transformers.
ODD = '{"eos_token_id": [2, 3], "temperature": 0.6, "do_sample": false,\n "own_key": {"a": 1}}\n'


@dataclass(frozen=True)
class World:
    """A student and its rollouts. Tests read them and write elsewhere."""

    student: Path
    rollouts: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(build_model(root / "student"), root / "y_o")
    ok("data", "make", "arithmetic", "--n", 3, "--out", root / "p.parquet")
    ok("sample", "-m", made.student, "-p", root / "p.parquet", *ENGINE, "--out", made.rollouts)
    return made


@pytest.fixture
def student(world: World, tmp_path: Path) -> Path:
    """Return a copy of the student to change."""
    return Path(shutil.copytree(world.student, tmp_path / "student"))


def unreadable(directory: Path) -> Path:
    """Return a file of the student's own that not even root can read to its end."""
    (directory / "LICENSE").symlink_to("/proc/self/mem")
    return directory / "LICENSE"


# Files saved unchanged


@pytest.mark.parametrize("option", [(), ("--lora",), ("--teacher-weights", "ema")], ids=["all", "adapter", "ema"])
def test_the_generation_config_is_that_of_the_student_byte_for_byte(
    world: World, student: Path, ok: Trd, tmp_path: Path, option: tuple[str, ...]
) -> None:
    (student / "generation_config.json").write_text(ODD)
    out = tmp_path / "c"
    ok("distill", world.rollouts, *TRAIN, *option, "--model", student, "--out", out)
    for directory in [out, *([out / "ema"] if "ema" in option else [])]:
        assert (directory / "generation_config.json").read_text() == ODD
        reference_model(directory)


def test_a_student_without_a_generation_config_is_saved_without_one(
    world: World, student: Path, ok: Trd, tmp_path: Path
) -> None:
    (student / "generation_config.json").unlink()
    ok("distill", world.rollouts, *TRAIN, "--model", student, "--out", tmp_path / "c")
    assert not (tmp_path / "c" / "generation_config.json").exists()
    assert resolve_model(str(tmp_path / "c")).tokenizer().eos_ids == {END}


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 3, "do_sample": False},
        {"early_stopping": "maybe"},
        {"cache_implementation": "of_a_later_version"},
        {"max_new_tokens": -1},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("lora", [False, True])
def test_one_that_transformers_refuses_to_read_is_no_hindrance(
    student: Path, tmp_path: Path, settings: dict[str, Any], lora: bool
) -> None:
    text = json.dumps({"eos_token_id": END, **settings})
    (student / "generation_config.json").write_text(text)
    ref, options = resolve_model(str(student)), LoraOptions(lora=lora)
    model = load(ref, torch.float32, torch.device("cpu"))
    model = with_adapter(model, options, seed=1) if lora else model
    trained = {f"student.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: weight.shape for name, weight in trained.items()}
    rehearse(shapes, ref, options, tmp_path / "c", torch.float32, averaged=False)
    assert list((tmp_path / "c").iterdir()) == []
    save_model(trained, ref, options, tmp_path / "c", torch.float32)
    assert (tmp_path / "c" / "generation_config.json").read_text() == text


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, torch.float16),
        ({"dtype": {"": "bfloat16"}}, torch.float32),
        ({"dtype": "float8_e4m3fn"}, torch.float32),
        ({}, torch.float32),
    ],
    ids=["a name", "torch before it", "an older key", "of the text part", "by part", "unknown", "none"],
)
def test_weights_are_saved_in_the_dtype_that_the_student_names_or_in_float32(
    student: Path, named: dict[str, Any], expected: torch.dtype
) -> None:
    ref = resolve_model(str(student))
    (student / "config.json").write_text(json.dumps(named))
    assert dtype_to_save(ref, "auto") == expected
    assert dtype_to_save(ref, "float16") == torch.float16


def test_a_student_whose_parts_name_dtypes_of_their_own_is_saved(
    world: World, student: Path, ok: Trd, tmp_path: Path
) -> None:
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "dtype": {"": "float32"}}))
    ok("distill", world.rollouts, *TRAIN, "--model", student, "--out", tmp_path / "c")
    reference_model(tmp_path / "c")


# Failures before the first step


def test_a_file_that_cannot_be_copied_ends_the_run_before_its_first_step_and_the_same_command_goes_on(
    world: World, student: Path, trd: Trd, ok: Trd, tmp_path: Path
) -> None:
    license, out = unreadable(student), tmp_path / "c"
    command = ("distill", world.rollouts, *TRAIN, "--model", student, "--out", out)
    result = trd(*command)
    assert result.exit_code == 1
    assert f"error: could not save in {out}: " in result.stderr.splitlines()[-1]
    assert not (out / "train.jsonl").exists()
    assert {path.name for path in out.iterdir()} <= {"run.json", ".lock", ".gate", "examples.bin"}
    license.unlink()
    ok(*command)
    reference_model(out)


def test_two_processes_end_together(world: World, student: Path, tmp_path: Path) -> None:
    unreadable(student)
    launcher = (Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", 2)
    logs = ("--log-dir", tmp_path / "logs", "--redirects", 3)
    command = ("-m", "trd_cli", "distill", world.rollouts, *TRAIN, "--model", student, "--out", tmp_path / "c")
    # A trainer that ran in this process has written its one process into the environment.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MASTER_", "ACCELERATE_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        own.pop(name, None)
    result = subprocess.run(
        [str(word) for word in (*launcher, *logs, *command)],
        cwd=Path(__file__).parent.parent,
        env={**own, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert result.returncode != 0
    said = {int(p.parent.name): p.read_text() for p in (tmp_path / "logs").rglob("stderr.log")}
    assert said.keys() == {0, 1}
    assert f"could not save in {tmp_path / 'c'}" in said[0], "the main process speaks for both"
    assert "Traceback" not in said[0] + said[1]


def shapes_of(directory: Path) -> dict[str, torch.Size]:
    return {f"student.{name}": p.shape for name, p in reference_model(directory).named_parameters()}


def test_too_little_room_is_said_with_how_much_it_takes(student: Path, tmp_path: Path) -> None:
    vocabulary = 10**9
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        config = llama_config(vocab_size=vocabulary, hidden_size=8192, num_hidden_layers=1)
        model = AutoModelForCausalLM.from_config(config)
    shapes = {f"student.{name}": p.shape for name, p in model.named_parameters()}
    config.save_pretrained(student)
    ref = resolve_model(str(student))
    for averaged, times in ((False, 1), (True, 3)):
        needed = f"{times * 2 * sum(s.numel() for s in shapes.values()) / 2**30:.1f} GiB"
        with pytest.raises(InputError, match=rf"GiB are free in .*; expected the {needed} that the checkpoint"):
            rehearse(shapes, ref, LoraOptions(), tmp_path / "c", torch.bfloat16, averaged)
        assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda shapes: {**shapes, "student.model.stranger": torch.Size([2])}, "model.stranger"),
        (lambda shapes: {**shapes, "student.lm_head.weight": torch.Size([7, 32])}, "lm_head.weight"),
        (
            lambda shapes: {n: s for n, s in shapes.items() if "layers.1.mlp.up_proj" not in n},
            "model.layers.1.mlp.up_proj.weight",
        ),
    ],
    ids=["a name that the student lacks", "another shape", "a weight that is missing"],
)
def test_trained_weights_that_are_not_the_students_are_named(
    student: Path, tmp_path: Path, change: Any, named: str
) -> None:
    shapes, ref = shapes_of(student), resolve_model(str(student))
    rehearse(shapes, ref, LoraOptions(), tmp_path / "c", torch.float32, averaged=False)
    with pytest.raises(TrdError, match=rf"do not fit the student: \['{named}'\]"):
        rehearse(change(shapes), ref, LoraOptions(), tmp_path / "c", torch.float32, averaged=False)
