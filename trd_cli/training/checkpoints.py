"""Saving a trained model as a directory that transformers and vLLM load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from trd_cli.errors import InputError, first_line
from trd_cli.shards import sync_directory

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


def save_model(model, source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write weights and config of `model` into `target`, with the tokenizer files of `source` as they are.

    Files appear under their final names only when all of them are written; config.json, which makes the directory a model,
    is the last.
    """
    building = target / ".saving.tmp"
    shutil.rmtree(building, ignore_errors=True)
    try:
        model.to(dtype).save_pretrained(building)
        for path in {path for pattern in _KEPT for path in source.glob(pattern) if path.is_file()}:
            shutil.copy(path, building / path.name)
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
