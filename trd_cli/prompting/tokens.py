"""Turn messages into token ids and back: chat rendering, end-of-turn ids, and tokenizers that must be the same.

`Tokenizer` is the protocol that stages need. `HubTokenizer` wraps a Hugging Face tokenizer; `ByteTokenizer` needs no
files and serves the scripted engine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from trd_cli import keeper
from trd_cli.errors import ModelError, first_line
from trd_cli.model_files import CONFIG, broken_tokenizer_file, configured_ends
from trd_cli.prompting.chat_templates import PROBE, end_of_turn, names_read, shows
from trd_cli.records import Message, content_hash

Render = Literal["chat", "raw", "raw-line"]
_SHOWN = 5  # differing tokens in an error message
# The files that decide a tokenizer, and more.
_DECIDING = (
    CONFIG,
    "*token*",
    "vocab*",
    "merges*",
    "chat_template*",
    "additional_chat_templates/*",
    "*.model",
    "*.spm",
)


class Tokenizer(Protocol):
    """Text ↔ token ids. `eos_ids` end a response; the chat template writes one of them, `end_of_turn_id`.

    `decode` leaves `special_ids` out.
    """

    eos_ids: frozenset[int]
    end_of_turn_id: int
    special_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def ends(self, text: str) -> Sequence[int]:
        """Return where in `text`, in characters, each token of `encode(text)` ends; never falling.

        A token that ends inside a character ends with all of it. The places are near enough to cut a text by; they are
        not exact where the tokenizer normalises its text. For an exact count of tokens, encode the head that is left.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text without special tokens."""
        ...

    def render(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> list[int]:
        """Return the ids of a prompt, ready for the response's first token."""
        ...

    def write(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> str:
        """Return the text of a prompt. `encode` gives the ids of it and of a part of it, special ones included.

        In the raw modes `render` may put a beginning of text before them.
        """
        ...

    def template_names(self) -> frozenset[str]:
        """Return the names that the chat template reads beside the messages."""
        ...

    def fingerprint(self) -> str:
        """Return a digest that is equal for two tokenizers exactly when the same tokens have the same ids."""
        ...

    def vocabulary(self) -> Mapping[str, int]:
        """Return the id of each token."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0–255, and two special ids that delimit a turn.

    In a text the special ids are halves of surrogate pairs, which no well-formed text has.
    """

    start_id, end_of_turn_id = 256, 257
    eos_ids = frozenset({end_of_turn_id})
    special_ids = frozenset({start_id, end_of_turn_id})
    _MARKS: ClassVar[Mapping[str, int]] = {chr(0xDBFE): start_id, chr(0xDBFF): end_of_turn_id}

    def encode(self, text: str) -> list[int]:
        if not text.isascii() and not self._MARKS.keys().isdisjoint(text):
            return [i for part in re.split(f"([{''.join(self._MARKS)}])", text) for i in self._part(part)]
        return list(text.encode("utf-8", "replace"))

    def _part(self, text: str) -> list[int]:
        return [self._MARKS[text]] if text in self._MARKS else self.encode(text)

    def ends(self, text: str) -> list[int]:
        return [i for i, letter in enumerate(text, 1) for _ in self.encode(letter)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(i for i in token_ids if i < 256).decode("utf-8", "replace")

    def render(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> list[int]:
        return self.encode(self.write(messages, mode, kwargs))

    def write(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> str:
        if mode != "chat":
            return raw_text(messages, mode)
        start, end = self._MARKS
        turns = "".join(f"{start}{m['role']}\n{m['content']}{end}" for m in messages)
        return f"{turns}{start}assistant\n"

    def template_names(self) -> frozenset[str]:
        return frozenset()

    def fingerprint(self) -> str:
        return "bytes"

    def vocabulary(self) -> Mapping[str, int]:
        return {f"<0x{i:02X}>": i for i in range(256)} | {"<start>": self.start_id, "<end>": self.end_of_turn_id}


class HubTokenizer:
    """A Hugging Face tokenizer from a local model directory.

    Raises ModelError for a directory without a usable one, or one where nothing tells how a response ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded = _loaded(path)
        self._tokenizer = self._loaded.tokenizer
        self._tried: set[str] = set()
        added = self._tokenizer.added_tokens_decoder
        special = {i for i, token in added.items() if token.special} | {*self._tokenizer.all_special_ids}
        own = self._tokenizer.eos_token_id
        configured = [*([] if own is None else [int(own)]), *configured_ends(path)]
        written = end_of_turn(self._written, self.encode, {*added, *special}, {*configured})
        ends = [*([] if written is None else [written]), *configured]
        if not ends:
            raise ModelError(
                f"the tokenizer in {path} has no EOS token", "one", "set eos_token in tokenizer_config.json"
            )
        self.end_of_turn_id, self.eos_ids = ends[0], frozenset(ends)
        # An end that was added as plain text is no part of a response either.
        self._plain_ends = self.eos_ids & added.keys() - special
        self.special_ids = frozenset(special | self._plain_ends)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def ends(self, text: str) -> list[int]:
        if not self._tokenizer.is_fast:  # it keeps no places: spread them evenly
            tokens = len(self.encode(text))
            return [-(-i * len(text) // tokens) for i in range(1, tokens + 1)]
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(accumulate((end for _, end in encoded["offset_mapping"]), max))

    def decode(self, token_ids: Sequence[int]) -> str:
        kept = [i for i in token_ids if i not in self._plain_ends]
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    def render(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> list[int]:
        if mode != "chat":
            return self._raw(raw_text(messages, mode))
        self._try_template(kwargs)
        return list(self._applied(messages, kwargs, tokenize=True, return_dict=True)["input_ids"])

    def write(self, messages: Sequence[Message], mode: Render, kwargs: Mapping[str, Any]) -> str:
        if mode != "chat":
            return raw_text(messages, mode)
        self._try_template(kwargs)
        return self._applied(messages, kwargs, tokenize=False)

    def template_names(self) -> frozenset[str]:
        try:
            return names_read(self._tokenizer.get_chat_template())
        except ValueError:  # there is none, or several and no default
            return frozenset()

    def vocabulary(self) -> Mapping[str, int]:
        return self._tokenizer.get_vocab()

    def fingerprint(self) -> str:
        return self._loaded.fingerprint

    def _raw(self, text: str) -> list[int]:
        """Return the ids of a text, after a beginning of text where the tokenizer writes one, without an end."""
        ids = self._tokenizer.encode(text, add_special_tokens=True)
        written = len(ids) - len(self.encode(text))
        while written > 0 and ids[-1] in self.eos_ids:
            ids, written = ids[:-1], written - 1
        return ids

    def _written(self, messages: Sequence[Message]) -> str:
        """Return a conversation as the chat template writes it, without a prompt for the next turn."""
        return self._tokenizer.apply_chat_template(list(messages), tokenize=False)

    def _try_template(self, kwargs: Mapping[str, Any]) -> None:
        """Render a probe with these arguments, once. Raises ModelError where the result does not show it."""
        key = repr(sorted(kwargs.items()))
        if key in self._tried:
            return
        if self._tokenizer.chat_template is None:
            raise ModelError(
                f"the tokenizer in {self.path} has no chat template",
                "one",
                "add chat_template.jinja to that directory, or use --render raw",
            )
        (probe,) = PROBE
        text = self.decode(self.encode(self._applied(PROBE, kwargs, tokenize=False)))
        if not text.strip():
            raise self._template_fails("renders nothing")
        if not shows(text, self.decode(self.encode(probe["content"]))):
            raise self._template_fails("does not show what the user says")
        self._tried.add(key)

    def _applied(self, messages: Sequence[Message], kwargs: Mapping[str, Any], **form: bool) -> Any:
        try:
            return self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, **form, **kwargs)
        except Exception as error:  # whatever a template raises
            raise self._template_fails(f"fails: {first_line(error)}") from None

    def _template_fails(self, how: str) -> ModelError:
        names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
        file = next((name for name in names if (self.path / name).is_file()), names[0])
        return ModelError(
            f"the chat template in {self.path / file} {how}",
            "a prompt with the user's text in it",
            "mend it, change --chat-template-kwargs, or use --render raw",
        )


class _Loaded:
    """A tokenizer of transformers, which nothing changes, with its fingerprint."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def fingerprint(self) -> str:
        return content_hash(sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]))


def _loaded(path: Path) -> _Loaded:
    """Load the tokenizer of a directory, or return the one that is kept from files with the same bytes."""
    at = keeper.current()
    if at is None:
        return _Loaded(_load(path))
    name = f"tokenizer {_digest_of_files(path)}"
    found = at.take(name) or _Loaded(_load(path))
    at.put(name, found, lambda: None)
    return found


def _digest_of_files(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _DECIDING for file in path.glob(pattern) if file.is_file()}):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _load(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # of any type: the tokenizers library raises bare ones
        file, reason = broken_tokenizer_file(path)
        if reason is None and _is_of_config(error, path):
            raise ModelError(
                f"{path / CONFIG}: {first_line(error)}",
                "a configuration that this version of transformers knows",
                "mend it, upgrade transformers, or use another model",
            ) from None
        reason = reason or first_line(error)
        raise ModelError(
            f"no usable tokenizer in {path} ({file}: {reason})",
            "tokenizer files beside the weights that this version of transformers reads",
            "copy them there again, or upgrade transformers and tokenizers",
        ) from None


def _is_of_config(error: Exception, path: Path) -> bool:
    """Tell whether the model's configuration failed, which transformers reads for a tokenizer too."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    except Exception as own:  # of any type: each architecture checks its own fields
        return str(own) == str(error)
    return False


def check_same_tokens(student: str, students: Tokenizer, teacher: str, teachers: Tokenizer) -> None:
    """Raise ModelError when two models' tokenizers differ: the ids of a response would mean other tokens."""
    if teachers.fingerprint() == students.fingerprint():
        return
    mine, theirs = students.vocabulary(), teachers.vocabulary()
    differing = sorted(token for token in {*mine, *theirs} if mine.get(token) != theirs.get(token))
    shown = ", ".join(f"{token!r} {mine.get(token, '–')}/{theirs.get(token, '–')}" for token in differing[:_SHOWN])
    raise ModelError(
        f"the tokenizers of {student} and {teacher} differ in {len(differing)} tokens ({shown}{', …' * (len(differing) > _SHOWN)})",
        "the same tokens with the same ids",
        "use models of one family",
    )


def check_wrote(name: str, tokenizer: Tokenizer, recorded: str | None, where: Path, mend: str) -> None:
    """Raise ModelError when the tokenizer of the model `name` is not the one whose fingerprint a set recorded.

    A set that recorded None is not checked.
    """
    if recorded is not None and recorded != tokenizer.fingerprint():
        raise ModelError(
            f"the tokenizer of {name} is not the one that wrote {where}", "the same tokens with the same ids", mend
        )


def raw_text(messages: Sequence[Message], mode: Render) -> str:
    """Return a prompt's text as it is. In the mode `raw-line` a line break ends it, so that a response has its line."""
    text = "\n\n".join(message["content"] for message in messages)
    return f"{text}\n" if mode == "raw-line" else text


def fit_attempt(tokenizer: Tokenizer, attempt: str, render: Callable[[str], Sequence[int]], room: int) -> str | None:
    """Return the longest head of an attempt that can be kept so that its prompt has at most `room` ids.

    `render(text)` gives the whole prompt's ids for an attempt's text. Returns None when the prompt does not fit even
    without an attempt. The head is cut from the text itself, for decoded ids may have other letters and spaces.
    """
    overhang = len(render(attempt)) - room
    if overhang <= 0:
        return attempt
    ends = tokenizer.ends(attempt)
    head, kept = attempt, len(ends)
    while overhang > 0:
        if not head:
            return None
        # A head may be encoded otherwise than in the whole, so the overhang is an estimate: cut and look again.
        kept = max(0, kept - overhang)
        head = attempt[: ends[kept - 1]] if kept else ""
        overhang = len(render(head)) - room
    return head
