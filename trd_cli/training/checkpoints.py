"""Save a trained model as a directory that transformers and vLLM load, an adapter beside its merged weights.

`rehearse` tries all that can fail in it before the first step: a training that cannot be saved is lost.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from trd_cli.atomic import make_directory, sync_directory
from trd_cli.config.training import LoraOptions
from trd_cli.engines.probe import write_probe
from trd_cli.errors import InputError, ModelError, TrdError, first_line, sized
from trd_cli.model_files import weights_dtype
from trd_cli.models import ModelRef
from trd_cli.training.model import DTYPES, load, with_adapter

# A tokenizer's files, and those that must stay with the weights; no other file beside them belongs to the model.
_KEPT = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "*.model",
    "LICENSE*",
)
# Copied unchanged: transformers refuses to write some that it reads, and would add to the others.
_GENERATION = "generation_config.json"
ADAPTER = "adapter"


def dtype_to_save(student: ModelRef, asked: str) -> torch.dtype:
    """Return the dtype of a saved checkpoint.

    That is the one asked for; `auto` is the dtype of the student's weights, or float32 if it names none.
    """
    if asked != "auto":
        return DTYPES[asked]
    return DTYPES.get(weights_dtype(student.path), torch.float32)


def save_model(
    weights: Mapping[str, torch.Tensor],
    student: ModelRef,
    options: LoraOptions,
    target: Path,
    dtype: torch.dtype,
    probe: Sequence[int] = (),
) -> None:
    """Write the student with its trained `weights` (named as in `DistillStep`) and its tokenizer files into `target`.

    An adapter is written to `adapter/` and merged into the weights, in float32 before they are rounded to `dtype`.
    `probe` are the ids of the checkpoint's probe, if it gets one. Files get their final names only when all of them are
    written; config.json, which makes the directory a model, is the last.
    """
    model = load(student, torch.float32, torch.device("cpu"))
    if options.lora:
        model = with_adapter(model, options, seed=0)
    unknown = model.load_state_dict({n.removeprefix("student."): w for n, w in weights.items()}, strict=False)
    _check_names(model, unknown.missing_keys, unknown.unexpected_keys, options)
    with _building(target, ".saving.tmp") as building:
        if options.lora:
            _name_base(model, student)
            model.save_pretrained(building / ADAPTER)
            (building / ADAPTER / "README.md").unlink(missing_ok=True)  # an empty form
            model = model.merge_and_unload()
        if probe:
            # Without one, as of a model that this CPU cannot run, an engine starts anew for each model.
            with suppress(RuntimeError, ValueError, ImportError):
                write_probe(building, model, probe, dtype)
        model.to(dtype).save_pretrained(building)
        _copy_kept(student, building)
        shutil.rmtree(target / ADAPTER, ignore_errors=True)
        for path in sorted(building.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, target / path.name)
    sync_directory(target)


def rehearse(
    shapes: Mapping[str, torch.Size],
    student: ModelRef,
    options: LoraOptions,
    target: Path,
    dtype: torch.dtype,
    averaged: bool,
) -> None:
    """Do everything that `save_model` does, except to read and write weights, and leave no file behind.

    `shapes` are those of the trained weights; `averaged` is True if their average is saved too. Raises InputError if
    the files cannot be written or there is too little room, ModelError for a model that transformers does not save, and
    TrdError if the weights' names or shapes are not the student's.
    """
    with _building(target, ".rehearsal.tmp") as building:
        _copy_kept(student, building)
        model = _without_weights(student)
        if model is None:
            return
        size = sum(w.numel() for w in model.parameters())
        needed = size * dtype.itemsize + averaged * size * torch.float32.itemsize
        if options.lora:
            model = with_adapter(model, options, seed=0)
            needed += sum(shape.numel() for shape in shapes.values()) * torch.float32.itemsize
            _name_base(model, student)
            model.peft_config["default"].save_pretrained(building / ADAPTER)
        own = {name: weight.shape for name, weight in model.state_dict().items()}
        found = {name.removeprefix("student."): shape for name, shape in shapes.items()}
        other = [name for name, shape in found.items() if own.get(name) != shape]
        _check_names(model, [name for name in own if name not in found], other, options)
        model = (model.merge_and_unload() if options.lora else model).to(dtype)
        model.config.save_pretrained(building)
        # This looks for weights that share memory undeclared, and writes no file.
        model.save_pretrained(building, is_main_process=False)
        free = shutil.disk_usage(building).free
        if free < needed:
            raise InputError(
                f"{sized(free)} are free in {target}",
                f"the {sized(needed)} that the checkpoint takes",
                "free some space, or give an --out with more",
            )


def _without_weights(student: ModelRef) -> nn.Module | None:
    """Return the student's model without storage, or None if its class cannot be built that way."""
    try:
        return student.skeleton()
    except ModelError:
        return None


def _name_base(model: Any, student: ModelRef) -> None:
    model.peft_config["default"].base_model_name_or_path = student.lasting_name


def _check_names(model: nn.Module, missing: list[str], unexpected: list[str], options: LoraOptions) -> None:
    """Raise TrdError if the trained weights are not those of the student's model."""
    tied = getattr(model, "_tied_weights_keys", None) or ()
    untrained = [n for n in missing if ("lora_" in n if options.lora else n not in tied)]
    if unexpected or untrained:
        raise TrdError(
            f"trained weights do not fit the student: {[*unexpected, *untrained][:3]}; expected the same names"
        )


def _copy_kept(student: ModelRef, building: Path) -> None:
    """Copy the student's own files."""
    (building / _GENERATION).unlink(missing_ok=True)
    for path in {path for pattern in (*_KEPT, _GENERATION) for path in student.path.glob(pattern)}:
        if path.is_file():
            shutil.copy(path, building / path.name)


@contextmanager
def _building(target: Path, name: str) -> Iterator[Path]:
    """Yield a directory in `target` for unfinished files, which is removed after the block.

    A failure inside the block is raised as an error of one line.
    """
    make_directory(target)
    building = target / name
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        yield building
    except TrdError:
        raise
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"could not save in {target}: {first_line(error)}",
            "room and permission to write, and to read the student's own files",
            "mend that and run again",
        ) from None
    except (ValueError, RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"transformers does not save this student in {target}: {first_line(error)}",
            "a model that it does",
            "use another student, or another version of transformers",
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
