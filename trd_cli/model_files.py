"""Read a model directory without loading the model: settings, context length, ends of a response, names of weights.

A file that cannot be used raises a ModelError with the file's name and the words of the library that failed to read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trd_cli.errors import ModelError, first_line, flag

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What a checkpoint's weights say of a few tokens (see engines/probe.py); no part of the model.
PROBE = "probe.json"
_OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Files of a tokenizer, the likeliest to be broken first.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    CONFIG,
)
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ModelError if the file is cut off, not UTF-8, or holds no object."""
    found, reason = _json_object(path)
    if found is None:
        raise ModelError(f"{path} cannot be read ({reason})", "a JSON object in UTF-8", "copy the file again")
    return found


def context_length(directory: Path) -> int:
    """Return the longest context in tokens that config.json names.

    Raises ModelError if it names none, or one that is no number of tokens.
    """
    path = directory / CONFIG
    for config in configs(directory):
        for name in _LENGTHS:
            value = config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(
                    f"{path}: {name} is {json.dumps(value)}", "a number of tokens", f"give {flag('max_model_len')}"
                )
            return value
    raise ModelError(f"{path} names no context length", "max_position_embeddings", f"give {flag('max_model_len')}")


def configured_ends(directory: Path) -> list[int]:
    """Return the ids that end a response by generation_config.json, or by config.json if that names none.

    Raises ModelError if a file cannot be read or names an end that is no id.
    """
    generation = directory / GENERATION_CONFIG
    if generation.is_file():
        ends = _ends(generation, read_settings(generation))
        if ends:
            return ends
    if not (directory / CONFIG).is_file():
        return []
    found = (_ends(directory / CONFIG, config) for config in reversed(configs(directory)))
    return next(filter(None, found), [])


def tensor_names(directory: Path) -> frozenset[str]:
    """Return the names of the weights by the headers and the index of the safetensors files, without loading them.

    Missing weights, and those in other formats, have no names. Raises ModelError if a file is damaged, or if only some
    of the files that the index names are there.
    """
    names: set[str] = set()
    if not (directory / WEIGHTS).is_file() and (directory / INDEX).is_file():
        names |= _weight_map(directory / INDEX).keys()
    for path in weight_files(directory):
        names |= header(path)
    return frozenset(names)


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of the weights; none if they are missing, or in another format.

    Raises ModelError if only some of the files that the index names are there.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        return []
    files = [directory / name for name in sorted(set(_weight_map(index).values()))]
    missing = [path for path in files if not path.is_file()]
    if missing and len(missing) < len(files):
        raise ModelError(
            f"{index} names {missing[0].name}, which is not there", "all files of the weights", "copy it too"
        )
    return [] if missing else files


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor. Raises ModelError if the index has none."""
    found = read_settings(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ModelError(f"{index} has no weight_map", "the index of the weights", "copy the file again")
    return found


def has_weights(directory: Path) -> bool:
    """Return True if a directory has files of weights, by their names alone."""
    named = any((directory / name).is_file() for name in (INDEX, *_OTHER_WEIGHTS))
    return named or any(directory.glob("*.safetensors"))


def weights_dtype(directory: Path) -> str | None:
    """Return the dtype of the weights that config.json names, such as `bfloat16`, or None if it names none."""
    named = (config.get(key) for config in configs(directory) for key in ("dtype", "torch_dtype"))
    return next((name.removeprefix("torch.") for name in named if isinstance(name, str)), None)


def damage(directory: Path) -> str | None:
    """Return which file of a model's configuration and weights cannot be read and why, or None if all can.

    It explains a failure to load a model whose message does not name the file at fault.
    """
    try:
        for name in (CONFIG, GENERATION_CONFIG):
            if (directory / name).is_file():
                read_settings(directory / name)
        tensor_names(directory)
    except ModelError as error:
        return error.got
    return None


def broken_tokenizer_file(directory: Path) -> tuple[str, str | None]:
    """Return the name of the file that a tokenizer cannot be read from, and the reason (None if the file is sound)."""
    there = [name for name in _TOKENIZER_FILES if (directory / name).is_file()]
    for name in there:
        found, reason = _json_object(directory / name)
        if found is None:
            return name, reason
    for path in sorted(directory.glob("*.jinja")):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            return path.name, first_line(error)
    return (there or [_TOKENIZER_FILES[0]])[0], None


def _json_object(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the JSON object in a file and "", or None and the reason why there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, first_line(error)
    return (found, "") if isinstance(found, dict) else (None, f"it holds a {type(found).__name__}")


def configs(directory: Path) -> list[dict[str, Any]]:
    """Return the configurations: that of the language model if it is nested in a larger one, then the whole."""
    config = read_settings(directory / CONFIG)
    nested = config.get("text_config")
    return [nested, config] if isinstance(nested, dict) else [config]


def _ends(path: Path, settings: dict[str, Any]) -> list[int]:
    value = settings.get("eos_token_id")
    listed = value if isinstance(value, list) else [value]
    odd = [end for end in listed if end is not None and (isinstance(end, bool) or not isinstance(end, int))]
    if odd:
        raise ModelError(f"{path}: eos_token_id is {json.dumps(value)}", "an id, or a list of ids", "mend the file")
    return [end for end in listed if end is not None and end >= 0]


def header(path: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file. Raises ModelError for one that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({first_line(error)})", "whole weights", "copy the file again"
        ) from None
