"""From messages to token ids and back: chat rendering, end-of-turn ids, tokenizer identity.

A `Tokenizer` is what stages need of one. `HubTokenizer` wraps a Hugging Face tokenizer; `ByteTokenizer` needs no files
and serves the scripted engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

from trd_cli.errors import ModelError, first_line
from trd_cli.records import Message, content_hash

Render = Literal["chat", "raw", "raw-line"]


class Tokenizer(Protocol):
    """Text ↔ token ids. `eos_ids` end a response; `end_of_turn_id` is the one the chat template writes.

    `special_ids` are those that `decode` leaves out.
    """

    eos_ids: frozenset[int]
    end_of_turn_id: int
    special_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def ends(self, text: str) -> Sequence[int]:
        """Return where in `text`, in characters, each token of `encode(text)` ends; never falling.

        A token that ends inside a character ends with all of it. Near enough to cut a text by, whatever the tokenizer's normaliser
        makes of it; whoever needs an exact count of tokens encodes what is left.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        ...

    def render(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> list[int]:
        """Prompt token ids, ready for the response's first token."""
        ...

    def fingerprint(self) -> str:
        """Equal for two tokenizers exactly when they map the same tokens to the same ids."""
        ...

    def vocabulary(self) -> Mapping[str, int]:
        """Id of each token."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0–255, and two special ids that delimit a turn."""

    start_id, end_of_turn_id = 256, 257
    eos_ids = frozenset({end_of_turn_id})
    special_ids = frozenset({start_id, end_of_turn_id})

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def ends(self, text: str) -> list[int]:
        return [i for i, letter in enumerate(text, 1) for _ in self.encode(letter)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(i for i in token_ids if i < 256).decode("utf-8", "replace")

    def render(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> list[int]:
        if mode != "chat":
            return self.encode(raw_text(messages, mode))
        turns = [
            [self.start_id, *self.encode(f"{m['role']}\n{m['content']}"), self.end_of_turn_id]
            for m in messages
        ]
        return [i for turn in turns for i in turn] + [self.start_id, *self.encode("assistant\n")]

    def fingerprint(self) -> str:
        return "bytes"

    def vocabulary(self) -> Mapping[str, int]:
        return {f"<0x{i:02X}>": i for i in range(256)} | {
            "<start>": self.start_id,
            "<end>": self.end_of_turn_id,
        }


class HubTokenizer:
    """A Hugging Face tokenizer from a local model directory.

    Raises ModelError when the directory has none, or when it names no end-of-sequence token.
    """

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer, GenerationConfig

        self.path = path
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
            raise ModelError(
                f"no usable tokenizer in {path} ({reason})",
                "tokenizer files beside the weights",
                "copy them there",
            ) from None
        if self._tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer in {path} has no EOS token", "one", "set eos_token in tokenizer_config.json"
            )
        self.end_of_turn_id = int(self._tokenizer.eos_token_id)
        added = self._tokenizer.added_tokens_decoder.items()
        self.special_ids = frozenset(
            {i for i, token in added if token.special} | {*self._tokenizer.all_special_ids}
        )
        self.eos_ids = frozenset({self.end_of_turn_id})
        if (path / "generation_config.json").is_file():
            configured = GenerationConfig.from_pretrained(str(path)).eos_token_id
            listed = configured if isinstance(configured, list) else [configured]
            self.eos_ids |= {int(i) for i in listed if i is not None}

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def ends(self, text: str) -> list[int]:
        if not self._tokenizer.is_fast:  # keeps no places: spread evenly
            tokens = len(self.encode(text))
            return [-(-i * len(text) // tokens) for i in range(1, tokens + 1)]
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(accumulate((end for _, end in encoded["offset_mapping"]), max))

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def render(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> list[int]:
        if mode != "chat":
            return self._tokenizer.encode(raw_text(messages, mode), add_special_tokens=True)
        if self._tokenizer.chat_template is None:
            raise ModelError(
                f"the tokenizer in {self.path} has no chat template",
                "one",
                "add chat_template.jinja to that directory, or use --render raw",
            )
        encoded = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True, **kwargs
        )
        return list(encoded["input_ids"])

    def vocabulary(self) -> Mapping[str, int]:
        return self._tokenizer.get_vocab()

    def fingerprint(self) -> str:
        return content_hash(sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1]))


def raw_text(messages: Sequence[Message], mode: Render) -> str:
    """Return a prompt's text as it is; in the mode `raw-line` a line break ends it, so that a response begins a line of its own."""
    text = "\n\n".join(message["content"] for message in messages)
    return f"{text}\n" if mode == "raw-line" else text


def fit_attempt(
    tokenizer: Tokenizer, attempt: str, render: Callable[[str], Sequence[int]], room: int
) -> str | None:
    """Return the head of an attempt that can be kept so that its prompt has at most `room` ids.

    `render(text)` gives the whole prompt's ids for an attempt's text. None when the prompt does not fit even without one.
    The head is a piece of the text itself, never what ids decode to: a tokenizer may change letters and spaces on the way.
    """
    overhang = len(render(attempt)) - room
    if overhang <= 0:
        return attempt
    ends = tokenizer.ends(attempt)
    head, kept = attempt, len(ends)
    while overhang > 0:
        if not head:
            return None
        # A head is not encoded token for token as the whole is, so the overhang is an estimate: cut and look again.
        kept = max(0, kept - overhang)
        head = attempt[: ends[kept - 1]] if kept else ""
        overhang = len(render(head)) - room
    return head
