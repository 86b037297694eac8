"""Declare the options of commands that ask a model for text: engine, sampling, prompt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from trd_cli.config.base import (
    AboveZero,
    ArrayOptions,
    Config,
    InputOptions,
    JsonPairs,
    NonNegative,
    NotNegative,
    OutputOptions,
    Positive,
    SelectOptions,
    SetOptions,
    Share,
    Subset,
    Texts,
    later,
    option,
)
from trd_cli.errors import InputError, flag
from trd_cli.records import Cut

# trd fills in these arguments of transformers' apply_chat_template. Given again, they would break or change a prompt.
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
    """Raise InputError for a name that trd fills in itself."""
    taken = sorted(_NOT_FOR_A_TEMPLATE & value.keys())
    if taken:
        raise InputError(
            f"{flag('chat_template_kwargs')} {taken[0]}, which trd fills in",
            "names that the chat template reads",
            f"leave {taken[0]} out",
        )
    return value


def replicas_text(value: Any) -> str:
    """Return a number of replicas, or auto, as the command line has it; a recipe may have a number."""
    text = str(value).strip()
    if text == "auto":
        return text
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ValueError("a whole number of at least 1, or auto")
    return str(int(text))


EngineName = Literal["transformers", "vllm", "openai", "scripted"]


class EngineOptions(Config):
    engine: Literal["auto", EngineName] = option(
        "auto", "Engine", "Program that generates. auto: vllm if it is installed and a GPU is there, else transformers."
    )
    engine_arg: JsonPairs = option(
        {},
        "Engine",
        "KEY=VALUE for the engine (repeatable): any argument of vllm's LLM, api=chat for hosted openai APIs (with --top-k 0), delay=0.01 for scripted.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Engine", "Type of weights and computation. auto: as the checkpoint was saved."
    )
    device: str = option("auto", "Engine", "cpu, cuda, cuda:1 or mps. auto: the fastest on this machine.", rows=False)
    batch_size: Positive | None = option(
        None,
        "Engine",
        "Rows at a time: transformers' batch, vllm's max_num_seqs, openai's open requests a server.",
        rows=False,
    )
    max_model_len: Positive | None = option(
        None, "Engine", "Longest prompt and response together, in tokens. Default: the model's limit."
    )
    tensor_parallel_size: Positive = option(1, "Engine", "GPUs that share one model (vllm).", rows=False)
    gpu_memory_utilization: Share = option(0.9, "Engine", "Share of GPU memory for vllm.", rows=False)
    replicas: Annotated[str, BeforeValidator(replicas_text)] = option(
        "1",
        "Engine",
        "Engines over the same model, each on devices of its own. auto: as many as the visible GPUs allow (with --ray: the cluster's).",
        rows=False,
    )
    ray: str | None = option(
        None, "Engine", "Ray cluster that runs the replicas: auto (the one of this machine) or HOST:PORT.", rows=False
    )
    batch_invariant: bool = option(
        False,
        "Engine",
        "Use kernels whose results do not depend on the batch (vllm, slower): the same rows with any number of replicas.",
        rows=False,
    )
    base_url: Texts = option(
        (),
        "Engine",
        "Server of openai, as http://localhost:8000/v1 (repeatable: several that serve one model); the key is in OPENAI_API_KEY.",
        rows=False,
    )


# The most new tokens of a response, and of a turn of an episode.
_RESPONSE_TOKENS, TURN_TOKENS = 16384, 64


class SamplingOptions(Config):
    temperature: NotNegative = option(0.6, "Sampling", "0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = option(
        0.95, "Sampling", "Keep the fewest tokens of this total probability."
    )
    top_k: NonNegative = option(20, "Sampling", "Keep this many of the likeliest tokens; 0: all.")
    max_tokens: Positive = option(
        _RESPONSE_TOKENS, "Sampling", "Most new tokens of a response; fewer where the model's context ends."
    )
    seed: int = option(0, "Sampling", "Each row's seed is made from this one and from the row's identity.")


class RenderOptions(Config):
    prompt: str | None = option(None, "Prompt", "Template file (jinja2) instead of the built-in one.")
    render: Literal["chat", "raw", "raw-line"] | None = option(
        None,
        "Prompt",
        "chat: by the chat template; raw: the prompt's text alone; raw-line: with a line break after it. Default: as the input set, else chat.",
    )
    chat_template_kwargs: Annotated[JsonPairs, AfterValidator(_for_a_template)] | None = option(
        None, "Prompt", "KEY=VALUE for the chat template (repeatable): enable_thinking=false. Default: the input set's."
    )


class PrefixOptions(Config):
    prefix: Annotated[str, BeforeValidator(lambda value: str(Cut.parse(str(value))))] | None = option(
        None,
        "Input",
        "Where the given part of a response ends: after so many tokens, as 64, or after a share of them, as 0.4. The end of the turn is no part of it.",
        counts_unset=False,
    )
    at_line_break: bool = option(
        False, "Input", "Move that place to the nearest line break of the response.", counts_unset=False
    )

    @property
    def cut(self) -> Cut | None:
        """Return where responses are cut to prefixes, None where no prefix is asked for."""
        return Cut.parse(self.prefix, self.at_line_break) if self.prefix else None

    @property
    def gives_tokens(self) -> bool:
        """Return whether a model goes on from response tokens that it is given."""
        return self.cut is not None


class EpisodeOptions(Config):
    max_turns: Positive = option(30, "Sampling", "Most turns of an episode.", counts_unset=False)
    env_timeout: AboveZero = option(
        120.0, "Engine", "Seconds that an environment has for a turn; more costs the episode.", rows=False
    )
    env_memory: AboveZero = option(4.0, "Engine", "GiB of memory that a process of environments may take.", rows=False)
    env_workers: Positive | None = option(None, "Engine", "Processes of environments. Default: one a core.", rows=False)

    def check_without_episodes(self, lacking: str, *more: str) -> None:
        """Raise InputError if an option of episodes, or one of `more`, is set where `lacking`, their source, is not."""
        fields = type(self).model_fields
        for name in (*more, *EpisodeOptions.model_fields):
            if getattr(self, name) != fields[name].get_default():
                raise InputError(
                    f"{flag(name)} without {lacking}", f"{flag(name)} only for episodes", f"leave {flag(name)} out"
                )


# Options of `trd sample` that go with some of its inputs alone.
_OF_PROBLEMS = ("max_prompt_tokens", "max_reference_tokens", "round", *RenderOptions.model_fields)
OF_SETS = (*SelectOptions.model_fields, *SetOptions.model_fields, *PrefixOptions.model_fields)


class SampleConfig(
    *(OutputOptions, ArrayOptions, EngineOptions, SamplingOptions, RenderOptions),
    *(PrefixOptions, EpisodeOptions, SetOptions),
):
    model: str = option(
        "smollm2-135m",
        "Model",
        "Student: directory, Hub name, smollm2-135m, scripted.",
        flags=("--model", "-m"),
        rows=False,
    )
    problems: str | None = option(
        None,
        "Input",
        "Problem set: a Parquet file made by trd data, also hf://datasets/owner/name/file.parquet.",
        flags=("--problems", "-p"),
        rows=False,
    )
    env: str | None = option(
        None,
        "Input",
        "Environment of episodes, in place of a problem set: NAME:KEY=VALUE,… as textworld:level=1,n=20,seed=0, textarena:Sudoku-v0 or scripted:n=8; MODULE:FUNCTION:… for your own.",
        decides=True,
        counts_unset=False,
    )
    from_sets: Texts = option(
        (),
        "Input",
        "Trajectory set or shard, in place of a problem set (repeatable; -: paths from standard input): go on from a --prefix of its rows.",
        flags=("--from",),
        rows=False,
    )
    subset: Subset = later(SelectOptions, "subset")
    where: str | None = later(SelectOptions, "where")
    n: Positive = option(
        1, "Input", "Attempts at each problem; with --from, from each row.", flags=("--n", "-n"), decides=True
    )
    limit: Positive | None = option(
        None,
        "Input",
        "Take only this many problems, after those skipped; with --from, rows in the order of their ids.",
        decides=True,
    )
    skip: NonNegative = option(
        0, "Input", "Skip this many problems, or rows; with --limit, take a slice.", decides=True
    )
    max_prompt_tokens: Positive | None = option(
        None, "Input", "Leave out problems of that slice with a longer prompt.", decides=True
    )
    max_reference_tokens: Positive | None = option(
        None, "Input", "Leave out problems of that slice with a longer reference solution.", decides=True
    )
    round: NonNegative = option(0, "Input", "Number of the round; part of each row's identity.")
    max_tokens: Positive | None = option(
        None,
        "Sampling",
        f"Most new tokens of a response, or of a turn of an episode; fewer where the model's context ends. Default: {_RESPONSE_TOKENS}; with --env {TURN_TOKENS}.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("max_tokens") is not None:
            return values
        return values | cls._most_tokens(values.get("env"))

    def _implied(self) -> dict[str, Any]:
        return self._most_tokens(self.env)

    @staticmethod
    def _most_tokens(env: str | None) -> dict[str, Any]:
        return {"max_tokens": _RESPONSE_TOKENS if env is None else TURN_TOKENS}

    @model_validator(mode="after")
    def _one_input(self) -> SampleConfig:
        inputs = {"problems": self.problems, "env": self.env, "from": self.from_sets or None}
        given = [flag(name) for name, value in inputs.items() if value is not None]
        if len(given) != 1:
            got = " with ".join(given) or f"no {flag('problems')}"
            raise InputError(got, "a problem set, --env SPEC or --from SET", "give one of the three")
        if self.env is None:
            self.check_without_episodes(flag("env"))
        if self.from_sets and self.prefix is None:
            raise InputError(
                f"--from without {flag('prefix')}", "where its responses are cut", f"add {flag('prefix')} 0.5"
            )
        for name in _OF_PROBLEMS if self.from_sets else OF_SETS:
            if getattr(self, name) != type(self).model_fields[name].get_default():
                beside, mend = ("with", "without") if self.from_sets else ("without", "with")
                why = f"the prompts and rounds of {flag('problems')}" if self.from_sets else "rows of a set"
                raise InputError(
                    f"{flag(name)} {beside} --from",
                    f"{flag(name)} only {mend} --from, for {why}",
                    f"leave {flag(name)} out",
                )
        return self


DEFAULT_PREFIX = "0.5"


class RelayOptions(Config):
    student: str | None = option(
        None,
        "Model",
        "Of --mode relay: student that goes on after the teacher. Default: the model of the rollouts.",
        rows=False,
    )
    legs: Positive = option(
        2, "Model", "Of --mode relay: most legs of the teacher in a row, which ends with the last.", counts_unset=False
    )
    leg_tokens: Positive = option(
        256, "Model", "Of --mode relay: most tokens of a leg, its onset token included.", counts_unset=False
    )
    leg_paragraphs: NonNegative = option(
        3,
        "Model",
        "Of --mode relay: a leg also ends after this many blank lines; 0: only at --leg-tokens.",
        counts_unset=False,
    )
    onset: str | None = option(
        None,
        "Model",
        "Of --mode relay: words with which a text turns back, one a line. Default: prompts/onset.txt.",
        rows=False,
    )


class ReplayOptions(EpisodeOptions):
    replays: Positive = option(
        3,
        "Model",
        "Of episodes: most lists of commands that the teacher writes for one. Each goes on from where the last was refused, met another reply than expected, or ended.",
        counts_unset=False,
    )


# Options of `trd refine` that one mode alone reads.
_OF_MODES = {"continue": PrefixOptions, "relay": RelayOptions}


class RefineConfig(
    InputOptions,
    SelectOptions,
    OutputOptions,
    ArrayOptions,
    EngineOptions,
    SamplingOptions,
    RenderOptions,
    PrefixOptions,
    RelayOptions,
    ReplayOptions,
):
    setting: Literal["opd", "opsd"] = option(
        ..., "Model", "opd: a stronger --teacher sees problem and attempt. opsd: the student sees the reference too."
    )
    mode: Literal["rewrite", "continue", "relay"] = option(
        "rewrite",
        "Model",
        f"rewrite: the teacher reads the attempt and writes y_r anew; of an episode its commands are replayed. continue: it does not read the rest, but goes on itself from a --prefix of the attempt (default: {DEFAULT_PREFIX}). relay: it takes over where it would turn back and the student would not, for a leg, and the student goes on.",
        counts_unset=False,
    )
    teacher: str | None = option(
        None, "Model", "Teacher. Default for opsd: the model of the rollouts.", flags=("--teacher", "-t"), rows=False
    )
    stream: bool = option(False, "Input", "Start at the first path on standard input, not at its end.", rows=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        is_open = isinstance(values, dict) and values.get("mode") == "continue" and values.get("prefix") is None
        return values | {"prefix": DEFAULT_PREFIX} if is_open else values

    @property
    def gives_tokens(self) -> bool:
        return self.mode != "rewrite"

    def _implied(self) -> dict[str, Any]:
        return {"prefix": DEFAULT_PREFIX} if self.mode == "continue" else {}

    @model_validator(mode="after")
    def _nothing_ignored(self) -> RefineConfig:
        for mode, options in _OF_MODES.items():
            for name in options.model_fields if self.mode != mode else ():
                if getattr(self, name) != type(self).model_fields[name].get_default():
                    raise InputError(
                        f"{flag(name)} with {flag('mode')} {self.mode}",
                        f"{flag('mode')} {mode}, which reads it",
                        f"add {flag('mode')} {mode}, or leave {flag(name)} out",
                    )
        if self.mode == "relay" and self.stream:
            raise InputError(
                f"{flag('stream')} with {flag('mode')} relay",
                "a finished set: each phase of a relay is over all rows",
                f"leave {flag('stream')} out",
            )
        return self
