"""Save a trained model as a directory that transformers and vLLM load, an adapter beside its merged weights or alone.

`rehearse` tries all that can fail in it before the first step: a training that cannot be saved is lost.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from trd_cli.adapter_files import ADAPTER, Base, read_base, write_base
from trd_cli.atomic import make_directory, sync_directory
from trd_cli.config.training import LoraOptions
from trd_cli.engines.probe import write_probe
from trd_cli.errors import InputError, ModelError, TrdError, first_line, sized
from trd_cli.merging import merged
from trd_cli.model_files import CONFIG, GENERATION_CONFIG, INDEX, weights_dtype
from trd_cli.models import ModelRef, cannot_load, digest_of_files
from trd_cli.training.model import DTYPES, load, with_adapter, without_weights

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

    An adapter is written to `adapter/` and merged into the weights, in float32 before they are rounded to `dtype`. The
    options say if the merged weights are written. `probe` are the ids of the checkpoint's probe, if it gets one. Files
    get their final names only when all of them are written, and last config.json, which makes the directory a model.
    """
    model = _with_weights(student, {n.removeprefix("student."): w for n, w in weights.items()}, options)
    with _building(target, ".saving.tmp") as building:
        if options.lora:
            _save_adapter(model, student, building)
            model = model.merge_and_unload()
        if probe:
            # Without one, as of a model that this CPU cannot run, an engine starts anew for each model.
            with suppress(RuntimeError, ValueError, ImportError):
                write_probe(building, model, probe, dtype)
        _save_network(model.to(dtype), building, with_weights=_writes_weights(options))
        if options.lora:
            write_base(building, Base(student.lasting_name, student.revision, _digest_of_weights(building)))
        _copy_kept(student, building)
        shutil.rmtree(target / ADAPTER, ignore_errors=True)
        for path in _weights_in(target):
            path.unlink()
        for path in sorted(building.iterdir(), key=lambda path: path.name == CONFIG):
            os.replace(path, target / path.name)
    sync_directory(target)


def merge_saved(checkpoint: ModelRef) -> None:
    """Write the merged weights into a checkpoint that is an adapter alone.

    Raises InputError if they cannot be written or there is too little room, ModelError if the base cannot be loaded.
    """
    directory = checkpoint.path
    with _building(directory, ".saving.tmp") as building:
        try:
            model = merged(checkpoint)
        except Exception as error:  # each architecture checks its own sizes and raises any kind
            raise cannot_load(checkpoint, error) from None
        _check_room(building, directory, sum(w.numel() * w.itemsize for w in model.parameters()))
        model.save_pretrained(building)
        # Before the weights: without them it says nothing.
        write_base(directory, replace(read_base(directory), merged=_digest_of_weights(building)))
        for path in sorted(_weights_in(building), key=lambda path: path.name == INDEX):
            os.replace(path, directory / path.name)
    sync_directory(directory)


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
        needed = _writes_weights(options) * size * dtype.itemsize + averaged * size * torch.float32.itemsize
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
        _save_network(model, building, with_weights=False)
        _check_room(building, target, needed)


def _with_weights(student: ModelRef, weights: Mapping[str, torch.Tensor], options: LoraOptions) -> nn.Module:
    """Return the student's network in float32 with its trained weights; those under an adapter are read from disk.

    Raises TrdError if the trained weights are not the student's.
    """
    if options.lora:
        model = with_adapter(load(student, torch.float32, torch.device("cpu")), options, seed=0)
        unknown = model.load_state_dict(weights, strict=False)
    else:
        model = without_weights(student, torch.float32)
        # Copies: those of a trainer go on being trained.
        unknown = model.load_state_dict({n: w.clone() for n, w in weights.items()}, strict=False, assign=True)
        model.tie_weights()
    _check_names(model, unknown.missing_keys, unknown.unexpected_keys, options)
    return model


def _save_adapter(model: Any, student: ModelRef, building: Path) -> None:
    _name_base(model, student)
    # Else peft asks the Hub for the base, to see if it has grown new embeddings; trd adds none.
    model.save_pretrained(building / ADAPTER, save_embedding_layers=False)
    (building / ADAPTER / "README.md").unlink(missing_ok=True)  # an empty form


def _save_network(model: Any, building: Path, with_weights: bool) -> None:
    """Write weights and configuration, or the configuration alone as it would be beside them."""
    # Without weights it looks for those that share memory undeclared, completes the configuration and writes no file.
    model.save_pretrained(building, is_main_process=with_weights)
    if not with_weights:
        model.config.save_pretrained(building)


def _writes_weights(options: LoraOptions) -> bool:
    return options.merge or not options.lora


def _weights_in(directory: Path) -> list[Path]:
    return [*directory.glob("*.safetensors"), *directory.glob(INDEX)]


def _digest_of_weights(directory: Path) -> str | None:
    weights = sorted(_weights_in(directory))
    return digest_of_files(weights) if weights else None


def _check_room(building: Path, target: Path, needed: int) -> None:
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
    """Copy the student's own files.

    generation_config.json is one of them: transformers refuses to write some that it reads, and would add to others.
    """
    (building / GENERATION_CONFIG).unlink(missing_ok=True)
    for path in {path for pattern in (*_KEPT, GENERATION_CONFIG) for path in student.path.glob(pattern)}:
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
