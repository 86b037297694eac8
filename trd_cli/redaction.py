"""Keep keys out of messages, the column `error`, run.json and logs, and commands out of what a terminal shows.

A secret is known by its value (keys in the environment, and those that a caller names) or by its place (the user in an
address, `api_key=…`, a word with the form of a key).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
# A shorter value is no secret; one shorter than the second may be a part of other words.
_SHORTEST, _SHORTEST_ANYWHERE = 4, 8
# Placeholders for servers without a key: messages need these words.
_NO_KEYS = {"none", "null", "empty", "dummy", "test"}
_OF_THE_ENVIRONMENT = re.compile(r"(?:API_?KEY|ACCESS_?KEY|SECRET_?KEY|SECRET|TOKEN|PASSWORD)$", re.IGNORECASE)
# Not `eos_token` and the like, which name a token of text.
_NAME = (
    r"(?:\w+[_.-])?(?:api[_-]?key|access[_-]?key|secret[_-]?key|auth[_-]?key|secret|password|passwd|authorization)"
    r"|(?:(?:hf|hub|huggingface|use|auth|access|api|bearer|session|x)[_-])*token"
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?<![\w-])({_NAME})=['\"]?[^\s&;,'\"]+", re.IGNORECASE)
_IN_A_QUERY = re.compile(r"([?&](?:key|sig|signature)=)[^\s&#'\"]+", re.IGNORECASE)
# A password may hold a slash, which would end the user's part of an address, and the scheme may be missing.
_USER = re.compile(
    r"(https?://)[^\s'\"]{0,500}@|(\w://)[^\s/?#'\"]{0,500}@|(?<![\w/.%+-])()[\w.%+-]{1,64}:[^\s/@'\"]{1,200}@(?=(?:[a-z][\w-]*|\d+\.\d+\.\d+\.\d+)(?:[/.]|:\d))",
    re.IGNORECASE,
)
# Of the C0 characters, the symbols that Unicode has for them; of DEL and C1, a common one.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS |= {0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}
_SHAPED = re.compile(r"\b(?:sk-|hf_|gsk_|xai-|nvapi-|AIza)(?=[\w-]{0,200}\d)[\w-]{16,}")


def scrubbed(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` with `***` for each of `secrets`, each key in the environment, and each secret by its place."""
    return _by_place(_without(text, secrets))


def visible(text: str) -> str:
    """Return text with a sign in the place of each character that would be a command to a terminal, as ␛ for ESC."""
    return text.translate(_CONTROLS)


def one_line(value: Any, longest: int, secrets: Iterable[str] = ()) -> str:
    """Return the text of a value, without secrets, as one line of at most `longest` characters."""
    text = _without(" ".join(str(value).split()), secrets) or type(value).__name__
    # Cut before the search by place, which is slow in long texts, and after it.
    text = _by_place(text[: 4 * longest])
    return text if len(text) <= longest else text[: longest - 1] + "…"


def without_secrets(value: Any) -> Any:
    """Return a JSON value with `***` for each secret known by its place.

    Keys in the environment are not searched for: the result is part of digests, which must be the same everywhere.
    """
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_secret(key, v) else without_secrets(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    return _by_place(value) if isinstance(value, str) else value


def is_secret_name(name: str) -> bool:
    """Return True if an option, a variable or a key of a query with this name holds a secret."""
    return _SECRET_NAME.fullmatch(name) is not None or name.lower() in ("key", "sig", "signature")


def _is_secret(name: str, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and _SECRET_NAME.fullmatch(str(name)) is not None


def _without(text: str, secrets: Iterable[str]) -> str:
    known = {secret for secret in (*secrets, *_keys_of_the_environment()) if secret.lower() not in _NO_KEYS}
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= _SHORTEST_ANYWHERE:
            text = text.replace(secret, HIDDEN)
        elif len(secret) >= _SHORTEST:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def _by_place(text: str) -> str:
    text = _USER.sub(lambda found: f"{found[1] or found[2] or ''}{HIDDEN}@", text)
    text = _ASSIGNED.sub(rf"\1={HIDDEN}", text)
    return _SHAPED.sub(HIDDEN, _IN_A_QUERY.sub(rf"\1{HIDDEN}", text))


def _keys_of_the_environment() -> list[str]:
    found = (value.strip() for name, value in os.environ.items() if _OF_THE_ENVIRONMENT.search(name))
    return [value for value in found if len(value) >= _SHORTEST_ANYWHERE]
