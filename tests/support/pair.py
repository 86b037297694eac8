"""A student and a teacher whose next-token distributions are written down: every figure of theirs is known by hand.

Both are Llamas that look at the last token alone: attention and MLP add nothing, embeddings are unit vectors, and
column i of the head is log P(· | i). So a response is a walk over a table of words:

    the start -> good …            -> \\boxed{4}, which is right (the answer is 4)
              -> bad -> worse …    -> \\boxed{5}, which is wrong
                     -> Wait -> good …                          the way back

After a wrong step the student is sure to go on; the teacher is a mixture of turning back and going on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.tiny import CHAT_TEMPLATE, END, SPECIALS, llama_config, set_eos

from trd_cli.records import Problem
from trd_cli.trajectories.shards import write_problems

Table = dict[str, dict[str, float]]

START = "assistant"  # the last word of every prompt
RIGHT, WRONG = "\\boxed{4}", "\\boxed{5}"
WORDS = (*SPECIALS, "[UNK]", "user", START, "good", "bad", "worse", "Wait", RIGHT, WRONG)
VOCABULARY = 32
PIECES = (*WORDS, *(f"filler{i}" for i in range(VOCABULARY - len(WORDS))))
ID = {piece: i for i, piece in enumerate(PIECES)}
ONSET = ID["Wait"]

# Probabilities after a word. What is left of 1 is spread over the other pieces, each with 0.9 times the one before.
_SHARED: Table = {
    "good": {"good": 0.3, RIGHT: 0.69},
    "Wait": {"good": 0.98},
    RIGHT: {"<|end|>": 0.99},
    WRONG: {"<|end|>": 0.99},
}
STUDENT: Table = _SHARED | {
    START: {"bad": 0.7, "good": 0.28},
    "bad": {"worse": 0.97, "Wait": 0.0001},
    "worse": {"worse": 0.4, WRONG: 0.58, "Wait": 0.0001},
}
TEACHER: Table = _SHARED | {
    START: {"good": 0.9, "bad": 0.08},
    "bad": {"Wait": 0.6, "worse": 0.3},
    "worse": {"Wait": 0.2, "worse": 0.3, WRONG: 0.45},
}


def distribution(table: Table, word: str) -> np.ndarray:
    """Return P(· | word) over all pieces (V,), float64. The teacher's rest goes from the last piece to the first."""
    listed = table.get(word, {})
    others = [piece for piece in PIECES if piece not in listed]
    rest = 0.9 ** np.arange(len(others))
    rest *= (1.0 - sum(listed.values())) / rest.sum()
    order = others[::-1] if table is TEACHER else others
    probability = listed | dict(zip(order, rest, strict=True))
    return np.array([probability[piece] for piece in PIECES])


def write_problems_of_pair(path: Path, count: int) -> Path:
    """Write problems whose answer is 4. The models do not read them."""
    write_problems(path, (Problem(f"p{i:03}", "pair", "math", f"2 + 2 = ? ({i})", "4") for i in range(count)))
    return path


def build_pair(directory: Path) -> tuple[Path, Path]:
    """Write both models below a directory and return their paths, the student's first."""
    return build_table(directory / "student", STUDENT), build_table(directory / "teacher", TEACHER)


def build_table(directory: Path, table: Table) -> Path:
    """Write the model of a table of words and return its path."""
    import torch
    from transformers import AutoModelForCausalLM

    config = llama_config(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=VOCABULARY,
    )
    torch.manual_seed(0)  # a row's seed derives from the weights
    model = AutoModelForCausalLM.from_config(config)
    layer = model.model.layers[0]
    with torch.no_grad():
        # Long vectors, beside which the epsilon of the norm is nothing.
        model.model.embed_tokens.weight.copy_(1000.0 * torch.eye(VOCABULARY))
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        # The norm of a vector along one axis is √V.
        model.model.norm.weight.fill_(VOCABULARY**-0.5)
        logs = np.log([distribution(table, piece) for piece in PIECES])
        model.lm_head.weight.copy_(torch.tensor(logs.T, dtype=torch.float32))
    model.save_pretrained(directory)
    _write_tokenizer(directory)
    set_eos(directory, [END])
    return directory


def _write_tokenizer(directory: Path) -> None:
    """Write a tokenizer of whole words between spaces, which knows only PIECES."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
