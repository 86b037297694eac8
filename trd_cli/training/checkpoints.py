"""Saving a trained model as a directory that transformers and vLLM load, an adapter beside its merged weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from trd_cli.config import LoraOptions
from trd_cli.errors import InputError, TrdError, first_line
from trd_cli.files import sync_directory
from trd_cli.models import ModelRef
from trd_cli.training.model import load, with_adapter

# What a tokenizer consists of, and what must travel with the weights; anything else beside them is not the model's.
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
ADAPTER = "adapter"


def save_model(
    weights: Mapping[str, torch.Tensor],
    student: ModelRef,
    options: LoraOptions,
    target: Path,
    dtype: torch.dtype,
) -> None:
    """Write the student with its trained `weights` (named as in `DistillStep`) into `target`, with its tokenizer files as they are.

    An adapter is written to `adapter/` and merged into the weights, in float32 before they are rounded to `dtype`. Files
    appear under their final names only when all of them are written; config.json, which makes the directory a model, is the last.
    """
    building = target / ".saving.tmp"
    shutil.rmtree(building, ignore_errors=True)
    target.mkdir(exist_ok=True)
    model = load(student, torch.float32, torch.device("cpu"))
    if options.lora:
        model = with_adapter(model, options, seed=0)
    unknown = model.load_state_dict({n.removeprefix("student."): w for n, w in weights.items()}, strict=False)
    tied = getattr(model, "_tied_weights_keys", None) or ()
    untrained = [n for n in unknown.missing_keys if ("lora_" in n if options.lora else n not in tied)]
    if unknown.unexpected_keys or untrained:
        raise TrdError(
            f"trained weights do not fit the student: {[*unknown.unexpected_keys, *untrained][:3]}; expected the same names"
        )
    try:
        if options.lora:
            model.peft_config["default"].base_model_name_or_path = student.lasting_name
            model.save_pretrained(building / ADAPTER)
            (building / ADAPTER / "README.md").unlink(missing_ok=True)  # a form to fill in, which nobody did
            model = model.merge_and_unload()
        model.to(dtype).save_pretrained(building)
        for path in {path for pattern in _KEPT for path in student.path.glob(pattern) if path.is_file()}:
            shutil.copy(path, building / path.name)
        shutil.rmtree(target / ADAPTER, ignore_errors=True)
        for path in sorted(building.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, target / path.name)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"could not save in {target}: {first_line(error)}",
            "room and permission to write",
            "free some space and run again",
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    sync_directory(target)
