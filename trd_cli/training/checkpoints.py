"""Saving a trained model as a directory that transformers and vLLM load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from trd_cli.shards import sync_directory

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_REPLACED = {"config.json", "generation_config.json", "run.json", "model.safetensors.index.json"}


def save_model(model, source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write weights and config of `model` into `target`, with the tokenizer files of `source` as they are.

    Files appear under their final names only when all of them are written; config.json, which makes the directory a model,
    is the last.
    """
    building = target / ".saving.tmp"
    shutil.rmtree(building, ignore_errors=True)
    model.to(dtype).save_pretrained(building)
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix not in _WEIGHTS
            and path.name not in _REPLACED
            and not path.name.startswith(".")
        ):
            shutil.copy(path, building / path.name)
    for path in sorted(building.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, target / path.name)
    building.rmdir()
    sync_directory(target)
