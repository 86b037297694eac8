"""Read and write the names of datasets on the Hub: hf://datasets/owner/name[@revision][/folder or file]."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from trd_cli.errors import InputError

SCHEME = "hf://"
_FORM = "hf://datasets/owner/name[@revision][/folder or file]"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Revisions of pull requests and conversions have slashes of their own. In any other one a slash is written as %2F.
_NAME = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?")


@dataclass(frozen=True)
class HubName:
    """A dataset repository at a revision (None: its default branch), and a folder or a file in it ("": the whole)."""

    repository: str
    revision: str | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read a name. Raises InputError for a text of another form."""
        found = _NAME.fullmatch(text)
        path = (found[3] or "").rstrip("/") if found else ""
        if found is None or not is_repository(found[1]) or {"", ".", ".."} & set(path.split("/") if path else ()):
            raise InputError(f"{text!r} is no dataset on the Hub", _FORM, "check the name")
        return cls(found[1], unquote(found[2]) if found[2] else None, path)

    @property
    def is_file(self) -> bool:
        """Return whether the path is that of a Parquet file."""
        return self.path.endswith(".parquet")

    @property
    def folder(self) -> HubName:
        """Return the name of the folder that the file is in; a folder is itself."""
        return replace(self, path=self.path.rpartition("/")[0]) if self.is_file else self

    def at(self, revision: str | None) -> HubName:
        """Return the name at another revision."""
        return replace(self, revision=revision)

    def __str__(self) -> str:
        revision = self.revision and (
            self.revision if _has_slashes_of_its_own(self.revision) else quote(self.revision, "")
        )
        return "".join(
            (f"{SCHEME}datasets/{self.repository}", (revision and f"@{revision}") or "", self.path and f"/{self.path}")
        )


def is_hub_name(text: str) -> bool:
    """Return whether a text is meant as a name on the Hub, and not as a path."""
    return text.startswith(SCHEME)


def is_repository(text: str) -> bool:
    """Return whether a text has the form owner/name."""
    return _REPOSITORY.fullmatch(text) is not None


def _has_slashes_of_its_own(revision: str) -> bool:
    return re.fullmatch(r"refs/(?:pr|convert)/[^/]+", revision) is not None
