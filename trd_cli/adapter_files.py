"""Read and write what makes an adapter a model: the record of its base, and whether merged weights lie beside it.

adapter/adapter_config.json, adapter/adapter_model.safetensors   the adapter, as peft writes it
adapter/base.json                                                the model that it was trained on (see `Base`)

A checkpoint has merged weights beside `adapter/`, or it is an adapter alone, and then its base has the weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trd_cli.atomic import write_text
from trd_cli.errors import ModelError
from trd_cli.model_files import INDEX, WEIGHTS, header, read_settings

ADAPTER = "adapter"
TENSORS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
_BASE = "base.json"
# They tell where the base lay and what wrote the file, not what the adapter does.
_NOT_OF_THE_ADAPTER = {"base_model_name_or_path", "peft_version"}


@dataclass(frozen=True)
class Base:
    """The model under an adapter: its lasting name and its revision.

    `merged` is the digest of the merged weights that lie beside the adapter, None if there are none.
    """

    model: str
    revision: str
    merged: str | None = None


def write_base(directory: Path, base: Base) -> None:
    """Write the record of the base into a checkpoint that has an adapter."""
    write_text(directory / ADAPTER / _BASE, json.dumps(asdict(base)) + "\n")


def read_base(directory: Path) -> Base | None:
    """Return the record of a checkpoint's base, or None if it has none. Raises ModelError for a damaged one."""
    path = directory / ADAPTER / _BASE
    if not path.is_file():
        return None
    try:
        return Base(**read_settings(path))
    except TypeError:
        raise ModelError(f"{path} does not name a base", "model, revision and merged", "copy the file again") from None


def is_adapter_alone(directory: Path) -> bool:
    """Return True if a directory is a checkpoint with an adapter and without merged weights."""
    has_merged = any((directory / name).is_file() for name in (WEIGHTS, INDEX))
    return (directory / ADAPTER / _BASE).is_file() and not has_merged


def adapter_settings(directory: Path) -> dict[str, Any]:
    """Return the settings that decide what a checkpoint's adapter does, as JSON values in a fixed order."""
    found = read_settings(directory / ADAPTER / SETTINGS)
    kept = {key: value for key, value in found.items() if key not in _NOT_OF_THE_ADAPTER}
    return {key: sorted(v) if isinstance(v := kept[key], list) and _are_names(v) else v for key in sorted(kept)}


def adapter_damage(directory: Path) -> str | None:
    """Return which file of a checkpoint's adapter cannot be read and why, or None if all can or it has none."""
    if not is_adapter_alone(directory):
        return None
    try:
        adapter_settings(directory)
        header(directory / ADAPTER / TENSORS)
    except ModelError as error:
        return error.got
    return None


def _are_names(values: list[Any]) -> bool:
    """Return True for a list of strings: peft writes its sets in any order."""
    return all(isinstance(value, str) for value in values)
