"""Options of distillation: the objective, the rows it is trained along, the teacher's context, the optimiser."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from trd_cli.config.base import (
    AboveZero,
    Config,
    InputOptions,
    NotNegative,
    Positive,
    SelectOptions,
    Share,
    joined_pairs,
    option,
)
from trd_cli.errors import InputError, flag
from trd_cli.losses.objectives import OBJECTIVES, Objective

# The kinds of rows that can be trained along, y_r and y_o, the usual one first.
Along = Literal["refined", "rollout"]
Context = Literal["refine", "vanilla"]
# The options that a method sets. A flag given beside --method wins.
METHODS: dict[str, dict[str, Any]] = {
    "trd": {"objective": "forward-kl", "stage": "refined", "teacher_context": "refine"},
    "fkl": {"objective": "forward-kl", "stage": "rollout", "teacher_context": "vanilla"},
    "fkl-clip": {"objective": "forward-kl", "stage": "rollout", "teacher_context": "vanilla", "clip_position": 0.1},
    "opsd-clip": {
        "objective": "forward-kl",
        "stage": "rollout",
        "teacher_context": "vanilla",
        "setting": "opsd",
        "clip_entry": 0.05,
        "teacher_weights": "initial",
    },
    "rkl": {"objective": "reverse-kl", "stage": "rollout", "teacher_context": "vanilla"},
    "rkl-topk": {"objective": "reverse-kl-topk", "stage": "rollout", "teacher_context": "vanilla", "top_k": 32},
    "sampled": {"objective": "sampled", "stage": "rollout", "teacher_context": "vanilla", "estimator": "k1"},
    "jsd": {"objective": "jsd", "stage": "rollout", "teacher_context": "vanilla", "beta": 0.5},
    "eopd": {"objective": "entropy-gated", "stage": "rollout", "teacher_context": "vanilla", "entropy_threshold": 0.8},
    "fastopd": {"objective": "sampled", "stage": "rollout", "teacher_context": "vanilla", "estimator": "k1"},
    "relay": {"objective": "sampled", "stage": "refined", "teacher_context": "vanilla", "estimator": "k1"},
    "scope": {
        "objective": "sampled",
        "stage": "rollout",
        "teacher_context": "vanilla",
        "estimator": "k1",
        "correct_objective": "likelihood",
        "row_weights": "perplexity",
        "reduction": "token",
    },
}
# Options that a method leaves to the user and cannot do without.
NEEDED = {"fastopd": "max_response_tokens"}
# Options that only some objectives read, as each objective's file declares them.
OWN_OPTIONS = {field.name: field for field in dataclasses.fields(Objective) if field.metadata}
# Values where neither a flag nor the method gives one.
_METHOD_DEFAULTS: dict[str, Any] = {
    "objective": "forward-kl",
    "reduction": "sequence",
    "teacher_weights": "round",
    **{name: field.default for name, field in OWN_OPTIONS.items()},
}


def _own_option(name: str) -> tuple[Any, Any]:
    """Return type and declaration of an objective's own option. The value stays open where a method may set it."""
    field, kind = OWN_OPTIONS[name], get_type_hints(Objective, include_extras=True)[name]
    help = f"Of {' and '.join(field.metadata['of'])}: {field.metadata['help']}"
    if any(name in sets for sets in METHODS.values()):
        return kind | None, option(None, "Method", f"{help} Default: {field.default}.")
    return kind, option(field.default, "Method", help)


def _unread(key: str, beside: str, reader: str) -> InputError:
    return InputError(f"{flag(key)} with {beside}", f"{reader}, which reads it", f"leave {flag(key)} out")


class _OfAllObjectives(Config):
    method: Literal[tuple(METHODS)] | None = option(
        None,
        "Method",
        "A named method: sets the options in its row of the table above; a flag given beside it wins.",
        rows=False,
    )
    objective: Literal[tuple(OBJECTIVES)] | None = option(
        None, "Method", "Divergence to minimise. Default: the method's, else forward-kl."
    )
    # The key is older than the word: shards, recipes and run.json call the kind of a row its stage.
    stage: Along | None = option(
        None,
        "Input",
        "Train along refined rows (y_r) or rollouts (y_o). Default: the method's, else refined where the input has any.",
        flags=("--kind", "--stage"),
    )
    teacher_context: Context | None = option(
        None,
        "Method",
        "The teacher reads the refinement prompt, with the attempt, or the problem alone (opsd: and the reference). Default: the method's, else refine along y_r, vanilla along y_o.",
    )
    clip_position: AboveZero | None = option(
        None,
        "Method",
        "Bound the divergence of a position; beyond it there is no gradient. Default: the method's, else none.",
    )
    clip_entry: AboveZero | None = option(
        None, "Method", "Bound each vocabulary entry of the divergence. Default: the method's, else none."
    )
    temperature: AboveZero = option(1.0, "Method", "Divides the logits of both sides; the loss is not rescaled.")
    reduction: Literal["sequence", "token"] | None = option(
        None,
        "Method",
        "sequence: mean over a trajectory's tokens, then over trajectories; token: over all tokens of a step. Default: the method's, else sequence.",
    )
    correct_objective: Literal[tuple(OBJECTIVES)] | None = option(
        None,
        "Method",
        "Objective of rows whose verdict is correct; rows without a verdict are then left out. Default: the method's, else that of all rows.",
        counts_unset=False,
    )
    row_weights: Literal["equal", "perplexity"] | None = option(
        None,
        "Method",
        "perplexity: among the rows of a problem with one verdict, wrong ones count as the teacher finds them likely, right ones as the student finds them unlikely, when the round begins. Default: the method's, else equal.",
        counts_unset=False,
    )
    weight_temperature: AboveZero = option(
        1.0, "Method", "Of --row-weights perplexity: larger is closer to equal weights.", counts_unset=False
    )
    mask_tokens: tuple[str, ...] = option(
        (),
        "Method",
        "Positions of this token do not count (repeatable); special: all special tokens but the end of turn.",
    )
    eos: bool = option(True, "Method", "Train on the end-of-turn token.", flags=("--eos/--no-eos",))
    train_on: Literal["student", "teacher", "all"] = option(
        "all",
        "Method",
        "Train on tokens that the student or the teacher wrote, or both. What an environment or a template wrote never counts.",
        counts_unset=False,
    )
    max_response_tokens: Positive | None = option(
        None, "Method", "Train on the first so many tokens of each response. Default: all of them.", counts_unset=False
    )

    def along(self, held: Collection[str] = get_args(Along)) -> Along:
        """Return the kind of rows to train along: as asked, else y_r where the input holds any.

        By default the input holds both kinds, as it does in a recipe.
        """
        return self.stage or ("refined" if "refined" in held else "rollout")

    def teacher_context_kind(self, along: str | None = None) -> Context:
        """Return the context that the teacher reads before a response of the kind `along` (default: `along()`)."""
        return self.teacher_context or ("refine" if (along or self.along()) == "refined" else "vanilla")

    def takes_stored_prompt(self, along: str | None = None) -> bool:
        """Tell whether the teacher reads the prompt that a row was refined with, which the row brings along."""
        return (along or self.along()) == "refined" and self.teacher_context_kind(along) == "refine"

    def is_drawn_otherwise(self, along: str, temperature: float, top_p: float, top_k: int) -> bool:
        """Tell whether rows are no plain samples of the student, along which the sampled estimate is biased."""
        return along == "refined" or temperature != self.temperature or top_p < 1 or top_k > 0

    @property
    def reads_verdicts(self) -> bool:
        """Return True if a row's own verdict decides how it is trained on."""
        return self.correct_objective is not None or self.weighs_rows

    @property
    def weighs_rows(self) -> bool:
        """Return True if rows get weights of their own, from what both models find of them when the round begins."""
        return self.row_weights == "perplexity"

    def _implied(self) -> dict[str, Any]:
        return _METHOD_DEFAULTS | METHODS.get(self.method, {})

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fill in what the method and the defaults set. Raises InputError for a flag the objective does not read."""
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        filled = _METHOD_DEFAULTS | METHODS.get(given.get("method"), {}) | given
        taken = {filled["objective"], filled.get("correct_objective")}
        for key, field in OWN_OPTIONS.items():
            default, readers = cls.model_fields[key].get_default(), field.metadata["of"]
            if given.get(key, default) != default and not taken & {*readers}:
                raise _unread(key, f"{flag('objective')} {filled['objective']}", " or ".join(readers))
        return filled


ObjectiveOptions = create_model(
    "ObjectiveOptions", __base__=_OfAllObjectives, **{name: _own_option(name) for name in OWN_OPTIONS}
)


def _make_a_whole(shares: Mapping[str, float]) -> Mapping[str, float]:
    """Raise InputError for shares of a mix that are not of one whole; none at all stand for no mix."""
    total = math.fsum(shares.values())
    if shares and abs(total - 1) > _OFF_A_WHOLE:
        told = ",".join(f"{name}={share:g}" for name, share in shares.items())
        raise InputError(
            f"{flag('mix')} {told}, which come to {total:g}", "shares that come to 1", f"change {flag('mix')}"
        )
    return shares


# What shares as 0.333 may lack.
_OFF_A_WHOLE = 0.002
Mix = Annotated[dict[str, AboveZero], BeforeValidator(joined_pairs), AfterValidator(_make_a_whole)]


class LoraOptions(Config):
    lora: bool = option(
        False, "Adapter", "Train a low-rank adapter, not all weights; saved in adapter/ beside the merged weights."
    )
    merge: bool = option(
        True,
        "Adapter",
        "Write the merged weights too. --no-merge leaves them out, and the checkpoint loads its base each time; vllm needs them. --merge on a finished checkpoint writes them without training.",
        flags=("--merge/--no-merge",),
        rows=False,
    )
    lora_rank: Positive = option(64, "Adapter", "Rank of the adapter.")
    lora_alpha: AboveZero = option(128.0, "Adapter", "Scale of the adapter is alpha / rank.")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "Adapter", "Dropout before the adapter; above 0, losses depend on how a step is split."
    )
    lora_targets: tuple[str, ...] = option(
        (), "Adapter", "Names of the layers to adapt (repeatable). Default: all linear layers but the output head."
    )


class PassOptions(Config):
    """Declare how a command reads rows with torch itself, without an engine."""

    device: str = option("auto", "Engine", "cpu, cuda, mps; auto takes the fastest there is.", rows=False)
    attn_implementation: str | None = option(
        None,
        "Engine",
        "Passed to transformers: sdpa, eager, flash_attention_2, ... Default: its own choice.",
        rows=False,
    )
    max_tokens_per_batch: Positive = option(
        4096,
        "Engine",
        "Tokens a forward pass, padding included, on the longer side. Gradients do not depend on it, nor do figures in float32.",
        rows=False,
    )


class DistillConfig(ObjectiveOptions, LoraOptions, InputOptions, SelectOptions, PassOptions):
    @model_validator(mode="after")
    def _nothing_ignored(self) -> DistillConfig:
        def changed(name: str) -> bool:
            return getattr(self, name) != type(self).model_fields[name].get_default()

        adapter = [name for name in LoraOptions.model_fields if name != "lora" and changed(name)]
        if adapter and not self.lora:
            raise _unread(adapter[0], "all weights trained", flag("lora"))
        if changed("ema_decay") and self.teacher_weights != "ema":
            weights = flag("teacher_weights")
            raise _unread("ema_decay", f"{weights} {self.teacher_weights}", f"{weights} ema")
        if changed("weight_temperature") and not self.weighs_rows:
            weights = flag("row_weights")
            raise _unread("weight_temperature", f"{weights} {self.row_weights or 'equal'}", f"{weights} perplexity")
        needed = NEEDED.get(self.method)
        if needed is not None and getattr(self, needed) is None:
            raise InputError(
                f"{flag('method')} {self.method} without {flag(needed)}", "the option", f"give {flag(needed)}"
            )
        if self.steps is not None and changed("epochs"):
            raise InputError(f"{flag('epochs')} with {flag('steps')}", "one of them", "leave one out")
        return self

    def setting_of(self, rows: str | None) -> Literal["opd", "opsd"]:
        """Return the setting for rows that were made in the setting `rows`, None for rollouts."""
        return self.setting or rows or "opd"

    def check_shardable(self) -> None:
        """Raise InputError for options that exclude weights sharded over several processes."""
        if self.teacher_weights == "ema":
            weights = flag("teacher_weights")
            raise InputError(f"{weights} ema with FSDP", "initial or round", f"change {weights}")

    model: str | None = option(
        None,
        "Model",
        "Student to train. Default: the model that wrote the rollouts.",
        flags=("--model", "-m"),
        rows=False,
    )
    teacher: str | None = option(
        None,
        "Model",
        "Teacher. Default: the model that refined; for opsd the student itself, see --teacher-weights.",
        flags=("--teacher", "-t"),
        rows=False,
    )
    teacher_weights: Literal["initial", "round", "ema"] | None = option(
        None,
        "Model",
        "The student as its own teacher: its weights before the first round, at the start of this round, or their moving average (over rounds; an adapter's only with --continue). Default: the method's, else round.",
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = option(
        0.99, "Model", "Of --teacher-weights ema: share that stays of the average at each step."
    )
    out: str | None = option(None, "Output", "Checkpoint directory. Default: trd-runs/distill-<digest>.", rows=False)
    setting: Literal["opd", "opsd"] | None = option(
        None,
        "Method",
        "opsd: the teacher's context shows the reference too. Refined rows have their own. Default: opd.",
    )
    prompt: str | None = option(
        None, "Prompt", "Template of the teacher's context where it is rendered here, instead of the built-in one."
    )
    epochs: Positive = option(1, "Training", "Passes over the rows.")
    steps: Positive | None = option(
        None,
        "Training",
        "Make exactly so many optimiser steps, in as many passes over the rows as they take, instead of --epochs.",
        counts_unset=False,
    )
    continue_from: str | None = option(
        None,
        "Training",
        "Go on with the training that ended in this checkpoint before its --total-steps: weights, adapter, optimiser, learning rate, averages and random numbers. Its own model must have written the rows. Default: a new training.",
        flags=("--continue",),
        rows=False,
    )
    total_steps: Positive | None = option(
        None,
        "Training",
        "Optimiser steps of all rounds, over which the learning rate goes. A training that ends before them keeps its state for --continue. Default: those of the training that is continued, else this command's own.",
        counts_unset=False,
    )
    batch_size: Positive = option(32, "Training", "Trajectories an optimiser step, over all processes.")
    mix: Mix = option(
        {},
        "Training",
        "NAME=SHARE, comma-separated or repeated, as math=0.5,textworld=0.5: the share of each step's trajectories by task or, where no row has a task of that name, by source. A pass has as many trajectories as there are: the rows of one name may come again before those of another have all come. Rows of no name are left out. Default: all rows alike.",
        counts_unset=False,
    )
    learning_rate: AboveZero = option(
        5e-6, "Training", "Peak learning rate of AdamW.", flags=("--learning-rate", "--lr")
    )
    min_lr_ratio: Share = option(0.1, "Training", "The cosine ends at this share of the peak.")
    warmup_ratio: Share = option(0.1, "Training", "Share of the steps with a rising learning rate.")
    weight_decay: NotNegative = option(0.005, "Training", "AdamW's weight decay.")
    max_grad_norm: AboveZero = option(1.0, "Training", "Gradients are scaled down to this norm.")
    max_loss: AboveZero = option(
        10.0,
        "Training",
        "Stop when a step's loss is more than this many times the first (which counts as 1 at least).",
        rows=False,
    )
    max_length: Positive | None = option(
        None, "Prompt", "Longest context + response, in tokens. Default: what both models take."
    )
    overflow: Literal["trim", "error"] = option(
        "trim",
        "Prompt",
        "Longer rows: cut the attempt's tail in the teacher's context, then the reference's; or leave the row out.",
    )
    seed: int = option(0, "Training", "Order of the rows, start of the adapter, dropout.")
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto", "Engine", "Compute; weights that are trained are float32. auto: bfloat16."
    )
    save_dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto", "Output", "Saved weights. auto: as the starting checkpoint."
    )
    gradient_checkpointing: bool = option(
        False, "Engine", "Recompute activations in the backward pass: less memory.", rows=False
    )
    save_minutes: NotNegative = option(
        10.0, "Output", "Save the state of training after so many minutes, so that a crash loses no more.", rows=False
    )
    save_steps: Positive | None = option(None, "Output", "Save it every so many steps too.", rows=False)
    keep: Positive = option(
        2,
        "Output",
        "Saved states kept while training (one more while it is written); they go when the model is saved.",
        rows=False,
    )
    tracker: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = option(
        (), "Output", "Also log to tensorboard, wandb or trackio (repeatable).", rows=False
    )
    selfcheck: bool = option(
        False,
        "Output",
        "Check loss, gradient and batching on a few of these rows, print the numbers, and stop.",
        rows=False,
    )
    dry_run: bool = option(
        False, "Output", "Say what would be trained and show the first row's two contexts, then stop.", rows=False
    )
