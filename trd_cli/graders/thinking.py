"""Find out whether a row's prompt itself opens the thinking block, as the chat templates of DeepSeek-R1 and its kin do.

The last token ids of the prompt show it when they are decoded with the tokenizer of the row's model. A prompt counts as
opening no block if that tokenizer is missing. The same holds for a server that received messages, since it may return
thoughts apart from the answer, unless it cut the response off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from trd_cli.graders.answers import CLOSE, OPEN
from trd_cli.models import SCRIPTED
from trd_cli.prompting.tokens import ByteTokenizer, HubTokenizer

# More tokens than any tokenizer uses for the opening tag and the space after it.
TAIL = 24
_FILE = "tokenizer.json"

if TYPE_CHECKING:
    import pyarrow as pa

Decode = Callable[[Sequence[int]], str]


def tails(prompts: pa.ListArray) -> Iterator[list[int]]:
    """Yield the last TAIL ids of each prompt of a column `prompt_token_ids`."""
    ids = prompts.values.to_numpy()
    for start, end in pairwise(prompts.offsets.to_pylist()):
        yield ids[max(start, end - TAIL) : end].tolist()


class Prompts:
    """Read the ends of prompts; load a model's tokenizer once, and only if a response leaves the question open."""

    def __init__(self) -> None:
        self._decoders: dict[str, Decode | None] = {}
        self._known: dict[tuple[str, tuple[int, ...]], bool] = {}

    def open_thinking(
        self, model: str, tail: Sequence[int], response: str, exact: bool | None, finish_reason: str | None
    ) -> bool:
        """Return whether a prompt that ends in the ids `tail` opens a thinking block that may not have ended."""
        if OPEN in response or CLOSE in response or not tail:
            return False
        if exact is False and finish_reason != "length":
            return False
        key = model, tuple(tail[-TAIL:])
        if key not in self._known:
            decode = self._decoder(model)
            self._known[key] = decode is not None and decode(key[1]).rstrip().endswith(OPEN)
        return self._known[key]

    def _decoder(self, model: str) -> Decode | None:
        if model not in self._decoders:
            self._decoders[model] = _decoder(model)
        return self._decoders[model]


def _decoder(model: str) -> Decode | None:
    """Return a function that decodes a model's ids with their special tokens, or None if its tokenizer is not here."""
    if model == SCRIPTED:
        return ByteTokenizer().decode
    directory = Path(model)
    try:
        if directory.is_dir() and not (directory / _FILE).is_file():
            return HubTokenizer(directory).decode
        file = str(directory / _FILE) if directory.is_dir() else _cached(model)
        if file is None:
            return None
        from tokenizers import Tokenizer

        return partial(Tokenizer.from_file(file).decode, skip_special_tokens=False)
    except Exception:  # the tokenizers library raises bare exceptions
        return None


def _cached(name: str) -> str | None:
    """Return the path of a Hub model's tokenizer file if it was fetched before, else None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, _FILE)
    return found if isinstance(found, str) else None
