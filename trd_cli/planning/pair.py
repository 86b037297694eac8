"""Student and teacher of a recipe, by their configurations and tokenizers alone: their sizes, and how they fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_cli.config.generating import EngineOptions
from trd_cli.engines.registry import choose_engine, window
from trd_cli.errors import ModelError, UserError
from trd_cli.model_files import INDEX, read_settings, weights_dtype
from trd_cli.models import ModelRef, resolve_model
from trd_cli.planning.estimates import BYTES, Shape
from trd_cli.planning.findings import Finding, error, of_exception, ok, out_of_reach, warning
from trd_cli.prompting.rendering import Rendering
from trd_cli.prompting.tokens import Tokenizer, check_same_tokens

_QUESTION = ({"role": "user", "content": "What is 1 + 1?"},)


@dataclass(frozen=True)
class Linear:
    """A linear layer that an adapter can be put on, by its name in the model."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Planned:
    """A model without its weights.

    `longest` is the context length that its configuration names, in tokens. `shape` is None where the sizes are
    unknown. `dtype` is that of the saved weights.
    """

    ref: ModelRef
    tokenizer: Tokenizer
    longest: int | None
    shape: Shape | None = None
    linears: tuple[Linear, ...] = ()
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def vocabulary(self) -> int:
        """Return the length of the output head, or of the tokenizer's vocabulary where that is unknown."""
        return self.shape.vocabulary if self.shape else max(self.tokenizer.vocabulary().values()) + 1

    def window(self, options: EngineOptions) -> int | None:
        """Return the longest prompt and response that an engine takes, or None where nothing tells."""
        try:
            return window(choose_engine(options, self.name), self.ref, options)
        except UserError:  # check_stages says so; the other findings take what the model can do
            return min(filter(None, (options.max_model_len, self.longest)), default=None)


def longest_training_row(student: Planned, teacher: Planned, asked: int | None) -> int | None:
    """Return the longest context and response that both models train on, or None where nothing tells."""
    from trd_cli.training.examples import longest_row

    try:
        return min(longest_row(model.ref, asked) for model in (student, teacher))
    except ModelError:  # check_stages says so
        return None


def read_model(name: str) -> tuple[Planned | None, list[Finding]]:
    """Read the configuration and the tokenizer of a model.

    One that cannot be read is an error; one that the Hub did not give is a warning, for it may be in reach elsewhere.
    """
    try:
        ref = resolve_model(name, weights=False)
        model = _planned(ref)
    except ModelError as raised:
        level = "warning" if out_of_reach(raised) else "error"
        return None, [of_exception(level, "models", raised, f"{name} could not be read: ")]
    return model, list(_alone(model)) if ref.path else []


def _alone(model: Planned) -> Iterator[Finding]:
    """Yield the findings about one model by itself."""
    if model.shape is None:
        what = f"{model.name}: its configuration does not tell its sizes, so its memory is not estimated"
        yield warning("models", what, "see what it needs in a short run")
        return
    context = f"{model.longest:,} tokens of context" if model.longest else "no context length told"
    yield ok("models", f"{model.name}: {model.shape.parameters:,} parameters, {context}")
    highest = max(model.tokenizer.vocabulary().values())
    if highest >= model.shape.vocabulary:
        yield error(
            "models",
            f"{model.name}: its tokenizer has the id {highest}, its embedding {model.shape.vocabulary} rows",
            "use the tokenizer that the model was trained with",
        )


def _planned(ref: ModelRef) -> Planned:
    """Read a model's files. Raises ModelError for one that cannot be read."""
    tokenizer, longest = ref.tokenizer(), ref.known_length()
    if ref.path is None:
        return Planned(ref, tokenizer, longest)
    dtype = weights_dtype(ref.path)
    dtype = dtype if dtype in BYTES else "bfloat16"
    shape, linears = _sizes(ref, dtype)
    return Planned(ref, tokenizer, longest, shape, linears, dtype)


def _sizes(ref: ModelRef, dtype: str) -> tuple[Shape | None, tuple[Linear, ...]]:
    """Return sizes by building the model without storage, else parameters by the size of the weights' files."""
    from torch import nn

    try:
        config = ref.architecture().get_text_config()
    except ModelError:  # check_stages says so
        return None, ()
    try:
        model = ref.skeleton()
    except ModelError:
        parameters = _by_files(ref.path, dtype)
        return (_shape(config, parameters) if parameters else None), ()
    head = model.get_output_embeddings()
    linears = tuple(
        Linear(name, layer.in_features, layer.out_features)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    )
    return _shape(config, sum(p.numel() for p in model.parameters())), linears


def _shape(config: Any, parameters: int) -> Shape | None:
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    layers = getattr(config, "num_hidden_layers", None)
    if not (heads and width and layers):
        return None
    head_width = getattr(config, "head_dim", None) or width // heads
    return Shape(
        parameters=parameters,
        vocabulary=config.vocab_size,
        width=width,
        layers=layers,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * head_width,
        inner=getattr(config, "intermediate_size", None) or 4 * width,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
    )


def _by_files(path: Path, dtype: str) -> int | None:
    index = path / INDEX
    if index.is_file():
        about = read_settings(index).get("metadata")
        size = about.get("total_size", 0) if isinstance(about, dict) else 0
    else:
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return size // BYTES[dtype] or None


def check_pair(student: Planned, teacher: Planned, rendering: Rendering) -> list[Finding]:
    """Compare tokenizer, ends of a response, vocabulary and chat template of two models."""
    found = [_tokenizers(student, teacher)]
    if student.tokenizer.eos_ids != teacher.tokenizer.eos_ids:
        ends = [", ".join(map(str, sorted(m.tokenizer.eos_ids))) for m in (student, teacher)]
        found.append(
            warning(
                "models",
                f"{student.name} ends a response with {ends[0]}, {teacher.name} with {ends[1]}",
                "nothing: trd distill puts the student's end in place of one that only the teacher knows",
            )
        )
    if student.vocabulary != teacher.vocabulary:
        sizes = f"{student.vocabulary} and {teacher.vocabulary}"
        found.append(ok("models", f"output heads of {sizes} rows: the loss reads the shorter length of both"))
    if rendering.mode == "chat":
        found += _templates(student, teacher, rendering)
    return found


def _tokenizers(student: Planned, teacher: Planned) -> Finding:
    try:
        check_same_tokens(student.name, student.tokenizer, teacher.name, teacher.tokenizer)
    except ModelError as raised:
        return of_exception("error", "models", raised)
    return ok("models", f"the tokenizers of {student.name} and {teacher.name} have the same tokens")


def _templates(student: Planned, teacher: Planned, rendering: Rendering) -> Iterator[Finding]:
    rendered: list[str] = []
    for model in (student, teacher):
        text = _chat_text(model, rendering)
        if isinstance(text, Finding):
            return  # `check_template` reports each model alone
        rendered.append(text)
    if rendered[0] == rendered[1]:
        yield ok("models", "both chat templates render a question alike")
        return
    yield warning(
        "models",
        f"the chat templates differ: {student.name} reads {rendered[0]!r}, {teacher.name} {rendered[1]!r}",
        "nothing where each is to read its own; else chat_template_kwargs in [sample] and [refine]",
    )


def _chat_text(model: Planned, rendering: Rendering) -> str | Finding:
    """Return a question as the chat template renders it, with its special tokens, or a finding where it fails."""
    try:
        ids = rendering.token_ids(model.tokenizer, _QUESTION)
    except ModelError as raised:
        return of_exception("error", "models", raised)
    names = {i: token for token, i in model.tokenizer.vocabulary().items()}
    special = model.tokenizer.special_ids
    parts = [f" {names.get(i, i)} " if i in special else model.tokenizer.decode([i]) for i in ids]
    return "".join(parts).strip()


def check_template(model: Planned, rendering: Rendering) -> Iterator[Finding]:
    """Check that the chat template renders a prompt, and that it reads all of its arguments."""
    if rendering.mode == "chat":
        text = _chat_text(model, rendering)
        if isinstance(text, Finding):
            yield text
            return
    if unread := rendering.unread(model.tokenizer):
        yield warning("models", f"{model.name}: {unread}", "correct chat_template_kwargs, or leave it out")
