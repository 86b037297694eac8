"""Build random language models of a few thousand weights with a real tokenizer; commands run in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIALS = ("<|pad|>", "<|start|>", "<|end|>", "<|eos|>")
END = SPECIALS.index("<|end|>")
OTHER_END = SPECIALS.index("<|eos|>")
_MERGES = (
    ("t", "h"),
    ("th", "e"),
    ("i", "n"),
    ("a", "n"),
    ("e", "r"),
    ("Ġ", "the"),
    ("Ġ", "a"),
    ("an", "d"),
    ("Ġ", "and"),
    ("o", "u"),
    ("h", "o"),
    ("Ġ", "ho"),
    ("l", "e"),
    ("in", "g"),
    ("o", "r"),
    ("e", "s"),
    ("Ġ", "o"),
    ("Ġ", "s"),
    ("Ġ", "="),
    ("Ġ", "+"),
)
VOCABULARY = len(SPECIALS) + 256 + len(_MERGES)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# The small initial weights of real models give nearly flat distributions, where rounding decides a greedy token.
_WIDE = 0.35


def write_bare_model(directory: Path) -> Path:
    """Write a model without weights, for engines that ask a server."""
    (directory / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 4096}')
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path, merges: tuple = _MERGES, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """Write a byte-level BPE tokenizer; `<|end|>` ends a turn.

    Other `merges` make another vocabulary of the same size.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = chat_template
    fast.save_pretrained(directory)


def write_other_form(directory: Path) -> Path:
    """Give a model directory the same vocabulary with another chat template; `<|eos|>` alone ends a turn."""
    other = SPECIALS[OTHER_END]
    template = CHAT_TEMPLATE.replace("<|end|>", other).replace("<|start|>", "<|start|>the ")
    write_tokenizer(directory, chat_template=template)
    settings = directory / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": other}))
    set_eos(directory, [OTHER_END])
    return directory


def with_normalizer(directory: Path, normalizer: Any, **settings: Any) -> Path:
    """Give the tokenizer of a model directory another normaliser and other settings; its vocabulary stays."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), **settings)
    tokenizer.backend_tokenizer.normalizer = normalizer
    tokenizer.save_pretrained(directory)
    return directory


def build_words(directory: Path, pieces: Sequence[str]) -> Path:
    """Add a tokenizer of whole words to a model: it drops spaces and lowers letters.

    It knows only `pieces` and single letters.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({letter for piece in pieces for letter in piece.lower() if not letter.isspace()})
    words = [*SPECIALS, "[UNK]", *dict.fromkeys(piece.strip().lower() for piece in pieces if piece.strip())]
    known = dict.fromkeys([*words, *letters, *(f"##{letter}" for letter in letters)])
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIALS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
    return directory


def build_bytes(directory: Path) -> Path:
    """Add a tokenizer written in Python to a model: bytes are ids, and no token's place in the text is known."""
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer(eos_token="<|end|>", pad_token="<|pad|>", extra_ids=0)
    slow.chat_template = CHAT_TEMPLATE
    slow.save_pretrained(directory)
    (directory / "tokenizer.json").unlink(missing_ok=True)
    return directory


def llama_config(**changes: Any):
    from transformers import LlamaConfig

    return LlamaConfig(**{**SHAPE, **changes})


SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": _WIDE,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": 0,
}


def build_model(
    directory: Path, seed: int = 0, config: Any = None, eos: list[int] | None = None, **changes: Any
) -> Path:
    """Make a model directory with random weights: Llama with `changes` to its shape, or of another `config`.

    `eos` is the list of a response's ends in generation_config.json (default: `<|end|>` alone).
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config or llama_config(**changes))
    model.save_pretrained(directory)
    write_tokenizer(directory)
    set_eos(directory, eos or [END])
    return directory


def set_eos(directory: Path, eos: list[int]) -> None:
    """Set the list of a response's ends in generation_config.json."""
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))


def reference_model(directory: Path):
    """Return the model as transformers itself loads it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()


def engine_of(directory: Path, batch_size: int | None = None, **options: Any):
    """Return the transformers engine on a model directory, in float32 on the CPU unless `options` say otherwise."""
    from trd_cli.config.generating import EngineOptions
    from trd_cli.engines.transformers import TransformersEngine
    from trd_cli.models import resolve_model

    model = resolve_model(str(directory))
    chosen = EngineOptions(**{"dtype": "float32", "device": "cpu", "batch_size": batch_size, **options})
    return TransformersEngine(model, model.tokenizer(), chosen)
