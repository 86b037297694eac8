"""Read and check the settings of the openai engine before the first request: addresses, key, arguments."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trd_cli.errors import EngineError, flag
from trd_cli.redaction import is_secret_name, scrubbed

_EXAMPLE = f"give {flag('base_url')}, for example http://localhost:8000/v1"


class Arguments(BaseModel):
    """The keys of `--engine-arg`.

    `timeout` is in seconds for one try. A request has 1 + `retries` tries, and at least one at each server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    api: Literal["completions", "chat"] = "completions"
    served_model: str | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    retries: Annotated[int, Field(ge=0)] = 5
    logprobs: bool = True


@dataclass(frozen=True)
class Server:
    """Hold an address, its query apart, and a key.

    `shown` is the address without its user; `secrets` must not be shown.
    """

    url: str = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    key: str = field(repr=False)
    shown: str
    secrets: frozenset[str] = field(repr=False)


def read_servers(base_urls: Sequence[str]) -> list[Server]:
    """Return the servers of `base_urls`, else the one of OPENAI_BASE_URL, with the key in OPENAI_API_KEY.

    The key is "none" without one. Raises EngineError for an address or a key that cannot be used, without showing the
    key.
    """
    given = [url.strip() for url in base_urls if url.strip()]
    given = given or [os.environ.get("OPENAI_BASE_URL", "").strip()]
    return [_server(url) for url in dict.fromkeys(given)]


def _server(given: str) -> Server:
    if not given:
        raise EngineError(
            f"{flag('engine')} openai without a server", f"{flag('base_url')} or OPENAI_BASE_URL", _EXAMPLE
        )
    key = header_value("OPENAI_API_KEY")
    expected = "an address that begins with http:// or https://"
    if not given.startswith(("http://", "https://")):
        raise EngineError(f"the server {given!r}", expected, _EXAMPLE)
    try:
        parts = urlsplit(given)
        usable = bool(parts.hostname) and parts.port != 0 and given.isprintable() and " " not in given
    except ValueError:
        usable = False
    if not usable:
        raise EngineError(
            f"the server {scrubbed(given)!r}", f"{expected} and has a host", f"{_EXAMPLE}, without spaces"
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    secrets = {key, *_of_the_user(parts.username, parts.password)}
    secrets |= {value for name, value in query.items() if is_secret_name(name)}
    url = urlunsplit(parts._replace(query="", fragment=""))
    return Server(url, query, key or "none", scrubbed(url), frozenset(secrets - {""}))


def header_value(variable: str) -> str:
    """Return the value of a variable that is sent as a header, without space around it, or "" if it is not set.

    Raises EngineError for a value that no header can carry. It does not show the value; the HTTP library's own message
    would.
    """
    value = os.environ.get(variable, "").strip()
    if all("!" <= character <= "~" for character in value):
        return value
    what = "a character that is not ASCII" if not value.isascii() else "a space or a control character"
    raise EngineError(
        f"{variable} holds {what}", "printable ASCII without spaces, as a header carries it", f"set {variable} again"
    )


def _of_the_user(name: str | None, password: str | None) -> set[str]:
    """Return the secret parts of an address's user as they are typed, as they are meant, and as they are sent."""
    secret = password or name or ""
    pair = f"{unquote(name or '')}:{unquote(password or '')}"
    sent = base64.b64encode(pair.encode("utf-8", "replace")).decode() if secret else ""
    return {secret, unquote(secret), sent}


def read_arguments(given: dict[str, Any]) -> Arguments:
    """Return the keys of `--engine-arg`; raise EngineError for an unknown key or a value of another type."""
    try:
        return Arguments(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key, allowed = first["loc"][0], ", ".join(Arguments.model_fields)
        if first["type"] == "extra_forbidden":
            raise EngineError(
                f"{flag('engine_arg')} {key}", f"one of {allowed}", "these are all the openai engine takes"
            ) from None
        expected = first["msg"].removeprefix("Input should be ")
        raise EngineError(f"{flag('engine_arg')} {key}={first['input']!r}", expected, f"change {key}") from None
