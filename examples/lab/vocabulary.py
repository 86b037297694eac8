"""The lab's tokenizer: tokens of steps and of characters, a chat template, and the ids of the prompts of training."""

from __future__ import annotations

import re
import string
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from world import LETTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = SPECIAL = ("<pad>", "<unknown>", "<user>", "<assistant>", "<end>")
_STEPS = [letter + digit for letter in LETTERS + LETTERS.lower() for digit in string.digits]
_CHARACTERS = string.ascii_uppercase + string.digits + "!=>?" + string.ascii_lowercase + " \n.,:"
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL, *_STEPS, *_CHARACTERS))}
WINDOW = 128
# A place with its digit is one token, any other character another.
_TOKEN = rf"[{LETTERS}{LETTERS.lower()}][0-9]|[\s\S]"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<assistant>{{ message.content }}<end>"
    "{% else %}<user>{{ message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SPLIT = re.compile(_TOKEN).findall
PROMPTS = Path(__file__).parent / "prompts"


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer. A character that it does not know becomes `<unknown>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=TEMPLATE,
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def ids_of(text: str) -> list[int]:
    """Return the ids of a text."""
    return [VOCABULARY[token] for token in tokens_of(text)]


def tokens_of(text: str) -> list[str]:
    """Return the tokens of a text."""
    return _SPLIT(text)


def prompt_ids(name: str, **values: str) -> list[int]:
    """Return the ids of a prompt by the template `prompts/<name>.jinja`, ready for a response's first token."""
    text = _template(name).render(values).strip()
    return [VOCABULARY[USER], *ids_of(text), VOCABULARY[ASSISTANT]]


@cache
def _template(name: str) -> jinja2.Template:
    return jinja2.Template((PROMPTS / f"{name}.jinja").read_text(), undefined=jinja2.StrictUndefined)
