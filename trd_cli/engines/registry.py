"""Find and build an engine by its name; no heavy import happens before `build_engine`."""

from __future__ import annotations

import importlib.util

from trd_cli.adapter_files import is_adapter_alone
from trd_cli.config.generating import EngineName, EngineOptions, PrefixOptions, RefineConfig
from trd_cli.engines.base import Engine
from trd_cli.errors import EngineError, InputError, flag
from trd_cli.models import SCRIPTED, ModelRef
from trd_cli.prompting.tokens import Tokenizer

_BY_MODEL = flag("model")
# Arguments that an option of trd sets, and those that would break rows in silence.
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
    """Return the engine that `--engine` means on this machine; `auto` is vllm if it is installed and there is a GPU.

    Otherwise `auto` is transformers. In a refinement the scripted engine may write in the tokens of a real model, as
    the oracle of episodes.
    """
    if options.engine != "auto":
        in_tokens_of_another = options.engine == SCRIPTED and isinstance(options, RefineConfig)
        if (options.engine == SCRIPTED) != (model_name == SCRIPTED) and not in_tokens_of_another:
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
    """Raise EngineError for an `--engine-arg` that the engine does not accept or that goes against an option of trd.

    The names that transformers and vllm accept are not known here: these engines refuse others when they start.
    """
    if name == "scripted":
        from trd_cli.engines.scripted import read_script

        read_script(options.engine_arg)
    elif name == "openai":
        from trd_cli.engines.server import read_arguments

        arguments = read_arguments(options.engine_arg)
        if arguments.api == "chat" and isinstance(options, PrefixOptions) and options.gives_tokens:
            raise EngineError(
                f"{flag('engine')} openai with api=chat, which takes no token ids to go on from",
                "a server that takes them, as vllm's does",
                f"leave api=chat out of {flag('engine_arg')}, or use another {flag('engine')}",
            )
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


def check_weights(name: EngineName, model: ModelRef) -> None:
    """Raise EngineError for an adapter without merged weights, which vllm does not load."""
    if name == "vllm" and model.path is not None and is_adapter_alone(model.path):
        raise EngineError(
            f"vllm with {model.name}, an adapter without merged weights",
            "merged weights",
            f"run its trd distill again with --merge, which trains nothing, or use {flag('engine')} transformers",
        )


def check_server(name: EngineName, options: EngineOptions) -> None:
    """Raise EngineError if the openai engine has no server to ask."""
    if name == "openai":
        from trd_cli.engines.server import read_servers

        read_servers(options.base_url)


def window(name: EngineName, model: ModelRef, options: EngineOptions) -> int:
    """Return the longest prompt and response together, in tokens: the option's value, else the model's own length.

    Raises ModelError if neither is given, and InputError if the transformers engine would exceed the model's length.
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
    """Load the model and return its engine; `tokenizer` is the model's own."""
    if name == "scripted":
        from trd_cli.engines.scripted import ScriptedEngine

        return ScriptedEngine(tokenizer, options)
    if name == "openai":
        from trd_cli.engines.openai import OpenAIEngine

        return OpenAIEngine(model, tokenizer, options)
    if name == "vllm":
        from trd_cli.engines.vllm import VllmEngine

        return VllmEngine(model, tokenizer, options)
    if name == "transformers":
        from trd_cli.engines.transformers import TransformersEngine

        return TransformersEngine(model, tokenizer, options)
    raise ValueError(f"build_engine has no branch for {name}")
