"""From an engine's name to an engine. Nothing heavy is imported before `build_engine`."""

from __future__ import annotations

import importlib.util

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.base import Engine
from trd_cli.engines.versions import EngineName
from trd_cli.errors import EngineError, InputError, flag
from trd_cli.models import SCRIPTED, ModelRef
from trd_cli.prompting.tokens import Tokenizer

_BY_MODEL = flag("model")
# Arguments of an engine that are given by an option of trd, and those that would break a row without a word.
_NOT_TO_GIVE: dict[str, dict[str, str]] = {
    "transformers": {
        "pretrained_model_name_or_path": _BY_MODEL,
        "config": _BY_MODEL,
        "state_dict": _BY_MODEL,
        "dtype": flag("dtype"),
        "torch_dtype": flag("dtype"),
        "device_map": flag("device"),
        "output_loading_info": "none: what is loaded is a model alone",
        "ignore_mismatched_sizes": "none: what does not fit would be random",
    },
    "vllm": {
        "model": _BY_MODEL,
        "tokenizer": _BY_MODEL,
        "dtype": flag("dtype"),
        "device": flag("device"),
        "tensor_parallel_size": flag("tensor_parallel_size"),
        "gpu_memory_utilization": flag("gpu_memory_utilization"),
        "max_model_len": flag("max_model_len"),
        "max_num_seqs": flag("batch_size"),
        "skip_tokenizer_init": "none: vllm would not know its own ends of a response",
    },
}
_LOGPROBS_MODE = "raw_logprobs"


def choose_engine(options: EngineOptions, model_name: str) -> EngineName:
    """The engine `--engine` means on this machine:

    auto is vllm where it is installed beside a GPU, else transformers.
    """
    if options.engine != "auto":
        if (options.engine == SCRIPTED) != (model_name == SCRIPTED):
            raise EngineError(
                f"{flag('engine')} {options.engine} with {flag('model')} {model_name}",
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


def check_arguments(name: EngineName, options: EngineOptions) -> None:
    """Raise EngineError for an `--engine-arg` that the engine does not take, or that an option of trd stands for.

    Names that transformers and vllm take are theirs to know: they refuse others when they start.
    """
    if name == "scripted":
        from trd_cli.engines.scripted import read_script

        read_script(options.engine_arg)
    elif name == "openai":
        from trd_cli.engines.openai import read_arguments

        read_arguments(options.engine_arg)
    for argument, value in options.engine_arg.items():
        instead = _NOT_TO_GIVE.get(name, {}).get(argument)
        if instead:
            raise EngineError(f"{flag('engine_arg')} {argument}", instead, "leave it out")
        if name == "vllm" and argument == "logprobs_mode" and value != _LOGPROBS_MODE:
            raise EngineError(
                f"{flag('engine_arg')} logprobs_mode={value}",
                f"{_LOGPROBS_MODE}, the model's own, which rows record",
                "leave it out",
            )


def check_server(name: EngineName, options: EngineOptions) -> None:
    """Raise EngineError where the openai engine has no server to ask."""
    if name == "openai":
        from trd_cli.engines.server import read_server

        read_server(options.base_url)


def window(name: EngineName, model: ModelRef, options: EngineOptions) -> int:
    """Return the longest prompt and response together, in tokens: as asked for, else what the model's configuration
    names.

    Raises ModelError where neither says, InputError where the transformers engine is asked for more than the model
    takes.
    """
    asked, longest = options.max_model_len, model.known_length()
    if asked is None:
        return model.max_length()
    if name == "transformers" and longest is not None and asked > longest:
        raise InputError(
            f"{flag('max_model_len')} {asked}", f"at most the {longest} that {model.name} takes", "lower it"
        )
    return asked


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
