"""Keep out of what is published where things lay on this machine: a path becomes the name of its last part."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trd_cli.atomic import from_text
from trd_cli.redaction import scrubbed, without_secrets

_PATH = re.compile(r"(?:~?/|file:/|[A-Za-z]:\\)")
# A path inside a longer text, as in NAME:file=/data/x. A division or a closing tag is none.
_INSIDE = re.compile(r"(?<=[=,;\s\"'(\[])~?(?:/[^\s/,;:=\"'()\[\]<>]+){2,}")


def without_places(value: Any) -> Any:
    """Return a JSON value with names in place of paths of this machine, and without secrets."""
    return _without_places(without_secrets(value))


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(each) for each in value]
    return named(value) if isinstance(value, str) else value


def named(text: str) -> str:
    """Return the last part of an absolute path; in any other text, of each absolute path in it."""
    if is_place(text):
        return scrubbed(from_text(text.replace("\\", "/")).name or text)
    return scrubbed(_INSIDE.sub(lambda found: Path(found[0]).name, text).replace(str(Path.home()), "~"))


def is_place(text: str) -> bool:
    """Return whether a text as a whole is an absolute path or a path from the user's home."""
    return _PATH.match(text) is not None and "\n" not in text


def without_keyed_places(text: str, keys: frozenset[str]) -> str:
    """Return the text of a JSON file with names in place of paths under some keys, or as it was if there are none."""
    content = json.loads(text)
    changed = {key: named(v) if key in keys and isinstance(v, str) else v for key, v in content.items()}
    return text if changed == content else json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
