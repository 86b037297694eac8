"""Options of the commands that ask a model for text: the engine, sampling, rendering."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from trd_cli.config.base import (
    Config,
    InputOptions,
    JsonPairs,
    NonNegative,
    NotNegative,
    OutputOptions,
    Positive,
    SelectOptions,
    Share,
    option,
)
from trd_cli.errors import InputError, flag

# Arguments of transformers' apply_chat_template that trd fills in: given again, they would break a prompt or change
# what it is.
_NOT_FOR_A_TEMPLATE = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}


def _for_a_template(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse names that the rendering of a prompt fills in itself."""
    taken = sorted(_NOT_FOR_A_TEMPLATE & value.keys())
    if taken:
        raise InputError(
            f"{flag('chat_template_kwargs')} {taken[0]}, which trd fills in",
            "names that the chat template reads",
            f"leave {taken[0]} out",
        )
    return value


EngineName = Literal["transformers", "vllm", "openai", "scripted"]


class EngineOptions(Config):
    engine: Literal["auto", EngineName] = option(
        "auto", help="What generates. auto: vllm where a GPU and vllm are there, else transformers."
    )
    engine_arg: JsonPairs = option(
        {},
        help="KEY=VALUE passed to the engine (repeatable): vllm's LLM arguments, openai's api=chat (hosted APIs also want --top-k 0), scripted's delay=0.01.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", help="Weights and compute. auto: as the checkpoint was saved."
    )
    device: str = option("auto", help="cpu, cuda, cuda:1, mps; auto takes the fastest there is.", rows=False)
    batch_size: Positive | None = option(
        None, help="Rows in flight: transformers' batch, vllm's max_num_seqs, openai's open requests.", rows=False
    )
    max_model_len: Positive | None = option(None, help="Longest prompt + response in tokens. Default: the model's own.")
    tensor_parallel_size: Positive = option(1, help="GPUs a model is split over (vllm).", rows=False)
    gpu_memory_utilization: Share = option(0.9, help="Share of GPU memory vllm may take.", rows=False)
    base_url: str | None = option(
        None,
        help="Server of the openai engine, for example http://localhost:8000/v1; key in OPENAI_API_KEY.",
        rows=False,
    )


class SamplingOptions(Config):
    temperature: NotNegative = option(0.6, help="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = option(0.95, help="Nucleus: smallest set of tokens with this mass.")
    top_k: NonNegative = option(20, help="Most likely tokens kept; 0 keeps all.")
    max_tokens: Positive = option(16384, help="New tokens a response, at most; less where the model's context ends.")
    seed: int = option(0, help="Every row's own seed derives from this one and from the row's identity.")


class RenderOptions(Config):
    prompt: str | None = option(None, help="Template file instead of the built-in one (jinja2).")
    render: Literal["chat", "raw", "raw-line"] | None = option(
        None,
        help="chat: through the chat template; raw: the prompt's text as it is; raw-line: and a line break after it. Default: chat, or as the input set.",
    )
    chat_template_kwargs: Annotated[JsonPairs, AfterValidator(_for_a_template)] | None = option(
        None, help="KEY=VALUE for the chat template (repeatable), as enable_thinking=false. Default: as the input set."
    )


class SampleConfig(OutputOptions, EngineOptions, SamplingOptions, RenderOptions):
    model: str = option(
        "smollm2-135m",
        flags=("--model", "-m"),
        help="Student: a directory, a Hub name, smollm2-135m, or scripted.",
        rows=False,
    )
    problems: str = option(flags=("--problems", "-p"), help="Problem set: a Parquet file (trd data).", rows=False)
    n: Positive = option(1, flags=("--n", "-n"), help="Attempts a problem.", rows=False, decides=True)
    limit: Positive | None = option(
        None, help="Only the first problems, after those skipped.", rows=False, decides=True
    )
    skip: NonNegative = option(
        0, help="Leave out the first problems; with --limit, a slice of the set.", rows=False, decides=True
    )
    max_prompt_tokens: Positive | None = option(
        None, help="Leave out problems of that slice whose rendered prompt is longer.", rows=False, decides=True
    )
    max_reference_tokens: Positive | None = option(
        None, help="Leave out problems of that slice whose reference solution is longer.", rows=False, decides=True
    )
    round: NonNegative = option(0, help="Number of the round; part of each row's identity.")


class RefineConfig(InputOptions, SelectOptions, OutputOptions, EngineOptions, SamplingOptions, RenderOptions):
    setting: Literal["opd", "opsd"] = option(
        help="opd: --teacher, a stronger model, sees problem and attempt; opsd: the student itself also sees the reference."
    )
    teacher: str | None = option(
        None, flags=("--teacher", "-t"), help="Teacher model. Default for opsd: the model of the rollouts.", rows=False
    )
    stream: bool = option(False, help="Start at the first path on standard input, not at its end.", rows=False)
