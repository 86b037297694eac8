"""One frozen config a command. A field's declaration is its flag, its help, its default and its place in `run.json`.

A field made with `option(..., rows=False)` changes how a command runs, never which rows it makes (batch size, device,
shard size); all other fields belong to the identity that a resumed run must match.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from trd_cli.errors import InputError
from trd_cli.redaction import without_secrets

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
RunStage = Literal["problems", "sample", "verify", "refine", "distill", "eval"]
Subset = Literal["all", "correct", "incorrect", "repaired", "broken", "kept", "unrepaired"]


def option(
    default: Any = ...,
    *,
    help: str,
    flags: tuple[str, ...] = (),
    rows: bool = True,
    decides: bool = False,
    argument: bool = False,
):
    """A config field: `flags` replaces the flag made from its name; `rows` says whether it changes the rows made, `decides` whether
    it changes the result in another way: how many rows there are, or what is said of them.
    """
    extra = {"flags": list(flags), "rows": rows, "decides": rows or decides, "argument": argument}
    return Field(default, description=help, json_schema_extra=extra)


def pairs(value: Any) -> Any:
    """`KEY=VALUE` strings, as typed on the command line, to a dictionary; dictionaries pass."""
    if not isinstance(value, (list, tuple)):
        return value
    split = [str(item).split("=", 1) for item in value]
    for item, parts in zip(value, split, strict=True):
        if len(parts) != 2 or not parts[0]:
            raise ValueError(f"KEY=VALUE, not {item!r}")
    return dict(split)


def json_pairs(value: Any) -> Any:
    """Split as `pairs` does, and read each value that is JSON: `enable_thinking=false` is the boolean, and so is `=False`."""
    split = pairs(value)
    return {key: _json_or_text(text) for key, text in split.items()} if split is not value else value


_AS_PYTHON_SPELLS = {"True": True, "False": False, "None": None}


def _json_or_text(text: str) -> Any:
    if text in _AS_PYTHON_SPELLS:
        return _AS_PYTHON_SPELLS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


# Arguments of transformers' apply_chat_template that trd fills in: given again, they would break a prompt or change what it is.
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
            f"--chat-template-kwargs {taken[0]}, which trd fills in",
            "names that the chat template reads",
            f"leave {taken[0]} out",
        )
    return value


Pairs = Annotated[dict[str, str], BeforeValidator(pairs)]
JsonPairs = Annotated[dict[str, Any], BeforeValidator(json_pairs)]


def _words(name: str, field: Any, value: Any) -> list[str]:
    """One option as it is typed."""
    flags = field.json_schema_extra["flags"] or [f"--{name.replace('_', '-')}"]
    flag = next(f for f in flags if f.startswith("--"))
    if isinstance(value, bool):
        on, _, off = flag.partition("/")
        return [on if value else off or "--no-" + on.removeprefix("--")]
    if isinstance(value, dict):
        as_json = "Any" in str(field.annotation)
        return [word for key, v in value.items() for word in (flag, f"{key}={_typed(v) if as_json else v}")]
    values = value if isinstance(value, tuple) else (value,)
    return [word for v in values for word in (flag, str(v))]


def _typed(value: Any) -> str:
    """A value of `KEY=VALUE` that `json_pairs` reads back as it is."""
    if isinstance(value, str) and _json_or_text(value) is value:
        return value
    return json.dumps(value)


class Config(BaseModel):
    """Base of all command configs: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Config:
        """Validate `values`; the first thing wrong becomes one `InputError` that names the option."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else cls.__name__
            got = f"{name} {first['input']!r}" if first["loc"] else str(first["input"])
            expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            raise InputError(got, expected, f"change {name} (see --help)") from None

    def record(self) -> dict[str, Any]:
        """Return all options as JSON values, without keys, as run.json holds them."""
        return without_secrets(self.model_dump(mode="json"))

    def identity(self) -> dict[str, Any]:
        """The options that decide which rows are made, as JSON values."""
        values = self.record()
        fields = type(self).model_fields
        return {name: values[name] for name in fields if fields[name].json_schema_extra["rows"]}

    def deciding(self) -> dict[str, Any]:
        """The options that decide a result: `identity`, and those that say how many rows there are or how they are graded."""
        values = self.record()
        fields = type(self).model_fields
        return {name: values[name] for name in fields if fields[name].json_schema_extra["decides"]}

    def flags(self) -> list[str]:
        """The words of a command line that gives this configuration again: what is not the default, arguments last."""
        implied = self._implied()
        words: list[str] = []
        arguments: list[str] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value in (None, (), {}) or value == field.get_default() or implied.get(name) == value:
                continue
            if field.json_schema_extra["argument"]:
                arguments += map(str, value) if isinstance(value, tuple) else [str(value)]
            else:
                words += _words(name, field, value)
        return [*words, *arguments]

    def _implied(self) -> dict[str, Any]:
        """Values that are filled in where no flag is given."""
        return {}


class OutputOptions(Config):
    out: str | None = option(
        None, help="Output directory. Default: trd-runs/<command>-<digest of the configuration>.", rows=False
    )
    shard_rows: Positive = option(256, help="Rows a shard.", rows=False)
    shard_minutes: NotNegative = option(
        10.0, help="Close a shard early after this many minutes, so that a crash loses no more.", rows=False
    )
    max_errors: NotNegative = option(
        0.05, help="Exit with 3 when more rows end as errors: a count, or a share if below 1.", rows=False
    )
    retry_errors: bool = option(False, help="Generate again the rows that ended as errors.", rows=False)
    dry_run: bool = option(
        False, help="Print the first rendered prompt and what would run, then stop.", rows=False
    )


class EngineOptions(Config):
    engine: Literal["auto", "transformers", "vllm", "openai", "scripted"] = option(
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
        None,
        help="Rows in flight: transformers' batch, vllm's max_num_seqs, openai's open requests.",
        rows=False,
    )
    max_model_len: Positive | None = option(
        None, help="Longest prompt + response in tokens. Default: the model's own."
    )
    tensor_parallel_size: Positive = option(1, help="GPUs a model is split over (vllm).", rows=False)
    gpu_memory_utilization: Share = option(0.9, help="Share of GPU memory vllm may take.", rows=False)
    base_url: str | None = option(
        None,
        help="Server of the openai engine, for example http://localhost:8000/v1; key in OPENAI_API_KEY.",
        rows=False,
    )


class SamplingOptions(Config):
    temperature: NotNegative = option(0.6, help="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = option(
        0.95, help="Nucleus: smallest set of tokens with this mass."
    )
    top_k: NonNegative = option(20, help="Most likely tokens kept; 0 keeps all.")
    max_tokens: Positive = option(
        16384, help="New tokens a response, at most; less where the model's context ends."
    )
    seed: int = option(0, help="Every row's own seed derives from this one and from the row's identity.")


class RenderOptions(Config):
    prompt: str | None = option(None, help="Template file instead of the built-in one (jinja2).")
    render: Literal["chat", "raw", "raw-line"] | None = option(
        None,
        help="chat: through the chat template; raw: the prompt's text as it is; raw-line: and a line break after it. Default: chat, or as the input set.",
    )
    chat_template_kwargs: Annotated[JsonPairs, AfterValidator(_for_a_template)] | None = option(
        None,
        help="KEY=VALUE for the chat template (repeatable), as enable_thinking=false. Default: as the input set.",
    )


class InputOptions(Config):
    inputs: tuple[str, ...] = option(
        (),
        help="Trajectory sets (directories) or shards; none, or -: paths from standard input.",
        argument=True,
        rows=False,
    )
    allow_partial: bool = option(False, help="Take a set whose own run has not finished.", rows=False)
    parents: tuple[str, ...] = option(
        (), help="Where the parents of refined rows are, if they have been moved (repeatable).", rows=False
    )


class SelectOptions(Config):
    subset: Subset = option("all", help="Named subset, by the verdicts of a row and its parent.")
    where: str | None = option(
        None,
        help="Polars SQL over the row and its parent: \"verdict = 'correct' AND parent_verdict = 'incorrect'\".",
    )


class SampleConfig(OutputOptions, EngineOptions, SamplingOptions, RenderOptions):
    model: str = option(
        "smollm2-135m",
        flags=("--model", "-m"),
        help="Student: a directory, a Hub name, smollm2-135m, or scripted.",
        rows=False,
    )
    problems: str = option(
        flags=("--problems", "-p"), help="Problem set: a Parquet file (trd data).", rows=False
    )
    n: Positive = option(1, flags=("--n", "-n"), help="Attempts a problem.", rows=False, decides=True)
    limit: Positive | None = option(
        None, help="Only the first problems, after those skipped.", rows=False, decides=True
    )
    skip: NonNegative = option(
        0, help="Leave out the first problems; with --limit, a slice of the set.", rows=False, decides=True
    )
    max_prompt_tokens: Positive | None = option(
        None,
        help="Leave out problems of that slice whose rendered prompt is longer.",
        rows=False,
        decides=True,
    )
    max_reference_tokens: Positive | None = option(
        None,
        help="Leave out problems of that slice whose reference solution is longer.",
        rows=False,
        decides=True,
    )
    round: NonNegative = option(0, help="Number of the round; part of each row's identity.")


class RefineConfig(InputOptions, SelectOptions, OutputOptions, EngineOptions, SamplingOptions, RenderOptions):
    setting: Literal["opd", "opsd"] = option(
        help="opd: --teacher, a stronger model, sees problem and attempt; opsd: the student itself also sees the reference."
    )
    teacher: str | None = option(
        None,
        flags=("--teacher", "-t"),
        help="Teacher model. Default for opsd: the model of the rollouts.",
        rows=False,
    )
    stream: bool = option(
        False, help="Start at the first path on standard input, not at its end.", rows=False
    )


class GraderConfig(Config):
    lenient: bool = option(
        False, help="Without a boxed answer, take the response's final expression.", rows=False, decides=True
    )
    timeout: AboveZero = option(
        10.0,
        help="Seconds a row of mathematics may take before its grader is killed (verdict timeout).",
        rows=False,
        decides=True,
    )
    workers: Positive | None = option(
        None, help="Grader processes. Default: the number of cores.", rows=False
    )
    sandbox: Literal["auto", "namespaces", "bwrap", "limits"] = option(
        "auto",
        help="What keeps programs in: Linux namespaces, bubblewrap, or limits alone. auto: the strongest there is.",
        rows=False,
    )
    test_timeout: AboveZero = option(
        6.0,
        help="Seconds a test of a program may take, else it is incorrect (HumanEval+, MBPP+: EvalPlus's limits).",
        rows=False,
        decides=True,
    )
    code_timeout: AboveZero = option(
        120.0,
        help="Seconds all tests of a program may take (verdict timeout where none has failed by then).",
        rows=False,
        decides=True,
    )
    memory: AboveZero = option(
        4.0, help="GiB of memory for a program, and for a grader process.", rows=False, decides=True
    )


class VerifyConfig(InputOptions, GraderConfig):
    out: str | None = option(
        None, help="Write verified copies here. Default: fill the verdicts in place.", rows=False
    )
    max_errors: NotNegative = option(
        0.05,
        help="Exit with 3 when more rows get no verdict (error, timeout): a count, or a share if below 1.",
        rows=False,
    )
    regrade: bool = option(
        False,
        help="Grade rows that have a verdict again, and print the old verdicts against the new.",
        rows=False,
    )
    audit: Share = option(
        0.0,
        help="Grade this share of the rows by a second method too (math-verify with its own extraction; a second run), print the agreement, and list the rows that differ in SET.audit.jsonl.",
        rows=False,
    )
    dry_run: bool = option(False, help="Say what would be graded, then stop.", rows=False)


ObjectiveName = Literal[
    "forward-kl", "reverse-kl", "jsd", "entropy-gated", "forward-kl-topk", "reverse-kl-topk", "sampled"
]

# What --method stands for. Anything given beside it counts before it.
METHODS: dict[str, dict[str, Any]] = {
    "trd": {"objective": "forward-kl", "stage": "refined", "teacher_context": "refine"},
    "fkl": {"objective": "forward-kl", "stage": "rollout", "teacher_context": "vanilla"},
    "fkl-clip": {
        "objective": "forward-kl",
        "stage": "rollout",
        "teacher_context": "vanilla",
        "clip_position": 0.1,
    },
    "opsd-clip": {
        "objective": "forward-kl",
        "stage": "rollout",
        "teacher_context": "vanilla",
        "setting": "opsd",
        "clip_entry": 0.05,
        "teacher_weights": "initial",
    },
    "rkl": {"objective": "reverse-kl", "stage": "rollout", "teacher_context": "vanilla"},
    "rkl-topk": {
        "objective": "reverse-kl-topk",
        "stage": "rollout",
        "teacher_context": "vanilla",
        "top_k": 32,
    },
    "sampled": {"objective": "sampled", "stage": "rollout", "teacher_context": "vanilla", "estimator": "k1"},
    "jsd": {"objective": "jsd", "stage": "rollout", "teacher_context": "vanilla", "beta": 0.5},
    "eopd": {
        "objective": "entropy-gated",
        "stage": "rollout",
        "teacher_context": "vanilla",
        "entropy_threshold": 0.8,
    },
}
# What holds where neither a flag nor the method says anything.
_METHOD_DEFAULTS: dict[str, Any] = {
    "objective": "forward-kl",
    "top_k": 32,
    "estimator": "k1",
    "beta": 0.5,
    "entropy_threshold": 0.8,
    "teacher_weights": "round",
}


_TOP_K = ("forward-kl-topk", "reverse-kl-topk")
# Objectives that read an option; given beside another one it would be ignored in silence.
_READ_BY = {
    "beta": ("jsd",),
    "top_k": _TOP_K,
    "top_k_mode": _TOP_K,
    "estimator": ("sampled",),
    "entropy_threshold": ("entropy-gated",),
}


def _unread(key: str, beside: str, reader: str) -> InputError:
    flag = "--" + key.replace("_", "-")
    return InputError(f"{flag} with {beside}", f"{reader}, which reads it", f"leave {flag} out")


class ObjectiveOptions(Config):
    method: Literal[tuple(METHODS)] | None = option(
        None,
        help="A named method: sets the options in its row of the table above; a flag given beside it wins.",
        rows=False,
    )
    objective: ObjectiveName | None = option(
        None, help="Divergence to minimise. Default: the method's, else forward-kl."
    )
    stage: Literal["refined", "rollout"] | None = option(
        None,
        help="Train along y_r (refined) or y_o (rollout). Default: the method's, else refined where the input has any.",
    )
    teacher_context: Literal["refine", "vanilla"] | None = option(
        None,
        help="The teacher reads the refinement prompt, with the attempt, or the problem alone (opsd: and the reference). Default: the method's, else refine along y_r, vanilla along y_o.",
    )
    beta: Share | None = option(
        None, help="Of jsd: weight of the teacher; 0 is forward, 1 reverse KL. Default: 0.5."
    )
    top_k: Positive | None = option(None, help="Of the topk objectives: tokens of the support. Default: 32.")
    top_k_mode: Literal["renormalise", "tail", "stop-gradient"] = option(
        "renormalise",
        help="Of the topk objectives: renormalise both sides on the support, add the rest as one symbol, or hold the weights constant.",
    )
    estimator: Literal["k1", "k2", "k3"] | None = option(
        None,
        help="Of sampled: Monte-Carlo estimator of reverse KL; k3's gradient is forward KL's. Default: k1.",
    )
    entropy_threshold: NotNegative | None = option(
        None,
        help="Of entropy-gated: forward KL is added above this entropy of the teacher, in nats. Default: 0.8.",
    )
    clip_position: AboveZero | None = option(
        None,
        help="Bound the divergence of a position; beyond it there is no gradient. Default: the method's, else none.",
    )
    clip_entry: AboveZero | None = option(
        None, help="Bound each vocabulary entry of the divergence. Default: the method's, else none."
    )
    temperature: AboveZero = option(1.0, help="Divides the logits of both sides; the loss is not rescaled.")
    reduction: Literal["sequence", "token"] = option(
        "sequence",
        help="sequence: mean over a trajectory's tokens, then over trajectories; token: over all tokens of a step.",
    )
    mask_tokens: tuple[str, ...] = option(
        (),
        help="Positions of this token do not count (repeatable); special: all special tokens but the end of turn.",
    )
    eos: bool = option(True, flags=("--eos/--no-eos",), help="Train on the end-of-turn token.")

    def _implied(self) -> dict[str, Any]:
        return _METHOD_DEFAULTS | METHODS.get(self.method, {})

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Flags first, then the method, then what holds anyway. Refuses a flag that the objective does not read."""
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        filled = _METHOD_DEFAULTS | METHODS.get(given.get("method"), {}) | given
        for key, readers in _READ_BY.items():
            default = cls.model_fields[key].get_default()
            if given.get(key, default) != default and filled["objective"] not in readers:
                raise _unread(key, f"--objective {filled['objective']}", " or ".join(readers))
        return filled


class LoraOptions(Config):
    lora: bool = option(
        False, help="Train a low-rank adapter, not all weights; saved in adapter/ beside the merged weights."
    )
    lora_rank: Positive = option(64, help="Rank of the adapter.")
    lora_alpha: AboveZero = option(128.0, help="Scale of the adapter is alpha / rank.")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, help="Dropout before the adapter; above 0, losses depend on how a step is split."
    )
    lora_targets: tuple[str, ...] = option(
        (), help="Names of the layers to adapt (repeatable). Default: all linear layers but the output head."
    )


class DistillConfig(ObjectiveOptions, LoraOptions, InputOptions, SelectOptions):
    FIRST: ClassVar[tuple[str, ...]] = ("method", "objective")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> DistillConfig:
        def changed(name: str) -> bool:
            return getattr(self, name) != type(self).model_fields[name].get_default()

        adapter = [name for name in LoraOptions.model_fields if name != "lora" and changed(name)]
        if adapter and not self.lora:
            raise _unread(adapter[0], "all weights trained", "--lora")
        if changed("ema_decay") and self.teacher_weights != "ema":
            raise _unread("ema_decay", f"--teacher-weights {self.teacher_weights}", "--teacher-weights ema")
        return self

    def check_shardable(self) -> None:
        """Raise InputError for what cannot be trained with the weights cut over several processes."""
        if self.teacher_weights == "ema":
            raise InputError(
                "--teacher-weights ema with FSDP", "initial or round", "change --teacher-weights"
            )

    model: str | None = option(
        None,
        flags=("--model", "-m"),
        help="Student to train. Default: the model that wrote the rollouts.",
        rows=False,
    )
    teacher: str | None = option(
        None,
        flags=("--teacher", "-t"),
        help="Teacher. Default: the model that refined; for opsd the student itself, see --teacher-weights.",
        rows=False,
    )
    teacher_weights: Literal["initial", "round", "ema"] | None = option(
        None,
        help="The student as its own teacher: its weights before the first round, at the start of this round, or their moving average (over rounds, but an adapter's begins anew). Default: the method's, else round.",
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = option(
        0.99, help="Of --teacher-weights ema: share that stays of the average at each step."
    )
    out: str | None = option(
        None, help="Checkpoint directory. Default: trd-runs/distill-<digest>.", rows=False
    )
    setting: Literal["opd", "opsd"] | None = option(
        None,
        help="opsd: the teacher's context shows the reference too. Refined rows have their own. Default: opd.",
    )
    prompt: str | None = option(
        None, help="Template of the teacher's context where it is rendered here, instead of the built-in one."
    )
    epochs: Positive = option(1, help="Passes over the rows.")
    batch_size: Positive = option(32, help="Trajectories an optimiser step, over all processes.")
    max_tokens_per_batch: Positive = option(
        4096,
        help="Tokens a forward pass, padding included, on the longer side; the gradient does not depend on it.",
        rows=False,
    )
    learning_rate: AboveZero = option(
        5e-6, flags=("--learning-rate", "--lr"), help="Peak learning rate of AdamW."
    )
    min_lr_ratio: Share = option(0.1, help="The cosine ends at this share of the peak.")
    warmup_ratio: Share = option(0.1, help="Share of the steps with a rising learning rate.")
    weight_decay: NotNegative = option(0.005, help="AdamW's weight decay.")
    max_grad_norm: AboveZero = option(1.0, help="Gradients are scaled down to this norm.")
    max_loss: AboveZero = option(
        10.0,
        help="Stop when a step's loss is more than this many times the first (which counts as 1 at least).",
        rows=False,
    )
    max_length: Positive | None = option(
        None, help="Longest context + response, in tokens. Default: what both models take."
    )
    overflow: Literal["trim", "error"] = option(
        "trim",
        help="Longer rows: cut the attempt's tail in the teacher's context, then the reference's; or leave the row out.",
    )
    seed: int = option(0, help="Order of the rows, start of the adapter, dropout.")
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto", help="Compute; weights that are trained are float32. auto: bfloat16."
    )
    save_dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto", help="Saved weights. auto: as the starting checkpoint."
    )
    device: str = option("auto", help="cpu, cuda, mps; auto takes the fastest there is.", rows=False)
    attn_implementation: str | None = option(
        None,
        help="Passed to transformers: sdpa, eager, flash_attention_2, ... Default: its own choice.",
        rows=False,
    )
    gradient_checkpointing: bool = option(
        False, help="Recompute activations in the backward pass: less memory.", rows=False
    )
    save_minutes: NotNegative = option(
        10.0,
        help="Save the state of training after so many minutes, so that a crash loses no more.",
        rows=False,
    )
    save_steps: Positive | None = option(None, help="Save it every so many steps too.", rows=False)
    keep: Positive = option(
        2,
        help="Saved states kept while training (one more while it is written); they go when the model is saved.",
        rows=False,
    )
    tracker: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = option(
        (), help="Also log to tensorboard, wandb or trackio (repeatable).", rows=False
    )
    selfcheck: bool = option(
        False,
        help="Check loss, gradient and batching on a few of these rows, print the numbers, and stop.",
        rows=False,
    )
    dry_run: bool = option(
        False, help="Say what would be trained and show the first row's two contexts, then stop.", rows=False
    )


class EvalConfig(OutputOptions, EngineOptions, RenderOptions, GraderConfig):
    model: str | None = option(
        None,
        argument=True,
        help="Model: a directory, a Hub name, smollm2-135m, or scripted; none, or -: from standard input.",
        rows=False,
    )
    model_flag: str | None = option(
        None, flags=("--model", "-m"), help="The model, in place of the argument.", rows=False
    )
    bench: str | None = option(
        None,
        flags=("--bench", "-b"),
        help="Benchmarks, comma-separated: names that trd data list shows, with options as in arithmetic:n=200,seed=2 or livecodebench:from=2025-02-01,to=2025-04-30; problem sets (Parquet); files as questions.jsonl:math or :code.",
        rows=False,
        decides=True,
    )
    k: Positive | None = option(
        None,
        flags=("--k", "-k"),
        help="Samples a question. Default: 1, or with --rescore all there are.",
        rows=False,
        decides=True,
    )
    rescore: str | None = option(
        None,
        help="Directory of an earlier trd eval: grade and score its samples again, the first --k of each question, without a model. Its results are replaced, or written to --out.",
        rows=False,
    )
    limit: Positive | None = option(None, help="Only the first questions.", rows=False, decides=True)
    # These four are part of the identity as resolved for each benchmark.
    temperature: NotNegative | None = option(
        None, help="0 is greedy. Default: the benchmark's.", rows=False, decides=True
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = option(
        None,
        help="Nucleus: smallest set of tokens with this mass. Default: the benchmark's.",
        rows=False,
        decides=True,
    )
    top_k: NonNegative | None = option(
        None, help="Most likely tokens kept; 0 keeps all. Default: the benchmark's.", rows=False, decides=True
    )
    max_tokens: Positive | None = option(
        None, help="New tokens a response, at most. Default: the benchmark's.", rows=False, decides=True
    )
    seed: int = option(0, help="Every row's own seed derives from this one and from the row's identity.")

    @property
    def samples(self) -> int:
        """Samples a question of an evaluation that generates."""
        return self.k or 1

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("model_flag") is None:
            return values
        argument, flag = values.get("model"), values["model_flag"]
        if argument not in (None, flag):
            raise InputError(f"the models {argument} and --model {flag}", "one", "leave one out")
        return values | {"model": flag}

    @model_validator(mode="after")
    def _generates_or_rescores(self) -> EvalConfig:
        if self.rescore is None:
            if self.bench is None:
                raise InputError("no --bench", "a benchmark, or --rescore DIR", "add --bench NAME")
            return self
        for name, field in type(self).model_fields.items():
            if name not in _READ_BY_RESCORE and getattr(self, name) != field.get_default():
                flag = "the model" if name == "model" else "--" + name.replace("_", "-")
                raise InputError(
                    f"{flag} with --rescore", "options of grading and scoring only", f"leave {flag} out"
                )
        return self


_READ_BY_RESCORE = {"rescore", "k", "out", "max_errors", "dry_run", *GraderConfig.model_fields}


class RunConfig(Config):
    recipe: str = option(argument=True, help="Recipe (TOML).", rows=False)
    out: str | None = option(None, help="Run directory. Default: trd-runs/<name of the recipe>.", rows=False)
    from_stage: RunStage | None = option(
        None,
        flags=("--from",),
        help="Do this stage again, and all that comes of it; its old outputs are removed when the run starts.",
        rows=False,
    )
    until: RunStage | None = option(
        None, flags=("--until",), help="Go no further than this stage.", rows=False
    )
    only: tuple[str, ...] = option((), help="Only this arm, with what it needs (repeatable).", rows=False)
    dry_run: bool = option(
        False,
        help="Print what is done, what would run, and the first rendered prompt of each stage, then stop.",
        rows=False,
    )


class PlanConfig(Config):
    recipe: str = option(argument=True, help="Recipe (TOML).", rows=False)
    directory: str | None = option(
        None,
        flags=("--run",),
        help="Run directory whose rollouts and rates are used as far as they are there. Default: that of trd run.",
        rows=False,
    )
    out: str | None = option(None, help="Also write the findings to this JSON file.", rows=False)
    sample_rate: AboveZero | None = option(
        None,
        help="Response tokens a second of sample, refine and eval. Default: as measured in the run directory.",
        rows=False,
    )
    train_rate: AboveZero | None = option(
        None,
        help="Response tokens a second of distill. Default: as measured in the run directory.",
        rows=False,
    )
    gpu_memory: AboveZero | None = option(
        None, help="GiB of one device: a stage that needs more is an error.", rows=False
    )
    fsdp: Positive = option(
        1,
        help="Processes that share the weights of a training (accelerate launch --use_fsdp --fsdp_version 2).",
        rows=False,
    )


class CompareConfig(Config):
    a: str = option(argument=True, help="A directory of trd eval, or its results.json.", rows=False)
    b: str = option(argument=True, help="Another: differences are B - A.", rows=False)
    k: Positive | None = option(
        None,
        flags=("--k", "-k"),
        help="Compare the first so many samples of each question. Default: all that both have.",
        rows=False,
    )
    out: str | None = option(
        None, help="Also write compare.json, compare.md and compare.csv into this directory.", rows=False
    )


class ReportConfig(Config):
    runs: tuple[str, ...] = option(
        argument=True, help="A run directory; or two, A and B: differences are B - A.", rows=False
    )
    out: str | None = option(
        None,
        help="Directory to write to. Default: report in the run directory; of two runs report-against-A in that of B.",
        rows=False,
    )
    nll: Positive | None = option(
        None,
        help="Score y_o, y_r and y* of so many rows of each refined set with the student that wrote y_o (loads the model).",
        rows=False,
    )
    device: str = option(
        "auto", help="Of --nll: cpu, cuda, mps; auto takes the fastest there is.", rows=False
    )

    @model_validator(mode="after")
    def _one_or_two(self) -> ReportConfig:
        if not 1 <= len(self.runs) <= 2:
            raise InputError(f"{len(self.runs)} run directories", "one, or two to compare", "name one or two")
        return self


class MakeConfig(Config):
    kind: Literal["arithmetic"] = option(
        argument=True,
        help="Generator: arithmetic (word problems with worked solutions).",
        rows=False,
        decides=True,
    )
    n: Positive = option(1000, flags=("--n", "-n"), help="Problems.", rows=False, decides=True)
    seed: int = option(0, help="Seed; two seeds give different problems.", rows=False, decides=True)
    level: Annotated[int, Field(ge=1, le=3)] = option(
        1, help="Steps a problem takes: 1 to 3.", rows=False, decides=True
    )
    out: str = option(help="Parquet file to write.", rows=False)


def _columns(value: Any) -> Any:
    """As `pairs`, with several in one string: `problem=prompt,answer=reward_model.ground_truth`."""
    if not isinstance(value, (list, tuple)):
        return value
    return pairs([part for item in value for part in re.split(r",\s*(?=\w+=)", str(item))])


Columns = Annotated[dict[str, str], BeforeValidator(_columns)]
Preset = Literal[
    "gsm8k",
    "math",
    "deepscaler",
    "verl",
    "messages",
    "sharegpt",
    "taco",
    "leetcode",
    "code_contests",
    "deepcoder",
    "mbpp",
]


class ImportConfig(Config):
    file: str = option(
        argument=True,
        help="JSONL, JSON, CSV or Parquet file, or a Hub dataset: owner/name or owner/name:subset.",
        rows=False,
        decides=True,
    )
    out: str = option(help="Parquet file to write.", rows=False)
    preset: Preset | None = option(
        None, help="Columns and answer format of a known set.", rows=False, decides=True
    )
    map: Columns = option(
        {},
        help="FIELD=COLUMN (several by commas, or repeated); COLUMN may be a path: answer=reward_model.ground_truth.",
        rows=False,
        decides=True,
    )
    no_answers: bool = option(
        False, help="Take a set of mathematics without any reference answer.", rows=False
    )
    task: Literal["math", "code"] | None = option(
        None, help="Task of all rows. Default: the preset's, else math.", rows=False, decides=True
    )
    source: str | None = option(
        None,
        help="Name of the set in every row. Default: the preset or the file's name.",
        rows=False,
        decides=True,
    )
    split: str = option("train", help="Split of a Hub dataset.", rows=False, decides=True)
    limit: Positive | None = option(
        None, help="Keep this many rows (after shuffling).", rows=False, decides=True
    )
    shuffle_seed: int | None = option(None, help="Shuffle with this seed first.", rows=False, decides=True)


class ListConfig(Config):
    """`trd data list` has no options."""


class ShowConfig(InputOptions):
    id: str | None = option(
        None, help="Trajectory id, or its first characters. Default: the first row.", rows=False
    )
    tokens: bool = option(False, help="Also print token ids.", rows=False)


class OverlapConfig(Config):
    train: str = option(
        argument=True,
        help="Training set: a problem set (Parquet), or a trajectory set (directory or shard).",
        rows=False,
    )
    bench: tuple[str, ...] = option(
        argument=True,
        help="Benchmarks by name, as for eval's --bench, or problem sets; several, or comma-separated.",
        rows=False,
    )
    n: Literal[8, 13] = option(
        13,
        flags=("--n", "-n"),
        help="Words a shared run must have for a row to be listed and dropped: 8 or 13.",
    )
    common: NonNegative = option(
        10,
        help="Ignore n-grams in more training problems, or in more questions of a benchmark, than this; 0: none.",
    )
    responses: bool = option(False, help="Compare the responses of a trajectory set too.")
    drop: str | None = option(
        None, help="Write the problem set without the listed rows to this Parquet file.", rows=False
    )
    out: str | None = option(
        None, help="Write all hits, at 8 and at 13 words, to this JSON file.", rows=False
    )
